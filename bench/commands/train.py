"""train: make a method's weights."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench import config
from bench.commands import new_parser, say, tell_written

_WHAT = {"kangaroo": "train an adapter for Kangaroo", "medusa": "train Medusa's heads"}
_CONVERSATIONS = "conversations"


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser("train", "Train a method's small weights for a model, on conversations that the model writes.")
    kinds = made.add_subparsers(dest="what", required=True, metavar="METHOD", title="what to train")
    texts = _WHAT | {_CONVERSATIONS: "only make the conversations that methods are trained on, and keep them"}
    for what, text in texts.items():
        settings = config.TRAININGS.get(what, config.TrainConfig)
        own = kinds.add_parser(what, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for flag, options in config.flags(settings):
            own.add_argument(flag, **options)
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    given = {k: v for k, v in vars(options).items() if k != "what" and v is not None}
    from bench.train import training
    from bench.train.trainers import trainer_of

    if options.what == _CONVERSATIONS:
        paths = training.keep_conversations(config.TrainConfig(**given), say)
    else:
        paths = training.train(trainer_of(options.what), config.TRAININGS[options.what](**given), say)
    tell_written(paths)
    return 0
