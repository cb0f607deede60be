"""A method that remembers earlier answers says so in record and report, forgets between rounds, and is not resumed."""

from __future__ import annotations

import json

from bench.cli import main
from bench.figures.records import remembers_the_run
from methods.suffix import Suffix
from tests.tiny import records, run_bench

LABEL = "suffix:run,costs=0/0/1:1.0/2:1.1/9:1.5"


def test_memory_of_the_run_is_recorded_shown_and_begins_anew_with_every_round(setting, monkeypatch):
    held, forget = [], Suffix.forget

    def watched(self):
        held.append(self.answers.texts if hasattr(self, "answers") else 0)
        forget(self)

    monkeypatch.setattr(Suffix, "forget", watched)
    methods = ["--method", LABEL, "--method", "suffix", "--rounds", "2"]
    assert run_bench(setting.model, setting.questions, setting.out, *methods) == 0
    run, turns = records(setting.out)
    assert run.methods[LABEL].notes == {"memory": "run"}
    assert run.methods["suffix"].notes == {}
    assert [remembers_the_run(run.methods[name].notes) for name in (LABEL, "suffix")] == [True, False]
    assert "(remembers the run)" in (setting.out / "report.md").read_text()
    assert {turn.error for turn in turns} == {None}
    per_round = [[turn.per_step_drafted for turn in turns if (turn.method, turn.round) == (LABEL, n)] for n in (0, 1)]
    assert per_round[0] == per_round[1]
    assert max(held) >= 3  # what it had learned when a round was over


def test_a_run_with_such_a_memory_cannot_be_resumed(setting, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", LABEL) == 0
    path = setting.out / "run.json"
    record = json.loads(path.read_text())
    record["complete"] = False
    path.write_text(json.dumps(record))
    lines = (setting.out / "turns.jsonl").read_text().splitlines(keepends=True)
    (setting.out / "turns.jsonl").write_text("".join(lines[:2]))
    assert main(["--resume", str(setting.out)]) == 2
    assert "has forgotten what it answered there; begin a new run" in capsys.readouterr().err
