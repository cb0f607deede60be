"""The processor as the operating system describes it: /proc and sysfs on Linux, sysctl on macOS, else `platform`."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from bench.figures.machine import Processor

_CPUINFO, _CACHES = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache")
_SETS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "amx_bf16", "neon", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
# Of Processor's fields: the names in Linux' cpuinfo, on x86 and on ARM, and in macOS' sysctl.
_LINUX = {
    "name": ("model name", "Model"),
    "vendor": ("vendor_id", "CPU implementer"),
    "family": ("cpu family", "CPU architecture"),
    "model": ("model", "CPU part"),
    "stepping": ("stepping", "CPU revision"),
}
_MACOS = {
    "name": ("machdep.cpu.brand_string",),
    "vendor": ("machdep.cpu.vendor",),
    "family": ("machdep.cpu.family", "hw.cpufamily"),
    "model": ("machdep.cpu.model", "hw.cpusubfamily"),
    "stepping": ("machdep.cpu.stepping",),
}
_MACOS_CACHES = {"L1d": "hw.l1dcachesize", "L1i": "hw.l1icachesize", "L2": "hw.l2cachesize", "L3": "hw.l3cachesize"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def describe_processor() -> Processor:
    """This machine's processor."""
    if sys.platform == "darwin":
        return from_sysctl(_sysctl())
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.is_file() else ""
    return from_cpuinfo(text, _sysfs_caches(_CACHES))


def from_cpuinfo(text: str, caches_bytes: dict[str, int]) -> Processor:
    """From the text of /proc/cpuinfo, which may be empty: its first processor."""
    told: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    flags = (told.get("flags") or told.get("Features") or "").split()
    return _processor(told, _LINUX, caches_bytes, flags)


def from_sysctl(told: dict[str, str]) -> Processor:
    """From macOS' sysctl, by its names."""
    caches = {level: int(told[key]) for level, key in _MACOS_CACHES.items() if told.get(key, "0") != "0"}
    intel = " ".join(told.get(f"machdep.cpu.{part}", "") for part in ("features", "leaf7_features")).lower()
    flags = {"avx1.0": "avx"}.get
    found = [flags(name, name) for name in intel.split()]
    arm = {"hw.optional.neon": "neon", "hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_I8MM": "i8mm"}
    return _processor(told, _MACOS, caches, [*found, *(name for key, name in arm.items() if told.get(key) == "1")])


def _processor(
    told: dict[str, str], names: Mapping[str, tuple[str, ...]], caches_bytes: dict[str, int], flags: Iterable[str]
) -> Processor:
    found = {field: next((told[name] for name in of if told.get(name)), "") for field, of in names.items()}
    found["name"] = found["name"] or platform.processor() or platform.machine()
    present = {"neon" if flag == "asimd" else flag for flag in flags}
    return Processor(
        **found,
        architecture=platform.machine(),
        cores=psutil.cpu_count(logical=False) or 0,
        logical_cores=os.cpu_count() or 0,
        caches_bytes=caches_bytes,
        instructions=[name for name in _SETS if name in present],
    )


def _sysfs_caches(folder: Path) -> dict[str, int]:
    """Bytes by level; empty if unknown."""
    found = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if spelled := re.fullmatch(r"(\d+)([KMG]?)", size):
            letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
            found[f"L{level}{letter}"] = int(spelled[1]) * _UNITS[spelled[2]]
    return found


def _sysctl() -> dict[str, str]:
    try:
        done = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
