"""Products alone and the limits: against float64, transformers' own weights, and arithmetic by hand."""

from __future__ import annotations

import gc

import pytest
import torch
from matplotlib.colors import to_hex

from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.products import Linear
from bench.figures.engine_record import read_engine
from bench.figures.machine import Machine
from bench.lab import limits
from bench.models import shapes
from bench.report import engine_figures, engine_page
from tests.bench.lab.test_engine_bench import TINY
from tests.pages import ROOT

NATIVE = pytest.mark.skipif(native.kernels() is None, reason="no C++ compiler")


def record() -> dict:
    """Figures as they are worked out by hand below: 2 GB of weights and 4e9 operations a token."""
    found = {
        "model": "tiny", "random_weights": True, "parameters": 10**9, "dtype": "bfloat16", "warnings": [],
        "peak_bytes": 2**32, "engine": {"weights": "plain"}, "drafts": {"1": 1.0}, "drafters": {}, "published": {},
        "head": {"300": 1.0}, "cache": {"tree": 0.1, "chain": 0.1}, "operations": 4 * 10**9,
        "memory": {"read_gb_s": 100.0, "copy_gb_s": 80.0},
        "arithmetic": {"torch, bfloat16": 800.0, "our kernels, bfloat16": 1000.0},
        "passes": {"1": 40.0, "8": 50.0}, "products": {"1": 25.0, "8": 40.0},
        "vanilla": {
            "tok_per_s": 20.0, "weight_bytes": 2 * 10**9, "gb_s": 40.0, "share_of_read_bandwidth": 0.4,
            "share_of_copy_bandwidth": 0.5,
        },
        "answers": {
            "vanilla": {"tok_per_s": [20.0], "over_vanilla": 1.0, "prefill_ms": 9.0, "step_ms": 50.0},
            "other": {
                "tok_per_s": [10.0], "over_vanilla": 0.5, "prefill_ms": 9.0, "interval": [0.4, 0.8],
                "notes": {"threads": 2, "tok_per_s_by_threads": {"1": 6.0, "2": 10.0}, "arithmetic": "its own"},
            },
        },
    }  # fmt: skip
    return found | {"shares": {kind: limits.shares(found, kind) for kind in ("passes", "products")}}


@pytest.fixture
def shown():
    """The record with its machine."""
    return record() | {"device": Machine(type="cpu", name="a processor", threads=2)}


def test_operations_are_those_of_every_matrix_that_transformers_multiplies(tiny_model, tiny_decoder):
    config, model = tiny_model("tied")
    numbers = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert limits.operations(tiny_decoder(config, model)) == 2 * numbers


@pytest.mark.parametrize("n", [1, 5])
def test_products_alone_take_every_matrix_once_over_all_tokens(tiny_model, tiny_decoder, monkeypatch, n):
    decoder = tiny_decoder(*tiny_model("tied"))
    called, prepared = [], Linear.prepared

    def watched(self, x):
        call = prepared(self, x)
        return lambda: called.append((self, call()))

    monkeypatch.setattr(Linear, "prepared", watched)
    limits.products(decoder, n)()
    assert [matrix for matrix, _ in called] == decoder.products
    assert len(called) == 4 * len(decoder.layers) + 1
    assert all(made.shape == (n, matrix.out_features) for matrix, made in called)


@NATIVE
@pytest.mark.parametrize("quantize", ["none", "q4", "q8"])
def test_a_prepared_product_keeps_what_it_needs_and_can_be_repeated(quantize):
    weight, x = torch.randn(48, 64), torch.randn(3, 64)
    linear = Linear(weight, layout="native", quantize=quantize)
    expected = x.double() @ linear.weight.double().T
    call = linear.prepared(x.clone())
    del linear
    gc.collect()
    others = [torch.full((48, 64), torch.nan) for _ in range(50)]  # would take the place of what was freed
    for _ in range(2):
        assert (call() - expected).abs().max() < (0.2 if quantize != "none" else 1e-4)
    del others


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arithmetic_limit_names_what_multiplied(tiny_model, tiny_decoder, dtype, monkeypatch):
    monkeypatch.setattr(limits, "_SIZE", {"cpu": 64})
    found = limits.arithmetic(tiny_decoder(*tiny_model("tied"), dtype=dtype), 1)
    kind = str(dtype).removeprefix("torch.")
    assert f"torch, {kind}" in found
    assert (f"our kernels, {kind}" in found) == (native.kernels() is not None)
    assert all(rate > 0 for rate in found.values())


@NATIVE
def test_quantised_weights_are_measured_against_products_of_whole_numbers(monkeypatch):
    monkeypatch.setattr(limits, "_SIZE", {"cpu": 64})
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    config = shapes.config_of("tiny")
    weights = shapes.random_weights(config, torch.float32, torch.device("cpu"))
    found = limits.arithmetic(Decoder.from_weights(config, weights, max_len=64, quantize="q4"), 1)
    assert list(found) == ["torch, int8", "our kernels, q4", "our kernels, q8"]


def test_the_limit_is_operations_over_seconds(tiny_model, tiny_decoder, monkeypatch):
    monkeypatch.setattr(limits, "_SIZE", {"cpu": 100})
    monkeypatch.setattr(limits, "least_s", lambda calls, repeats, device: [0.5] * len(calls))
    assert set(limits.arithmetic(tiny_decoder(*tiny_model("tied")), 1).values()) == {2 * 100**3 / 0.5 / 1e9}


def test_shares_are_of_the_bandwidth_and_of_the_fastest_product():
    shares = record()["shares"]
    # 2 GB in 40 ms are 50 of 100 GB/s; 4e9 operations in 40 ms are 100 of 1,000 G/s.
    assert shares["passes"]["1"] == pytest.approx({"bandwidth": 0.5, "arithmetic": 0.1})
    assert shares["passes"]["8"] == pytest.approx({"bandwidth": 0.4, "arithmetic": 0.64})
    assert shares["products"]["8"] == pytest.approx({"bandwidth": 0.5, "arithmetic": 0.8})


def test_the_roofline_has_every_pass_and_both_limits_in_sight(shown):
    figure = engine_figures.draw(shown)
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    # Two operations a byte: a token's 4e9 in 40 ms are 100 G/s.
    assert lines["whole passes"].get_xydata().tolist() == [[2, pytest.approx(100)], [16, pytest.approx(640)]]
    assert lines["their products alone"].get_xydata().tolist() == [[2, pytest.approx(160)], [16, pytest.approx(800)]]
    (memory,) = (line for label, line in lines.items() if label == "memory: reads 100 GB/s")
    assert all(y == pytest.approx(100 * x) for x, y in memory.get_xydata())
    (peak,) = (line for label, line in lines.items() if label.startswith("arithmetic"))
    assert peak.get_label() == "arithmetic: 1,000 G operations/s (our kernels, bfloat16)"
    assert set(peak.get_ydata()) == {1000.0}
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for label in ("whole passes", "their products alone"):
        assert all(left < x < right and low < y < high for x, y in lines[label].get_xydata())
    assert to_hex(lines["whole passes"].get_color()) != to_hex(lines["their products alone"].get_color())
    assert "tiny · random weights · bfloat16 · a processor · 2 threads" in axes.texts[0].get_text()


def test_the_upper_and_the_right_axis_count_tokens(shown):
    figure = engine_figures.draw(shown)
    figure.draw_without_rendering()
    top, right = figure.axes[0].child_axes
    assert top.get_xlim() == pytest.approx([x / 2 for x in figure.axes[0].get_xlim()])
    assert right.get_ylim() == pytest.approx([y / 4 for y in figure.axes[0].get_ylim()])


def test_the_plot_is_a_picture_of_that_name(shown, tmp_path):
    path = engine_figures.write(shown, tmp_path, "engine.v2")
    assert path == tmp_path / "engine.v2.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_shares_and_how_vanilla_compares_with_a_peer(shown):
    page = " ".join(engine_page.terminal(shown).split())
    assert "arithmetic peak 1,000 G operations/s (our kernels, bfloat16; torch, bfloat16 800)" in page
    assert "vanilla is 2.00x [1.25, 2.50] as fast as other; its own; threads: 2, its best" in page
    assert "(tokens/s by threads: 1: 6.0, 2: 10.0)" in page
    assert "0.50x [0.40, 0.80]" in page
    assert "passes, of the bandwidth 50% 40%" in page
    assert "products, of the arithmetic 16% 80%" in page
    assert "products, of the pass 62% 80%" in page


def test_committed_records_can_be_read():
    files = sorted((ROOT / "results" / "reference" / "engine").glob("*.json"))
    read = [read_engine(file) for file in files if file.stem not in ("accuracy", "neighbour")]
    assert {found["dtype"] for found in read} == {"float32", "bfloat16", "q4"}
