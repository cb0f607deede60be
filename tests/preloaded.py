"""Workers without their imports, which take each of them seconds: forks of one process that has imported everything.

Run as a program, this is that process. What it is asked, and what it answers, are messages of a socket.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, NoReturn

from bench.cli import main

ROOT = Path(__file__).parents[1]
_LONGEST = 1 << 18  # bytes of a message: it has an environment


class Preloaded:
    """The process, seen from the tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a run speaks to each of its workers in a thread
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        self.pid = self._process.pid

    def ask(self, asked: dict[str, object], files: list[int]) -> int:
        """Send a message with open files, and wait for the number that answers it."""
        with self._lock:
            socket.send_fds(self._link, [json.dumps(asked).encode()], files)
            return int(self._link.recv(_LONGEST))

    def end(self) -> None:
        """End it; workers that are still there end with their run."""
        self._link.close()
        self._process.wait()


class Fork:
    """A worker, as `subprocess.Popen` would be one."""

    def __init__(self, preloaded: Preloaded, command: list[str], *, env: dict[str, str], stderr: IO[str], **_: object):
        assert command[-1] in ("run-worker", "train-worker")
        (asked, ours), (theirs, answers) = os.pipe(), os.pipe()
        self._preloaded, self.returncode, self._lock = preloaded, None, threading.Lock()
        self.pid = preloaded.ask({"command": command[-1], "env": env}, [asked, answers, stderr.fileno()])
        for file in (asked, answers):
            os.close(file)
        self.stdin, self.stdout = os.fdopen(ours, "w", encoding="utf-8"), os.fdopen(theirs, encoding="utf-8")

    def send_signal(self, number: int) -> None:
        """Send it a signal unless it is known to have ended."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status; a signal's number is negative."""
        with self._lock:
            if self.returncode is None:
                self.returncode = self._preloaded.ask({"wait": self.pid}, [])
            return self.returncode


def serve(link: socket.socket) -> None:
    """Fork a worker for a message with its three files; for one that names a worker, tell how that has ended."""
    while True:
        said, files, *_ = socket.recv_fds(link, _LONGEST, 3)
        if not said:
            return
        asked = json.loads(said)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif not (answer := os.fork()):
            link.close()
            work(asked["command"], asked["env"], files)
        for file in files:
            os.close(file)
        link.send(str(answer).encode())


def work(command: str, environment: dict[str, str], files: list[int]) -> NoReturn:
    """Be a worker, by a command of the bench, from here on."""
    status = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, encoding="utf-8") for n, mode in enumerate("rww"))
        os.environ.clear()
        os.environ.update(environment)
        status = main([command])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    from bench.commands import run_worker, train_worker  # noqa: F401
    from bench.run.workers import lines, run_desk  # noqa: F401
    from bench.train import desk  # noqa: F401

    serve(socket.socket(fileno=int(sys.argv[1])))
