"""How many drafts from text are worth verifying: the rule of methods that look up what followed the same text before.

The longer the match, the likelier the next token is right, and each token that proves right makes the match longer. The
rule keeps these chances by match length, starts a question from a prior, and counts what the question shows, also of
tokens that were found but not drafted. The costs are the device's, see `bench.drafting.costs`.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from bench.drafting.knobs import Costs
from bench.drafting.pace import Pace
from bench.drafting.tree import ROOT, chain_of, tree_of

LENGTHS = (1, 2, 3, 4, 6, 9, 16)  # match lengths that share a chance, each up to the next
# The prior: on the conversations that methods are trained on, replayed with a laptop's costs, half the odds of what was
# measured there (0.23 to 0.95) gave the best speedup, as text without repetitions has more to lose.
PRIOR = (0.15, 0.38, 0.48, 0.56, 0.69, 0.79, 0.91)
CORPUS_PRIOR = (0.2, 0.25, 0.32, 0.4, 0.5, 0.6, 0.8)  # in a model's own answers to prompts of other templates
_PRIOR_TOKENS = 12.0  # found tokens that the prior counts as
_BUCKETS = [max(i for i, least in enumerate(LENGTHS) if least <= max(1, n)) for n in range(LENGTHS[-1] + 1)]


def _bucket(length: int, kind: int) -> int:
    return kind * len(LENGTHS) + _BUCKETS[min(length, LENGTHS[-1])]


@dataclass(frozen=True)
class Found:
    """What followed the same text before: tokens that may be drafted, parents before their children."""

    length: int = 0  # of the match, in tokens
    tokens: Many[int] = ()
    parents: Many[int] | None = None  # as in a draft; None: a chain
    shares: Many[float] | None = None  # of each token, among what followed its parent; None: nothing else did
    kind: int = 0  # of the text that it was found in: each kind has chances of its own

    @property
    def children(self) -> dict[int, list[int]]:
        """The tokens that follow each one, by number."""
        return (chain_of(len(self.tokens)) if self.parents is None else tree_of(self.parents)).children


NOTHING = Found()


@dataclass
class WorthRule:
    """Decides how much of what was found is drafted. It belongs to one question.

    The drafts' expected tokens are compared with their cost at the question's rate so far, and what they may lose is
    limited, see `bench.drafting.pace.Pace`.
    """

    costs: Costs
    priors: Many[Many[float]] = (PRIOR,)  # by kind of text
    hits: list[float] = field(init=False)  # by kind and bucket of match lengths
    tries: list[float] = field(init=False)
    pace: Pace = field(init=False)  # of steps that this rule decided

    def __post_init__(self) -> None:
        self.pace = Pace(self.costs)
        self.hits = [chance * _PRIOR_TOKENS for prior in self.priors for chance in prior]
        self.tries = [_PRIOR_TOKENS] * len(self.hits)

    def chance(self, length: int, kind: int = 0) -> float:
        """Return the chance that the token after a match of `length` tokens is right."""
        bucket = _bucket(length, kind)
        return min(1.0, self.hits[bucket] / self.tries[bucket])

    def choose(self, found: Found, most: int) -> tuple[list[int], float]:
        """Return which of the found tokens are worth verifying, by number, parents first; at most `most`.

        And what they are worth: the tokens that they are expected to gain over a step without drafts.
        """
        reached = self._reached(found)
        order = list(range(len(reached)))
        if found.parents is not None:
            order.sort(key=lambda node: -reached[node])
        chances = [reached[node] for node in order[:most]]
        count = self.pace.worth(chances)
        return order[:count], sum(chances[:count]) - self.pace.rate * self.pace.verifying(count)

    def _reached(self, found: Found) -> list[float]:
        """Return for each token the chance that it and all before it are right."""
        reached: list[float] = []
        depths: list[int] = []
        for i in range(len(found.tokens)):
            parent = i - 1 if found.parents is None else found.parents[i]
            before, depth = (1.0, 0) if parent == ROOT else (reached[parent], depths[parent] + 1)
            share = 1.0 if found.shares is None else found.shares[i]
            reached.append(before * share * self.chance(found.length + depth, found.kind))
            depths.append(depth)
        return reached

    def learn(self, found: Found, emitted: Many[int]) -> None:
        """Count how far what was found was right, whether or not it was drafted."""
        children, node = found.children, ROOT
        for depth, token in enumerate(emitted):
            if not (offered := children.get(node)):
                return
            bucket = _bucket(found.length + depth, found.kind)
            self.tries[bucket] += 1.0 if found.shares is None else sum(found.shares[i] for i in offered)
            following = next((i for i in offered if found.tokens[i] == token), None)
            if following is None:
                return
            self.hits[bucket] += 1
            node = following

    def end(self, drafted: int, emitted: int) -> None:
        """End a step of `drafted` drafts."""
        self.pace.end(self.pace.verifying(drafted), emitted)
