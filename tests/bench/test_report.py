"""What a run's records become: page, tables, plots. Expected figures are worked out by hand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.errors import UserError
from bench.metrics import TASKS, summarize
from bench.records import Audit, MethodInfo, Run, Turn, write_json, write_turns
from bench.report import figures, tables, terminal_table, write_report
from bench.report.page import headline, report_page

ROOT = Path(__file__).parents[2]
LONG = "kangaroo:threshold=0,gamma=4"
PLOT_NAMES = ["speedup_by_task", "compression_rate_by_task", "ctar_by_window"]


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
        "device": {"type": "cpu", "name": "a CPU", "threads": 2},
        "dtype": "float32",
        "config": {},
        "engine": {"execution": "packed"},
        "provenance": {"commit": "0123abc", "dirty": True, "versions": {"torch": "9.9"}},
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


def make_summary(methods: dict[str, str], tasks=TASKS) -> dict:
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


def page_of(run: Run, turns: list[Turn]) -> str:
    return report_page(run, summarize(run, turns), [])


def test_a_report_is_page_summary_and_plots_with_relative_links(tmp_path):
    methods = {"kangaroo": "method", "hf-generate": "peer"}
    folder = save(tmp_path / "runs" / "r1", make_run(methods), make_turns(methods))
    plots = tmp_path / "plots" / "r 1"
    written = write_report(folder, plots)
    assert written == [
        folder / "report.md",
        folder / "summary.json",
        folder / "summary.csv",
        *(plots / f"{name}.{suffix}" for name in PLOT_NAMES for suffix in ("png", "svg")),
    ]
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "](../../plots/r%201/speedup_by_task.png)" in page
    assert json.loads((folder / "summary.json").read_text())["run_id"] == "r1"
    for name in PLOT_NAMES:
        assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (plots / f"{name}.svg").read_text(encoding="utf-8")
    assert not list(tmp_path.rglob(".*")), "a temporary file was left behind"


def test_the_same_records_give_the_same_files(tmp_path):
    folder = save(tmp_path / "run", make_run({"kangaroo": "method"}), make_turns({"kangaroo": "method"}))
    first = {path: path.read_bytes() for path in write_report(folder, tmp_path / "plots")}
    assert {path: path.read_bytes() for path in write_report(folder, tmp_path / "plots")} == first


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


def test_a_failing_figure_leaves_the_old_files(tmp_path, monkeypatch):
    methods = {"kangaroo": "method"}
    folder = save(tmp_path / "run", make_run(methods), make_turns(methods))
    plots = tmp_path / "plots"
    write_report(folder, plots)
    before = {path: path.read_bytes() for path in (*plots.iterdir(), folder / "report.md")}

    def savefig(self, file, **_):
        file.write(b"half a picture")
        raise RuntimeError("no more ink")

    monkeypatch.setattr(Figure, "savefig", savefig)
    save(folder, make_run(methods, dtype="bfloat16"), make_turns(methods, TASKS[:1]))
    with pytest.raises(RuntimeError, match="no more ink"):
        write_report(folder, plots)
    assert {path: path.read_bytes() for path in (*plots.iterdir(), folder / "report.md")} == before


def test_a_plot_that_cannot_be_written_is_a_user_error(tmp_path):
    folder = save(tmp_path / "run", make_run({}), make_turns({}))
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"speedup_by_task\.png"):
        write_report(folder, tmp_path / "plots")


def test_reports_need_neither_torch_nor_a_display(tmp_path):
    folder = save(tmp_path, make_run({"kangaroo": "method"}), make_turns({"kangaroo": "method"}))
    code = (
        "import sys, pathlib\n"
        "import bench.report\n"
        "assert 'matplotlib' not in sys.modules, 'a table in a terminal needs no drawing library'\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "bench.report.write_report(folder, folder / 'plots')\n"
        "heavy = {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)


def test_the_headline_says_how_fast_and_whether_the_output_is_the_same():
    entry = make_summary({"kangaroo": "method"})["methods"]["kangaroo"]
    # Ratios 6/2, 6/3, 6/4, 6/5, 6/6, 6/7: their mean is 1.5929.
    assert headline("kangaroo", entry) == (
        "**kangaroo** decodes 1.59x as fast as vanilla (mean of six tasks, 0.86x-3.00x by task), "
        "output identical in 6/6 turns."
    )
    alone = make_summary({"typical": "lossy"}, ("qa",))["methods"]["typical"]
    assert headline("typical", alone) == (
        "**typical** decodes 3.00x as fast as vanilla (one task), output may differ from vanilla's: not lossless."
    )


def test_a_peer_is_told_what_vanilla_is_worth():
    summary = make_summary({"hf-generate": "peer"}, ("qa", "rag"))
    # The peer decodes 3 and 2 times as fast, 2.5 on average: vanilla is worth 1 / 2.5 of it.
    assert headline("hf-generate", summary["methods"]["hf-generate"]) == (
        "vanilla is 0.40x **hf-generate** (decode, mean of two tasks)."
    )
    lines = terminal_table(summary).splitlines()
    start = lines.index("vanilla is 0.40x hf-generate (decode, overall)")
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
    for cell in summary["methods"][LONG]["tasks"].values():
        # As a long run of a wide drafter on a fast device looks.
        cell |= {"turns": 11520, "tok_per_s": 12345.6, "tok_per_s_vanilla": 1234.5}
        cell["lossless"] = {"identical": 11519, "numerical": 1, "different": 0}
        cell["ctar"] = [0.5] * windows
    text = terminal_table(summary)
    assert max(map(len, text.splitlines())) <= 110
    assert "output of all turns: 11519 identical, 1 numerical" in text
    assert " 0.50 0.50 " in text or windows == 1


def test_the_page_lists_what_speaks_against_its_figures():
    methods = {"kangaroo": "method"}
    run, turns = make_run(methods, complete=False), make_turns(methods)
    turns[0].error = "RuntimeError: cache | overflow\nat `row` 3"
    turns[3].audit = Audit("different", 5, 11, 13, 0.25, 1e-4)
    turns[5].audit = Audit("numerical", 6, None, 17, 0.0, 1e-4)
    for turn in turns[6:8]:
        turn.token_ids = [1] * 20
    page = page_of(run, turns)
    assert "- **The run was interrupted**" in page
    assert "- **Failed questions: 1**" in page
    assert r"| vanilla, question 0 (Multi-turn conversation), turn 0, round 0 | `RuntimeError: cache \| " in page
    assert "overflow at 'row' 3` |" in page
    assert "- **Not lossless**: 1 answers of kangaroo differ" in page
    assert "question 1 (Translation), turn 0, round 0 | different | 5 | 11 | 13 | 0.25 | 0.0001 |" in page
    assert "question 2 (Summarization), turn 0, round 0 | numerical | 6 | - | 17 | 0 | 0.0001 |" in page
    assert "- **Few questions** (Translation 1, Summarization 1," in page
    # Twenty equal tokens: 13 8-grams, one different.
    assert "vanilla 0.92 in Question answering; kangaroo 0.92 in Question answering." in page
    assert "output of 5 turns: 3 identical, 1 numerical, 1 different." in page


def test_a_clean_run_has_no_warnings():
    turns = []
    for copy in range(20):
        for turn in make_turns({"kangaroo": "method"}):
            turn.question_id += 100 * copy
            turns.append(turn)
    page = page_of(make_run({"kangaroo": "method"}), turns)
    assert "## Warnings" not in page
    assert "## Failures" not in page
    assert "## Divergences" not in page


def test_the_page_tells_knobs_and_provenance():
    page = page_of(make_run({"kangaroo": "method"}), make_turns({"kangaroo": "method"}))
    assert "| kangaroo | method | yes | 1,000,000 | `gamma=6` |" in page
    assert r"| command | `roobench --methods a\|b` |" in page
    assert "| commit | 0123abc with uncommitted changes |" in page
    assert "| questions | mini (12), sha256 `cdcdcdcdcdcd` |" in page
    assert "| versions | torch 9.9 |" in page
    assert "| wall time | 61 s |" in page


def test_method_tables_spell_out_the_audit():
    row = tables.method_markdown(make_summary({"kangaroo": "method"}, ("qa",))["methods"]["kangaroo"]).splitlines()
    assert row[0] == (
        "| task | turns | speedup decode | speedup end-to-end | tok/s | vanilla tok/s | CR | CTAR(1..) | draft share "
        "| lossless |"
    )
    assert row[2] == (
        "| Question answering | 1 | 3.00x | 2.33x | 3.0 | 1.0 | 3.00 | 1.00 1.00 | 0.71 | 1/1 identical |"
    )
    counts = {"identical": 13, "numerical": 1, "different": 0}
    assert tables.lossless_text(counts) == "13 identical, 1 numerical"
    assert tables.lossless_text(dict.fromkeys(counts, 0)) == "not checked"
    assert tables.lossless_text(None) == "NOT lossless"


def test_an_interrupted_run_is_reported_over_what_was_finished(tmp_path):
    methods = {"kangaroo": "method", "medusa": "method"}
    turns = make_turns(methods)
    # Interrupted in the second question: vanilla and one method had answered, the other had not.
    folder = save(tmp_path, make_run(methods, complete=False), turns[:5])
    write_report(folder, tmp_path / "plots")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"] is False
    assert [summary["methods"][name]["tasks"]["overall"]["turns"] for name in ("kangaroo", "medusa")] == [2, 1]
    assert "INTERRUPTED" in terminal_table(summary)


@pytest.mark.parametrize("turns", [make_turns({}), []])
def test_vanilla_alone_is_reported_without_a_comparison(tmp_path, turns):
    folder = save(tmp_path, make_run({}), turns)
    write_report(folder, tmp_path / "plots")
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Only vanilla was run: there is nothing to compare." in page
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "vanilla alone" in terminal_table(summary)
    for figure in figures.draw(summary).values():
        assert any("nothing to show" in text.get_text() for text in figure.axes[0].texts)


def test_bars_show_the_summarys_figures_and_vanillas_line():
    summary = make_summary({"kangaroo": "method", "hf-generate": "peer"}, ("qa", "rag"))
    drawn = figures.draw(summary)
    axes = drawn["speedup_by_task"].axes[0]
    # Both take 2 s for qa and 3 s for rag where vanilla takes 6 s.
    assert [bar.get_height() for bar in axes.patches] == [3.0, 2.0, 2.5] * 2
    assert [text.get_text() for text in axes.texts[1:]] == ["3.00", "2.00", "2.50"] * 2
    assert axes.get_legend_handles_labels()[1] == ["vanilla", "kangaroo", "hf-generate"]
    assert list(axes.lines[0].get_ydata()) == [1.0, 1.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Question\nanswering", "RAG", "Overall"]
    assert "tiny_model · a CPU · float32" in axes.texts[0].get_text()
    compression = drawn["compression_rate_by_task"].axes[0]
    assert compression.get_legend_handles_labels()[1] == ["vanilla", "kangaroo"], "a peer has no steps"
    assert [bar.get_height() for bar in compression.patches] == [3.0] * 3


def test_a_peer_on_fewer_tasks_leaves_gaps_and_no_zeros():
    methods = {"kangaroo": "method", "hf-generate": "peer"}
    turns = [turn for turn in make_turns(methods) if turn.method != "hf-generate" or turn.task == "qa"]
    axes = figures.draw(summarize(make_run(methods), turns))["speedup_by_task"].axes[0]
    assert len(axes.patches) == 7 + 2


def test_a_lone_method_shows_a_curve_a_task_and_several_show_one_each():
    lone = figures.draw(make_summary({"kangaroo": "method"}, ("qa", "rag")))["ctar_by_window"].axes[0]
    assert lone.get_legend_handles_labels()[1] == ["Question answering", "RAG", "kangaroo, overall"]
    assert list(lone.lines[-1].get_xdata()) == [1, 2]
    assert list(lone.lines[-1].get_ydata()) == [1.0, 1.0]
    several = figures.draw(make_summary({"kangaroo": "method", LONG: "method", "hf-generate": "peer"}))
    assert several["ctar_by_window"].axes[0].get_legend_handles_labels()[1] == ["kangaroo", LONG]


def test_a_curve_falls_to_zero_behind_its_methods_last_window():
    methods = {"kangaroo": "method", "medusa": "method"}
    turns = make_turns(methods, ("qa", "rag"))
    for turn in turns:
        if turn.method == "medusa":
            turn.per_step_emitted = [2, 2, 1, 1]  # half of the steps added more than one, none more than two
            turn.per_step_drafted, turn.per_step_accepted = [1] * 4, [1, 1, 0, 0]
    axes = figures.draw(summarize(make_run(methods), turns))["ctar_by_window"].axes[0]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] == [
        ([1, 2], [1.0, 1.0]),
        ([1, 2], [0.5, 0.0]),
    ]


def test_the_values_above_many_bars_do_not_overlap():
    figure = figures.draw(make_summary({f"kangaroo:gamma={number}": "method" for number in range(9)}))[
        "speedup_by_task"
    ]
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_rotation() == 90]
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.x0)
    assert len(boxes) == 9 * 7
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0 + 0.5


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("tasks", [TASKS, TASKS[:1]])
def test_no_label_is_clipped_or_read_as_a_formula(count, tasks):
    methods = {rf"{LONG},weights=folder_{number}/$\no_formula$": "method" for number in range(count)}
    methods |= {f"{LONG},weights={'folder/' * 20}": "lossy"} if count == 3 else {}
    for name, figure in figures.draw(make_summary(methods, tasks)).items():
        figure.set_dpi(figures.DPI)
        figure.draw_without_rendering()
        box, page = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= page[0], name
        assert box.y1 <= page[1], name
        heights = [axes.get_window_extent().height for axes in figure.axes]
        assert min(heights) > 2.5 * figures.DPI, f"{name}: the legend squeezed the plot"


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "temperature 1"),
        ({"temperature": 0.7, "top_p": 0.8}, "temperature 0.7, top-p 0.8"),
        ({"temperature": 0.25, "top_p": 0.5, "top_k": 50}, "temperature 0.25, top-p 0.5, top-k 50"),
    ],
)
def test_every_view_of_a_sampled_run_says_how_it_was_sampled(config, text):
    run, turns = sampled({"kangaroo": "method"}, **config)
    summary = summarize(run, turns)
    assert terminal_table(summary).splitlines()[0] == f"tiny_model (float32) on a CPU, mini questions (12), {text}"
    assert page_of(run, turns).splitlines()[0] == f"# tiny_model on a CPU, float32, {text}"
    for figure in figures.draw(summary).values():
        assert figure.axes[0].texts[0].get_text() == f"tiny_model · a CPU · float32 · mini questions (12) · {text}"


def test_a_greedy_run_says_nothing_of_sampling():
    methods = {"kangaroo": "method"}
    run = make_run(methods, config={"temperature": 0.0, "top_p": 1.0, "top_k": 0})
    summary = summarize(run, make_turns(methods))
    plots = [text.get_text() for figure in figures.draw(summary).values() for text in figure.axes[0].texts]
    for text in (terminal_table(summary), page_of(run, make_turns(methods)), "".join(plots)):
        assert "temperature" not in text
        assert "sampled" not in text.lower()


def test_sampled_answers_are_not_said_to_be_compared():
    methods = {"kangaroo": "method", "hf-generate": "peer", "typical": "lossy"}
    run, turns = sampled(methods, ("qa", "rag"))
    page = page_of(run, turns)
    assert "2.00x-3.00x by task), output sampled, not compared token by token.\n" in page
    assert "2.00x-3.00x by task), output may differ from vanilla's: not lossless.\n" in page
    for heading in ("## kangaroo", "### vanilla against hf-generate"):
        table = rows(section(page, heading))
        assert table[0][-1] == "lossless"
        assert [row[-1] for row in table[1:4]] == ["sampled", "sampled", "**sampled**"]
    assert [row[-1] for row in rows(section(page, "## typical (not lossless)"))[1:3]] == ["NOT lossless"] * 2
    meaning = " ".join(section(page, "## What the figures mean").split())
    assert "Lossless then means: the same distribution as vanilla's." in meaning
    assert "shown by the project's distribution tests and not by this run." in meaning
    assert "not checked" not in page


def test_the_terminal_has_a_dash_for_sampled_answers():
    text = terminal_table(summarize(*sampled({"kangaroo": "method", "hf-generate": "peer"}, ("qa",))))
    body = [line.split() for line in text.splitlines() if line.startswith("Question answering")]
    assert [row[-1] for row in body] == ["-", "-"]
    assert "identical:" not in text
    assert "sampled answers are not compared token by token." in text


# --- methods that are not lossless -----------------------------------------------------------------------------------


def test_a_lossy_method_is_marked_wherever_the_page_shows_it():
    methods = {"kangaroo": "method", "typical": "lossy"}
    run, turns = make_run(methods), make_turns(methods, ("qa", "rag"))
    page = page_of(run, turns)
    assert "output may differ from vanilla's: not lossless." in page
    overview = rows(section(page, "## Overview"))
    assert overview[0] == ["decode speedup", "kangaroo", "typical (not lossless)"]
    assert overview[4] == ["CR", "kangaroo", "typical (not lossless)"]
    assert [row[0] for row in overview[9:]] == ["kangaroo", "typical (not lossless)"]
    verdicts = [row[-1] for row in rows(section(page, "## typical (not lossless)"))[1:4]]
    assert verdicts == ["NOT lossless", "NOT lossless", "**NOT lossless**"]
    assert "\n## kangaroo\n" in page, "a lossless method needs no mark"
    knobs = {row[0]: row[2] for row in rows(section(page, "## Knobs"))}
    assert (knobs["kangaroo"], knobs["typical"]) == ("yes", "NOT lossless")


def test_a_lossy_method_is_marked_wherever_the_terminal_shows_it():
    lines = terminal_table(make_summary({"kangaroo": "method", "typical": "lossy"}, ("qa",))).splitlines()
    start = lines.index("typical, 1,000,000 extra parameters, NOT lossless")
    assert lines[start + 4].startswith("Question answering")
    assert lines[start + 4].endswith(" NOT lossless")
    assert "kangaroo, 1,000,000 extra parameters" in lines
    overview = lines[lines.index("overview") + 4 :]
    assert [overview[0].split()[-1], overview[1].split("  ")[-1]] == ["1/1", "NOT lossless"]


def test_a_lossy_method_is_marked_in_every_plots_legend():
    several = figures.draw(make_summary({"kangaroo": "method", "typical": "lossy"}, ("qa", "rag")))
    for name in PLOT_NAMES:
        labels = several[name].axes[0].get_legend_handles_labels()[1]
        assert labels[-2:] == ["kangaroo", "typical (not lossless)"], name
    alone = figures.draw(make_summary({"typical": "lossy"}, ("qa", "rag")))["ctar_by_window"]
    assert alone.axes[0].get_legend_handles_labels()[1][-1] == "typical (not lossless), overall"


def test_a_legend_never_cuts_off_that_a_method_is_not_lossless():
    path = "folder/" * 40
    for name, figure in figures.draw(make_summary({f"medusa:weights={path}": "lossy"})).items():
        label = figure.legends[0].get_texts()[-1].get_text()
        assert label.startswith("medusa:weights=folder/"), name
        assert "…" in label
        assert "(not lossless)" in label


def test_the_csv_says_what_claims_to_be_lossless(tmp_path):
    methods = {"kangaroo": "method", "typical": "lossy"}
    write_report(save(tmp_path, make_run(methods), make_turns(methods, ("qa",))), tmp_path / "plots")
    frame = pd.read_csv(tmp_path / "summary.csv", dtype=str).set_index(["method", "task"])["lossless_claimed"]
    assert frame["vanilla", "qa"] == "true"
    assert frame["kangaroo", "qa"] == frame["kangaroo", "overall"] == "true"
    assert frame["typical", "qa"] == frame["typical", "overall"] == "false"


# --- several methods side by side ------------------------------------------------------------------------------------


def test_the_pages_overview_has_a_column_a_method():
    methods = {"kangaroo": "method", "medusa": "method", "hf-generate": "peer"}
    run, turns = make_run(methods), make_turns(methods, ("qa", "rag"))
    run.methods["medusa"] = MethodInfo("method", True, 0, {})
    for turn in turns:
        if turn.method == "medusa":
            # Twice as slow as the others, four steps instead of two; 3 of 7 tokens drafted, half the time.
            turn.decode_s *= 2
            turn.per_step_drafted, turn.per_step_accepted = [1] * 4, [1, 1, 1, 0]
            turn.per_step_emitted, turn.draft_s = [2, 2, 1, 1], turn.decode_s / 2
    turns = [turn for turn in turns if turn.method != "hf-generate" or turn.task == "qa"]
    overall = ["extra parameters", "speedup decode", "speedup end-to-end", "CR", "draft share", "time drafting"]
    assert rows(section(page_of(run, turns), "## Overview")) == [
        ["decode speedup", "kangaroo", "medusa", "hf-generate"],
        ["Question answering", "3.00x", "1.50x", "3.00x"],
        ["RAG", "2.00x", "1.00x", "-"],
        ["**Overall**", "**2.50x**", "**1.25x**", "**3.00x**"],
        ["CR", "kangaroo", "medusa"],
        ["Question answering", "3.00", "1.50"],
        ["RAG", "3.00", "1.50"],
        ["**Overall**", "**3.00**", "**1.50**"],
        ["method, overall", *overall],
        # 7 tokens in 3 or 4 s against 7 in 7 s: 2.33 and 1.75; medusa's 5 and 7 s: 1.4 and 1.
        ["kangaroo", "1,000,000", "2.50x", "2.04x", "3.00", "0.71", "0.00"],
        ["medusa", "-", "1.25x", "1.20x", "1.50", "0.43", "0.50"],
        ["hf-generate", "1,000,000", "3.00x", "2.33x", "-", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("methods", "figures_by_task"),
    [
        ({"kangaroo": "method"}, None),
        ({"kangaroo": "method", "hf-generate": "peer"}, ["decode speedup", "CR"]),
        ({"hf-generate": "peer", "other-peer": "peer"}, ["decode speedup"]),
    ],
)
def test_the_page_has_an_overview_of_two_or_more(methods, figures_by_task):
    page = page_of(make_run(methods), make_turns(methods, ("qa",)))
    assert ("## Overview" in page) == (figures_by_task is not None)
    if figures_by_task is not None:
        table = rows(section(page, "## Overview"))
        assert [row[0] for row in table if row[0] in ("decode speedup", "CR")] == figures_by_task


def test_a_method_without_a_finished_question_has_gaps_in_the_overviews():
    methods = {"kangaroo": "method", "medusa": "method"}
    turns = [turn for turn in make_turns(methods, ("qa",)) if turn.method != "medusa"]
    run = make_run(methods)
    assert rows(section(page_of(run, turns), "## Overview"))[1] == ["Question answering", "3.00x", "-"]
    last = terminal_table(summarize(run, turns)).split("\noverview\n")[1].splitlines()[4].split()
    assert last == ["medusa", "-", "-", "-", "1,000,000", "-", "-"]


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
    assert tables.shortened(text, limit) == shown


# --- predictions -----------------------------------------------------------------------------------------------------

KNOBS = {"heads": 3, "draft_vocab": 0}
CHAIN = "0/0-0/0-0-0"
PREDICTED = {
    "tree": {"drafts": 9, "compression_rate": 2.4, "step_cost": 1.6, "speedup": 1.5},
    "chain": {"drafts": 3, "compression_rate": 2.0, "step_cost": 1.6, "speedup": 1.25},
}


def page_with_predictions(other: str, config: dict, chosen: str = "0/1") -> str:
    """A tree's predictions; the other method is half as fast (1.25x over vanilla) and has a CR of 6 / 4."""
    tree = MethodInfo("method", True, 7, {**KNOBS, "tree": chosen, "costs": "1", "drafts": "top"})
    tree.notes["predicted"] = PREDICTED
    run = make_run({})
    run.methods |= {"medusa": tree, other: MethodInfo("method", True, 7, config)}
    turns = make_turns({"medusa": "method", other: "method"}, ("qa", "rag"))
    for turn in turns:
        if turn.method == other:
            turn.decode_s *= 2
            turn.per_step_drafted, turn.per_step_accepted, turn.per_step_emitted = [1] * 4, [1, 1, 0, 0], [2, 2, 1, 1]
    return page_of(run, turns)


def test_predictions_stand_beside_what_was_measured_and_the_gain_over_the_chain():
    config = {**KNOBS, "tree": CHAIN, "costs": "", "drafts": "sampled"}
    text = section(page_with_predictions("medusa:tree=chain", config), "### Predicted and measured")
    assert rows(text) == [
        ["overall", "predicted", "measured"],
        ["CR", "2.40", "3.00"],
        ["decode speedup", "1.50x", "2.50x"],
        ["CR, tree over chain", "1.20x", "2.00x"],
        ["decode speedup, tree over chain", "1.20x", "2.00x"],
    ]
    assert "The chain is medusa:tree=chain." in text
    assert "for greedy decoding, from ranks on held-out answers and pass costs measured before the run." in text


@pytest.mark.parametrize(
    ("other", "config"),
    [
        ("kangaroo", {**KNOBS, "tree": CHAIN}),
        ("medusa:heads=2", {**KNOBS, "heads": 2, "tree": CHAIN}),
        ("medusa:draft_vocab=9", {**KNOBS, "draft_vocab": 9, "tree": CHAIN}),
        ("medusa:tree=0/0-0", {**KNOBS, "tree": "0/0-0"}),
        ("medusa:tree=0/1/2", {**KNOBS, "tree": "0/1/2"}),
        ("medusa:x", KNOBS),
    ],
)
def test_a_tree_is_compared_with_nothing_but_its_own_chain(other, config):
    text = section(page_with_predictions(other, config), "### Predicted and measured")
    assert [row[0] for row in rows(text)] == ["overall", "CR", "decode speedup"]
    assert "The chain is" not in text


def test_a_chain_that_was_chosen_is_not_compared_with_itself():
    text = section(page_with_predictions("kangaroo", {}, chosen=CHAIN), "### Predicted and measured")
    assert "tree over chain" not in text


@pytest.mark.parametrize("notes", [{}, {"predicted": {}}, {"predicted": 1.5}, {"other": {"tree": {}, "chain": {}}}])
def test_other_notes_are_no_predictions(notes):
    methods = {"kangaroo": "method"}
    run = make_run(methods)
    run.methods["kangaroo"].notes.update(notes)
    assert "Predict" not in page_of(run, make_turns(methods))


def test_predictions_survive_the_records(tmp_path):
    methods = {"kangaroo": "method"}
    run = make_run(methods)
    run.methods["kangaroo"].notes["predicted"] = PREDICTED
    write_report(save(tmp_path, run, make_turns(methods, ("qa",))), tmp_path / "plots")
    assert "| CR | 2.40 | 3.00 |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["methods"]["kangaroo"]["notes"] == {"predicted": PREDICTED}


def test_a_record_from_before_sampling_and_notes_is_still_read(tmp_path):
    methods = {"kangaroo": "method"}
    folder = save(tmp_path, make_run(methods), make_turns(methods, ("qa",)))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for info in record["methods"].values():
        del info["notes"]
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    write_report(folder, tmp_path / "plots")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["sampling"] is None
    assert summary["methods"]["kangaroo"]["notes"] == {}
