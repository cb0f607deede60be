"""scripts/harvest.sh: paused at once, killed without loss, never started twice; what was written is packed once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.models import checkpoints
from bench.train import packed
from bench.train.conversations import Conversations
from bench.train.journal import Journal

SCRIPT = Path(__file__).parents[1] / "scripts" / "harvest.sh"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="harvest.sh is for Linux")


@pytest.fixture
def model(tiny_checkpoint) -> Path:
    return tiny_checkpoint("tied", True).folder


@pytest.fixture
def harvest(tmp_path, give_kernels):
    """Calls the script with a cache of its own; ends what is left running."""
    cache = tmp_path / "cache"
    give_kernels(cache)

    def call(*given: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "ROOBENCH_CACHE": str(cache), "PYTHON": sys.executable}
        return subprocess.run([SCRIPT, *given], capture_output=True, text=True, env=env, check=False)

    call.cache = cache
    yield call
    call("stop")


def pid(harvest) -> int:
    return int((harvest.cache / "harvest" / "pid").read_text())


def lines(harvest) -> list[str]:
    """Those of the journal that were ended."""
    text = "".join(path.read_text() for path in harvest.cache.rglob("*.jsonl"))
    return text.splitlines()[: text.count("\n")]


def wait(condition) -> None:
    for _ in range(6000):  # it is at the lowest priority, and other tests may be at work
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come")


def test_what_was_written_outlives_pause_kill_and_stop_and_is_packed_once(harvest, model, tmp_path):
    assert harvest("start", str(model), "--tokens", "99000000").returncode == 0
    wait(lambda: len(lines(harvest)) > 5)
    assert harvest("pause").stdout == "paused\n"
    wait(lambda: "State:\tT" in Path(f"/proc/{pid(harvest)}/status").read_text())
    paused = lines(harvest)
    time.sleep(0.3)
    assert lines(harvest) == paused
    assert "paused" in harvest("status").stdout
    again = harvest("start", str(model))
    assert again.returncode == 2
    assert f"process {pid(harvest)} is writing already" in again.stderr

    killed = pid(harvest)
    os.kill(killed, signal.SIGKILL)
    wait(lambda: "not running" in harvest("status").stdout)
    assert lines(harvest) == paused
    assert harvest("resume").returncode == 0
    assert pid(harvest) != killed
    wait(lambda: len(lines(harvest)) > len(paused) + 5)
    assert harvest("stop").stdout == "stopped\n"
    assert harvest("pause").returncode == 2
    written = lines(harvest)
    assert written[: len(paused)] == paused

    out = tmp_path / "packed"
    for _ in range(2):  # the second time, there is nothing more to pack
        collected = harvest("collect", "--decontaminate", "mini", "--out", str(out))
        assert collected.returncode == 0, collected.stderr
    (path,) = out.rglob("*.npz")
    (journal,) = harvest.cache.rglob("*.jsonl")
    found = packed.load(checkpoints.resolve(str(model), log=print), out)
    assert found.digest() == Conversations.of(Journal(journal).read()).digest()
    assert max(Counter(found.prompt_keys()).values()) == 1
    assert path.name == "0001.npz"


@pytest.mark.parametrize("given", [(), ("start",), ("start", "--tokens", "5"), ("pause",), ("resume",), ("dance",)])
def test_mistakes_end_in_a_sentence(harvest, given):
    done = harvest(*given)
    assert done.returncode == 2
    assert "harvest.sh" in done.stderr


def test_questions_that_are_not_at_hand_are_not_passed_over(harvest, model):
    assert harvest("start", str(model), "--tokens", "1").returncode == 0
    assert harvest("status").returncode == 0  # its log may still be empty
    wait(lambda: lines(harvest) and "not running" in harvest("status").stdout)
    collected = harvest("collect", "--decontaminate", "absent.jsonl", "--out", str(harvest.cache / "packed"))
    assert collected.returncode == 2
    assert "absent.jsonl" in collected.stderr
    assert not (harvest.cache / "packed").exists()
