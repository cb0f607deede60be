"""Memory of tensors that are mapped from files, given back once they have been read.

A checkpoint's files are mapped into memory. Pages that have been read count as the process's own until the mapping
ends: a model in float32 would take its size twice while it is loaded. The system reads a page again if need be, so
nothing is lost. Linux only; elsewhere nothing happens.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

_MADV_DONTNEED = 4
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r\S\Sp \S+ \S+ (?!0 )\d+ +\S.*")  # private, and of a file


class MappedFiles:
    """The areas of this process's memory that are mapped from files, as they are when it is made."""

    def __init__(self) -> None:
        self._areas: list[tuple[int, int]] = []
        if sys.platform == "linux":
            self._areas = sorted(_areas(Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")))
            self._libc = ctypes.CDLL(None)
            self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def release(self, tensor: Tensor) -> None:
        """Give back the whole pages of a tensor if it lies in a file; it must be as the file has it.

        Memory that is no file's would be lost with its contents, so it is left alone.
        """
        if not self._areas or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return
        first, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect.bisect_right(self._areas, (first, sys.maxsize)) - 1
        if at < 0 or end > self._areas[at][1]:
            return
        first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            self._libc.madvise(first, end - first, _MADV_DONTNEED)


def _areas(maps: str) -> Iterator[tuple[int, int]]:
    """Yield (first byte, end) of the private file mappings in /proc/self/maps."""
    for line in maps.splitlines():
        if found := _AREA.fullmatch(line):
            yield int(found[1], 16), int(found[2], 16)
