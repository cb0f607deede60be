"""bench-engine --neighbour: vanilla steps beside a busy process, which never outlives them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import psutil
import pytest
import torch

from bench.cli import main
from bench.engine.kernels import native
from bench.lab import neighbour

ROOT = Path(__file__).parents[3]
PINNED = hasattr(os, "sched_setaffinity")
FLAGS = ["bench-engine", "--neighbour", "--repeats", "1", "--context", "256"]


@pytest.fixture
def quick(monkeypatch):
    """Two rounds of one step."""
    for name, value in {"ROUNDS": 2, "_STEPS": 1, "_WARM_UP": 0, "_SETTLE_S": 0.0}.items():
        monkeypatch.setattr(neighbour, name, value)


def test_the_neighbour_is_busy_on_its_core_and_ends_with_the_block():
    core = max(os.sched_getaffinity(0)) if PINNED else None
    with neighbour.busy(core) as process:
        found = psutil.Process(process.pid)
        assert not PINNED or found.cpu_affinity() == [core]
        while found.cpu_times().user < 0.02:
            assert process.poll() is None
            time.sleep(0.01)
    assert process.returncode is not None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_neighbour_ends_with_an_error(error):
    with pytest.raises(error), neighbour.busy() as process:
        raise error
    assert process.returncode is not None


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_neighbour_ends_when_its_parent_is_killed():
    code = (
        "import time\nfrom bench.lab.neighbour import busy\nwith busy() as p: print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGTERM)
    assert parent.returncode == -signal.SIGTERM
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_torchs_operations_are_transformers(kind, tiny_model, tiny_decoder, random_ids):
    config, model = tiny_model(kind)
    decoder = neighbour.by_torch(tiny_decoder(config, model))
    assert decoder.native_layers is None
    assert {linear.layout for linear in (decoder.head, decoder.layers[0].qkv, decoder.layers[0].gate_up)} == {"plain"}
    ids = random_ids(20)
    found = decoder.logits(decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache())[0])
    with torch.inference_mode():
        torch.testing.assert_close(found, model(torch.tensor([ids])).logits[0], rtol=0, atol=1e-4)


def test_every_engine_is_timed_with_every_neighbour(quick, two_threads, setting, tmp_path, capsys):
    file, threads = tmp_path / "neighbour.json", two_threads
    assert main([*FLAGS, "--model", str(setting.model), "--device", "cpu", "--json", str(file)]) == 0
    assert torch.get_num_threads() == threads
    record = json.loads(file.read_text())
    assert {"device", "started", "commit", "command", "packages", "warnings"} <= record.keys()
    found = record["neighbour"]
    assert (found["rounds"], found["steps_a_round"]) == (2, 1)
    rows = {(row["engine"], row["threads"], row["neighbour"]): row for row in found["rows"]}
    engines = ["operations", *(["kernels"] if native.kernels() else [])]
    beside = ["quiet", "free", *(["pinned"] if PINNED else [])]
    assert rows.keys() == set(product(engines, {threads, 1}, beside))
    for (_, of, name), row in rows.items():
        assert 0 < row["median_ms"] <= row["p90_ms"]
        assert row["of_quiet"] > 0
        assert name != "quiet" or row["of_quiet"] == 1
        assert of != threads or row["of_quiet_all_threads"] == row["of_quiet"]
    told = capsys.readouterr().out
    for words in ("of quiet, all threads", *engines, *beside):
        assert words in told


def test_a_ratio_is_the_median_of_the_rounds():
    """Two of three rounds took twice as long; a stall in one moves the figures of its round only."""
    quiet, beside = [[1.0, 3.0], [2.0, 2.0], [1.0, 1.0]], [[4.0, 4.0], [3.0, 5.0], [1.0, 99.0]]
    assert neighbour._ratio(beside, quiet) == 2.0
    assert neighbour._figures([[0.001, 0.002], [0.003]]) == pytest.approx(
        {"median_ms": 2.0, "mean_ms": 2.0, "p90_ms": 2.8}
    )


def test_methods_and_peers_are_refused(capsys):
    assert main([*FLAGS, "--method", "vanilla"]) == 2
    assert "--method: --neighbour times vanilla alone: leave it out" in capsys.readouterr().err
