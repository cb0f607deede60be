"""The decode loop of all methods: prefill, then steps of drafting and verification.

Runs, `generate`, the window probe and the gate use it. EOS and the token limit are applied only here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Many
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bench.drafting.method import Answer, Method, Peer, SpeculativeMethod
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import NO_DRAFT, Draft, Outcome, Sequence, States, Step
from bench.drafting.tree import ROOT, chain_of
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.places import Places
from bench.engine.timing import Mark, between_s, mark, now_s

T = TypeVar("T")
Pass = Callable[[SpeculativeMethod, Sequence, Draft], Outcome]  # verifies a draft, which is merged

# The target's caches for a method's sequences, by slot: reused between questions, as allocating them takes time.
_caches: WeakKeyDictionary[SpeculativeMethod, dict[int, KVCache]] = WeakKeyDictionary()


def target_caches(method: Method) -> dict[int, KVCache]:
    """The target's caches for a method's sequences, by slot."""
    return _caches.get(method, {}) if isinstance(method, SpeculativeMethod) else {}


@torch.inference_mode()
def open_sequence(
    method: SpeculativeMethod, prompt: Many[int], sampler: Sampler | None = None, slot: int = 0
) -> Sequence:
    """Prefill the prompt; returns the sequence, which ends with the first token of the answer."""
    target, slots = method.target, _caches.setdefault(method, {})
    if slot not in slots:
        slots[slot] = target.new_cache()
    places = Places.after(0, len(prompt))
    states = _run_through(target, target.embed(prompt), places, slots[slot], method)
    _, first = method.verification(sampler)(NO_DRAFT, target.project(states.final[0, -1:]))
    sequence = Sequence([*prompt, first], len(prompt), slots[slot], slot, sampler)
    method.open(sequence, states)
    return sequence


def forward(method: SpeculativeMethod, sequence: Sequence, draft: Draft) -> Outcome:
    """Verify a draft in one forward pass over the newest token and all drafts."""
    target, proposed = method.target, draft.proposed
    rows = draft.states
    if rows is None:
        rows = target.embed([sequence.context[-1], *draft.tokens])
    places = draft.tree.places(sequence.length, target.device)
    states = _run_through(target, rows, places, sequence.cache, method, draft.resume_layer)
    logits = target.project(states.final[0])
    accepted, bonus = method.verification(sequence.sampler)(proposed, logits[: len(proposed.tokens) + 1])
    return Outcome(draft, accepted, bonus, states, logits)


@torch.inference_mode()
def speculate(
    method: SpeculativeMethod, sequences: Many[Sequence], budgets: Many[int], verify: Pass = forward
) -> list[Step]:
    """Run one step of each sequence: draft, verify, keep the accepted drafts and the bonus.

    `budgets`: tokens that each may still emit, at least 1.
    """
    device = method.target.device
    drafting = mark(device)
    drafts = method.propose(sequences, [budget - 1 for budget in budgets])
    steps, outcomes = [], []
    for sequence, draft, budget in zip(sequences, drafts, budgets, strict=True):
        verifying = mark(device)
        merged = draft.merged()
        depth = merged.proposed.tree.depth
        assert depth < budget, f"{depth} drafts in a row proposed with a budget of {budget - 1}"
        outcome = verify(method, sequence, merged)
        verified = mark(device)
        sequence.cache.keep_path(sequence.length, outcome.accepted)
        sequence.context += outcome.emitted
        sequence.length += len(outcome.emitted)
        outcomes.append(outcome)
        steps.append(_recorded(outcome, (drafting, verifying, verified)))
        drafting = verified
    method.observe(sequences, outcomes)
    return steps


def _run_through(
    target: Decoder, x: Tensor, places: Places, cache: KVCache, method: SpeculativeMethod, first: int = 0
) -> States:
    """Run the layers from `first` on, and keep the states that the method taps."""
    taps: dict[int, Tensor] = {}
    for layer in sorted(method.taps):
        assert layer >= first, f"{type(method).__name__} taps layer {layer}, but drafting has run {first}"
        if layer > first:
            x = target.run_layers(x, places, cache, first, layer)
        taps[layer], first = x, layer
    return States(target.final_norm(target.run_layers(x, places, cache, first)), taps)


def _recorded(outcome: Outcome, marks: tuple[Mark, ...]) -> Step:
    """Return the step as it is recorded."""
    draft, accepted = outcome.draft.proposed, outcome.accepted
    children = draft.tree.children.get(accepted[-1] if accepted else ROOT, ())
    rejected = [node for node in children if draft.tokens[node] != outcome.bonus]
    said, calls = draft.confidences, outcome.draft.calls
    return Step(
        outcome.emitted,
        drafted=len(draft.tokens),
        accepted=len(accepted),
        depth=draft.tree.depth,
        calls=int(bool(draft.tokens)) if calls is None else calls,
        rejected=[draft.tokens[node] for node in rejected],
        accepted_confidence=[] if said is None else [said[node] for node in accepted],
        rejected_confidence=[] if said is None else [said[node] for node in rejected],
        part=outcome.draft.part,
        scouts=len(outcome.draft.tokens) - len(draft.tokens),
        marks=marks,
    )


def stepping(
    advance: Callable[[int], list[Step]], sequence: Sequence, tokens: list[int], limit: int, eos: frozenset[int]
) -> Iterator[Step]:
    """Yield the steps from `tokens`, the answer so far, to its end; each one's tokens are appended to `tokens`.

    `advance` takes a step of the only sequence, with the tokens that it may still emit. Drafts that were accepted
    behind EOS do not stay in the sequence, whose text a method may remember.
    """
    while len(tokens) < limit and tokens[-1] not in eos:
        (step,) = advance(limit - len(tokens))
        kept = step.cut_at(eos)
        if behind := len(step.emitted) - len(kept.emitted):
            del sequence.context[-behind:]
            sequence.length -= behind
        tokens += kept.emitted
        yield kept


def decode(
    method: Method, prompt: Many[int], limit: int, eos: frozenset[int], sampler: Sampler | None = None
) -> Answer:
    """Return a method's answer to `prompt`: at most `limit` tokens (>= 1), ending with the first one in `eos`."""
    return at_once(decoding(method, prompt, limit, eos, sampler))


def at_once(steps: Generator[object, None, T]) -> T:
    """Return the result of a generator that never pauses."""
    try:
        next(steps)
    except StopIteration as ended:
        value: T = ended.value
        return value
    raise AssertionError("it paused without being asked to")


def decoding(
    method: Method,
    prompt: Many[int],
    limit: int,
    eos: frozenset[int],
    sampler: Sampler | None = None,
    pause_after: int = 0,
) -> Generator[Answer, None, Answer]:
    """Decode with pauses after the prefill and then after every `pause_after` steps (0: never).

    In a pause, which is not timed, it yields the answer so far. Peers never pause.
    """
    if isinstance(method, Peer):
        answer = method.generate(prompt, limit, eos, sampler)
        assert 1 <= len(answer.token_ids) <= limit, f"{type(method).__name__} gave {len(answer.token_ids)} tokens"
        assert not eos & set(answer.token_ids[:-1]), f"{type(method).__name__} went on after the end"
        return answer
    assert isinstance(method, SpeculativeMethod)
    device = method.target.device
    start_s = now_s(device)
    sequence = open_sequence(method, prompt, sampler)
    answer = Answer(sequence.context[len(prompt) :], now_s(device) - start_s, 0.0)
    if pause_after:
        yield answer
    tokens, start_s = answer.token_ids, now_s(device)
    for step in stepping(lambda budget: speculate(method, [sequence], [budget]), sequence, tokens, limit, eos):
        answer.steps.append(step)
        if pause_after and len(answer.steps) % pause_after == 0:
            answer.decode_s += now_s(device) - start_s
            yield answer
            start_s = now_s(device)
    answer.decode_s += now_s(device) - start_s
    for step in answer.steps:
        drafting, verifying, verified = step.marks
        step.draft_s, step.verify_s = between_s(drafting, verifying), between_s(verifying, verified)
    assert len(tokens) <= limit, f"{type(method).__name__} emitted {len(tokens)} tokens with a limit of {limit}"
    return answer


def probe(method: SpeculativeMethod, prompt: Many[int], answer: Many[int], windows: int) -> list[int]:
    """Return how many of at most `windows` drafts in a row are right at each position of `answer` after the first.

    Teacher-forced: every draft starts from the answer's own tokens. Of a tree, the first path counts.
    """
    sequence = open_sequence(method, prompt)
    sequence.context[-1] = answer[0]
    right = []
    for position in range(1, len(answer)):
        wanted = answer[position : position + windows]
        drafts = _follow(method, sequence, answer[position], windows)
        hits = [draft == token for draft, token in zip(drafts, wanted, strict=False)]
        right.append(hits.index(False) if False in hits else len(hits))
    return right


@torch.inference_mode()
def _follow(method: SpeculativeMethod, sequence: Sequence, token: int, budget: int) -> list[int]:
    """Draft, then continue with `token` whatever the target says; returns the drafts of the first path."""
    target = method.target
    (draft,) = method.propose([sequence], [budget])
    rows = target.embed([sequence.context[-1]]) if draft.states is None else draft.states[:, :1]
    places = chain_of(0).places(sequence.length, target.device)
    states = _run_through(target, rows, places, sequence.cache, method, draft.resume_layer)
    sequence.context.append(token)
    sequence.length += 1
    method.observe([sequence], [Outcome(draft, [], token, states, target.project(states.final[0]))])
    path: list[int] = []
    node = ROOT
    while children := draft.proposed.tree.children.get(node, ()):
        node = children[0]
        path.append(draft.tokens[node])
    return path
