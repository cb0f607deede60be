"""Medusa's heads: the network, its fast form for decoding, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.drafting import trained
from bench.drafting.trained import Count, Size
from bench.drafting.tree_choice import RankRecord
from bench.engine import MAX_DRAFTS
from bench.engine.decoder import Decoder
from bench.engine.products import Layout, Linear
from bench.errors import UserError
from bench.files import save_tensors

HEADS_FILE = "heads.safetensors"
AUTHORS_FILE = "medusa_lm_head.pt"
FILES = (HEADS_FILE, "medusa_lm_head.safetensors", AUTHORS_FILE)
_WHAT = "set of Medusa heads"
_RECORD = {"ranks": torch.uint8, "rank_lengths": torch.int32, "rank_kinds": torch.int8}  # tensors of a `RankRecord`


@dataclass(frozen=True)
class HeadsConfig:
    """Dimensions of a set of heads, and the vocabulary that they were trained for."""

    hidden_size: Size
    heads: Annotated[int, Field(ge=1, le=MAX_DRAFTS)]
    vocab_size: Size  # of the LM heads: the target's, or the draft vocabulary
    own_lm_heads: bool = True  # as published (Medusa-1); else all share the target's LM head
    reads_newest: bool = False  # beyond the paper: the input is the state and the newest token's embedding
    draft_vocab: Count = 0  # 0: whole


@dataclass(frozen=True)
class _OurFile:
    """Our config.json."""

    heads: HeadsConfig


class Heads(nn.Module):
    """H heads in parallel: x -> x + SiLU(W x + b), then an LM head (paper, section 2.1.1).

    With their own LM heads they have H (d^2 + d + d V) parameters: 591M for Vicuna-7B and four heads. A head that reads
    the newest token starts from a projection of the state and that token's embedding under the target's final norm.
    """

    def __init__(self, config: HeadsConfig):
        super().__init__()
        h, d = config.heads, config.hidden_size
        self.config = config
        self.input = nn.Parameter(torch.zeros(h, d, 2 * d)) if config.reads_newest else None
        self.weight = nn.Parameter(torch.zeros(h, d, d))
        self.bias = nn.Parameter(torch.zeros(h, d))
        self.lm_heads = nn.Parameter(torch.zeros(h, config.vocab_size, d)) if config.own_lm_heads else None

    def forward(self, head: int, states: Tensor) -> Tensor:
        """Run one head on its input [m, d or 2 d]: returns states [m, d] for an LM head. For training."""
        x = states if self.input is None else F.linear(states, self.input[head])
        return x + F.silu(F.linear(x, self.weight[head], self.bias[head]))


class FastHeads:
    """The first heads run together on states, in the layout of the device, with a shared LM head or their own."""

    def __init__(self, heads: Heads, count: int, lm_head: Linear | list[Linear], *, layout: Layout, quantize: str):
        def joined(stack: Tensor) -> Linear:
            return Linear(stack[:count].detach().flatten(0, 1), layout=layout, quantize=quantize)

        self.count, self.hidden = count, heads.config.hidden_size
        self.input = None if heads.input is None else joined(heads.input)
        # All heads' matrices are multiplied with all heads' inputs, and only each with its own is kept: what takes time
        # is to read them.
        self.weight = joined(heads.weight)  # [H d, d]
        self.bias = heads.bias[:count].detach()
        self.lm_head = lm_head

    def __call__(self, states: Tensor) -> Tensor:
        """Inputs [B, d or 2 d] -> float32 logits [B, H, V]."""
        batch, heads, d = len(states), self.count, self.hidden
        x = states[:, None].expand(-1, heads, -1) if self.input is None else self.input(states).view(batch, heads, d)
        each = self.weight(x).view(batch, heads, heads, d)  # [.., input's head, matrix's head, d]
        x = x + F.silu(each.diagonal(dim1=1, dim2=2).transpose(1, 2) + self.bias)
        if isinstance(self.lm_head, Linear):
            return self.lm_head(x).float()
        return torch.stack([self.lm_head[i](x[:, i]) for i in range(heads)], dim=1).float()


def read_dimensions(folder: Path, target: trained.Dimensioned) -> HeadsConfig | None:
    """Read what the folder's config.json says of the heads; None for the authors' format, whose weights say it.

    Raises:
        UserError: a malformed file, or heads for another target.

    """
    if not (folder / HEADS_FILE).is_file():  # the authors' config.json gives another number of heads than the file has
        return None
    config = trained.read_config(folder, _WHAT, _OurFile).heads
    _check(config, target, folder)
    return config


def _check(config: HeadsConfig, target: trained.Dimensioned, folder: Path) -> None:
    trained.check_model(config.hidden_size, config.draft_vocab, target, folder, _WHAT)
    tokens = config.draft_vocab or target.config.vocab
    if config.own_lm_heads and config.vocab_size != tokens:
        raise UserError(
            f"the {_WHAT} in {folder} has LM heads of {config.vocab_size} tokens, but is for {tokens} of {target.name}"
        )


def load_heads(folder: Path, target: Decoder) -> tuple[Heads, Tensor | None, RankRecord | None]:
    """Read heads for `target`, in our format or the authors', the ranking of tokens and the record of ranks, if stored.

    Raises:
        UserError: no folder of heads, an unreadable or malformed file, or heads for another target.

    """
    config = read_dimensions(folder, target)
    tensors = trained.read_tensors(folder, _WHAT, FILES)
    if config is None:
        tensors = _stacked(tensors, folder)
        h, vocab, d = tensors["lm_heads"].shape
        config = HeadsConfig(d, h, vocab)
        _check(config, target, folder)
    known = {trained.RANKING, *_RECORD}
    heads = trained.filled(lambda: Heads(config), tensors, None, target, folder, _WHAT, known)
    return heads, trained.token_ranking(tensors, target, folder), _record(tensors, config, folder)


def _record(tensors: dict[str, Tensor], config: HeadsConfig, folder: Path) -> RankRecord | None:
    """Return the record of ranks that is stored with heads, if one is."""
    found = {name: tensors[name] for name in _RECORD if name in tensors}
    if not found:
        return None
    if {name: tensor.dtype for name, tensor in found.items()} == _RECORD:
        record = RankRecord(*(found[name].numpy() for name in _RECORD))
        if record.fits() and record.ranks.shape[1] == config.heads:
            return record
    raise UserError(f"{', '.join(_RECORD)} in {folder} do not fit the heads: download or train them again")


def _stacked(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Stack the authors' tensors; of head 0, `0.0.linear.weight` [d, d], `.bias` [d], `0.1.weight` [V, d]."""
    names = {"weight": "0.linear.weight", "bias": "0.linear.bias", "lm_heads": "1.weight"}
    count = len({name.split(".")[0] for name in tensors})
    expected = {f"{head}.{name}" for head in range(count) for name in names.values()}
    if not tensors or expected != tensors.keys():
        odd = ", ".join(sorted(expected ^ tensors.keys())[:3])
        raise UserError(f"{folder} has no heads of Medusa's layout, a residual block and an LM head each: see {odd}")
    each = {ours: [tensors[f"{head}.{name}"] for head in range(count)] for ours, name in names.items()}
    shapes = {ours: {tuple(tensor.shape) for tensor in found} for ours, found in each.items()}
    if any(len(found) > 1 for found in shapes.values()) or {len(shape) for shape in shapes["lm_heads"]} != {2}:
        raise UserError(f"the heads in {folder} do not all have one shape: {shapes}")
    return {ours: torch.stack(found) for ours, found in each.items()}


def save_heads(folder: Path, heads: Heads, ranking: Tensor, record: RankRecord) -> None:
    """Write heads and what belongs to them in our format: two files in an existing folder, in half precision."""
    tensors = {name: tensor.detach().cpu().half() for name, tensor in heads.named_parameters()}
    tensors["token_ranking"] = ranking.to(torch.int32)
    for name, array in (("ranks", record.ranks), ("rank_lengths", record.lengths), ("rank_kinds", record.kinds)):
        tensors[name] = torch.from_numpy(array)
    save_tensors(tensors, folder / HEADS_FILE)
    (folder / trained.CONFIG_FILE).write_text(
        json.dumps({"heads": asdict(heads.config)}, indent=1) + "\n", encoding="utf-8"
    )


def cut_own(heads: Heads, vocab: int, ranking: Tensor | None, target: Decoder, folder: Path) -> None:
    """Cut the heads' own LM heads to a smaller draft vocabulary."""
    made = heads.config.draft_vocab
    if vocab == made:
        return
    ids = trained.draft_ids(vocab, ranking, target, folder)
    if made or ids is None or heads.lm_heads is None:
        raise UserError(f"draft_vocab={vocab}: the LM heads in {folder} were trained for {made or 'all'} tokens")
    heads.lm_heads.data = heads.lm_heads.data[:, ids]
