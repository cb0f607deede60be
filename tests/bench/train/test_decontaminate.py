"""No test question, nor a longer stretch of one, may be trained on."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import torch

from bench import questions
from bench.config import flags as config_flags
from bench.config import given
from bench.decontaminate import Filter, question_sets
from bench.errors import UserError
from bench.files import sha256
from bench.models.chat import ChatFormat
from bench.questions import Question, QuestionSet
from bench.train.conversations import Conversations
from bench.train.training import _decontaminated
from bench.train_config import TrainConfig
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
    sets, missing = question_sets([source], pytest.fail)
    clean = _decontaminated(made, ChatFormat(tiny_tokenizer), sets)
    for name, column in vars(made.keep([True, False, True, False, True])).items():
        assert torch.equal(vars(clean)[name], column)
    assert clean.kinds.tolist() == [0, 2, 4]
    assert [(found.name, len(found.questions)) for found in sets] == [("mini", 48), ("q.jsonl", 2)]
    assert missing == []


def offline(*given, **options):
    raise OSError("no network")


def test_official_questions_that_cannot_be_downloaded_are_a_warning_whose_remedy_works(monkeypatch, tmp_path):
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(questions.urllib.request, "urlopen", offline)
    log: list[str] = []
    sets, missing = question_sets(["official"], log.append)
    assert ([found.name for found in sets], missing) == (["mini"], ["official"])
    (warning,) = log
    assert "--questions" not in warning
    flag = re.search(r"give its path with (--\w+) FILE", warning)[1]
    source = write_questions(tmp_path / "fetched.jsonl", (1, "rag", [LONG]))
    monkeypatch.setattr(questions, "OFFICIAL_SHA256", sha256(Path(source)))
    settings = TrainConfig(**given(parsed([flag, source]), TrainConfig))
    sets, missing = question_sets(settings.decontaminate, pytest.fail)
    assert ([found.name for found in sets], missing) == (["mini", "official"], [])


def parsed(flags: list[str]) -> Namespace:
    parser = ArgumentParser()
    for flag, options in config_flags(TrainConfig):
        parser.add_argument(flag, **options)
    return parser.parse_args(flags)


@pytest.mark.parametrize("log", [None, print], ids=["collect", "train"])
def test_question_files_that_cannot_be_read_are_an_error_before_any_work(log):
    with pytest.raises(UserError, match=r"'absent\.jsonl' cannot be read"):
        question_sets(["absent.jsonl"], log)


def test_features_of_differently_cleaned_conversations_do_not_share_a_folder(made, tiny_tokenizer, tmp_path):
    sources = [write_questions(tmp_path / f"{i}.jsonl", (i, "qa", [text])) for i, text in enumerate((LONG, SHORT))]
    chat = ChatFormat(tiny_tokenizer)
    cleaned = [
        _decontaminated(made, chat, [questions.load(source) for source in given])
        for given in ([], sources[:1], sources[1:], sources)
    ]
    assert len({clean.digest() for clean in cleaned}) == 4  # which names the folder


def test_too_few_clean_conversations_are_a_user_error(made, tiny_tokenizer, tmp_path):
    source = write_questions(
        tmp_path / "q.jsonl", (1, "qa", ["all"]), (2, "qa", ["so"]), (3, "qa", ["who"]), (4, "qa", ["tell me"])
    )
    with pytest.raises(UserError, match="1 of 5 conversations share no text"):
        _decontaminated(made, ChatFormat(tiny_tokenizer), [questions.load(source)])
