"""A journal keeps what had ended, whatever happens to its last line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.train.journal import Conversation, Journal

ONE = Conversation("qa", 7, [5, 6, 7, 8], [(1, 2), (3, 4)])
OTHER = Conversation("rag", 8, [70000, 6], [(1, 2)])


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "cache" / "some.jsonl")
    with made.appending() as add:
        add(ONE)
        add(OTHER)
    return made


def plain(rows):
    return [replace(row, answers=[tuple(answer) for answer in row.answers]) for row in rows]


def test_conversations_are_read_as_written(journal):
    assert plain(journal.read()) == [ONE, OTHER]
    assert ONE.answer_tokens == 2
    assert Journal(Path("/nowhere/x.jsonl")).read() == []


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_last_line_that_was_cut_short_is_passed_over_and_what_follows_is_whole(journal, cut):
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    with journal.appending() as add:
        add(ONE)
    assert plain(journal.read()) == ([ONE, OTHER, ONE] if cut == 1 else [ONE, ONE])


VALUE = json.loads(ONE.to_line())
DAMAGE = ["", "{", "[]", "null", "[" * 5000, *(json.dumps(VALUE | change) for change in (
    {"tokens": [5, "6", 7, 8]}, {"tokens": [5, 6, 7]}, {"answers": []}, {"answers": [[0, 2]]}, {"answers": [[2, 1]]},
    {"answers": [[1, 2, 3]]}, {"answers": [[1, None]]}, {"kind": "poetry"}, {"template": 1.5}, {"more": 1},
)), json.dumps({k: v for k, v in VALUE.items() if k != "kind"})]  # fmt: skip


@pytest.mark.parametrize("line", DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_line_is_passed_over(journal, line):
    text = journal.path.read_text(encoding="utf-8")
    journal.path.write_text(f"{line}\n{text}", encoding="utf-8")
    assert plain(journal.read()) == [ONE, OTHER]


def test_each_conversation_is_on_the_disk_before_the_next(journal):
    with journal.appending() as add:
        for count in (3, 4, 5):
            add(ONE)
            assert len(journal.read()) == count


def test_one_process_at_a_time_adds(journal):
    with (
        journal.appending(),
        pytest.raises(UserError, match=r"another process is writing.*harvest\.sh stop"),
        Journal(journal.path).appending(),
    ):
        pass
    with journal.appending() as add:
        add(ONE)
    assert len(journal.read()) == 3


@pytest.mark.parametrize(("number", "told"), [(28, "no space left in"), (13, "cannot write to the cache")])
def test_cache_that_takes_no_more_names_the_remedy(journal, monkeypatch, number, told):
    def fails(self):
        raise OSError(number, "it went wrong")

    monkeypatch.setattr(Conversation, "to_line", fails)
    with journal.appending() as add, pytest.raises(UserError, match=f"{told}.*ROOBENCH_CACHE"):
        add(ONE)
    assert plain(journal.read()) == [ONE, OTHER]
