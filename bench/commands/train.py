"""train: make a method's weights."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser, Namespace
from typing import Any, TypeVar

import methods
from bench import config
from bench.commands import new_parser, say, tell_written
from bench.models import checkpoints
from bench.train import settings_of

S = TypeVar("S")
_CONVERSATIONS = {
    "conversations": "only write the conversations that methods are trained on, into the cache",
    "collect": "pack the conversations in the cache into the files that come with the project",
}


def parser() -> ArgumentParser:
    """What the command takes."""
    kinds = {method: f"train the weights of {method}" for method in methods.trained()} | _CONVERSATIONS
    listed = "\n".join(f"  {what:<18} {text}" for what, text in kinds.items())
    made = new_parser(
        "train",
        "Train a method's small weights for a model, on conversations that the model writes.",
        f"what to train (each has its own --help):\n{listed}",
    )
    made.add_argument("what", choices=kinds, metavar="WHAT", help="a method, conversations or collect, see below")
    made.add_argument("flags", nargs=REMAINDER, metavar="...", help="its flags")
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    kinds = {"conversations": config.Writing, "collect": config.Collecting}
    settings: Any = _settings(kinds.get(options.what) or settings_of(options.what), options)
    checkpoints.name_of(settings.model, settings.revision)  # no torch yet: mistakes are reported at once
    from bench.train import training

    if options.what == "conversations":
        paths = training.write_conversations(settings, say)
    elif options.what == "collect":
        paths = training.collect_conversations(settings, say)
    else:
        paths = training.train(options.what, settings, say)
    tell_written(paths)
    return 0


def _settings(of: type[S], options: Namespace) -> S:
    """What the flags of WHAT, known only with it, say."""
    made = new_parser(f"train {options.what}", (of.__doc__ or "").strip())
    for flag, arguments in config.flags(of):
        made.add_argument(flag, **arguments)
    return of(**config.given(made.parse_args(options.flags), of))
