"""Self-made conversations: the target's answers and nothing else is marked as chosen; the cache is never in the way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bench.errors import UserError
from bench.questions import ChatFormat
from bench.train import conversations
from bench.train.conversations import OPENINGS, Recipe, make

EOS = frozenset({258})
RECIPE = Recipe(tokens=1, batch=4, length=256, user_tokens=6, long_user_tokens=9, answer_tokens=40)
SMALL = replace(RECIPE, batch=2, length=144, answer_tokens=24)  # where the content does not matter


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
    numbers, build = [], conversations._Writer

    def spy(target, chat, eos, recipe, number):
        numbers.append(number)
        return build(target, chat, eos, recipe, number)

    monkeypatch.setattr(conversations, "_Writer", spy)
    return numbers


def same(a, b) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.chosen, b.chosen)


def turns_of(row: list[int], chat: ChatFormat) -> list[tuple[str, int, int]]:
    """(who, begin, end) of each whole turn of a conversation, cut where the template's pieces stand."""
    before, to_reply, to_user = (chat.encode(piece) for piece in chat.pieces())
    assert row[: len(before)] == before
    cuts = [("user", 0, len(before))]
    for i in range(len(row)):
        for who, piece in (("assistant", to_reply), ("user", to_user)):
            if row[i : i + len(piece)] == piece:
                cuts.append((who, i, i + len(piece)))
    return [(who, end, following) for (who, _, end), (_, following, _) in pairwise(cuts)]


# --- what is in them -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(target, chat, tmp_path_factory):
    """Conversations in which many answers end by themselves, since a frequent token counts as an end."""
    folder = tmp_path_factory.mktemp("conversations")
    plain = make(target, chat, EOS, SMALL, folder)
    frequent = int(plain.tokens[plain.chosen].bincount().argmax())
    return make(target, chat, EOS | {frequent}, RECIPE, folder), frequent


def test_chosen_tokens_are_transformers_greedy_choices(made, hf_logits, model):
    found, _ = made
    for row, chosen in zip(found.tokens, found.chosen, strict=True):
        greedy = hf_logits(model[1], row.tolist()).argmax(-1)
        assert chosen.any()
        assert not chosen[0]
        at = chosen.nonzero()[:, 0]
        assert torch.equal(greedy[at - 1], row[at].long())


def test_all_of_an_answer_is_chosen_and_nothing_of_user_or_template(made, chat):
    found, frequent = made
    ended_by_itself = 0
    for tokens, chosen in zip(found.tokens.tolist(), found.chosen.tolist(), strict=True):
        for who, begin, end in turns_of(tokens, chat):
            assert set(chosen[begin:end]) <= {who == "assistant"}
            if who == "assistant":
                assert 0 < end - begin <= RECIPE.answer_tokens
                assert frequent not in tokens[begin : end - 1]
                # The template's own first token is chosen only where the target ended its answer with it.
                assert not any(chosen[end + 1 : end + len(chat.encode(chat.pieces()[2]))])
                ended_by_itself += tokens[end - 1] == frequent
        assert not any(chosen[: len(chat.encode(chat.pieces()[0]))])
    assert ended_by_itself > 0
    assert found.answer_tokens == int(found.chosen.sum())


def test_answer_that_ends_with_the_templates_own_token_is_not_ended_twice(target, chat, tmp_path, monkeypatch):
    before, to_reply, _ = (chat.encode(piece) for piece in chat.pieces())
    monkeypatch.setattr(conversations._Writer, "_sample", lambda self, logits: [to_reply[0]] * len(logits))
    found = make(target, chat, EOS, replace(SMALL, batch=1), tmp_path)
    row = found.tokens[0].tolist()
    lines = [chat.encode(line) for line in OPENINGS.read_text().splitlines()]
    (opening,) = (line for line in lines if row[len(before) :][: len(line) + 1] == [*line, to_reply[0]])
    assert row[len(before) + len(opening) :][: len(to_reply)] == to_reply  # the end token once, the rest forced


def test_user_turns_begin_with_an_opening_and_keep_their_length(made, chat):
    found, _ = made
    lines = OPENINGS.read_text(encoding="utf-8").splitlines()
    seen = set()
    for tokens in found.tokens.tolist():
        for who, begin, end in turns_of(tokens, chat):
            if who == "user":
                text = chat.tokenizer.decode(tokens[begin:end])
                opening = max((line for line in lines if text.startswith(line)), key=len)
                assert end - begin <= len(chat.encode(opening)) + RECIPE.long_user_tokens
                seen.add(opening)
    assert len(seen) > 2


def test_looping_answer_is_ended(target, chat, tmp_path):
    patient = replace(RECIPE, batch=2, length=400, answer_tokens=300)
    found = make(target, chat, EOS, patient, tmp_path)
    looped = 0
    for tokens in found.tokens.tolist():
        for who, begin, end in turns_of(tokens, chat):
            if who == "assistant":
                grams = [tuple(tokens[i : i + 12]) for i in range(begin, end - 11)]
                assert len(set(grams[:-1])) == len(grams[:-1])
                looped += len(grams) > 1 and grams[-1] in grams[:-1]
    assert looped > 0


def test_conversations_are_the_seeds(target, chat, tmp_path):
    first = make(target, chat, EOS, SMALL, tmp_path / "a")
    assert same(first, make(target, chat, EOS, SMALL, tmp_path / "b"))
    assert not same(first, make(target, chat, EOS, replace(SMALL, seed=1), tmp_path / "a"))
    assert len({tuple(row) for row in first.tokens.tolist()}) == SMALL.batch


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
    assert len(batches_in(folder)) == len(found.tokens) // SMALL.batch == 3
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
    assert torch.equal(fewer.tokens, found.tokens[: SMALL.batch])
    assert written == []


@pytest.mark.parametrize("damage", ["cut short", "empty", "other shape"])
def test_damaged_batch_is_made_anew(target, chat, tmp_path, three, written, damage):
    from safetensors.torch import save_file

    recipe, found = three
    path = batches_in(tmp_path / "cache")[1]
    if damage == "other shape":
        save_file({"tokens": torch.zeros(2, 3, dtype=torch.int32), "chosen": torch.zeros(2, 3)}, path)
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


def test_template_that_leaves_no_room_for_answers_is_a_user_error_not_an_endless_loop(target, chat, tmp_path):
    with pytest.raises(UserError, match="comes to no answer within 8 tokens"):
        make(target, chat, EOS, replace(SMALL, length=8), tmp_path)


@pytest.mark.parametrize(("number", "told"), [(28, "no space left in"), (13, "cannot write to the cache")])
def test_cache_that_cannot_take_a_batch_names_the_remedy(target, chat, tmp_path, monkeypatch, number, told):
    def save(tensors, path):
        path.write_bytes(b"half")
        raise RuntimeError(f"Error while serializing: I/O error: it went wrong (os error {number})")

    monkeypatch.setattr("safetensors.torch.save_file", save)
    with pytest.raises(UserError, match=f"{told}.*ROOBENCH_CACHE"):
        make(target, chat, EOS, SMALL, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
