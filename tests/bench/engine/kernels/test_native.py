"""The kernels compute what float64 does, the same at every width of a pass; and where they cannot be built,
the engine does without and says why."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.drafting.tree import tree_of
from bench.engine.kernels import build, native
from bench.engine.places import Places, Span
from bench.engine.products import Linear

NEEDS_KERNELS = pytest.mark.skipif(native.kernels() is None, reason=f"no kernels here: {native.why_not()}")
DTYPES = pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
SHAPES = [(37, 24), (8, 16), (1, 1), (19, 31), (64, 200)]  # whole vectors and rests, whole groups of rows and rests
GROWING = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 32)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_where_there_is_a_compiler_there_are_kernels():
    """Otherwise everything below would be skipped for a mistake in the source."""
    if not build.compilers():
        pytest.skip("no C++ compiler here")
    assert native.why_not() == ""


@NEEDS_KERNELS
@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_float64s_at_every_width(outputs, inputs, biased, dtype):
    weight, bias = drawn(outputs, inputs).to(dtype), drawn(outputs, seed=1).to(dtype) if biased else None
    linear = Linear(weight, bias, layout="native")
    near = {"rtol": 0, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-4}  # as it is handed out
    for rows in GROWING:
        x, residual = drawn(2, rows, inputs, seed=rows)[:1].to(dtype), drawn(1, rows, outputs, seed=2).to(dtype)
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        torch.testing.assert_close(linear(x).double(), exact, **near)
        torch.testing.assert_close(linear.plus(residual, x).double(), exact + residual, **near)
        assert torch.equal(linear(x)[:, :1], linear(x[:, :1]))


@NEEDS_KERNELS
@DTYPES
@pytest.mark.parametrize("rows", [64, 65, 131, 200])
def test_wide_products_are_the_same(rows, dtype):
    linear, x = Linear(drawn(37, 24).to(dtype), layout="native"), drawn(rows, 24).to(dtype)
    assert torch.equal(linear(x), torch.cat([linear(x[i : i + 1]) for i in range(rows)]))


@NEEDS_KERNELS
@pytest.mark.parametrize("half", [1, 16, 19, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_two_matrices_in_turns_are_two_products(half, biased):
    weight, bias = drawn(2 * half, 24), drawn(2 * half, seed=1) if biased else None
    paired, alone = (Linear(weight, bias, layout="native", paired=paired) for paired in (True, False))
    x = drawn(7, 24, seed=2)
    assert torch.equal(paired(x), alone(x))
    assert torch.equal(paired.weight, weight)
    some = torch.arange(2 * half).flip(0)[::3]
    assert torch.equal(paired.rows(some), weight[some])


@NEEDS_KERNELS
@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_stored_weights_are_found_again(outputs, inputs, dtype):
    weight = drawn(outputs, inputs).to(dtype)
    linear = Linear(weight, layout="native")
    assert torch.equal(linear.weight, weight)
    some = torch.arange(outputs).flip(0)[::2]
    assert torch.equal(linear.rows(some), weight[some])
    x = drawn(3, inputs).to(dtype)
    torch.testing.assert_close(linear.by_torch()(x), torch.nn.functional.linear(x, weight))


@NEEDS_KERNELS
def test_inputs_may_lie_anyhow_and_may_be_none():
    weight = drawn(6, 4)
    linear = Linear(weight, layout="native")
    turned = drawn(4, 3).T
    torch.testing.assert_close(linear(turned), turned @ weight.T)
    assert linear(drawn(0, 4)).shape == (0, 6)


@NEEDS_KERNELS
@DTYPES
def test_the_width_of_a_pass_changes_no_bit(kind, dtype, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model(kind), dtype=dtype)
    ids = random_ids(31)
    single = decoder.new_cache()
    states = [decoder.run_layers(decoder.embed([token]), i, single) for i, token in enumerate(ids)]
    one_by_one = torch.cat(states, dim=1)
    for width in (2, 5, 8, 11, 31):
        cache = decoder.new_cache()
        parts = [decoder.run_layers(decoder.embed(ids[i : i + width]), i, cache) for i in range(0, len(ids), width)]
        assert torch.equal(torch.cat(parts, dim=1), one_by_one)
        assert torch.equal(decoder.logits(parts[0][0]), torch.cat([decoder.logits(s[0]) for s in states[:width]]))
        assert torch.equal(cache.data[..., : len(ids), :], single.data[..., : len(ids), :])


@NEEDS_KERNELS
def test_a_tree_is_what_its_paths_are(kind, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model(kind))
    ids, drafts = random_ids(12), random_ids(5, seed=4)
    parents = [-1, -1, 0, 2, 1]
    cache = decoder.new_cache()
    decoder.run_layers(decoder.embed(ids[:-1]), 0, cache)
    found = decoder.run_layers(
        decoder.embed([ids[-1], *drafts]), tree_of(parents).places(len(ids) - 1, torch.device("cpu")), cache
    )
    for path in ([0, 2, 3], [1, 4]):
        alone = decoder.new_cache()
        text = [*ids, *(drafts[i] for i in path)]
        expected = decoder.run_layers(decoder.embed(text), 0, alone)[:, len(ids) - 1 :]
        torch.testing.assert_close(found[:, [0, *(i + 1 for i in path)]], expected, rtol=0, atol=1e-4)


@NEEDS_KERNELS
@DTYPES
def test_sequences_in_a_pass_do_not_see_each_other(kind, dtype, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model(kind), dtype=dtype)
    texts, width = [random_ids(n, seed=n) for n in (13, 4, 21)], 4
    together = decoder.new_cache(batch=len(texts))
    spans, expected = [], []
    for slot, text in enumerate(texts):
        alone = decoder.new_cache()
        start = len(text) - width
        states = decoder.run_layers(decoder.embed(text[:start]), 0, alone) if start else None
        assert states is None or states.isfinite().all()
        expected.append(decoder.run_layers(decoder.embed(text[start:]), start, alone))
        together.data[:, :, slot] = alone.data[:, :, 0]
        together.data[:, :, slot, :, start:] = torch.nan  # to be written, or not to be looked at
        spans.append(Span(start, slot))
    x = decoder.embed(torch.tensor([text[-width:] for text in texts]))
    found = decoder.run_layers(x, Places(tuple(spans), width), together)
    assert torch.equal(found, torch.cat(expected))


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
@pytest.mark.parametrize("factor", [1e-3, 1e3, 1e6])
def test_gates_far_from_zero_are_silus(factor, tiny_model, tiny_decoder, random_ids):
    config, model = tiny_model("tied")
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight.data *= factor
        layer.mlp.down_proj.weight.data /= factor
    decoder = tiny_decoder(config, model)
    ids = random_ids(9)
    found, expected = (d.run_layers(d.embed(ids), 0, d.new_cache()) for d in (decoder, decoder.by_operations()))
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@NEEDS_KERNELS
def test_what_is_no_number_stays_none(tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model("tied"))
    x = decoder.embed(random_ids(3))
    x[0, 1, 5] = torch.nan
    out = decoder.run_layers(x, 0, decoder.new_cache())
    assert out[0, 0].isfinite().all()
    assert out[0, 1:].isnan().all()


@NEEDS_KERNELS
def test_bfloat16_stops_at_any_layer_and_goes_on(kind, tiny_model, tiny_decoder, random_ids):
    decoder = tiny_decoder(*tiny_model(kind), dtype=torch.bfloat16)
    assert decoder.layout == "native"
    ids = random_ids(23)
    whole, parts = decoder.new_cache(), decoder.new_cache()
    expected = decoder.run_layers(decoder.embed(ids), 0, whole)
    assert expected.dtype == torch.bfloat16
    found = []
    for i, width in ((0, 7), (7, 1), (8, 15)):
        states = decoder.run_layers(decoder.embed(ids[i : i + width]), i, parts, 0, 2)
        found.append(decoder.run_layers(states, i, parts, 2))
    assert torch.equal(torch.cat(found, dim=1), expected)
    assert torch.equal(whole.data[..., : len(ids), :], parts.data[..., : len(ids), :])


@NEEDS_KERNELS
def test_bfloat16_is_nearer_to_float32_than_operations_in_bfloat16_are(kind, tiny_model, tiny_decoder, random_ids):
    config, model = tiny_model(kind)
    model = copy.deepcopy(model).bfloat16()  # the same weights for all three
    ids = random_ids(20)
    exact = tiny_decoder(config, copy.deepcopy(model).float()).by_operations()
    decoder = tiny_decoder(config, model, dtype=torch.bfloat16)
    all_three = (exact, decoder, decoder.by_operations())
    logits = [d.logits(d.run_layers(d.embed(ids), 0, d.new_cache())[0]) for d in all_three]
    error, by_operations = ((found - logits[0]).abs().mean() for found in logits[1:])
    assert error <= 1.1 * by_operations
    assert error < 0.1 * logits[0].abs().mean()


@NEEDS_KERNELS
@pytest.mark.parametrize("rows", [6, 150])  # narrow, and wide
def test_threads_share_the_work_without_changing_it(rows, tiny_model, tiny_decoder, random_ids):
    decoder, ids, found = tiny_decoder(*tiny_model("llama3")), random_ids(rows), []
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
    monkeypatch.delenv("CXX", raising=False)
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


@NEEDS_KERNELS
def test_they_are_built_once(anew, tmp_path, monkeypatch):
    assert native.kernels() is not None
    (built,) = (tmp_path / "cache" / "kernels").iterdir()
    assert built.suffix == ".so"
    native.kernels.cache_clear()
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: pytest.fail("built again"))
    assert native.kernels() is not None


def test_without_a_compiler_the_reason_is_told(anew, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert native.kernels() is None
    assert "no C++ compiler" in native.why_not()


def test_a_compiler_that_fails_leaves_nothing_behind(anew, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "layers.cpp:1: error: no such flag\nmore")
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/somewhere/{name}" if name != "g++" else None)
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: failed)
    assert native.kernels() is None
    told = "it cannot build layers.cpp (layers.cpp:1: error: no such flag)"
    assert native.why_not() == f"c++: {told}; clang++: {told}"
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(anew, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/somewhere/{name}")
    assert native.kernels() is None
    assert "nothing can be built in" in native.why_not()


@NEEDS_KERNELS
def test_the_next_compiler_is_tried_and_a_file_that_does_not_load_is_built_anew(anew, monkeypatch):
    good = build.compilers()[-1]
    monkeypatch.setattr(build, "compilers", lambda: ["/bin/false", good])
    built = build.path_of(good)
    built.parent.mkdir(parents=True)
    built.write_bytes(b"of another system")
    assert native.kernels() is not None
    assert built.stat().st_size > 10_000


@pytest.fixture
def compiler(anew, monkeypatch):
    """A compiler that writes the word it was given last; what was loaded is the file's content."""
    made = ["first"]

    def run(step, **_):
        Path(step[step.index("-o") + 1]).write_text(made[-1])
        return subprocess.CompletedProcess(step, 0, "", "")

    monkeypatch.setattr(build.subprocess, "run", run)
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path: Path(path).read_text())
    monkeypatch.setattr(build, "compilers", lambda: ["/bin/c++"])
    return made


def open_to_all(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def open_to_the_group(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


@pytest.mark.parametrize("which", ["the file", "its folder"])
@pytest.mark.parametrize("opened", [open_to_all, open_to_the_group])
def test_a_library_that_others_could_have_written_is_rebuilt(compiler, opened, which):
    assert build.load("/bin/c++") == "first"
    compiler.append("second")
    assert build.load("/bin/c++") == "first"
    path = build.path_of("/bin/c++")
    opened(path if which == "the file" else path.parent)
    assert not native.is_built()
    assert build.load("/bin/c++") == "second"
    assert native.is_built()
    assert not (path.stat().st_mode | path.parent.stat().st_mode) & 0o022


@pytest.mark.parametrize(
    ("owner", "mode", "private"),
    [(7, 0o100644, True), (7, 0o100755, True), (0, 0o100644, True), (8, 0o100644, False), (7, 0o100664, False)],
)
def test_only_files_of_this_user_or_root_are_loaded(monkeypatch, owner, mode, private):
    monkeypatch.setattr(build.os, "geteuid", lambda: 7)
    path = SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=owner, st_mode=mode))
    assert build._is_private(path) == private


def test_a_cache_of_another_user_is_refused_with_a_remedy(compiler, monkeypatch):
    monkeypatch.setattr(build, "_is_private", lambda path: False)
    with pytest.raises(build.UnusableCacheError, match=r"other users can write to .*: set ROOBENCH_CACHE to a folder"):
        build.load("/bin/c++")


@pytest.mark.parametrize(("umask", "forbidden"), [(0o077, 0o077), (0o002, 0o022), (0o000, 0o022)])
def test_the_library_has_what_the_umask_leaves_but_for_writing_by_others(compiler, umask, forbidden):
    before = os.umask(umask)
    try:
        build.load("/bin/c++")
    finally:
        os.umask(before)
    assert not build.path_of("/bin/c++").stat().st_mode & forbidden


@NEEDS_KERNELS
def test_shapes_that_do_not_fit_are_refused(tiny_model, tiny_decoder):
    linear = Linear(drawn(6, 4), layout="native")
    with pytest.raises(AssertionError, match="4 inputs"):
        linear(drawn(1, 8))
    with pytest.raises(AssertionError, match="to be added"):
        linear.plus(drawn(1, 5), drawn(1, 4))
    decoder = tiny_decoder(*tiny_model("tied"), max_len=16)
    with pytest.raises(AssertionError, match="rotations"):
        decoder.run_layers(drawn(1, 9, 48), 140, decoder.new_cache(max_len=200))
