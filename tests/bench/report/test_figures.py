"""The plots: what they show, and that nothing is cut off or hidden."""

from __future__ import annotations

import itertools

import pytest

from bench.figures.metrics import TASKS, summarize
from bench.figures.summary import Confidence, ContextBin, Estimate, StepTime
from bench.report import canvas, figures, figures_axis
from tests.bench.report.full_summary import SIX, over_axis, rich_summary
from tests.bench.report.helpers import LONG, OLD_PLOTS, make_run, make_summary, make_turns

OF_ANY_RUN = [name for name in figures.PLOTS if name not in figures_axis.PLOTS]  # the others need an axis


def test_bars_show_the_summarys_figures_and_vanillas_line():
    summary = make_summary({"kangaroo": "method", "hf-generate": "peer"}, ("qa", "rag"))
    drawn = figures.draw(summary)
    axes = drawn["speedup_by_task"].axes[0]
    # Both take 2 s for qa and 3 s for rag where vanilla takes 6 s.
    assert [bar.get_height() for bar in axes.patches] == [3.0, 2.0, 2.5] * 2
    assert [text.get_text() for text in axes.texts[2:]] == ["3.00", "2.00", "2.50"] * 2
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
    figure = figures.draw(make_summary({f"kangaroo:gamma={number}": "method" for number in range(7)}))[
        "speedup_by_task"
    ]
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_rotation() == 90]
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.x0)
    assert len(boxes) == 7 * 7
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0 + 0.5


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("tasks", [TASKS, TASKS[:1]])
def test_no_label_is_clipped_or_read_as_a_formula(count, tasks):
    names = [rf"{LONG},weights=folder_{number}/$\no_formula$" for number in range(count)]
    names += [f"medusa:weights={'folder/' * 20},accept=typical"] if count == 3 else []
    tasks = (*tasks[:-1], r"$\no_task$") if len(tasks) > 1 else tasks  # a category of somebody's own file
    for name, figure in figures.draw(over_axis(rich_summary(tuple(names), tasks))).items():
        figure.set_dpi(canvas.DPI)
        figure.draw_without_rendering()
        box, page = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= page[0], name
        assert box.y1 <= page[1], name
        for text in figure.axes[0].texts[:2]:  # title and provenance, which the layout leaves out
            extent = text.get_window_extent()
            assert extent.x1 <= page[0] * canvas.DPI, f"{name}: {text.get_text()!r} runs off the page"
            assert all(extent.y0 > axes.get_tightbbox().y1 for axes in figure.axes), f"{name}: on the plot"
        heights = [axes.get_window_extent().height for axes in figure.axes]
        lowest = 0.6 if name in ("time_per_step", "three_estimators") else 1.1 if len(heights) > 1 else 1.7
        assert min(heights) > lowest * canvas.DPI, f"{name}: the legend squeezed the plot"


@pytest.mark.parametrize(
    ("axis", "values"), [("temperature", (0.0, 0.5, 1.0)), ("prompt length", (256.0, 1024.0, 2048.0))]
)
@pytest.mark.parametrize("names", [SIX[:1], SIX, [*SIX, "pld", "sam"]])
def test_plots_over_an_axis_show_each_value(axis, values, names):
    summary = over_axis(rich_summary(tuple(names)), axis, values)
    drawn = figures_axis.draw(summary)
    assert len(drawn) == 2
    over, acceptance = drawn.values()
    for name in names:
        speedups = [point.methods[name].speedup_decode.value for point in summary.axis.points]
        lines = [line for axes in over.axes for line in axes.lines if list(line.get_ydata()) == speedups]
        assert lines, name
        assert all(list(line.get_xdata()) == list(values) for line in lines)
    assert sum(bool(axes.lines) for axes in acceptance.axes) == len(names)
    shown = [[list(line.get_ydata()) for line in axes.lines] for axes in acceptance.axes]
    for name in names:
        assert [point.methods[name].conditional_acceptance for point in summary.axis.points] in shown


@pytest.mark.parametrize("names", [SIX[:1], SIX[:2], SIX])
def test_a_summary_with_every_figure_draws_every_plot(names):
    assert list(figures.draw(rich_summary(names))) == [*OF_ANY_RUN]


def test_a_lossy_method_is_marked_in_every_plots_legend():
    several = figures.draw(make_summary({"kangaroo": "method", "typical": "lossy"}, ("qa", "rag")))
    for name in OLD_PLOTS:
        labels = several[name].axes[0].get_legend_handles_labels()[1]
        assert labels[-2:] == ["kangaroo", "typical (not lossless)"], name
    alone = figures.draw(make_summary({"typical": "lossy"}, ("qa", "rag")))["ctar_by_window"]
    assert alone.axes[0].get_legend_handles_labels()[1][-1] == "typical (not lossless), overall"


def test_no_plot_cuts_off_that_a_method_is_not_lossless():
    long = "my-method-" * 20 + "typical"
    for name, figure in figures.draw(rich_summary((long,))).items():
        ticks = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        marked = [text for text in (*ticks, *titles, *legend) if "my-method" in text and "…" in text]
        assert marked, name
        assert all("(not lossless)" in text for text in marked), name


def test_a_run_without_a_method_has_no_plots():
    assert figures.draw(make_summary({})) == {}
    failed = make_turns({"kangaroo": "method"})
    for turn in failed:
        turn.error = "boom"
    assert figures.draw(summarize(make_run({"kangaroo": "method"}), failed)) == {}


def test_a_list_of_knobs_is_no_legend():
    knobs = ",".join(f"knob{i}=value{i}" for i in range(9))
    drawn = figures.draw(rich_summary((f"kangaroo:{knobs}", f"kangaroo:{knobs},last=1"), peer=False))
    labels = drawn["speedup_by_task"].axes[0].get_legend_handles_labels()[1]
    assert labels == ["vanilla", "kangaroo (1)", "kangaroo (2)"]


def test_error_bars_span_the_intervals():
    summary = rich_summary(("kangaroo",), ("qa", "rag"), peer=False)
    axes = figures.draw(summary)["speedup_by_task"].axes[0]
    spans = [tuple(path.vertices[:, 1]) for path in axes.collections[0].get_paths()]
    cells = summary.methods["kangaroo"].tasks.values()
    wanted = [(cell.speedup_decode.low, cell.speedup_decode.high) for cell in cells]
    assert spans == [pytest.approx(pair) for pair in wanted]
    labels = [text for text in axes.texts if text.get_text().startswith("1.") or text.get_text().startswith("0.")]
    assert len(labels) == 3
    assert "95% bootstrap intervals" in axes.texts[0].get_text()


def test_a_bar_without_an_interval_has_no_line():
    summary = rich_summary(("kangaroo",), ("qa", "rag"), peer=False)
    for cell in summary.methods["kangaroo"].tasks.values():
        cell.speedup_decode = Estimate(cell.speedup_decode.value)
    axes = figures.draw(summary)["speedup_by_task"].axes[0]
    assert not axes.collections
    assert "interval" not in axes.texts[0].get_text()


def test_the_parts_of_a_step_stand_end_to_end():
    summary = rich_summary(("kangaroo", "medusa"), peer=False)
    axes = figures.draw(summary)["time_per_step"].axes[0]
    bars = [(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in axes.patches]
    for place, name in enumerate(("vanilla", "kangaroo", "medusa")):
        time = summary.methods[name].overall.step_time
        mine = [(start, width) for at, start, width in bars if at == place]
        assert [width for _, width in mine] == pytest.approx([time.draft, time.verify, time.rest])
        assert sum(mine[-1]) == pytest.approx(time.total)
    rates = [summary.methods[name].overall.compression_rate for name in summary.methods]
    assert list(axes.lines[0].get_xdata()) == rates
    costs = [summary.methods[n].overall.predicted.step_cost for n in ("kangaroo", "medusa")]
    assert [segment[0][0] for segment in axes.collections[0].get_segments()] == costs
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vanilla", "kangaroo", "medusa"]


def test_what_an_older_record_does_not_tell_apart_is_one_part():
    summary = rich_summary(("kangaroo",), peer=False)
    older = StepTime(0.2, total=1.3)
    summary.methods["kangaroo"].overall.step_time = older
    axes = figures.draw(summary)["time_per_step"].axes[0]
    bars = [bar for bar in axes.patches if bar.get_width() and round(bar.get_y() + bar.get_height() / 2) == 1]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 0.2), (0.2, pytest.approx(1.1))]
    assert "verify and rest together" in [text.get_text() for text in axes.figure.legends[0].get_texts()]


def test_emitted_tokens_are_shares_of_a_methods_own_steps():
    summary = rich_summary(("kangaroo", "medusa"), peer=False)
    summary.methods["kangaroo"].overall.emitted_histogram = [30, 10, 0]
    summary.methods["medusa"].overall.emitted_histogram = [1] * 15
    axes = figures.draw(summary)["emitted_per_step"].axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights[:2] == [0.75, 0.25]
    assert heights[2:] == pytest.approx([1 / 15] * 9 + [6 / 15]), "the longest share the last bar"
    assert axes.get_xticklabels()[-1].get_text() == "10+"


def test_confidence_has_a_panel_a_method_that_says_its_own():
    summary = rich_summary(SIX[:4], peer=False)
    overall = summary.methods["kangaroo"].overall
    overall.confidence = Confidence([0, 0.5, 1], [1, 3], [6, 2])
    summary.methods["medusa"].overall.confidence = None
    panels = figures.draw(summary)["draft_confidence"].axes
    assert [axes.get_title(loc="left").splitlines()[0] for axes in panels] == list(SIX[:3])
    assert panels[0].get_title(loc="left") == "kangaroo\n4 accepted, 8 rejected"
    values = [list(stairs.get_data().values) for stairs in panels[0].patches]
    assert values == [[0.25, 0.75]] * 2 + [[0.75, 0.25]] * 2


def test_time_by_context_has_vanillas_line_too():
    summary = rich_summary(("kangaroo",), peer=False)
    bins = [ContextBin(n, n / 10, n / 5, 5) for n in (100, 200)]
    summary.methods["kangaroo"].overall.context = bins
    axes = figures.draw(summary)["time_per_token_by_context"].axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines == {"vanilla": ([100, 200], [20, 40]), "kangaroo": ([100, 200], [10, 20])}


def test_three_estimators_stand_beside_each_other_for_both_times():
    summary = rich_summary(("kangaroo",))
    overall = summary.methods["kangaroo"].overall
    panels = figures.draw(summary)["three_estimators"].axes
    for axes, part in zip(panels, ("decode", "total"), strict=True):
        dots = [
            line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() != "None"
        ]
        wanted = [getattr(overall, f"speedup_{part}{ending}").value for ending in ("", "_mean_rates", "_geometric")]
        assert dots == wanted


@pytest.mark.parametrize(
    ("key", "plot"),
    [
        ("step_time", "time_per_step"),
        ("emitted_histogram", "emitted_per_step"),
        ("conditional_acceptance", "acceptance_by_position"),
        ("window_ctar", "window_ctar"),
        ("confidence", "draft_confidence"),
        ("context", "time_per_token_by_context"),
    ],
)
def test_a_plot_without_data_is_not_drawn(key, plot):
    summary = rich_summary(("kangaroo", "medusa"))
    for entry in summary.methods.values():
        for cell in entry.tasks.values():
            setattr(cell, key, [] if key == "context" else None)
    assert set(OF_ANY_RUN) - set(figures.draw(summary)) == {plot}
