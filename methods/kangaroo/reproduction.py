"""What Kangaroo's paper shows (arXiv 2404.18911 v1), for `reproduce kangaroo`. Needs no torch."""

from __future__ import annotations

from bench.drafting.reproduction import Part, Recipe

_CHAIN = "kangaroo:gamma=6,threshold=0.6,draft_weights=plain"  # the paper's rule, for adapters that are trained here
_TRAINED = (
    "Adapters are trained here, on 20,000 answer tokens unless --train-tokens says otherwise. The paper's are "
    "trained on ShareGPT, and accept more."
)

RECIPE = Recipe(
    "Kangaroo paper",
    (
        Part(
            "methods",
            "Table 1 and its figures: speedup, CR and CTAR by task, next to Medusa, REST and Lookahead",
            ("kangaroo:paper", "kangaroo", "medusa", "rest", "lookahead"),
            minutes=8,
            settings={"questions": "official", "limit": 10, "max_new_tokens": 128},
            note="kangaroo:paper is the published form. The others are as they run here by default, where drafts are "
            "weighed by what they cost on this device.",
            plots=("ctar_by_window", "compression_rate_by_task", "published"),
        ),
        Part(
            "threshold",
            "Figure: CR and speedup over the threshold of the second early exit, and gamma",
            ("kangaroo:paper",),
            minutes=10,
            grid=("threshold=0,0.1,0.3,0.5,0.6,0.7,0.9", "gamma=4,6,8"),
            settings={"limit": 4},
            ablation="gamma and threshold",
        ),
        Part(
            "exit-layer",
            "Figure: CR and speedup over the exit layer",
            (_CHAIN,),
            minutes=15,
            grid=("train.architecture=paper", "train.exit_layer=1,2,4,8,16"),
            settings={"limit": 4},
            ablation="exit layer",
            note=f"{_TRAINED} Exit layers are of this model's layers, which may be fewer than the 32 of Vicuna-7B. The "
            "packaged adapter has one exit layer, and is in the first part.",
        ),
        Part(
            "adapter",
            "Table 2: speedup by architecture of the adapter",
            (_CHAIN,),
            minutes=12,
            grid=("train.architecture=paper,paper-own-head,paper-layer,paper-mlp",),
            settings={"limit": 4},
            ablation="adapter",
            called={
                "paper": "norm + attention + norm, shared LM head (Kangaroo)",
                "paper-own-head": "same, own LM head",
                "paper-layer": "one whole transformer layer",
                "paper-mlp": "MLP only",
            },
            note=f"{_TRAINED} Medusa's row of the table is in the first part.",
        ),
    ),
)
