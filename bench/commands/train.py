"""train: train a method's weights."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser, Namespace
from typing import Any

import methods
from bench import config, train_config
from bench.commands import new_parser, say, tell_written
from bench.models import checkpoints
from bench.train import destination, settings_of

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
    kinds = {"conversations": train_config.Writing, "collect": train_config.Collecting}
    settings, given = _settings(kinds.get(options.what) or settings_of(options.what), options)
    name = checkpoints.name_of(settings.model, settings.revision)  # no torch yet: mistakes are reported at once
    if options.what not in kinds:
        out = destination.destination(options.what, settings, name)
        destination.check(options.what, out, replace=given.replace)
    from bench.train import training

    if options.what == "conversations":
        tell_written(training.write_conversations(settings, say))
    elif options.what == "collect":
        tell_written(training.collect_conversations(settings, say))
    else:
        from bench.train.weights import judgement

        made = training.train(options.what, settings, say, replace_weights=given.replace)
        tell_written(made.files)
        say("measuring forward-pass costs on this device")
        print(*judgement(made), sep="\n")
    return 0


def _settings(of: type[Any], options: Namespace) -> tuple[Any, Namespace]:
    """Return the settings that the flags of WHAT, known only with it, give, and the flags themselves."""
    made = new_parser(f"train {options.what}", (of.__doc__ or "").strip())
    for flag, arguments in config.flags(of):
        made.add_argument(flag, **arguments)
    if options.what not in _CONVERSATIONS:
        made.add_argument("--replace", action="store_true", help="replace weights that are already in the folder")
    flags = made.parse_args(options.flags)
    return of(**config.given(flags, of)), flags
