"""Questions are handed out in order, each until it is answered, and to one worker at a time."""

from __future__ import annotations

import threading

import pytest

from bench.errors import UserError
from bench.questions import Question
from bench.run.plan import Asked
from bench.run.workers.handout import Handout

TODO = [Asked(0, Question(number, "qa", ("Why?",)), False) for number in range(3)]


@pytest.fixture
def handout():
    made = Handout()
    made.open(TODO)
    return made


def taken_by_another(handout):
    """A thread that takes a question, and the list that it is put into."""
    found = []
    thread = threading.Thread(target=lambda: found.append(handout.take()), daemon=True)
    thread.start()
    return thread, found


def test_questions_come_in_order_and_then_nothing(handout):
    for asked in TODO:
        assert handout.take() == asked
        handout.answered()
    assert handout.take() is None


def test_a_question_that_comes_back_is_next(handout):
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


def test_nothing_is_handed_out_before_it_is_opened_or_after_the_end():
    made = Handout()
    thread, found = taken_by_another(made)
    thread.join(0.05)
    assert not found
    made.end()
    thread.join(10)
    assert found == [None]
    made.open(TODO)
    assert made.take() is None


def test_a_question_that_ends_three_workers_ends_the_run(handout):
    for _ in range(2):
        handout.give_back(handout.take(), "it was killed")
    with pytest.raises(UserError, match="question 0 has ended 3 workers, the last one with: signal 9"):
        handout.give_back(handout.take(), "signal 9")
