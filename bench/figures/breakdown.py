"""Where a method's time goes and why: figures over the steps and turns that were recorded. Pure: no files, no torch.

All are functions of a method's turns (and vanilla's on the same prompts), for one task or several. An undefined figure
is None, never NaN and never 0; what older records do not hold is undefined.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.figures.facts import PassCosts
from bench.figures.records import MethodInfo, Turn
from bench.figures.summary import Confidence, ContextBin, Drafts, Member, StepTime

CONFIDENCE_EDGES = [step / 20 for step in range(21)]
CONTEXT_BINS = 6  # at most
CONTEXT_TURNS = 5  # in a bin at least
STEP_PARTS = ("draft", "verify", "rest", "total")


def ratio(above: float | None, below: float | None) -> float | None:
    """Above / below; None where either is undefined or `below` is 0."""
    return None if above is None or not below else finite(above / below)


def decode_tok_per_s(turns: Iterable[Turn]) -> float | None:
    """Σ decode tokens / Σ decode seconds, without the tokens of the prefill; None where each answer was one token."""
    turns = list(turns)
    return ratio(sum(turn.decode_tokens for turn in turns) or None, sum(turn.decode_s for turn in turns))


def speedup(turns: Iterable[Turn], vanilla: Iterable[Turn]) -> float | None:
    """Decode speedup of one side's turns over vanilla's of the same prompts, as a ratio of sums."""
    return ratio(decode_tok_per_s(turns), decode_tok_per_s(vanilla))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are defined."""
    defined = [value for value in values if value is not None]
    return ratio(math.fsum(defined), len(defined))


def mean_by_position(lists: Iterable[Sequence[float | None] | None]) -> list[float | None]:
    """Position by position, the mean over lists of one length; undefined lists are left out."""
    return [mean(column) for column in zip(*(found for found in lists if found is not None), strict=True)]


def finite(value: float | None) -> float | None:
    """None in the place of what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def step_time(turns: Sequence[Turn], baseline: Sequence[Turn]) -> StepTime:
    """Drafting, verifying and the rest of a step in units of vanilla's step on the same prompts.

    Vanilla's own add up to 1. Records without `verify_s` say nothing of verify and rest.
    """
    vanilla_step_s = ratio(sum(turn.decode_s for turn in baseline), _count_steps(baseline))
    total_s, draft_s = sum(turn.decode_s for turn in turns), sum(turn.draft_s for turn in turns)
    verify_s = rest_s = None
    if all(turn.verify_s > 0 for turn in turns if turn.per_step_emitted):
        verify_s = sum(turn.verify_s for turn in turns)
        rest_s = total_s - draft_s - verify_s
    parts = draft_s, verify_s, rest_s, total_s
    return StepTime(*(ratio(ratio(part, _count_steps(turns)), vanilla_step_s) for part in parts))


def predicted_step_cost(turns: Iterable[Turn], costs: PassCosts | None, *, hindsight: bool = False) -> float | None:
    """The mean step in vanilla steps, from costs measured before the run, see `step_costs`.

    Costs of the same run would predict what they were taken from.
    """
    found = step_costs(turns, costs, hindsight=hindsight)
    return None if found is None or not len(found) else finite(float(found.mean()))


def step_costs(
    turns: Iterable[Turn], costs: PassCosts | None, *, hindsight: bool = False
) -> NDArray[np.float64] | None:
    """Each step in vanilla steps, from costs measured before the run and from what it drafted.

    draft · calls + shallow · (depth + 1) + verify(drafts + scouts + 1) + rest; verify is linear between the measured
    widths and undefined beyond them, and with it the whole. `hindsight`: as if each step had drafted no more than what
    was accepted, with at most a call of the draft model for each.
    """
    shapes = [shape for turn in turns for shape in _shapes(turn)]
    if costs is None or None in shapes:
        return None
    drafted, scouts, depth, calls, accepted = np.array(shapes, dtype=np.float64).reshape(-1, 5).T
    if hindsight:
        drafted, depth, calls = accepted, accepted, np.minimum(calls, accepted)
    verified = drafted + scouts
    widths = sorted(costs["verify"], key=int)
    measured = [int(width) for width in widths]
    if verified.min(initial=0) + 1 < measured[0] or verified.max(initial=0) + 1 > measured[-1]:
        return None
    verify = np.interp(verified + 1, measured, [costs["verify"][width] for width in widths])
    found: NDArray[np.float64] = costs["draft"] * calls + costs["shallow"] * (depth + 1) + verify + costs["rest"]
    return found


def drafts(turns: Iterable[Turn]) -> Drafts | None:
    """How often the steps drafted, how much then, and how much of it was accepted; None without steps."""
    steps = [step for turn in turns for step in zip(turn.per_step_drafted, turn.per_step_accepted, strict=True)]
    drafted, accepted = sum(step[0] for step in steps), sum(step[1] for step in steps)
    drafting = sum(bool(step[0]) for step in steps)
    return Drafts(drafting / len(steps), ratio(drafted, drafting), ratio(accepted, drafted)) if steps else None


def told_drafts(turns: Iterable[Turn]) -> Drafts | None:
    """What the engine of a peer tells of its drafts; None: nothing."""
    told = [turn for turn in turns if turn.drafted is not None]
    drafted, accepted = sum(turn.drafted or 0 for turn in told), sum(turn.accepted or 0 for turn in told)
    passes = sum(turn.decode_passes or 0 for turn in told)
    return Drafts(None, ratio(drafted, passes), ratio(accepted, drafted)) if told else None


def emitted_histogram(turns: Iterable[Turn], longest: int) -> list[int]:
    """Steps by what they added to the kept answer: entry i counts those of i + 1 tokens, i < longest."""
    emitted = [count for turn in turns for count in turn.per_step_emitted]
    return [emitted.count(tokens) for tokens in range(1, longest + 1)]


def confidence(turns: Sequence[Turn]) -> Confidence | None:
    """Accepted and rejected drafts by the probability that the draft model gave them; a bin holds its lower edge.

    Rejected are those that verification tried, not those that it never reached. None: the method reports none.
    """
    accepted = [value for turn in turns for value in turn.accepted_confidence]
    rejected = [value for turn in turns for value in turn.rejected_confidence]
    if not accepted and not rejected:
        return None
    return Confidence(list(CONFIDENCE_EDGES), _by_confidence(accepted), _by_confidence(rejected))


def window_ctar(turns: Iterable[Turn], windows: int, reach: int) -> list[float | None] | None:
    """At w = 1..windows: share of the positions of vanilla's answer at which w forced drafts in a row are right.

    Only positions count that have w tokens of the answer behind them. Drafting is forced and the answer vanilla's,
    so that drafters are compared on the same positions (CTAR as its definition reads, Liu et al., arXiv
    2404.18911). None: not probed; undefined beyond the `reach` of what a method can be made to draft.
    """
    probed = [turn.windows for turn in turns if turn.windows is not None]
    if not windows or not probed:
        return None
    rates = []
    for w in range(1, windows + 1):
        right = [count >= w for counts in probed for count in counts[: max(0, len(counts) - w + 1)]]
        rates.append(ratio(sum(right), len(right)) if w <= reach else None)
    return rates


def context(paired: Sequence[tuple[Turn, Turn]]) -> list[ContextBin]:
    """Decode time per token over the tokens of context, in bins of equally many turns; [] for too few turns.

    A turn's context is its prompt and half its answer. Times per token are ratios of sums.
    """
    bins = min(CONTEXT_BINS, len(paired) // CONTEXT_TURNS)
    if not bins:
        return []
    ordered = sorted(paired, key=lambda pair: _context(pair[0]))
    edges = [len(ordered) * i // bins for i in range(bins + 1)]
    return [_context_bin(ordered[low:high]) for low, high in itertools.pairwise(edges)]


def _context_bin(paired: Sequence[tuple[Turn, Turn]]) -> ContextBin:
    turns, baseline = [turn for turn, _ in paired], [vanilla for _, vanilla in paired]
    context = mean(_context(turn) for turn in turns)
    return ContextBin(context, _ms_per_token(turns), _ms_per_token(baseline), len(turns))


def _context(turn: Turn) -> float:
    return turn.prompt_tokens + len(turn.token_ids) / 2


def _ms_per_token(turns: Sequence[Turn]) -> float | None:
    """Of decoding: a turn's first token comes from the prefill."""
    return ratio(1000 * sum(turn.decode_s for turn in turns), sum(turn.decode_tokens for turn in turns))


def _by_confidence(values: Sequence[float]) -> list[int]:
    # A softmax in float32 can come out a hair above 1.
    counts, _ = np.histogram(np.clip(values, 0, 1), CONFIDENCE_EDGES)
    return [int(count) for count in counts]


def _shapes(turn: Turn) -> Iterator[tuple[int, int, int, int, int] | None]:
    """(drafted, scouts, depth, calls, accepted) of each step; None once where an older record has not all of them."""
    if not len(turn.per_step_drafted) == len(turn.per_step_depth) == len(turn.per_step_calls):
        yield None
        return
    scouts = turn.per_step_scouts or [0] * len(turn.per_step_drafted)
    columns = (turn.per_step_drafted, scouts, turn.per_step_depth, turn.per_step_calls, turn.per_step_accepted)
    yield from zip(*columns, strict=True)


def _count_steps(turns: Iterable[Turn]) -> int:
    return sum(len(turn.per_step_emitted) for turn in turns)


def members(turns: Iterable[Turn], info: MethodInfo) -> list[Member]:
    """What each member of a composition drafted; empty for other methods."""
    found = [Member(label, 0, 0, 0) for label in info.notes.get("parts", [])]
    for turn in turns if found else ():
        parts = turn.per_step_part or [0] * len(turn.per_step_drafted)
        for part, drafted, accepted in zip(parts, turn.per_step_drafted, turn.per_step_accepted, strict=True):
            member = found[part]
            member.steps += bool(drafted)
            member.drafted += drafted
            member.accepted += accepted
    return found
