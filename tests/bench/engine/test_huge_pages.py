"""Large memory lies in huge pages where the kernel gives them, and nothing breaks where it does not."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from bench.engine import huge_pages as pages
from bench.engine.huge_pages import HUGE, huge_mib, use_huge_pages


def moves_what_is_there() -> bool:
    """Whether this kernel moves memory into huge pages on request (Linux 6.1 and later, unless told never to)."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    return setting.exists() and "[never]" not in setting.read_text(encoding="utf-8") and release >= (6, 1)


def test_areas_are_large_private_and_of_no_file():
    maps = f"""\
{0x100000:x}-{0x100000 + 40 * HUGE:x} rw-p 00000000 00:00 0
{0x20000000:x}-{0x20000000 + 9 * HUGE:x} rw-p 00000000 00:00 0                          [heap]
{0x30000000:x}-{0x30000000 + 9 * HUGE:x} rw-p 00000000 00:00 0                          [stack]
{0x40000000:x}-{0x40000000 + 9 * HUGE:x} r--p 00000000 00:00 0
{0x50000000:x}-{0x50000000 + 9 * HUGE:x} rw-p 00000000 08:01 77                         /somewhere/weights
{0x60000000:x}-{0x60000000 + 9 * HUGE:x} rw-s 00000000 00:00 0
{0x70000000:x}-{0x70000000 + 7 * HUGE:x} rw-p 00000000 00:00 0
"""
    # The first begins within a huge page: only whole ones count.
    assert list(pages._areas(maps)) == [(HUGE, 40 * HUGE), (0x20000000, 0x20000000 + 9 * HUGE)]


@pytest.mark.skipif(not moves_what_is_there(), reason="this kernel does not move memory into huge pages")
def test_what_is_in_memory_moves_into_huge_pages_unchanged():
    # Memory of its own: what earlier tests have freed may be in huge pages already.
    area = mmap.mmap(-1, 17 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = torch.frombuffer(area, dtype=torch.long)[: 16 * HUGE // 8]  # 32 MiB
    area.madvise(mmap.MADV_NOHUGEPAGE)
    values.copy_(torch.arange(len(values)))
    before = huge_mib()
    use_huge_pages()
    assert huge_mib() >= before + 28  # at either end a huge page may be shared with a neighbour
    assert torch.equal(values, torch.arange(len(values)))


def test_a_kernel_that_refuses_does_no_harm(monkeypatch):
    class Refusing:
        def __init__(self, _name):
            self.madvise = type("Call", (), {"__call__": lambda *_: -1})()

    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    use_huge_pages()


def test_elsewhere_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("asked"))
    use_huge_pages()
    assert huge_mib() == 0
