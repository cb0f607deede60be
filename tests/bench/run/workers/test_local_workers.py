"""Runs by several processes: they answer as one process does, and whoever is killed, nothing is lost or doubled."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from bench.cli import main
from bench.run import recorder
from bench.run.workers import local
from tests.tiny import records, run_bench

ROOT = Path(__file__).parents[4]
# Cores are shared where there are fewer: what is asked and answered does not depend on it.
TWO = ("--workers", "2", "--threads", "1")


def test_two_workers_answer_as_one_process_does_and_every_turn_names_one(setting, questions, flags, alone, answers):
    assert run_bench(setting.model, questions, setting.out, *flags, *TWO) == 0
    run, turns = records(setting.out)
    assert run.complete
    assert answers(turns) == alone
    assert {t.worker for t in turns} == set(run.workers) == {"1", "2"}
    assert {t.machine for t in turns} == {run.machine.digest}
    assert [worker.place for worker in run.workers.values()] == [1, 2]
    assert all(one.machine.kind == run.machine.kind and one.host and one.cores for one in run.workers.values())
    assert (run.config["workers"], run.provenance["sessions"][0]["workers"]) == (2, 2)
    by_question = {}
    for turn in turns:
        by_question.setdefault((turn.question_id, turn.round), set()).add(turn.worker)
    assert all(len(workers) == 1 for workers in by_question.values())
    assert "Workers of the run" in (setting.out / "report.html").read_text()


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch):
    """All requests to workers, with their answers."""
    made, request = [], local.LocalWorker.request

    def spy(self, asked):
        answer = request(self, asked)
        made.append((asked, answer))
        return answer

    monkeypatch.setattr(local.LocalWorker, "request", spy)
    return made


@pytest.fixture
def gain(setting, tiny_adapter):
    """Kangaroo with an adapter whose default is to stop by gain, by costs that are measured at the start."""
    curve = [0.5] * 21
    changes = {"calibration": {"accepted": curve, "following": curve}, "knobs": {"stop": "gain"}}
    return f"kangaroo:weights={tiny_adapter(setting.hf, changes=changes)}"


@pytest.mark.usefixtures("forks")
def test_costs_are_measured_once_and_all_ask_with_them(setting, gain, requests):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", gain, *TWO) == 0
    run, _ = records(setting.out)
    costs = run.methods[gain].measured["costs"]
    begun = [asked["begun"] for asked, _ in requests if asked["do"] == "prepare"]
    assert sorted(map(bool, begun)) == [False, True]
    prepared = [answer["run"]["methods"][gain] for asked, answer in requests if asked["do"] == "prepare"]
    assert len(prepared) == 2
    assert all((one["config"] | one["measured"])["costs"] == costs != "" for one in prepared)
    assert prepared[0]["costs"] == prepared[1]["costs"]


@pytest.fixture
def unlike(monkeypatch):
    """The second worker says that it is on a machine with another processor."""
    request = local.LocalWorker.request

    def another(self, asked):
        answer = request(self, asked)
        if asked["do"] == "sit" and self.log_file.stem == "2":
            answer["machine"]["name"] = answer["machine"]["processor"]["name"] = "Abacus"
        return answer

    monkeypatch.setattr(local.LocalWorker, "request", another)


@pytest.mark.usefixtures("forks", "unlike")
def test_unlike_machines_are_refused(setting, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo, *TWO) == 2
    said = capsys.readouterr().err
    assert "workers are on unlike machines" in said
    assert "Abacus" in said
    assert "--mix-machines" in said
    assert not setting.out.exists()


@pytest.mark.usefixtures("forks", "unlike")
def test_unlike_machines_that_are_asked_for_measure_their_own_costs(setting, gain, requests):
    flags = ["--method", gain, *TWO, "--mix-machines"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    run, turns = records(setting.out)
    assert [asked["begun"] for asked, _ in requests if asked["do"] == "prepare"] == [None, None]
    names = {worker.machine.name for worker in run.workers.values()}
    assert len(names) == 2
    (kind,) = run.kinds
    measured = run.kinds[kind][gain].measured["costs"]
    assert run.methods[gain].measured["costs"] != ""
    assert measured != ""
    digests = {name: worker.machine.digest for name, worker in run.workers.items()}
    assert all(turn.machine == digests[turn.worker] for turn in turns)
    assert {turn.audit.verdict for turn in turns if turn.audit} == {"identical"}


# --- whoever is killed -----------------------------------------------------------------------------------------------


def kill_at(monkeypatch, which):
    """Kill a worker with SIGKILL after it was sent a request for which `which` is true, and before it answers."""
    request = local.LocalWorker.request
    killed = []

    def fatal(self, asked):
        if which(asked):
            killed.append(asked)
            self.process.send_signal(signal.SIGSTOP)
            threading.Timer(0.05, self.process.kill).start()
        return request(self, asked)

    monkeypatch.setattr(local.LocalWorker, "request", fatal)
    return killed


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("number", [0, 4])
def test_a_killed_workers_question_goes_to_another(
    setting, questions, flags, alone, answers, monkeypatch, capsys, number
):
    count = itertools.count()
    killed = kill_at(monkeypatch, lambda asked: asked["do"] == "ask" and next(count) == number)
    assert run_bench(setting.model, questions, setting.out, *flags, *TWO) == 0
    run, turns = records(setting.out)
    assert run.complete
    assert len(killed) == 1
    assert answers(turns) == alone
    assert run.provenance["sessions"][0]["lost"] == 1
    assert re.search(rf"worker \d was lost while it was at question {killed[0]['question']}", capsys.readouterr().err)


@pytest.mark.usefixtures("forks")
def test_a_worker_that_is_killed_while_it_gets_ready_is_replaced(
    setting, questions, flags, alone, answers, monkeypatch
):
    count = itertools.count()
    kill_at(monkeypatch, lambda asked: asked["do"] == "prepare" and next(count) == 0)
    assert run_bench(setting.model, questions, setting.out, *flags, *TWO) == 0
    assert answers(records(setting.out)[1]) == alone


def test_workers_that_never_get_ready_end_the_run(setting, monkeypatch, capsys):
    killed = kill_at(monkeypatch, lambda asked: asked["do"] == "hello")
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla", *TWO) == 2
    assert "no worker is left, the last one ended with: killed by signal 9" in capsys.readouterr().err
    assert len(killed) == 2 * 3
    assert not setting.out.exists()


@pytest.mark.usefixtures("forks")
def test_a_question_that_costs_worker_after_worker_ends_the_run_and_can_be_asked_later(
    setting, questions, flags, alone, answers, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        killed = kill_at(patch, lambda asked: asked["do"] == "ask" and asked["question"] == 20)
        assert run_bench(setting.model, questions, setting.out, *flags, *TWO) == 2
    assert "question 20 has ended 3 workers" in capsys.readouterr().err
    # The other round's question may have ended workers too by then.
    assert max(Counter(asked["round"] for asked in killed).values()) == 3
    run, turns = records(setting.out)
    assert not run.complete
    assert 20 not in {turn.question_id for turn in turns}
    assert main(["--resume", str(setting.out)]) == 0
    assert answers(records(setting.out)[1]) == alone


# Kills its own process with SIGKILL once the next question is written down, and says who worked for it.
KILLED = """
import os, signal, sys
import psutil
from bench.figures import records
from bench.run import recorder
from bench.cli import main

append = records.append_turns

def last_words(path, turns, go_on):
    append(path, turns, go_on)
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

recorder.append_turns = last_words
main(sys.argv[1:])
"""


@pytest.mark.usefixtures("forks")  # of this process: those that are killed have workers of their own
def test_a_killed_driver_takes_its_workers_along_and_the_run_goes_on(setting, questions, flags, alone, answers):
    given = ["--model", setting.model, "--questions", questions, "--out", setting.out, "--max-new-tokens", "8"]
    again = ["--resume", setting.out]
    for arguments, count in (([*given, *flags, *TWO], 2), (again, 2), ([*again, "--workers", "1"], 1)):
        command = [sys.executable, "-c", KILLED, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True)
        assert done.returncode == -signal.SIGKILL
        workers = list(map(int, done.stdout.split()))
        assert len(workers) == count
        assert all(map(has_ended, workers))
    run, turns = records(setting.out)
    assert not run.complete
    assert len({(turn.question_id, turn.round) for turn in turns}) == 3
    assert main(["--resume", str(setting.out)]) == 0
    run, turns = records(setting.out)
    assert run.complete
    assert answers(turns) == alone
    assert len(run.provenance["sessions"]) == 4
    assert set(run.workers) == {"1", "2"}


def has_ended(pid: int) -> bool:
    """Whether a process ends within a minute; the test's own process does not adopt it, so it may stay a zombie."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_keeps_what_is_finished_and_ends_all_workers(
    setting, questions, flags, alone, answers, monkeypatch, capsys, request
):
    append, count, before = recorder.append_turns, itertools.count(), psutil.Process().children()

    def interrupted(path, turns, go_on):
        append(path, turns, go_on)
        if next(count):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "append_turns", interrupted)
        assert run_bench(setting.model, questions, setting.out, *flags, *TWO) == 130
    assert "go on with" in capsys.readouterr().err
    assert psutil.Process().children() == before
    run, turns = records(setting.out)
    assert not run.complete
    assert len({(turn.question_id, turn.round) for turn in turns}) == 2
    assert (setting.out / "report.md").exists()
    request.getfixturevalue("forks")
    assert main(["--resume", str(setting.out)]) == 0
    assert answers(records(setting.out)[1]) == alone


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch", "2"], "--batch needs all answers in one process"),
        (["--device", "cuda:1"], "--device cuda:1 is one GPU, but every worker has its own"),
        (["--method", "suffix:run"], "remembers its answers to earlier questions"),
        (
            ["--method", "vanilla", "--peer", "openai:url=http://localhost:1/v1"],
            "is one server, which several workers would ask",
        ),
        (["--method", "vanilla", "--threads", "0"], "2 workers cannot have 1 core on "),
    ],
)
def test_what_does_not_fit_to_workers_is_refused(setting, monkeypatch, capsys, flags, said):
    monkeypatch.setattr(local.LocalWorker, "request", one_core(local.LocalWorker.request))
    assert run_bench(setting.model, setting.questions, setting.out, *TWO, *flags) == 2
    assert said in capsys.readouterr().err
    assert not setting.out.exists()


def one_core(request):
    """Workers that say that their machine has one core."""

    def answer(self, asked):
        found = request(self, asked)
        return found | {"cores": found["cores"][:1]} if asked["do"] == "hello" else found

    return answer


def test_mixing_machines_without_workers_is_refused(setting, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, "--mix-machines") == 2
    assert "--mix-machines is about workers" in capsys.readouterr().err


@pytest.mark.usefixtures("forks")
def test_workers_that_share_cores_are_warned_of(setting, monkeypatch):
    monkeypatch.setattr(local.LocalWorker, "request", one_core(local.LocalWorker.request))
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla", *TWO) == 0
    assert any("share 1 core on" in text for text in records(setting.out)[0].provenance["warnings"])


@pytest.mark.parametrize("command", ["run-worker", "train-worker"])
def test_a_worker_that_nobody_started_says_so(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert f"{command} is started by a " in said
    assert "which says what to do; it was told 'hello" in said


def test_workers_that_fail_at_once_are_given_up_with_their_last_words(setting, monkeypatch, tmp_path, capsys):
    python, started = tmp_path / "python", tmp_path / "started"
    python.write_text(f"#!/bin/sh\necho $$ >>{started}\necho 'no module named bench' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(local.sys, "executable", str(python))
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla", *TWO) == 2
    said = capsys.readouterr().err
    assert "no worker is left, the last one ended with: exit status 3; its last words: no module named bench" in said
    assert len(started.read_text().splitlines()) == 2 * 3
    assert not setting.out.exists()
