"""Medusa's heads: the network, its fast form for decoding, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.drafting import trained
from bench.drafting.tree_choice import RankRecord
from bench.engine.decoder import Decoder
from bench.engine.products import Layout, Linear
from bench.errors import UserError

HEADS_FILE = "heads.safetensors"
AUTHORS_FILE = "medusa_lm_head.pt"
FILES = (HEADS_FILE, "medusa_lm_head.safetensors", AUTHORS_FILE)
_WHAT = "set of Medusa heads"


@dataclass(frozen=True)
class HeadsConfig:
    """Dimensions of a set of heads, and what they were made for."""

    hidden_size: int
    heads: int
    vocab_size: int  # of the LM heads: the target's, or the draft vocabulary
    own_lm_heads: bool = True  # as published (Medusa-1); else the target's LM head serves all
    reads_newest: bool = False  # beyond the paper: input is the state and the newest token's embedding
    draft_vocab: int = 0  # 0: whole

    def __post_init__(self) -> None:
        if min(self.hidden_size, self.heads, self.vocab_size) < 1:
            raise ValueError("hidden_size, heads and vocab_size must be at least 1")


class Heads(nn.Module):
    """H heads side by side: x -> x + SiLU(W x + b), then an LM head (paper, section 2.1.1).

    With their own LM heads H (d^2 + d + d V) parameters: 591M for Vicuna-7B and four heads. A head that reads the
    newest token starts from a projection of the state and that token's embedding under the target's final norm.
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
        """What one head makes of its input [m, d or 2 d]: states [m, d] for an LM head. For training."""
        x = states if self.input is None else F.linear(states, self.input[head])
        return x + F.silu(F.linear(x, self.weight[head], self.bias[head]))


class FastHeads:
    """The first heads on one state at once, laid out for this device, with one shared LM head or their own [heads]."""

    def __init__(self, heads: Heads, count: int, lm_head: Linear | list[Linear], *, layout: Layout):
        def joined(stack: Tensor) -> Linear:
            return Linear(stack[:count].detach().flatten(0, 1), layout=layout)

        self.count, self.hidden = count, heads.config.hidden_size
        self.input = None if heads.input is None else joined(heads.input)
        self.weight = heads.weight[:count].detach().contiguous()  # [H, d, d]
        self.bias = heads.bias[:count].detach()
        self.lm_head = lm_head

    def __call__(self, state: Tensor) -> Tensor:
        """Input [1, d or 2 d] -> float32 logits [H, V]."""
        x = state.expand(self.count, -1) if self.input is None else self.input(state).view(self.count, self.hidden)
        x = x + F.silu(torch.baddbmm(self.bias[:, :, None], self.weight, x[:, :, None])[:, :, 0])
        if isinstance(self.lm_head, Linear):
            return self.lm_head(x).float()
        return torch.cat([self.lm_head[i](x[i : i + 1]) for i in range(self.count)]).float()


def load_heads(folder: Path, target: Decoder) -> tuple[Heads, Tensor | None, RankRecord | None]:
    """Heads for `target` from our format or the authors', the ranking of tokens and the record of ranks, if stored.

    Raises:
        UserError: not a folder of heads, an unreadable file, or heads for another target.

    """
    tensors = trained.read_tensors(folder, _WHAT, FILES)
    if (folder / HEADS_FILE).is_file():
        config: HeadsConfig = trained.read_config(folder, _WHAT, lambda value: HeadsConfig(**value["heads"]))
    else:  # their config.json says another number of heads than the file holds
        tensors = _stacked(tensors, folder)
        h, d = tensors["weight"].shape[:2]
        config = HeadsConfig(d, h, tensors["lm_heads"].shape[1])
    trained.check_hidden(config.hidden_size, target, folder, _WHAT)
    if config.own_lm_heads and not config.draft_vocab and config.vocab_size != target.config.vocab:
        raise UserError(
            f"the {_WHAT} in {folder} is for another model: its vocabulary has {config.vocab_size} tokens, "
            f"but {target.name}'s {target.config.vocab}"
        )
    heads = Heads(config)
    trained.fill(heads, tensors, {name: name for name, _ in heads.named_parameters()}, folder, _WHAT)
    record = None
    if "ranks" in tensors:
        record = RankRecord(*(tensors[name].numpy() for name in ("ranks", "rank_lengths", "rank_kinds")))
        if not record.fits() or record.ranks.shape[1] != config.heads:
            raise UserError(f"the {_WHAT} in {folder} has ranks of another shape than it says: fetch or train it again")
    return heads.to(target.device, target.dtype).requires_grad_(False), tensors.get("token_ranking"), record


def _stacked(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The authors' tensors stacked; of head 0, `0.0.linear.weight` [d, d], `.bias` [d], `0.1.weight` [V, d]."""
    names = {"weight": "0.linear.weight", "bias": "0.linear.bias", "lm_heads": "1.weight"}
    count = len({name.split(".")[0] for name in tensors})
    expected = {f"{head}.{name}" for head in range(count) for name in names.values()}
    if not tensors or expected != tensors.keys():
        odd = ", ".join(sorted(expected ^ tensors.keys())[:3])
        raise UserError(f"{folder} holds no heads of Medusa's layout, a residual block and an LM head each: {odd}")
    try:
        return {ours: torch.stack([tensors[f"{head}.{name}"] for head in range(count)]) for ours, name in names.items()}
    except RuntimeError as error:
        raise UserError(f"the heads in {folder} are not all of one shape: {error}") from error


def save_heads(folder: Path, heads: Heads, ranking: Tensor, record: RankRecord) -> None:
    """Write heads and what belongs to them in our format (two files in an existing folder), in half precision."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().half() for name, tensor in heads.named_parameters()}
    tensors["token_ranking"] = ranking.to(torch.int32)
    for name, array in (("ranks", record.ranks), ("rank_lengths", record.lengths), ("rank_kinds", record.kinds)):
        tensors[name] = torch.from_numpy(array)
    save_file(tensors, folder / HEADS_FILE)
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
        raise UserError(f"draft_vocab={vocab}: the LM heads in {folder} are made for {made or 'all'} tokens")
    heads.lm_heads.data = heads.lm_heads.data[:, ids]
