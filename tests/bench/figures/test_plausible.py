"""Checks of contributed runs: what cannot be is one sentence each, and our own committed runs pass."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from bench import questions
from bench.figures.metrics import summarize
from bench.figures.plausible import check, check_folder, read_known, runs_below
from bench.figures.records import Audit, MethodInfo, Run, Turn
from tests import site_runs
from tests.bench.figures.test_compare import some_turns
from tests.html_runs import speculated
from tests.site_runs import batched, plausible, write_run

ROOT = Path(__file__).parents[3]
COMMITTED = runs_below([ROOT / "results"])


def said(run: Run | None = None, turns: list[Turn] | None = None, blocks=()) -> list[str]:
    return check(run or plausible(), some_turns() if turns is None else turns, blocks, read_known())


def first(method: str = "kangaroo", **figures) -> list[Turn]:
    """The turns, with other figures in the first one of a method."""
    turns = some_turns()
    changed = next(turn for turn in turns if turn.method == method)
    for name, value in figures.items():
        setattr(changed, name, value)
    return turns


def origin(**more) -> Run:
    """The run with another provenance."""
    run = plausible()
    run.provenance = {**run.provenance, **more}
    return run


def model(**more) -> Run:
    run = plausible()
    run.model = {**run.model, **more}
    return run


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.relative_to(ROOT / "results").as_posix())
def test_every_committed_run_is_plausible(folder):
    assert check_folder(folder) == []


def test_there_are_committed_runs():
    assert len(COMMITTED) >= 6


def test_the_made_up_run_is_plausible():
    assert said() == []
    run, turns, blocks = batched()
    assert said(run, turns, blocks) == []


WHERE = "kangaroo, question 0, turn 1, round 1: "


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (plausible(complete=False), "the run was interrupted: finish it with --resume"),
        (origin(dirty=True), "the run was made with uncommitted changes: commit them and measure again"),
        (
            origin(sessions=[{"commit": "2" * 40, "dirty": False}, {"commit": "2" * 40, "dirty": True}]),
            "the run was made with uncommitted changes: commit them and measure again",
        ),
        (
            origin(sessions=[{"commit": "2" * 40, "dirty": False}, {"commit": "3" * 40, "dirty": False}]),
            "the run was resumed at another commit (2222222, 3333333): measure all of it at one",
        ),
        (
            origin(commit=None),
            "the run names neither a commit nor a version of Roobench: measure again with this one",
        ),
        (model(sha256=""), "the run records no sha256 of its model: measure again with this version"),
        (
            model(sha256="e" * 64),
            "model: smollm2-135m-instruct has the sha256 eeeeeeeeeeee, which is not known: add it to known.json with "
            "where to get it",
        ),
        (
            model(tokenizer_sha256="e" * 64),
            "the tokenizer has the sha256 eeeeeeeeeeee, but smollm2-135m-instruct's has 59a4284c3ba7",
        ),
        (
            model(chat_template_sha256="e" * 64),
            "the chat template has the sha256 eeeeeeeeeeee, but smollm2-135m-instruct's has 872be49dbb63",
        ),
        (
            plausible(dataset={"name": "mine", "sha256": "e" * 64, "questions": 12}),
            "questions: mine has the sha256 eeeeeeeeeeee, which is not known: add it to known.json with where to get "
            "it",
        ),
        (
            plausible(dataset={**plausible().dataset, "questions": 11}),
            "vanilla was asked 12 questions in round 1, but the run says that it asked 11",
        ),
        (
            plausible(dataset={**plausible().dataset, "questions": 13}),
            "vanilla was asked 12 questions in round 1, but the run says that it asked 13",
        ),
        (
            plausible(config={"max_new_tokens": 9, "rounds": 2}),
            "vanilla was asked 0 questions in round 2, but the run says that it asked 12",
        ),
        (
            plausible(dataset={key: value for key, value in plausible().dataset.items() if key != "questions"}),
            "the run does not record how many questions it asked: measure again with this version",
        ),
        (
            plausible(config={"max_new_tokens": 8}),
            "vanilla, question 0, turn 1, round 1: it has 9 tokens, but the limit was 8 (and 11 more like it)",
        ),
        (plausible(wall_s=60.0), "answers took 258.8 s, but the whole run 60.0 s"),
    ],
)
def test_what_a_run_says_of_itself(run, sentence):
    assert sentence in said(run)


def test_an_installed_roobench_has_a_version_in_place_of_a_commit():
    assert said(origin(commit=None, packages={"roobench": "0.2.0"})) == []


OTHER = [*range(8), 99]


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"audit": None}, "the method is lossless, but nothing compared its answer"),
        ({"token_ids": OTHER}, "recorded as identical, but it is not vanilla's answer"),
        ({"audit": Audit("numerical", 3, 1, 2, 0.1, 0.2)}, "recorded as numerical, but it equals vanilla's answer"),
        (
            {"token_ids": OTHER, "audit": Audit("different", 8, 99, 8, 3.0, 0.1)},
            "it differs from vanilla's answer, but the method is recorded as lossless",
        ),
        (
            {"token_ids": OTHER, "audit": Audit("numerical", 8, 99, 8, 0.3, 0.2)},
            "recorded as a tie, but the gap of the logits is not known to be within the tolerance",
        ),
        (
            {"token_ids": OTHER, "audit": Audit("numerical", 8, 99, 8, 0.1)},
            "recorded as a tie, but the gap of the logits is not known to be within the tolerance",
        ),
        (
            {"token_ids": OTHER, "audit": Audit("numerical", 8, 99, 8, tolerance=0.2)},
            "recorded as a tie, but the gap of the logits is not known to be within the tolerance",
        ),
        ({"per_step_emitted": [2, 2, 2, 1]}, "its steps add 7 tokens, but its answer has 8 after the prefill"),
        ({"per_step_drafted": [1, 1, 0, 1]}, "step 3 accepts 1 of 0 drafts"),
        ({"per_step_emitted": [2, 3, 1, 2]}, "step 2 accepts 1 drafts and adds 3 tokens"),
        ({"decode_s": 0.0}, "it decodes 8 tokens in no time"),
        ({"prefill_s": 0.0}, "its prefill takes no time"),
        (
            {"decode_s": 4.0, "per_step_s": [1.1] * 4},
            "its steps take 4.4000 s, but all of its decoding 4.0000 s",
        ),
        (
            {"decode_s": 4.0, "draft_s": 1.0, "verify_s": 3.5},
            "drafting and verification take 4.5000 s, but all of its decoding 4.0000 s",
        ),
    ],
)
def test_what_a_turn_says(figures, sentence):
    assert said(turns=first(**figures)) == [WHERE + sentence]


def test_a_tie_within_the_tolerance_is_said_and_passes():
    turns = first(token_ids=OTHER, audit=Audit("numerical", 8, 99, 8, 0.1, 0.2))
    assert said(turns=turns) == []


def test_the_clock_may_round():
    assert said(turns=first(decode_s=4.0, per_step_s=[1.0, 1.0, 1.0, 1.0000005], draft_s=1.0, verify_s=3.0)) == []


def test_plain_decoding_drafts_nothing():
    (sentence,) = said(turns=first("vanilla", per_step_drafted=[1, *[0] * 7]))
    assert sentence == "vanilla, question 0, turn 1, round 1: step 1 of plain decoding drafts 1 and adds 1 tokens"


def test_everybody_answers_one_prompt():
    turns = some_turns()
    for turn in turns:
        turn.prompt_digest = ("0" if turn.method == "vanilla" or turn.question_id else "1") * 16
    assert said(turns=turns) == [WHERE + "its prompt is not the one that vanilla answered"]


def test_a_lossy_method_is_not_held_to_vanillas_answers():
    run = plausible()
    run.methods["kangaroo"] = MethodInfo("method", False, 7, {})
    assert said(run, first(token_ids=OTHER, audit=None)) == []


def test_a_peer_may_differ_but_may_not_call_that_identical():
    run = plausible()
    run.methods["kangaroo"] = MethodInfo("peer", True, 0, {})
    assert said(run, first(token_ids=OTHER, audit=Audit("different", 8, 99, 8, 3.0, 0.1))) == []
    assert said(run, first(token_ids=OTHER)) == [WHERE + "recorded as identical, but it is not vanilla's answer"]


@pytest.mark.parametrize("baseline", ["kangaroo", "vanilla", "nobody"])
def test_a_method_has_no_baseline_but_vanilla(baseline):
    run, turns = plausible(), first(token_ids=OTHER)
    run.methods["kangaroo"] = MethodInfo("method", True, 7, {}, {"baseline": baseline})
    assert said(run, turns) == [WHERE + "recorded as identical, but it is not vanilla's answer"]
    turns = first(token_ids=OTHER, audit=Audit("different", 8, 99, 8, 3.0, 0.1))
    assert [one.method for one in summarize(run, turns).divergences] == ["kangaroo"]


def test_a_peer_has_another_peer_as_its_baseline_if_that_took_part():
    run, turns = plausible(), first(token_ids=OTHER)
    run.methods |= {"kangaroo": MethodInfo("peer", True, 0, {}, {"baseline": "plain"})}
    wrong = WHERE + "recorded as identical, but it is not vanilla's answer"
    assert said(run, turns) == [wrong]
    run.methods |= {"plain": MethodInfo("peer", True, 0, {})}
    turns += [dataclasses.replace(turn, method="plain") for turn in turns if turn.method == "kangaroo"]
    for turn in turns:
        if turn.method == "plain" and turn.token_ids == OTHER:
            turn.audit = Audit("different", 8, 99, 8, 3.0, 0.1)
    assert said(run, turns) == []


def test_samples_are_not_compared():
    run = plausible(config={"max_new_tokens": 9, "temperature": 0.7, "top_p": 1.0, "top_k": 0})
    assert said(run, first(token_ids=OTHER, audit=None)) == []
    run.config = {"max_new_tokens": 9, "temperatures": [0.0, 0.7]}
    turns = some_turns() + [dataclasses.replace(turn, audit=None) for turn in some_turns()]
    for turn in turns[: len(turns) // 2]:
        turn.at = 0.0
    for turn in turns[len(turns) // 2 :]:
        turn.at = 0.7
    assert said(run, turns) == []


def test_a_method_cannot_leave_out_its_slow_questions():
    turns = [turn for turn in some_turns() if turn.method == "vanilla" or turn.question_id < 9]
    (sentence,) = said(turns=turns)
    assert sentence == (
        "kangaroo, question 9, turn 1, round 1: it is not there, but vanilla was asked it (and 2 more like it)"
    )
    run = plausible(complete=False)  # which ends within a question
    assert said(run, turns) == ["the run was interrupted: finish it with --resume"]


def test_a_gate_ends_within_a_round():
    run = origin(interleaved="x")
    assert said(run, [turn for turn in some_turns() if turn.question_id < 9]) == []


def test_failed_turns_are_left_alone():
    turns = some_turns()
    turns[1] = Turn("kangaroo", 0, "qa", "qa", 0, 0, error="RuntimeError: no")
    assert said(turns=turns) == []


def test_trees_and_early_stops_pass():
    """As the reports' made-up run has them: steps that draft more than they keep."""
    run = plausible(methods={"vanilla": MethodInfo("vanilla", True, 0, {}), "m": MethodInfo("method", True, 7, {})})
    run.dataset = {**run.dataset, "questions": 1}
    shared = {"question_id": 1, "task": "qa", "category": "qa", "turn": 0, "round": 0}
    base = Turn("vanilla", **shared, token_ids=list(range(9)), prefill_s=0.1, decode_s=2.0, finish="length")
    base.per_step_drafted = base.per_step_accepted = [0] * 8
    base.per_step_emitted = [1] * 8
    ours = speculated("m", shared, list(range(9)), confident=True)
    ours.audit = Audit("identical")
    assert said(run, [base, ours]) == []


def test_records_that_cannot_be_read_are_a_sentence(tmp_path):
    folder = write_run(tmp_path / "run", plausible(), some_turns())
    assert check_folder(folder) == []
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"schema": 1}))
    (sentence,) = check_folder(folder)
    assert "has schema 1; this version reads 2" in sentence
    record["methods"].pop("vanilla")
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "turns.jsonl").write_text("")
    (sentence,) = check_folder(folder)
    assert "has no turns" in sentence


def test_the_known_questions_are_those_that_the_bench_asks():
    known = read_known()
    assert hashlib.sha256(questions.MINI.read_bytes()).hexdigest() in known.questions
    assert known.questions[questions.OFFICIAL_SHA256].name == "official"


def test_runs_are_found_below_a_folder_each_once(tmp_path):
    site_runs.write_all(tmp_path)
    found = runs_below([tmp_path / "new", tmp_path])
    names = ["new", "batched", "elsewhere/deeper", "old"]
    assert [folder.relative_to(tmp_path).as_posix() for folder in found] == names
