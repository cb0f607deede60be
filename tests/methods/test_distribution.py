"""When sampling, every method's answers are distributed as the target's: whole decodes against the exact distribution.

The target has a vocabulary of 5 tokens, so that transformers, in float64, gives the probability of every answer of 4
tokens: the first token, a path of two drafts, and the bonus behind it. Of each method and mode, ANSWERS answers, each
with a seed of its own, are compared with them by chi-square. A correct one is rejected with probability LEVEL: 0.5%
shared out over all methods and modes (Bonferroni). For seeds drawn at random the suite's rate of false alarms is thus
below 1%, half of which is left to chi-square being an approximation. The seeds are fixed, so that it alarms always or
never; ROOBENCH_TEST_SEED=TEXT draws others.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from bench.drafting.composition import Composition, CompositionConfig, Member
from bench.drafting.loop import decode
from bench.drafting.method import Method, NoKnobs
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Draft
from bench.drafting.stopping import CALIBRATED_AT
from bench.drafting.verify import typical
from bench.engine.decoder import Decoder
from bench.models.checkpoints import Checkpoint
from bench.models.loading import stands_for
from methods.dflash.method import DFlash, DFlashConfig
from methods.dspark.method import DSpark, DSparkConfig
from methods.eagle.method import Eagle, EagleConfig
from methods.eagle3.method import Eagle3, Eagle3Config
from methods.hydra.method import Hydra, HydraConfig
from methods.kangaroo.method import Kangaroo, KangarooConfig
from methods.layer_skip import LayerSkip, LayerSkipConfig
from methods.lookahead.method import Lookahead, LookaheadConfig
from methods.medusa.method import Medusa, MedusaConfig
from methods.pld import PLD, PLDConfig
from methods.recycling import Recycling, RecyclingConfig
from methods.sam import SAM, SAMConfig
from methods.sps import SpS, SpSConfig
from methods.suffix import Suffix, SuffixConfig
from methods.vanilla import Vanilla
from tests.fakes import OneSequence

VOCAB, LENGTH, ANSWERS = 5, 4, 250
PROMPT = [0, 3, 1]
MODES = {"temperature 1": (1.0, 1.0), "temperature 0.7, top-p 0.8": (0.7, 0.8)}
SEED = os.environ.get("ROOBENCH_TEST_SEED", "")  # any text: other samples
LEAST = 5.0  # expected answers in a cell of the statistic


@dataclass(frozen=True)
class Target:
    """What methods are built on."""

    decoder: Decoder
    model: Any  # transformers' own
    logits: dict[tuple[int, ...], np.ndarray]  # after the prompt and so much of an answer
    guesses: dict[tuple[int, ...], torch.Tensor]  # imperfect distributions there, to draft from
    adapter: Callable[..., Path]  # (hf_model, options) -> the folder of a Kangaroo adapter
    heads: Callable[..., Path]  # ... of Medusa heads
    weights: Callable[..., Path]  # (method's name, hf_model, options) -> the folder of its weights


@pytest.fixture(scope="module")
def target(tiny_config, tiny_adapter, tiny_heads, tiny_weights) -> Target:
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = tiny_config("vicuna", **sizes, num_attention_heads=2, num_key_value_heads=1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.3 * noise)
            else:
                weight.copy_(noise * (0.4 if "embed" in name or "head" in name else 1.5 / weight.shape[1] ** 0.5))
    logits = {}
    with torch.inference_mode():
        for length in range(LENGTH):
            contexts = list(itertools.product(range(VOCAB), repeat=length))
            rows = model(torch.tensor([[*PROMPT, *context] for context in contexts])).logits[:, -1]
            logits |= {context: row.numpy() for context, row in zip(contexts, rows, strict=True)}
    # In float64 a tiny pass is the faster one: nothing is packed.
    decoder = Decoder.from_weights(config, model.state_dict().items(), dtype=torch.float64, max_len=16, name="tiny")
    return Target(decoder, model, logits, guesses_from(logits), tiny_adapter, tiny_heads, tiny_weights)


def guesses_from(logits: dict[tuple[int, ...], np.ndarray]) -> dict[tuple[int, ...], torch.Tensor]:
    """The target's distributions, flattened and shaken; in a third of contexts two tokens are all that is possible."""
    rng = np.random.default_rng(1)
    guesses = {}
    for context, row in logits.items():
        guess = np.exp(0.5 * row + 1.2 * rng.normal(size=VOCAB))
        if sum(context) % 3 == 1:
            guess[np.argsort(guess)[:3]] = 0
        guesses[context] = torch.tensor(guess / guess.sum(), dtype=torch.float32)
    return guesses


class Guessing(OneSequence):
    """Drafts so many siblings a level from the guesses: drawn without replacement, or the most probable ones."""

    def __init__(self, target: Target, widths: tuple[int, ...], *, sampled: bool):
        super().__init__(target.decoder, NoKnobs())
        self.guesses, self.widths, self.sampled = target.guesses, widths, sampled

    def draft(self, room):
        tokens, parents, drawn = [], [], []
        level = [(-1, tuple(self.context[len(PROMPT) :]))]
        for width in self.widths[:room]:
            above, level = level, []
            for parent, text in above:
                q = self.guesses[text]
                siblings = (
                    self.sequence.sampler.draw_distinct(q[None], width)[0] if self.sampled else q.topk(width).indices
                )
                for token in siblings.tolist():
                    level.append((len(tokens), (*text, token)))
                    tokens.append(token)
                    parents.append(parent)
                    drawn.append(q)
        return Draft(tokens, parents, drawn if self.sampled else None)


def kangaroo(target: Target, **knobs: Any) -> Kangaroo:
    calibration = {"accepted": CALIBRATED_AT, "following": CALIBRATED_AT}
    folder = target.adapter(target.model, ranking=[3, 0, 1, 4, 2], changes={"calibration": calibration})
    return Kangaroo(target.decoder, KangarooConfig(weights=str(folder), gamma=2, **knobs))


def medusa(target: Target, **knobs: Any) -> Medusa:
    folder = target.heads(target.model, heads=2, useful=False, ranking=[3, 0, 1, 4, 2])
    return Medusa(target.decoder, MedusaConfig(weights=str(folder), **knobs))


def eagle(target: Target, **knobs: Any) -> Eagle:
    folder = target.weights("eagle", target.model, useful=False, ranking=[3, 0, 1, 4, 2])
    return Eagle(target.decoder, EagleConfig(weights=str(folder), **{"gamma": 2, "threshold": 0.0, **knobs}))


def eagle3(target: Target, **knobs: Any) -> Eagle3:
    folder = target.weights("eagle3", target.model, useful=False, changes={"taps": [0, 1, 2]})
    return Eagle3(target.decoder, Eagle3Config(weights=str(folder), gamma=2, threshold=0.0, **knobs))


def hydra(target: Target, **knobs: Any) -> Hydra:
    folder = target.weights("hydra", target.model, heads=2)
    return Hydra(target.decoder, HydraConfig(weights=str(folder), **knobs))


def composed(target: Target, *members: Callable[[Target], Member]) -> Composition:
    return Composition(target.decoder, CompositionConfig(tuple(member(target) for member in members)))


def lookup(ngram: int) -> Callable[[Target], Member]:
    return lambda target: Member("pld", PLD, PLDConfig(ngram=ngram, tokens=2, least=1, stop="never"))


def adapter(**knobs: Any) -> Callable[[Target], Member]:
    return lambda target: Member("kangaroo", Kangaroo, kangaroo(target, **knobs).config)


def recycling(target: Target, **knobs: Any) -> Recycling:
    return Recycling(target.decoder, RecyclingConfig(**knobs))


def lookahead(target: Target, **knobs: Any) -> Lookahead:
    return Lookahead(target.decoder, LookaheadConfig(ngram=3, **knobs))


def layer_skip(target: Target, **knobs: Any) -> LayerSkip:
    return LayerSkip(target.decoder, LayerSkipConfig(exit_layer=1, gamma=2, **knobs))


def block(target: Target, name: str, **knobs: Any) -> DFlash:
    folder = str(target.weights(name, target.model, useful=False))
    if name == "dspark":
        return DSpark(target.decoder, DSparkConfig(weights=folder, **knobs))
    return DFlash(target.decoder, DFlashConfig(weights=folder, **knobs))


def sps(target: Target, rows: int = 0, **knobs: Any) -> SpS:
    folder = target.weights("sps", target.model, rows=rows)
    stands_for(target.decoder, Checkpoint("tiny", folder, "0" * 64, None))  # so the tokenizers are the same
    return SpS(target.decoder, SpSConfig(model=str(folder), gamma=2, **knobs))


FREE = "0.0/0.0/1:1.0/16:1.0"  # all drafts are worth their cost
# Drafts of which the adapter is not sure are dropped.
DEAR = "0.1/0.01/1:0.9/2:1.15/3:1.2"

# Every method, and every way of it to draft, that samples: add it here.
BUILDERS: dict[str, Callable[[Target], Method]] = {
    "vanilla": lambda target: Vanilla(target.decoder, NoKnobs()),
    "chain, deterministic": lambda target: Guessing(target, (1, 1), sampled=False),
    "chain, drawn": lambda target: Guessing(target, (1, 1), sampled=True),
    "tree, deterministic": lambda target: Guessing(target, (3, 2), sampled=False),
    "tree, drawn": lambda target: Guessing(target, (3, 2), sampled=True),
    "kangaroo, chain, drawn": lambda target: kangaroo(target, drafts="sampled", threshold=0.0),
    "kangaroo, chain, drawn, by gain": lambda target: kangaroo(
        target, drafts="sampled", stop="gain", costs=DEAR, draft_vocab=4
    ),
    "kangaroo, chain, top": lambda target: kangaroo(target, drafts="top", threshold=0.0),
    "kangaroo, tree": lambda target: kangaroo(target, beam=3, stop="threshold", threshold=0.0),
    "medusa, chain, drawn": lambda target: medusa(target, tree="chain", draft_vocab=4),
    "medusa, chain, top": lambda target: medusa(target, tree="chain", drafts="top"),
    "medusa, tree, drawn": lambda target: medusa(target, tree="0/1/2/0-0/0-1/1-0", drafts="sampled"),
    "medusa, tree, top": lambda target: medusa(target, tree="0/1/2/0-0/0-1/1-0"),
    "medusa, chain of second ranks, drawn": lambda target: medusa(target, tree="1/1-1", draft_vocab=4),
    "medusa, tree with gaps, drawn": lambda target: medusa(target, tree="0/2/0-1/2-2", drafts="sampled"),
    "hydra, chain": lambda target: hydra(target, tree="chain"),
    "hydra, tree": lambda target: hydra(target, tree="0/1/2/0-0/0-1/1-0"),
    "prompt lookup": lambda target: PLD(target.decoder, PLDConfig(ngram=1, tokens=2, stop="never")),
    "prompt lookup, by worth": lambda target: PLD(target.decoder, PLDConfig(costs=FREE)),
    "automaton": lambda target: SAM(target.decoder, SAMConfig(tokens=2, stop="never")),
    "suffix trie, tree": lambda target: Suffix(target.decoder, SuffixConfig(shape="tree", stop="never")),
    "suffix tries, by worth": lambda target: Suffix(target.decoder, SuffixConfig(memory="run", costs=FREE)),
    "prompt lookup, then kangaroo": lambda target: composed(target, lookup(2), adapter(threshold=0.0)),
    "kangaroo, drawn by gain, then lookup": lambda target: composed(
        target, adapter(drafts="sampled", stop="gain", costs=DEAR, draft_vocab=4), lookup(1)
    ),
    "recycling": lambda target: recycling(target, costs=FREE),
    "recycling, the authors' tree": lambda target: recycling(target, **Recycling.presets["paper"]),
    "lookahead": lambda target: lookahead(target, window=2, guesses=2, costs=FREE),
    "lookahead, all guesses": lambda target: lookahead(target, window=2, guesses=2, stop="never"),
    "layer-skip, drawn": lambda target: layer_skip(target, stop="threshold"),
    "dflash, by gain": lambda target: block(target, "dflash", costs=DEAR),
    "dflash, drawn by threshold": lambda target: block(
        target, "dflash", stop="threshold", threshold=0.3, drafts="sampled"
    ),
    "dspark, by gain": lambda target: block(target, "dspark", costs=FREE),
    "dspark, drawn": lambda target: block(target, "dspark", stop="threshold", drafts="sampled"),
    "dspark, drawn by threshold": lambda target: block(
        target, "dspark", stop="threshold", threshold=0.4, drafts="sampled"
    ),
    "layer-skip, drawn by gain": lambda target: layer_skip(target, costs=DEAR),
    "eagle, chain, drawn": lambda target: eagle(target, beam=1, draft_vocab=4),
    "eagle, tree": lambda target: eagle(target, beam=3),
    "eagle, static tree": lambda target: eagle(target, tree="0/1/2/0-0/0-1/1-0", threshold=-1.0),
    "eagle, best of all": lambda target: eagle(target, tree="best", beam=3, nodes=8, threshold=-1.0),
    "eagle3, chain, drawn": lambda target: eagle3(target, beam=1),
    "eagle3, tree": lambda target: eagle3(target, beam=3),
    "sps, drawn": lambda target: sps(target, stop="threshold"),
    "sps, drawn from fewer tokens": lambda target: sps(target, rows=-1, stop="heuristic"),
    "sps, drawn from more tokens by gain": lambda target: sps(target, rows=2, costs=DEAR),
    "sps, top": lambda target: sps(target, stop="threshold", drafts="top"),
}
LEVEL = 0.005 / (len(BUILDERS) * len(MODES))
# Drafts that a step accepts at least once; of other methods two as well.
LEAST_ACCEPTED = {Vanilla: {0}} | {kind: {0, 1} for kind in (PLD, SAM, Suffix, Recycling, Lookahead, DFlash, DSpark)}


def warped(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities of the fewest tokens that hold `top_p`."""
    weights = np.exp(logits / temperature)
    order = np.argsort(-weights)
    masses = np.cumsum(weights[order]) / weights.sum()
    if top_p < 1:
        assert np.abs(masses - top_p).min() > 1e-5, "too close to call in float32"
        order = order[: int((masses < top_p).sum()) + 1]
    p = np.zeros(VOCAB)
    p[order] = weights[order] / weights[order].sum()
    return p


def exact(target: Target, temperature: float, top_p: float) -> np.ndarray:
    """The probability of every answer, [VOCAB] * LENGTH."""
    after = {context: warped(row, temperature, top_p) for context, row in target.logits.items()}
    answers = itertools.product(range(VOCAB), repeat=LENGTH)
    chances = [np.prod([after[answer[:i]][token] for i, token in enumerate(answer)]) for answer in answers]
    return np.array(chances).reshape([VOCAB] * LENGTH)


def sampled(method: Method, temperature: float, top_p: float) -> tuple[np.ndarray, set[int]]:
    """How often each answer came, [VOCAB] * LENGTH, and how many drafts a step kept."""
    sampler = Sampler(temperature, top_p, 0)
    counts, accepted = np.zeros([VOCAB] * LENGTH), set()
    for i in range(ANSWERS):
        sampler.seed(f"{SEED}{i}")
        answer = decode(method, PROMPT, LENGTH, frozenset(), sampler)
        counts[tuple(answer.token_ids)] += 1
        accepted |= {step.accepted for step in answer.steps}
    return counts, accepted


def p_value(counts: np.ndarray, chances: np.ndarray) -> float:
    """Of chi-square over all answers; those expected less than LEAST times are pooled with what begins alike."""
    if counts[chances == 0].any():
        return 0.0
    expected, found = [], []
    pool, pooled = 0.0, 0.0
    for chance, count in zip(chances.flat, counts.flat, strict=True):
        if chance * ANSWERS >= LEAST:
            expected.append(chance * ANSWERS)
            found.append(count)
            continue
        pool, pooled = pool + chance * ANSWERS, pooled + count
        if pool >= LEAST:
            expected.append(pool)
            found.append(pooled)
            pool, pooled = 0.0, 0.0
    expected[-1] += pool
    found[-1] += pooled
    return float(stats.chisquare(found, expected).pvalue)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_answers_are_distributed_as_the_targets(build, mode, target):
    method = build(target)
    assert method.lossless
    counts, accepted = sampled(method, *mode)
    if not SEED:  # some are accepted whole once in 100; what is looked up seldom is
        assert LEAST_ACCEPTED.get(type(method), {0, 1, 2}) <= accepted
    assert p_value(counts, exact(target, *mode)) > LEVEL


def test_the_statistic_tells_right_from_wrong_distributions(target):
    chances, flatter = exact(target, 1.0, 1.0), exact(target, 1.6, 1.0)
    rng = np.random.default_rng(2)
    right, wrong = (
        [p_value(rng.multinomial(ANSWERS, p.ravel()).reshape(p.shape), chances) for _ in range(100)]
        for p in (chances, flatter)
    )
    assert stats.kstest(right, "uniform").pvalue > 0.001
    assert np.mean(np.array(wrong) < LEVEL) > 0.9
    narrow = exact(target, *MODES["temperature 0.7, top-p 0.8"])
    assert p_value(rng.multinomial(ANSWERS, chances.ravel()).reshape(chances.shape), narrow) == 0


@pytest.mark.parametrize("name", ["chain, drawn", "tree, drawn"])
def test_a_residual_that_is_left_out_is_noticed(name, target, monkeypatch):
    monkeypatch.setattr("bench.drafting.verify.residual", lambda p, q, x: p)
    counts, _ = sampled(BUILDERS[name](target), *MODES["temperature 1"])
    assert p_value(counts, exact(target, *MODES["temperature 1"])) < LEVEL


@pytest.mark.parametrize("name", ["chain, deterministic", "tree, deterministic"])
def test_drafts_that_are_all_accepted_are_noticed(name, target, monkeypatch):
    def first_path(drafts, tree, probabilities, drawn, sampler):
        path = []
        while following := tree.children.get(path[-1] if path else -1):
            path.append(following[0])
        return path, sampler.draw(probabilities[path[-1] + 1 if path else 0])

    monkeypatch.setattr("bench.drafting.verify.accept_sampled", first_path)
    counts, _ = sampled(BUILDERS[name](target), *MODES["temperature 1"])
    assert p_value(counts, exact(target, *MODES["temperature 1"])) < LEVEL


@pytest.mark.parametrize("name", ["chain, deterministic", "kangaroo, tree"])
def test_typical_acceptance_is_another_distribution_and_says_so(name, target):
    method = BUILDERS[name](target)
    method.verification = lambda sampler: typical(sampler, 0.09, 0.3)
    counts, _ = sampled(method, *MODES["temperature 1"])
    assert p_value(counts, exact(target, *MODES["temperature 1"])) < LEVEL
    of_medusa = medusa(target, tree="chain", accept="typical")
    assert not of_medusa.lossless
    counts, _ = sampled(of_medusa, *MODES["temperature 1"])
    assert p_value(counts, exact(target, *MODES["temperature 1"])) < LEVEL
