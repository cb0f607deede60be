"""Whether two runs can be compared, and what their difference is evidence of. Pure: no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from bench.config import RunConfig, flag_of
from bench.errors import UserError, program
from bench.figures import axis, disturbed
from bench.figures.records import Run, Turn
from bench.figures.rules import IDENTITY, Rules

_MEASURED = "costs"  # the knob that holds measured forward-pass costs; drafting follows from them
_GATED = ("model", "revision", "questions", "dtype", "quantize", "device", "threads")  # settings that a gate repeats

Pair = tuple[Turn, Turn]  # base's turn, then new's


def identity(run: Run) -> dict[str, Any]:
    """What must be alike before two runs can be compared, by IDENTITY's names."""
    values = (
        run.model.get("sha256"),
        run.dataset.get("sha256"),
        run.dtype,
        str(run.machine),
        run.config.get("max_new_tokens"),
        axis.sampling(run),
    )
    return dict(zip(IDENTITY, values, strict=True))


def check_comparable(base: Run, new: Run, rules: Rules, pairs: Sequence[Pair] = ()) -> list[str]:
    """Differences between the runs, or between prompts of their turns in `pairs`, that were allowed.

    Raises:
        UserError: there are others.

    """
    sides = identity(base), identity(new)
    different = {name: (sides[0][name], sides[1][name]) for name in IDENTITY if sides[0][name] != sides[1][name]}
    different |= _other_prompts(base, new, pairs)
    refused = {name: values for name, values in different.items() if name not in rules.allow}
    if refused:
        listed = "; ".join(f"{name}: {_short(a)} and {_short(b)}" for name, (a, b) in refused.items())
        allow = " ".join(f"--allow '{name}'" for name in refused)
        raise UserError(f"runs {base.run_id} and {new.run_id} are of different things ({listed}): {allow} if meant")
    return [f"the runs differ in {name}: {_short(a)} and {_short(b)}" for name, (a, b) in different.items()]


def same_machine(base: Run, new: Run) -> bool:
    """Return whether both runs round their sums alike, so that equal code gives equal counters."""
    return _rounding(base) == _rounding(new)


def doubts(base: Run, new: Run, pairs: Sequence[Pair]) -> list[str]:
    """Why the speedups of runs that were not interleaved may differ without any change of the code."""
    found = [] if same_machine(base, new) else ["the machine, its threads or the version of torch changed"]
    for side, run, turns in (("base", base, [a for a, _ in pairs]), ("new", new, [b for _, b in pairs])):
        found += [f"{reason} during the run of {side}" for reason in disturbed.doubts(run, turns)]
    return found


def recorded_costs(ran: dict[str, Any]) -> dict[str, Any]:
    """The measured costs among a method's knobs, or a composition's, by its members' labels."""
    found = {_MEASURED: ran[_MEASURED]} if ran.get(_MEASURED) else {}
    nested = {label: recorded_costs(knobs) for label, knobs in ran.items() if isinstance(knobs, dict)}
    return found | {label: knobs for label, knobs in nested.items() if knobs}


def changed_knobs(base: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The knobs that differ, apart from measured costs."""
    names = dict.fromkeys([*base, *new])
    return [name for name in names if name != _MEASURED and base.get(name) != new.get(name)]


def drafted_alike(pairs: Sequence[Pair]) -> bool:
    """Return whether every step proposed as many tokens in both runs."""
    return all(a.per_step_drafted == b.per_step_drafted for a, b in pairs)


def remedy(base: Run, new: Run) -> str:
    """How to find out what two separate runs cannot show: a gate, with its command."""
    commit, checkout = base.provenance.get("commit"), new.provenance.get("commit")
    methods = [label for label, info in base.methods.items() if info.kind == "method" and label in new.methods]
    given = [("--base", commit[:12] if commit else "REV"), *(("--method", label) for label in methods)]
    for name in _GATED:
        value = new.config.get(name)
        if value is not None and value != getattr(RunConfig, name):
            given.append((flag_of(name), str(value)))
    command = f"{program()} gate {shlex.join(part for pair in given for part in pair)}"
    where = f" (commit {checkout[:12]})" if checkout else ""
    rev = "" if commit else ", where REV is the commit of base"
    return f"To compare the code itself, run this in the checkout of new{where}{rev}: `{command}`"


def _other_prompts(base: Run, new: Run, pairs: Sequence[Pair]) -> dict[str, tuple[str, str]]:
    """What changed in the prompts, as far as both sides record it. Turns after the first follow vanilla's answers."""
    before, now = base.model, new.model
    sides = [
        ("chat template", before.get("chat_template_sha256"), now.get("chat_template_sha256")),
        ("tokenizer", before.get("tokenizer_sha256"), now.get("tokenizer_sha256")),
        *(("prompts", _prompt(a), _prompt(b)) for a, b in pairs if a.turn == 0),
    ]
    found: dict[str, tuple[str, str]] = {}
    for name, a, b in sides:
        if a and b and a != b:
            found.setdefault(name, (a, b))
    return found


def _prompt(turn: Turn) -> str:
    """A turn's prompt, for people; empty where it is not known."""
    known = turn.prompt_digest
    return f"question {turn.question_id} with {turn.prompt_tokens} tokens, digest {known}" if known else ""


def _rounding(run: Run) -> tuple[Any, ...]:
    """What decides how sums are rounded."""
    machine, torch = run.machine, run.provenance.get("packages", {}).get("torch")
    weights = run.engine.get("weights")
    return machine.digest, machine.torch_instructions, machine.threads, torch, run.dtype, weights


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}.." if len(text) == 64 else text
