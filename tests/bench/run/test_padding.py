"""Questions padded to prompt lengths: how long they are, of what, and in which order."""

from __future__ import annotations

import pytest

from bench.models.chat import ChatFormat
from bench.questions import Question
from bench.run.padding import Padding
from bench.train import prompts


@pytest.fixture
def chat(tiny_tokenizer):
    return ChatFormat(tiny_tokenizer)


def asked(category: str, number: int = 5, text: str = "Who baked it?", **more) -> Question:
    return Question(number, category, (text,), **more)


@pytest.mark.parametrize(
    "category", ["writing", "translation", "summarization", "qa", "math_reasoning", "rag", "support"]
)
@pytest.mark.parametrize("tokens", [200, 333, 1500, 4000])
def test_a_prompt_is_as_long_as_asked_but_for_a_word(chat, category, tokens):
    question = asked(category)
    padded = Padding(chat, 0).pad(question, tokens)
    assert tokens - 40 < len(chat.prompt([], padded.turns[0])) <= tokens  # a letter is a token or more of them
    assert padded.turns[0].endswith("\n-----\n\nWho baked it?")
    assert (padded.question_id, padded.category, padded.task) == (5, category, question.task)


def background(padding: Padding, question: Question, tokens: int) -> str:
    return padding.pad(question, tokens).turns[0].split("\n\n", 1)[1].rsplit("\n\n-----\n\n", 1)[0]


def test_the_passages_nearest_to_the_question_are_the_same_at_every_length(chat):
    padding = Padding(chat, 0)
    texts = [background(padding, asked("rag"), tokens) for tokens in (300, 900, 2000)]
    assert texts[1].endswith(texts[0])
    assert texts[2].endswith(texts[1])


def test_passages_are_drawn_by_seed_and_question(chat):
    def text(seed, number):
        return background(Padding(chat, seed), asked("rag", number), 600)

    assert text(0, 5) == text(0, 5)
    assert len({text(0, 5), text(1, 5), text(0, 6)}) == 3


def test_passages_are_of_the_questions_kind(chat):
    """Every sentence of an article or document is spelled by its grammar's slots; other kinds have whole prompts."""
    number = 5 << 20
    text = background(Padding(chat, 0), asked("math_reasoning"), 3000)
    assert text.endswith(prompts.prompt(0, "math_reasoning", number).turns[0].rstrip())
    german = background(Padding(chat, 0), asked("translation"), 3000)
    assert german.endswith(prompts.prompt(0, "translation", number).turns[0].rstrip())
    article = background(Padding(chat, 0), asked("summarization"), 3000)
    assert "ummar" not in article  # no instruction
    assert background(Padding(chat, 0), asked("support"), 900) == background(Padding(chat, 0), asked("rag"), 900)


def test_passages_of_a_file_are_used_again_when_they_are_spent(chat):
    padding = Padding(chat, 0, ("Figs ripen late.", "Wasps like figs."))
    text = background(padding, asked("qa"), 800)
    assert set(text.split("\n\n")[1:]) == {"Figs ripen late.", "Wasps like figs."}
    assert text.count("Figs ripen late.") > 5


def test_text_without_spaces_is_cut_within(chat):
    padding = Padding(chat, 0, ("図" * 500,))
    assert 860 < len(chat.prompt([], padding.pad(asked("qa"), 900).turns[0])) <= 900


@pytest.mark.parametrize("tokens", [10, 60, 160])
def test_a_question_that_cannot_be_padded_is_left_as_it_is(chat, tokens):
    question = asked("qa", text="Why " * 20)
    assert Padding(chat, 0).pad(question, tokens) == question


def test_system_message_and_later_turns_stay(chat):
    question = Question(1, "support", ("Hi.", "Bye."), system="Be brief.")
    padded = Padding(chat, 0).pad(question, 300)
    assert (padded.system, padded.turns[1]) == ("Be brief.", "Bye.")
    assert 280 < len(chat.prompt([], padded.turns[0], "Be brief.")) <= 300
