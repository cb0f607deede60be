"""Records that were damaged or edited: every one is refused with its line and field, by every command that reads it."""

from __future__ import annotations

import json

import pytest

from bench.cli import main
from bench.errors import UserError
from bench.figures.records import over, read_records, read_token_texts, write_json, write_turns
from tests.bench.figures.test_compare import a_run, some_turns


@pytest.fixture
def damaged(tmp_path):
    """(change of run.json, change of the fourth turn) -> the run's folder."""

    def make(run_change=None, turn_change=None):
        write_json(tmp_path / "run.json", a_run("r"))
        write_turns(tmp_path / "turns.jsonl", some_turns(1))
        run = json.loads((tmp_path / "run.json").read_text())
        (tmp_path / "run.json").write_text(json.dumps(run | (run_change or {})))
        lines = (tmp_path / "turns.jsonl").read_text().splitlines()
        lines[3] = json.dumps(json.loads(lines[3]) | (turn_change or {}))
        (tmp_path / "turns.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": None}, "machine: Input should be"),
        ({"machine": {"type": "abacus"}}, "machine.type: String should match pattern"),
        ({"provenance": [1]}, "provenance: Input should be"),
        (
            {"provenance": {"sessions": [{"wall_s": -1}]}},
            r"sessions\[0\]\.wall_s: Input should be greater .*, not -1",
        ),
        ({"model": "x"}, "model: Input should be .*, not 'x'"),
        (
            {"methods": {"vanilla": {"kind": "magic"}}},
            r"methods\.vanilla\.kind: String should match .*, not 'magic'",
        ),
        ({"wall_s": "long"}, "wall_s: Input should be a valid number, not 'long'"),
        ({"run_id": "../../x"}, "run_id: String should match pattern .*, not"),
        ({"moon": 1}, "moon: Unexpected"),
        ({"schema": 1}, "schema 1; this version reads 2"),
    ],
)
def test_a_runs_record_is_refused_with_its_field(damaged, change, said):
    with pytest.raises(UserError, match=rf"run\.json .*{said}"):
        read_records(damaged(change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": None}, "token_ids: Input should be .*, not None"),
        ({"token_ids": [1, -2]}, r"token_ids\[1\]: Input should be greater than or equal to 0, not -2"),
        ({"decode_s": "fast"}, "decode_s: Input should be a valid number, not 'fast'"),
        ({"decode_s": -5.0}, "decode_s: Input should be greater than or equal to 0, not -5.0"),
        (
            {"audit": {"verdict": "maybe"}},
            "audit.verdict: String should match pattern .*, not 'maybe'",
        ),
        ({"finish": "tired"}, "finish: String should match pattern .*, not 'tired'"),
        ({"method": "ghost"}, r"method: 'ghost' is not in run\.json"),
        ({"method": "kangaro"}, "did you mean 'kangaroo'"),
        ({"round": "0"}, "round: Input should be a valid integer, not '0'"),
        ({"round": -1}, "round: must be at least 0, not -1"),
        ({"accepted_confidence": [1.5]}, r"accepted_confidence\[0\]: Input should be less than or equal to 1, not 1.5"),
        ({"per_step_drafted": [1]}, "per_step_drafted: has 1 steps, but per_step_emitted has 4"),
        ({"decode_passes": 9}, "decode_passes: 9 for 8 tokens after the prefill"),
        ({"decode_passes": 4}, "decode_passes: is 4, but only peers tell it, and kangaroo is of kind method"),
        ({"drafted": 4}, "drafted: is 4, but only peers tell it, and kangaroo is of kind method"),
        ({"accepted": 0}, "accepted: is 0, but only peers tell it, and kangaroo is of kind method"),
        (
            {"first_tokens": 5},
            "first_tokens: is 5, but only peers have other than 1, and kangaroo is of kind method",
        ),
        ({"question_id": 0, "task": "qa"}, "kangaroo answered question 0, turn 0, in round 0 before"),
    ],
)
def test_a_turn_is_refused_with_its_line_and_field(damaged, change, said):
    with pytest.raises(UserError, match=rf"turns\.jsonl, line 4: .*{said}"):
        read_records(damaged(None, change))


def test_knobs_that_are_no_members_take_the_place_of_any():
    assert over({"x": {}, "a": {"b": 1, "c": 2}}, {"x": 1, "a": {"b": 3}}) == {"x": 1, "a": {"b": 3, "c": 2}}
    assert over({"x": 1}, {"x": {"b": 1}}) == {"x": {"b": 1}}


@pytest.mark.parametrize("content", ["[" * 100_000, "NaN", '{"schema": 2}', "[]", "\xff"])
def test_what_is_no_record_at_all_is_refused(damaged, content):
    folder = damaged()
    (folder / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"run\.json"):
        read_records(folder)
    (folder / "pieces.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"pieces\.json"):
        read_token_texts(folder)


@pytest.mark.parametrize("command", [["report"], ["compare"], ["export"], ["history"]])
def test_every_command_tells_it_in_one_sentence(damaged, command, capsys):
    folder = str(damaged(None, {"decode_s": -5.0}))
    folders = [folder] * (2 if command == ["compare"] else 1)
    assert main([*command, *folders]) == 2
    assert (
        "line 4: not a turn's record (decode_s: Input should be greater than or equal to 0, not -5.0)"
        in capsys.readouterr().err
    )
