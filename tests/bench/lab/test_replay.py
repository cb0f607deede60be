"""Replay: the steps of a real run, one by one, without its model; and what cannot be replayed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

import methods
from bench.cli import main
from bench.drafting.loop import decode
from bench.drafting.method import SpeculativeMethod, TextMethod
from bench.drafting.sequence import Draft
from bench.errors import UserError
from bench.figures.records import read_records, write_json, write_turns
from bench.figures.replayed import best_choice, costs_of
from bench.lab import replay
from bench.run.examiner import fill
from tests.tiny import QUESTIONS, run_bench, write_questions

COUNTERS = ("per_step_drafted", "per_step_accepted", "per_step_emitted", "per_step_depth", "per_step_rejected")
METHODS = ("pld", "pld:ngram=1,tokens=2", "pld:ngram=2+pld:ngram=1,tokens=3")


def drafts_from_text(name):
    """A built-in method that draws on the text alone, and on no file that a tiny model has not."""
    variant = methods.parse(name)
    try:
        variant.check_files("tiny")
    except UserError:
        return False
    return issubclass(variant.method, TextMethod) and name != methods.BASELINE


OTHERS = tuple(name for name in methods.built_in() if drafts_from_text(name) and name not in METHODS)


def counters(turn):
    return (turn.question_id, turn.turn, turn.token_ids, turn.finish, *(getattr(turn, name) for name in COUNTERS))


def label_of(method):
    return ["--method", method]


@pytest.fixture(scope="module")
def a_run(tiny_checkpoint, tmp_path_factory):
    """A greedy run of two rounds, long enough for repeated text, some of which ends with EOS."""
    folder = tmp_path_factory.mktemp("replayed")
    model = shutil.copytree(tiny_checkpoint("tied").folder, folder / "model")
    questions = write_questions(folder / "questions.jsonl", *QUESTIONS)
    flags = [word for method in METHODS + OTHERS for word in label_of(method)]
    assert run_bench(model, questions, folder / "first", *flags, "--max-new-tokens", "60") == 0
    # The token that the first answer repeats most is made one that ends answers.
    _, turns = read_records(folder / "first")
    answer = turns[0].token_ids
    config = json.loads((model / "generation_config.json").read_text())
    config["eos_token_id"] = [answer[len(answer) // 2]]
    (model / "generation_config.json").write_text(json.dumps(config))
    assert run_bench(model, questions, folder / "run", *flags, "--max-new-tokens", "60", "--rounds", "2") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def prepared(a_run):
    run, turns = read_records(a_run)
    answers, model = replay.prepare(run, turns, None, None, lambda line: None)
    return run, turns, answers, model


@pytest.mark.parametrize("label", METHODS + OTHERS)
def test_steps_are_those_of_the_run(prepared, label):
    run, turns, answers, model = prepared
    found = replay.replay(run, model, answers, methods.parse(label))
    measured = [turn for turn in turns if turn.method == label and turn.round == 0]
    assert list(map(counters, found.turns)) == list(map(counters, measured))
    assert [turn.per_step_part for turn in found.turns] == [turn.per_step_part for turn in measured]


def test_the_run_has_every_way_to_end_a_step(prepared):
    """Otherwise the test above would say little."""
    _, turns, *_ = prepared
    drafted = [turn for turn in turns if turn.method == METHODS[1]]
    assert {turn.finish for turn in drafted} == {"eos", "length"}
    assert any(sum(turn.per_step_accepted) for turn in drafted)
    assert any(map(any, (turn.per_step_rejected for turn in drafted)))


class Knowing(TextMethod):
    """Drafts what is coming, as far as the budget allows and beyond the end of the answer, in a tree with equal
    siblings, a wrong one, and a scout behind the proposals."""

    Config = methods.load("vanilla").Config
    coming: ClassVar[list[int]] = []

    def propose_text(self, context, budget):
        place = next(n for n in range(len(self.coming), 0, -1) if context[-n:] == self.coming[:n])
        right = [*self.coming[place:], 1, 2, 3][:budget]
        if len(self.coming) - place > 5:
            right = right[:3]
            right[-1] += place % 2
        if not right:
            return Draft([])
        tokens = [right[0] + 1, right[0], *right, 5]
        parents = [-1, -1, -1, *range(2, 1 + len(right)), 0]
        return Draft(tokens, parents, offered=len(tokens) - 1, calls=2)


@pytest.mark.parametrize("ends", [True, False])
def test_a_tree_with_all_that_a_draft_may_hold(tiny_model, tiny_decoder, random_ids, ends, prepared):
    """Also where EOS is drafted, accepted, and followed by accepted drafts, which do not count."""
    (sample, *_) = prepared[2]
    target, prompt = tiny_decoder(*tiny_model("tied")), random_ids(12, seed=3)
    whole = decode(methods.load("vanilla")(target, None), prompt, 24, frozenset()).token_ids
    last = next(n for n in range(10, 24) if whole[n] not in [*whole[:n], 1, 2, 3]) if ends else 23
    eos = frozenset(whole[last : last + 1] if ends else [])
    Knowing.coming = whole[: last + 1]
    real = decode(Knowing(target, None), prompt, 24, eos)
    assert real.token_ids == whole[: last + 1]
    turn = dataclasses.replace(sample.turn, method="x", token_ids=real.token_ids, finish=real.finish(eos))
    expected = dataclasses.replace(turn)
    fill(expected, real, eos)
    found = replay.along(Knowing(target, None), "x", replay.Recorded(turn, prompt, 24))
    assert counters(found) == counters(expected)
    assert found.per_step_calls == expected.per_step_calls
    assert not ends or found.per_step_accepted[-1] == found.per_step_emitted[-1] > 0
    assert max(found.per_step_accepted) > 1
    assert any(found.per_step_rejected)


# --- costs and predictions -------------------------------------------------------------------------------------------


def info_with(run, label, **costs):
    return dataclasses.replace(run.methods[label], costs=costs)


class Weighing(TextMethod):
    """Drafts as many tokens as verify for less than 1.5 steps; asks for the costs as soon as it is made."""

    def __init__(self, target, config):
        super().__init__(target, config)
        self.most = max(n for n in range(8) if self.costs.verifying(n + 1) < 1.5)

    def propose_text(self, context, budget):
        return Draft([1] * min(self.most, budget))


def as_variant(method, label="mine"):
    """What `methods.parse` gives of a method that is not installed."""
    return SimpleNamespace(label=label, is_peer=False, names=("vanilla",), config=None, method=method)


@pytest.mark.parametrize(("dear", "most"), [(2, 1), (6, 5)])
def test_methods_get_the_costs_that_the_run_measured(prepared, dear, most):
    """`dear`: the first number of tokens that costs more than 1.5 steps."""
    run, _, answers, model = prepared
    costs = {"shallow": 0.0, "draft": 0.0, "verify": {"1": 0.96, str(dear - 1): 0.96, "16": 90.0}, "rest": 0.04}
    base = info_with(run, "vanilla", shallow=0.0, draft=0.0, verify={"1": 0.96}, rest=0.04)
    known = dataclasses.replace(run, methods={"vanilla": base, "pld": info_with(run, "pld", **costs)})
    found = replay.replay(known, model, answers, as_variant(Weighing))
    assert max(max(turn.per_step_drafted) for turn in found.turns) == most - 1
    unknown = dataclasses.replace(run, methods={"vanilla": base})
    with pytest.raises(replay.NotReplayableError, match="it needs costs of forward passes, and this run measured none"):
        replay.replay(unknown, model, answers, as_variant(Weighing))


def test_a_prediction_is_tokens_over_recorded_costs_and_the_time_of_drafting(prepared):
    run, _, answers, model = prepared
    found = replay.replay(run, model, answers, methods.parse("pld:tokens=2"))
    costs, _ = costs_of(run)
    vanilla_step_s = sum(a.turn.decode_s for a in answers) / sum(len(a.turn.per_step_emitted) for a in answers)
    own = sum(turn.decode_s for turn in found.turns) / sum(len(turn.per_step_emitted) for turn in found.turns)
    for task in ("qa", "rag"):
        turns = [turn for turn in found.turns if turn.task == task]
        widths = [drafted + 1 for turn in turns for drafted in turn.per_step_drafted]
        cost = sum(costs["verify"][str(n)] for n in widths) / len(widths) + costs["rest"] + own / vanilla_step_s
        assert found.tasks[task].step_cost == pytest.approx(cost)
        tokens = sum(len(turn.token_ids) - 1 for turn in turns)
        assert found.tasks[task].compression_rate == pytest.approx(tokens / len(widths))
        assert found.tasks[task].speedup == pytest.approx(tokens / len(widths) / cost)
    mean = sum(found.tasks[task].speedup for task in ("mt_bench", "qa", "rag")) / 3
    assert found.tasks["overall"].speedup == pytest.approx(mean)


def test_costs_above_an_exit_are_scaled_and_those_of_all_layers_come_first(prepared):
    run, *_ = prepared
    base = info_with(run, "vanilla", shallow=0.0, draft=0.0, verify={"1": 0.96}, rest=0.04)
    above = info_with(run, "pld", shallow=0.24, draft=0.1, verify={"1": 0.72, "4": 0.9}, rest=0.1)
    whole = info_with(run, "pld", shallow=0.001, draft=0.0, verify={"1": 0.96, "2": 1.2}, rest=0.1)
    one = dataclasses.replace(run, methods={"vanilla": base, "a": above})
    costs, whose = costs_of(one)
    assert costs == {"shallow": 0.0, "draft": 0.0, "verify": pytest.approx({"1": 0.96, "4": 1.2}), "rest": 0.04}
    assert "a's, whose layers above the exit are scaled" in whose
    both = dataclasses.replace(run, methods={"vanilla": base, "a": above, "b": whole})
    assert costs_of(both) == ({"shallow": 0.0, "draft": 0.0, "verify": {"1": 0.96, "2": 1.2}, "rest": 0.04}, "b's")
    assert costs_of(dataclasses.replace(run, methods={"vanilla": base})) == (None, "")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_every_step(a_run, prepared, tmp_path, capsys):
    assert main(["replay", str(a_run), *label_of("pld"), "--json", str(tmp_path / "x.json")]) == 0
    shown = capsys.readouterr().out
    assert "predicted speedup, by task" in shown
    assert "Predicted, not measured" in shown
    written = json.loads((tmp_path / "x.json").read_text())
    measured = [turn for turn in prepared[1] if turn.method == "pld" and turn.round == 0]
    steps = sum(len(turn.per_step_emitted) for turn in measured)
    assert written["methods"]["pld"]["tasks"]["overall"]["steps"] == steps
    assert f" {steps:,} " in shown
    best = written["hindsight"]["overall"]
    assert written["methods"]["pld"]["tasks"]["overall"]["speedup"] <= best["choice"] <= best["both"]
    assert f"{best['choice']:.2f}x" in shown.split("best step everywhere")[1]
    assert [turn["per_step_accepted"] for turn in written["methods"]["pld"]["turns"]] == [
        turn.per_step_accepted for turn in measured
    ]


def test_without_names_all_that_draft_from_text_are_replayed(a_run, capsys):
    assert main(["replay", str(a_run)]) == 0
    said = capsys.readouterr()
    assert "\npld " in said.out
    assert "kangaroo cannot be replayed: it needs the target's hidden states" in said.err
    assert "kangaroo" not in said.out


class Reading(SpeculativeMethod):
    """Looks at what `wanted` says of an outcome."""

    wanted = staticmethod(lambda method, outcome: None)

    def propose(self, sequences, budgets):
        return [Draft([1][:budget]) for budget in budgets]

    def observe(self, sequences, outcomes):
        for outcome in outcomes:
            type(self).wanted(self, outcome)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (lambda method, outcome: outcome.logits[0], "the target's logits"),
        (lambda method, outcome: outcome.logits.argmax(-1), "the target's logits"),
        (lambda method, outcome: outcome.kept, "the target's hidden states"),
        (lambda method, outcome: outcome.verified.final, "the target's hidden states"),
        (lambda method, outcome: len(outcome.logits), "the target's logits"),
        (lambda method, outcome: method.target.embed([1]), r"the target itself \(embed\)"),
    ],
)
def test_what_reads_more_than_text_is_refused_by_name(prepared, wanted, said):
    run, _, answers, model = prepared
    made = type("Wanting", (Reading,), {"wanted": staticmethod(wanted)})
    with pytest.raises(replay.NotReplayableError, match=f"mine cannot be replayed: it needs {said}"):
        replay.replay(run, model, answers, as_variant(made))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("medusa", r"medusa cannot be replayed: it needs the target's hidden states .*\(medusa\)"),
        ("pld+kangaroo", r"pld.kangaroo cannot be replayed: it needs the target's hidden states"),
        ("hf-generate", "hf-generate cannot be replayed: it needs its own loop"),
        ("vanilla", "vanilla drafts nothing: name a method that drafts from text"),
        ("pld:ngram=x", "is not of type int"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(a_run, capsys, method, said):
    assert main(["replay", str(a_run), *label_of(method)]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_failing_method_is_named_without_a_traceback(prepared):
    """Such as one that gives a library what stands in for a tensor."""
    run, _, answers, model = prepared
    made = type("Wanting", (Reading,), {"wanted": staticmethod(lambda method, outcome: outcome.accepted.nothing)})
    with pytest.raises(replay.NotReplayableError, match=r"mine fails on recorded answers: AttributeError: .*nothing"):
        replay.replay(run, model, answers, as_variant(made))
    made = type("Wanting", (Reading,), {"wanted": staticmethod(lambda method, outcome: torch.topk(outcome.logits, 1))})
    with pytest.raises(replay.NotReplayableError, match=r"mine (fails on|cannot be replayed)"):
        replay.replay(run, model, answers, as_variant(made))


def altered(folder, a_run, **settings):
    """A copy of the run with other settings."""
    run, turns = read_records(a_run)
    write_turns(folder / "turns.jsonl", turns)
    write_json(folder / "run.json", dataclasses.replace(run, config=run.config | settings))
    return str(folder)


def test_a_sampled_run_is_refused(a_run, tmp_path, capsys):
    assert main(["replay", altered(tmp_path, a_run, temperature=0.7)]) == 2
    assert "sampled (temperature 0.7)" in capsys.readouterr().err


def test_a_moved_model_and_questions_are_named_and_checked(a_run, tmp_path, capsys):
    gone = altered(tmp_path / "run", a_run, model="gone", questions="gone.jsonl")
    model, questions = str(a_run.parent / "model"), str(a_run.parent / "questions.jsonl")
    assert main(["replay", gone]) == 2
    assert "unknown model 'gone'" in capsys.readouterr().err
    assert main(["replay", gone, "--model", model]) == 2
    assert "questions 'gone.jsonl' cannot be read" in capsys.readouterr().err
    assert main(["replay", gone, "--model", model, "--questions", questions, *label_of("pld")]) == 0
    capsys.readouterr()
    others = write_questions(tmp_path / "others.jsonl", (11, "writing", ("Another.", "One.")))
    assert main(["replay", gone, "--model", model, "--questions", others]) == 2
    assert "the prompt of question 11, turn 1 is not the one that run" in capsys.readouterr().err
    fewer = write_questions(tmp_path / "fewer.jsonl", QUESTIONS[0])
    assert main(["replay", gone, "--model", model, "--questions", fewer]) == 2
    assert "fewer.jsonl questions have no question 12, turn 1" in capsys.readouterr().err


def test_no_weights_are_read(a_run, monkeypatch):
    monkeypatch.setattr("bench.models.checkpoints.iter_weights", lambda *given: pytest.fail("weights were read"))
    assert main(["replay", str(a_run), *label_of("pld")]) == 0


def test_the_best_choice_is_among_replayed_and_recorded_steps(prepared):
    """The more there is to choose from, the better."""
    run, turns, answers, model = prepared
    both = [replay.replay(run, model, answers, methods.parse(label)) for label in METHODS[:2]]
    alone = dataclasses.replace(run, methods={name: run.methods[name] for name in ("vanilla", METHODS[0])})
    few = [turn for turn in turns if turn.method in alone.methods]
    one, two = best_choice(alone, few, both[:1]), best_choice(alone, few, both)
    assert one["overall"].choice <= two["overall"].choice
    more = best_choice(run, turns, both[:1])  # which measured the others
    assert more["overall"].choice >= one["overall"].choice > 0
    assert set(more) == {"mt_bench", "qa", "rag", "overall"}


def test_of_several_temperatures_the_first_counts(prepared):
    run, turns, answers, model = prepared
    both = [replay.replay(run, model, answers, methods.parse(METHODS[0]))]
    warmer = [dataclasses.replace(turn, at=1.0, token_ids=[7] * len(turn.token_ids)) for turn in turns]
    axis = dataclasses.replace(run, config=run.config | {"temperatures": [0.0, 1.0]})
    cold = [dataclasses.replace(turn, at=0.0) for turn in turns]
    assert best_choice(axis, [*cold, *warmer], both) == best_choice(run, turns, both)
