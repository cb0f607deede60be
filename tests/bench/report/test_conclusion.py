"""The end of a run on a terminal: the answer, the reason, the report; then warnings and tables."""

from __future__ import annotations

import os
import sys

import pytest

from bench import text
from bench.figures.metrics import summarize
from bench.figures.summary import Drafts
from bench.report import write_report
from bench.report.conclusion import answer, conclusion
from tests.bench.report.full_summary import rich_summary
from tests.bench.report.helpers import make_run, make_summary, make_turns, save


def written(tmp_path, methods: dict[str, str], **run):
    """The folder of a run with a report."""
    folder = save(tmp_path / "a run", make_run(methods, **run), make_turns(methods, ("qa", "rag")))
    write_report(folder, tmp_path / "plots")
    return folder


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_run_ends_with_the_answer_the_reason_and_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_bench.py"])
    folder = written(tmp_path, {"kangaroo": "method", "hf-generate": "peer"})
    said = conclusion(folder)
    # 6 tokens in 2 s and 3 s where vanilla takes 6 s; two steps of 3 tokens and 1 s or 1.5 s, vanilla's of 1 s.
    assert words(said).startswith(
        "kangaroo decodes 2.50x as fast as vanilla (mean of two tasks, 2.00x-3.00x by task), "
        "output identical in 2/2 turns. Reason: 3.00 tokens per step (CR), and a step costs 1.25 vanilla steps"
    )
    (report,) = [line for line in said.splitlines() if line.startswith("Report: ")]
    assert report.startswith(f"Report: {folder / 'report.html'}; open it with: ")
    assert report.endswith(f" run_bench.py report '{folder}' --open")
    assert said.index("Report: ") < said.index("tiny_model (float32) on a CPU")


def test_the_interval_is_with_the_speedup_and_the_parts_with_the_cost():
    summary = rich_summary(("kangaroo",))
    speed, reason = answer(summary)
    cell = summary.methods["kangaroo"].overall
    low, high = cell.speedup_decode.bounds
    assert f"decodes {cell.speedup_decode.value:.2f}x [{low:.2f}, {high:.2f}] as fast as vanilla" in speed
    step = cell.step_time
    assert reason == (
        f"Reason: {cell.compression_rate:.2f} tokens per step (CR), and a step costs {step.total:.2f} vanilla steps "
        f"(draft {step.draft:.2f}, verify {step.verify:.2f}, rest {step.rest:.2f})."
    )


def test_the_reason_ends_with_what_bounds_the_method():
    summary = rich_summary(("kangaroo",))
    summary.methods["kangaroo"].overall.drafts = Drafts(0.25, 4.0, 0.5)
    *_, reason = answer(summary)
    assert words(reason).endswith(
        "What bounds it: coverage: it drafts in 25% of its steps, which then add 3.00 tokens."
    )


def test_what_limits_the_figures_follows_at_once(tmp_path):
    session = {"started": "2026-11-28T00:00:00+00:00", "others_share": 0.31, "warnings": ["the machine is busy"]}
    provenance = {"commit": "0123abc", "dirty": True, "packages": {}, "sessions": [session]}
    folder = written(tmp_path, {"kangaroo": "method"}, provenance=provenance)
    first = conclusion(folder).split("\n\n")[0]
    assert "\n- The machine is busy.\n" in first
    assert "\n- Busy machine: other programs used 31% of the processors" in first
    assert "- Few questions (" in first
    assert "**" not in first
    assert "](#" not in first
    assert max(len(line) for line in first.splitlines() if not line.startswith("Report: ")) <= 110


def test_the_fastest_methods_come_first_and_no_more_than_three():
    names = ("a", "b", "c", "d", "e")
    lines = answer(rich_summary(names))
    summary = rich_summary(names)
    fastest = sorted(names, key=lambda name: -summary.methods[name].overall.speedup_decode.value)
    assert [line.split()[0] for line in lines if " decodes " in line] == fastest[:3]
    assert lines[-1] == "2 more methods are slower: see the overview."
    summary = rich_summary(names)
    summary.methods["e"].overall.speedup_decode.value = None  # it failed, and is named elsewhere
    assert answer(summary)[-1] == "1 more method is slower: see the overview."


def test_vanilla_alone_and_beside_a_peer():
    (alone,) = answer(make_summary({}, ("qa",)))
    assert alone == "vanilla decodes 1.0 tokens/s; there is nothing to compare."
    (peer,) = answer(make_summary({"hf-generate": "peer"}, ("qa", "rag")))
    assert peer == "vanilla decodes 0.42x as fast as hf-generate (mean of two tasks)."


def test_a_method_that_finished_nothing_has_no_reason():
    run, turns = make_run({"kangaroo": "method"}), make_turns({"kangaroo": "method"}, ("qa",))
    for turn in turns:
        turn.token_ids, turn.per_step_emitted, turn.decode_s = turn.token_ids[:1], [], 0.0
        turn.per_step_drafted = turn.per_step_accepted = []
    lines = answer(summarize(run, turns))
    assert not any("Reason" in line for line in lines)
    assert lines


def test_a_narrow_terminal_gets_lines_that_fit(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(text.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    lines = "\n".join(answer(rich_summary(("kangaroo",)))).splitlines()
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize("label", ["kangaroo:gamma=4,threshold=0.25,weights=somewhere", "short"])
def test_a_short_name_is_explained_where_the_tables_are(tmp_path, label):
    folder = written(tmp_path, {label: "method"})
    said = conclusion(folder)
    title = label if label == "short" else f"kangaroo (1): {label}"
    assert said.startswith(title.partition(":")[0] + " decodes ")
    assert f"\n{title}, 1,000,000 extra parameters" in said
