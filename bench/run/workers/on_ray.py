"""Workers on a Ray cluster: an actor each, placed by GPU or by cores. Ray is optional: pip install 'roobench[ray]'.

The code of this process is shipped to machines of the cluster, and so is what they lack of the cache (model, official
questions). Files and folders that the user names are found there by the same paths, from the same working folder.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.errors import UserError
from bench.files import SOURCES, first_line
from bench.models.loading import Model
from bench.run.workers import shipping
from bench.run.workers.links import Hire, Link, LostWorkerError
from bench.text import visible

LOCAL = "local"
_PLACED_S = 600.0  # for the cluster to find room for a worker, and for that to start
_LOOK_S = 1.0  # between looks at the cluster's head
_MISSES = 3  # looks in a row at which it does not answer, until it counts as gone
_PASSED_ON = ("GOMP_SPINCOUNT", "ROOBENCH_CACHE")  # variables of this process


class Head:
    """Watches the cluster's head: Ray itself would end this process without a word once it is gone."""

    def __init__(self, address: str, go_on: str):
        """`address`: host:port, empty where it cannot be reached from here; `go_on`: how to go on with the run."""
        host, _, port = address.rpartition(":")
        self._host, self._port, self._go_on = host.strip("[]"), port, go_on  # [...]: an IPv6 address
        self.is_gone = False
        self._ended = threading.Event()
        if host:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        misses = 0
        while not self._ended.wait(_LOOK_S) and not self.is_gone:
            try:
                socket.create_connection((self._host, int(self._port)), timeout=_LOOK_S).close()
                misses = 0
            except OSError:
                misses += 1
                self.is_gone = misses >= _MISSES

    def close(self) -> None:
        """Watch no more."""
        self._ended.set()

    def check(self) -> None:
        """Raise UserError if it is gone."""
        if self.is_gone:
            raise UserError(
                f"the head of the Ray cluster is gone; what was finished is kept: go on with {self._go_on}, and --ray "
                "ADDRESS if it has another address now"
            )


class Cluster:
    """A cluster that this process is connected to, and what its workers are started with."""

    def __init__(self, ray: Any, head: Head, entries: list[str]):
        self.ray, self.head, self.entries = ray, head, entries
        self._archives: dict[str, Any] = {}
        self._lock = threading.Lock()

    def archive(self, entry: str) -> Any:
        """An entry of the cache in Ray's store, put there once."""
        with self._lock:
            if entry not in self._archives:
                self._archives[entry] = self.ray.put(shipping.packed(entry))
            return self._archives[entry]


class RayWorker(Link):
    """An actor that answers request by request."""

    def __init__(self, cluster: Cluster, options: dict[str, Any]):
        cluster.head.check()
        self._cluster, self._ray = cluster, cluster.ray
        self._actor = cluster.ray.remote(_Actor).options(**options).remote(str(Path.cwd()))

    def request(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One call; before the first one, what the machine lacks is shipped."""
        if asked["do"] == "hello":
            self._get(self._actor.__ray_ready__.remote(), _PLACED_S)
            for entry in self._cluster.entries:
                if not self._get(self._actor.has.remote(entry)):
                    self._get(self._actor.receive.remote(entry, self._cluster.archive(entry)))
        return dict(self._get(self._actor.answer.remote(asked)))

    def _get(self, reference: Any, limit_s: float | None = None) -> Any:
        errors, waited_s = self._ray.exceptions, 0.0
        while limit_s is None or waited_s < limit_s:
            try:
                return self._ray.get(reference, timeout=_LOOK_S)
            except errors.GetTimeoutError:
                waited_s += _LOOK_S
                self._cluster.head.check()
            except errors.RayError as error:
                raise LostWorkerError(_reason(error)) from error
        raise UserError(
            f"the Ray cluster has not started a worker within {limit_s / 60:.0f} minutes: it is in use, or too small; "
            "give fewer --workers"
        )

    def end(self) -> None:
        """Kill the actor's process."""
        if not self._cluster.head.is_gone:
            with contextlib.suppress(Exception):  # it may have ended before
                self._ray.kill(self._actor)


class _Actor:
    """A worker within Ray."""

    def __init__(self, folder: str):
        """`folder`: the working folder, in which relative paths are found."""
        with contextlib.suppress(OSError):  # not on this machine: only what is named by relative paths is missed
            os.chdir(folder)
        from bench.run.workers.run_desk import RunDesk

        self._desk = RunDesk(lambda line: print(visible(line), file=sys.stderr))  # Ray keeps it in the worker's log

    def has(self, entry: str) -> bool:
        """Whether an entry of the cache is there."""
        return shipping.is_there(entry)

    def receive(self, entry: str, archive: bytes) -> None:
        """Put it there."""
        shipping.unpack(entry, archive)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """See `desk`."""
        return self._desk.answer(asked)


@contextlib.contextmanager
def hiring(config: RunConfig, model: Model, go_on: str) -> Iterator[tuple[Hire, int]]:
    """How to start the workers of a run, and how many there are to be.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or it has no room for the workers.

    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs Ray, which is not installed: pip install 'roobench[ray]'")
    ray = importlib.import_module("ray")
    _connect(ray, config)
    is_client = (config.ray or "").startswith("ray://")  # which speaks to the head through another port
    head = Head("" if is_client else ray.get_runtime_context().gcs_address, go_on)
    try:
        options, workers = placement([node["Resources"] for node in ray.nodes() if node["Alive"]], config)
        cluster = Cluster(ray, head, shipping.needed(config, model))
        yield lambda place: RayWorker(cluster, options), workers
    finally:
        head.close()
        if head.is_gone:
            atexit.unregister(ray.shutdown)  # would wait for it
        else:
            ray.shutdown()


def _connect(ray: Any, config: RunConfig) -> None:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if config.ray == LOCAL:
        path = os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH", ""))))
        cores = max(len(os.sched_getaffinity(0)), config.workers * config.threads)
        # Ray would have workers give way to whatever else runs here (nice 15), and be timed at that.
        own = {"worker_niceness": 0}
        where: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False, "_system_config": own}
        code: dict[str, Any] = {"env_vars": passed | {"PYTHONPATH": path}}
    else:
        where = {"address": config.ray}
        code = {"env_vars": passed, "py_modules": [str(SOURCES / name) for name in ("bench", "methods")]}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the output is for results alone
            ray.init(**where, **quiet, runtime_env=code)
    except Exception as error:  # Ray raises what it likes: ConnectionError, ValueError, RuntimeError, its own
        raise UserError(
            f"--ray {config.ray}: no cluster can be used there ({first_line(error)}): check its address"
        ) from error


def placement(nodes: list[dict[str, float]], config: RunConfig) -> tuple[dict[str, Any], int]:
    """What each worker takes of the cluster's resources, and how many workers there are to be.

    `nodes` are the resources of the machines. With GPUs a worker takes one; else an equal share of the cores.

    Raises:
        UserError: there is no room for them.

    """
    never = {"max_restarts": 0, "max_task_retries": 0}  # we start another one, which must be told what it is
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if config.device == "cuda" or (config.device == "auto" and any(gpus)):
        workers = config.workers or sum(gpus)
        if not 0 < workers <= sum(gpus):
            raise UserError(f"the Ray cluster has {sum(gpus)} GPUs: give at most as many --workers, or --device cpu")
        share = min(cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu)
        return {"num_gpus": 1, "num_cpus": max(1, min(config.threads or share, share)), **never}, workers

    def room(cores: int) -> int:
        return sum(cpu // cores for cpu in cpus)

    fitting = [cores for cores in range(1, max(cpus, default=0) + 1) if room(cores) >= max(1, config.workers)]
    least = min((cpu for cpu in cpus if cpu), default=1)  # without a number: a worker for each machine
    cores = config.threads or (max(fitting, default=1) if config.workers else least)
    workers = config.workers or room(cores)
    if not 0 < workers <= room(cores):
        raise UserError(
            f"the Ray cluster has room for {room(cores)} workers of {cores} cores: give fewer --workers or --threads"
        )
    return {"num_cpus": cores, **never}, workers


def _reason(error: Exception) -> str:
    """How an actor ended, on one line: the last of what Ray says is what happened."""
    said = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return next((line for line in said if "Worker exit type" in line or "Error:" in line), first_line(error))[:300]
