"""Packed conversations come back as they were, for their very model, and files are only ever added."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.errors import UserError
from bench.models import conversation_files
from bench.models.checkpoints import Checkpoint
from bench.train import packed
from bench.train.conversations import NONE, Conversations
from tests.bench.train.written import same, three


@pytest.fixture
def rows() -> Conversations:
    return three()


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(conversation_files, "FOLDER", tmp_path / "data")
    return Checkpoint("org/small", tmp_path, "ab" * 32, None)


@pytest.mark.parametrize(("most", "stored"), [(2**16 - 1, np.uint16), (2**16, np.int32)])
def test_packed_conversations_are_read_as_written_in_few_bytes(rows, checkpoint, most, stored):
    rows.tokens[4] = most
    path = packed.add(rows, checkpoint)
    found = packed.load(checkpoint)
    assert same(found, rows)
    assert [column.dtype for column in vars(found).values()] == [column.dtype for column in vars(rows).values()]
    with np.load(path) as content:
        assert content["tokens"].dtype == stored


def test_packed_conversations_are_for_their_very_model(rows, checkpoint):
    assert same(packed.load(checkpoint), NONE)
    packed.add(rows, checkpoint)
    assert same(packed.load(replace(checkpoint, sha256="cd" * 32)), NONE)
    assert same(packed.load(replace(checkpoint, name="other")), NONE)
    assert same(packed.load(checkpoint), rows)


def test_files_are_added_beside_those_that_are_there(rows, checkpoint):
    first = packed.add(rows, checkpoint)
    content = first.read_bytes()
    second = packed.add(rows.keep([True, False, False]), checkpoint)
    assert (first.name, second.name, first.parent) == ("0001.npz", "0002.npz", second.parent)
    assert first.read_bytes() == content
    assert same(packed.load(checkpoint), Conversations.joined([rows, rows.keep([True, False, False])]))


def test_another_folder_may_be_named(rows, checkpoint, tmp_path):
    path = packed.add(rows, checkpoint, tmp_path / "mine")
    assert path.is_relative_to(tmp_path / "mine")
    assert same(packed.load(checkpoint), NONE)
    assert same(packed.load(checkpoint, tmp_path / "mine"), rows)


@pytest.mark.parametrize("damage", ["cut short", "empty", "no archive", "a column less", "other length"])
def test_damaged_file_is_named(rows, checkpoint, damage):
    path = packed.add(rows, checkpoint)
    if damage in ("a column less", "other length"):
        with np.load(path) as stored:
            columns = dict(stored)
        columns["kinds"] = columns["kinds"][:-1]
        if damage == "a column less":
            del columns["kinds"]
        np.savez(path, **columns)
    else:
        content = {"cut short": path.read_bytes()[:-60], "empty": b"", "no archive": b"x" * 99}[damage]
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"0001\.npz is damaged"):
        packed.load(checkpoint)


def test_interrupt_leaves_no_half_file(rows, checkpoint, monkeypatch):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packed.add(rows, checkpoint)
    assert [path for path in conversation_files.FOLDER.rglob("*") if path.is_file()] == []
