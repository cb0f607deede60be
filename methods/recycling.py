"""Token Recycling (Luo et al., arXiv 2408.08696): drafts from the target's own runners-up.

An adjacency matrix has the 8 most probable successors of each token, as the target last ranked them. A tree of them is
drafted, and every row of its verification, accepted or not, updates the matrix (section 3). Needs no training.
`recycling:paper` drafts the authors' static tree and remembers earlier questions.

Beyond the paper: the matrix belongs to one question and starts with the prompt's own successors, and the tree grows as
long as nodes are expected to gain more than they cost on this device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.config import setting
from bench.drafting.pace import Chances, Pace, PacedConfig, PacedMethod, grow
from bench.drafting.sequence import Draft, Outcome, Sequence, States
from bench.drafting.tree import ROOT
from bench.engine import MAX_DRAFTS

if TYPE_CHECKING:
    from torch import Tensor

    from bench.engine.decoder import Decoder

TOP = 8  # successors of a token
# The tree that the authors call 2.2.2: at each depth, the number of children of each node of the depth before.
TREE = ("8", "84321111", "832111112100100101100", "5211100010010000001001100", "311001000010100", "20010000")
PRIOR = (0.33, 0.1, 0.05, 0.04, 0.03, 0.02, 0.02, 0.01)  # chances by rank, measured on answers of SmolLM2-135M-Instruct
_CHUNK = 128  # rows of a prompt ranked at a time

Matrix = dict[int, list[int]]  # token -> its successors, most probable first


@dataclass(frozen=True)
class RecyclingConfig(PacedConfig):
    """The knobs of Token Recycling."""

    nodes: int = setting(64, "for stop=gain: most drafts in a step; stop=never drafts the authors' tree of 80")
    memory: str = setting("question", "question: each has a matrix of its own; run: it is kept for a whole round")
    prompt: bool = setting(True, "start with the prompt's own successors, which the prefill has to rank")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.nodes <= MAX_DRAFTS:
            raise ValueError(f"nodes={self.nodes} must be in 1..{MAX_DRAFTS}")
        if self.memory not in ("question", "run"):
            raise ValueError(f"memory={self.memory} must be question or run")


@dataclass
class Notes:
    """The state of a sequence."""

    matrix: Matrix
    chances: Chances
    pace: Pace | None  # None: the authors' tree
    drafted: Many[int] | None = None  # its own draft of the current step

    def following(self, token: int) -> Iterator[tuple[int, int, int]]:
        """Yield rank and token of each successor, as `grow` needs them."""
        return ((rank, child, child) for rank, child in enumerate(self.matrix.get(token, ())))


class Recycling(PacedMethod):
    """Drafts a tree of recycled successors."""

    Config = RecyclingConfig
    family = "self"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"stop": "never", "memory": "run", "prompt": False}}

    def __init__(self, target: Decoder, config: RecyclingConfig):
        super().__init__(target, config)
        self.memory = config.memory
        self.kept: Matrix = {}  # with memory=run

    @property
    def widest(self) -> int:
        """The newest token and the authors' tree; a grown one keeps within the widths that are measured anyway."""
        return 1 + sum(map(int, "".join(TREE))) if self.config.stop == "never" else 1

    def forget(self) -> None:
        """Empty the matrix."""
        self.kept.clear()

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Rank the prompt's successors: of each token, those where it occurs last."""
        matrix = self.kept if self.memory == "run" else {}
        sequence.notes = Notes(matrix, Chances(PRIOR), self.new_pace())
        if self.config.prompt:
            last = {token: row for row, token in enumerate(sequence.context[:-1])}
            tokens, rows = list(last), list(last.values())
            for at in range(0, len(rows), _CHUNK):
                logits = self.target.project(prompt.final[0, rows[at : at + _CHUNK]])
                recycle(matrix, tokens[at : at + _CHUNK], logits)

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Count how often each rank was right, and recycle all rows."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            notes: Notes = sequence.notes
            text = sequence.context[-len(outcome.emitted) - 1 :]
            for before, token in itertools.pairwise(text):
                notes.chances.follow(before, notes.following, [token])
            if notes.pace is not None and outcome.is_of(notes.drafted):
                notes.pace.end(notes.pace.verifying(len(notes.drafted)), len(outcome.emitted))
            recycle(notes.matrix, [text[0], *outcome.draft.tokens], outcome.logits)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Return a tree for each sequence."""
        drafts = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            notes: Notes = sequence.notes
            if notes.pace is None:
                draft = authors_tree(notes.matrix, sequence.context[-1], budget)
            else:
                draft = self._grown(notes, notes.pace, sequence.context[-1], budget)
            notes.drafted = draft.tokens
            drafts.append(draft)
        return drafts

    def _grown(self, notes: Notes, pace: Pace, newest: int, budget: int) -> Draft:
        """Return the tree of the most probable nodes, as many as are worth their cost."""
        most = min(self.config.nodes, self.costs.most - 1)
        grown = grow(newest, notes.following, notes.chances, most, budget)
        count = pace.worth(grown.chances)
        return Draft(grown.tokens[:count], grown.parents[:count])


def recycle(matrix: Matrix, tokens: Many[int], logits: Tensor) -> None:
    """Set the successors of tokens [n], given the logits [n, V] after them. Of equal tokens, the last one counts."""
    from bench.drafting.sampling import most_probable

    matrix.update(zip(tokens, most_probable(logits, TOP).tolist(), strict=True))


def authors_tree(matrix: Matrix, newest: int, budget: int) -> Draft:
    """Return the authors' tree. Tokens without successors have token 0, as in their matrix; equal siblings are one."""
    numbers: dict[tuple[int, int], int] = {}  # parent and token -> node
    level = [(ROOT, newest)]
    for counts in TREE[:budget]:
        above, level = level, []
        for (parent, token), count in zip(above, counts, strict=True):
            for child in (matrix.get(token, [0]) * TOP)[: int(count)]:
                level.append((numbers.setdefault((parent, child), len(numbers)), child))
    return Draft([token for _, token in numbers], [parent for parent, _ in numbers])
