"""Work is handed out in order, each item until it is done, and to one worker at a time."""

from __future__ import annotations

import threading

import pytest

from bench.errors import UserError
from bench.run.workers.handout import Handout

TODO = [0, 1, 2]


def empty():
    return Handout(lambda item: f"question {item}", "give fewer --workers")


@pytest.fixture
def handout():
    made = empty()
    made.add(TODO)
    made.close()
    return made


def taken_by_another(handout):
    """A thread that takes a question, and the list that it is put into."""
    found = []
    thread = threading.Thread(target=lambda: found.append(handout.take()), daemon=True)
    thread.start()
    return thread, found


def test_items_come_in_order_and_then_nothing(handout):
    for asked in TODO:
        assert handout.take() == asked
        handout.done()
    assert handout.take() is None


def test_an_item_that_comes_back_is_next(handout):
    assert [handout.take(), handout.take()] == TODO[:2]
    handout.give_back(TODO[0], "it was killed")
    assert [handout.take(), handout.take()] == [TODO[0], TODO[2]]


def test_who_finds_nothing_left_waits_for_what_others_may_lose(handout):
    assert [handout.take() for _ in TODO] == TODO
    thread, found = taken_by_another(handout)
    thread.join(0.05)
    assert not found
    handout.give_back(TODO[1], "it was killed")
    thread.join(10)
    assert found == [TODO[1]]


def test_who_finds_nothing_waits_for_more_until_it_is_closed_or_over():
    for end in (Handout.close, Handout.end):
        made = empty()
        thread, found = taken_by_another(made)
        thread.join(0.05)
        assert not found
        end(made)
        thread.join(10)
        assert found == [None]
    made.add(TODO)
    assert made.take() is None


def test_an_item_that_ends_three_workers_ends_the_work(handout):
    for _ in range(2):
        handout.give_back(handout.take(), "it was killed")
    with pytest.raises(UserError, match="question 0 has ended 3 workers, the last one with: signal 9"):
        handout.give_back(handout.take(), "signal 9")
