"""The shared steps with scripted drafts: exact tokens and counts, worked out from transformers' own answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.drafting import loop
from bench.drafting.loop import decode, decoding
from bench.drafting.method import NoKnobs
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft, Step
from bench.drafting.tree import tree_of
from bench.drafting.verify import typical
from methods.vanilla import Vanilla
from tests.fakes import OneSequence

LIMIT = 12
NEVER = frozenset()


class Scripted(OneSequence):
    """Proposes what `script` says for the part of the reference answer that comes next."""

    def __init__(self, target, script: Callable[[list[int], int], list[int]], answer: list[int], prompt_len: int):
        super().__init__(target, NoKnobs())
        self.script, self.answer, self.prompt_len = script, answer, prompt_len
        self.commits: list[tuple[int, int]] = []
        self.rooms: list[int] = []

    def draft(self, room):
        self.rooms.append(room)
        return Draft(self.script(self.answer[len(self.context) - self.prompt_len :], room))

    def observed(self, outcome):
        self.commits.append((len(outcome.accepted), outcome.kept.final.shape[1]))


def wrong(tokens):
    return [(token + 1) % 272 for token in tokens]


def right(width):
    return lambda coming, room: coming[: min(width, room)]


def right_then_wrong(good, bad):
    return lambda coming, room: [*coming[:good], *wrong(coming[good : good + bad])][:room]


def wrong_in_the_middle(coming, room):
    return [*coming[:1], *wrong(coming[1:2]), *coming[2:4]][:room]


# Drafts by script -> what each step drafted and kept of the 11 tokens that follow the first.
SCRIPTS = {
    "nothing": (right(0), [0] * 11, [0] * 11),
    "never right": (right_then_wrong(0, 3), [3] * 8 + [2, 1, 0], [0] * 11),
    "one, right": (right(1), [1] * 5 + [0], [1] * 5 + [0]),
    "three, right": (right(3), [3, 3, 2], [3, 3, 2]),
    "all at once": (right(100), [10], [10]),
    "right once": (right_then_wrong(1, 2), [3, 3, 3, 3, 2, 0], [1, 1, 1, 1, 1, 0]),
    "right twice": (right_then_wrong(2, 1), [3, 3, 3, 1], [2, 2, 2, 1]),
    "wrong in the middle": (wrong_in_the_middle, [4, 4, 4, 4, 2, 0], [1, 1, 1, 1, 1, 0]),
}


@pytest.fixture(params=["tied", "llama3"])
def scene(request, tiny_model, tiny_decoder, random_ids, hf_greedy):
    """(hf_model, decoder, prompt, reference answer of 40 tokens)."""
    config, model = tiny_model(request.param)
    prompt = random_ids(9, seed=4)
    return model, tiny_decoder(config, model), prompt, hf_greedy(model, prompt, 40)


@pytest.mark.parametrize(("script", "drafted", "accepted"), SCRIPTS.values(), ids=SCRIPTS)
def test_scripted_drafts_give_the_exact_steps(script, drafted, accepted, scene):
    _, decoder, prompt, reference = scene
    method = Scripted(decoder, script, reference, len(prompt))
    answer = decode(method, prompt, LIMIT, NEVER)
    assert answer.token_ids == reference[:LIMIT]
    assert [step.drafted for step in answer.steps] == drafted
    assert [step.accepted for step in answer.steps] == accepted
    assert [len(step.emitted) for step in answer.steps] == [count + 1 for count in accepted]
    assert method.commits == [(count, count + 1) for count in accepted]
    assert method.context == prompt + reference[:LIMIT]
    assert method.sequence.length == len(method.context) - 1
    left = LIMIT - 1
    for room, count in zip(method.rooms, accepted, strict=True):  # one token is always left for the bonus
        assert room == left - 1
        left -= count + 1


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_small_limit_leaves_room_for_few_drafts(limit, scene):
    _, decoder, prompt, reference = scene
    answer = decode(Scripted(decoder, right(5), reference, len(prompt)), prompt, limit, NEVER)
    assert answer.token_ids == reference[:limit]
    assert [(step.drafted, step.accepted) for step in answer.steps] == {1: [], 2: [(0, 0)], 3: [(1, 1)]}[limit]


@pytest.mark.parametrize(("after", "pauses"), [(1, 9), (3, 3), (4, 3), (100, 1)])
def test_an_answer_with_pauses_is_the_same_and_its_pauses_take_no_time(after, pauses, scene, monkeypatch):
    """A clock that only goes on in pauses: nothing else takes time."""
    _, target, prompt, _ = scene
    now = [0.0]
    monkeypatch.setattr(loop, "now_s", lambda device: now[0])
    method = Vanilla(target, NoKnobs())
    whole = decode(method, prompt, 9, frozenset())
    going, paused = decoding(method, prompt, 9, frozenset(), None, after), 0
    answer = None
    while answer is None:
        try:
            so_far = next(going).token_ids
            assert so_far == whole.token_ids[: len(so_far)]
            paused += 1
            now[0] += 1000
        except StopIteration as ended:
            answer = ended.value
    assert answer.token_ids == whole.token_ids
    assert len(answer.steps) == len(whole.steps) == 8
    assert paused == pauses
    assert answer.prefill_s == answer.decode_s == 0


def test_a_second_question_starts_afresh(scene, hf_greedy, random_ids):
    model, decoder, prompt, reference = scene
    method = Scripted(decoder, right(3), reference, len(prompt))
    decode(method, prompt, LIMIT, NEVER)
    second = random_ids(5, seed=8)
    method.answer, method.prompt_len = hf_greedy(model, second, 40), len(second)
    answer = decode(method, second, LIMIT, NEVER)
    assert method.context == second + answer.token_ids == second + method.answer[:LIMIT]
    assert method.sequence.length == len(second) + LIMIT - 1
    assert [step.accepted for step in answer.steps] == [3, 3, 2]


def test_more_drafts_than_room_are_refused(scene):
    _, decoder, prompt, reference = scene
    greedy = Scripted(decoder, lambda coming, room: coming[: room + 1], reference, len(prompt))
    with pytest.raises(AssertionError, match="11 drafts in a row proposed with a budget of 10"):
        decode(greedy, prompt, LIMIT, NEVER)


def test_a_step_that_overshoots_the_limit_is_refused(scene, monkeypatch):
    _, decoder, prompt, reference = scene
    step = loop.speculate
    monkeypatch.setattr(loop, "speculate", lambda method, some, budgets, *_: step(method, some, [budgets[0] + 2]))
    with pytest.raises(AssertionError, match="Scripted emitted 13 tokens with a limit of 12"):
        decode(Scripted(decoder, right(3), reference, len(prompt)), prompt, LIMIT, NEVER)


def first_new(reference: list[int], at: int) -> int:
    """The first position from `at` on whose token does not occur before."""
    return next(i for i in range(at, len(reference)) if reference[i] not in reference[:i])


def test_eos_among_the_drafts_cuts_the_step(scene):
    _, decoder, prompt, reference = scene
    end = first_new(reference, 2)
    eos = frozenset({reference[end]})
    answer = decode(Scripted(decoder, right(end + 3), reference, len(prompt)), prompt, 40, eos)
    assert answer.token_ids == reference[: end + 1]
    assert [(s.emitted, s.drafted, s.accepted) for s in answer.steps] == [(reference[1 : end + 1], end + 3, end)]


def test_eos_as_the_bonus_keeps_the_step_whole(scene):
    _, decoder, prompt, reference = scene
    end = first_new(reference, 2)
    eos = frozenset({reference[end]})
    answer = decode(Scripted(decoder, right_then_wrong(end - 1, 2), reference, len(prompt)), prompt, 40, eos)
    assert answer.token_ids == reference[: end + 1]
    assert [(s.emitted, s.drafted, s.accepted) for s in answer.steps] == [(reference[1 : end + 1], end + 1, end - 1)]


def test_eos_as_the_first_token_needs_no_step(scene):
    _, decoder, prompt, reference = scene
    answer = decode(Scripted(decoder, right(3), reference, len(prompt)), prompt, 40, frozenset({reference[0]}))
    assert (answer.token_ids, answer.steps, answer.finish(frozenset({reference[0]}))) == ([reference[0]], [], "eos")


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (Step([4, 5, 6, 7], 5, 3), Step([4, 5, 6, 7], 5, 3)),
        (Step([9, 5, 6, 7], 5, 3), Step([9], 5, 1)),
        (Step([4, 9, 6, 9], 5, 3), Step([4, 9], 5, 2)),
        (Step([4, 5, 9, 7], 3, 3), Step([4, 5, 9], 3, 3)),
        (Step([4, 5, 6, 9], 3, 3), Step([4, 5, 6, 9], 3, 3)),
        (Step([9], 2, 0), Step([9], 2, 0)),
    ],
)
def test_what_follows_the_first_eos_is_not_counted(step, kept):
    assert step.cut_at(frozenset({9})) == kept


def test_hooks_are_handed_transformers_states(scene):
    model, decoder, prompt, reference = scene
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    class Listening(Scripted):
        taps = (2,)

        def open(self, sequence, prompt):
            super().open(sequence, prompt)
            seen.append((len(self.context), prompt.taps[2], prompt.final))

        def observed(self, outcome):
            seen.append((len(self.context), outcome.kept.taps[2], outcome.kept.final))

    decode(Listening(decoder, right_then_wrong(2, 1), reference, len(prompt)), prompt, LIMIT, NEVER)
    with torch.inference_mode():
        out = model(torch.tensor([prompt + reference[:LIMIT]]), output_hidden_states=True)
    last = out.hidden_states[-1][0]  # behind the final norm
    assert [length for length, _, _ in seen] == [10, 13, 16, 19, 21]
    for length, tapped, final in seen:  # the newest token is not yet read
        rows = slice(length - 1 - final.shape[1], length - 1)
        torch.testing.assert_close(final[0], last[rows], rtol=0, atol=1e-4)
        torch.testing.assert_close(tapped[0], out.hidden_states[2][0, rows], rtol=0, atol=1e-4)


# --- trees -----------------------------------------------------------------------------------------------------------


class ScriptedTree(Scripted):
    """The script gives (token, parent) pairs; drafts deeper than there is room for are left out."""

    def draft(self, room):
        self.rooms.append(room)
        pairs = cut(self.script(self.answer[len(self.context) - self.prompt_len :], room), room)
        return Draft([token for token, _ in pairs], [parent for _, parent in pairs])

    def observed(self, outcome):
        self.commits.append((list(outcome.accepted), outcome.kept.final.shape[1]))


def cut(pairs, room):
    """Without what is deeper than `room`; drafts are numbered level by level, so numbers stay."""
    depths: list[int] = []
    for _, parent in pairs:
        depths.append(1 if parent == -1 else depths[parent] + 1)
    assert depths == sorted(depths)
    return [pair for pair, depth in zip(pairs, depths, strict=True) if depth <= room]


def tree(shape: str, *parents: int):
    """Drafts as `shape` says, a letter each: r is the right token at its depth, x and y are two wrong ones."""

    def script(coming, room):
        depths: list[int] = []
        pairs = []
        for letter, parent in zip(shape, parents, strict=True):
            depths.append(0 if parent == -1 else depths[parent] + 1)
            if depths[-1] < len(coming):
                pairs.append(((coming[depths[-1]] + "rxy".index(letter)) % 272, parent))
        return pairs

    return script


# Trees by script -> of each step, how many drafts it had and which of them it kept.
TREES = {
    "never right": (tree("xyrr", -1, -1, 0, 1), [4] * 9 + [2, 0], [[]] * 11),
    "siblings, right at once": (tree("rxy", -1, -1, -1), [3] * 5 + [0], [[0]] * 5 + [[]]),
    "siblings, right at last": (tree("yxr", -1, -1, -1), [3] * 5 + [0], [[2]] * 5 + [[]]),
    "right all the way": (tree("rxrx", -1, -1, 0, 0), [4, 4, 4, 2], [[0, 2], [0, 2], [0, 2], [0]]),
    "right on the second sibling": (tree("xrrr", -1, -1, 0, 1), [4, 4, 4, 2], [[1, 3], [1, 3], [1, 3], [1]]),
    "right, then wrong": (tree("rxxy", -1, -1, 0, 0), [4] * 5 + [0], [[0]] * 5 + [[]]),
    "right behind a wrong one": (tree("rxxyrr", -1, -1, 0, 0, 2, 3), [6, 6, 6, 6, 4, 0], [[0]] * 5 + [[]]),
    "a deep branch": (
        tree("xrxrxrxr", -1, -1, 1, 1, 3, 3, 5, 5),
        [8, 8, 0],
        [[1, 3, 5, 7], [1, 3, 5, 7], []],
    ),
    "a deep branch that goes wrong": (
        tree("xrrrxyxrr", -1, -1, 0, 1, 2, 3, 3, 5, 6),
        [9, 9, 9, 2],
        [[1, 3], [1, 3], [1, 3], [1]],
    ),
    "a short path beside a long one": (tree("rxrrr", -1, -1, 0, 1, 3), [5, 5, 5, 2], [[0, 2], [0, 2], [0, 2], [0]]),
}


@pytest.mark.parametrize(("script", "drafted", "kept"), TREES.values(), ids=TREES)
def test_scripted_trees_give_the_exact_steps(script, drafted, kept, scene):
    _, decoder, prompt, reference = scene
    method = ScriptedTree(decoder, script, reference, len(prompt))
    answer = decode(method, prompt, LIMIT, NEVER)
    assert answer.token_ids == reference[:LIMIT]
    assert [step.drafted for step in answer.steps] == drafted
    assert [step.accepted for step in answer.steps] == [len(path) for path in kept]
    assert method.commits == [(path, len(path) + 1) for path in kept]
    assert [len(step.emitted) for step in answer.steps] == [len(path) + 1 for path in kept]
    assert method.context == prompt + reference[:LIMIT]
    assert method.sequence.length == len(method.context) - 1
    left = LIMIT - 1
    for room, path in zip(method.rooms, kept, strict=True):
        assert room == left - 1
        left -= len(path) + 1


@pytest.mark.parametrize("plausible", [None, (0.09, 0.3)], ids=["lossless", "typical"])
@pytest.mark.parametrize("name", TREES)
def test_samples_near_temperature_0_are_the_greedy_answer(name, plausible, scene):
    _, decoder, prompt, reference = scene
    script, drafted, kept = TREES[name]
    method = ScriptedTree(decoder, script, reference, len(prompt))
    if plausible is not None:
        method.verification = lambda sampler: typical(sampler, *plausible)
    answer = decode(method, prompt, LIMIT, NEVER, Sampler(1e-4))
    assert answer.token_ids == reference[:LIMIT]
    assert [step.drafted for step in answer.steps] == drafted
    assert [path for path, _ in method.commits] == kept


def test_a_tree_may_have_more_drafts_than_there_is_room_for_tokens(scene):
    _, decoder, prompt, reference = scene
    wide = ScriptedTree(decoder, lambda coming, room: [(i, -1) for i in range(100)], reference, len(prompt))
    answer = decode(wide, prompt, 3, NEVER)
    assert answer.token_ids == reference[:3]
    assert answer.steps[0].drafted == 100


@pytest.mark.parametrize("room", [0, 3, 10])
def test_a_tree_deeper_than_room_is_refused(room, scene):
    _, decoder, prompt, reference = scene

    class Deep(Scripted):
        def draft(self, room):
            return Draft([5] * (room + 3), [-1, -1, *range(1, room + 2)])

    with pytest.raises(AssertionError, match=f"{room + 2} drafts in a row proposed with a budget of {room}"):
        decode(Deep(decoder, None, reference, len(prompt)), prompt, room + 2, NEVER)


def test_eos_inside_an_accepted_path_cuts_the_step(scene):
    _, decoder, prompt, reference = scene
    end = first_new(reference, 2)
    eos = frozenset({reference[end]})
    deep = end + 2
    script = tree("xr" * deep, -1, -1, *(1 + 2 * (i // 2) for i in range(2 * deep - 2)))
    method = ScriptedTree(decoder, script, reference, len(prompt))
    answer = decode(method, prompt, 40, eos)
    assert method.commits == [(list(range(1, 2 * deep, 2)), deep + 1)]
    assert answer.token_ids == reference[: end + 1]
    assert [(s.emitted, s.drafted, s.accepted) for s in answer.steps] == [(reference[1 : end + 1], 2 * deep, end)]
    assert answer.finish(eos) == "eos"


class Resumed(ScriptedTree):
    """Runs the target's first two layers itself, level by level, and hands their states over."""

    def draft(self, room):
        draft = super().draft(room)
        parents = list(draft.parents)
        rows, states = [self.context[-1], *draft.tokens], []
        depths = draft.tree.depths
        for depth in range(draft.tree.depth + 1):
            level = [row for row in range(len(rows)) if depths[row] == depth]
            places = tree_of(parents[: level[-1]]).places(self.sequence.length, self.target.device, level[0])
            x = self.target.embed([rows[row] for row in level])
            states.append(self.target.run_layers(x, places, self.sequence.cache, 0, 2))
        return Draft(draft.tokens, parents, states=torch.cat(states, dim=1), resume_layer=2)


@pytest.mark.parametrize("base", [ScriptedTree, Resumed])
@pytest.mark.parametrize("name", ["never right", "right on the second sibling", "a deep branch", "right, then wrong"])
def test_states_of_accepted_paths_are_transformers(name, base, scene):
    """States of later steps are right only if the cache kept the rows of the paths before, in all layers."""
    model, decoder, prompt, reference = scene
    script, _, kept = TREES[name]
    seen: list[tuple[int, torch.Tensor]] = []

    class Listening(base):
        def observed(self, outcome):
            super().observed(outcome)
            seen.append((len(self.context), outcome.kept.final))

    method = Listening(decoder, script, reference, len(prompt))
    assert decode(method, prompt, LIMIT, NEVER).token_ids == reference[:LIMIT]
    assert [path for path, _ in method.commits] == kept
    with torch.inference_mode():
        out = model(torch.tensor([prompt + reference[:LIMIT]]), output_hidden_states=True)
    for (length, final), path in zip(seen, kept, strict=True):
        assert final.shape == (1, len(path) + 1, 48)
        rows = out.hidden_states[-1][0, length - 2 - len(path) : length - 1]
        torch.testing.assert_close(final[0], rows, rtol=0, atol=1e-4)
