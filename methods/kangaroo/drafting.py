"""Kangaroo's draft model: exit layers, adapter and LM head over a level of drafts, in one call where kernels run."""

from __future__ import annotations

from types import SimpleNamespace

from bench.drafting.levels import ByOperations
from bench.engine.decoder import Decoder
from bench.engine.kernels import native
from bench.engine.kernels.draft import DraftModel
from bench.engine.products import Linear
from bench.engine.quantize import GROUP
from methods.kangaroo.adapter import Adapter


def can_copy(target: Decoder, quantize: str) -> bool:
    """Return whether drafts may be made with a copy of the exit layers in fewer bits; the target verifies with all.

    A four-bit target's own layers are smaller than such a copy.
    """
    c = target.config
    sizes = (c.hidden, c.heads * c.head_dim, c.intermediate)
    return quantize != "none" and target.quantize == "none" and not any(size % GROUP for size in sizes)


def draft_model(
    target: Decoder, exit_layer: int, adapter: Adapter, head: Linear, quantize: str
) -> DraftModel | ByOperations:
    """Return the draft model in its fastest form here; `quantize`: of a copy of the exit layers, none: no copy."""
    attention = _for_kernels(adapter)
    if target.native_layers is None or attention is None or head.product is None:
        assert quantize == "none"
        return ByOperations(target, exit_layer, adapter, head)
    copied = quantize != "none"
    return DraftModel(
        target.quantized_layers(exit_layer, quantize) if copied else target.native_layers,
        exit_layer,
        (target.cos, target.sin),
        join=adapter.packed.get("input"),
        layers=attention,
        own_tables=(adapter.cos, adapter.sin),
        norm=adapter.output_norm,
        head=head,
    )


def _for_kernels(adapter: Adapter) -> native.Layers | None:
    """Return its attention for the kernels; None: it has more than that, or they are not here."""
    packed = adapter.packed
    if packed.keys() - {"input"} != {"qkv", "o"} or any(linear.product is None for linear in packed.values()):
        return None
    attention = SimpleNamespace(
        input_norm=adapter.input_norm, q_norm=None, k_norm=None, post_norm=None,
        qkv=packed["qkv"], out=packed["o"], gate_up=None, down=None,
    )  # fmt: skip
    c = adapter.config
    heads, head_dim = c.num_attention_heads, c.hidden_size // c.num_attention_heads
    return native.Layers(native.Dimensions(c.hidden_size, heads, heads, head_dim, c.rms_norm_eps), [attention])
