"""Scores next to weights: what the card shows, for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import methods
from bench.errors import UserError
from bench.train.scores import SCORES_FILE, Data, Epoch, Scores, epochs_of, read_scores

WEIGHTS = sorted(path.parent for path in Path(methods.__file__).parent.glob("weights/*/*/README.md"))
HISTORY = [
    {"epoch": 1, "loss": 2.0, "agreement": 0.25, "accept_2": 0.5, "qa": 0.12345},
    {"epoch": 2, "loss": 1.0, "agreement": 0.375, "accept_2": 0.5, "qa": 0.2},
]


def test_a_history_is_split_by_what_it_is_of():
    first, _ = epochs_of(HISTORY, ("qa", "rag"))
    assert first == Epoch(1, 2.0, {"agreement": 0.25, "accept_2": 0.5}, {"qa": 0.123})


def test_agreement_is_the_last_epochs():
    scores = Scores("m", "a" * 64, 7, Data(1, 2, 3, {}, 1), epochs_of(HISTORY, ("qa",)))
    assert scores.agreement == 0.375
    assert list(scores.table()[1].values()) == [2, 1.0, 0.375, 0.5, 0.2]


def test_weights_without_scores_have_none_and_broken_ones_are_named(tmp_path):
    assert read_scores(tmp_path) is None
    (tmp_path / SCORES_FILE).write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"scores\.json cannot be read \(model: Input should be a valid string, not 3"):
        read_scores(tmp_path)


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)
def test_weights_of_the_project_have_the_scores_of_their_cards(folder):
    scores, card = read_scores(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert f"{scores.parameters:,} parameters" in card
    assert f"{scores.data.answer_tokens:,}" in card
    assert f"Scores on {scores.data.held_out} " in card
    for row in scores.table():
        cells = [str(value) if isinstance(value, int) else f"{value:.3f}" for value in row.values()]
        assert f"| {' | '.join(cells)} |" in card
    assert "| " + " | ".join(scores.table()[0]) + " |" in card
    assert json.loads((folder / SCORES_FILE).read_text())["model_sha256"][:16] in card
