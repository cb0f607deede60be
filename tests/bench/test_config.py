"""Settings: presets, flags, bounds."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields

import pytest

from bench.config import PRESETS, RunConfig, flags, from_flags
from bench.errors import UserError
from bench.train_config import TrainConfig, Writing
from methods.kangaroo.knobs import KangarooTraining
from methods.medusa.knobs import MedusaTraining


def parser(of) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    for flag, options in flags(of):
        made.add_argument(flag, **options)
    return made


def test_laptop_preset_is_the_defaults():
    assert from_flags({}, "laptop") == RunConfig()


def test_spec_bench_preset_is_the_papers_setting():
    preset = from_flags({}, "spec-bench")
    assert (preset.questions, preset.max_new_tokens, preset.rounds, preset.peer_limit) == ("official", 1024, 3, 0)
    untouched = {f.name for f in fields(RunConfig)} - PRESETS["spec-bench"].keys()
    assert all(getattr(preset, name) == getattr(RunConfig(), name) for name in untouched)


def test_flags_beat_the_preset_which_beats_the_defaults():
    given = vars(parser(RunConfig).parse_args(["--rounds", "1", "--questions", "mini", "--peer-limit", "0"]))
    settings = from_flags(given, "spec-bench")
    assert (settings.rounds, settings.questions, settings.peer_limit) == (1, "mini", 0)
    assert settings.max_new_tokens == 1024


@pytest.mark.parametrize("of", [RunConfig, TrainConfig, KangarooTraining, MedusaTraining])
def test_each_setting_has_a_flag_with_help_and_its_default(of):
    text = " ".join(parser(of).format_help().split())
    for item in fields(of):
        assert f"--{item.name.replace('_', '-')}" in text
        assert " ".join(item.metadata["help"].split()) in text
        shown = " ".join(item.default) if isinstance(item.default, tuple) else item.default
        is_switch = item.default is False  # off unless given
        assert item.default in (None, ()) or is_switch or f"(default: {shown})" in text


@pytest.mark.parametrize("of", [RunConfig, TrainConfig, KangarooTraining, MedusaTraining])
def test_flags_that_are_not_given_leave_the_classes_their_defaults(of):
    assert set(vars(parser(of).parse_args([])).values()) == {None}


def test_flags_carry_the_types_of_their_fields():
    run = parser(RunConfig).parse_args(["--limit", "3", "--method", "a", "--method", "b:c=1", "--revision", "7"])
    assert (run.limit, run.method, run.revision) == (3, ["a", "b:c=1"], "7")
    assert parser(TrainConfig).parse_args(["--learning-rate", "1e-4"]).learning_rate == 1e-4


@pytest.mark.parametrize("flags_given", [["--dtype", "float8"], ["--limit", "many"]])
def test_values_outside_a_choice_or_type_are_refused_by_the_parser(flags_given, capsys):
    with pytest.raises(SystemExit) as caught:
        parser(RunConfig).parse_args(flags_given)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("of", "setting", "bad", "least"),
    [
        (RunConfig, "limit", 0, 1),
        (RunConfig, "peer_limit", -1, 0),
        (RunConfig, "max_new_tokens", 0, 1),
        (RunConfig, "rounds", 0, 1),
        (RunConfig, "threads", -1, 0),
        (RunConfig, "seed", -1, 0),
        (KangarooTraining, "exit_layer", 0, 1),
        (TrainConfig, "draft_vocab", -1, 0),
        (TrainConfig, "tokens", -1, 0),
        (TrainConfig, "epochs", 0, 1),
        (TrainConfig, "batch", 0, 1),
        (TrainConfig, "threads", -2, 0),
        (KangarooTraining, "ffn", -1, 0),
        (KangarooTraining, "unroll", 0, 1),
        (KangarooTraining, "epochs", 0, 1),
        (MedusaTraining, "heads", 0, 1),
        (MedusaTraining, "batch", 0, 1),
    ],
)
def test_numbers_below_their_bound_are_refused_by_flag_and_value(of, setting, bad, least):
    with pytest.raises(UserError, match=f"--{setting.replace('_', '-')} {bad} is too small: at least {least}"):
        of(**{setting: bad})
    assert getattr(of(**{setting: least}), setting) == least


@pytest.mark.parametrize("of", [RunConfig, TrainConfig, Writing, KangarooTraining, MedusaTraining])
def test_every_number_has_bounds_that_are_named(of):
    numbers = [item for item in fields(of) if type(item.default) in (int, float) or item.name == "limit"]
    assert numbers
    for item in numbers:
        flag = f"--{item.name.replace('_', '-')}"
        least, most = item.metadata["bounds"]
        for value, told in ((most * 10 + 1, f"too large: at most {most}"), (float("nan"), "no number: give one of")):
            with pytest.raises(UserError, match=re.escape(f"{flag} {value} is {told}")):
                of(**{item.name: value})
        with pytest.raises(UserError, match=re.escape(f"is too small: at least {least}")):
            of(**{item.name: least - 1})


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 1e-40},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.1},
        {"temperature": 1.0, "top_k": -1},
        {"top_p": 0.9},
        {"top_k": 5},
    ],
)
def test_sampling_that_means_nothing_is_refused(values):
    with pytest.raises(UserError, match="--t"):
        RunConfig(**values)
    RunConfig(temperature=0.7, top_p=0.9, top_k=5)


@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf")])
def test_learning_rate_that_cannot_train_is_refused(rate):
    with pytest.raises(UserError, match="--learning-rate"):
        TrainConfig(learning_rate=rate)
