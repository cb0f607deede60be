"""SuffixDecoding drafts what a literal reading of paper and public code drafts, string by string."""

from __future__ import annotations

import random
from collections import Counter

import pytest

import methods
from bench.drafting.loop import decode
from bench.drafting.sequence import Draft, Outcome, Sequence
from bench.errors import UserError
from methods.suffix import Suffix


class Strings:
    """Every string of up to `depth` tokens in some texts: how often it occurs, and where it ends last."""

    def __init__(self, texts: list[list[int]], depth: int):
        self.counts: Counter[tuple[int, ...]] = Counter()
        self.latest: dict[tuple[int, ...], tuple[int, int]] = {}
        for number, text in enumerate(texts):
            for begin in range(len(text) + 1):
                for end in range(begin, min(begin + depth, len(text)) + 1):
                    string = tuple(text[begin:end])
                    self.counts[string] += bool(string)
                    self.latest[string] = max(self.latest.get(string, (0, 0)), (number, end))
        self.counts[()] = sum(map(len, texts))
        self.alphabet = sorted({token for text in texts for token in text})

    def children(self, string: tuple[int, ...]) -> list[int]:
        """What follows, most frequent first, of equally frequent ones the one seen last."""
        found = [token for token in self.alphabet if self.counts[*string, token]]
        return sorted(
            found, key=lambda token: (-self.counts[*string, token], [-n for n in self.latest[*string, token]])
        )


def path(strings: Strings, string: tuple[int, ...], most: int, least: float) -> tuple[list, list, list]:
    tokens, chances, chance = [], [], 1.0
    while len(tokens) < most and (children := strings.children(string)):
        chance *= strings.counts[*string, children[0]] / strings.counts[string]
        if chance < least:
            break
        tokens.append(children[0])
        chances.append(chance)
        string = *string, children[0]
    return tokens, list(range(-1, len(tokens) - 1)), chances


def tree(strings: Strings, string: tuple[int, ...], most: int, least: float) -> tuple[list, list, list]:
    tokens, parents, chances, reach = [], [], [], []

    def grow(parent: int, string: tuple[int, ...], chance: float) -> None:
        for token in strings.children(string):
            following = chance * strings.counts[*string, token] / strings.counts[string]
            if following >= least:
                reach.append((following, parent, (*string, token)))

    grow(-1, string, 1.0)
    while reach and len(tokens) < most:
        best = max(reach, key=lambda item: item[0])  # the first of equal ones
        reach.remove(best)
        tokens.append(best[2][-1])
        parents.append(best[1])
        chances.append(best[0])
        grow(len(tokens) - 1, best[2], best[0])
    return tokens, parents, chances


def literal(texts: list[list[int]], context: list[int], config: object) -> tuple[float, list, list]:
    """Of all lengths of match, the continuation with the best sum of probabilities.

    ArcticInference leaves out the match of the whole context, for no reason that is stated.
    """
    strings, walk = Strings(texts, config.depth), tree if config.shape == "tree" else path
    best = 0.0, [], []
    for length in range(1, min(len(context), config.depth) + 1):
        string = tuple(context[-length:])
        if not strings.counts[string]:
            break
        most = min(config.tokens, int(config.factor * length + 1e-6))
        tokens, parents, chances = walk(strings, string, most, config.probability)
        if tokens and sum(chances) >= best[0]:
            best = sum(chances), tokens, parents
    return best


def random_text(rng: random.Random) -> list[int]:
    alphabet = rng.randint(2, 4)
    return [rng.randrange(alphabet) for _ in range(rng.randint(1, 30))]


@pytest.mark.parametrize("shape", ["path", "tree"])
def test_drafts_are_those_of_a_literal_reading(shape):
    rng, some = random.Random(0), 0
    for _ in range(1000):
        text = random_text(rng)
        knobs = f"depth={rng.randint(2, 9)},factor={rng.choice((1.0, 1.5, 3.0))},probability={rng.choice((0.1, 0.3))}"
        method = Suffix(None, methods.parse(f"suffix:arctic,{knobs},shape={shape}").config)
        _, tokens, parents = literal([text], text, method.config)
        draft = method.propose_text(text, 99)
        assert (list(draft.tokens), list(draft.tree.parents)) == (tokens, parents)
        some += bool(tokens)
    assert some > 700


def answered(method: Suffix, prompt: list[int], answer: list[int]) -> Sequence:
    """A question whose answer came without drafts."""
    sequence = Sequence([*prompt, answer[0]], len(prompt), None)
    method.open(sequence, None)
    for token in answer[1:]:
        method.propose([sequence], [9])
        sequence.context.append(token)
        method.observe([sequence], [Outcome(Draft([]), [], token, None, None)])
    return sequence


def test_earlier_answers_are_looked_in_and_the_better_sum_wins():
    rng, from_earlier = random.Random(1), 0
    for _ in range(200):
        label = f"suffix:arctic,run,depth={rng.randint(3, 9)},factor=2"
        method = Suffix(None, methods.parse(label).config)
        earlier = [random_text(rng) for _ in range(rng.randint(1, 4))]
        for answer in earlier:
            answered(method, [7, 7], answer)
        prompt, answer = random_text(rng), random_text(rng)
        sequence = answered(method, prompt, answer)
        text = sequence.context
        own = literal([text], text, method.config)
        other = literal(earlier, text, method.config)
        (draft,) = method.propose([sequence], [99])
        assert list(draft.tokens) == (own if own[0] >= other[0] else other)[1]
        from_earlier += own[0] < other[0]
    assert from_earlier > 20


def test_what_is_remembered_is_forgotten_between_rounds_and_by_age():
    answer = [1, 2, 3, 4, 5, 6]

    def recalled(method: Suffix) -> list[int]:
        sequence = Sequence([9, 1, 2, 3], 3, None)
        method.open(sequence, None)
        (draft,) = method.propose([sequence], [9])
        return list(draft.tokens)

    method = Suffix(None, methods.parse("suffix:run,stop=never,answers=2").config)
    answered(method, [0], answer)
    assert recalled(method) == [4, 5, 6]
    method.forget()
    assert recalled(method) == []
    answered(method, [0], answer)
    for _ in range(3):
        answered(method, [0], [8, 8, 8])
    assert recalled(method) == []

    method = Suffix(None, methods.parse("suffix:stop=never").config)
    answered(method, [0], answer)
    assert (method.memory, recalled(method)) == ("question", [])
    assert Suffix(None, methods.parse("suffix:run,stop=never").config).memory == "run"


def test_nothing_behind_the_end_token_is_remembered(tiny_model, tiny_decoder, hf_greedy, random_ids, monkeypatch):
    config, model = tiny_model("tied", faint=True)
    method = Suffix(tiny_decoder(config, model), methods.parse("suffix:run,stop=never").config)
    last, behind = [], 0
    observe = Suffix.observe
    monkeypatch.setattr(Suffix, "observe", lambda self, *step: last.append(step[1][0].emitted) or observe(self, *step))
    start = random_ids(12, seed=1)
    text = start + hf_greedy(model, start, 120)
    for end in range(40, 120, 4):
        method.forget()
        eos = frozenset({text[end + 9]})
        answer = decode(method, text[:end], 30, eos).token_ids
        remembered, begin = method.latest[0]
        assert remembered[begin:] == answer == hf_greedy(model, text[:end], 30)[: len(answer)]
        behind += bool(eos & set(last[-1][:-1]))
    assert behind


def test_presets_are_the_published_sizes():
    config = methods.parse("suffix:paper").config
    assert config == methods.parse("suffix:arctic").config
    assert (config.depth, config.factor, config.probability, config.stop) == (64, 1.0, 0.1, "never")
    assert methods.parse("suffix:vllm").config.depth == 24


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("depth=1", "depth=1 must be in 2..256"),
        ("factor=-1", "factor=-1.0 must be in 0..256"),
        ("probability=0", "probability=0.0 must be in 1e-06..1"),
        ("shape=bush", "shape=bush must be path or tree"),
        ("memory=forever", "memory=forever must be question or run"),
        ("depth=8,least=8", "least=8 must be less than depth=8"),
        ("answers=0", "answers=0 must be in 1..1000000"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, said):
    with pytest.raises(UserError, match=said):
        methods.parse(f"suffix:{knobs}")
