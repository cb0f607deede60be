"""Conversations of all kinds in equal shares, kept in the cache as they end, and never doubled."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from bench.errors import UserError
from bench.models.chat import ChatFormat
from bench.train import conversations, prompts
from bench.train.conversations import NONE, Conversations, journals_of, make, recipe_key
from bench.train.prompts import KINDS
from tests.bench.train.written import EOS, RECIPE, SMALL, rows_of, same, three

pytestmark = pytest.mark.usefixtures("short_prompts")
TOKENS = 900


@pytest.fixture(scope="module")
def target(tiny_model, tiny_decoder):
    return tiny_decoder(*tiny_model("tied", True), max_len=512)


@pytest.fixture(scope="module")
def chat(tiny_tokenizer):
    return ChatFormat(tiny_tokenizer)


@pytest.fixture
def written(monkeypatch):
    """How many rows each batch had that was written rather than read."""
    counts, build = [], conversations.Writer

    def spy(target, eos, recipe, rows):
        counts.append(len(rows))
        return build(target, eos, recipe, rows)

    monkeypatch.setattr(conversations, "Writer", spy)
    return counts


@pytest.fixture(scope="module")
def made(target, chat, tmp_path_factory):
    """(their folder, the conversations)."""
    folder = tmp_path_factory.mktemp("made")
    return folder, make(target, chat, EOS, replace(SMALL, tokens=TOKENS), folder)


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the cache that the test may damage."""
    (journal,) = made[0].glob("*.jsonl")
    (tmp_path / journal.name).write_bytes(journal.read_bytes())
    return tmp_path


def journal(folder):
    (path,) = folder.glob("*.jsonl")
    return path


# --- sets of them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three_rows() -> Conversations:
    return three()


def test_some_conversations_are_kept_whole(three_rows):
    kept = three_rows.keep([True, False, True])
    assert rows_of(kept) == [rows_of(three_rows)[0], rows_of(three_rows)[2]]
    assert (kept.kinds.tolist(), kept.templates.tolist()) == ([5, 2], [70, 90])
    assert same(three_rows.keep([True] * 3), three_rows)
    assert (three_rows.answer_tokens, kept.answer_tokens) == (4, 2)


def test_no_more_conversations_are_drawn_than_it_takes(made):
    made = made[1]
    rows, drawn = rows_of(made), {}
    for tokens in (1, 100, 300):
        found = made.drawn(tokens, seed=1)
        drawn[tokens] = rows_of(found)
        assert tokens <= found.answer_tokens < tokens + 2 * SMALL.answer_tokens
        places = [rows.index(row) for row in drawn[tokens]]
        assert places == sorted(places)
        assert all(row in rows_of(made.drawn(400, seed=1)) for row in drawn[tokens])  # more extend them
    assert drawn[100] != rows_of(made.drawn(100, seed=2))
    assert rows_of(made.drawn(made.answer_tokens + 1, seed=1)) == rows


def test_few_conversations_are_drawn_of_all_kinds_in_their_share(made):
    made = made[1]
    rows = made.kinds.bincount(minlength=len(KINDS)).tolist()
    for seed in range(5):
        drawn = made.drawn(made.answer_tokens // 3, seed)
        share = len(drawn.kinds) / len(made.kinds)
        found = drawn.kinds.bincount(minlength=len(KINDS)).tolist()
        assert all(abs(count - share * of) <= 1 for count, of in zip(found, rows, strict=True))
        assert set(drawn.mixture()) == set(KINDS)
        assert sum(drawn.mixture().values()) == pytest.approx(1, abs=0.003)


def test_parts_are_joined_in_their_order(three_rows):
    parts = [three_rows.keep([place == i for place in range(3)]) for i in range(3)]
    assert same(Conversations.joined(parts), three_rows)
    assert rows_of(Conversations.joined(reversed(parts))) == rows_of(three_rows)[::-1]


def test_digest_names_the_tokens_and_which_were_chosen(three_rows):
    assert replace(three_rows).digest() == three_rows.digest()
    others = [replace(three_rows, tokens=three_rows.tokens.flip(0)), replace(three_rows, chosen=~three_rows.chosen)]
    assert len({found.digest() for found in (three_rows, *others, three_rows.keep([True, True, False]))}) == 4


def test_empty_set_is_a_set(three_rows):
    assert (len(NONE.lengths), NONE.answer_tokens, NONE.prompt_keys(), set(NONE.by_kind().values())) == (0, 0, [], {0})
    assert same(Conversations.joined([NONE, three_rows]), three_rows)
    assert [column.dtype for column in vars(NONE).values()] == [column.dtype for column in vars(three_rows).values()]
    assert same(three_rows.keep([False] * 3), NONE)


def test_answer_tokens_are_counted_by_kind(three_rows):
    assert three_rows.by_kind() == dict.fromkeys(KINDS, 0) | {"rag": 1, "conversation": 2, "summarization": 1}


def test_only_prompts_that_are_not_known_are_fresh_and_each_once(three_rows):
    first, second, third = (three_rows.keep([place == i for place in range(3)]) for i in range(3))
    assert same(Conversations.joined([first, second, first]).fresh(NONE), Conversations.joined([first, second]))
    other_answer = replace(second, tokens=second.tokens + torch.tensor([0, 0, 9, 9], dtype=torch.int32))
    assert same(Conversations.joined([other_answer, third]).fresh(second), third)


# --- making them -----------------------------------------------------------------------------------------------------


def test_all_kinds_weigh_alike_and_no_more_are_written_than_it_takes(made):
    counts = made[1].by_kind()
    assert TOKENS <= sum(counts.values()) < TOKENS + 2 * 2 * SMALL.answer_tokens
    most = 2 * 2 * SMALL.answer_tokens  # two rows of two turns
    assert all(abs(count - TOKENS / len(KINDS)) <= most for count in counts.values())


@pytest.mark.parametrize("tokens", [1, 400])
def test_about_as_many_tokens_as_asked_for_of_all_kinds(target, chat, tmp_path, tokens):
    """Few tokens are not a whole batch, of one or two kinds and several times as many."""
    found = make(target, chat, EOS, replace(RECIPE, batch=64, tokens=tokens), tmp_path)
    most = 2 * RECIPE.answer_tokens  # of a conversation
    assert tokens <= found.answer_tokens <= tokens + 3 * most
    if tokens > 1:
        assert all(count > 0 for count in found.by_kind().values())
        assert max(found.by_kind().values()) <= tokens / len(KINDS) + 3 * most


def test_what_was_packed_counts_and_is_not_asked_again(target, chat, tmp_path, made, written):
    packed = made[1].keep([KINDS[kind] != "rag" for kind in made[1].kinds])
    more = packed.answer_tokens + 60
    found = make(target, chat, EOS, replace(SMALL, tokens=more), tmp_path, packed=packed)
    assert same(found.keep([i < len(packed.lengths) for i in range(len(found.lengths))]), packed)
    assert {KINDS[kind] for kind in found.kinds[len(packed.lengths) :]} == {"rag"}
    again = make(target, chat, EOS, replace(SMALL, tokens=found.answer_tokens + 200), tmp_path / "b", packed=found)
    assert max(Counter(again.prompt_keys()).values()) == 1


def test_what_was_packed_out_of_the_journal_is_not_counted_twice(target, chat, folder, made, written):
    more = made[1].answer_tokens + 1
    found = make(target, chat, EOS, replace(SMALL, tokens=more), folder, packed=made[1])
    assert max(Counter(found.prompt_keys()).values()) == 1
    assert same(found.keep([i < len(made[1].lengths) for i in range(len(found.lengths))]), made[1])
    assert more <= found.answer_tokens < more + 2 * 2 * SMALL.answer_tokens
    assert written


def test_conversations_are_the_seeds(target, chat, tmp_path, made):
    recipe = replace(SMALL, tokens=TOKENS)
    assert same(make(target, chat, EOS, recipe, tmp_path / "b"), made[1])
    other = make(target, chat, EOS, replace(recipe, seed=1), tmp_path / "b")
    assert not same(other, made[1])


def test_interrupted_work_goes_on_with_nothing_lost_and_nothing_doubled(target, chat, tmp_path, monkeypatch, made):
    class KilledError(Exception):
        pass

    recipe, run, ended = replace(SMALL, tokens=TOKENS, batch=8), conversations.Writer.run, []

    def dies(self, progress):
        for number, conversation in enumerate(run(self, progress)):
            if number == 3:
                raise KilledError
            ended.append(conversation)
            yield conversation

    monkeypatch.setattr(conversations.Writer, "run", dies)
    for _ in range(2):
        with pytest.raises(KilledError):
            make(target, chat, EOS, recipe, tmp_path)
        kept = conversations.Journal(journal(tmp_path)).read()
        assert same(Conversations.of(kept), Conversations.of(ended))
    monkeypatch.setattr(conversations.Writer, "run", run)
    found = make(target, chat, EOS, recipe, tmp_path)
    assert rows_of(found)[: len(ended)] == rows_of(Conversations.of(ended))
    assert max(Counter(found.prompt_keys()).values()) == 1
    assert found.answer_tokens >= TOKENS


def test_what_the_cache_has_is_not_written_again_and_more_extend_it(target, chat, folder, made, written):
    assert same(make(target, chat, EOS, replace(SMALL, tokens=TOKENS), folder), made[1])
    assert written == []
    more = make(target, chat, EOS, replace(SMALL, tokens=made[1].answer_tokens + 1), folder)
    assert same(more.keep([i < len(made[1].lengths) for i in range(len(more.lengths))]), made[1])
    assert written == [1]


def test_progress_counts_every_answer_token_made_or_read(target, chat, tmp_path):
    for _ in range(2):
        told: list[int] = []
        found = make(target, chat, EOS, SMALL, tmp_path, told.append)
        assert sum(told) == found.answer_tokens


def test_other_recipes_grammars_and_models_do_not_share_conversations(monkeypatch, tmp_path):
    names = {recipe_key(SMALL), recipe_key(replace(SMALL, seed=1)), recipe_key(replace(SMALL, length=131))}
    names |= {recipe_key(replace(SMALL, tokens=7, batch=9, positions=8))}
    assert len(names) == 3
    monkeypatch.setattr(prompts, "digest", lambda: "changed")
    assert recipe_key(SMALL) not in names
    folders = {journals_of(tmp_path, "org/name", "ab" * 32), journals_of(tmp_path, "org/name", "cd" * 32)}
    assert len({folder.parent for folder in folders}) == 1
    assert len(folders) == 2


def test_second_writer_is_refused(target, chat, tmp_path):
    with (
        conversations.Journal(tmp_path / f"{recipe_key(SMALL)}.jsonl").appending(),
        pytest.raises(UserError, match="another process is writing"),
    ):
        make(target, chat, EOS, SMALL, tmp_path)


@pytest.mark.parametrize("length", [8, SMALL.answer_tokens + 8])
def test_template_that_leaves_no_room_for_answers_is_a_user_error_not_an_endless_loop(target, chat, tmp_path, length):
    with pytest.raises(UserError, match=f"room for an answer within {length} tokens"):
        make(target, chat, EOS, replace(SMALL, length=length), tmp_path)


def test_grammar_that_has_no_more_to_ask_is_a_user_error(target, chat, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "prompt", lambda seed, kind, number: prompts.Prompt(kind, (kind[:3],), kind))
    with pytest.raises(UserError, match=r"has answered every prompt .* ask for fewer --tokens"):
        make(target, chat, EOS, replace(SMALL, tokens=1000), tmp_path)
    assert len(journal(tmp_path).read_text().splitlines()) == len(KINDS)


def test_long_conversations_are_left_out_and_something_must_be_left(three_rows):
    lengths = sorted(three_rows.lengths.tolist())
    assert max(three_rows.up_to(lengths[1]).lengths.tolist()) == lengths[1]
    with pytest.raises(UserError, match=f"leaves no conversation: the shortest has {lengths[0]} tokens; give more"):
        three_rows.up_to(lengths[0] - 1)
