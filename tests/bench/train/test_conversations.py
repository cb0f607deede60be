"""Self-made conversations: the target's answers and nothing else is marked as chosen; the cache is never in the way."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from itertools import accumulate, combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.checkpoints import Checkpoint
from bench.errors import UserError
from bench.questions import ChatFormat
from bench.train import conversations, prompts
from bench.train.conversations import Conversations, Recipe, Writer, load_packaged, make, save_packaged
from bench.train.prompts import KINDS, Prompt
from tests.tiny import short_prompt

END = 258  # what the template ends every turn with
EOS = frozenset({END})
RECIPE = Recipe(tokens=1, batch=16, length=168, answer_tokens=40)  # room for every prompt
SMALL = replace(RECIPE, batch=2, length=132, answer_tokens=24)  # where the content does not matter
LOOP = 12  # tokens said twice in an answer end it


@pytest.fixture(scope="module", autouse=True)
def short_prompts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "prompt", short_prompt)
        yield


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("tied", True)


@pytest.fixture(scope="module")
def target(model, tiny_decoder):
    return tiny_decoder(*model, max_len=512)


@pytest.fixture(scope="module")
def chat(tiny_tokenizer):
    return ChatFormat(tiny_tokenizer)


@pytest.fixture
def written(monkeypatch):
    """Numbers of the batches that were computed rather than read."""
    numbers, build = [], conversations.Writer

    def spy(target, chat, eos, recipe, number):
        numbers.append(number)
        return build(target, chat, eos, recipe, number)

    monkeypatch.setattr(conversations, "Writer", spy)
    return numbers


def same(a: Conversations, b: Conversations) -> bool:
    return all(torch.equal(column, vars(b)[name]) for name, column in vars(a).items())


def rows_of(found: Conversations) -> list[tuple[list[int], list[bool]]]:
    """(tokens, chosen) of each conversation."""
    lengths = found.lengths.tolist()
    columns = (found.tokens.split(lengths), found.chosen.split(lengths))
    return [(tokens.tolist(), chosen.tolist()) for tokens, chosen in zip(*columns, strict=True)]


def turns_of(row: list[int], chat: ChatFormat) -> list[tuple[str, int, int]]:
    """(who, begin, end) of each turn of a conversation, cut where the template's pieces stand."""
    before, to_reply, to_user = (chat.encode(piece) for piece in chat.pieces())
    assert row[: len(before)] == before
    cuts = [("user", 0, len(before))]
    for i in range(len(row)):
        for who, piece in (("assistant", to_reply), ("user", to_user)):
            if row[i : i + len(piece)] == piece:
                cuts.append((who, i, i + len(piece)))
    cuts.append(("nobody", len(row), len(row)))
    return [(who, end, following) for (who, _, end), (_, following, _) in pairwise(cuts)]


def loops(answer: list[int]) -> bool:
    """Whether the answer's end repeats something that it said before."""
    said = [answer[i : i + LOOP] for i in range(len(answer) - LOOP + 1)]
    return bool(said) and said[-1] in said[:-1]


# --- what is in them -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(target, chat, tmp_path_factory):
    """Conversations in which some answers end by themselves, since a frequent token counts as an end; with the passes
    (batch, width, start) that made them, and the prompts."""
    folder = tmp_path_factory.mktemp("conversations")
    plain = make(target, chat, EOS, SMALL, folder)
    eos = EOS | {int(plain.tokens[plain.chosen].bincount().argsort(descending=True)[4])}
    passes, run_layers = [], target.run_layers

    def spy(x, start, cache):
        passes.append((*x.shape[:2], start))
        return run_layers(x, start, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversations, "_PREFILL", 8)  # so that short prompts take several passes
        patch.setattr(conversations, "_BATCHES_SORTED", 1)  # so that prompts of all lengths are together
        patch.setattr(target, "run_layers", spy)
        found = make(target, chat, eos, RECIPE, folder)
        asked = [row.prompt for row in Writer(target, chat, eos, RECIPE, 0).rows]
    return SimpleNamespace(found=found, eos=eos, passes=passes, asked=asked)


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
def test_conversation_worked_out_by_hand(target, chat, tmp_path, monkeypatch, choice, eos, limit, said):
    monkeypatch.setattr(prompts, "prompt", lambda seed, number: Prompt("qa", ("fig", "plum"), "template"))
    vocab = target.config.vocab
    monkeypatch.setattr(target, "logits", lambda x: F.one_hot(torch.full(x.shape[:1], choice), vocab).float())
    found = make(target, chat, frozenset({eos}), replace(SMALL, batch=1, answer_tokens=limit), tmp_path)
    _, to_reply, to_user = chat.pieces()
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
    assert made.found.fits()


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


def test_batches_share_out_the_prompts_by_length(chat):
    for group in (range(8), range(8, 16)):
        rows = [row for number in group for row in Writer(None, chat, EOS, SMALL, number).rows]
        numbers = range(group[0] * SMALL.batch, (group[-1] + 1) * SMALL.batch)
        assert Counter(row.prompt for row in rows) == Counter(short_prompt(SMALL.seed, number) for number in numbers)
        lengths = [len(row.forced) + sum(map(len, row.later)) for row in rows]
        assert lengths == sorted(lengths)


def test_prompts_that_leave_no_room_for_an_answer_are_left_out(chat):
    narrow = replace(SMALL, length=SMALL.answer_tokens + 30)
    rows = [row for number in range(8) for row in Writer(None, chat, EOS, narrow, number).rows]
    asked = [short_prompt(SMALL.seed, number) for number in range(8 * SMALL.batch)]
    assert Counter(row.prompt for row in rows) == Counter(p for p in asked if len(chat.prompt([], p.turns[0])) <= 30)
    assert 0 < len(rows) < len(asked)


def test_second_turn_that_no_longer_fits_is_not_begun(target, chat, tmp_path, monkeypatch):
    monkeypatch.setattr(conversations, "_BATCHES_SORTED", 1)
    recipe = replace(RECIPE, length=92)
    found = make(target, chat, EOS, recipe, tmp_path)
    asked = [row.prompt for row in Writer(target, chat, EOS, recipe, 0).rows]
    spoken = [sum(who == "assistant" for who, *_ in turns_of(row, chat)) for row, _ in rows_of(found)]
    assert int(found.lengths.max()) <= recipe.length
    assert any(count < len(prompt.turns) for count, prompt in zip(spoken, asked, strict=True))
    assert all(chosen[-1] for _, chosen in rows_of(found))


def test_conversations_are_the_seeds(target, chat, tmp_path):
    first = make(target, chat, EOS, SMALL, tmp_path / "a")
    assert same(first, make(target, chat, EOS, SMALL, tmp_path / "b"))
    assert not same(first, make(target, chat, EOS, replace(SMALL, seed=1), tmp_path / "a"))
    assert len({tuple(row) for row, _ in rows_of(first)}) == SMALL.batch


# --- sets of them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three_rows() -> Conversations:
    lengths = torch.tensor([2, 4, 3], dtype=torch.int32)
    chosen = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool)
    kinds, templates = torch.tensor([5, 0, 2], dtype=torch.int8), torch.tensor([70, 80, 90], dtype=torch.int32)
    return Conversations(torch.arange(10, 19, dtype=torch.int32), chosen, lengths, kinds, templates)


def test_some_conversations_are_kept_whole(three_rows):
    kept = three_rows.keep([True, False, True])
    assert rows_of(kept) == [rows_of(three_rows)[0], rows_of(three_rows)[2]]
    assert (kept.kinds.tolist(), kept.templates.tolist()) == ([5, 2], [70, 90])
    assert same(three_rows.keep([True] * 3), three_rows)
    assert (three_rows.answer_tokens, kept.answer_tokens) == (4, 2)


def test_no_more_conversations_are_drawn_than_it_takes(made):
    made = made.found
    rows, drawn = rows_of(made), {}
    for tokens in (1, 100, 300):
        found = made.drawn(tokens, seed=1)
        drawn[tokens] = rows_of(found)
        assert tokens <= found.answer_tokens < tokens + 2 * RECIPE.answer_tokens
        places = [rows.index(row) for row in drawn[tokens]]
        assert places == sorted(places)
        assert all(row in rows_of(made.drawn(400, seed=1)) for row in drawn[tokens])  # more extend them
    assert drawn[100] != rows_of(made.drawn(100, seed=2))
    assert rows_of(made.drawn(made.answer_tokens + 1, seed=1)) == rows


def test_parts_are_joined_in_their_order(three_rows):
    parts = [three_rows.keep([place == i for place in range(3)]) for i in range(3)]
    assert same(Conversations.joined(parts), three_rows)
    assert rows_of(Conversations.joined(reversed(parts))) == rows_of(three_rows)[::-1]


def test_digest_names_the_tokens_and_which_were_chosen(three_rows):
    assert replace(three_rows).digest() == three_rows.digest()
    others = [replace(three_rows, tokens=three_rows.tokens.flip(0)), replace(three_rows, chosen=~three_rows.chosen)]
    assert len({found.digest() for found in (three_rows, *others, three_rows.keep([True, True, False]))}) == 4


@pytest.mark.parametrize("name", ["tokens", "chosen", "lengths", "kinds", "templates"])
def test_columns_of_other_lengths_do_not_fit(three_rows, name):
    assert three_rows.fits()
    assert not replace(three_rows, **{name: vars(three_rows)[name][:-1]}).fits()


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    monkeypatch.setattr(conversations, "PACKAGED", tmp_path)
    return Checkpoint("small", tmp_path, "ab" * 32, None)


@pytest.mark.parametrize(("most", "stored"), [(2**16 - 1, np.uint16), (2**16, np.int32)])
def test_packaged_conversations_are_read_as_written_in_few_bytes(three_rows, packaged, most, stored):
    three_rows.tokens[4] = most
    path = save_packaged(three_rows, packaged)
    found = load_packaged(packaged)
    assert same(found, three_rows)
    assert [column.dtype for column in vars(found).values()] == [column.dtype for column in vars(three_rows).values()]
    with np.load(path) as content:
        assert content["tokens"].dtype == stored


def test_packaged_conversations_are_for_their_very_model(three_rows, packaged):
    assert load_packaged(packaged) is None
    save_packaged(three_rows, packaged)
    assert load_packaged(replace(packaged, sha256="cd" * 32)) is None
    assert load_packaged(replace(packaged, name="other")) is None
    assert same(load_packaged(packaged), three_rows)


def test_packaged_conversations_may_be_the_first(three_rows, packaged, monkeypatch, tmp_path):
    monkeypatch.setattr(conversations, "PACKAGED", tmp_path / "data")
    save_packaged(three_rows, packaged)
    assert same(load_packaged(packaged), three_rows)


# --- the cache -------------------------------------------------------------------------------------------------------


def batches_in(folder) -> list:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def three_batches(target, chat, tmp_path_factory):
    """A cache with three batches, the recipe that asks for them, and what came out."""
    folder = tmp_path_factory.mktemp("three")
    recipe = SMALL
    for _ in range(3):
        found = make(target, chat, EOS, recipe, folder)
        recipe, asked = replace(SMALL, tokens=found.answer_tokens + 1), recipe
    assert len(batches_in(folder)) == len(found.lengths) // SMALL.batch == 3
    return folder, asked, found


@pytest.fixture
def three(three_batches, tmp_path):
    """The three batches in a cache of the test's own."""
    folder, recipe, found = three_batches
    shutil.copytree(folder, tmp_path / "cache")
    return recipe, found


def test_interrupted_work_goes_on_where_it_stopped_with_the_same_tokens(target, chat, tmp_path, three, written):
    recipe, found = three
    batches_in(tmp_path / "cache")[-1].unlink()
    assert same(make(target, chat, EOS, recipe, tmp_path / "cache"), found)
    assert written == [2]
    assert same(make(target, chat, EOS, recipe, tmp_path / "cache"), found)
    assert written == [2]


def test_fewer_tokens_take_fewer_batches_and_more_extend_them(target, chat, tmp_path, three, written):
    recipe, found = three
    fewer = make(target, chat, EOS, replace(recipe, tokens=1), tmp_path / "cache")
    assert same(fewer, found.keep([i < SMALL.batch for i in range(3 * SMALL.batch)]))
    assert written == []
    more = make(target, chat, EOS, replace(recipe, tokens=found.answer_tokens + 1), tmp_path / "cache")
    assert same(more.keep([i < 3 * SMALL.batch for i in range(4 * SMALL.batch)]), found)
    assert written == [3]


@pytest.mark.parametrize("damage", ["cut short", "empty", "other length", "a column less"])
def test_damaged_batch_is_made_anew(target, chat, tmp_path, three, written, damage):
    from safetensors.torch import load_file, save_file

    recipe, found = three
    path = batches_in(tmp_path / "cache")[1]
    stored = load_file(path)
    if damage == "other length":
        save_file(stored | {"chosen": stored["chosen"][:-1]}, path)
    elif damage == "a column less":
        save_file({name: column for name, column in stored.items() if name != "kinds"}, path)
    else:
        path.write_bytes(path.read_bytes()[: -10 if damage == "cut short" else 0])
    assert same(make(target, chat, EOS, recipe, tmp_path / "cache"), found)
    assert written == [1]
    assert len(batches_in(tmp_path / "cache")) == 3


def test_interrupt_leaves_the_finished_batches_and_no_other_file(target, chat, tmp_path, three, monkeypatch):
    recipe, _ = three
    for path in batches_in(tmp_path / "cache")[1:]:
        path.unlink()

    def save(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", save)
    with pytest.raises(KeyboardInterrupt):
        make(target, chat, EOS, recipe, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["batch-0000.safetensors"]


def test_progress_counts_every_answer_token_made_or_read(target, chat, tmp_path):
    for _ in range(2):
        told: list[int] = []
        found = make(target, chat, EOS, SMALL, tmp_path, told.append)
        assert sum(told) == found.answer_tokens


def test_models_of_one_name_but_other_weights_do_not_share_conversations(tiny_model, tiny_decoder, chat, tmp_path):
    first, second = (tiny_decoder(*tiny_model(kind), name="folder", max_len=512) for kind in ("tied", "vicuna"))
    of_first = make(first, chat, EOS, SMALL, tmp_path, sha256="aa")
    of_second = make(second, chat, EOS, SMALL, tmp_path, sha256="bb")
    assert not same(of_first, of_second)
    assert same(make(first, chat, EOS, SMALL, tmp_path, sha256="aa"), of_first)


def test_other_grammars_do_not_share_conversations(target, chat, tmp_path, three, written, monkeypatch):
    recipe, _ = three
    monkeypatch.setattr(prompts, "digest", lambda: "changed")
    make(target, chat, EOS, replace(recipe, tokens=1), tmp_path / "cache")
    assert written == [0]


@pytest.mark.parametrize("length", [8, SMALL.answer_tokens + 8])
def test_template_that_leaves_no_room_for_answers_is_a_user_error_not_an_endless_loop(target, chat, tmp_path, length):
    with pytest.raises(UserError, match=f"comes to no answer within {length} tokens"):
        make(target, chat, EOS, replace(SMALL, length=length), tmp_path)


@pytest.mark.parametrize(("number", "told"), [(28, "no space left in"), (13, "cannot write to the cache")])
def test_cache_that_cannot_take_a_batch_names_the_remedy(target, chat, tmp_path, monkeypatch, number, told):
    def save(tensors, path):
        path.write_bytes(b"half")
        raise RuntimeError(f"Error while serializing: I/O error: it went wrong (os error {number})")

    monkeypatch.setattr("safetensors.torch.save_file", save)
    with pytest.raises(UserError, match=f"{told}.*ROOBENCH_CACHE"):
        make(target, chat, EOS, SMALL, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
