"""Workers on Ray: they answer as one process does, whoever is killed; and how they are placed on a cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
from queue import Queue
from types import SimpleNamespace

import psutil
import pytest

from bench.config import RunConfig
from bench.errors import UserError
from bench.run import recorder
from bench.run.workers import on_ray, shipping
from tests.tiny import records, run_bench

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@with_ray
@pytest.mark.filterwarnings("ignore")
def test_a_question_of_a_killed_actor_goes_to_another_and_answers_are_those_of_one_process(
    setting, questions, flags, alone, answers, monkeypatch
):
    append, killed = recorder.append_turns, []

    def fatal(path, turns, go_on):
        append(path, turns, go_on)
        if not killed:  # an actor that is at work, or waits for the last question
            actors = [child for child in psutil.Process().children(recursive=True) if "_Actor" in child.name()]
            killed.append((len(actors), actors[0].nice()))
            os.kill(actors[0].pid, signal.SIGKILL)

    monkeypatch.setattr(recorder, "append_turns", fatal)
    assert run_bench(setting.model, questions, setting.out, *flags, "--ray", "local", "--workers", "2") == 0
    run, turns = records(setting.out)
    assert run.complete
    assert killed == [(2, psutil.Process().nice())]
    assert answers(turns) == alone
    assert set(run.workers) == {"1", "2"}


def test_without_ray_it_is_said_how_to_install_it(setting, monkeypatch, capsys):
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "vanilla", "--ray", "local") == 2
    assert "--ray needs Ray, which is not installed: pip install 'roobench[ray]'" in capsys.readouterr().err


def test_a_cluster_that_never_starts_a_worker_is_told_though_nothing_is_to_be_shipped(monkeypatch):
    class NeverError(Exception):
        """Ray's GetTimeoutError."""

    class Actor:
        def __getattr__(self, name):
            return SimpleNamespace(remote=lambda *given: name)

    def get(reference, timeout):
        raise NeverError

    actor = SimpleNamespace(options=lambda **given: SimpleNamespace(remote=lambda folder: Actor()))
    ray = SimpleNamespace(
        exceptions=SimpleNamespace(GetTimeoutError=NeverError, RayError=ValueError), get=get, remote=lambda kind: actor
    )
    monkeypatch.setattr(on_ray, "_PLACED_S", 3.0)
    worker = on_ray.RayWorker(on_ray.Cluster(ray, on_ray.Head("", "x"), []), {})
    with pytest.raises(UserError, match="has not started a worker within"):
        worker.request({"do": "hello"})


@pytest.mark.parametrize(("address", "host"), [("10.0.0.1:6379", "10.0.0.1"), ("[::1]:6379", "::1")])
def test_the_head_is_looked_for_at_its_host(monkeypatch, address, host):
    asked = Queue()
    monkeypatch.setattr(on_ray, "_LOOK_S", 0.01)
    opened = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(on_ray.socket, "create_connection", lambda where, timeout: asked.put(where) or opened)
    head = on_ray.Head(address, "x")
    assert asked.get(timeout=10) == (host, 6379)
    head.close()


# --- where workers go ------------------------------------------------------------------------------------------------

SMALL, LARGE, GPUS = {"CPU": 4.0}, {"CPU": 16.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "flags", "cores", "gpus", "workers"),
    [
        ([SMALL, LARGE], {}, 4, 0, 5),  # of equal size: one on the smaller machine, the others on the larger one
        ([SMALL, LARGE], {"workers": 2}, 8, 0, 2),
        ([SMALL, LARGE], {"workers": 3}, 5, 0, 3),
        ([SMALL, LARGE], {"threads": 2}, 2, 0, 10),
        ([SMALL], {"workers": 2, "threads": 1}, 1, 0, 2),
        ([SMALL, GPUS, GPUS], {}, 4, 1, 8),
        ([GPUS], {"workers": 2, "threads": 3}, 3, 1, 2),
        ([GPUS], {"device": "cpu"}, 16, 0, 1),
    ],
)
def test_workers_are_placed_by_gpu_or_by_cores(nodes, flags, cores, gpus, workers):
    options, count = on_ray.placement(nodes, RunConfig(ray="auto", **flags))
    assert (options["num_cpus"], options.get("num_gpus", 0), count) == (cores, gpus, workers)


@pytest.mark.parametrize(
    ("nodes", "flags", "said"),
    [
        ([GPUS], {"workers": 5}, "has 4 GPUs"),
        ([SMALL], {"device": "cuda"}, "has 0 GPUs"),
        ([SMALL], {"workers": 5}, "has room for 4 workers of 1 cores"),
        ([SMALL], {"threads": 5}, "has room for 0 workers of 5 cores"),
        ([], {}, "has room for 0 workers"),
    ],
)
def test_a_cluster_without_room_for_them_is_refused(nodes, flags, said):
    with pytest.raises(UserError, match=said):
        on_ray.placement(nodes, RunConfig(ray="auto", **flags))


def test_what_a_machine_lacks_of_the_cache_is_shipped_as_it_is(tmp_path, monkeypatch):
    """Snapshots of the hub are links to its blobs."""
    entry = tmp_path / "here" / "hub" / "models--org--name"
    (entry / "blobs").mkdir(parents=True)
    (entry / "snapshots" / "1f").mkdir(parents=True)
    (entry / "blobs" / "abc").write_bytes(b"weights")
    (entry / "snapshots" / "1f" / "model.safetensors").symlink_to("../../blobs/abc")
    checkpoint = SimpleNamespace(folder=entry / "snapshots" / "1f")
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "here"))
    (name,) = shipping.needed(RunConfig(), SimpleNamespace(checkpoint=checkpoint))
    archive = shipping.packed(name)
    assert shipping.is_there(name)
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "there"))
    assert not shipping.is_there(name)
    for _ in range(2):  # another worker may have done it meanwhile
        shipping.unpack(name, archive)
    file = tmp_path / "there" / "hub" / "models--org--name" / "snapshots" / "1f" / "model.safetensors"
    assert file.read_bytes() == b"weights"
    assert file.is_symlink()
    assert [path.name for path in (tmp_path / "there" / "hub").iterdir()] == ["models--org--name"]


def test_a_model_of_the_users_is_not_shipped(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    assert shipping.needed(RunConfig(), SimpleNamespace(checkpoint=SimpleNamespace(folder=tmp_path / "model"))) == []
