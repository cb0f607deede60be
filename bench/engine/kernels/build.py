"""Compiles layers.cpp for this machine, once, into a file in the cache.

$ROOBENCH_KERNEL_FLAGS chooses the processor that it is compiled for.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.errors import UserError
from bench.files import cache_root

SOURCE = Path(__file__).with_name("layers.cpp")
PROCESSOR = "ROOBENCH_KERNEL_FLAGS"  # compiler flags, instead of -march=native
_MACHINE_FLAG = re.compile(r"-m[\w.+=-]+|-O[0-3]")  # no others: they could change what is computed
_FEATURES = "(?:AVX|SSE|SSSE|FMA|F16C|BMI|LZCNT|MOVBE|POPCNT|ARM_FEATURE_)"  # what ordinary code may be compiled to
# No contraction: where two operations are to be one, the source says so.
_FLAGS = ("-std=c++20", "-ffp-contract=off", "-fPIC", "-O3")
_FOLDER = "kernels"  # in the cache
_OTHERS_WRITE = 0o022  # bits of a mode


def processor_flags() -> list[str]:
    """The compiler flags that say what processor to build for. Raises UserError for flags that do anything else."""
    flags = (os.environ.get(PROCESSOR) or "-march=native").split()
    for flag in flags:
        if not _MACHINE_FLAG.fullmatch(flag):
            raise unusable(f"{flag} is neither -m... nor -O0 to -O3")
    return flags


def unusable(reason: str) -> UserError:
    """The error for flags that do not serve."""
    return UserError(f"{PROCESSOR}={os.environ[PROCESSOR]!r}: {reason}; unset it to build for this processor")


class CannotBuildError(Exception):
    """A compiler that cannot do it, or not with the flags."""


class UnusableCacheError(OSError):
    """A cache in which no compiler could build anything."""


def compilers() -> list[str]:
    """Those that are there, to be tried in turn."""
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return list(dict.fromkeys(filter(None, map(shutil.which, names))))


def path_of(compiler: str) -> Path:
    """What a compiler makes of the source for this machine: a file in the cache."""
    machine = [_cpu(), *platform.libc_ver(), *_openmp(compiler)]
    sources = [file.read_text(encoding="utf-8") for file in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    told = "\n".join([*sources, *_FLAGS, *processor_flags(), compiler, *machine])
    return cache_root() / _FOLDER / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"


def load(compiler: str) -> ctypes.CDLL:
    """The library, compiled unless it is in the cache.

    Raises:
        CannotBuildError: the compiler refuses, or this processor lacks what the flags ask for.
        UnusableCacheError: nothing can be kept in the cache.
        OSError: the library does not load.

    """
    path = path_of(compiler)
    if is_safe(path):
        with contextlib.suppress(OSError):  # built for another system: rebuilt
            return ctypes.CDLL(str(path))
    _build(compiler, path)
    return ctypes.CDLL(str(path))


def is_safe(path: Path) -> bool:
    """Return whether the file is there, and only this user or root can have put it there: loading it runs it."""
    return path.exists() and _is_private(path) and _is_private(path.parent)


def _is_private(path: Path) -> bool:
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & _OTHERS_WRITE


def _build(compiler: str, path: Path) -> None:
    """Compile to a temporary name, then rename: two processes may do it at once."""
    flags = processor_flags()
    if missing := lacking(compiler, flags):
        raise CannotBuildError(f"this processor lacks {', '.join(missing)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.stat().st_uid == os.geteuid():
            _forbid_others(path.parent)
        if not _is_private(path.parent):
            remedy = "set ROOBENCH_CACHE to a folder of your own"
            raise UnusableCacheError(f"other users can write to {path.parent}: {remedy}")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as partial:
            made, compiled = Path(partial) / "kernels.so", Path(partial) / "kernels.o"
            steps = (
                [compiler, *_FLAGS, *flags, "-fopenmp", "-c", str(SOURCE), "-o", str(compiled)],
                [compiler, "-shared", str(compiled), "-o", str(made), *_openmp(compiler)],
            )
            for step in steps:
                done = subprocess.run(step, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
                    raise CannotBuildError(f"it cannot build {SOURCE.name} ({said})")
            _forbid_others(made)
            made.replace(path)
    except UnusableCacheError:
        raise
    except OSError as error:
        raise UnusableCacheError(f"nothing can be built in {path.parent} ({error.strerror or error})") from error


def lacking(compiler: str, flags: list[str]) -> list[str]:
    """What code built with these flags may use and this processor, by the compiler's word, does not have."""
    native, asked = ["-march=native"], [flag for flag in flags if flag.startswith("-m")]
    if asked == native or not (found := features(compiler, native)):
        return []
    return sorted(name.strip("_") for name in features(compiler, asked) - found)


def features(compiler: str, flags: list[str]) -> set[str]:
    """The macros by which a compiler tells the instructions that it may use; none where it does not know a flag."""
    command = [compiler, *flags, "-x", "c++", "-dM", "-E", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(re.findall(rf"^#define __({_FEATURES}\w*) ", done.stdout, re.MULTILINE))


def _forbid_others(path: Path) -> None:
    """Let nobody else write there; what the umask forbids stays forbidden."""
    path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)


def _openmp(compiler: str) -> list[str]:
    """How to link: with the very OpenMP library that torch has loaded, whose threads are then shared.

    With another copy, either's idle threads would keep a core busy while the other's work. A compiler's calls need a
    library of its own family: GCC's have libgomp, LLVM's libomp or libiomp5.
    """
    if sys.platform != "linux":
        return ["-fopenmp"]
    family = ("libomp", "libiomp5") if "clang" in Path(compiler).resolve().name else ("libgomp",)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = dict.fromkeys(fields[5] for line in maps if len(fields := line.split(maxsplit=5)) == 6)
    found = [path for path in files if re.split(r"[-.]", Path(path).name)[0] in family]
    found.sort(key=lambda path: "/torch" not in path)  # torch's own, in torch/lib or torch.libs, before others' copies
    return found[:1] or ["-fopenmp"]


def _cpu() -> str:
    """What the processor can do, as far as the system tells: a cache may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"
