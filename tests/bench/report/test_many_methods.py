"""A report of fifteen methods: sorted by family and speed, a row each, no legend of fifteen colours; diagnoses."""

from __future__ import annotations

import pytest

from bench.figures.summary import OVERALL, Drafts, Predicted, StepTime
from bench.report import figures_many, markdown, tables, write_report
from bench.report.diagnosis import diagnosis
from bench.report.figures import draw
from bench.report.latex import report_tex
from bench.report.sections import sections
from tests.bench.report.fifteen import FAMILY, fifteen
from tests.bench.report.full_summary import rich_summary
from tests.bench.report.helpers import make_run, make_summary, make_turns, rows, save, section

ORDER = ["text", "heads", "self", "composition", ""]


@pytest.fixture(scope="module")
def many():
    return fifteen()


@pytest.fixture(scope="module")
def figures(many):
    return draw(many[1], [])


def names_in(table):
    return [row[0] for row in table.rows]


def test_methods_are_sorted_by_family_then_by_speed(many):
    _, summary = many
    ranked = summary.ranked("method", "peer")
    assert sorted(ranked) == sorted([*FAMILY, "hf-generate"])
    places = [(ORDER.index(e.family), -e.overall.speedup_decode.value) for e in ranked.values()]
    assert places == sorted(places)
    assert list(summary.of_kind("method")) != list(summary.ranked("method"))  # the order says something


def test_a_word_of_ones_own_comes_before_unknown_families(many):
    summary = rich_summary(("a", "b", "c"), peer=False)
    for name, family in {"a": "", "b": "mine", "c": "composition"}.items():
        summary.methods[name].family = family
    assert list(summary.ranked("method")) == ["c", "b", "a"]


def test_tables_by_task_have_a_row_a_method(many):
    _, summary = many
    expected = [tables.shown_name(name, entry) for name, entry in summary.ranked("method", "peer").items()]
    table = tables.headline(summary)
    assert names_in(table) == expected
    assert table.header[1:] == ["Multi-turn conversation", "Translation", "Summarization", "Question answering",
                                "Math reasoning", "RAG", "Overall"]  # fmt: skip
    place = names_in(table).index("kangaroo")
    cell = summary.methods["kangaroo"].tasks["rag"]
    assert table.rows[place][6] == tables.times_between(cell.speedup_decode)
    for other in tables.overview(summary):
        assert "kangaroo" in names_in(other)


def test_the_overall_table_names_the_kind(many):
    table = tables.overall(many[1])
    kinds = {row[0]: row[table.header.index("kind")] for row in table.rows}
    assert kinds["kangaroo"] == "self"
    assert kinds["hf-generate"] == "peer"
    assert "kind" not in tables.overall(rich_summary()).header  # older runs recorded none


def test_methods_are_compared_with_the_fastest_of_each_kind(many):
    _, summary = many
    table = tables.against(summary)
    assert len(table.rows) == 15
    best = {family: next(n for n, e in summary.ranked("method").items() if e.family == family) for family in ORDER[:4]}
    assert table.header[1:] == [f"over {name}" for name in best.values()]


def test_few_methods_keep_their_order_and_their_columns():
    summary = rich_summary(("b", "a"))
    assert tables.headline(summary).header == ["decode speedup", "b", "a", "hf-generate"]
    assert tables.against(summary).header == ["decode speed of", "over b", "over a"]


def test_the_table_for_a_paper_has_them_all(many):
    text = report_tex(many[1])
    table = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert table.count(r"\raggedright") == 16
    assert all(line.count(" & ") == 8 for line in table.strip().splitlines())


def test_a_run_of_many_methods_writes_all_its_files(tmp_path):
    """From records to pages, with figures."""
    names = {f"pld:ngram={number}": "method" for number in range(1, 10)}
    folder = save(tmp_path / "run", make_run(names), make_turns(names))
    assert len(write_report(folder, tmp_path / "plots")) > 10


def test_the_page_shows_the_fastest_of_each_kind_first(many):
    run, summary = many
    page = markdown.page(sections(run, summary, sources=[]))
    top = page.split("## ")[0]
    assert top.count(" as fast as vanilla") == 4
    assert "The fastest of each kind, of 16 methods and peers; all are in the tables." in top


# --- figures ---------------------------------------------------------------------------------------------------------


def titles(figure):
    return [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("name", ["speedup_by_task", "compression_rate_by_task"])
def test_by_task_every_method_has_a_row_and_every_task_a_panel(figures, many, name):
    figure = figures[name]
    assert titles(figure) == ["Overall", "Multi-turn conversation", "Translation", "Summarization",
                              "Question answering", "Math reasoning", "RAG"]  # fmt: skip
    labels = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
    kinds = ("method", "peer") if name == "speedup_by_task" else ("method",)
    assert labels == [entry.label for entry in many[1].ranked(*kinds).values()]
    figure.draw_without_rendering()
    values = [text.get_text() for text in figure.axes[0].texts if text.get_rotation() == 0 and "." in text.get_text()]
    key = "speedup_decode" if name == "speedup_by_task" else "compression_rate"
    cell = many[1].methods["pld"].overall
    expected = cell.speedup_decode.value if key == "speedup_decode" else cell.compression_rate
    assert f"{expected:.2f}" in values


def test_a_task_is_no_formula():
    _, summary = fifteen()
    for entry in summary.methods.values():
        entry.tasks = {"price $5_$10" if task == "rag" else task: cell for task, cell in entry.tasks.items()}
    entries = summary.ranked("method")
    figure = figures_many.by_task(summary, "speedup", entries, lambda cell: cell.speedup_decode, "speedup", "")
    figure.draw_without_rendering()
    assert "price $5_$10" in titles(figure)


@pytest.mark.parametrize(
    "name", ["ctar_by_window", "acceptance_by_position", "window_ctar", "time_per_token_by_context"]
)
def test_curves_have_a_panel_each_with_the_others_behind(figures, many, name):
    figure = figures[name]
    assert titles(figure)[:15] == [entry.label for entry in many[1].ranked("method").values()]
    assert len(figure.axes[0].lines) >= 15


def test_no_legend_lists_fifteen_methods(figures):
    for name, figure in figures.items():
        if figure is not None:
            assert len(legend_of(figure)) <= 12, name
    assert legend_of(figures["speedup_by_task"]) == ["text", "heads", "self", "composition", "peer"]


def test_the_tokens_of_steps_are_shares_of_a_bar(figures):
    axes = figures["emitted_per_step"].axes[0]
    ends = {}
    for patch in axes.patches:
        ends[patch.get_y()] = max(ends.get(patch.get_y(), 0.0), patch.get_x() + patch.get_width())
    assert len(ends) > 7
    assert list(ends.values()) == pytest.approx([1.0] * len(ends))


# --- what bounds a method --------------------------------------------------------------------------------------------


def an_entry(drafts, rate=1.5, step=(0.1, 1.2, 0.0, 1.3), predicted=None, bound=None):
    entry = rich_summary(("a",)).methods["a"]
    cell = entry.tasks[OVERALL]
    cell.drafts, cell.compression_rate, cell.step_time = drafts, rate, step and StepTime(*step)
    cell.speedup_decode.value = rate / step[3] if step else 1.0
    cell.predicted, cell.perfect_stopping = Predicted(rate / predicted, predicted) if predicted else None, bound
    return entry


ALONE = StepTime(0.0, 0.97, 0.03, 1.0)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (an_entry(Drafts(0.3, 5.0, 0.4)), "coverage: it drafts in 30% of its steps, which then add 3.00 tokens"),
        (an_entry(Drafts(0.0)), "it never drafted"),
        (an_entry(None), "-"),
        (
            an_entry(Drafts(1.0, 59.0, 0.03), 3.0, (0.02, 2.3, 0.02, 2.34)),
            "verifying 60.0 tokens costs 2.30 vanilla steps at CR 3.00: at most 1.30x",
        ),
        (
            an_entry(Drafts(1.0, 2.0, 0.6), 2.2, (0.5, 1.1, 0.0, 1.6)),
            "drafting takes 0.50 of a step's 1.60 vanilla steps: at most 2.00x if it were free",
        ),
        (
            an_entry(Drafts(0.9, 6.0, 0.21), 2.0, (0.1, 1.4, 0.0, 1.5), 1.3, 1.9),
            "acceptance: 21% of its drafts; at most 1.90x without the rejected ones",
        ),
        (an_entry(Drafts(0.9, 6.0, 0.21), step=None), "acceptance: 21% of its drafts"),
        (an_entry(Drafts(0.9, 6.0, 0.21), step=(0.1, None, None, 1.0), rate=1.0),
         "drafting takes 0.10 of a step's 1.00 vanilla steps: at most 1.11x if it were free"),
    ],
)  # fmt: skip
def test_the_diagnosis_is_what_would_gain_most(entry, said):
    assert diagnosis(entry, ALONE) == said


def test_bounds_are_compared_on_the_scale_of_what_was_measured():
    """A prediction that is too high would otherwise call every method bounded by its acceptance."""
    entry = an_entry(Drafts(1.0, 4.0, 0.5), 2.0, (0.4, 1.2, 0.0, 1.6), predicted=2.0, bound=2.02)
    assert diagnosis(entry, ALONE).startswith("drafting takes 0.40")


def test_the_section_ends_with_the_best_choice_and_says_that_it_is_no_measurement(many):
    run, summary = many
    page = markdown.page(sections(run, summary, sources=[]))
    text = section(page, "## What bounds each method")
    found = rows(text)
    assert [row[0] for row in found[1:-1]] == [entry.label for entry in summary.ranked("method").values()]
    assert found[-1] == ["best method at every step", "-", "-", "-", "2.31x", "2.60x",
                         "computed with hindsight, not measured"]  # fmt: skip
    assert "bounds computed from records, not measurements" in text


def test_without_recorded_drafts_there_is_no_such_section():
    summary = rich_summary()
    assert "What bounds each method" not in markdown.page(sections(make_run({}), summary, sources=[]))


def test_tasks_that_are_called_alike_keep_a_row_each():
    entry = make_summary({"kangaroo": "method"}, ("rag", "RAG")).methods["kangaroo"]
    assert [row[0] for row in tables.by_task(entry, []).rows] == ["RAG", "RAG", "Overall"]
