"""How often would the gate be right? A thousand simulated gates a condition, from pairs that a real machine gave.

    python scripts/simulate_gate.py results/reference/gate/same-code/*/gate-pairs.json --out FILE.md

Reads what real gates of unchanged code recorded: per block of questions the seconds that it took and, per method and
task, the log of new's time over base's. A simulated gate takes one recorded gate at random (what is peculiar to a pair
of processes stays), strings its blocks together, `--run` neighbours at a time, so that slow minutes stay slow minutes,
multiplies one method's new times by a factor, and decides as `gate` does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

from bench.figures.compare import DECODE  # noqa: E402
from bench.figures.records import atomic_writer  # noqa: E402
from bench.figures.rules import GateSettings, Rules  # noqa: E402
from bench.gate.sequential import FINE, UNDECIDED, WORSE, SequentialTest, mean_of_tasks, new_tests  # noqa: E402

Key = tuple[str, str]  # method, metric
Logs = dict[str, list[float]]  # by task
CONDITIONS = (  # name, which tasks are slower (None: all), by how much
    ("same code", None, 0.0),
    ("2% slower", None, 0.02),
    ("3% slower", None, 0.03),
    ("5% slower", None, 0.05),
    ("10% slower", None, 0.10),
    ("20% slower in one task", "rag", 0.20),
)


@dataclass(frozen=True)
class Recorded:
    """A gate of unchanged code: its blocks as (seconds, logs), and how many of them ask every question once."""

    blocks: list[tuple[float, dict[Key, Logs]]]
    round_blocks: int

    def all_logs(self, key: Key) -> Logs:
        """Every pair of it."""
        found: Logs = {}
        for _, logs in self.blocks:
            for task, values in logs.get(key, {}).items():
                found.setdefault(task, []).extend(values)
        return found


def read(path: Path) -> Recorded:
    """A gate's pairs, as it wrote them."""
    value = json.loads(path.read_text(encoding="utf-8"))
    blocks = []
    for block in value["blocks"]:
        logs: dict[Key, Logs] = {}
        for item in block["logs"]:
            logs.setdefault((item["method"], item["metric"]), {})[item["task"]] = item["logs"]
        blocks.append((block["seconds"], logs))
    return Recorded(blocks, value["round_blocks"])


def simulate(
    recorded: Recorded, slower: Key, task: str | None, share: float, budget_s: float, run: int, rng: np.random.Generator
) -> dict[Key, SequentialTest]:
    """One gate: its tests, decided or at the end of the budget."""
    blocks = recorded.blocks
    tests = new_tests(sorted({method for _, logs in blocks for method, _ in logs}), Rules(), GateSettings.alarm)
    logs: dict[Key, Logs] = {key: {} for key in tests}
    # Which of two sides of the same code is called new is a matter of names: turned round at random.
    sign, used_s, asked = rng.choice((-1.0, 1.0)), 0.0, 0
    while True:
        start = int(rng.integers(len(blocks)))
        for place in range(start, start + run):
            seconds, found = blocks[place % len(blocks)]
            used_s, asked = used_s + seconds, asked + 1
            for key, of_tasks in found.items():
                for name, values in of_tasks.items():
                    shift = math.log1p(share) if key == slower and task in (None, name) else 0.0
                    logs[key].setdefault(name, []).extend(sign * value + shift for value in values)
            last = used_s + 1.2 * seconds > budget_s
            for key, test in tests.items():
                test.look(list(logs[key].values()), 1.0 if last else used_s / budget_s)
            decided = all(test.verdict != UNDECIDED for test in tests.values())
            if last or (decided and asked >= recorded.round_blocks):
                return tests


def condition(
    gates: list[Recorded], task: str | None, share: float, options: argparse.Namespace, rng: np.random.Generator
) -> list[str]:
    """A row of the table, after its name."""
    key = (options.method, DECODE)
    found: Counter[str] = Counter()
    any_worse, used = 0, 0.0
    for _ in tqdm(range(options.gates), desc=f"{share:.0%} slower", leave=False):
        recorded = gates[int(rng.integers(len(gates)))]
        tests = simulate(recorded, key, task, share, 60 * options.budget_min, options.run, rng)
        found[tests[key].verdict] += 1
        any_worse += any(test.verdict == WORSE for test in tests.values())
        used += max((test.looks[-1] for test in tests.values() if test.looks), default=1.0)
    counts = [*(found[verdict] for verdict in (WORSE, FINE, UNDECIDED)), any_worse]
    return [*(f"{count / options.gates:.1%}" for count in counts), f"{options.budget_min * used / options.gates:.1f}"]


def spread(gates: list[Recorded]) -> list[str]:
    """Each recorded gate's own mean: what a pair of processes of the same code differs by."""
    lines = ["", "Change of time that each recorded gate saw in unchanged code (standard error):", ""]
    keys = sorted({key for gate in gates for _, logs in gate.blocks for key in logs})
    for method, metric in keys:
        means = []
        for gate in gates:
            mean, error, _ = mean_of_tasks(list(gate.all_logs((method, metric)).values()))
            means.append(f"{math.expm1(mean):+.2%} ({error:.2%})")
        lines.append(f"- {method}, {'decoding' if metric == DECODE else 'prefill'}: {', '.join(means)}")
    return lines


def main() -> None:
    """Simulate every condition, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="+", help="gate-pairs.json of gates of unchanged code")
    parser.add_argument("--gates", type=int, default=1000, help="simulated gates a condition (default: %(default)s)")
    parser.add_argument("--budget-min", type=float, default=10.0, help="of each (default: %(default)s)")
    parser.add_argument(
        "--run", type=int, default=3, help="neighbouring blocks that stay together (default: %(default)s)"
    )
    parser.add_argument("--method", default="kangaroo", help="which one is made slower (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="also write the table there")
    options = parser.parse_args()
    gates = [read(path) for path in options.pairs]
    rng = np.random.default_rng(options.seed)
    minutes = sum(seconds for gate in gates for seconds, _ in gate.blocks) / 60
    lines = [
        f"{options.gates} simulated gates a condition, budget {options.budget_min:g} min, each from one of "
        f"{len(gates)} recorded gates of unchanged code ({minutes:.0f} min in all), {options.run} neighbouring "
        f"blocks at a time; seed {options.seed}.",
        "",
        f"| {options.method} is | called worse | called fine | undecided | anything called worse | minutes, mean |",
        "|:---|---:|---:|---:|---:|---:|",
    ]
    for name, task, share in CONDITIONS:
        lines.append(f"| {name} | {' | '.join(condition(gates, task, share, options, rng))} |")
        print(lines[-1])
    lines += spread(gates)
    print("\n".join(lines))
    if options.out:
        with atomic_writer(options.out) as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
