"""Runs, turns and pages for the report's tests. Expected figures are worked out by hand."""

from __future__ import annotations

from pathlib import Path

from bench.figures.machine import Machine
from bench.figures.metrics import TASKS, summarize
from bench.figures.records import Audit, MethodInfo, Run, Turn, write_json, write_turns
from bench.figures.summary import Summary
from bench.report import markdown
from bench.report.sections import sections

LONG = "kangaroo:threshold=0,gamma=4"
OLD_PLOTS = ["speedup_by_task", "compression_rate_by_task", "ctar_by_window"]


def make_run(methods: dict[str, str], **more) -> Run:
    """A run of vanilla and the named methods, each with its kind ("method", "peer" or "lossy")."""
    infos = {"vanilla": MethodInfo("vanilla", True, 0, {})}
    for name, kind in methods.items():
        info = MethodInfo("method" if kind == "lossy" else kind, kind != "lossy", 1_000_000, {"gamma": 6})
        infos[name] = info
    values = {
        "run_id": "r1",
        "command": "roobench --methods a|b",
        "model": {"name": "tiny_model", "sha256": "ab" * 32},
        "dataset": {"name": "mini", "sha256": "cd" * 32, "questions": 12, "tasks": list(TASKS)},
        "machine": Machine("cpu", "a CPU", 2),
        "dtype": "float32",
        "config": {},
        "engine": {"weights": "packed"},
        "provenance": {"commit": "0123abc", "dirty": True, "packages": {"torch": "9.9"}},
        "wall_s": 61.0,
    }
    return Run(methods=infos, **(values | more))


def make_turns(methods: dict[str, str], tasks=TASKS) -> list[Turn]:
    """One question of seven tokens a task; vanilla takes 6 s to decode, methods 2 s + 1 s a task's place."""
    turns = []
    for place, task in enumerate(tasks):
        shared = {"question_id": place, "task": task, "category": task, "turn": 0, "round": 0}
        answer = {"token_ids": list(range(7)), "prefill_s": 1.0, "finish": "length"}
        turns.append(Turn("vanilla", **shared, **answer, decode_s=6.0, per_step_emitted=[1] * 6))
        turns[-1].per_step_drafted = turns[-1].per_step_accepted = [0] * 6
        for name, kind in methods.items():
            turn = Turn(name, **shared, **answer, decode_s=2.0 + place)
            if kind != "peer":
                turn.per_step_drafted = [2, 4]
                turn.per_step_accepted = [2, 3]
                turn.per_step_emitted = [3, 3]  # the limit cut the bonus
            turn.audit = None if kind == "lossy" else Audit("identical")
            turns.append(turn)
    return turns


def make_summary(methods: dict[str, str], tasks=TASKS) -> Summary:
    return summarize(make_run(methods), make_turns(methods, tasks))


def sampled(methods: dict[str, str], tasks=TASKS, **config) -> tuple[Run, list[Turn]]:
    """As a sampled run leaves it: nothing is audited."""
    turns = make_turns(methods, tasks)
    for turn in turns:
        turn.audit = None
    return make_run(methods, config={"temperature": 1.0, "top_p": 1.0, "top_k": 0} | config), turns


def section(page: str, heading: str) -> str:
    """What stands under a heading, as far as the next one of any level."""
    assert f"\n{heading}\n" in page, f"no {heading!r}"
    return page.split(f"\n{heading}\n")[1].split("\n#")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a page's tables, without the rules."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def save(folder: Path, run: Run, turns: list[Turn]) -> Path:
    write_json(folder / "run.json", run)
    write_turns(folder / "turns.jsonl", turns)
    return folder


def report_page(run: Run, summary: Summary) -> str:
    return markdown.page(sections(run, summary))


def page_of(run: Run, turns: list[Turn]) -> str:
    return report_page(run, summarize(run, turns))
