"""Runs by several processes: they answer as one process does, and whoever is killed, nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.cli import main
from bench.run.workers import local
from tests.tiny import ANOTHER, QUESTIONS, records, run_bench, write_questions

ROOT = Path(__file__).parents[4]
# Cores are shared where there are fewer: what is asked and answered does not depend on it.
TWO = ("--workers", "2", "--threads", "1")
COUNTERS = ("token_ids", "per_step_drafted", "per_step_accepted", "per_step_emitted", "per_step_depth", "prompt_digest")
MORE = tuple((20 + i, "qa", (f"Name {fruit}.",)) for i, fruit in enumerate(("quinces", "medlars", "lychees")))


def keys(turns):
    return sorted((t.method, t.question_id, t.turn, t.round) for t in turns)


def answers(turns):
    return {(t.method, t.question_id, t.turn, t.round): [getattr(t, name) for name in COUNTERS] for t in turns}


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path / "six.jsonl", *QUESTIONS, *MORE)


@pytest.fixture
def flags(setting):
    return ["--method", setting.kangaroo, "--peer", "hf-generate", "--rounds", "2", "--threads", "1"]


@pytest.fixture
def alone(setting, questions, flags, tmp_path):
    """The same run by one process."""
    assert run_bench(setting.model, questions, tmp_path / "alone", *flags) == 0
    return records(tmp_path / "alone")[1]


def test_two_workers_answer_as_one_process_does(setting, questions, flags, alone):
    assert run_bench(setting.model, questions, setting.out, *flags, *TWO) == 0
    run, turns = records(setting.out)
    assert run.complete
    assert answers(turns) == answers(alone)
    assert len(turns) == len(alone)
    assert {t.worker for t in turns} == set(run.workers) == {"1", "2"}
