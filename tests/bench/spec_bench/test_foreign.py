"""Answer files of other harnesses: the figures are those that Spec-Bench's scripts would print."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from bench.errors import UserError
from bench.figures import metrics
from bench.figures.summary import Estimate
from bench.report import terminal_table
from bench.spec_bench.foreign import foreign_summary, limits
from tests.answer_files import (
    MT_BENCH,
    QUESTIONS,
    a_run,
    lines,
    row,
    some_turns,
    spec_bench_equal,
    spec_bench_speed,
    written,
)


def random_files(tmp_path: Path) -> tuple[Path, Path]:
    rng = random.Random(3)
    rows = {"base": [], "fast": []}
    for question, (category, turns) in QUESTIONS.items():
        for name, longest in (("base", 1), ("fast", 4)):
            tokens, seconds = ([draw(5, 50) for _ in range(turns)] for draw in (rng.randint, rng.uniform))
            lengths = [rng.randint(1, longest) for _ in range(12)]
            rows[name].append(row(question, tokens, seconds, category, accept_lengths=lengths))
    base, fast = (written(tmp_path / f"{name}.jsonl", *of) for name, of in rows.items())
    return base, fast


def test_summary_has_the_figures_that_speed_py_prints(tmp_path):
    base, fast = random_files(tmp_path)
    cells = foreign_summary(base, [fast]).methods["fast"].tasks
    assert list(cells) == ["mt_bench", "qa", "rag", "overall"]
    for task, cell in cells.items():
        rate, rate_base, ratio, length = spec_bench_speed(fast, base, task)
        assert cell.tok_per_s_total == pytest.approx(rate)
        assert cell.tok_per_s_total_vanilla == pytest.approx(rate_base)
        assert cell.speedup_total_mean_rates == Estimate(pytest.approx(ratio))
        assert cell.mean_accepted_tokens == pytest.approx(length)
        lengths = [
            length
            for of in lines(fast)
            if task in ("overall", "mt_bench" if of["category"] in MT_BENCH else of["category"])
            for length in of["choices"][0]["accept_lengths"]
        ]
        assert cell.emitted_histogram == [lengths.count(n) for n in (1, 2, 3, 4)]
        if task != "overall":
            assert cell.compression_rate == cell.mean_accepted_tokens
            assert cell.ctar == pytest.approx([np.mean(np.array(lengths) > w) for w in (1, 2, 3)])
    by_task = [cells[task].compression_rate for task in ("mt_bench", "qa", "rag")]
    assert cells["overall"].compression_rate == pytest.approx(np.mean(by_task))


def test_ratio_of_sums_and_geometric_mean_are_those_of_the_tasks(tmp_path):
    base = written(tmp_path / "base.jsonl", row(1, [10], [1.0]), row(2, [10], [4.0]), row(3, [10], [1.0], "rag"))
    fast = written(tmp_path / "fast.jsonl", row(1, [10], [0.5]), row(2, [10], [0.5]), row(3, [10], [1.0], "rag"))
    cells = foreign_summary(base, [fast]).methods["fast"].tasks
    assert cells["qa"].speedup_total.value == pytest.approx(5.0)  # 20 tokens: 1 s against 5 s
    assert cells["qa"].speedup_total_geometric.value == pytest.approx(4.0)  # of 2 and 8
    assert cells["qa"].speedup_total_mean_rates.value == pytest.approx(20 / 6.25)
    assert cells["overall"].speedup_total.value == pytest.approx(3.0)
    assert cells["overall"].speedup_total_geometric.value == pytest.approx(2.5)
    assert cells["overall"].speedup_total_mean_rates.value == pytest.approx(50 / 3 / 7.5)  # pooled
    assert cells["overall"].compression_rate is None
    assert (cells["qa"].ctar, cells["qa"].emitted_histogram, cells["qa"].steps) == (None, None, None)


def test_retokenizing_counts_the_baseline_by_its_text_alone(tmp_path):
    base = written(tmp_path / "base.jsonl", row(1, [12, 12], [1.0, 1.0], turns=["a b c d", "e f"]))
    fast = written(tmp_path / "fast.jsonl", row(1, [12, 12], [0.5, 0.5], turns=["a b c d", "e f"]))
    summary = foreign_summary(base, [fast], retokenize=lambda text: len(text.split()))
    cells = {name: entry.tasks["qa"] for name, entry in summary.methods.items()}
    assert summary.baseline_tokens == "retokenized"
    assert cells["fast"].tok_per_s_total_vanilla == 3.0
    assert cells["fast"].speedup_total_mean_rates.value == 8.0
    assert cells["base"].speedup_total_mean_rates.value == 1.0
    assert summary.limits == limits(retokenized=True)
    assert "retokenised" in summary.limits[1]
    assert summary.limits != foreign_summary(base, [fast]).limits == limits()


def test_failed_and_unpaired_questions_are_left_out_and_named(tmp_path):
    base = written(tmp_path / "base.jsonl", *(row(i, [10], [1.0]) for i in (1, 2, 3)))
    rows = [row(1, [10], [0.5]), row(2, [10, 10], [0.1, 0.1], turns=["fine", "ERROR"]), row(4, [10], [0.1])]
    summary = foreign_summary(base, [written(tmp_path / "fast.jsonl", *rows)])
    assert summary.excluded_questions == [2]
    (failed,) = summary.failed
    assert (failed.question_id, failed.method, failed.turn) == (2, "fast", 1)
    assert summary.unpaired_questions == {"base": [], "fast": [3, 4]}
    assert summary.methods["fast"].overall.questions == 1
    assert summary.methods["fast"].overall.speedup_total.value == 2.0
    assert summary.methods["base"].overall.questions == 2
    with pytest.raises(UserError, match="share no question"):
        foreign_summary(base, [written(tmp_path / "other.jsonl", row(7, [1], [1.0]))])


def test_unequal_texts_are_counted_as_equal_py_finds_them_and_named(tmp_path):
    base = written(tmp_path / "base.jsonl", row(1, [1, 1], [1.0, 1.0], turns=["a", "b"]), row(2, [1], [1.0]))
    same = written(tmp_path / "same.jsonl", *lines(base))
    other = written(tmp_path / "other.jsonl", row(1, [1, 1], [1.0, 1.0], turns=["a", "b "]), row(2, [1], [1.0]))
    summary = foreign_summary(base, [same, other])
    counts = {name: entry.overall.text_equal for name, entry in summary.methods.items()}
    assert counts["same"] == {"equal": 2, "different": 0}
    assert counts["other"] == {"equal": 1, "different": 1}
    assert [(x.method, x.question_id, x.turn) for x in summary.unequal_texts] == [("other", 1, 1)]
    assert (spec_bench_equal(base, same), spec_bench_equal(base, other)) == (True, False)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    base = written(tmp_path / "base.jsonl", row(1, [10], [1.0]))
    paths = []
    for number in (1, 2):
        (tmp_path / f"run_{number}").mkdir()
        paths.append(written(tmp_path / f"run_{number}" / "fast.jsonl", row(1, [10], [1.0 / number])))
    assert list(foreign_summary(base, paths).methods) == ["base", "run_1/fast", "run_2/fast"]
    with pytest.raises(UserError, match="two answer files are called"):
        foreign_summary(base, [paths[0], paths[0]])


def test_summary_has_the_shape_of_a_runs_and_can_be_shown(tmp_path):
    run, turns = a_run({"vanilla": "vanilla", "m": "method"}), some_turns({"vanilla": 1, "m": 4})
    own = dataclasses.asdict(metrics.summarize(run, turns))
    base, fast = random_files(tmp_path)
    made = foreign_summary(base, [fast])
    summary = dataclasses.asdict(made)
    assert own.keys() <= summary.keys()
    for entry in summary["methods"].values():
        assert own["methods"]["m"].keys() <= entry.keys()
        for cell in entry["tasks"].values():
            assert own["methods"]["m"]["tasks"]["qa"].keys() <= cell.keys()
            assert cell["speedup_decode"]["value"] is None
    json.dumps(summary, allow_nan=False)
    table = terminal_table(made)
    assert "fast" in table
    assert "NOT lossless" not in table
