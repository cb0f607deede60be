"""Pages of files are given back after reading; other memory is left alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from bench.engine import mapped
from bench.engine.mapped import MappedFiles

COUNT = 4 << 20  # numbers, 16 MiB
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")


def file_mib() -> int:
    """MiB of files in the memory of this process."""
    found = re.search(r"^RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) >> 10


@pytest.fixture
def stored(tmp_path) -> torch.Tensor:
    """0, 1, 2 .. in a file that is mapped."""
    path = tmp_path / "numbers"
    path.write_bytes(torch.arange(COUNT, dtype=torch.int32).numpy().tobytes())
    return torch.from_file(str(path), shared=False, size=COUNT, dtype=torch.int32)


@LINUX
def test_pages_of_a_file_are_given_back_and_read_again(stored):
    files, wanted = MappedFiles(), torch.arange(COUNT, dtype=torch.int32)
    assert torch.equal(stored, wanted)
    read = file_mib()
    files.release(stored[: COUNT // 2])
    assert 6 <= read - file_mib() <= 9
    files.release(stored)
    assert 14 <= read - file_mib() <= 17
    assert torch.equal(stored, wanted)


@LINUX
def test_memory_of_no_file_is_left_alone(stored):
    files = MappedFiles()
    own, spread = torch.arange(COUNT, dtype=torch.int32), stored[::2]
    for tensor in (own, spread, stored[:0]):
        files.release(tensor)
    assert torch.equal(own, torch.arange(COUNT, dtype=torch.int32))


@LINUX
def test_an_area_that_is_mapped_later_is_left_alone(stored):
    files = MappedFiles()
    files._areas = [area for area in files._areas if not area[0] <= stored.data_ptr() < area[1]]
    assert stored.sum() > 0
    read = file_mib()
    files.release(stored)
    assert file_mib() >= read - 1


def test_areas_are_private_and_of_a_file():
    maps = """\
10000-20000 r--p 00000000 fe:00 77                         /somewhere/with a space/model.safetensors
20000-30000 rw-p 00001000 fe:00 78                         /somewhere/weights.bin
30000-40000 rw-s 00000000 fe:00 79                         /somewhere/shared
40000-50000 rw-p 00000000 00:00 0
50000-60000 rw-p 00000000 00:00 0                          [heap]
60000-70000 ---p 00000000 fe:00 80                         /somewhere/not readable
"""
    assert list(mapped._areas(maps)) == [(0x10000, 0x20000), (0x20000, 0x30000)]


def test_elsewhere_nothing_is_given_back(monkeypatch, stored):
    monkeypatch.setattr(sys, "platform", "darwin")
    files = MappedFiles()
    assert files._areas == []
    files.release(stored)
    assert int(stored[-1]) == COUNT - 1
