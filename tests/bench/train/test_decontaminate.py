"""No test question, nor a longer stretch of one, may be trained on."""

from __future__ import annotations

import pytest
import torch

from bench.errors import UserError
from bench.models.chat import ChatFormat
from bench.questions import Question, QuestionSet
from bench.train.conversations import Conversations
from bench.train.decontaminate import Filter
from bench.train.training import _decontaminate
from tests.tiny import write_questions

LONG = "Please list, in order, every river that a barge from Basel to Rotterdam crosses on its way north."
SHORT = "Who painted it?"


@pytest.fixture
def filters():
    return Filter([QuestionSet("q", "", (Question(1, "writing", ("Hello there, write something", LONG)),)), one(SHORT)])


def one(text: str) -> QuestionSet:
    return QuestionSet("q", "", (Question(2, "qa", (text,)),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"As asked: {LONG} Indeed.", True),
        ("LIST in order -- every river that a barge from Basel; to Rotterdam crosses", True),  # 13 words of it
        ("in order every river that a barge from Basel to Rotterdam crosses", False),  # 12
        ("in order every river that a barge from Basel to Mainz and Rotterdam crosses on its way", False),
        ("I wonder who painted it, and when.", True),
        ("who painted", False),
        ("I wonder who painted italics.", False),  # words, not letters
        ("", False),
    ],
)
def test_overlap_is_13_words_in_a_row_or_a_whole_shorter_question(filters, text, expected):
    assert filters.overlaps(text) is expected


def test_question_of_exactly_13_words_is_matched_whole_and_not_in_part():
    words = [f"w{i}" for i in range(13)]
    filters = Filter([one(" ".join(words))])
    assert filters.overlaps(f"zero {' '.join(words)} fourteen")
    assert not filters.overlaps(" ".join(words[:-1]))


def test_question_without_words_drops_nothing():
    assert not Filter([one("?!")]).overlaps("any text at all")


@pytest.fixture
def made(tiny_tokenizer):
    """Five conversations; the second holds a long question, the fourth a short one."""
    texts = ["all about barges", f"so: {LONG.lower()}", "who knows", f"tell me: {SHORT}", "the end"]
    rows = [tiny_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    tokens = torch.tensor([token for row in rows for token in row]).int()
    lengths = torch.tensor([len(row) for row in rows]).int()
    return Conversations(tokens, torch.arange(len(tokens)) % 7 == 0, lengths, torch.arange(5), torch.arange(5))


def test_planted_questions_are_dropped_with_their_masks_and_others_kept(made, tiny_tokenizer, tmp_path):
    source = write_questions(tmp_path / "q.jsonl", (1, "rag", [LONG]), (2, "qa", [SHORT]))
    log: list[str] = []
    clean, checked = _decontaminate(made, ChatFormat(tiny_tokenizer), [source], log.append)
    for name, column in vars(made.keep([True, False, True, False, True])).items():
        assert torch.equal(vars(clean)[name], column)
    assert clean.kinds.tolist() == [0, 2, 4]
    assert checked["dropped"] == 2
    assert [text.split(",")[0] for text in checked["against"]] == ["q.jsonl (2 questions"]
    assert (checked["missing"], log) == ([], [])


def test_question_set_that_is_not_at_hand_is_a_warning_and_goes_on_record(made, tiny_tokenizer):
    log: list[str] = []
    clean, checked = _decontaminate(made, ChatFormat(tiny_tokenizer), ["absent.jsonl"], log.append)
    assert len(clean.lengths) == 5
    assert checked["missing"] == ["absent.jsonl"]
    assert "WARNING: not decontaminated against 'absent.jsonl'" in log[0]


def test_features_of_differently_cleaned_conversations_do_not_share_a_folder(made, tiny_tokenizer, tmp_path):
    sources = [write_questions(tmp_path / f"{i}.jsonl", (i, "qa", [text])) for i, text in enumerate((LONG, SHORT))]
    chat = ChatFormat(tiny_tokenizer)
    cleaned = [_decontaminate(made, chat, given, print)[0] for given in ([], sources[:1], sources[1:], sources)]
    assert len({clean.digest() for clean in cleaned}) == 4  # which names the folder


def test_too_few_clean_conversations_are_a_user_error(made, tiny_tokenizer, tmp_path):
    source = write_questions(
        tmp_path / "q.jsonl", (1, "qa", ["all"]), (2, "qa", ["so"]), (3, "qa", ["who"]), (4, "qa", ["tell me"])
    )
    with pytest.raises(UserError, match="1 of 5 conversations share no text"):
        _decontaminate(made, ChatFormat(tiny_tokenizer), [source], print)
