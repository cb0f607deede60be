"""Whatever is read from outside may be damaged, edited or made up: every outcome is success or one sentence.

A table of damaged records through every command that reads them. Mutations are in `test_mutated_records.py`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.figures.records import MethodInfo, Run, Turn, read_records, write_json, write_turns
from tests.answer_files import row
from tests.bench.figures import test_compare
from tests.tiny import files_of

ALL = ("report", "compare", "export", "history", "--resume")
QUESTION_LINES = "".join(
    json.dumps({"question_id": i, "category": category, "turns": turns, "reference": ["x"]}) + "\n"
    for i, category, turns in ((0, "writing", ["Hello?", "And?"]), (1, "qa", ["Who?"]), (2, "", ["What?"]))
)
ANSWER_LINES = "".join(
    json.dumps(row(i, [9, 5], [1.0, 2.0], "writing", idxs=[4, 2], accept_lengths=[2, [3, 1]])) + "\n" for i in range(3)
)
SCORES = {
    "model": "tiny", "model_sha256": "0" * 64, "parameters": 7,
    "data": {"conversations": 3, "tokens": 90, "answer_tokens": 50, "mixture": {"qa": 1.0}, "held_out": 1},
    "epochs": [{"epoch": 1, "loss": 2.5, "scores": {"agreement": 0.4}, "by_kind": {"qa": 0.4}}],
}  # fmt: skip
SWEEP = {
    "schema": 1, "method": "kangaroo", "axes": [{"name": "gamma", "values": ["1", "2"]}],
    "variants": [{"label": f"kangaroo:gamma={i}", "values": [str(i)], "training": {"seed": 0}} for i in (1, 2)],
}  # fmt: skip


def a_run(**more: Any) -> Run:
    """One that was interrupted, so that it could go on."""
    costs = {"shallow": 0.1, "draft": 0.05, "verify": {"1": 1.0, "4": 1.5}, "rest": -0.01}
    described = MethodInfo("method", True, 7, {"gamma": 3}, {"parts": ["x", "y"], "probe_windows": 2}, costs)
    settings = {"method": ["kangaroo"], "rounds": 1, "probe_windows": 2, "max_new_tokens": 9, "temperature": 0.0}
    own = {
        "methods": {"vanilla": MethodInfo("vanilla", True, 0, {}), "kangaroo": described},
        "config": settings,
        "provenance": {"commit": "c" * 40, "packages": {"torch": "1"}, "started": "2026-11-22T07:10:13+00:00"},
        "complete": False,
    }
    return test_compare.a_run(**(own | more))


def some_turns() -> list[Turn]:
    turns = test_compare.some_turns(1)[:8]
    for turn in turns:
        turn.text, turn.draft_s, turn.verify_s, turn.prompt_digest = "a text", 0.1, 0.2, "0123456789abcdef"
        if turn.method == "kangaroo":
            steps = len(turn.per_step_emitted)
            turn.per_step_part, turn.per_step_rejected = [0, 1] * (steps // 2), [[5]] * steps
            turn.accepted_confidence, turn.rejected_confidence, turn.windows = [0.9], [0.2], [2, 1, 0]
    return turns


@pytest.fixture
def recorded(tmp_path) -> Path:
    folder = tmp_path / "recorded"
    write_json(folder / "run.json", a_run())
    write_turns(folder / "turns.jsonl", some_turns())
    write_json(folder / "pieces.json", {str(token): f"t{token}" for token in range(10)})
    return folder


# --- through the commands --------------------------------------------------------------------------------------------

DEEP, LONG = "[" * 100_000, "9" * 5_000
WHOLE_FILES = ["", "{", "[]", "null", DEEP, '{"a":' * 100_000, b"\xff\xfe{}", b"\xef\xbb\xbf{}"]
RUN_CHANGES = [
    ({"run_id": "../../x"}, "run_id: String should match"),
    ({"run_id": ".."}, "run_id: String should match"),
    ({"run_id": "a\nb"}, "run_id: String should match"),
    ({"run_id": "x" * 300}, "run_id: String should have at most 200 characters"),
    ({"moon": 1}, "moon: Unexpected"),
    ({"schema": 1}, "schema 1; this version reads 2"),
    ({"machine": None}, "machine: Input should be"),
    ({"model": "x"}, "model: Input should be"),
    ({"provenance": [1]}, "provenance: Input should be"),
    ({"provenance": {"started": "yesterday"}}, "provenance.started: Invalid isoformat string: 'yesterday'"),
    ({"provenance": {"sessions": [{"wall_s": -1}]}}, "provenance.sessions[0].wall_s: Input should be greater"),
    ({"wall_s": "@inf@"}, "wall_s: Infinity is not a number in JSON"),
    ({"wall_s": "@huge@"}, "wall_s: Input should be a finite number"),
    ({"config": {"rounds": "many"}}, "config: rounds: Input should be a valid integer, not 'many'"),
    ({"config": {"rounds": -1}}, "config: --rounds -1"),
    ({"config": {"seed": 10**400}}, "config.seed: an integer of 400 digits is out of range"),
    ({"config": {"seed": "@digits@"}}, "number out of range"),
    ({"dataset": {"questions": 10**400}}, "dataset.questions: Input should be less than or equal to"),
    ({"methods": {"vanilla": {"kind": "magic"}}}, "methods.vanilla.kind: String should match"),
    ({"methods": {"vanilla": {"kind": "vanilla", "lossless": 1}}}, "methods.vanilla.lossless: Input should be a valid"),
    ({"engine": {"weights": "@half@"}}, "half a character (a lone surrogate)"),
]
KANGAROO_CHANGES = [
    ({"notes": {"parts": [1]}}, "methods.kangaroo.notes.parts[0]: Input should be a valid string, not 1"),
    ({"notes": {"said": "@huge@"}}, "methods.kangaroo.notes.said: "),
    ({"notes": {"said": "@nan@"}}, "methods.kangaroo.notes.said: NaN is not a number in JSON"),
    ({"costs": {"shallow": 0, "draft": 0, "rest": 0, "verify": {"x": 1}}}, "methods.kangaroo.costs.verify.x"),
    ({"costs": {"shallow": 0, "draft": 0, "rest": 0, "verify": {}}}, "methods.kangaroo.costs.verify: "),
    ({"kind": "vanilla"}, "methods: vanilla and kangaroo are both of kind vanilla"),
]
TURN_CHANGES = [
    ({"method": "ghost"}, "method: 'ghost' is not in run.json"),
    ({"round": 1}, "round: 1 is beyond the run's 1 rounds"),
    ({"round": "0"}, "round: Input should be a valid integer, not '0'"),
    ({"turn": 2**60}, "turn: Input should be less than or equal to"),
    ({"question_id": 0, "task": "qa"}, "kangaroo answered question 0, turn 0, in round 0 before"),
    ({"task": "overall"}, "task: 'overall' is the name of the tasks' mean"),
    ({"token_ids": None}, "token_ids: Input should be"),
    ({"token_ids": []}, "token_ids: has 0 tokens, but 1 from the prefill"),
    ({"token_ids": [1, 2**40]}, "token_ids[1]: Input should be less than 2147483648"),
    ({"token_ids": ["@digits@"]}, "number out of range"),
    ({"decode_s": "fast"}, "decode_s: Input should be a valid number, not 'fast'"),
    ({"decode_s": -5.0}, "decode_s: Input should be greater than or equal to 0, not -5.0"),
    ({"decode_s": 1e300}, "decode_s: Input should be less than or equal to 1000000000, not 1e+300"),
    ({"decode_s": "@nan@"}, "decode_s: NaN is not a number in JSON"),
    ({"audit": {"verdict": "maybe"}}, "audit.verdict: String should match"),
    ({"per_step_emitted": [9, 1]}, "per_step_drafted: has 4 steps, but per_step_emitted has 2"),
    ({"per_step_s": [0.1]}, "per_step_s: has 1 steps, but per_step_emitted has 4"),
    ({"per_step_accepted": []}, "per_step_accepted: has 0 steps, but per_step_emitted has 4"),
    ({"per_step_emitted": [2**50, 1, 1, 1]}, "per_step_emitted: a step has more tokens than the answer's 9"),
    ({"per_step_part": [0, 1, 2, 0]}, "per_step_part: 2 is beyond the 2 members"),
    ({"accepted_confidence": [1.5]}, "accepted_confidence[0]: Input should be less than or equal to 1, not 1.5"),
    ({"prompt_digest": "x"}, "prompt_digest: String should match"),
    ({"moon": 1}, "moon: Unexpected"),
    ({"text": "@half@"}, "half a character (a lone surrogate)"),
]
RAW = {"@nan@": "NaN", "@inf@": "Infinity", "@huge@": "1e999", "@digits@": LONG, "@half@": '"\\ud83d"', "@deep@": DEEP}


def spelled(value: Any) -> str:
    """JSON with what `json` would not write."""
    text = json.dumps(value)
    for sign, raw in RAW.items():
        text = text.replace(f'"{sign}"', raw)
    return text


def refused(folder: Path, commands: tuple[str, ...], said: str, capsys, tmp_path: Path, monkeypatch) -> None:
    """Each command ends with status 2 and one sentence, and leaves the files as they are."""
    monkeypatch.chdir(tmp_path)
    before = files_of(folder)
    for command in commands:
        assert main([command, *[str(folder)] * (2 if command == "compare" else 1)]) == 2, command
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1, (command, told)
        assert told[0].startswith("error: ")
        assert said in told[0], command
        assert len(told[0]) < 600
    assert files_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("content", WHOLE_FILES, ids=range(len(WHOLE_FILES)))
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("run.json", ALL),
        ("turns.jsonl", ("report", "compare", "export", "history")),
        ("pieces.json", ("report", "export")),
    ],
)
def test_a_file_that_is_no_record(recorded, name, commands, content, capsys, tmp_path, monkeypatch):
    if name == "turns.jsonl" and not content:
        pytest.skip("a run that was killed before its first question")
    (recorded / name).write_bytes((content if isinstance(content, bytes) else content.encode()) + b"\n")
    refused(recorded, commands, str(recorded / name), capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("kept", "said"), [(0, "has no turns"), (-40, "line 8: not a turn's record")])
def test_turns_that_a_complete_run_must_have(recorded, kept, said, capsys, tmp_path, monkeypatch):
    (recorded / "turns.jsonl").write_bytes((recorded / "turns.jsonl").read_bytes()[:kept])
    assert main(["report", str(recorded)]) == 0, "an interrupted run may lack them"
    capsys.readouterr()
    write_json(recorded / "run.json", a_run(complete=True))
    refused(recorded, ALL[:4], said, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["run.json", "turns.jsonl"])
@pytest.mark.parametrize("instead", ["folder", "nothing"])
def test_a_file_that_is_not_there(recorded, name, instead, capsys, tmp_path, monkeypatch):
    (recorded / name).unlink()
    if instead == "folder":
        (recorded / name).mkdir()
    commands = ALL if name == "run.json" else ALL[:4]
    refused(recorded, commands, name, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("change", "said"), RUN_CHANGES, ids=[said[:40] for _, said in RUN_CHANGES])
def test_a_changed_run(recorded, change, said, capsys, tmp_path, monkeypatch):
    run = json.loads((recorded / "run.json").read_text())
    (recorded / "run.json").write_text(spelled(run | change))
    refused(recorded, ALL, said, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("change", "said"), KANGAROO_CHANGES, ids=[said[:40] for _, said in KANGAROO_CHANGES])
def test_a_changed_method(recorded, change, said, capsys, tmp_path, monkeypatch):
    run = json.loads((recorded / "run.json").read_text())
    run["methods"]["kangaroo"] |= change
    (recorded / "run.json").write_text(spelled(run))
    refused(recorded, ALL, said, capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize(("change", "said"), TURN_CHANGES, ids=[said[:40] for _, said in TURN_CHANGES])
def test_a_changed_turn(recorded, change, said, capsys, tmp_path, monkeypatch):
    lines = (recorded / "turns.jsonl").read_text().splitlines()
    lines[3] = spelled(json.loads(lines[3]) | change)
    (recorded / "turns.jsonl").write_text("\n".join(lines) + "\n")
    said = f"turns.jsonl, line 4: not a turn's record ({said}"
    refused(recorded, ("report", "compare", "export", "history"), said, capsys, tmp_path, monkeypatch)


def test_what_is_not_recorded_is_unknown_and_no_fault(recorded, tmp_path, capsys):
    """Records from before prompts had digests."""
    old = shutil.copytree(recorded, tmp_path / "old")
    lines = [json.loads(line) for line in (old / "turns.jsonl").read_text().splitlines()]
    assert [line.pop("prompt_digest") for line in lines] == ["0123456789abcdef"] * 8
    (old / "turns.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {turn.prompt_digest for turn in read_records(old)[1]} == {""}
    assert main(["compare", str(old), str(recorded)]) == 0
    assert "differ" not in capsys.readouterr().out


def test_runs_of_other_prompts_are_refused_by_what_changed(tmp_path, capsys):
    turns = some_turns()
    for name in "bc":
        write_json(tmp_path / name / "run.json", a_run(model={"name": "m", "tokenizer_sha256": name * 64}))
        write_turns(tmp_path / name / "turns.jsonl", turns)
        turns[0].prompt_digest = "f" * 16
    asked = ["compare", str(tmp_path / "b"), str(tmp_path / "c")]
    prompt = "question 0 with 5 tokens, digest"
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert "of different things (tokenizer: bbbbbbbbbbbb.. and cccccccccccc..; prompts: " in told
    assert f"prompts: {prompt} 0123456789abcdef and {prompt} ffffffffffffffff)" in told
    assert "--allow 'tokenizer' --allow 'prompts' if meant" in told
    assert main([*asked, "--allow", "tokenizer"]) == 2
    assert main([*asked, "--allow", "tokenizer", "--allow", "prompts"]) == 0
    assert "the runs differ in tokenizer" in capsys.readouterr().out
