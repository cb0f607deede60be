"""Threads at the start of a run: fewer where others hold cores for longer than a moment, and never silently."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.cli import main
from bench.config import RunConfig
from bench.figures.records import read_run
from bench.run import cores
from bench.run.cores import on_free_cores

TICKS_S = 0.01


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Four cores whose load in each look, and ours, the test sets: in cores that are busy by core number."""
    state = SimpleNamespace(looks=[{}], own=0.0, now=100.0, own_s=5.0, taken=0, threads=4, cores={0, 1, 2, 3})
    ticks = {core: [100, 3, 50, 9000, 40, 2, 5, 0, 70, 1] for core in range(4)}
    stat = tmp_path / "stat"

    def write():
        each = [sum(column) for column in zip(*ticks.values(), strict=True)]
        lines = [f"cpu  {' '.join(map(str, each))}"]
        lines += [f"cpu{core} {' '.join(map(str, values))}" for core, values in ticks.items()]
        stat.write_text("\n".join([*lines, "intr 1 2 3", "ctxt 99", "btime 1790000000", "softirq 5 0 1"]) + "\n")

    def sleep(seconds):
        load = state.looks[min(state.taken, len(state.looks) - 1)]
        state.taken += 1
        for core, values in ticks.items():
            share, column = load.get(core, (0.0, 0))
            used = round(share * seconds / TICKS_S)
            values[column] += used
            values[3] += round(seconds / TICKS_S) - used
            values[8] += used if column == 0 else 0  # a guest's time is in user's as well
        state.now += seconds
        state.own_s += state.own * seconds
        write()

    write()
    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: state.now, process_time=lambda: state.own_s)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "_STAT", stat)
    monkeypatch.setattr(cores, "time", clock)
    monkeypatch.setattr(cores.os, "sysconf", lambda name: round(1 / TICKS_S))
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: state.cores, raising=False)
    monkeypatch.setattr(cores.torch, "get_num_threads", lambda: state.threads)
    return state


USER, NICE, IDLE, IOWAIT, STEAL = 0, 1, 3, 4, 7
CONFIG = RunConfig(device="cpu")


@pytest.mark.parametrize(
    ("load", "threads"),
    [
        ({2: (1.0, USER)}, 3),
        ({2: (1.0, NICE)}, 3),
        ({2: (1.0, STEAL)}, 3),
        (dict.fromkeys(range(4), (0.3, USER)), 3),  # one process that wanders
        ({0: (1.0, USER), 1: (1.0, USER), 3: (0.9, USER)}, 1),
        (dict.fromkeys(range(4), (1.0, USER)), 1),  # never none
    ],
)
def test_a_held_core_is_left_to_whoever_holds_it(machine, load, threads):
    machine.looks = [load]
    settings, (told,) = on_free_cores(CONFIG)
    assert settings.threads == threads
    held = sum(share for share, _ in load.values())
    assert f"other programs hold {held:.1f} of 4 cores: computing with {threads} instead of 4 threads" in told
    assert "--threads 4 for all" in told


@pytest.mark.parametrize(
    "load",
    [{}, {2: (0.5, USER)}, dict.fromkeys(range(4), (1.0, IOWAIT)), dict.fromkeys(range(4), (0.1, USER))],
)
def test_a_quiet_machine_changes_nothing_after_one_look(machine, load):
    machine.looks = [load]
    assert on_free_cores(CONFIG) == (CONFIG, [])
    assert machine.taken == 1


def test_a_burst_is_no_neighbour(machine):
    machine.looks = [{1: (1.0, USER)}, {}]
    assert on_free_cores(CONFIG) == (CONFIG, [])
    assert machine.taken == 2


def test_our_own_work_is_not_anothers(machine):
    machine.looks, machine.own = [{1: (1.0, USER)}], 1.0
    assert on_free_cores(CONFIG) == (CONFIG, [])


def test_cores_that_we_may_not_use_do_not_count(machine):
    machine.cores, machine.threads = {0, 1}, 2
    machine.looks = [{2: (1.0, USER), 3: (1.0, USER)}]
    assert on_free_cores(CONFIG) == (CONFIG, [])
    machine.looks = [{1: (1.0, USER)}]
    assert on_free_cores(CONFIG)[0].threads == 1


def test_a_held_core_is_no_loss_where_there_are_more_cores_than_threads(machine):
    """Torch takes one thread for each physical core."""
    machine.threads, machine.looks = 2, [{0: (1.0, USER), 1: (1.0, USER)}]
    assert on_free_cores(CONFIG) == (CONFIG, [])


def test_the_users_choice_stands(machine, monkeypatch):
    machine.looks = [dict.fromkeys(range(4), (1.0, USER))]
    given = RunConfig(device="cpu", threads=4)
    assert on_free_cores(given) == (given, [])
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert on_free_cores(CONFIG) == (CONFIG, [])
    assert machine.taken == 0


@pytest.mark.parametrize("content", [None, "intr 1 2 3\n"])
def test_where_the_system_does_not_say_nothing_changes(machine, content, monkeypatch):
    cores._STAT.unlink()
    if content is not None:
        cores._STAT.write_text(content)
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: setattr(machine, "now", machine.now + seconds))
    assert on_free_cores(CONFIG) == (CONFIG, [])


def test_a_run_says_and_records_it_and_goes_on_with_it(setting, tmp_path, monkeypatch, capsys):
    """As a setting of the run: resumed, compared or gated, it keeps its threads."""
    before = torch.get_num_threads()
    told = "other programs hold 1.0 of 2 cores"
    monkeypatch.setattr(cores, "on_free_cores", lambda config: (replace(config, threads=1), [told]))
    folder = tmp_path / "run"
    flags = ["--model", str(setting.model), "--method", setting.kangaroo, "--peer", "none", "--tasks", "qa"]
    flags += ["--limit", "1", "--max-new-tokens", "4", "--device", "cpu"]
    try:
        assert main([*flags, "--out", str(folder)]) == 0
    finally:
        torch.set_num_threads(before)
    record = read_run(folder)
    assert (record.config["threads"], record.machine.threads) == (1, 1)
    assert told in record.provenance["warnings"]
    assert f"WARNING: {told}" in capsys.readouterr().err
