"""Hydra++'s network in the layout of the device, the tree that it expands level by level, and the authors' files."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.drafting import trained
from bench.drafting.together import in_step
from bench.drafting.tree import ROOT, tree_from_paths, tree_of
from bench.engine import MAX_DRAFTS
from bench.engine.decoder import Decoder
from bench.engine.products import Linear
from bench.engine.quantize import GROUP
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from methods.hydra.knobs import AUTHORS

FILES = ("hydra_lm_head.pt",)
_WHAT = "set of Hydra heads"
_PREFIX = "prefix_embeding_layer."  # spelled as in the files
# Stored with the heads, but not theirs: the target's embedding, once more as that of the prefix layer, and a constant.
_OTHERS = {"input_embed_fn.weight", f"{_PREFIX}embed_tokens.weight", f"{_PREFIX}layers.0.self_attn.rotary_emb.inv_freq"}


@dataclass(frozen=True)
class HeadsConfig:
    """What we read of the authors' config.json."""

    hydra_num_heads: Annotated[int, Field(ge=1, le=MAX_DRAFTS)]
    hydra_num_layers: Annotated[int, Field(ge=1, le=64)]  # blocks of a head; all after the first are one block
    hydra_head_arch: str
    grounded_heads: bool
    hidden_state_offset: int = 0

    def shapes(self, target: DecoderConfig, heads: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight of the first heads (None: all) and the prefix layer, by stored name.

        Head i is blocks over (i + 2) d inputs: the prefix state, and embeddings of the newest token and i drafts. A
        head's first block has a matrix in place of the identity, as it changes the width. Its LM head has a bias. (The
        authors' code, github.com/zankner/Hydra, prefix_mlp_head.py.)
        """
        d, vocab = target.hidden, target.vocab
        layer = replace(target, layers=1, tied=True).shapes()
        shapes = {f"{_PREFIX}{name}": shape for name, shape in layer.items() if name != "embed_tokens.weight"}
        for i in range(self.hydra_num_heads if heads is None else heads):
            matrices = {f"hydra_mlp.{i}.1.{part}": (d, (i + 2) * d) for part in ("linear", "res_connection")}
            if self.hydra_num_layers > 1:
                matrices[f"hydra_mlp.{i}.3.linear"] = d, d
            matrices[f"hydra_lm_head.{i}.1"] = vocab, d
            for name, shape in matrices.items():
                shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return shapes

    def repeated(self) -> dict[str, str]:
        """Return the stored names under which the one later block of a head is repeated, with its first name."""
        numbers = itertools.product(range(self.hydra_num_heads), range(2, self.hydra_num_layers), ("weight", "bias"))
        return {f"hydra_mlp.{i}.{2 * n + 1}.linear.{part}": f"hydra_mlp.{i}.3.linear.{part}" for i, n, part in numbers}


PUBLISHED = HeadsConfig(4, 4, "prefix-mlp", grounded_heads=True)  # of the authors' heads


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of weights of these shapes."""
    return sum(map(math.prod, shapes.values()))


def read_config(folder: Path) -> HeadsConfig:
    """Read the authors' config.json.

    Raises:
        UserError: a missing or malformed file, or heads of another architecture.

    """
    config = trained.read_config(folder, _WHAT, HeadsConfig, lenient=True)
    for name in ("hydra_head_arch", "grounded_heads", "hidden_state_offset"):
        found, known = getattr(config, name), getattr(PUBLISHED, name)
        if found != known:
            raise UserError(
                f"the {_WHAT} in {folder} has {name}={found}, but only {known} can be used (Hydra++): take heads such "
                f"as {AUTHORS}"
            )
    return config


def read_weights(folder: Path, config: HeadsConfig, target: trained.Dimensioned) -> dict[str, Tensor]:
    """Read and check the authors' weights, by stored name.

    Raises:
        UserError: unreadable weights, or weights that are not those of the configuration and the target.

    """
    stored, shapes = trained.read_tensors(folder, _WHAT, FILES), config.shapes(target.config)
    norm, repeated = stored.get(f"{_PREFIX}norm.weight"), config.repeated()
    if norm is not None:
        trained.check_model(norm.numel(), 0, target, folder, _WHAT)
    copies = {name: shapes[first] for name, first in repeated.items()}
    trained.check_shapes(stored, shapes | copies, folder, _WHAT, _OTHERS)
    for name, first in repeated.items():
        if not torch.equal(stored[name], stored[first]):
            raise UserError(
                f"the {_WHAT} in {folder} cannot be used: {name} differs from {first}, but all blocks of a head after "
                "its first are one block: download them again"
            )
    return {name: stored[name] for name in shapes}


@dataclass(frozen=True)
class Level:
    """The drafts of one depth, all of which head `depth - 1` makes. The rows of a level are the drafts that it expands.

    Rows of the level before are `above`; the first level's only row is the newest token.
    """

    above: Tensor  # [m]: the row above each row
    of: Tensor  # [m]: the draft of the level before that each row is, by number within it
    row: Tensor  # [n]: the row that each draft follows
    rank: Tensor  # [n]: its rank among the tokens after that row
    most: int  # ranks in use


class Tree:
    """A static tree of drafts by level, on a device."""

    def __init__(self, paths: Sequence[tuple[int, ...]], device: torch.device):
        self.parents, ranks = tree_from_paths(paths)
        depths = tree_of(self.parents).depths[1:]
        self.levels: list[Level] = []
        self.ends: list[int] = []  # of each level: the number of drafts up to its last
        tensor = functools.partial(torch.tensor, dtype=torch.long, device=device)
        rows, first = [ROOT], ROOT
        for depth in range(1, max(depths, default=0) + 1):
            drafts = [draft for draft, own in enumerate(depths) if own == depth]
            before, rows = rows, sorted({self.parents[draft] for draft in drafts})
            above = [before.index(self.parents[row]) if row != ROOT else 0 for row in rows]
            ranked = [ranks[draft] for draft in drafts]
            self.levels.append(
                Level(
                    above=tensor(above),
                    of=tensor([row - first for row in rows]),
                    row=tensor([rows.index(self.parents[draft]) for draft in drafts]),
                    rank=tensor(ranked),
                    most=1 + max(ranked),
                )
            )
            self.ends.append(drafts[-1] + 1)
            first = drafts[0]


class Network:
    """The prefix layer and the first heads for inference; `weights` by stored name, as checked."""

    def __init__(self, target: Decoder, config: HeadsConfig, heads: int, weights: Mapping[str, Tensor], quantize: str):
        c = target.config
        self.target, self.repeats = target, config.hydra_num_layers - 1
        own = {name.removeprefix(_PREFIX): weights[name] for name in weights if name.startswith(_PREFIX)}
        whole = not any(size % GROUP for size in (c.hidden, c.heads * c.head_dim, c.intermediate))
        self.prefix = target.draft_layers(1, own, quantize if whole else "none")

        def joined(*names: str) -> Linear:
            parts = [
                torch.cat([weights[f"{name}.{part}"].to(target.device, target.dtype) for name in names])
                for part in ("weight", "bias")
            ]
            return Linear(*parts, layout=target.layout, quantize=quantize)

        self.first = [joined(f"hydra_mlp.{i}.1.linear", f"hydra_mlp.{i}.1.res_connection") for i in range(heads)]
        self.later = [joined(f"hydra_mlp.{i}.3.linear") for i in range(heads if self.repeats else 0)]
        self.lm_heads = [joined(f"hydra_lm_head.{i}.1") for i in range(heads)]

    def head(self, i: int, x: Tensor) -> Tensor:
        """Input [m, (i + 2) d] of head i -> float32 logits [m, V]."""
        inner, x = self.first[i](x).chunk(2, dim=-1)
        x = x + F.silu(inner)
        for _ in range(self.repeats):
            x = x + F.silu(self.later[i](x))
        return self.lm_heads[i](x).float()

    def draft(
        self, states: Sequence[Tensor], newest: Sequence[int], tree: Tree, depths: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Return for each sequence the tokens of the tree's first `depth` levels and the heads' probabilities of them.

        `states` [1, d]: the prefix layer's, one position before the newest token. All sequences share a head's pass.
        """
        every = zip(states, newest, depths, strict=True)
        drafting = [self._drafting(state, token, tree.levels[:depth]) for state, token, depth in every]
        heads = itertools.count()  # in lock-step, all ask for one head after the other
        return in_step(drafting, lambda asked: self.head(next(heads), torch.cat(asked)).split([len(x) for x in asked]))

    def _drafting(
        self, state: Tensor, newest: int, levels: Sequence[Level]
    ) -> Generator[Tensor, Tensor, tuple[list[int], list[float]]]:
        """Expand level by level; asks for the logits [m, V] of each head's input [m, (i + 2) d]."""
        x, drafted = state, torch.tensor([newest], device=state.device)
        tokens: list[Tensor] = []
        chances: list[Tensor] = []
        for level in levels:
            x = torch.cat((x[level.above], self.target.embed(drafted[level.of])[0]), dim=-1)
            logits = yield x
            best = logits.topk(level.most, dim=-1)
            drafted = best.indices[level.row, level.rank]
            tokens.append(drafted)
            chances.append((best.values[level.row, level.rank] - logits.logsumexp(-1)[level.row]).exp())
        # One transfer for both; float64 holds every token id.
        rows = torch.stack((torch.cat(tokens).double(), torch.cat(chances).double())).tolist()
        return [int(token) for token in rows[0]], rows[1]
