"""Cores are shared by the workers of a machine: never one core by two of them, unless it was asked for."""

from __future__ import annotations

import threading

import pytest

from bench.errors import UserError
from bench.run import cores
from bench.run.workers.seats import Seats

FOUR = [[0, 4], [1, 5], [2, 6], [3, 7]]  # four cores with two hardware threads each


def seated(seats, *hellos):
    """The seats of several workers that say hello at once, in the order of their places."""
    found = {}

    def take(place, hello):
        found[place] = seats.take(place, hello)

    threads = [threading.Thread(target=take, args=one, daemon=True) for one in enumerate(hellos, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [found[place] for place in sorted(found)]


def hello(groups, host="here", gpu=""):
    return {"host": host, "cores": groups, "gpu": gpu}


@pytest.mark.parametrize(
    ("threads", "expected"),
    [(0, [[0, 1, 4, 5], [2, 3, 6, 7]]), (1, [[0, 4], [1, 5]]), (2, [[0, 1, 4, 5], [2, 3, 6, 7]])],
)
def test_each_has_cores_of_its_own_with_all_their_hardware_threads(threads, expected):
    found = seated(Seats(threads, 2), hello(FOUR), hello(FOUR))
    assert [seat.cores for seat in found] == expected
    assert {seat.threads for seat in found} == {threads or 2}


def test_threads_are_as_many_as_all_machines_can_have():
    found = seated(Seats(0, 3), hello(FOUR), hello(FOUR), hello([[0], [1], [2]], "there"))
    assert [(seat.host, len(seat.cores), seat.threads) for seat in found] == [
        ("here", 4, 2),
        ("here", 4, 2),
        ("there", 2, 2),
    ]


def test_a_worker_that_is_replaced_gets_the_same_cores():
    seats = Seats(1, 2)
    before = seated(seats, hello(FOUR), hello(FOUR))
    assert seats.take(2, hello(FOUR)) == before[1]


def test_fewer_cores_than_workers_are_refused_unless_threads_were_chosen():
    with pytest.raises(UserError, match="1 worker cannot have 0 cores on here"):
        Seats(0, 1).take(1, hello([]))
    seats = Seats(1, 2)
    found = seated(seats, hello([[0]]), hello([[0]]))
    assert [seat.cores for seat in found] == [[0], [0]]
    assert seats.warnings == ["2 workers of 1 thread share 1 core on here: they slow each other down, by turns"]


def test_nobody_waits_for_a_worker_that_is_given_up():
    seats = Seats(0, 2)
    seats.give_up()
    assert seats.take(1, hello(FOUR)).threads == 4


def test_hardware_threads_of_a_core_are_together(tmp_path, monkeypatch):
    for number in range(4):
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{number % 2}\n")
    monkeypatch.setattr(cores, "_SYSFS", tmp_path)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 9})
    assert cores.physical_cores() == [[0, 2], [1, 3], [9]]
