"""Peaks of memory, by allocating."""

from __future__ import annotations

import mmap

import pytest
import torch

from bench.run import memory
from bench.run.memory import PeakMeter, merged, peak_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


def touch(mib: int) -> None:
    """Hold so much memory for a moment: fresh pages, as a tensor may get what an earlier test has left in the heap."""
    with mmap.mmap(-1, mib * MIB) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1


def test_the_peak_stays_after_the_memory_is_given_back():
    if not PeakMeter(CPU)._reset():
        pytest.skip("peaks cannot be reset here")
    before = peak_bytes(CPU)
    touch(400)
    touch(8)
    assert 300 * MIB < peak_bytes(CPU) - before < 500 * MIB


def test_each_contestants_peak_is_its_own():
    meter = PeakMeter(CPU)
    with meter.of("one"):
        touch(8)
    if not meter.at_work:
        pytest.skip("peaks cannot be reset here")
    with meter.of("many"):
        touch(400)
    with meter.of("one"):
        touch(8)
    with meter.of("many"):
        touch(8)
    one, many = meter.at_work["one"], meter.at_work["many"]
    assert 300 * MIB < many - one < 500 * MIB
    assert meter.facts()["peak_bytes"] >= many
    assert meter.facts()["methods"] == {"one": one, "many": many}


def test_a_failed_answer_counts_too():
    meter = PeakMeter(CPU)
    with pytest.raises(ValueError, match="broken"), meter.of("one"):
        raise ValueError("broken")
    if not meter._reset():
        pytest.skip("peaks cannot be reset here")
    assert meter.at_work["one"] > 50 * MIB


def test_where_a_peak_cannot_be_reset_no_contestant_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "nowhere" / "clear_refs")
    meter = PeakMeter(CPU)
    with meter.of("one"):
        touch(8)
    assert meter.facts()["methods"] == {}
    assert meter.facts()["peak_bytes"] > 50 * MIB


def test_without_proc_the_system_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert 50 * MIB < peak_bytes(CPU) < 100 << 30


def test_of_two_sessions_the_larger_peaks_count():
    one = {"peak_bytes": 5, "methods": {"a": 3, "b": 2}}
    other = {"peak_bytes": 4, "methods": {"a": 4, "c": 1}}
    assert merged(one, other) == {"peak_bytes": 5, "methods": {"a": 4, "b": 2, "c": 1}}
    assert merged({}, one) == one
