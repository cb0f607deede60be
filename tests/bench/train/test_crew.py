"""Workers of trainings write and compute what one process does, and whoever is killed, nothing is lost or doubled."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.cli import main
from bench.errors import UserError
from bench.models import loading
from bench.models.loading import Compute
from bench.run.workers import local
from bench.train import crew, loop, training
from bench.train.conversations import NONE, Conversations, complete, make
from bench.train.journal import Journal
from bench.train.loop import FINAL, chunks, features
from bench.train.prompts import KINDS
from bench.train.writer import Recipe, prompt_key
from bench.train_config import Writing
from tests.bench.run.workers.test_local_workers import has_ended, kill_at
from tests.bench.train.test_kangaroo_training import KANGAROO, Short
from tests.bench.train.written import SMALL

ROOT = Path(__file__).parents[3]
TOKENS = 900
TWO = {"workers": 2, "threads": 1, "precision": "float32"}
FLAGS = ["--workers", "2", "--threads", "1", "--precision", "float32"]

pytestmark = pytest.mark.usefixtures("short_prompts", "cache", "forks")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory, give_kernels):
    """One cache, because every worker is a process that would compile the kernels again."""
    return Path(give_kernels(tmp_path_factory.mktemp("crew-cache")))


@pytest.fixture
def cache(shared_cache, monkeypatch):
    for made in ("conversations", "features"):
        shutil.rmtree(shared_cache / made, ignore_errors=True)
    monkeypatch.setenv("ROOBENCH_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return str(tiny_checkpoint("tied", True).folder)


@pytest.fixture
def loaded(model):
    return loading.load(loading.find(model, None, print), Compute("cpu", "float32", 1), Recipe.length, print)


def by_prompt(rows) -> dict[bytes, tuple]:
    """The conversations of a journal by their prompts; fails if one is there twice."""
    found = {prompt_key(row.tokens[: row.answers[0][0]]): (row.kind, row.tokens, row.answers) for row in rows}
    assert len(found) == len(rows)
    return found


def journaled(folder: Path) -> dict[bytes, tuple]:
    (path,) = folder.rglob("*.jsonl")
    return by_prompt(Journal(path).read())


def check_same(found: dict[bytes, tuple], alone: dict[bytes, tuple]) -> None:
    """Whether two processes answered alike, and the same prompts of each kind, but for the last few of one of them."""
    assert all(alone[key] == row for key, row in found.items() if key in alone)
    for kind in KINDS:
        mine, theirs = ({key for key, row in rows.items() if row[0] == kind} for rows in (found, alone))
        assert mine <= theirs or theirs <= mine
        assert len(mine ^ theirs) <= 2 * SMALL.batch
        assert mine


def test_workers_write_what_one_process_writes_though_one_of_them_is_killed(
    model, loaded, tmp_path, monkeypatch, working
):
    recipe = Recipe(**vars(SMALL) | {"tokens": TOKENS})
    make(loaded.target, loaded.chat, loaded.eos, recipe, tmp_path / "alone")
    count, told, said = itertools.count(), [], []
    killed = kill_at(monkeypatch, lambda asked: asked["do"] == "next" and next(count) == 5)
    write = functools.partial(crew.write, Writing(model, **TWO), recipe, said.append, told.append)
    found = complete("tiny", loaded.chat, recipe, tmp_path / "crew", write, told.append, NONE)
    assert len(killed) == 1
    assert any("was lost while it was at a batch of" in line for line in said)
    assert not working()
    check_same(journaled(tmp_path / "crew"), journaled(tmp_path / "alone"))
    assert found.answer_tokens >= TOKENS
    assert sum(told) >= found.answer_tokens  # those of the conversation that was lost count twice
    (journal,) = (tmp_path / "crew").glob("*.jsonl")
    assert Conversations.of(Journal(journal).read()).digest() == found.digest()


# Kills its own process with SIGKILL once three conversations are in the journal, and says who worked for it.
KILLED = """
import os, signal, sys
import psutil
from bench.cli import main
from bench.train import journal, prompts, training
from tests.bench.train.test_kangaroo_training import Short
from tests.tiny import short_prompt

prompts.prompt, training.Recipe = short_prompt, Short
to_line, ended = journal.Conversation.to_line, []

def last_words(self):
    ended.append(self)
    if len(ended) == 4:
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return to_line(self)

journal.Conversation.to_line = last_words
main(sys.argv[1:])
"""


def test_a_killed_driver_takes_its_workers_along_and_its_conversations_are_gone_on_with(model, cache, monkeypatch):
    arguments = ["train", "conversations", "--model", model, "--tokens", "200", *FLAGS]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -signal.SIGKILL
    workers = list(map(int, done.stdout.split()))
    assert len(workers) == 2
    assert all(map(has_ended, workers))
    before = journaled(cache)
    assert len(before) == 3
    monkeypatch.setattr(training, "Recipe", Short)
    assert main([*arguments, "--workers", "0"]) == 0  # in one process
    after = journaled(cache)
    assert before.items() <= after.items()
    assert sum(end - begin for _, _, answers in after.values() for begin, end in answers) >= 200


def test_states_are_those_of_one_process_though_a_worker_is_killed(model, loaded, tmp_path, monkeypatch, working):
    recipe = Recipe(**vars(SMALL) | {"tokens": TOKENS})
    made = make(loaded.target, loaded.chat, loaded.eos, recipe, tmp_path / "conversations")
    alone, theirs, width = tmp_path / "alone", tmp_path / "crew", loaded.target.config.hidden
    features(loaded.target, made, alone, [1])
    features(loaded.target, made.keep([i < 16 for i in range(len(made.lengths))]), theirs, [1])
    kept = {path: path.stat().st_mtime_ns for path in theirs.rglob("*.safetensors")}
    assert len(kept) == 2
    missing = {chunk: layers for chunk in chunks(made, theirs, width) if (layers := chunk.missing([FINAL, 1]))}
    assert [chunk.first for chunk in missing] == list(range(16, len(made.lengths), 16))
    count, told = itertools.count(), []
    killed = kill_at(monkeypatch, lambda asked: asked["do"] == "compute" and next(count) == 0)
    crew.compute(Writing(model, **TWO), missing, print, told.append)
    assert len(killed) == 1
    assert not working()
    assert sum(told) == sum(chunk.tokens for chunk in missing)
    assert contents(theirs) == contents(alone)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_method_is_trained_on_states_that_workers_computed(model, tmp_path, monkeypatch, working):
    monkeypatch.setattr(training, "Recipe", Short)
    monkeypatch.setattr(loop, "_states", None)
    monkeypatch.setattr(training.conversations, "Writer", None)
    arguments = ["train", *KANGAROO, "--model", model, "--out", str(tmp_path / "out"), *FLAGS, "--workers", "1"]
    assert main(arguments) == 0
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    (settings,) = re.findall("^- Settings:.*$", (tmp_path / "out" / "README.md").read_text(), re.MULTILINE)
    assert "seed 0" in settings
    assert "workers" not in settings
    assert not working()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_worker_that_fails_at_once_is_given_up_with_its_last_words(model, monkeypatch, capsys, working):
    request, loads = local.LocalWorker.request, []

    def wrong(self, asked):
        if asked["do"] == "load":
            loads.append(asked)
            asked = asked | {"dtype": "float99"}
        return request(self, asked)

    monkeypatch.setattr(local.LocalWorker, "request", wrong)
    assert main(["train", "conversations", "--model", model, "--tokens", "200", "--workers", "1"]) == 2
    assert len(loads) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: no worker is left, the last one ended with: exit status 1; its last words: KeyError: 'float99'; if "
        "memory is short, give fewer --workers; what was finished is kept, and the same command goes on"
    )
    assert not working()


def test_a_cache_that_takes_no_states_ends_all_workers(model, loaded, tmp_path, working):
    made = make(loaded.target, loaded.chat, loaded.eos, SMALL, tmp_path)
    (tmp_path / str(FINAL)).write_text("in the way")
    missing = {chunk: [FINAL] for chunk in chunks(made, tmp_path, loaded.target.config.hidden)}
    with pytest.raises(UserError, match=r"cannot write to the cache .*: set ROOBENCH_CACHE"):
        crew.compute(Writing(model, **TWO), missing, print, lambda tokens: None)
    assert not working()


def test_one_gpu_is_not_for_several_workers(model, capsys):
    assert main(["train", "conversations", "--model", model, "--workers", "2", "--device", "cuda:1"]) == 2
    assert "--device cuda:1 is one GPU, but every worker has its own" in capsys.readouterr().err


@pytest.mark.parametrize(("context", "length"), [(512, 512), (8192, Recipe.length)])
def test_no_conversation_leaves_the_context_of_the_model(monkeypatch, context, length):
    asked = []
    monkeypatch.setattr(training.conversations, "complete", lambda name, chat, recipe, *rest: asked.append(recipe))
    made_of = SimpleNamespace(name="tiny", sha256="0" * 64)
    model = SimpleNamespace(name="tiny", chat=None, context=context, checkpoint=made_of)
    training._written(Writing(workers=2), model, NONE, print)
    assert [recipe.length for recipe in asked] == [length]
