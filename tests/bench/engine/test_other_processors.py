"""The kernels built for processors other than this one: those that this one can play, and ARM's under an emulator."""

from __future__ import annotations

import copy
import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.drafting.tree import tree_of
from bench.engine.kernels import build, native
from bench.engine.kernels.panels import PANEL
from bench.engine.products import Linear
from bench.engine.quantize import GRIDS, GROUP
from bench.errors import UserError

DRIVER = Path(__file__).with_name("kernels_for_others.cpp")
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
X86 = ("x86-64-v2", "x86-64-v3", "x86-64-v3 -mavxvnni", "x86-64-v4", "x86-64-v4 -mavx512bf16")
ARM = ("armv8-a", "armv8.2-a+dotprod+fp16")
WIDTHS = range(1, 14)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def array(address: int | None, count: int, size: int = 4) -> bytes:
    """An array as the driver reads it."""
    if address is None:
        return (-1).to_bytes(8, "little", signed=True)
    return (count * size).to_bytes(8, "little") + ctypes.string_at(address, count * size)


def arrays_of(m: native.Matrix) -> bytes:
    """Those of a matrix: panels, scales, bias."""
    rows = (1 + m.paired) * -(-m.outputs // (1 + m.paired) // PANEL) * PANEL  # with those that pad panels
    scales = {2: 2, 3: 1}.get(m.kind, 0) * rows * m.inputs // GROUP
    halves_of_bytes = {0: 8, 1: 4, 2: 1, 3: 2}[m.kind]
    panels = array(m.panels, rows * m.inputs * halves_of_bytes // 2, 1)
    return panels + array(m.scales, scales, 2) + array(m.bias, m.outputs)


class Emulated:
    """The kernels' library as `native` calls it, run by an emulator. Raises EOFError where the program has ended."""

    def __init__(self, program: Path):
        self.process = subprocess.Popen([EMULATOR, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _ask(self, kind: int, *parts: object) -> None:
        self.process.stdin.write(kind.to_bytes(8, "little") + b"".join(bytes(part) for part in parts))
        self.process.stdin.flush()

    def _answer(self, address: int, size: int) -> None:
        found = self.process.stdout.read(size)
        if len(found) < size:
            raise EOFError(f"{size} bytes expected, {len(found)} found; exit status {self.process.wait()}")
        ctypes.memmove(address, found, size)

    def product_floats(self, *_: object) -> int:
        return 0  # the program has its own

    scratch_floats = rounds_inputs = product_floats

    def multiply_add(self, m, x, added, y, rows, threads, scratch) -> None:
        m, n = m._obj, rows.value
        counts = n.to_bytes(8, "little") + threads.value.to_bytes(8, "little")
        self._ask(0, m, counts, arrays_of(m), array(x.value, n * m.inputs), array(added.value, n * m.outputs))
        self._answer(y.value, 4 * n * m.outputs)

    def run_layers(self, asked) -> None:
        p = asked._obj
        size, rows = {0: 4, 1: 2}[p.kind], p.rows
        one = p.kv_heads * p.room * p.head_dim  # elements of a text's keys, or of its values, in a layer
        cache = (p.count - 1) * p.layer_stride + p.values + one
        parts = [bytes(p)]
        for layer in p.layers[: p.count]:
            parts += [bytes(layer), array(layer.input_norm, p.hidden)]
            parts += [array(norm, p.head_dim) for norm in (layer.q_norm, layer.k_norm)]
            parts += [array(layer.post_norm, p.hidden)]
            parts += [arrays_of(m) for m in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        for text in p.text[: p.texts]:
            parts += [bytes(text), array(text.mask, text.width * (text.start + text.width))]
            parts += [array(text.cache, cache, size)]
        parts += [array(p.text_of, rows, 8), array(p.x, rows * p.hidden)]
        parts += [array(table, rows * p.head_dim) for table in (p.cos, p.sin)]
        self._ask(1, *parts)
        self._answer(p.y, 4 * rows * p.hidden)
        for text in p.text[: p.texts]:  # whose caches may be woven into each other
            whole = ctypes.create_string_buffer(cache * size)
            self._answer(ctypes.addressof(whole), cache * size)
            for layer in range(p.count):
                for at in (layer * p.layer_stride, layer * p.layer_stride + p.values):
                    ctypes.memmove(text.cache + at * size, ctypes.addressof(whole) + at * size, one * size)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """(-march) -> the kernels for it under an emulator."""
    started = {}

    def start(march: str) -> Emulated:
        for program in (CROSS_COMPILER, EMULATOR):
            if shutil.which(program) is None:
                pytest.skip(f"no {program} here")
        if march not in started:
            program = tmp_path_factory.mktemp("emulated") / "kernels"
            step = [CROSS_COMPILER, *build._FLAGS, "-O1", f"-march={march}", "-fopenmp", "-static"]
            step += ["-I", str(build.SOURCE.parent), str(DRIVER), "-o", str(program)]
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            started[march] = Emulated(program)
        return started[march]

    yield start
    for library in started.values():
        library.process.stdin.close()
        library.process.wait()
        library.process.stdout.close()


@pytest.fixture(params=["native", *X86, *ARM])
def processor(request, monkeypatch, emulated):
    """Each processor in turn, with the kernels for it in use. Built once, then found in the cache like all kernels."""
    if request.param in ARM:
        library = emulated(request.param)
    else:
        if not (compilers := build.compilers()):
            pytest.skip("no C++ compiler here")
        if request.param != "native":
            monkeypatch.setenv(build.PROCESSOR, f"-march={request.param} -O1")
            flags = build.processor_flags()
            if not build.features(compilers[0], flags):
                pytest.skip(f"{Path(compilers[0]).name} does not know -march={request.param}")
            if lacking := build.lacking(compilers[0], flags):
                pytest.skip(f"this processor lacks {', '.join(lacking)}")
        library = native.kernels.__wrapped__()  # past what this process remembers
        assert library is not None
    monkeypatch.setattr(native, "kernels", lambda: library)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(37, 24), (1, 1), (19, 31), (50, 96)])
def test_products_are_float64s_at_every_width(dtype, outputs, inputs):
    weight, bias = drawn(outputs, inputs).to(dtype), drawn(outputs, seed=1)
    linear, x = Linear(weight, bias, layout="native"), drawn(WIDTHS[-1], inputs, seed=2).to(dtype).float()
    exact = x.double() @ weight.double().T + bias.double()
    assert_equal_at_every_width(linear, x, exact, 1e-5)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("quantize", ["q4", "q8"])
@pytest.mark.parametrize("size", [1.0, 1e-5])  # the scales of small weights are subnormal
def test_integer_products_are_float64s_at_every_width(quantize, size):
    weight, x = drawn(37, 5 * GROUP) * size, drawn(WIDTHS[-1], 5 * GROUP, seed=2) / size
    linear = Linear(weight, layout="native", quantize=quantize)
    groups = x.unflatten(1, (-1, GROUP))
    scales = groups.abs().amax(2, keepdim=True) / 127
    seen = ((groups * (1 / scales)).round().double() * scales).flatten(1)
    assert_equal_at_every_width(linear, x, seen @ GRIDS[quantize].of(weight).plain().double().T, 1e-5)


def assert_equal_at_every_width(linear: Linear, x: torch.Tensor, exact: torch.Tensor, error: float) -> None:
    """That products are `exact`, but for `error` of the largest, and a row's the same bit for bit at every width."""
    alone = torch.cat([linear(row[None]) for row in x])
    torch.testing.assert_close(alone.double(), exact, rtol=0, atol=error * float(exact.abs().max()))
    for width in WIDTHS:
        assert torch.equal(linear(x[:width]), alone[:width])
    for times in (2, 3, 6):
        assert torch.equal(linear(x.repeat(times, 1)), alone.repeat(times, 1))


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("quantize", ["q4", "q8"])
def test_the_largest_codes_of_one_sign_do_not_overflow(quantize):
    weight = torch.ones(16, GROUP)
    weight[:8, 0] = 0.0  # of Q4: its code is 0, and 15 all others'
    linear, x = Linear(weight, layout="native", quantize=quantize), torch.full((5, GROUP), -127.0)
    torch.testing.assert_close(linear(x), x @ linear.weight.T, rtol=1e-4, atol=0)


@pytest.fixture
def model(request, tiny_config, tiny_model, tiny_decoder):
    """(a decoder, transformers' model of its weights in float64, the mean error of logits allowed, of their spread)"""
    kind, precision = request.param
    config, model = tiny_model(kind)
    if precision in ("q4", "tiles"):  # they take sizes that are multiples of 32
        config = tiny_config(kind, hidden_size=96, intermediate_size=160)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if precision != "q4":
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        exact = copy.deepcopy(model).to(dtype).double()
        return tiny_decoder(config, model, dtype=dtype), exact, 1e-5 if precision == "float32" else 0.05
    decoder = tiny_decoder(config, copy.deepcopy(model), quantize="q4")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.copy_(GRIDS["q8" if "embed" in name else "q4"].of(weight).plain())
    return decoder, model.double(), 0.1


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(
    "model",
    [("tied", "float32"), ("qwen3", "float32"), ("biased", "bfloat16"), ("tied", "tiles"), ("tied", "q4")],
    ids=" ".join,
    indirect=True,
)
def test_whole_passes_are_float64s_at_every_width(model, random_ids):
    decoder, exact, error = model
    ids, drafts, parents = random_ids(13), random_ids(3, seed=5), [-1, -1, 0]
    single = decoder.new_cache()
    states = torch.cat([decoder.run_layers(decoder.embed([token]), i, single) for i, token in enumerate(ids)], dim=1)
    for width in (2, 5, 8, 13):
        cache = decoder.new_cache()
        parts = [decoder.run_layers(decoder.embed(ids[i : i + width]), i, cache) for i in range(0, len(ids), width)]
        assert torch.equal(torch.cat(parts, dim=1), states)
        assert torch.equal(cache.data[..., : len(ids), :], single.data[..., : len(ids), :])
    branches = tree_of(parents).places(len(ids) - 1, torch.device("cpu"), row=1)
    tree = decoder.run_layers(decoder.embed(drafts), branches, single)
    found = decoder.logits(torch.cat((states[0], tree[0, 2:]))).double()
    with torch.inference_mode():
        expected = exact(torch.tensor([[*ids, drafts[0], drafts[2]]])).logits[0]
    expected = torch.cat((expected[: len(ids)], expected[-1:]))
    assert (found - expected).abs().mean() < error * expected.std()


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(
    "model",
    [("qwen3", "float32"), ("biased", "bfloat16"), ("tied", "tiles"), ("tied", "q4")],
    ids=" ".join,
    indirect=True,
)
def test_prompts_are_float64s(model, random_ids):
    decoder, exact, error = model
    ids, cache = random_ids(110), decoder.new_cache()
    passes = [
        decoder.run_layers(decoder.embed(ids[:30]), 0, cache),
        decoder.run_layers(decoder.embed(ids[30:]), 30, cache),
    ]
    found = decoder.logits(torch.cat(passes, dim=1)[0]).double()
    with torch.inference_mode():
        expected = exact(torch.tensor([ids])).logits[0]
    assert (found - expected).abs().mean() < error * expected.std()


@pytest.mark.usefixtures("processor")
def test_threads_wait_for_each_other(tiny_model, tiny_decoder, random_ids):
    decoder, ids, found = tiny_decoder(*tiny_model("llama3")), random_ids(6), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found += [decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache()) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(states, found[0]) for states in found)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("-march=x86-64-v3 -ffast-math", "-ffast-math is neither -m... nor -O0 to -O3"),
        ("-Ofast", "-Ofast is neither"),
        ("-march=none-such", "it cannot build layers.cpp"),
    ],
)
def test_flags_that_do_not_serve_are_refused(flags, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv(build.PROCESSOR, flags)
    if not build.compilers():
        pytest.skip("no C++ compiler here")
    with pytest.raises(UserError, match=rf"{build.PROCESSOR}='{flags}': .*{reason}.*; unset it"):
        native.kernels.__wrapped__()


def test_flags_are_not_blamed_for_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv(build.PROCESSOR, "-O1")
    if not build.compilers():
        pytest.skip("no C++ compiler here")
    assert native.kernels.__wrapped__() is None
    assert "nothing can be built in" in native._reason[0]


def test_a_processor_is_not_asked_for_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv(build.PROCESSOR, "-march=another -O1")
    monkeypatch.setattr(build, "compilers", lambda: ["/bin/c++"])
    has = {("-march=native",): {"AVX2__", "FMA__"}, ("-march=another",): {"AVX2__", "AVX512F__"}}
    monkeypatch.setattr(build, "features", lambda compiler, flags: has[tuple(flags)])
    with pytest.raises(UserError, match=r"c\+\+: this processor lacks AVX512F; unset it"):
        native.kernels.__wrapped__()
