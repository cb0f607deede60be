"""Published figures: read with care, shown apart from ours."""

from __future__ import annotations

import hashlib
import json

import pytest

from bench.errors import UserError
from bench.figures import published
from bench.figures.metrics import TASKS
from bench.report import figures
from bench.report.markdown import text_of
from bench.report.published_section import published_section
from tests.bench.report.full_summary import rich_summary
from tests.bench.report.helpers import rows, section

LEADERBOARD = "63d6b2c80564c000bdbc8a21b23c0014f99e64871ec29a0aeb0197f8cfeccd13"
RESULT = {
    "method": "kangaroo",
    "label": "Kangaroo",
    "model": "Big-7B",
    "hardware": "NVIDIA Huge (80 GB), 64 CPU cores",
    "settings": "gamma 6",
    "speedup": {"qa": 1.43, "overall": 1.5},
    "compression_rate": {"qa": 1.87},
    "ctar": {"qa": [0.5, 0.2]},
    "extra_parameters": 67_000_000,
}
SOURCE = {
    "schema": 1,
    "source": "A paper",
    "citation": "Someone: A paper",
    "url": "https://example.org",
    "benchmark": "Spec-Bench",
    "definitions": {"speedup": "walltime"},
    "results": [RESULT, RESULT | {"method": "other", "label": "Other"}],
    "ablations": [],
    "notes": ["a note"],
}


def read(tmp_path, value) -> published.Source:
    path = tmp_path / "paper.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return published.read_source(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "EOF while parsing"),
        ("[]", "not a file of published figures"),
        ("[" * 100_000, "recursion limit"),
        ({}, "source: missing"),
        (SOURCE | {"schema": 2}, "schema: Input should be less than or equal to 1, not 2"),
        (SOURCE | {"surprise": 1}, "surprise"),
        (SOURCE | {"results": [RESULT | {"hardware": ""}]}, "hardware is ''"),
        (SOURCE | {"results": [{"method": "kangaroo"}]}, "results[0].label: missing"),
        (SOURCE | {"results": [RESULT | {"speedup": {"quiz": 1.0}}]}, "speedup of Kangaroo in quiz: tasks are"),
        (
            SOURCE | {"results": [RESULT | {"speedup": {"qa": "1.5x"}}]},
            "speedup.qa: Input should be a valid number, not '1.5x'",
        ),
        (
            SOURCE | {"results": [RESULT | {"compression_rate": {"qa": True}}]},
            "compression_rate.qa: Input should be a valid number, not True",
        ),
        (
            SOURCE | {"results": [RESULT | {"ctar": {"qa": [0.5, None]}}]},
            "ctar.qa[1]: Input should be a valid number, not None",
        ),
        (SOURCE | {"ablations": [{"what": "depth"}]}, "ablations[0].method: missing"),
    ],
)
def test_a_malformed_file_is_told_with_its_reason(tmp_path, value, reason):
    with pytest.raises(UserError, match=r"paper\.json") as error:
        read(tmp_path, value)
    assert reason in str(error.value)


def test_a_folder_that_is_missing_has_no_sources(tmp_path):
    assert published.read_published(tmp_path / "nowhere") == []


def test_the_files_that_come_with_the_project_hold_what_was_published():
    sources = {source.source: source for source in published.read_published()}
    paper, board = sources["Kangaroo paper"], sources["Spec-Bench leaderboard"]
    by_method = {(result.method, result.model): result for result in paper.results}
    kangaroo = by_method["kangaroo", "Vicuna-7B-v1.3"]
    assert kangaroo.speedup["overall"] == 1.50
    assert kangaroo.extra_parameters == 67_000_000
    for result in paper.results:  # "average" is the unweighted mean of the six, to the last digit shown
        mean = sum(result.speedup[task] for task in TASKS) / len(TASKS)
        assert result.speedup["overall"] == pytest.approx(mean, abs=0.0151), result.label
    (rtx,) = [r for r in board.results if r.method == "medusa" and "3090" in r.hardware]
    assert (rtx.speedup["mt_bench"], rtx.compression_rate["overall"]) == (1.61, 2.32)
    assert len(board.results) == 41
    assert {ablation.what for ablation in paper.ablations} == {"adapter", "exit layer", "gamma and threshold"}


def test_published_rows_are_those_of_the_runs_methods(tmp_path):
    sources = [read(tmp_path, SOURCE)]
    (found,) = published.same_method(rich_summary(("kangaroo:tree", "medusa")), sources).values()
    assert [(source.source, result.method, result.model, result.speedup) for source, result in found] == [
        ("A paper", "kangaroo", "Big-7B", {"qa": 1.43, "overall": 1.5})
    ]
    assert published.same_method(rich_summary(("echo",)), sources) == {}
    composed = rich_summary(("kangaroo:stop=threshold+pld", "kangaroo+pld"))
    assert published.same_method(composed, sources) == {}
    assert published.variants(composed, "kangaroo") == {}
    assert text_of(published_section(rich_summary(("echo",)), sources)) == ""


def test_every_row_beside_ours_says_source_model_and_hardware(tmp_path):
    summary = rich_summary(("kangaroo", "kangaroo:tree"))
    text = "\n" + text_of(published_section(summary, [read(tmp_path, SOURCE)]))
    told = text.split("###")[0]
    assert "Not measured here" in told
    assert "model, device, harness, answer length" in told
    assert "end-to-end, Spec-Bench's mean of rates" in told
    table = rows(section(text, "### kangaroo, here and as published"))
    assert table[0][:4] == ["speedup", "method", "model", "hardware"]
    overall = summary.methods["kangaroo"].overall.speedup_total_mean_rates
    shown = f"{overall.value:.2f}x [{overall.low:.2f}, {overall.high:.2f}]"
    assert (table[1][0], table[1][1], table[1][-1]) == ("**this run**", "kangaroo", shown)
    assert table[1][2:4] == ["SmolLM2-135M-Instruct (float32), official questions, 64 new tokens", "AMD EPYC 9B14"]
    theirs = [row for row in table if row[0] == "A paper"]
    assert theirs[0] == [
        "A paper",
        "Kangaroo (gamma 6; 67,000,000 extra parameters)",
        "Big-7B",
        "NVIDIA Huge (80 GB), 64 CPU cores",
        *["-", "-", "-", "1.43x", "-", "-", "1.50x"],
    ]
    assert len(theirs) == 3, "speedup, CR, CTAR"
    assert theirs[2][-1] == "0.50 0.20"
    assert "Someone: A paper. <https://example.org>" in text
    assert "- a note" in text


def test_the_plot_sets_ours_apart_from_published(tmp_path):
    summary = rich_summary(("kangaroo",), ("qa", "rag"), peer=False)
    axes = figures.draw(summary, [read(tmp_path, SOURCE)])["published"].axes[0]
    lines = {line.get_label(): line for line in axes.lines if line.get_marker() != "None"}
    theirs = lines["A paper: Big-7B, Huge"]
    assert list(theirs.get_ydata()) == [1.43, 1.5], "no dot where nothing was published"
    assert theirs.get_markerfacecolor() == "white"
    (ours,) = axes.containers
    # Overall is theirs of six tasks and would be ours of two: not to be set side by side.
    wanted = [cell.speedup_total_mean_rates.value for cell in summary.methods["kangaroo"].by_task.values()]
    assert list(ours[0].get_ydata()) == wanted
    note = " ".join(axes.texts[0].get_text().split())
    assert "hollow: published, of other models on other devices (Big-7B), neither measured here" in note


def test_the_plot_is_left_out_where_nothing_is_published(tmp_path):
    assert "published" not in figures.draw(rich_summary(("echo",)), [read(tmp_path, SOURCE)])
    assert "published" not in figures.draw(rich_summary(("kangaroo",)), [])


def test_the_committed_files_are_the_leaderboards_table():
    """Every row and figure: the digest is of the leaderboard's table as it was taken down."""
    board = next(source for source in published.read_published() if source.source == "Spec-Bench leaderboard")
    found = sorted(
        [result.model, *(f"{result.speedup[task]:g}" for task in (*TASKS, "overall"))] for result in board.results
    )
    assert len(found) == 41
    assert ["Vicuna-13B-v1.3", "3.48", "2.36", "3.14", "2.94", "3.42", "2.78", "3.02"] in found
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest() == LEADERBOARD
