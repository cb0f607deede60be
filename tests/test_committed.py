"""What is committed beside the code: weights are small, and nothing names a folder of somebody's machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = sorted(path.parent for path in ROOT.glob("methods/weights/*/*/scores.json"))
LARGEST = 20_000_000  # bytes: all of them go with every clone and every wheel
OF_A_MACHINE = re.compile(r"(?<![\w.~:/-])/(?:home|root|Users|work|workspace|mnt|tmp|var)/[^\s`'\"]*")


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_weights_are_small_and_their_card_tells_their_scores(folder):
    (file,) = folder.glob("*.safetensors")
    assert file.stat().st_size <= LARGEST
    scores, card = json.loads((folder / "scores.json").read_text()), (folder / "README.md").read_text()
    assert f"{scores['parameters']:,} parameters" in card
    assert f"| {scores['epochs'][-1]['scores']['agreement']:.3f} |" in card


def test_records_and_cards_name_no_folder_of_a_machine():
    pages = [*ROOT.glob("methods/weights/*/*/*.md"), *ROOT.glob("methods/weights/*/*/*.json")]
    pages += [path for kind in ("run.json", "*.md") for path in (ROOT / "results" / "reference").rglob(kind)]
    assert len(pages) > 30
    found = {path.relative_to(ROOT).as_posix(): OF_A_MACHINE.findall(path.read_text()) for path in pages}
    assert {name: paths for name, paths in found.items() if paths} == {}
