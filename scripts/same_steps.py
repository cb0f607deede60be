"""Do two runs decode alike? Compares every turn of every method step by step: tokens, drafts, accepted drafts.

    python scripts/same_steps.py results/runs/BASE results/runs/NEW

For a change that must not alter what methods do, run both versions with the same recorded costs. Reads turns.jsonl as
plain JSON, so that the two may be of different versions. Exit status 0: all steps are equal; 1: some differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LISTS = ("token_ids", "per_step_drafted", "per_step_accepted", "per_step_emitted", "per_step_depth", "per_step_calls")
LISTS += ("per_step_rejected",)
Key = tuple[str, int, int, int]  # method, question, turn, round


def read(folder: Path) -> dict[Key, dict[str, Any]]:
    """A run's turns."""
    lines = (folder / "turns.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line) for line in lines]
    return {(turn["method"], turn["question_id"], turn["turn"], turn["round"]): turn for turn in turns}


def differences(base: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The lists in which two turns differ."""
    return [name for name in LISTS if base.get(name, []) != new.get(name, [])]


def compare(base: dict[Key, dict[str, Any]], new: dict[Key, dict[str, Any]]) -> bool:
    """Print a line a method; whether everything is equal."""
    equal = base.keys() == new.keys()
    if not equal:
        print(f"turns of one run alone: {len(base.keys() ^ new.keys())}")
    for method in dict.fromkeys(key[0] for key in base):
        keys = [key for key in base if key[0] == method and key in new]
        different = {key: found for key in keys if (found := differences(base[key], new[key]))}
        steps = sum(len(new[key]["per_step_emitted"]) for key in keys)
        print(f"{method}: {len(keys)} turns, {steps} steps, {len(keys) - len(different)} turns equal in every step")
        for (_, question, turn, number), found in list(different.items())[:3]:
            print(f"  question {question}, turn {turn}, round {number}: {', '.join(found)} differ")
        equal = equal and not different
    return equal


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(not compare(read(Path(sys.argv[1])), read(Path(sys.argv[2]))))
