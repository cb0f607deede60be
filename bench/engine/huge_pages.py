"""Transparent huge pages for the weights.

A forward pass on a CPU reads every weight once. With pages of 4 KiB, TLB misses cost time, and how much depends on the
pages that a process happens to get: two processes of the same code differ by a few per cent for as long as they run.
Pages of 2 MiB remove both. Linux takes the request since 2.6.38 (MADV_HUGEPAGE) and moves existing memory since 6.1
(MADV_COLLAPSE). On other systems nothing happens, and the run's record says 0 MiB.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HUGE = 2 << 20  # bytes; where huge pages are larger, asking for multiples of this does no harm
_LEAST = 8 * HUGE  # smaller areas are not worth it, and threads' stacks are among them
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0\s*(?:\[heap\])?$")


def use_huge_pages() -> None:
    """Ask for huge pages for all large memory areas of this process, including later allocations in them."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for first, end in _areas(Path("/proc/self/maps").read_text(encoding="utf-8")):
        # A kernel that does not know a request, or has no huge page left, refuses it: the memory stays as it is.
        libc.madvise(first, end - first, _MADV_HUGEPAGE)
        libc.madvise(first, end - first, _MADV_COLLAPSE)


def huge_mib() -> int:
    """Return how many MiB of this process are in huge pages now."""
    if sys.platform != "linux":
        return 0
    try:
        found = re.search(r"^AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:  # older than 4.14, or not permitted
        return 0
    return int(found[1]) >> 10 if found else 0


def _areas(maps: str) -> Iterator[tuple[int, int]]:
    """Yield the whole huge pages (first byte, end) within the large private anonymous areas of /proc/self/maps."""
    for line in maps.splitlines():
        if found := _AREA.match(line):
            first, end = -(-int(found[1], 16) // HUGE) * HUGE, int(found[2], 16) // HUGE * HUGE
            if end - first >= _LEAST:
                yield first, end
