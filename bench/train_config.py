"""The settings of trainings and their defaults, and of the conversations that they train on."""

from __future__ import annotations

from dataclasses import dataclass

from bench.config import DEFAULT_MODEL, MANY, SEED, THREADS, Settings, check_device, setting
from bench.files import user_path

TOKENS = 1_000_000  # of answers to train on, where nobody says how many and none come with the project
_TRAIN_TOKENS = (0, 1000 * MANY)
_EPOCHS = (1, 1000)


@dataclass(frozen=True)
class _OfModel(Settings):
    model: str = setting(
        DEFAULT_MODEL, "as for run: the packaged default, a Hugging Face id, a folder, or a GGUF file", metavar="NAME"
    )
    revision: str | None = setting(None, "branch, tag or commit of a Hugging Face model", metavar="REV")


@dataclass(frozen=True)
class Writing(_OfModel):
    """How a model writes conversations into the cache."""

    tokens: int = setting(
        TOKENS,
        "answer tokens to have in the end, including those that come with the project",
        metavar="N",
        bounds=_TRAIN_TOKENS,
    )
    seed: int = setting(0, "seed of the prompts", metavar="N", bounds=SEED)
    device: str = setting("auto", "cpu, cuda or cuda:N; auto: CUDA if torch can use it", metavar="NAME")
    threads: int = setting(
        0,
        "CPU threads, of each worker if there are any; 0: torch's choice, of workers an equal share of the cores",
        metavar="N",
        bounds=THREADS,
    )
    workers: int = setting(
        0,
        "processes that write conversations and compute the target's states, each with a model of its own, on its own "
        "cores or GPU; the weights are then trained by one process; 0: one process does it all",
        metavar="N",
        bounds=(0, 1024),
    )
    precision: str = setting(
        "auto",
        "of products, in passes of the target as in the training: float32 or bfloat16; auto: bfloat16 where the "
        "processor multiplies it several times as fast",
        choices=("auto", "float32", "bfloat16"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device, by_workers=bool(self.workers))


@dataclass(frozen=True)
class Collecting(_OfModel):
    """Which conversations of the cache to pack, and where."""

    decontaminate: tuple[str, ...] = setting(
        ("mini", "official"),
        "official, or a question file: conversations that share 13 words in a row with its questions, or with the mini "
        "set's, are left out; may be repeated",
        metavar="FILE",
    )
    out: str | None = setting(None, "folder of packed conversations (default: the project's own)", metavar="DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None:
            user_path(self.out)


_PEAK_RATES = {"muon": 7e-4, "adamw": 2e-3}


@dataclass(frozen=True)
class TrainConfig(Writing, Collecting):
    """How to train a method's weights: what all methods share. A method's own settings are a subclass next to it."""

    draft_vocab: int = setting(
        8192, "tokens of the draft's LM head, the most frequent ones; 0: all", metavar="N", bounds=(0, 10 * MANY)
    )
    tokens: int = setting(
        0,
        "least number of answer tokens to train on: drawn from those that come with the project, and the model writes "
        "what is missing; 0: all that come with it, or a million if none do",
        metavar="N",
        bounds=_TRAIN_TOKENS,
    )
    longest: int = setting(
        0,
        "leave out conversations of more tokens, prompts included, as their states cost the most (fewer than --tokens "
        "may be left); 0: none",
        metavar="N",
        bounds=(0, MANY),
    )
    epochs: int = setting(3, "passes over the tokens", metavar="N", bounds=_EPOCHS)
    batch: int = setting(4, "conversations per optimiser step", metavar="N", bounds=(1, 10_000))
    optimiser: str = setting(
        "auto",
        "muon (AdamW for norms and LM heads) or adamw; auto: muon, for published forms adamw, the papers'",
        choices=("auto", "muon", "adamw"),
    )
    learning_rate: float = setting(
        0.0,
        "peak, after a linear warm-up and before a cosine decay; 0: 0.0007 for muon, 0.002 for adamw",
        metavar="X",
        bounds=(0, 10),
    )
    seed: int = setting(0, "seed of conversations, initial weights and order", metavar="N", bounds=SEED)
    out: str | None = setting(
        None,
        "new folder for the weights and their card; default: where runs look, unless weights are there already",
        metavar="DIR",
    )

    @property
    def form(self) -> str:
        """Which of a method's weights for a model these are: "" what runs use by default, "paper" as published.

        Weights of different forms are kept side by side.
        """
        return ""

    @property
    def chosen_optimiser(self) -> str:
        """The optimiser, muon or adamw."""
        default = "adamw" if self.form else "muon"
        return default if self.optimiser == "auto" else self.optimiser

    @property
    def peak_rate(self) -> float:
        """The peak of the learning rate."""
        return self.learning_rate or _PEAK_RATES[self.chosen_optimiser]


@dataclass(frozen=True)
class ChainTraining(TrainConfig):
    """How to train a draft model that drafts in chains, each draft from the one before it."""

    unroll: int = setting(
        3,
        "drafts in a row that are trained on, where a draft reads the states of the one before it",
        metavar="N",
        bounds=(1, 64),
    )
    teach: str = setting("answers", "positions to train on: all, or those of answers only", choices=("all", "answers"))


TRAIN = "train."  # begins the name of a sweep's axis that is a setting of training
# What each training of a sweep takes unless asked: a laptop's minutes.
SWEEP_TRAINING = {"tokens": 20_000, "epochs": 2}
