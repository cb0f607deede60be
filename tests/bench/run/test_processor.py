"""The processor out of what operating systems say: of x86 and ARM under Linux, and of macOS."""

from __future__ import annotations

import pytest
import torch

from bench.run import environment, processor

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu sse2 avx avx2 avx512f avx512_bf16

processor\t: 1
model\t\t: 3
"""
ARM = """processor\t: 0
Features\t: fp asimd i8mm bf16 sve
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
CPU revision\t: 1
"""
INTEL_MAC = {
    "machdep.cpu.brand_string": "Intel(R) Core(TM) i7", "machdep.cpu.vendor": "GenuineIntel",
    "machdep.cpu.family": "6", "machdep.cpu.model": "158", "machdep.cpu.stepping": "10",
    "machdep.cpu.features": "FPU SSE4.2 AVX1.0 FMA F16C", "machdep.cpu.leaf7_features": "AVX2 BMI2",
    "hw.l1dcachesize": "32768", "hw.l2cachesize": "262144", "hw.l3cachesize": "0",
}  # fmt: skip
APPLE = {
    "machdep.cpu.brand_string": "Apple M2", "hw.cpufamily": "3660830781", "hw.cpusubfamily": "2",
    "hw.optional.neon": "1", "hw.optional.arm.FEAT_BF16": "1", "hw.optional.arm.FEAT_I8MM": "0",
}  # fmt: skip


def test_x86_by_family_model_and_stepping_of_the_first_processor():
    found = processor.from_cpuinfo(X86, {"L3": 32})
    assert (found.name, found.vendor, found.family, found.model, found.stepping) == (
        "AMD EPYC", "AuthenticAMD", "26", "2", "1",
    )  # fmt: skip
    assert found.instructions == ["avx", "avx2", "avx512f", "avx512_bf16"]
    assert found.caches_bytes == {"L3": 32}
    assert found.logical_cores >= 1


def test_arm_by_implementer_part_and_revision():
    found = processor.from_cpuinfo(ARM, {})
    assert (found.vendor, found.family, found.model, found.stepping) == ("0x41", "8", "0xd40", "1")
    assert found.instructions == ["neon", "i8mm", "bf16", "sve"]
    assert found.name  # the platform's, where the system gives none


@pytest.mark.parametrize(
    ("told", "identity", "instructions"),
    [
        (INTEL_MAC, ("Intel(R) Core(TM) i7", "6", "158", "10"), ["avx", "avx2", "fma", "f16c"]),
        (APPLE, ("Apple M2", "3660830781", "2", ""), ["neon", "bf16"]),
    ],
)
def test_macos_by_sysctl(told, identity, instructions):
    found = processor.from_sysctl(told)
    assert (found.name, found.family, found.model, found.stepping) == identity
    assert found.instructions == instructions


def test_cache_sizes_come_from_sysfs(tmp_path):
    for index, (level, kind, size) in enumerate([("1", "Data", "48K"), ("3", "Unified", "32M"), ("4", "Unified", "?")]):
        (tmp_path / f"index{index}").mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (tmp_path / f"index{index}" / name).write_text(value + "\n")
    (tmp_path / "index9").mkdir()
    assert processor._sysfs_caches(tmp_path) == {"L1d": 48 << 10, "L3": 32 << 20}


def test_this_machine_is_the_same_at_every_look(monkeypatch):
    monkeypatch.setattr(environment, "_rounded_bandwidth", lambda device: 12.0)
    first, second = (environment.describe_machine(torch.device("cpu"), 2) for _ in range(2))
    assert first == second
    assert first.name == first.processor.name != ""
    assert (first.type, first.threads, first.memory_bytes > 1 << 28) == ("cpu", 2, True)


def test_bandwidth_is_measured_and_rounded(monkeypatch):
    environment._rounded_bandwidth.cache_clear()
    monkeypatch.setattr(environment, "read_gb_per_s", lambda device, size, repeats: 12.3456)
    assert environment._rounded_bandwidth(torch.device("cpu")) == 12.0
    environment._rounded_bandwidth.cache_clear()
    monkeypatch.undo()
    assert 0.01 < environment.read_gb_per_s(torch.device("cpu"), 1 << 20, 1) < 1e5
