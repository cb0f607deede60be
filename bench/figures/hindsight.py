"""What the best choice among the recorded steps would have given: bounds that are known only afterwards. No torch.

Lossless methods decode one and the same answer, each in steps of its own. A recorded step leads from one place in the
answer to a later one at a known cost (`breakdown.step_costs`). The cheapest way through the answer by recorded steps,
of whichever method, is what no rule that chooses among them can beat. It says nothing of steps that no method took: a
method is not asked at places where it did not begin a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from bench.figures.breakdown import mean, ratio, step_costs
from bench.figures.facts import PassCosts
from bench.figures.records import Turn
from bench.figures.summary import OVERALL, Hindsight

Edge = tuple[int, int, float]  # a step: from a place, to a place, at a cost in vanilla steps


def bounds(
    costs: Mapping[str, PassCosts | None], paired: Mapping[str, Sequence[tuple[Turn, Turn]]]
) -> dict[str, Hindsight]:
    """By task and overall (the tasks' mean), the predicted speedup of the cheapest recorded steps.

    `paired`: each method's turns with vanilla's. A turn takes part if its answer is vanilla's and its costs are known.
    Empty where no method's are.
    """
    known = [name for name, pairs in paired.items() if costs[name] is not None and pairs]
    turns: dict[tuple[int, int, int], list[tuple[Turn, PassCosts]]] = {}
    for name in known:
        for turn, base in paired[name]:
            if turn.token_ids == base.token_ids and (cost := costs[name]) is not None:
                turns.setdefault((turn.question_id, turn.turn, turn.round), []).append((turn, cost))
    if len(known) < 2:  # vanilla's are known wherever a method's are
        return {}
    tasks: dict[str, list[list[float]]] = {}
    for sides in turns.values():
        turn = sides[0][0]
        tasks.setdefault(turn.task, []).append(
            [float(turn.decode_tokens), *(cheapest(turn.decode_tokens, _edges(sides, h)) for h in (False, True))]
        )
    found = {}
    for task, rows in tasks.items():
        tokens, choice, both = map(math.fsum, zip(*rows, strict=True))
        found[task] = Hindsight(ratio(tokens, choice), ratio(tokens, both))
    overall = Hindsight(mean(one.choice for one in found.values()), mean(one.both for one in found.values()))
    return found | {OVERALL: overall}


def cheapest(length: int, edges: Iterable[Edge]) -> float:
    """The least cost from place 0 to `length`; a vanilla step, at cost 1, is possible everywhere."""
    from_place: list[list[tuple[int, float]]] = [[(place + 1, 1.0)] for place in range(length)]
    for start, end, cost in edges:
        from_place[start].append((end, cost))
    least = [0.0, *[math.inf] * length]
    for place, steps in enumerate(from_place):
        for end, cost in steps:
            least[end] = min(least[end], least[place] + cost)
    return least[length]


def _edges(sides: Iterable[tuple[Turn, PassCosts]], hindsight: bool) -> Iterable[Edge]:
    for turn, costs in sides:
        found = step_costs([turn], costs, hindsight=hindsight)
        ends = list(itertools.accumulate(turn.per_step_emitted, initial=0))
        if found is not None and ends[-1] == turn.decode_tokens:
            steps = zip(itertools.pairwise(ends), found.tolist(), strict=True)
            yield from ((start, end, cost) for (start, end), cost in steps if start < end)
