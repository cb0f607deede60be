"""Lookahead decoding (Fu et al., arXiv 2402.02057): n-grams that Jacobi iterations find, verified as drafts.

A window of W columns and N - 1 levels guesses the coming tokens; each verification moves it on by one iteration. The
n-grams along its columns go to a pool, from which up to G that start with the newest token are drafted (section 3,
algorithm 2). Needs no training. `lookahead:paper` takes Spec-Bench's (W, N, G) of (7, 5, 7).

Beyond the paper: sizes by the costs on this device; the pool also has n-grams of the text (an option of their code);
n-grams are drafted only where they are expected to gain more than they cost, and the window is carried along only as
long as its n-grams save what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from bench.config import setting
from bench.drafting.pace import LEAST, Chances, Pace, PacedConfig, PacedMethod, grow
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.engine import MAX_DRAFTS
from methods.lookahead.window import PRIOR, Nodes, Pool, Window, following, most_drafts

if TYPE_CHECKING:
    from bench.drafting.knobs import Costs
    from bench.engine.decoder import Decoder

PUBLISHED = (7, 5, 7)
SIZES = ((2, 3, 2), (3, 3, 3), (4, 4, 4), (5, 4, 5), PUBLISHED, (10, 5, 10), (15, 5, 15))  # to choose from
# Steps fall with the logarithm of a pass's rows (section 4): to 1 / 1.64 with the 56 of PUBLISHED (Spec-Bench, 7B).
_FALL = (1 - 1 / 1.64) / math.log(56)
_LOST, _SHARE = 0.5, 0.02  # see `Pace`; drafts and the window get half each


@dataclass(frozen=True)
class LookaheadConfig(PacedConfig):
    """The knobs of lookahead decoding."""

    window: int = setting(-1, "columns of the window (W); 0: no window; -1: by the costs on this device, else 7")
    ngram: int = setting(0, "tokens of an n-gram (N); 0: by the costs, if window and guesses are, else 5")
    guesses: int = setting(0, "n-grams that are kept of each first token (G); 0: by the costs like ngram, else 7")
    text: bool = setting(True, "the pool also has the n-grams of the prompt and of the answer")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least, by_costs in (("window", 0, -1), ("ngram", 3, 0), ("guesses", 1, 0)):
            if by_costs != (value := getattr(self, name)) < least:
                raise ValueError(f"{name}={value} must be at least {least} ({by_costs}: by the costs)")
        if self.window == 0 and not self.text:
            raise ValueError("window=0 and text=false leave nothing to draft from: give one of them another value")
        w, n, g = self.sizes
        if (most := most_drafts(w, n, g)) > MAX_DRAFTS:
            raise ValueError(f"window={w}, ngram={n}, guesses={g} take {most} drafts, of at most {MAX_DRAFTS}")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """W, N and G as given, else as published."""
        w, n, g = PUBLISHED
        return w if self.window == -1 else self.window, self.ngram or n, self.guesses or g


def choose_sizes(costs: Costs, *, text: bool) -> tuple[int, int, int]:
    """Return W, N and G with the most expected tokens per time; W = 0, where there is `text` too: without a window."""

    def speedup(size: tuple[int, int, int]) -> float:
        rows = 1 + most_drafts(*size)
        return 1 / (1 - _FALL * math.log(rows)) / costs.verifying(rows)

    best = max(SIZES, key=speedup)
    return best if speedup(best) > 1 or not text else (0, *PUBLISHED[1:])


@dataclass
class Notes:
    """The state of a sequence."""

    pool: Pool
    window: Window
    chances: Chances
    pace: Pace | None  # of drafts; None: all are made
    window_pace: Pace | None  # of the window, which may spend what its n-grams save; None: it is always carried along
    scouts: int = 0  # of the current step
    ends: Many[int] = ()  # see `Window.carry`
    drafted: Many[int] | None = None  # its own draft of the current step, with scouts


class Lookahead(PacedMethod):
    """Drafts n-grams from a pool and carries a window along."""

    Config = LookaheadConfig
    family = "self"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"text": False, "stop": "never"}}  # sizes: PUBLISHED

    def __init__(self, target: Decoder, config: LookaheadConfig):
        super().__init__(target, config)
        left_out = (config.window, config.ngram, config.guesses) == (-1, 0, 0)
        w, n, g = choose_sizes(self.costs, text=config.text) if left_out and config.stop == "gain" else config.sizes
        self.config = replace(config, window=w, ngram=n, guesses=g)

    @property
    def widest(self) -> int:
        """The newest token, the window and the n-grams, where all are always verified."""
        return 1 + most_drafts(*self.config.sizes) if self.config.stop == "never" else 1

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Start a window with tokens of the prompt, and a pool with its n-grams."""
        c, text = self.config, sequence.context
        pool, window = Pool(c.ngram, c.guesses), Window(c.window, c.ngram, text[:-1])
        parts = 2 if c.window else 1
        pace, window_pace = (self.new_pace(lost=_LOST / parts, share=_SHARE / parts) for _ in range(2))
        sequence.notes = Notes(pool, window, Chances(PRIOR), pace, window_pace)
        if c.text:
            pool.read(text, len(text))

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return n-grams and the window for each sequence."""
        return [self._draft(one.notes, one.context[-1], n) for one, n in zip(sequences, budgets, strict=True)]

    def _draft(self, notes: Notes, newest: int, budget: int) -> Draft:
        scouts, pace, carrying = notes.window.size if budget else 0, notes.pace, notes.window_pace
        if carrying is not None and carrying.verifying(scouts) > carrying.allowance:
            scouts = 0
        most, least = MAX_DRAFTS - scouts, LEAST if pace else 0.0
        grown = grow(notes.pool.after(newest), following, notes.chances, most, budget, least)
        count = pace.worth(grown.chances, scouts) if pace else len(grown.tokens)
        nodes: Nodes = {pair: i for i, pair in enumerate(zip(grown.parents[:count], grown.tokens, strict=False))}
        notes.ends = notes.window.carry(nodes) if scouts else ()
        notes.scouts, notes.drafted = len(nodes) - count, [token for _, token in nodes]
        return Draft(notes.drafted, [parent for parent, _ in nodes], offered=count)

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Move the window on, and collect n-grams."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            self._observe(sequence.notes, sequence.context[-len(outcome.emitted) - 1], outcome)
            if self.config.text:
                sequence.notes.pool.read(sequence.context, len(outcome.emitted))

    def _observe(self, notes: Notes, newest: int, outcome: Outcome) -> None:
        notes.chances.follow(notes.pool.after(newest), following, emitted := outcome.emitted)
        if not outcome.is_of(notes.drafted):  # it is another member's of a composition
            return
        if notes.pace is not None and notes.window_pace is not None:
            notes.pace.end(notes.pace.verifying(len(notes.drafted) - notes.scouts, notes.scouts), len(emitted))
            won = (len(emitted) - 1) * notes.pool.found_by_window(newest, emitted[:-1])
            notes.window_pace.end(notes.pace.verifying(notes.scouts), 1 + won)
        if notes.ends:
            results = outcome.logits[[end + 1 for end in notes.ends]].argmax(-1).tolist()
            for first, *rest in notes.window.move(newest, results):
                notes.pool.add(first, tuple(rest), by_window=True)
