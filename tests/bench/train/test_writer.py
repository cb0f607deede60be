"""The target's answers and nothing else is marked as chosen, and answers end where they should."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate, combinations
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench.models.chat import ChatFormat
from bench.train import prompts, writer
from bench.train.conversations import Conversations
from bench.train.prompts import KINDS, Prompt
from bench.train.writer import PromptQueue, Writer, prompt_key
from tests.bench.train.written import END, EOS, LOOP, RECIPE, SMALL, loops, rows_of, turns_of
from tests.tiny import short_prompt

pytestmark = pytest.mark.usefixtures("short_prompts")


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("tied", True)


@pytest.fixture(scope="module")
def target(model, tiny_decoder):
    return tiny_decoder(*model, max_len=512)


@pytest.fixture(scope="module")
def chat(tiny_tokenizer):
    return ChatFormat(tiny_tokenizer)


def queue(chat, recipe=RECIPE, kind="qa", answered=()):
    return PromptQueue(kind, chat, recipe, set(answered))


def batches(queue):
    """All that are left in a queue, at most two rows each."""
    return list(iter(lambda: queue.take(2), []))


def run(target, eos, recipe, rows) -> Conversations:
    """A batch, as conversations in the order of its rows."""
    assert len(list(Writer(target, eos, recipe, rows).run(lambda tokens: None))) == len(rows)
    return Conversations.of([row.finished() for row in rows])


@pytest.fixture(scope="module")
def made(target, chat):
    """Conversations in which some answers end by themselves, since a frequent token counts as an end; with the passes
    (batch, width, start) that made them, the prompts, and the order in which they ended."""
    plain = run(target, EOS, SMALL, queue(chat, SMALL).take(2))
    eos = EOS | {int(plain.tokens[plain.chosen].bincount().argsort(descending=True)[4])}
    passes, run_layers = [], target.run_layers

    def spy(x, start, cache):
        passes.append((*x.shape[:2], start))
        return run_layers(x, start, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_PREFILL", 8)  # so that short prompts take several passes
        patch.setattr(writer, "_BATCHES_SORTED", 1)  # so that prompts of all lengths are together
        patch.setattr(target, "run_layers", spy)
        rows = queue(chat).take(RECIPE.batch)
        asked = [row.prompt for row in rows]
        ended = list(Writer(target, eos, RECIPE, rows).run(lambda tokens: None))
    found = Conversations.of([row.finished() for row in rows])
    return SimpleNamespace(found=found, eos=eos, passes=passes, asked=asked, ended=ended)


def test_chosen_tokens_are_transformers_greedy_choices(made, hf_logits, model, chat):
    after_drops = in_second_turns = 0
    first_drop = next(start for batch, _, start in made.passes if batch < RECIPE.batch)
    for row, chosen in rows_of(made.found):
        greedy = hf_logits(model[1], row).argmax(-1)
        at = torch.tensor(chosen).nonzero()[:, 0]
        assert len(at) > 0
        assert at[0] > 0
        assert greedy[at - 1].tolist() == torch.tensor(row)[at].tolist()
        after_drops += sum(chosen[first_drop + 1 :])
        in_second_turns += sum(chosen[begin] for who, begin, _ in turns_of(row, chat)[3:4])
    assert after_drops > 20
    assert in_second_turns > 1


def test_all_of_an_answer_is_chosen_and_nothing_of_user_or_template(made, chat):
    for row, chosen in rows_of(made.found):
        turns = turns_of(row, chat)
        expected = [False] * len(row)
        for who, begin, end in turns:
            if who == "assistant":
                # The template's own first token is chosen only where the target ended its answer with it.
                own_end = end < len(row) and chosen[end] and row[end] in made.eos
                expected[begin : end + own_end] = [True] * (end + own_end - begin)
        assert chosen == expected
        assert [who for who, *_ in turns] in (["user", "assistant"], ["user", "assistant"] * 2)


def test_answers_end_by_themselves_at_the_limit_or_where_they_loop(made, chat):
    ends = Counter()
    for row, chosen in rows_of(made.found):
        for who, begin, end in turns_of(row, chat):
            if who == "assistant":
                answer = row[begin : end + (end < len(row) and chosen[end])]
                assert not made.eos & set(answer[:-1])
                assert not any(loops(answer[:i]) for i in range(len(answer)))
                assert len(answer) <= RECIPE.answer_tokens
                ends["by itself"] += answer[-1] in made.eos
                ends["limit"] += len(answer) == RECIPE.answer_tokens
                ends["loop"] += loops(answer)
                assert answer[-1] in made.eos or len(answer) == RECIPE.answer_tokens or loops(answer)
    assert ends["by itself"] > 0
    assert ends["limit"] > 0


@pytest.mark.parametrize(
    ("choice", "eos", "limit", "said"),
    [(END, END, 24, 1), (65, 65, 24, 1), (65, END, 5, 5), (65, END, 24, LOOP + 1)],
    ids=["the template's own end", "another end", "limit", "loop"],
)
def test_conversation_worked_out_by_hand(target, chat, monkeypatch, choice, eos, limit, said):
    monkeypatch.setattr(prompts, "prompt", lambda seed, kind, number: Prompt("qa", ("fig", "plum"), "template"))
    vocab = target.config.vocab
    monkeypatch.setattr(target, "logits", lambda x: F.one_hot(torch.full(x.shape[:1], choice), vocab).float())
    recipe = replace(SMALL, answer_tokens=limit)
    found = run(target, frozenset({eos}), recipe, queue(chat, recipe).take(1))
    _, to_reply, to_user = chat.separators()
    asked, between = chat.prompt([], "fig"), chat.encode(f"{to_user}plum{to_reply}")
    if choice == between[0]:  # it stands there already
        between = between[1:]
    assert rows_of(found) == [
        (
            [*asked, *[choice] * said, *between, *[choice] * said],
            [False] * len(asked) + [True] * said + [False] * len(between) + [True] * said,
        )
    ]


def test_user_turns_kinds_and_templates_are_the_prompts(made, chat):
    for (row, _), asked in zip(rows_of(made.found), made.asked, strict=True):
        users = [chat.tokenizer.decode(row[begin:end]) for who, begin, end in turns_of(row, chat) if who == "user"]
        assert users == list(asked.turns)
    assert [KINDS[kind] for kind in made.found.kinds] == [asked.kind for asked in made.asked]
    rows = list(zip(made.found.templates.tolist(), made.asked, strict=True))
    for (first, one), (second, other) in combinations(rows, 2):
        assert (first == second) == (one.template == other.template)
    assert 1 < len(set(made.found.templates.tolist())) < len(rows)


def test_what_all_prompts_have_in_length_is_read_in_wide_passes_and_ended_rows_are_dropped(made):
    rows = rows_of(made.found)
    common = min(chosen.index(True) for _, chosen in rows) - 1
    widths = [width for _, width, _ in made.passes]
    wide = -(-common // 8)
    assert widths[:wide] == [8] * (common // 8) + [common % 8] * (common % 8 > 0)
    assert set(widths[wide:]) == {1}
    assert [start for *_, start in made.passes] == [0, *accumulate(widths)][:-1]
    for batch, _, start in made.passes[wide:]:
        going_on = sum(len(row) > start + 1 for row, _ in rows)
        assert 0.8 * batch < going_on <= batch
    assert made.passes[-1][0] < RECIPE.batch


def test_each_conversation_is_given_once_as_soon_as_it_ends(made):
    assert sorted(rows_of(Conversations.of(made.ended))) == sorted(rows_of(made.found))
    lengths = [len(row.tokens) for row in made.ended]
    assert lengths == sorted(lengths)  # in lock-step, the shorter ends first
    assert len(set(lengths)) > 3


def test_interrupted_batch_has_given_what_had_ended(target, monkeypatch, chat, made):
    monkeypatch.setattr(writer, "_BATCHES_SORTED", 1)
    rows = queue(chat).take(RECIPE.batch)
    running = Writer(target, made.eos, RECIPE, rows).run(lambda tokens: None)
    first = next(running)
    running.close()
    assert 0 < sum(row.done for row in rows) < len(rows)
    assert max(len(row.tokens) for row in rows) == len(first.tokens)


def test_progress_counts_every_answer_token(target, chat, made):
    told = []
    ended = list(Writer(target, made.eos, RECIPE, queue(chat).take(5)).run(told.append))
    assert sum(told) == sum(row.answer_tokens for row in ended) > 0


def test_batches_share_out_a_groups_prompts_by_length(chat):
    taken = queue(chat, SMALL)
    for group in range(2):
        batches = [taken.take(SMALL.batch)]
        while taken.batches:
            batches.append(taken.take(SMALL.batch))
        numbers = range(group * 8 * SMALL.batch, (group + 1) * 8 * SMALL.batch)
        asked = {short_prompt(SMALL.seed, "qa", number).turns for number in numbers}
        found = [row.prompt.turns for batch in batches for row in batch]
        assert len(found) == len(set(found))
        assert set(found) <= asked
        spans = sorted((batch[0].longest, batch[-1].longest) for batch in batches)
        assert [length for span in spans for length in span] == sorted(length for span in spans for length in span)


def test_batches_come_in_no_order_of_length(chat):
    taken = queue(chat, SMALL)
    lengths = [taken.take(SMALL.batch)[0].longest for _ in range(8)]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_no_more_rows_than_their_cache_may_hold(chat):
    for positions in (1, 300, 700):
        recipe = replace(RECIPE, positions=positions)
        batch = queue(chat, recipe).take(RECIPE.batch)
        needed = max(writer.needed_positions(row, recipe) for row in batch)
        assert len(batch) == 1 or needed * len(batch) <= positions
    assert len(batch) > 1


def test_prompts_that_were_answered_are_passed_over_and_the_search_ends(chat):
    keys = [prompt_key(row.forced) for batch in batches(queue(chat, SMALL)) for row in batch]
    assert len(keys) == len(set(keys)) > 50
    left = {prompt_key(row.forced) for batch in batches(queue(chat, SMALL, answered=keys[5:])) for row in batch}
    assert left >= set(keys[:5])
    assert not left & set(keys[5:])


def test_search_for_more_prompts_ends_where_a_grammar_has_no_more(chat, monkeypatch):
    monkeypatch.setattr(prompts, "prompt", lambda seed, kind, number: Prompt(kind, (f"{number % 7}",), "template"))
    assert sum(len(batch) for batch in batches(queue(chat, SMALL))) == 7


def test_prompts_that_leave_no_room_for_an_answer_are_left_out(chat):
    narrow = replace(SMALL, length=SMALL.answer_tokens + 30)
    rows = [row for batch in batches(queue(chat, narrow)) for row in batch]
    assert 0 < max(len(row.forced) for row in rows) <= 30
    assert queue(chat, replace(SMALL, length=SMALL.answer_tokens + 8)).take(2) == []


def test_second_turn_that_no_longer_fits_is_not_begun(target, chat, monkeypatch):
    monkeypatch.setattr(writer, "_BATCHES_SORTED", 1)
    recipe = replace(RECIPE, length=92)
    rows = queue(chat, recipe).take(RECIPE.batch)
    found = run(target, EOS, recipe, rows)
    spoken = [sum(who == "assistant" for who, *_ in turns_of(row, chat)) for row, _ in rows_of(found)]
    assert int(found.lengths.max()) <= recipe.length
    assert any(count < len(row.prompt.turns) for count, row in zip(spoken, rows, strict=True))
    assert all(chosen[-1] for _, chosen in rows_of(found))
