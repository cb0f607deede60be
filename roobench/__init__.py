"""Roobench from Python: `roobench.run("kangaroo", "pld", limit=2).to_pandas()`.

A run is a process of its own, as on the command line. So its figures are those of the command line, and nothing of it
enters the calling process: not torch and its threads, and no module called `bench` or `methods`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunError", "Summary", "run"]
_SCHEMA = 1  # of summary.json
_REPEATED = ("method", "peer")  # flags that may be repeated; the others take several values with commas
_COMMAND = [sys.executable, str(Path(__file__).with_name("__main__.py"))]


class RunError(Exception):
    """A run or its summary that cannot be had. The message gives the value, the reason and a remedy.

    `status` is the exit status of the command, 1 if a method was not lossless or failed in every question; `folder` has
    the records of such a run.
    """

    def __init__(self, message: str, status: int = 2, folder: Path | None = None):
        super().__init__(message)
        self.status, self.folder = status, folder


@dataclass(frozen=True)
class Summary:
    """The figures of a run."""

    folder: Path  # of the run, with its report
    data: dict[str, Any]  # the whole summary.json

    @classmethod
    def load(cls, folder: str | Path) -> Summary:
        """Return the summary of the run in `folder`.

        Raises:
            RunError: there is none, or of another version.

        """
        path = Path(folder).expanduser().absolute() / "summary.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if (schema := data["schema"]) != _SCHEMA:
                raise ValueError(f"it has schema {schema}, and this version reads {_SCHEMA}")
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"cannot read {path} ({reason}): redraw it with `roobench report {folder}`") from error
        return cls(path.parent, data)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a method and task (`overall` too), with the columns of summary.csv.

        `speedup_decode` has its 95% interval in `speedup_decode_low` and `speedup_decode_high`, and so have the others;
        `ctar_1`, `ctar_2`, ... are by window. A figure that a row does not have is None or NaN.
        """
        import pandas as pd

        rows, not_columns = [], {"confidence", "context"}  # distributions
        for name, entry in self.data["methods"].items():
            for task, cell in entry["tasks"].items():
                row = {"method": name, "kind": entry["kind"], "task": task} | _flat(cell)
                rows.append(row | {"lossless_claimed": entry["lossless"]})
                not_columns |= cell.keys() - row.keys()  # what is spread over several, and None where there is none
        return pd.DataFrame(rows).drop(columns=list(not_columns), errors="ignore")


def run(*methods: str, **settings: Any) -> Summary:
    """Measure methods against vanilla decoding and return the figures, as `roobench --method ...` does.

    `settings` are the command's flags with underscores: `run("pld", limit=2, max_new_tokens=32, out="first")` is
    `roobench --method pld --limit 2 --max-new-tokens 32 --out first`. Several values are a list: `peer=["hf-generate",
    "llama-cpp"]`, `batch=[1, 2, 4]`. Paths start from the current folder, where results go as well. Progress is printed
    on standard error. Ctrl-C ends the run, which keeps what it has; `run(resume=FOLDER)` goes on with it.

    Raises:
        RunError: a mistake in the settings, or a method that is not lossless or fails in every question.

    """
    command = [*_COMMAND, "run", "--json", *_flags({"method": methods} | settings)]
    texts: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
    with (
        tempfile.TemporaryFile("w+", **texts) as output,  # a pipe could fill up while standard error is read
        subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, process_group=0, **texts) as child,
    ):
        assert child.stderr is not None
        said = ""
        try:
            for said in child.stderr:
                print(said, end="", file=sys.stderr)
            child.wait()
            output.seek(0)
            told = output.read()
        except BaseException:  # such as Ctrl-C, which the child, in a process group of its own, does not get
            child.send_signal(signal.SIGINT)
            print(child.communicate()[1], end="", file=sys.stderr)
            raise
    folder = Path(json.loads(told.splitlines()[-1])["folder"]).absolute() if told else None
    if child.returncode or folder is None:
        reason = said.strip().removeprefix("error: ") or f"the run ended with exit status {child.returncode}"
        raise RunError(reason, child.returncode, folder)
    return Summary.load(folder)


def _flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as flags: None and False are left out, True is a switch."""
    found = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        several = value if isinstance(value, list | tuple) else [value]
        if len(several) > 1 and name not in _REPEATED:
            several = [",".join(map(str, several))]
        for one in several:
            found += [] if one is None or one is False else [flag] if one is True else [f"{flag}={one}"]
    return found


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a cell that fit into a row; distributions do not."""
    row: dict[str, Any] = {}
    for key, value in cell.items():
        if isinstance(value, dict):  # the estimate itself has the name of both
            row |= {key if name == "value" else f"{key}_{name}": one for name, one in value.items() if _is_one(one)}
        elif isinstance(value, list):
            row |= {f"{key}_{number}": one for number, one in enumerate(value, 1) if _is_one(one)}
        else:
            row[key] = value
    return row


def _is_one(value: Any) -> bool:
    return not isinstance(value, dict | list)
