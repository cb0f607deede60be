"""The shared steps with scripted drafts: exact tokens and counts, worked out from transformers' own answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.records import Step
from methods.base import Draft, NoKnobs, SpeculativeMethod, cut_at_eos, decode

LIMIT = 12
NEVER = frozenset()


class Scripted(SpeculativeMethod):
    """Proposes what `script` says for the part of the reference answer that comes next."""

    def __init__(self, target, script: Callable[[list[int], int], list[int]], answer: list[int], prompt_len: int):
        super().__init__(target, NoKnobs())
        self.script, self.answer, self.prompt_len = script, answer, prompt_len
        self.commits: list[tuple[int, int]] = []
        self.rooms: list[int] = []

    def propose(self, room):
        self.rooms.append(room)
        return Draft(self.script(self.answer[len(self.context) - self.prompt_len :], room))

    def commit(self, accepted, final_states):
        self.commits.append((accepted, final_states.shape[1]))


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
    assert method.length == len(method.context) - 1
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


def test_a_second_question_starts_afresh(scene, hf_greedy, random_ids):
    model, decoder, prompt, reference = scene
    method = Scripted(decoder, right(3), reference, len(prompt))
    decode(method, prompt, LIMIT, NEVER)
    second = random_ids(5, seed=8)
    method.answer, method.prompt_len = hf_greedy(model, second, 40), len(second)
    answer = decode(method, second, LIMIT, NEVER)
    assert method.context == second + answer.token_ids == second + method.answer[:LIMIT]
    assert method.length == len(second) + LIMIT - 1
    assert [step.accepted for step in answer.steps] == [3, 3, 2]


def test_more_drafts_than_room_are_refused(scene):
    _, decoder, prompt, reference = scene
    greedy = Scripted(decoder, lambda coming, room: coming[: room + 1], reference, len(prompt))
    with pytest.raises(AssertionError, match="11 drafts proposed with room for 10"):
        decode(greedy, prompt, LIMIT, NEVER)


def test_a_step_that_overshoots_the_limit_is_refused(scene):
    _, decoder, prompt, reference = scene

    class Overshooting(Scripted):
        def step(self, room):
            return super().step(room + 2)

    with pytest.raises(AssertionError, match="Overshooting emitted 13 tokens with room for 12"):
        decode(Overshooting(decoder, right(3), reference, len(prompt)), prompt, LIMIT, NEVER)


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
    assert cut_at_eos(step, frozenset({9})) == kept


def test_hooks_are_handed_transformers_states(scene):
    import torch

    model, decoder, prompt, reference = scene
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    class Listening(Scripted):
        exit_layer = 2

        def begin(self, exit_states, final_states):
            seen.append((len(self.context), exit_states, final_states))

        def commit(self, accepted, final_states):
            seen.append((len(self.context), None, final_states))

    decode(Listening(decoder, right_then_wrong(2, 1), reference, len(prompt)), prompt, LIMIT, NEVER)
    with torch.inference_mode():
        out = model(torch.tensor([prompt + reference[:LIMIT]]), output_hidden_states=True)
    last = out.hidden_states[-1][0]  # behind the final norm
    torch.testing.assert_close(seen[0][1][0], out.hidden_states[2][0, : len(prompt)], rtol=0, atol=1e-4)
    assert [length for length, _, _ in seen] == [10, 13, 16, 19, 21]
    for length, _, final in seen:  # the newest token is not yet read
        rows = last[length - 1 - final.shape[1] : length - 1]
        torch.testing.assert_close(decoder.final_norm(final[0]), rows, rtol=0, atol=1e-4)
