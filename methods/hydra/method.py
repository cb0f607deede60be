"""Hydra: sequentially dependent heads on the target's last state draft a tree (Ankner et al., arXiv 2402.05109).

Where Medusa's heads are independent, head i here also reads the tokens drafted before its own, from the newest one on,
so that a tree is expanded level by level. Hydra++ adds a prefix layer, one decoder layer over the target's
final states, whose output the heads read in place of the last state. This is Hydra++, from the authors' files.
Sampling is lossless: drafts are deterministic, and the authors' typical acceptance is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.drafting import trained
from bench.drafting.method import SpeculativeMethod
from bench.drafting.published import Published
from bench.drafting.sequence import NO_DRAFT, Draft, Outcome, Sequence, States
from bench.drafting.tree_files import CHAIN, check_fits, paths_for, spell
from bench.drafting.tree_files import PUBLISHED as PUBLISHED_TREE
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.joined import Part, joined, run_joined
from bench.engine.places import Places
from methods.hydra import knobs
from methods.hydra.heads import FILES, PUBLISHED, Network, Tree, count_parameters, read_config, read_weights
from methods.hydra.knobs import AUTHORS, HydraConfig


@dataclass
class Progress:
    """Hydra's state of a sequence."""

    cache: KVCache  # the prefix layer's
    unread: Tensor  # [1, m, d]: final states that the prefix layer has not processed; the last is before the newest
    state: Tensor  # [1, d]: the prefix layer's after all the others


def _published_call(target: Decoder) -> Callable[[], object]:
    """Return a call of the published heads with random weights: one state into the prefix layer, and the whole tree."""
    shapes = PUBLISHED.shapes(target.config)
    with torch.device(target.device):
        weights = {name: torch.randn(shape, dtype=target.dtype) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    network = Network(target, PUBLISHED, PUBLISHED.hydra_num_heads, weights, "none")
    tree = Tree(paths_for(PUBLISHED_TREE, PUBLISHED.hydra_num_heads), target.device)
    return _draft_call(network, tree)


def _draft_call(network: Network, tree: Tree, sequences: int = 1) -> Callable[[], object]:
    """Return a call that drafts a tree after one state of each sequence."""
    parts = [Part(Places.after(0, 1), network.prefix.new_cache(max_len=1)) for _ in range(sequences)]
    states = network.target.final_norm(network.target.embed([0] * sequences))
    newest, depths = [0] * sequences, [len(tree.levels)] * sequences

    def call() -> object:
        read = network.prefix.final_norm(run_joined(network.prefix, states, parts))
        return network.draft(read[0].split(1), newest, tree, depths) if tree.levels else None

    return call


class Hydra(SpeculativeMethod):
    """Drafts with sequentially dependent heads on a prefix layer."""

    family = "heads"
    Config = HydraConfig
    presets = knobs.presets
    published = Published(
        "Hydra++'s prefix layer and four heads", drafts=PUBLISHED.hydra_num_heads, call=_published_call
    )

    @classmethod
    def check_weights(cls, config: HydraConfig, model: trained.Dimensioned) -> None:
        """Check the heads' config.json, and that the tree fits it."""
        made = read_config(trained.find_folder("hydra", config.weights, model.name, FILES, AUTHORS))
        check_fits(config.tree, paths_for(config.tree, made.hydra_num_heads), made.hydra_num_heads, model.config.vocab)

    def __init__(self, target: Decoder, config: HydraConfig):
        super().__init__(target, config)
        folder = trained.find_folder("hydra", config.weights, target.name, FILES, AUTHORS)
        made = read_config(folder)
        paths = paths_for(config.tree, made.hydra_num_heads)
        check_fits(config.tree, paths, made.hydra_num_heads, target.config.vocab)
        weights = read_weights(folder, made, target)
        self.digest = trained.digest(folder, FILES)
        self.tree = Tree(paths, target.device)
        heads = len(self.tree.levels)  # heads that the tree does not use are not run
        self.network = Network(target, made, heads, weights, trained.draft_quantize(config.draft_weights, target))
        self.parameters, self.most_heads = count_parameters(made.shapes(target.config, heads)), made.hydra_num_heads
        self.config = replace(config, tree=spell(paths))
        self.caches: dict[int, KVCache] = {}  # the prefix layer's, by a sequence's slot

    def draft_calls(self) -> Many[Callable[[], object]]:
        """Draft the whole tree after one state."""
        return [_draft_call(self.network, self.tree, self.target.sequences)]

    @property
    def widest(self) -> int:
        """The newest token and the whole tree."""
        return 1 + len(self.tree.parents)

    def probing(self, windows: int) -> tuple[HydraConfig, int]:
        """Return a chain of all heads."""
        return replace(self.config, tree=CHAIN), min(windows, self.most_heads)

    @property
    def extra_parameters(self) -> int:
        """The weights of the prefix layer and of the heads in use."""
        return self.parameters

    def open(self, sequence: Sequence, prompt: States) -> None:
        """Prefill the prefix layer."""
        if sequence.slot not in self.caches:
            self.caches[sequence.slot] = self.network.prefix.new_cache()
        sequence.notes = Progress(self.caches[sequence.slot], prompt.final, prompt.final[0, -1:])
        self._read([sequence])

    def observe(self, sequences: Many[Sequence], outcomes: Many[Outcome]) -> None:
        """Keep the states that the prefix layer must process before it drafts again."""
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            progress: Progress = sequence.notes
            progress.unread = torch.cat((progress.unread, outcome.kept.final), dim=1)

    def propose(self, sequences: Many[Sequence], budgets: Many[int]) -> list[Draft]:
        """Expand as many levels of the tree as each budget has tokens, those of all sequences in one pass a level."""
        depths = [min(budget, len(self.tree.levels)) for budget in budgets]
        drafts = [NO_DRAFT] * len(sequences)
        if asked := [i for i, depth in enumerate(depths) if depth]:
            own, depths = [sequences[i] for i in asked], [depths[i] for i in asked]
            made = self.network.draft(self._read(own), [one.context[-1] for one in own], self.tree, depths)
            for i, depth, (tokens, confidences) in zip(asked, depths, made, strict=True):
                drafts[i] = Draft(tokens, self.tree.parents[: self.tree.ends[depth - 1]], confidences=confidences)
        return drafts

    def _read(self, sequences: Many[Sequence]) -> list[Tensor]:
        """Run the prefix layer over what it has not processed; returns its last state [1, d] of each sequence."""
        prefix = self.network.prefix
        behind: list[tuple[int, Progress]] = [
            (sequence.length, sequence.notes) for sequence in sequences if sequence.notes.unread.shape[1]
        ]
        if behind:
            unread = [progress.unread for _, progress in behind]
            widths = [rows.shape[1] for rows in unread]
            parts = [
                Part(Places.after(length - m, m), progress.cache)
                for (length, progress), m in zip(behind, widths, strict=True)
            ]
            read = run_joined(prefix, joined(unread), parts)
            for (_, progress), rows in zip(behind, read.split(widths, dim=1), strict=True):
                progress.state, progress.unread = prefix.final_norm(rows[:, -1]), progress.unread[:, :0]
        return [sequence.notes.state for sequence in sequences]
