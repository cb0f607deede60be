"""A sweep's table, its page and its figures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import UserError
from bench.figures.machine import Machine
from bench.figures.records import read_run, read_turns, write_json, write_turns
from bench.figures.summary import Cell, Dataset, Estimate, Summary
from bench.report.markdown import table_text
from bench.report.sweep_figures import draw, places, published_curve
from bench.report.sweep_page import Axis, Point, Sweep, Variant, csv_rows, measured, read_sweep, table
from tests.bench.sweep.test_sweep import run_sweep
from tests.tiny import run_bench

# --- table -----------------------------------------------------------------------------------------------------------


def swept(
    method: str, *axes: Axis, low: float | None = 0.05, failed: tuple[str, ...] = ()
) -> tuple[Sweep, list[Point]]:
    """A sweep whose i-th variant is (1 + i / 100) times as fast as vanilla, CR twice that; bars: -low, +0.1."""
    points = []
    for i, values in enumerate(itertools.product(*(axis.values for axis in axes))):
        label = f"{method}:{','.join(f'{a.name}={v}' for a, v in zip(axes, values, strict=True))}"
        speed = 1 + i / 100
        estimate = Estimate(speed, None if low is None else speed - low, low and speed + 0.1)
        counts = {"identical": 3, "numerical": 1, "different": 0}
        rates = {"compression_rate": 2 * speed, "draft_time_share": 0.25}
        cell = Cell(speedup_decode=estimate, speedup_total=Estimate(speed - 0.01), lossless=counts, **rates)
        variant = Variant(label, values, agreement=0.4 if axes[0].name.startswith("train.") else None)
        points.append(Point(variant, None, None, "broke") if values == failed else Point(variant, cell, 2_000_000))
    return Sweep(method, list(axes), [point.variant for point in points]), points


SUMMARY = Summary(
    run_id="r",
    model="tiny",
    dataset=Dataset("mini", None, 3),
    device=Machine(name="Abacus"),
    dtype="float32",
    methods={},
)


def test_table_shows_intervals_where_there_are_some():
    text = table_text(table(*swept("kangaroo", Axis("gamma", ("2", "4")))))
    assert "| 2 | 1.00x | 0.95-1.10 | 0.99x | 2.00 | 0.25 | 2.0M | 3 identical, 1 numerical |" in text
    assert "| 4 | **1.01x** | 0.96-1.11 | 1.00x | 2.02 |" in text
    text = table_text(table(*swept("kangaroo", Axis("gamma", ("2", "4")), low=None)))
    assert "| 2 | 1.00x | - | 0.99x |" in text
    assert "agreement" not in text
    assert "| agreement |" in table_text(table(*swept("kangaroo", Axis("train.ffn", ("2", "4")))))


def test_csv_has_full_precision_and_leaves_the_undefined_empty():
    heading, first, second = csv_rows(*swept("kangaroo", Axis("gamma", ("2", "4")), failed=("4",)))
    row = dict(zip(heading, first, strict=True))
    assert (row["speedup_decode"], row["speedup_decode_low"], row["speedup_decode_high"]) == (1.0, 0.95, 1.1)
    assert (row["identical"], row["audited"]) == (3, 4)
    row = dict(zip(heading, second, strict=True))
    assert (row["gamma"], row["failure"]) == ("4", "broke")
    assert {row[key] for key in ("speedup_decode", "compression_rate", "identical", "agreement")} == {""}


def test_no_value_in_the_csv_is_a_formula():
    _, row = csv_rows(*swept("kangaroo", Axis("weights", ("=1+1",))))
    assert row[:2] == ["'=1+1", "kangaroo:weights==1+1"]


def test_variant_that_is_in_no_record_was_not_run(setting):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    run, turns = read_run(setting.out), read_turns(setting.out)
    asked = Sweep("kangaroo", [Axis("gamma", ("1",))], [Variant("kangaroo:gamma=1", ("1",))])
    _, (point,) = measured(asked, run, turns)
    assert (point.overall, point.failure) == (None, "was not run")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1, "method": "x", "axes": [{}]}', '{"schema": 2}'])
def test_a_damaged_record_is_told(content, tmp_path):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json (is not a sweep's record|has schema 2; this version reads 1)"):
        read_sweep(tmp_path)


def test_record_is_read_as_written(tmp_path):
    axes = [Axis("train.ffn", ("0", "8")), Axis("gamma", ("2",))]
    variants = [Variant("kangaroo:x", ("0", "2"), {"tokens": 3}, 0.5), Variant("kangaroo:y", ("8", "2"))]
    written = Sweep("kangaroo", axes, variants, {"kangaroo:y": "broke"})
    write_json(tmp_path / "sweep.json", written)
    assert read_sweep(tmp_path) == written


def test_interrupted_run_is_told_on_the_page(setting):
    assert run_sweep(setting, "--grid", "gamma=1,3") == 0
    run, turns = read_run(setting.out), read_turns(setting.out)
    run.complete = False
    write_json(setting.out / "run.json", run)
    write_turns(setting.out / "turns.jsonl", turns[:-3])
    assert main(["sweep", str(setting.out)]) == 130
    assert "**The run was interrupted**" in (setting.out / "sweep.md").read_text()


# --- figures ---------------------------------------------------------------------------------------------------------


def publish(folder: Path, *ablations: dict) -> Path:
    folder.mkdir()
    result = {"method": "kangaroo", "label": "Kangaroo", "model": "Vicuna-7B", "hardware": "a V100", "settings": ""}
    result |= {"speedup": {}, "compression_rate": {}, "ctar": {}}
    value = {"schema": 1, "source": "Some paper", "citation": "X: Y", "url": "https://example.org", "benchmark": "Z"}
    value |= {"definitions": {}, "results": [result], "ablations": list(ablations), "notes": []}
    (folder / "some.json").write_text(json.dumps(value))
    return folder


def gammas(*points: dict) -> dict:
    ablation = {"method": "kangaroo", "model": "Vicuna-7B", "what": "gamma", "read_off_a_figure": True}
    return ablation | {"points": list(points)}


GRID = gammas(
    *(
        {"gamma": gamma, "threshold": eta, "compression_rate": 2 + eta, "speedup": 1 + gamma / 10 + eta}
        for gamma in (4, 6)
        for eta in (0.0, 0.5)
    ),
    {"gamma": 8, "threshold": 0.6, "compression_rate": 2.0, "speedup": 1.5},
)


def test_published_curves_are_one_for_every_other_setting(tmp_path):
    folder = publish(tmp_path / "published", GRID)
    curves = published_curve("kangaroo", "threshold", folder)
    assert [(c.source, c.where, c.others) for c in curves] == [
        ("Some paper, read off a plot", "Vicuna-7B, a V100", "gamma=4"),
        ("Some paper, read off a plot", "Vicuna-7B, a V100", "gamma=6"),
    ]
    assert curves[0].points == [(0.0, pytest.approx(1.4), 2.0), (0.5, pytest.approx(1.9), 2.5)]
    assert [c.others for c in published_curve("kangaroo", "gamma", folder)] == ["threshold=0.0", "threshold=0.5"]
    assert published_curve("medusa", "gamma", folder) is None
    assert published_curve("kangaroo", "beam", folder) is None
    assert published_curve("kangaroo", "gamma", tmp_path / "absent") is None


def test_published_adapters_are_one_curve_whatever_their_size(tmp_path):
    points = [{"adapter": name, "extra_parameters": n, "speedup": 1.5 - n / 10} for n, name in enumerate("abc")]
    folder = publish(tmp_path / "published", gammas(*points))
    (curve,) = published_curve("kangaroo", "train.architecture", folder)
    assert curve.points == [("a", 1.5, None), ("b", 1.4, None), ("c", 1.3, None)]
    assert curve.label == "Vicuna-7B, a V100"


def test_what_the_paper_says_is_found():
    curves = published_curve("kangaroo", "train.exit_layer")
    assert {curve.where.split(",")[0] for curve in curves} == {"Vicuna-7B-v1.3", "Vicuna-13B-v1.3"}
    assert (2, 1.5, 2.02) in curves[0].points
    assert len(published_curve("kangaroo", "threshold")) == 3
    assert len(published_curve("kangaroo", "train.architecture")) == 1


def figures(published: Path, *axes: Axis, method: str = "kangaroo", **options):
    found, points = swept(method, *axes, **options)
    return draw(found, SUMMARY, points, published)


def curves_of(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines if line.get_label()[0] != "_"}


def legends_of(figure) -> list[list[str]]:
    return [
        [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]
        for part in figure.subfigs
        for legend in part.legends
    ]


def test_one_knob_is_a_line_with_intervals_beside_vanilla(tmp_path):
    (figure,) = figures(tmp_path, Axis("gamma", ("2", "4", "8"))).values()
    speed, rate = figure.axes
    assert curves_of(speed)["kangaroo"] == [(2, 1.0), (4, 1.01), (8, 1.02)]
    assert curves_of(rate)["kangaroo"] == [(2, 2.0), (4, 2.02), (8, 2.04)]
    (bars,) = speed.collections
    assert [path.vertices[:, 1].tolist() for path in bars.get_paths()] == [
        pytest.approx([1 + i / 100 - 0.05, 1 + i / 100 + 0.1]) for i in range(3)
    ]
    assert legends_of(figure) == [["", "kangaroo", "vanilla"]]
    assert (speed.get_xlabel(), speed.get_ylabel()) == ("gamma", "decode speedup")


def test_two_knobs_are_lines_of_each_over_the_other_and_a_heat_map(tmp_path):
    axes = Axis("threshold", ("0", "0.5")), Axis("gamma", ("2", "4", "8"))
    drawn = figures(tmp_path, *axes, failed=("0.5", "4"))
    assert list(drawn) == ["sweep_threshold_by_gamma", "sweep_gamma_by_threshold", "sweep_heat_map"]
    lines = curves_of(drawn["sweep_gamma_by_threshold"].axes[0])
    assert [y for _, y in lines["threshold=0"]] == [1.0, 1.01, 1.02]
    (_, first), (_, gap), (_, last) = lines["threshold=0.5"]
    assert (first, last) == (1.03, 1.05)
    assert gap != gap  # what failed is a gap
    assert [x for x, _ in lines["threshold=0"]] == pytest.approx([2, 4, 8], abs=0.1)
    speed = drawn["sweep_heat_map"].axes[0]
    shown = {tuple(text.get_position()): text.get_text() for text in speed.texts}
    assert shown == {(0, 0): "1.00", (0, 1): "1.01", (0, 2): "1.02", (1, 0): "1.03", (1, 1): "failed", (1, 2): "1.05"}
    assert speed.images[0].get_array()[2, 0] == 1.02
    assert [text.get_text() for text in speed.get_xticklabels()] == ["0", "0.5"]
    assert [text.get_text() for text in speed.get_yticklabels()] == ["2", "4", "8"]


def test_of_more_knobs_the_others_are_held_at_the_fastest(tmp_path):
    axes = Axis("gamma", ("2", "4")), Axis("nodes", ("9",)), Axis("beam", ("1", "2")), Axis("threshold", ("0", "0.5"))
    drawn = figures(tmp_path, *axes)
    assert list(drawn) == ["sweep_gamma_by_beam", "sweep_beam_by_gamma", "sweep_heat_map"]
    texts = [text.get_text() for text in drawn["sweep_heat_map"].axes[0].texts]
    assert texts == ["1.01", "1.05", "1.03", "1.07"]  # threshold 0.5's
    said = [text.get_text() for part in drawn["sweep_heat_map"].subfigs for text in part.texts]
    assert any("at threshold=0.5, the fastest" in text for text in said)


def test_what_was_published_is_drawn_apart_dashed_and_named(tmp_path):
    drawn = figures(publish(tmp_path / "published", GRID), Axis("threshold", ("0", "0.3", "0.6")))
    (figure,) = drawn.values()
    ours, theirs = figure.axes[:2], figure.axes[2:]
    assert len(theirs) == 2
    assert all(set(curves_of(axes)) == {"kangaroo", "vanilla"} for axes in ours)
    for axes in theirs:
        names = {f"Vicuna-7B, a V100, gamma={gamma}" for gamma in (4, 6)}
        assert set(curves_of(axes)) == names
        assert {line.get_linestyle() for line in axes.lines if line.get_label() in names} == {"--"}
        assert not any(axes.get_shared_x_axes().joined(axes, own) for own in ours)
        assert not any(axes.get_shared_y_axes().joined(axes, own) for own in ours)
    assert [line.get_linestyle() for line in ours[0].lines if line.get_label() == "kangaroo"] == ["-"]
    assert legends_of(figure)[1] == [
        "Some paper, read off a plot",
        "Vicuna-7B, a V100, gamma=4",
        "Vicuna-7B, a V100, gamma=6",
    ]
    assert curves_of(theirs[1])["Vicuna-7B, a V100, gamma=6"] == [(0.0, 2.0), (0.5, 2.5)]


def test_words_are_not_joined_by_lines(tmp_path):
    points = [{"adapter": name, "speedup": 1.5} for name in ("attention", "mlp")]
    folder = publish(tmp_path / "published", gammas(*points))
    (figure,) = figures(folder, Axis("train.architecture", ("paper", "paper-mlp"))).values()
    speed, _, theirs = figure.axes  # no CR was published
    for axes, name in ((speed, "kangaroo"), (theirs, "Vicuna-7B, a V100")):
        (line,) = [line for line in axes.lines if line.get_label() == name]
        assert line.get_linestyle() == "None"
        assert len(line.get_xydata()) == 2
    assert [text.get_text() for text in theirs.get_xticklabels()] == ["attention", "mlp"]


def test_no_two_lines_look_alike(tmp_path):
    drawn = figures(tmp_path, Axis("gamma", ("2", "4")), Axis("nodes", tuple(map(str, range(1, 16)))))
    lines = [line for line in drawn["sweep_gamma_by_nodes"].axes[0].lines if line.get_label().startswith("nodes")]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines) == 15


def test_fewer_than_two_points_are_no_figure(tmp_path):
    assert figures(tmp_path, Axis("gamma", ("2",))) == {}
    assert figures(tmp_path, Axis("gamma", ("2", "4")), failed=("4",)) == {}


def test_values_stand_where_they_are_unless_their_labels_would_overlap():
    assert places(["0", "0.2", "0.8"]) == [0, 0.2, 0.8]
    assert places(["8", "2"]) == [8, 2]
    assert places(["1024", "2048", "16384", "49152", "0"]) == [0, 1, 2, 3, 4]
    assert places(["chain", "auto"]) == [0, 1]
    assert places(["1", "nan"]) == [0, 1]
