"""The tables of the terminal and of `summary.csv`. Expected figures are worked out by hand."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from bench.figures.metrics import summarize
from bench.figures.records import MethodInfo
from bench.figures.summary import Estimate
from bench.report import formats, tables, terminal_table, write_report
from bench.report.markdown import table_text
from bench.report.sections import headline
from tests.bench.report.full_summary import change, estimate, rich_summary
from tests.bench.report.helpers import LONG, make_run, make_summary, make_turns, sampled, save


def test_the_csv_has_a_row_a_method_and_task(tmp_path):
    methods = {"kangaroo": "method", "hf-generate": "peer"}
    folder = save(tmp_path, make_run(methods), make_turns(methods, ("qa", "rag")))
    write_report(folder, tmp_path / "plots")
    text = (tmp_path / "summary.csv").read_text(encoding="utf-8")
    frame = pd.read_csv(tmp_path / "summary.csv").set_index(["method", "task"])
    assert len(frame) == 9
    row = frame.loc["kangaroo", "rag"]
    # 6 tokens in 3 s against 6 in 6 s; steps of 3 and 3.
    assert (row["speedup_decode"], row["ctar_1"], row["ctar_2"], row["lossless_identical"]) == (2.0, 1.0, 1.0, 1)
    assert pd.isna(frame.loc["hf-generate", "qa"]["compression_rate"])
    assert "kangaroo,method,rag,1,1,7,2,2.0," in text, "counts must stay whole numbers beside empty fields"


def test_the_headline_says_how_fast_and_whether_the_output_is_the_same():
    entry = make_summary({"kangaroo": "method"}).methods["kangaroo"]
    # Ratios 6/2, 6/3, 6/4, 6/5, 6/6, 6/7: their mean is 1.5929.
    assert headline("kangaroo", entry) == (
        "**kangaroo** decodes 1.59x as fast as vanilla (mean of six tasks, 0.86x-3.00x by task), "
        "output identical in 6/6 turns."
    )
    alone = make_summary({"typical": "lossy"}, ("qa",)).methods["typical"]
    assert headline("typical", alone) == (
        "**typical** decodes 3.00x as fast as vanilla (one task), output may differ from vanilla's: not lossless."
    )


def test_a_peer_is_told_what_vanilla_is_worth():
    summary = make_summary({"hf-generate": "peer"}, ("qa", "rag"))
    # The peer decodes 3 and 2 times as fast: vanilla is worth 1/3 and 1/2 of it, 5/12 on average.
    assert headline("hf-generate", summary.methods["hf-generate"]) == (
        "vanilla decodes 0.42x as fast as **hf-generate** (mean of two tasks)."
    )
    lines = terminal_table(summary).splitlines()
    start = lines.index("vanilla is 0.42x hf-generate (decode, overall)")
    assert lines[start + 4].split() == ["Question", "answering", "1", "0.33x", "0.43x", "3.0", "1.0", "1/1"]


def test_the_terminal_table_shows_each_task_in_order():
    lines = terminal_table(make_summary({"kangaroo": "method"}, ("rag", "qa", "translation"))).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("task"))
    body = lines[start + 2 : start + 5]
    assert [row.split("  ")[0] for row in body] == ["Translation", "Question answering", "RAG"]
    # rag: 6 tokens in 2 s; 7 in 3 s against 7 in 7 s; CR 6/2; steps of 3 and 3; 5 of 7 tokens drafted.
    assert body[2].split() == ["RAG", "1", "3.00x", "2.33x", "3.0", "1.0", "3.00", "1.00", "1.00", "0.71", "1/1"]
    assert lines[start + 6].split()[0] == "Overall"
    assert len({len(row) for row in body}) == 1, "columns are not aligned"


@pytest.mark.parametrize("windows", [1, 4, 10])
def test_the_terminal_table_fits_its_width(windows):
    summary = make_summary({LONG: "method", "hf-generate": "peer"})
    for cell in summary.methods[LONG].tasks.values():
        # As a long run of a wide drafter on a fast device looks.
        change(cell, turns=11520, tok_per_s=12345.6, tok_per_s_vanilla=1234.5)
        cell.lossless = {"identical": 11519, "numerical": 1, "different": 0}
        cell.ctar = [0.5] * windows
    text = terminal_table(summary)
    assert max(map(len, text.splitlines())) <= 110
    assert "output of all turns: 11519 identical, 1 numerical" in text
    assert " 0.50 0.50 " in text or windows == 1


def test_method_tables_spell_out_the_audit():
    entry = make_summary({"kangaroo": "method"}, ("qa",)).methods["kangaroo"]
    row = table_text(tables.method(entry, formats.lossless_text)).splitlines()
    assert row[0] == (
        "| task | turns | speedup decode | speedup end-to-end | tok/s | vanilla tok/s | CR | CTAR(1..) | draft share "
        "| lossless |"
    )
    assert row[2] == (
        "| Question answering | 1 | 3.00x | 2.33x | 3.0 | 1.0 | 3.00 | 1.00 1.00 | 0.71 | 1/1 identical |"
    )
    counts = {"identical": 13, "numerical": 1, "different": 0}
    assert formats.lossless_text(counts) == "13 identical, 1 numerical"
    assert formats.lossless_text(dict.fromkeys(counts, 0)) == "not checked"
    assert formats.lossless_text(None) == "NOT lossless"


def test_the_terminal_has_a_dash_for_sampled_answers():
    text = terminal_table(summarize(*sampled({"kangaroo": "method", "hf-generate": "peer"}, ("qa",))))
    body = [line.split() for line in text.splitlines() if line.startswith("Question answering")]
    assert [row[-1] for row in body] == ["-", "-"]
    assert "identical:" not in text
    assert "sampled answers are not compared token by token." in " ".join(text.split())


def test_a_lossy_method_is_marked_wherever_the_terminal_shows_it():
    lines = terminal_table(make_summary({"kangaroo": "method", "typical": "lossy"}, ("qa",))).splitlines()
    start = lines.index("typical, 1,000,000 extra parameters, NOT lossless")
    assert lines[start + 4].startswith("Question answering")
    assert lines[start + 4].endswith(" NOT lossless")
    assert "kangaroo, 1,000,000 extra parameters" in lines
    overview = lines[lines.index("overview") + 4 :]
    assert [overview[0].split()[-1], overview[1].split("  ")[-1]] == ["1/1", "NOT lossless"]


def test_the_csv_says_what_claims_to_be_lossless(tmp_path):
    methods = {"kangaroo": "method", "typical": "lossy"}
    write_report(save(tmp_path, make_run(methods), make_turns(methods, ("qa",))), tmp_path / "plots")
    frame = pd.read_csv(tmp_path / "summary.csv", dtype=str).set_index(["method", "task"])["lossless_claimed"]
    assert frame["vanilla", "qa"] == "true"
    assert frame["kangaroo", "qa"] == frame["kangaroo", "overall"] == "true"
    assert frame["typical", "qa"] == frame["typical", "overall"] == "false"


def test_the_terminals_overview_has_a_row_a_method():
    methods = {"kangaroo": "method", "medusa": "method", "hf-generate": "peer"}
    run = make_run(methods)
    run.methods["medusa"] = MethodInfo("method", True, 0, {})
    blocks = terminal_table(summarize(run, make_turns(methods, ("qa", "rag")))).split("\n\n")
    place = next(index for index, block in enumerate(blocks) if block.startswith("overview\n"))
    assert blocks[place - 1].startswith("medusa\n"), "it stands behind the methods' own tables"
    lines = blocks[place].splitlines()[1:]
    assert lines[1].split() == ["method", "decode", "total", "CR", "parameters", "task", "identical"]
    # The slowest: 6 tokens in 3 s where vanilla takes 6 s.
    assert [line.split() for line in lines[3:]] == [
        ["kangaroo", "2.50x", "2.04x", "3.00", "1,000,000", "RAG", "2.00x", "2/2"],
        ["medusa", "2.50x", "2.04x", "3.00", "-", "RAG", "2.00x", "2/2"],
    ]
    assert "overview" not in terminal_table(make_summary({"kangaroo": "method", "hf-generate": "peer"}))


def test_the_terminals_overview_shortens_long_names_in_the_middle():
    ends = ("gamma=4", "threshold=0.25")
    methods = {f"kangaroo:weights={'folder/' * 12},{end}": "lossy" for end in ends} | {"short": "method"}
    text = terminal_table(make_summary(methods, ("mt_bench", "a task with a name of its own, which is long")))
    lines = text.split("\noverview\n")[1].split("\n\n")[0].splitlines()
    assert max(map(len, lines)) == 110
    for line, end in zip(lines[3:5], ends, strict=True):
        name = line.split()[0]
        assert name.startswith("kangaroo:")
        assert "…" in name
        assert name.endswith(end)
    assert lines[5].startswith("short  ")


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc…fg"), ("abcdefgh", 7, "abc…fgh"), ("abcdef", -5, "a…f")],
)
def test_what_is_too_long_is_shortened_in_the_middle(text, limit, shown):
    assert formats.shortened(text, limit) == shown


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (estimate(1.194, 0.042), "1.19x [1.15, 1.24]"),
        (Estimate(1.19), "1.19x"),
        (Estimate(), "-"),
        (None, "-"),
    ],
)
def test_an_estimate_shows_its_interval_where_it_has_one(given, shown):
    assert formats.times_between(given) == shown


def test_what_vanilla_is_worth_has_its_own_interval():
    summary = rich_summary(("kangaroo",), ("qa",))
    cell = summary.methods["hf-generate"].tasks["qa"]
    cell.worth_decode = Estimate(2.0, 1.25, 2.5)
    assert tables.peer(summary.methods["hf-generate"]).rows[0][2] == "2.00x [1.25, 2.50]"


def test_the_tables_say_which_estimator_and_interval_they_show():
    text = " ".join(terminal_table(rich_summary(("kangaroo",))).split())
    assert (
        "Speedups: ratio of sums (overall: the tasks' unweighted mean); in brackets the 95% bootstrap interval" in text
    )
    assert "5,000 resamples, clustered by question, stratified by task" in text


@pytest.mark.parametrize("names", [("kangaroo",), (LONG, "medusa:accept=typical")])
@pytest.mark.parametrize("windows", [1, 3, 9])
def test_the_terminal_fits_its_width_with_intervals_too(names, windows):
    summary = rich_summary(names)
    for name in names:
        for cell in summary.methods[name].tasks.values():
            change(cell, turns=11520, tok_per_s=12345.6, tok_per_s_vanilla=1234.5, ctar=[0.5] * windows)
            cell.speedup_decode = estimate(10.51, 0.44)
    text = terminal_table(summary)
    assert max(map(len, text.splitlines())) <= 110
    assert text.count("10.51x [10.07, 10.95]") >= 7 * len(names), "the interval is what must not be dropped"


def test_the_terminal_says_where_the_time_goes():
    summary = rich_summary(("kangaroo",))
    block = terminal_table(summary).split("\nwhere the time goes\n")[1].split("\n\n")[0].splitlines()
    overall = summary.methods["kangaroo"].overall
    parts = [getattr(overall.step_time, key) for key in ("draft", "verify", "rest", "total")]
    figures = [*parts, overall.predicted.step_cost, overall.compression_rate]
    last = block[4].split()
    assert last[:7] == ["kangaroo", *(f"{value:.2f}" for value in figures)]
    assert last[-1] == f"{100 * overall.prediction_error:+.1f}%"
    assert block[3].split()[0] == "vanilla"


def test_the_csv_has_bounds_and_the_parts_of_a_step():
    frame = tables.csv_frame(rich_summary(("kangaroo",))).set_index(["method", "task"])
    cell = rich_summary(("kangaroo",)).methods["kangaroo"].tasks["qa"]
    row = frame.loc["kangaroo", "qa"]
    for key in ("speedup_decode", "speedup_total_geometric"):
        assert (row[key], row[f"{key}_low"], row[f"{key}_high"]) == dataclasses.astuple(getattr(cell, key))
    assert row["step_time_verify"] == cell.step_time.verify
    assert row["predicted_step_cost"] == cell.predicted.step_cost
    assert [row[f"emitted_histogram_{n}"] for n in (1, 2)] == cell.emitted_histogram[:2]
    assert pd.isna(frame.loc["hf-generate", "qa"]["step_time_total"])
    held = frame.map(lambda value: isinstance(value, dict | list))
    assert not held.any().any(), "a field holds one figure"


def test_a_task_of_somebodys_own_file_is_no_formula_in_the_csv():
    frame = tables.csv_frame(rich_summary(("kangaroo",), ("=cmd()",), peer=False))
    assert list(frame["task"]) == ["'=cmd()", "overall"] * 2
    assert list(frame["turns"]) == [20] * 4
