"""Grammars hold no slip, prompts are the seed's, and no question of the test set is among them."""

from __future__ import annotations

import random
import shutil
from collections import Counter

import pytest

from bench import questions
from bench.decontaminate import Filter
from bench.train import prompts
from bench.train.prompts import KINDS, prompt


@pytest.fixture(scope="module")
def many():
    return [prompt(0, kind, number) for number in range(500) for kind in KINDS]


def expand(template: str, slots: dict[str, list[str]], seed: int) -> str:
    return prompts._expand(template, slots, random.Random(seed), {})


@pytest.fixture
def grammar(monkeypatch):
    """Puts a grammar in the place of all."""
    return lambda **parts: monkeypatch.setattr(prompts, "_grammar", lambda kind: parts)


# --- the grammars ----------------------------------------------------------------------------------------------------


def test_every_kind_has_its_grammar_and_no_grammar_is_left_over():
    assert sorted(path.stem for path in prompts.GRAMMARS.iterdir()) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_template_and_every_item_of_a_grammar_expands(kind):
    grammar = prompts._grammar(kind)
    slots = grammar["slots"]
    templates = [*grammar["first"], *grammar.get("second", [])]
    for template in [*templates, *(item for items in slots.values() for item in items)]:
        for seed in range(3):
            assert not set("{}") & set(expand(template, slots, seed)), template
    assert all(template.strip() for template in templates)


@pytest.mark.parametrize("kind", KINDS)
def test_every_list_of_a_grammar_is_used(kind):
    grammar = prompts._grammar(kind)
    slots = grammar["slots"]
    texts = [*grammar["first"], *grammar.get("second", []), *(item for items in slots.values() for item in items)]
    assert {slot[1] for text in texts for slot in prompts._SLOT.finditer(text)} - {None} == set(slots)


def test_no_prompt_holds_a_question_of_the_bundled_set(many):
    questions_of_the_test = questions.load("mini")
    filters = Filter([questions_of_the_test])
    assert all(filters.overlaps(turn) for question in questions_of_the_test.questions for turn in question.turns)
    assert [turn for made in many[:1000] for turn in made.turns if filters.overlaps(turn)] == []


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_seed_kind_and_number(many):
    assert [prompt(0, KINDS[i % 6], i // 6) for i in (2999, 7, 0)] == [many[2999], many[7], many[0]]
    assert sum(prompt(1, kind, number) == prompt(0, kind, number) for number in range(20) for kind in KINDS) < 5
    assert len({made.turns for made in many}) > 0.95 * len(many)


def test_only_conversations_go_on(many):
    turns = Counter(len(made.turns) for made in many if made.kind == "conversation")
    assert set(turns) == {1, 2}
    assert turns[2] / turns.total() == pytest.approx(0.5, abs=0.06)
    assert {len(made.turns) for made in many if made.kind != "conversation"} == {1}


def test_a_slot_is_filled_alike_wherever_it_stands_and_numbered_ones_differ():
    slots = {"city": ["Bergen", "Lisbon", "Osaka"]}
    seen = set()
    for seed in range(40):
        first, again, second, third = expand("{city} {city} {city_2} {city_3}", slots, seed).split()
        assert first == again
        assert sorted({first, second, third}) == slots["city"]
        seen.add((first, second))
    assert len(seen) == 6
    assert expand("{city} {city_2}", {"city": ["Bergen"]}, 0) == "Bergen Bergen"  # for want of another


def test_slots_of_an_item_are_its_own():
    slots = {"pair": ["{city} and {city_2}"], "city": ["Bergen", "Lisbon"]}
    for seed in range(20):
        outer, first, _, second = expand("{city} {pair}", slots, seed).split()
        assert outer in slots["city"]
        assert {first, second} == set(slots["city"])


def test_numbers_keep_their_range_and_step():
    assert {int(expand("{10-13}", {}, seed)) for seed in range(100)} == {10, 11, 12, 13}
    assert {int(expand("{10-90:20}", {}, seed)) for seed in range(100)} == {10, 30, 50, 70, 90}
    assert {int(expand("{10-29:10}", {}, seed)) for seed in range(100)} == {10, 20}
    assert expand("${5-5},000", {}, 0) == "$5,000"
    assert len({expand("{0-999} {0-999}", {}, seed) for seed in range(20)}) == 20  # each is a number of its own


def test_a_slot_that_makes_up_most_of_a_prompt_is_its_template(grammar):
    long = "A long article about {city}, where nothing of note took place."
    grammar(first=["Summarize: {article}"], slots={"article": [long], "city": ["Bergen", "Lisbon"]})
    made = [prompt(0, "qa", number) for number in range(20)]
    assert {p.template for p in made} == {long}
    assert {p.turns for p in made} == {(f"Summarize: {long.replace('{city}', c)}",) for c in ("Bergen", "Lisbon")}
    grammar(first=["What is there to be seen in {city}?"], slots={"city": ["Bergen", "Lisbon"]})
    assert {prompt(0, "qa", number).template for number in range(20)} == {"What is there to be seen in {city}?"}
    grammar(first=["How are you?"], slots={})
    assert prompt(0, "qa", 0) == prompts.Prompt("qa", ("How are you?",), "How are you?")


def test_an_item_of_the_main_list_is_the_template_whatever_stands_around_it(grammar):
    units = ["The {thing} is red.", "The {thing} is blue, and it has been so for as long as anybody can remember."]
    slots = {"unit": units, "thing": ["fig", "plum"], "filler": ["a {thing}" + "b" * 300]}
    grammar(first=["{unit}", "{filler}\n{unit}", "{filler}"], main="unit", slots=slots)
    made = [prompt(0, "rag", number) for number in range(60)]
    assert {p.template for p in made} == {*units, slots["filler"][0]}
    for p in made:
        assert (p.template == units[0]) == ("red" in p.turns[0])
        assert (p.template == units[1]) == ("blue" in p.turns[0])


def test_every_long_prompt_is_held_out_by_its_unit_or_article(many):
    for kind, name in (("rag", "unit"), ("summarization", "article")):
        items = prompts._grammar(kind)["slots"][name]
        assert all(made.template in items for made in many if made.kind == kind)


def test_a_long_second_turn_does_not_change_the_template(grammar):
    grammar(first=["Say {word}."], second=["Now this: {text}"], slots={"word": ["a"], "text": ["b" * 90]})
    made = [prompt(0, "qa", number) for number in range(20)]
    assert {p.turns for p in made} == {("Say a.",), ("Say a.", "Now this: " + "b" * 90)}
    assert {p.template for p in made} == {"Say {word}."}


def test_digest_changes_with_any_grammar(tmp_path, monkeypatch):
    before = prompts.digest()
    folder = shutil.copytree(prompts.GRAMMARS, tmp_path / "grammars")
    monkeypatch.setattr(prompts, "GRAMMARS", folder)
    assert prompts.digest() == before
    (folder / "rag.toml").write_text((folder / "rag.toml").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert prompts.digest() != before
