"""train: train a method's weights."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser, Namespace
from typing import TypeVar

import methods
from bench import config
from bench.commands import new_parser, say, tell_written

S = TypeVar("S")
_CONVERSATIONS = {
    "conversations": "only write the conversations that methods are trained on, into the cache",
    "collect": "pack the conversations in the cache into the files that come with the project",
}


def parser() -> ArgumentParser:
    """Return the command's parser."""
    kinds = {method: f"train the weights of {method}" for method in methods.trained()} | _CONVERSATIONS
    listed = "\n".join(f"  {what:<18} {text}" for what, text in kinds.items())
    made = new_parser(
        "train",
        "Train a method's weights for a model, on conversations that the model writes.",
        f"what to train (each has its own --help):\n{listed}",
    )
    made.add_argument("what", choices=kinds, metavar="WHAT", help="a method, conversations or collect, see below")
    made.add_argument("flags", nargs=REMAINDER, metavar="...", help="its flags")
    return made


def run(options: Namespace) -> int:
    """Run the command; returns the exit status."""
    from bench.train import training, weights

    if options.what == "conversations":
        tell_written(training.write_conversations(_settings(config.Writing, options)[0], say))
    elif options.what == "collect":
        tell_written(training.collect_conversations(_settings(config.Collecting, options)[0], say))
    else:
        settings, given = _settings(training.trainer_of(options.what).Config, options, trains=True)
        made = training.train(options.what, settings, say, replace_weights=given.replace)
        tell_written(made.files)
        say("measuring what a forward pass and a draft cost here")
        print(*weights.judgement(made), sep="\n")
    return 0


def _settings(of: type[S], options: Namespace, *, trains: bool = False) -> tuple[S, Namespace]:
    """Return the settings that the flags of WHAT, known only with it, give, and all of these flags."""
    made = new_parser(f"train {options.what}", (of.__doc__ or "").strip())
    for flag, arguments in config.flags(of):
        made.add_argument(flag, **arguments)
    if trains:
        made.add_argument("--replace", action="store_true", help="replace weights that are already in the folder")
    flags = made.parse_args(options.flags)
    return of(**config.given(flags, of)), flags
