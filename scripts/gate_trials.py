"""Is the gate right on a real machine? Whole gates of unchanged code, of slower code, and of faults planted on purpose.

    python scripts/gate_trials.py --out results/reference/gate
    python scripts/gate_trials.py --out DIR --only lost-exit-states

Each trial runs `run_bench.py gate` in a clone of this commit, on a machine that should do nothing else; five minutes
each. Goes on where it was interrupted: a trial whose folder has its trial.json is not repeated. Exit status 1 where a
gate did not say what it should.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

from bench.commands.gate import GATE_FILE  # noqa: E402
from bench.errors import UserError  # noqa: E402
from bench.figures.compare import DECODE  # noqa: E402
from bench.figures.comparison import Comparison  # noqa: E402
from bench.figures.metrics import OVERALL  # noqa: E402
from bench.figures.records import atomic_writer, write_json  # noqa: E402
from bench.figures.verdicts import WORSE  # noqa: E402
from bench.gate.gate import PAIRS_FILE  # noqa: E402
from bench.report.compare_page import findings, markdown  # noqa: E402
from bench.report.markdown import table_text  # noqa: E402
from bench.report.model import table  # noqa: E402
from bench.typed_json import read  # noqa: E402

TRIAL_FILE = "trial.json"
LEVELS = "bench/drafting/levels.py"  # how Kangaroo drafts
# Counters are exact: what a fault does to them shows in the first answers, and need not wait for the times.
COUNTED = ("--method", "kangaroo", "--budget-min", "4")
# Before this line of the methods that draft level by level, a fault puts another acceptance.
HOOK = "    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:\n"


@dataclass(frozen=True)
class Trial:
    """A change, and what the gate must say of it."""

    name: str
    what: str
    named: str = ""  # "method: metric" that must be called worse; empty: nothing may be
    edits: tuple[tuple[str, str, str], ...] = ()  # file, what stands there once, what comes in its place
    flags: tuple[str, ...] = ()
    times: int = 1


TRIALS = (
    Trial("same-code", "nothing", times=5),
    Trial("kangaroo-5", "5% more work in each of Kangaroo's steps", "kangaroo: time per token, ms",
          flags=("--slow-down", "kangaroo=0.05"), times=3),
    Trial("kangaroo-10", "10% more work in each of Kangaroo's steps", "kangaroo: time per token, ms",
          flags=("--slow-down", "kangaroo=0.10"), times=3),
    Trial("vanilla-10", "10% more work in each of vanilla's steps", "vanilla: time per token, ms",
          flags=("--slow-down", "vanilla=0.10",)),
    Trial(
        "one-token", "Kangaroo's hundredth accepted run of drafts loses its last one, once",
        "kangaroo: speedup at base's costs",  # not CR: by the answer's end the token may have been made up for
        edits=((LEVELS, HOOK, """\
    runs = 0

    def verification(self, sampler: Sampler | None) -> Any:
        verify = super().verification(sampler)

        def losing(draft: Draft, logits: Tensor) -> tuple[list[int], int]:
            accepted, bonus = verify(draft, logits)
            LevelMethod.runs += bool(accepted)
            if LevelMethod.runs == 100 and accepted:
                bonus = draft.tokens[accepted.pop()]
            return accepted, bonus

        return losing

""" + HOOK),),
        flags=COUNTED,
    ),
    Trial(
        "lost-exit-states", "Kangaroo's verification runs the layers below the exit again",
        "kangaroo:draft_weights=plain: time per token, ms",
        edits=(
            (LEVELS, "return self._with_exits(sequences, drafts) if self.resume_layer else drafts", "return drafts"),
        ),
        flags=("--method", "kangaroo:draft_weights=plain"),
    ),
    Trial(
        "lost-second-exit", "Kangaroo drafts on however unsure it is", "kangaroo: drafted per step",
        edits=(
            (LEVELS, " and rule.goes_on():", ":"),
            (
                LEVELS,
                "rule.keep(candidates, most)",
                "candidates[:most]",
            ),
        ),
        flags=COUNTED,
    ),
    Trial(
        "doubled-prefill", "Kangaroo reads the prompt twice", "kangaroo: prefill per prompt token, ms",
        edits=((LEVELS, "        sequence.notes = Progress(self.new_rule(), cache, none, none, last)\n", """\
        self.target.run_layers(self.target.embed(sequence.context[:-1]), 0, sequence.cache)
        sequence.notes = Progress(self.new_rule(), cache, none, none, last)
"""),),
        flags=("--method", "kangaroo"),
    ),
    Trial(
        "broken-losslessness", "Kangaroo also accepts what the target finds second best",
        "kangaroo: answers not vanilla's",
        edits=((LEVELS, HOOK, """\
    def verification(self, sampler: Sampler | None) -> Any:
        def generous(draft: Draft, logits: Tensor) -> tuple[list[int], int]:
            best = logits.topk(2, dim=-1).indices.tolist()
            path: list[int] = []
            while len(path) < len(draft.tokens) and draft.tokens[len(path)] in best[len(path)]:
                path.append(len(path))
            return path, best[len(path)][0]

        return generous

""" + HOOK),),
        flags=COUNTED,
    ),
)  # fmt: skip


def planted(clone: Path, trial: Trial) -> None:
    """Commit the trial's edits in `clone`.

    Raises:
        UserError: what an edit replaces does not stand there once: the code has changed.

    """
    for name, old, new in trial.edits:
        text = (clone / name).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise UserError(f"trial {trial.name}: {old.strip()!r} stands {text.count(old)} times in {name}, not once")
        (clone / name).write_text(text.replace(old, new), encoding="utf-8")
    who = ("-c", "user.name=gate trials", "-c", "user.email=none")
    git(clone, *who, "commit", "--quiet", "--all", "--message", trial.what)


def git(folder: Path, *arguments: str) -> str:
    """What git says."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def carry_out(trial: Trial, out: Path) -> dict[str, Any]:
    """One gate, and what was found (`taken_down`)."""
    commit = git(ROOT, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory(prefix="roobench-trial-") as temporary:
        clone, records = Path(temporary) / "clone", Path(temporary) / "records"
        git(ROOT, "clone", "--quiet", "--shared", str(ROOT), str(clone))
        if trial.edits:
            planted(clone, trial)
        command = ["gate", "--base", commit, *trial.flags]
        start_s = time.monotonic()
        gate = [sys.executable, "run_bench.py", *command, "--out", str(records)]
        status = subprocess.run(gate, cwd=clone, check=False).returncode
        minutes = (time.monotonic() - start_s) / 60
        if not (records / GATE_FILE).exists():
            raise UserError(f"trial {trial.name}: the gate ended with status {status} and no comparison")
        made = {"commit": commit, "command": " ".join(command), "status": status, "minutes": round(minutes, 1)}
        return taken_down(trial, made, records, out)


def taken_down(trial: Trial, made: dict[str, Any], records: Path, out: Path) -> dict[str, Any]:
    """Leave what the gate said for readers, and of unchanged code the pairs for `simulate_gate.py`."""
    compared = read(Comparison, records / GATE_FILE)
    worse = list(called_worse(compared))
    right = made["status"] == (1 if trial.named else 0) and (trial.named in worse if trial.named else not worse)
    found = {
        "trial": trial.name,
        "what": trial.what,
        **made,
        "device": compared.new.device,
        "right": right,
        "worse": worse,
        "told": [text for text in findings(compared) if text.startswith(f"**{WORSE}**")],
        "time per token": {
            label: getattr(entry.tasks[OVERALL].metrics[DECODE].sequential, "value", None)
            for label, entry in compared.methods.items()
        },
    }
    texts = {"gate.md": markdown(compared)}
    if not trial.named:
        texts[PAIRS_FILE] = (records / PAIRS_FILE).read_text(encoding="utf-8")
    for name, text in texts.items():
        with atomic_writer(out / name) as file:
            file.write(text)
    write_json(out / TRIAL_FILE, found)
    return found


def called_worse(compared: Comparison) -> Iterator[str]:
    """Method and metric of all that got worse over all tasks."""
    for label, entry in compared.methods.items():
        for name, metric in entry.tasks[OVERALL].metrics.items():
            if metric.verdict == WORSE:
                yield f"{label}: {name}"


def summary(found: list[dict[str, Any]]) -> str:
    """A row for each gate."""
    rows = []
    for trial in found:
        changes = ", ".join(f"{label} {value - 1:+.1%}" for label, value in trial["time per token"].items() if value)
        said = trial["told"][0].replace("**", "") if trial["told"] else "nothing got worse"
        right = "yes" if trial["right"] else "**no**"
        rows.append([trial["what"], said, right, changes, f"{trial['minutes']:.1f}", trial["commit"][:10]])
    wrong = sum(not trial["right"] for trial in found)
    header = ["what was changed", "the gate's first sentence", "right", "time per token", "minutes", "commit"]
    devices = ", ".join(sorted({trial["device"] for trial in found}))
    intro = (
        f"{len(found)} real gates ({devices}), {wrong} of them wrong; made by `scripts/gate_trials.py`. A gate is "
        "right if it calls worse what was planted, by method and metric, or nothing where the code is unchanged. Its "
        "whole output is in the gate.md of its folder."
    )
    return f"{intro}\n\n{table_text(table(header, rows, (0, 1, 2, 3, 5)))}\n"


def main() -> int:
    """Carry out what is missing, and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [trial.name for trial in TRIALS]
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", action="append", choices=names, help="of these trials; may be repeated")
    options = parser.parse_args()
    found = []
    try:
        for trial in TRIALS:
            for number in range(1, trial.times + 1):
                out = (options.out / trial.name / str(number)).absolute()
                if (out / TRIAL_FILE).exists():
                    found.append(json.loads((out / TRIAL_FILE).read_text(encoding="utf-8")))
                elif options.only is None or trial.name in options.only:
                    print(f"--- {trial.name} {number}/{trial.times}: {trial.what}", flush=True)
                    out.mkdir(parents=True, exist_ok=True)
                    found.append(carry_out(trial, out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with atomic_writer(options.out / "README.md") as file:
        file.write(summary(found))
    print(summary(found))
    return int(any(not trial["right"] for trial in found))


if __name__ == "__main__":
    sys.exit(main())
