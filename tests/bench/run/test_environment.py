"""What others do on this machine is told from what we do ourselves."""

import subprocess
from types import SimpleNamespace

import pytest

from bench.run import environment


@pytest.fixture
def clock(monkeypatch):
    """Processor seconds and wall seconds, set by the test."""
    now = SimpleNamespace(all={"user": 100.0, "idle": 900.0, "iowait": 5.0, "steal": 0.0}, own=10.0, wall=50.0)
    monkeypatch.setattr(environment.psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(environment.psutil, "cpu_times", lambda: _Times(now.all))
    monkeypatch.setattr(environment.time, "process_time", lambda: now.own)
    monkeypatch.setattr(environment.time, "monotonic", lambda: now.wall)
    return now


class _Times(tuple):
    def __new__(cls, values):
        made = super().__new__(cls, values.values())
        for name, value in values.items():
            setattr(made, name, value)
        return made


@pytest.mark.parametrize(
    ("called", "recorded"),
    [
        ("run_bench.py", "python run_bench.py --out 'a b'"),
        ("/somewhere/bench/__main__.py", "python -m bench --out 'a b'"),
        ("/somewhere/.venv/bin/roobench", "roobench --out 'a b'"),
    ],
)
def test_a_command_is_recorded_as_it_can_be_typed_again(called, recorded, monkeypatch):
    monkeypatch.setattr(environment.sys, "argv", [called, "--out", "a b"])
    assert environment.command_line() == recorded


def test_own_work_is_not_counted(clock):
    meter = environment.OthersMeter()
    clock.all = clock.all | {"user": 120.0, "idle": 920.0}
    clock.own, clock.wall = 30.0, 60.0  # 20 of 40 processor seconds, all ours
    assert meter.share() == 0


def test_work_of_others_and_stolen_time_are_a_share_of_all_processors(clock):
    meter = environment.OthersMeter()
    clock.all = clock.all | {"user": 126.0, "steal": 4.0, "iowait": 15.0}
    clock.own, clock.wall = 30.0, 60.0
    assert meter.share() == pytest.approx((26 + 4 - 20) / 40)


def test_before_any_time_has_passed_nobody_is_busy(clock):
    assert environment.OthersMeter().share() == 0


def test_a_short_turn_has_no_share(clock):
    meter = environment.OthersMeter()
    clock.all, clock.wall = clock.all | {"user": 100.4}, 50.2
    assert meter.turn_share() is None
    clock.wall = 51.0
    assert meter.turn_share() == 0.1


def test_processes_of_a_peer_are_no_other_programs(clock):
    session, used = environment.OthersMeter(), iter([3.0, 18.0])
    with session.during(lambda: next(used)) as turn:
        clock.all, clock.wall = clock.all | {"user": 119.0}, 60.0  # 4 of 19 seconds are others'
    assert turn.turn_share() == session.share() == pytest.approx(4 / 40)


@pytest.mark.parametrize("used", [(None, None), (3.0, None)], ids=["a server", "one that ended"])
def test_time_of_a_peer_whose_processes_are_not_known_is_left_out(clock, used):
    session, left = environment.OthersMeter(), iter(used)
    clock.all, clock.own, clock.wall = clock.all | {"user": 112.0}, 18.0, 60.0  # 4 of 12 seconds are others'
    with session.during(lambda: next(left)) as turn:
        clock.all, clock.own, clock.wall = clock.all | {"user": 152.0}, 19.0, 70.0
    assert turn.turn_share() is None
    assert session.share() == pytest.approx(4 / 40)


@pytest.mark.parametrize(("threads", "advised"), [(2, True), (1, False)])
def test_a_busy_machine_is_warned_of_and_fewer_threads_are_advised(monkeypatch, threads, advised):
    monkeypatch.setattr(environment.torch, "get_num_threads", lambda: threads)
    assert environment.busy_warning(0.05) is None
    text = environment.busy_warning(0.6)
    assert "other programs use 60% of the processors" in text
    assert ("--threads 1 may be faster" in text) == advised


def test_without_a_share_it_is_measured_now(monkeypatch):
    monkeypatch.setattr(environment.psutil, "cpu_percent", lambda interval: 40.0)
    assert "use 40% of" in environment.busy_warning()


def test_what_the_bench_writes_is_no_change_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "SOURCES", tmp_path)
    for name in ("bench", "results", "plots"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("as committed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    assert environment.describe_software()["dirty"] is False
    (tmp_path / "results" / "file").write_text("measured again")
    (tmp_path / "plots" / "file").unlink()
    assert environment.describe_software()["dirty"] is False
    (tmp_path / "bench" / "file").write_text("changed")
    assert environment.describe_software()["dirty"] is True
