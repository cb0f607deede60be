"""The decode loop of all methods: prefill, then steps of drafting and verification.

Runs, `generate`, the window probe and the gate use it. EOS and the token limit are applied only here.
"""

from __future__ import annotations

import itertools
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
from bench.engine.joined import Part, joined, run_joined
from bench.engine.places import Places
from bench.engine.timing import Mark, between_s, mark, now_s

T = TypeVar("T")
# Verifies the drafts of some sequences, which are merged.
Pass = Callable[[SpeculativeMethod, Many[Sequence], Many[Draft]], list[Outcome]]

# The target's caches for a method's sequences, by slot: reused between questions, as allocating them takes time.
_caches: WeakKeyDictionary[SpeculativeMethod, dict[int, KVCache]] = WeakKeyDictionary()


def target_caches(method: Method) -> dict[int, KVCache]:
    """The target's caches for a method's sequences, by slot."""
    return _caches.get(method, {}) if isinstance(method, SpeculativeMethod) else {}


@torch.inference_mode()
def open_sequence(
    method: SpeculativeMethod,
    prompt: Many[int],
    sampler: Sampler | None = None,
    slot: int = 0,
    cache: KVCache | None = None,
) -> Sequence:
    """Prefill the prompt; returns the sequence, which ends with the first token of the answer.

    `cache`: the target's keys and values; None: the method's own for this slot.
    """
    target = method.target
    if cache is None:
        slots = _caches.setdefault(method, {})
        if slot not in slots:
            slots[slot] = target.new_cache()
        cache = slots[slot]
    part = Part(Places.after(0, len(prompt)), cache)
    (states,) = _run_through(target, [target.embed(prompt)], [part], method, [0])
    _, first = method.verification(sampler)(NO_DRAFT, target.project(states.final[0, -1:]))
    sequence = Sequence([*prompt, first], len(prompt), cache, slot, sampler)
    method.open(sequence, states)
    return sequence


def forward(method: SpeculativeMethod, sequences: Many[Sequence], drafts: Many[Draft]) -> list[Outcome]:
    """Verify a draft for each sequence in one forward pass over the newest tokens and all drafts."""
    target, device = method.target, method.target.device
    rows = [
        target.embed([sequence.context[-1], *draft.tokens]) if draft.states is None else draft.states
        for sequence, draft in zip(sequences, drafts, strict=True)
    ]
    parts = [
        Part(draft.tree.places(sequence.length, device), sequence.cache)
        for sequence, draft in zip(sequences, drafts, strict=True)
    ]
    states = _run_through(target, rows, parts, method, [draft.resume_layer for draft in drafts])
    logits = target.project(joined([some.final for some in states])[0]).split([part.width for part in parts])
    return [
        _judged(method, sequence, draft, some, own)
        for sequence, draft, some, own in zip(sequences, drafts, states, logits, strict=True)
    ]


def _judged(method: SpeculativeMethod, sequence: Sequence, draft: Draft, states: States, logits: Tensor) -> Outcome:
    """Return what becomes of a draft, given the states and logits of its rows."""
    proposed = draft.proposed
    accepted, bonus = method.verification(sequence.sampler)(proposed, logits[: len(proposed.tokens) + 1])
    return Outcome(draft, accepted, bonus, states, logits)


@torch.inference_mode()
def speculate(
    method: SpeculativeMethod, sequences: Many[Sequence], budgets: Many[int], verify: Pass = forward
) -> list[Step]:
    """Run one step of all sequences: draft, verify together, keep the accepted drafts and the bonus.

    `budgets`: tokens that each may still emit, at least 1. The steps' times are those of all sequences together.
    """
    device = method.target.device
    drafting = mark(device)
    drafts = method.propose(sequences, [budget - 1 for budget in budgets])
    verifying = mark(device)
    merged = [draft.merged() for draft in drafts]
    for draft, budget in zip(merged, budgets, strict=True):
        depth = draft.proposed.tree.depth
        assert depth < budget, f"{depth} drafts in a row proposed with a budget of {budget - 1}"
    outcomes = verify(method, sequences, merged)
    verified = mark(device)
    for sequence, outcome in zip(sequences, outcomes, strict=True):
        sequence.cache.keep_path(sequence.length, outcome.accepted)
        sequence.context += outcome.emitted
        sequence.length += len(outcome.emitted)
    method.observe(sequences, outcomes)
    return [_recorded(outcome, (drafting, verifying, verified)) for outcome in outcomes]


def _run_through(
    target: Decoder, rows: Many[Tensor], parts: Many[Part], method: SpeculativeMethod, firsts: Many[int]
) -> list[States]:
    """Run the rows [1, n, d] of some sequences through the layers, each from its first on; keep what the method taps.

    Rows that drafting has taken further than others wait for these.
    """
    rows, first = list(rows), max(firsts)
    for begin, end in itertools.pairwise(sorted(set(firsts))):
        behind = [i for i, own in enumerate(firsts) if own <= begin]
        some = [parts[i] for i in behind]
        done = run_joined(target, joined([rows[i] for i in behind]), some, begin, end)
        for i, own in zip(behind, done.split([part.width for part in some], dim=1), strict=True):
            rows[i] = own
    x, taps = joined(rows), {}
    for layer in sorted(method.taps):
        assert layer >= first, f"{type(method).__name__} taps layer {layer}, but drafting has run {first}"
        if layer > first:
            x = run_joined(target, x, parts, first, layer)
        taps[layer], first = x, layer
    final = target.final_norm(run_joined(target, x, parts, first))
    if len(parts) == 1:
        return [States(final, taps)]
    widths = [part.width for part in parts]
    of_taps = {layer: states.split(widths, dim=1) for layer, states in taps.items()}
    return [
        States(own, {layer: states[i] for layer, states in of_taps.items()})
        for i, own in enumerate(final.split(widths, dim=1))
    ]


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

    `advance` takes a step of the only sequence, with the tokens that it may still emit.
    """
    while len(tokens) < limit and tokens[-1] not in eos:
        (step,) = advance(limit - len(tokens))
        yield kept_of(step, sequence, tokens, eos)


def kept_of(step: Step, sequence: Sequence, tokens: list[int], eos: frozenset[int]) -> Step:
    """Return the step up to its first end token, and append its tokens to the answer.

    Drafts that were accepted behind EOS do not stay in the sequence, whose text a method may remember.
    """
    kept = step.cut_at(eos)
    if behind := len(step.emitted) - len(kept.emitted):
        del sequence.context[-behind:]
        sequence.length -= behind
    tokens += kept.emitted
    return kept


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
    part = Part(chain_of(0).places(sequence.length, target.device), sequence.cache)
    (states,) = _run_through(target, [rows], [part], method, [draft.resume_layer])
    sequence.context.append(token)
    sequence.length += 1
    method.observe([sequence], [Outcome(draft, [], token, states, target.project(states.final[0]))])
    path: list[int] = []
    node = ROOT
    while children := draft.proposed.tree.children.get(node, ()):
        node = children[0]
        path.append(draft.tokens[node])
    return path
