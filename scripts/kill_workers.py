"""Kill processes of a run by workers at random moments, resume it each time, and check what it leaves.

    python scripts/kill_workers.py --times 20 --ray local -- --method kangaroo --questions official --limit 6

First one process answers all questions, with one thread. Then two workers of one core do, with the knobs that it
measured. A victim, drawn from `--victims` (a worker, Ray's head, the driver), is killed with SIGKILL after a random
part of the time that the run took undisturbed; the run is resumed until it is complete, and must then hold every turn
once, with the tokens and steps of the first run. Exit status 0: nothing was lost, doubled or changed, in any of the
times.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts.same_steps import compare, read  # noqa: E402

WORKERS = ["--workers", "2", "--threads", "1"]
MOST_RESUMES = 5
VICTIMS = {"worker": ("run-worker", "ray::_Actor"), "head": ("gcs_server",), "driver": ()}


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own."""
    return subprocess.Popen([sys.executable, str(ROOT / "run_bench.py"), *arguments], stdout=subprocess.DEVNULL)


def run(*arguments: str) -> float:
    """The seconds of a run that must succeed."""
    begin_s = time.monotonic()
    if status := start(*arguments).wait():
        sys.exit(f"the run ended with status {status}: {' '.join(arguments)}")
    return time.monotonic() - begin_s


def with_costs(arguments: list[str], folder: Path) -> list[str]:
    """The arguments with each method's knobs as the run in `folder` measured or chose them, so that all draft alike."""
    methods = json.loads((folder / "run.json").read_text(encoding="utf-8"))["methods"]
    fixed = list(arguments)
    for place, argument in enumerate(arguments):
        measured = methods.get(argument, {}).get("measured", {})
        if place and arguments[place - 1] == "--method" and measured:
            knobs = ",".join(f"{knob}={value}" for knob, value in measured.items())
            fixed[place] = f"{argument}{',' if ':' in argument else ':'}{knobs}"
    return fixed


def victims(driver: psutil.Process, kind: str) -> list[psutil.Process]:
    """The processes of a kind that belong to a run now."""
    if kind == "driver":
        return [driver]
    found = []
    for process in driver.children(recursive=True):
        try:
            called = " ".join([process.name(), *process.cmdline()])
        except psutil.Error:
            continue
        if any(word in called for word in VICTIMS[kind]):
            found.append(process)
    return found


def kill_after(process: subprocess.Popen[bytes], kind: str, moment_s: float) -> bool:
    """Kill a process of a kind after a while, or as soon as there is one; return whether it came to that."""
    driver, begin_s = psutil.Process(process.pid), time.monotonic()
    while process.poll() is None:
        if time.monotonic() - begin_s >= moment_s and (found := victims(driver, kind)):
            random.choice(found).send_signal(signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


def trial(arguments: list[str], folder: Path, kind: str, moment_s: float) -> str:
    """Kill once, resume until the run is complete; what was done, for the log."""
    shutil.rmtree(folder, ignore_errors=True)
    process = start(*arguments, "--out", str(folder))
    killed = kill_after(process, kind, moment_s)
    statuses = [process.wait()]
    while statuses[-1] and len(statuses) <= MOST_RESUMES:
        begun = (folder / "run.json").exists()
        again = start(*(["--resume", str(folder)] if begun else [*arguments, "--out", str(folder)]))
        statuses.append(again.wait())
    return f"{kind} {'killed' if killed else 'was not there'} at {moment_s:.0f} s, statuses {statuses}"


def doubled(folder: Path) -> int:
    """The turns that are in the records more than once."""
    lines = (folder / "turns.jsonl").read_text(encoding="utf-8").splitlines()
    return len(lines) - len(read(folder))


def as_named(turns: dict[Any, Any], names: dict[str, str]) -> dict[Any, Any]:
    """The turns under the names that methods have in the other run."""
    return {(names.get(key[0], key[0]), *key[1:]): turn for key, turn in turns.items()}


def main() -> int:
    """Run the trials; returns the exit status."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--times", type=int, default=20)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--ray", help="address of a cluster, or local; default: local processes without Ray")
    made.add_argument("--victims", help="of worker, head, driver, separated by commas (default: all that there are)")
    made.add_argument("--out", type=Path, default=Path("results/runs/killed"))
    made.add_argument("arguments", nargs="+", help="of the run, after --")
    options = made.parse_args()
    random.seed(options.seed)
    kinds = (options.victims or ("worker,head,driver" if options.ray else "worker,driver")).split(",")
    alone, whole = options.out / "one-process", options.out / "two-workers"
    shutil.rmtree(options.out, ignore_errors=True)
    alone_s = run(*options.arguments, "--threads", "1", "--out", str(alone))
    arguments = with_costs(options.arguments, alone) + WORKERS + (["--ray", options.ray] if options.ray else [])
    whole_s = run(*arguments, "--out", str(whole))
    print(f"one process: {alone_s:.0f} s; two workers: {whole_s:.0f} s, {whole_s / alone_s:.2f} of it")
    asked = [options.arguments, arguments]
    names = {new: old for old, new in zip(*asked, strict=False) if old != new}
    expected, good = read(alone), compare(read(alone), as_named(read(whole), names))
    for number in range(1, options.times + 1):
        folder = options.out / f"trial-{number}"
        done = trial(arguments, folder, random.choice(kinds), random.uniform(0, whole_s))
        equal = compare(expected, as_named(read(folder), names)) and not doubled(folder)
        complete = json.loads((folder / "run.json").read_text(encoding="utf-8"))["complete"]
        print(f"{number}: {'ok' if equal and complete else 'BROKEN'}: {done}", flush=True)
        good = good and equal and complete
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
