"""One side of a gate as the gate sees it: a process that runs that side's code and answers line by line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import methods
from bench.config import RunConfig
from bench.errors import UserError
from bench.figures.records import Run, Turn
from bench.gate.checkout import Checkout
from bench.gate.protocol import PROTOCOL
from bench.typed_json import MismatchError, decode_value

T = TypeVar("T")
_CLOSE_S = 20.0
_ANSWER_S = 600.0  # for one line; starting may install nothing and takes less


class Side:
    """Base or new: its process, and the run that it says it makes."""

    def __init__(self, name: str, checkout: Checkout, given: dict[str, Any], log_file: Path):
        """`given` is the line that `gate-side` reads first; what the process has to say else goes to `log_file`.

        Raises:
            UserError: it cannot start, speaks another protocol, or runs other code than the checkout's.

        """
        self.name, self.log_file, self.late = name, log_file, False
        log_file.parent.mkdir(parents=True, exist_ok=True)
        # -P: the bench is found by this path alone, not because it lies where we are. Relative paths stay the user's.
        paths = [*checkout.paths, str(checkout.folder), os.environ.get("PYTHONPATH", "")]
        try:
            with log_file.open("w", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    [checkout.python, "-P", "-m", "bench", "gate-side"],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                )
        except OSError as error:
            raise UserError(f"{name} cannot be started with {checkout.python}: {error.strerror or error}") from error
        try:
            self._begin(given, checkout)
        except BaseException:
            self.close()
            raise

    def _begin(self, given: dict[str, Any], checkout: Checkout) -> None:
        self._send(json.dumps(given))
        hello = self.ask(do="hello")
        if hello.get("protocol") != PROTOCOL:
            raise UserError(
                f"{self.name} speaks protocol {hello.get('protocol')} of the gate, not {PROTOCOL}: gate a newer base"
            )
        self._check_code(hello["files"], checkout)
        self.run = self._decoded(Run, hello["run"])
        self.run.provenance["gated_commit"] = checkout.commit
        self.questions: list[dict[str, Any]] = hello["questions"]

    def _check_code(self, files: dict[str, str], checkout: Checkout) -> None:
        """Were both sides to run what is installed, nothing would ever get slower."""
        _inside(self.name, "the bench", files.pop("bench"), (checkout.folder,))
        for label, file in files.items():
            if checkout.paths and label.partition(":")[0] not in methods.built_in():
                _inside(self.name, label, file, checkout.paths)

    def ask(self, **asked: Any) -> dict[str, Any]:
        """One line there, one back.

        Raises:
            UserError: the process has ended, says nothing, or something else than an answer.

        """
        self._send(json.dumps(asked))
        assert self.process.stdout is not None
        timer = threading.Timer(_ANSWER_S, self._too_late)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self._ended()
        try:
            return dict(json.loads(line))
        except ValueError as error:
            raise UserError(f"{self.name} answered {line[:60]!r}, which is none of the gate's lines") from error

    def begin(self, label: str, where: dict[str, int]) -> bool:
        """Let a method read a turn; whether there are steps to come."""
        return bool(self.ask(do="answer", label=label, **where)["going"])

    def go_on(self) -> bool:
        """Let it take a few steps; whether there are more to come."""
        return bool(self.ask(do="go on")["going"])

    def audited(self, where: dict[str, int]) -> list[Turn]:
        """Everybody has answered: their turns, audited."""
        return self._decoded(list[Turn], self.ask(do="close", **where)["turns"])

    def _decoded(self, kind: type[T], value: Any) -> T:
        """A record of the other process; fields of another version's records that ours do not have are left out."""
        try:
            return decode_value(kind, value, lenient=True)
        except MismatchError as error:
            raise UserError(
                f"{self.name} records runs in another way than this version ({error}): gate a newer base"
            ) from error

    def close(self) -> None:
        """Let it end."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):  # it may have ended before
                self.process.stdin.close()
        try:
            self.process.wait(timeout=_CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError:
            self._ended()

    def _too_late(self) -> None:
        self.late = True
        self.process.kill()

    def _ended(self) -> NoReturn:
        """Tell why: the last thing that it said."""
        status = self.process.wait()
        said = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else f"exit status {status}"
        if self.late:
            reason = f"no answer within {_ANSWER_S / 60:.0f} minutes"
        raise UserError(f"{self.name} ended before the gate did ({reason}); all that it said: {self.log_file}")


def first_request(config: RunConfig, measured: dict[str, Any], slower: dict[str, float]) -> dict[str, Any]:
    """What `gate-side` is told first. Settings at their defaults are left out: an older base need not know them.

    But those that decide what is compared are always told, for base's defaults may be others.
    """
    always = {"model", "dtype", "max_new_tokens", "temperature"}
    changed = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != getattr(RunConfig(), field.name) or field.name in always
    }
    return {"config": changed, "measured": measured, "slower": slower}


def _inside(side: str, what: str, file: str, folders: Sequence[str]) -> None:
    if not any(Path(file).resolve().is_relative_to(Path(folder).resolve()) for folder in folders):
        raise UserError(f"{side} takes {what} from {file}, not from {folders[0]}: install it with pip install -e")
