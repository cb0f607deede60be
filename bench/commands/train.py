"""train: make a method's weights."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench import config
from bench.commands import new_parser, say, tell_written

_WHAT = {
    "kangaroo": "train an adapter for Kangaroo",
    "medusa": "train Medusa's heads",
    "conversations": "only write the conversations that methods are trained on, into the cache",
    "collect": "pack the conversations in the cache into the files that come with the project",
}


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser("train", "Train a method's small weights for a model, on conversations that the model writes.")
    kinds = made.add_subparsers(dest="what", required=True, metavar="WHAT", title="what to train")
    settings = config.TRAININGS | {"conversations": config.Writing, "collect": config.Collecting}
    for what, text in _WHAT.items():
        own = kinds.add_parser(what, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for flag, options in config.flags(settings[what]):
            own.add_argument(flag, **options)
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    given = config.frozen({k: v for k, v in vars(options).items() if k != "what" and v is not None})
    from bench.train import training
    from bench.train.trainers import trainer_of

    if options.what == "conversations":
        paths = training.write_conversations(config.Writing(**given), say)
    elif options.what == "collect":
        paths = training.collect_conversations(config.Collecting(**given), say)
    else:
        paths = training.train(trainer_of(options.what), config.TRAININGS[options.what](**given), say)
    tell_written(paths)
    return 0
