"""DFlash's network and its checkpoints.

A few decoder layers as Qwen3's run over a block: the newest token and masks, which see each other. What they see of the
text are keys and values that every layer's own projections make of one feature a position: a projection of the target's
states after several layers. So the layers are run by the engine, and only the context's keys and values are made here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from bench.drafting import trained
from bench.drafting.knobs import CONFIG_FILE
from bench.drafting.trained import Count, Size
from bench.engine import MAX_DRAFTS
from bench.engine.attention import apply_rope, fused_rope, rms_norm
from bench.engine.cache import KVCache
from bench.engine.decoder import Decoder
from bench.engine.joined import Part, run_joined
from bench.engine.places import Places, Span
from bench.engine.products import Linear
from bench.engine.quantize import GROUP
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from bench.files import first_line
from bench.typed_json import TokenId

_WHAT = "block drafter"
_COPIES = ("embed_tokens.weight", "lm_head.weight")  # DeepSpec stores the target's, too: the target's own are used
LayerId = Annotated[int, Field(ge=-1, le=10_000)]


@dataclass(frozen=True)
class _Block:
    block_size: Annotated[int, Field(ge=2, le=MAX_DRAFTS)] | None = None
    mask_token_id: TokenId | None = None
    target_layer_ids: Annotated[list[LayerId], Field(min_length=1)] | None = None


@dataclass(frozen=True)
class _File(_Block):
    """What config.json has besides a Qwen3's dimensions. z-lab's files have some of `_Block` in `dflash_config`."""

    dflash_config: _Block | None = None
    num_target_layers: Size | None = None
    # DSpark's heads
    markov_rank: Count = 0
    markov_head_type: str = ""
    enable_confidence_head: bool = False
    confidence_head_with_markov: bool = False


@dataclass(frozen=True)
class Form:
    """What a checkpoint's config.json says."""

    block: int  # tokens of a block: the newest and the masks
    mask: int  # the masks' token id
    taps: tuple[int, ...]  # the target's states that it reads, by number of layers, in the order of `fc`
    first: int  # the first row of the block that drafts: 1, the first mask; 0, the newest token (DeepSpec's files)
    file: _File
    layers: DecoderConfig
    hf_config: Any

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its weights by name, as stored."""
        d = self.layers.hidden
        own = {name: s for name, s in self.layers.shapes().items() if name.startswith(("layers.", "norm."))}
        return own | {"fc.weight": (d, len(self.taps) * d), "hidden_norm.weight": (d,)}


def read_form(folder: Path, target: trained.Dimensioned) -> Form:
    """Read a checkpoint's config.json.

    Raises:
        UserError: it is missing, malformed, of another layout, or for another target.

    """
    from transformers import Qwen3Config

    file = trained.read_config(folder, _WHAT, _File, lenient=True)
    inner = file.dflash_config or _Block()
    block = file.block_size or inner.block_size
    mask = inner.mask_token_id if file.mask_token_id is None else file.mask_token_id
    ids = file.target_layer_ids or inner.target_layer_ids
    if block is None or mask is None or ids is None:
        raise UserError(
            f"{folder} is no {_WHAT} that can be read: {CONFIG_FILE} lacks block_size, mask_token_id or "
            "target_layer_ids, which z-lab's and DeepSpec's have: take one of theirs"
        )
    values = json.loads((folder / CONFIG_FILE).read_bytes())
    try:
        hf_config = Qwen3Config.from_dict({key: value for key, value in values.items() if key != "model_type"})
    except Exception as error:  # transformers raises nearly every type here
        raise UserError(f"{folder / CONFIG_FILE} cannot be read: {first_line(error)}; download it again") from error
    layers, c = DecoderConfig.from_hf(hf_config), target.config
    taps = tuple(number + 1 for number in ids)  # their id k: after k + 1 layers
    trained.check_model(layers.hidden, 0, target, folder, _WHAT)
    unfit, remedy = f"the {_WHAT} in {folder} is for another model", trained.remedy(target)
    if (made := file.num_target_layers or c.layers) != c.layers or max(taps) >= c.layers:
        read = f"it reads layer {max(ids)} of {made}, counted from 0"
        there = f"{target.name} has {c.layers}, of which the last cannot be read"
        raise UserError(f"{unfit}: {read}, but {there}; {remedy}")
    if layers.vocab != c.vocab or mask >= c.vocab:
        given = f"it has {layers.vocab} tokens and mask_token_id={mask}"
        raise UserError(f"{unfit}: {given}, but {target.name} has {c.vocab} tokens; {remedy}")
    if hf_config.sliding_window and "sliding_attention" in (hf_config.layer_types or ()):
        raise UserError(f"the {_WHAT} in {folder} has layers with sliding windows, which are not supported")
    return Form(block, mask, taps, int(file.dflash_config is not None), file, layers, hf_config)


def read_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the weights with these names and shapes.

    Raises:
        UserError: they cannot be read, or are not these.

    """
    stored = trained.read_shards(folder, _WHAT)
    trained.check_shapes(stored, shapes, folder, _WHAT, _COPIES)
    return {name: stored[name] for name in shapes}


class Drafter:
    """The network on the target's device, in its dtype."""

    def __init__(self, form: Form, stored: Mapping[str, Tensor], target: Decoder, quantize: str):
        """`stored` is what `read_weights` returned; `quantize`: as `Linear`'s."""
        c, device, dtype = form.layers, target.device, target.dtype
        self.target, self.form = target, form
        # The engine's decoder for the layers. Its own embedding and LM head, of one token, are not used.
        form.hf_config.vocab_size, form.hf_config.tie_word_embeddings = 1, True
        weights = {name: tensor for name, tensor in stored.items() if name.startswith(("layers.", "norm."))}
        self.decoder = Decoder.from_weights(
            form.hf_config, (weights | {"embed_tokens.weight": torch.zeros(1, c.hidden)}).items(), name=_WHAT,
            dtype=dtype, device=device, max_len=target.max_len, quantize=quantize, homes=[device] * c.layers,
        )  # fmt: skip
        self.decoder.graphs = target.graphs  # one memory pool

        def joined(names: list[str]) -> Tensor:
            return torch.cat([stored[name] for name in names]).to(device, dtype)

        kv = [f"layers.{i}.self_attn.{name}_proj" for i in range(c.layers) for name in "kv"]
        bias = joined([f"{name}.bias" for name in kv]) if "self_attn.k_proj" in c.biased else None
        self.fc = Linear(joined(["fc.weight"]), layout=target.layout, quantize=quantize)
        self.kv = Linear(joined([f"{name}.weight" for name in kv]), bias, layout=target.layout, quantize=quantize)
        self.hidden_norm = joined(["hidden_norm.weight"])
        mask = torch.ones(form.block, form.block, dtype=torch.bool, device=device)
        self.seen = torch.arange(form.block, device=device), mask

    def read(self, features: Tensor, start: int, cache: KVCache) -> None:
        """Put positions from `start` on into the context, given the target's states at all T taps, [1, n, T d]."""
        c, n = self.form.layers, features.shape[1]
        rows, places = slice(start, start + n), Places.after(start, n)
        context = rms_norm(self.fc(features), self.hidden_norm, c.norm_eps)
        both = self.kv(context).view(1, n, c.layers, 2 * c.kv_heads, c.head_dim)
        rope = fused_rope(self.decoder.cos[rows], self.decoder.sin[rows], c.kv_heads, c.kv_heads)
        for i, layer in enumerate(self.decoder.layers):
            k, v = both[:, :, i].chunk(2, dim=2)
            assert layer.k_norm is not None
            kv = torch.cat((rms_norm(k, layer.k_norm, c.norm_eps), v), dim=2)
            cache.update(i, places, apply_rope(kv, *rope))

    def block(self, newest: int, start: int, cache: KVCache) -> Tensor:
        """Run a block whose newest token is at `start`, after that context; returns states [m, d] for the LM head.

        What it writes to the cache is overwritten: a later context or block starts at `start`, too.
        """
        return self.blocks([(newest, start, cache)])[0]

    def blocks(self, asked: Sequence[tuple[int, int, KVCache]]) -> list[Tensor]:
        """Run the blocks of several sequences in one pass, each as in `block`."""
        form = self.form
        parts = [
            Part(Places((Span(start, depths=self.seen[0], seen=self.seen[1]),), form.block), cache)
            for _, start, cache in asked
        ]
        masks = [form.mask] * (form.block - 1)
        x = self.target.embed([token for newest, *_ in asked for token in (newest, *masks)])
        states = self.decoder.final_norm(run_joined(self.decoder, x, parts))[0]
        return [rows[form.first :] for rows in states.split(form.block)]


def choose_quantize(asked: str, form: Form, target: Decoder) -> str:
    """Return how the matrices are stored, `asked` (q8 or plain) where the kernels allow."""
    c = form.layers
    fits = target.dtype == torch.float32 and not any(s % GROUP for s in (c.heads * c.head_dim, c.intermediate))
    return trained.draft_quantize(asked, target) if fits else "none"
