"""train: make a method's weights."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench import config
from bench.commands import new_parser, say, tell_written

_TRAINABLE: dict[str, tuple[type[config.TrainConfig], str]] = {
    "kangaroo": (config.KangarooTraining, "train an adapter for Kangaroo"),
    "medusa": (config.MedusaTraining, "train Medusa's heads"),
    "conversations": (config.TrainConfig, "only make the conversations that methods are trained on, and keep them"),
}


def parser() -> ArgumentParser:
    """What the command takes."""
    made = new_parser("train", "Train a method's small weights for a model, on conversations that the model writes.")
    kinds = made.add_subparsers(dest="what", required=True, metavar="METHOD", title="what to train")
    for what, (settings, text) in _TRAINABLE.items():
        own = kinds.add_parser(what, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for flag, options in config.flags(settings):
            own.add_argument(flag, **options)
    return made


def run(options: Namespace) -> int:
    """Carry it out; the exit status."""
    given = {k: v for k, v in vars(options).items() if k != "what" and v is not None}
    settings = _TRAINABLE[options.what][0](**given)
    from bench.train import training

    if isinstance(settings, config.KangarooTraining):
        from bench.train.kangaroo import AdapterTrainer

        paths = training.train(AdapterTrainer, settings, say)
    elif isinstance(settings, config.MedusaTraining):
        from bench.train.medusa import HeadsTrainer

        paths = training.train(HeadsTrainer, settings, say)
    else:
        paths = training.keep_conversations(settings, say)
    tell_written(paths)
    return 0
