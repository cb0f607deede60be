"""The narrow kernels compute what float64 does, the same at every width of a pass; and where they cannot be built,
the engine does without and says why."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch

from bench.engine import native
from bench.engine.execute import Linear
from bench.engine.tree import tree_of

NEEDS_KERNELS = pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")
SHAPES = [(37, 24), (8, 16), (1, 1), (19, 31), (64, 200)]  # whole vectors and rests, whole groups of rows and rests
GROWING = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 32)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@NEEDS_KERNELS
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_float64s_at_every_width(outputs, inputs, biased):
    weight, bias = drawn(outputs, inputs), drawn(outputs, seed=1) if biased else None
    linear = Linear(weight, bias, layout="native")
    for rows in GROWING:
        x, residual = drawn(2, rows, inputs, seed=rows)[:1], drawn(1, rows, outputs, seed=2)
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        torch.testing.assert_close(linear(x).double(), exact, rtol=0, atol=1e-4)
        torch.testing.assert_close(linear.plus(residual, x).double(), exact + residual, rtol=0, atol=1e-4)
        assert torch.equal(linear(x)[:, :1], linear(x[:, :1]))


@NEEDS_KERNELS
def test_a_wide_product_is_torchs(monkeypatch):
    linear = Linear(drawn(5, 7), layout="native")
    monkeypatch.setattr(native, "multiply_add", lambda *_: pytest.fail("narrow kernel asked"))
    assert linear(drawn(native.MOST_POSITIONS + 1, 7)).shape == (native.MOST_POSITIONS + 1, 5)


@NEEDS_KERNELS
def test_inputs_may_lie_anyhow_and_may_be_none():
    weight = drawn(6, 4)
    linear = Linear(weight, layout="native")
    turned = drawn(4, 3).T
    torch.testing.assert_close(linear(turned), turned @ weight.T)
    assert linear(drawn(0, 4)).shape == (0, 6)


@NEEDS_KERNELS
def test_the_width_of_a_pass_changes_no_bit(kind, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model(kind))
    ids = random_ids(31)
    single = decoder.new_cache()
    one_by_one = torch.cat(
        [decoder.run_layers(decoder.embed([token]), i, single) for i, token in enumerate(ids)], dim=1
    )
    for width in (2, 5, 8, 11, 31):
        cache = decoder.new_cache()
        parts = [decoder.run_layers(decoder.embed(ids[i : i + width]), i, cache) for i in range(0, len(ids), width)]
        assert torch.equal(torch.cat(parts, dim=1), one_by_one)
        assert torch.equal(cache.data[..., : len(ids), :], single.data[..., : len(ids), :])


@NEEDS_KERNELS
def test_a_tree_is_what_its_paths_are(kind, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model(kind))
    ids, drafts = random_ids(12), random_ids(5, seed=4)
    parents = [-1, -1, 0, 2, 1]
    cache = decoder.new_cache()
    decoder.run_layers(decoder.embed(ids[:-1]), 0, cache)
    found = decoder.run_layers(decoder.embed([ids[-1], *drafts]), len(ids) - 1, cache, tree=tree_of(parents))
    for path in ([0, 2, 3], [1, 4]):
        alone = decoder.new_cache()
        text = [*ids, *(drafts[i] for i in path)]
        expected = decoder.run_layers(decoder.embed(text), 0, alone)[:, len(ids) - 1 :]
        torch.testing.assert_close(found[:, [0, *(i + 1 for i in path)]], expected, rtol=0, atol=1e-4)


@NEEDS_KERNELS
def test_nothing_beyond_the_pass_is_read_or_written(tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model("tied"))
    cache = decoder.new_cache()
    cache.data.fill_(torch.nan)
    ids = random_ids(7)
    assert decoder.run_layers(decoder.embed(ids), 0, cache, 1, 3).isfinite().all()
    written = cache.data.isfinite()
    assert written[1:3, ..., : len(ids), :].all()
    assert written.sum() == written[1:3, ..., : len(ids), :].numel()


@NEEDS_KERNELS
def test_threads_share_the_work_without_changing_it(tiny_model, tiny_decoder, random_ids):
    decoder, ids, found = tiny_decoder(*tiny_model("llama3")), random_ids(6), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(states, found[0]) for states in found)


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """As in a process that has not asked yet, with an empty cache."""
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_reason", [])
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


@NEEDS_KERNELS
def test_they_are_built_once(anew, tmp_path, monkeypatch):
    assert native.kernels() is not None
    (built,) = (tmp_path / "cache" / "kernels").iterdir()
    assert built.suffix == ".so"
    native.kernels.cache_clear()
    monkeypatch.setattr(native.subprocess, "run", lambda *_, **__: pytest.fail("built again"))
    assert native.kernels() is not None


def test_without_a_compiler_the_reason_is_told(anew, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.kernels() is None
    assert "no C++ compiler" in native.why_not()


def test_a_compiler_that_fails_leaves_nothing_behind(anew, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "narrow.cpp:1: error: no such flag\nmore")
    monkeypatch.setattr(native.shutil, "which", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(native.subprocess, "run", lambda *_, **__: failed)
    assert native.kernels() is None
    assert native.why_not() == "c++ cannot build narrow.cpp: narrow.cpp:1: error: no such flag"
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(anew, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(native.shutil, "which", lambda name: f"/somewhere/{name}")
    assert native.kernels() is None
    assert "cannot be built in" in native.why_not()
