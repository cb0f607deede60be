"""The kernels built for processors other than this one: those that this one can play, and ARM's under an emulator."""

from __future__ import annotations

import copy
import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bench.engine.kernels import native
from bench.engine.kernels.panels import PANEL
from bench.engine.products import Linear
from bench.engine.quantize import GRIDS, GROUP
from bench.errors import UserError
from bench.files import cache_root

DRIVER = Path(__file__).with_name("kernels_for_others.cpp")
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
X86 = ("x86-64-v2", "x86-64-v3", "x86-64-v3 -mavxvnni", "x86-64-v4")
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
    """The kernels' library as `native` calls it, run by an emulator. Raises EOFError where the emulated program ends."""

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

    scratch_floats = product_floats

    def multiply_add(self, m, x, added, y, rows, threads, scratch) -> None:
        m, n = m._obj, rows.value
        counts = n.to_bytes(8, "little") + threads.value.to_bytes(8, "little")
        self._ask(0, m, counts, arrays_of(m), array(x.value, n * m.inputs), array(added.value, n * m.outputs))
        self._answer(y.value, 4 * n * m.outputs)

    def run_layers(self, asked) -> None:
        p = asked._obj
        size, rows = {0: 4, 1: 2}[p.kind], p.texts * p.width
        parts = [bytes(p)]
        for layer in p.layers[: p.count]:
            norms = {name: p.head_dim if name[1] == "_" else p.hidden for name, kind in layer._fields_[:4]}
            parts += [bytes(layer), *(array(getattr(layer, name), count) for name, count in norms.items())]
            parts += [arrays_of(getattr(layer, name)) for name, kind in layer._fields_[4:]]
        for text in p.text[: p.texts]:
            parts += [bytes(text), array(text.mask, p.width * (text.start + p.width))]
        parts += [array(p.x, rows * p.hidden)]
        parts += [array(table, rows * p.head_dim) for table in (p.cos, p.sin)]
        cache = p.count * p.layer_stride
        self._ask(1, *parts, array(p.cache, cache, size))
        self._answer(p.y, 4 * rows * p.hidden)
        self._answer(p.cache, cache * size)


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
            step = [CROSS_COMPILER, *native._FLAGS, "-O1", f"-march={march}", "-fopenmp", "-static"]
            step += ["-I", str(native.SOURCE.parent), str(DRIVER), "-o", str(program)]
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
    """Each processor in turn, with the kernels for it in use."""
    if request.param in ARM:
        library = emulated(request.param)
        monkeypatch.setattr(native, "kernels", lambda: library)
        return request.param
    if request.param != "native":
        monkeypatch.setenv(native.PROCESSOR, f"-march={request.param} -O1")
    if not native._compilers():
        pytest.skip("no C++ compiler here")
    for compiler in native._compilers()[:1]:
        if not native._features(compiler, flags := native.processor_flags()[:-1] or ["-march=native"]):
            pytest.skip(f"{compiler} has no {request.param}")
        if lacking := native._lacking(compiler, flags):
            pytest.skip(f"this processor lacks {', '.join(lacking)}")
    found = native.kernels.__wrapped__()  # past its cache
    assert found is not None
    monkeypatch.setattr(native, "kernels", lambda: found)
    return request.param


@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(37, 24), (1, 1), (19, 31)])
def test_products_are_float64s_at_every_width(processor, dtype, outputs, inputs):
    weight, bias = drawn(outputs, inputs).to(dtype), drawn(outputs, seed=1)
    linear, x = Linear(weight, bias, layout="native"), drawn(WIDTHS[-1], inputs, seed=2).to(dtype).float()
    exact = x.double() @ weight.double().T + bias.double()
    alone = torch.cat([linear(row[None]) for row in x])
    torch.testing.assert_close(alone.double(), exact, rtol=0, atol=1e-4)
    for width in WIDTHS:
        assert torch.equal(linear(x[:width]), alone[:width])
