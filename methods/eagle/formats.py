"""Published EAGLE heads: what the files of other projects say, in the terms of `HeadConfig`. One converter a layout.

| layout | told by | version | ids of layers |
|---|---|---|---|
| authors' EAGLE-1, EAGLE-2, HASS | a Llama's config.json, `layers.0.*`, `fc.*` | 1 | - |
| vLLM's old wrapper of these | `model_type: eagle`, `model: {..}` | 1 | - |
| speculators, `eagle` | `speculators_model_type`, `transformer.*`, `fusion_fc.*` | 1 | - |
| authors' EAGLE-3, SpecForge, AngelSlim | `draft_vocab_size`, `midlayer.*` | 3 | see `_taps` |
| ModelOpt, TensorRT-LLM | the same with `eagle_config: {..}` and `layers.0.*` | 3 | see `_taps` |
| speculators, `eagle3` | `speculators_model_type`, `layers.0.*` | 3 | see `_taps` |
| DeepSpec | `Qwen3Eagle3Model`, `target_layer_ids` | 3 | see `_taps` |

A converter is a function of config.json and of the names and shapes of the tensors. What it does not know it refuses by
name: a key left out in silence (vLLM's `eagle_fc_bias`, vllm-project/vllm#11126) costs nothing but acceptance, so
nobody sees it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.drafting import trained
from bench.engine.decoder import Decoder
from bench.engine.weights import STATIC_ROPE, DecoderConfig
from bench.errors import UserError
from bench.files import first_line
from bench.models import weight_files
from bench.typed_json import Json, decode_value
from methods.eagle.head import NAMES, OWN_LAYER, HeadConfig

FILES = ("model.safetensors", "pytorch_model.bin")
Config = dict[str, Any]  # config.json
Shapes = Mapping[str, tuple[int, ...]]
_KINDS = ("llama", "qwen2", "qwen3")  # of the head's layer
_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps", "vocab_size")
_SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
# What transformers reads of a layer.
_READ = (*_SIZES, "hidden_act", "max_position_embeddings", "rms_norm_eps", "vocab_size", "rope_parameters",
         "rope_scaling", "rope_theta")  # fmt: skip
_NORMS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
_AUX = "eagle_aux_hidden_state_layer_ids"
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_FC_NORM, _FC_NORMS = NAMES["tap_norm"], "fc_norm.{}.weight"
# Keys that change nothing in what a head computes, besides those of a layer that transformers knows.
_IGNORED = {
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "model_type",
    "max_sequence_length", "max_window_layers", "sliding_window", "layer_types", "pretraining_tp", "rope_theta",
    "rope_scaling", "has_no_defaults_at_init", "speculators_model_type", "speculators_version", "speculators_config",
    "embed_requires_grad", "transformer_layer_architecture", "target_model_name_or_path", "target_model_type",
    "modal_type", "ttt_length", "step_loss_decay", "draft_num_hidden_layers", "num_lookahead_tokens",
    "parallel_draft_heads_num_layers",
}  # fmt: skip
# Keys of which we support one value, which is meant where the key is missing or null.
_ONLY: Config = {
    "num_hidden_layers": 1, "mlp_bias": False, "use_sliding_window": False,
    "layernorms": False, "add_para_norm": False, "skip_prenorm": True, "skip_output_norm": True,  # vLLM, speculators
    "use_aux_hidden_state": True, "use_input_layernorm_in_first_layer": True, "use_last_layernorm": True,  # ModelOpt
    "use_mtp_layernorm": False, "next_layer_regular": True, "parallel_draft_step": 1,
}  # fmt: skip
# Tensors that training or older versions of transformers left behind.
_UNUSED = ("{}self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq", "verifier_norm.weight", "verifier_lm_head.weight")


@dataclass(frozen=True)
class Published:
    """A head in another project's files."""

    config: HeadConfig
    names: dict[str, str]  # our parameters -> their tensors; the norms of taps are one tensor, as in our files
    unused: frozenset[str]  # tensors that may be there and are no weights of the head: see `load`


def is_published(folder: Path, ours: str) -> bool:
    """Return whether a folder has weights, but not under `ours`, the name of our own file."""
    names = [name for file in FILES for name in (file, f"{file}.index.json")]
    return not (folder / ours).is_file() and any((folder / name).is_file() for name in names)


def read(folder: Path, target: trained.Dimensioned, what: str) -> Published:
    """Read config.json and the names and shapes of the tensors.

    Raises:
        UserError: no layout that we know, or a form of head that we do not support.

    """
    config = trained.read_config(folder, what, dict[str, Json])
    shapes = {
        name: tuple(tensor.shape) for path in weight_files.find(folder) for name, tensor in weight_files.tensors(path)
    }
    try:
        return convert(config, shapes, target.config)
    except ValueError as error:
        raise UserError(
            f"the {what} in {folder} cannot be used: {error}; docs/methods/eagle.md lists the layouts that load, under "
            "Published weights"
        ) from error


def convert(config: Config, shapes: Shapes, target: DecoderConfig) -> Published:
    """Return what a published head is in our terms, from its config.json and the shapes of its tensors.

    Raises:
        ValueError: no layout that we know, or a form of head that we do not support.

    """
    converter: Callable[[Config, Shapes, DecoderConfig], Published]
    if kind := config.get("speculators_model_type"):
        if kind not in ("eagle", "eagle3"):
            raise ValueError(f"speculators_model_type={json.dumps(kind)} is neither eagle nor eagle3")
        converter = _speculators if kind == "eagle" else _speculators3
    elif config.get("model_type") == "eagle":
        converter = _vllm
    elif "target_layer_ids" in config:
        converter = _deepspec
    else:
        converter = _eagle3 if "draft_vocab_size" in config else _eagle
    return converter(config, shapes, target)


def _eagle(config: Config, shapes: Shapes, target: DecoderConfig) -> Published:
    """The authors' EAGLE-1 (eagle/model/cnets1.py); their `bias` is of `fc`, and `qkv_bias` of q, k and v."""
    return _version1(_layer(config, target, ("bias", "qkv_bias")), shapes, said={"bias": config.get("bias")})


def _vllm(config: Config, shapes: Shapes, target: DecoderConfig) -> Published:
    """vLLM's `EAGLEConfig` around the authors' files; `eagle_fc_bias` is inside or outside."""
    inner = _part(config, "model", ("eagle_fc_bias", "truncated_vocab_size"))
    if config.get("truncated_vocab_size") not in (None, target.vocab):
        raise ValueError(f"truncated_vocab_size={config['truncated_vocab_size']} is not supported")
    said = {name: config.get(name, inner.get(name)) for name in ("eagle_fc_bias", "bias")}
    return _version1(_layer(inner, target, ("bias", "qkv_bias", "eagle_fc_bias")), shapes, said=said)


def _speculators(config: Config, shapes: Shapes, target: DecoderConfig) -> Published:
    """EAGLE-1 in the layout of earlier versions of `speculators` (`EagleSpeculatorConfig`)."""
    inner = _part(config, "transformer_layer_config", ("fusion_bias", "tie_word_embeddings"))
    said = {"fusion_bias": config.get("fusion_bias")}
    return _version1(_layer(inner, target, required=()), shapes, said=said, fc="fusion_fc.", prefix="transformer.")


def _eagle3(config: Config, shapes: Shapes, target: DecoderConfig) -> Published:
    """The authors' EAGLE-3 (eagle/model/cnets.py), SpecForge's and AngelSlim's, and ModelOpt's with `eagle_config`."""
    keys = ("draft_vocab_size", "target_hidden_size", *_NORMS, _AUX, "qkv_bias", "bias")
    inner = {key: value for key, value in config.items() if key != "eagle_config"}
    nested = _part(config, "eagle_config", config) if config.get("eagle_config") else {}
    _check_keys(nested, (_AUX, *_NORMS), "eagle_config.")
    flags = {name: config.get(name) if nested.get(name) is None else nested[name] for name in _NORMS}
    layer = _layer(inner, target, keys)
    _agree("bias", config.get("bias"), "fc.bias", shapes)
    taps = _taps(nested.get(_AUX), after=1) or _taps(config.get(_AUX), after=0)
    return _version3(layer, shapes, target, {**config, **flags}, taps)


def _speculators3(config: Config, shapes: Shapes, target: DecoderConfig) -> Published:
    """EAGLE-3 of `speculators` (`Eagle3SpeculatorConfig`).

    `norm_before_residual` must be there: false is meant without it in `speculators`, and true in vLLM.
    """
    keys = ("draft_vocab_size", "target_hidden_size", "tie_word_embeddings", *_NORMS, _AUX)
    inner = _part(config, "transformer_layer_config", keys)
    _require(config, ("norm_before_residual",))
    return _version3(_layer(inner, target, required=()), shapes, target, config, _taps(config.get(_AUX), after=0))


def _deepspec(config: Config, shapes: Shapes, target: DecoderConfig) -> Published:
    """DeepSpec's EAGLE-3 (deepspec/modeling/eagle3/qwen3): a layer of Qwen 3's, the whole vocabulary."""
    kinds = config.get("architectures")
    if kinds != ["Qwen3Eagle3Model"]:
        raise ValueError(f"target_layer_ids of architectures={json.dumps(kinds)} are not EAGLE-3's")
    if config.get("num_target_layers", target.layers) != target.layers:
        raise ValueError(f"it is for a model of {config['num_target_layers']} layers, not {target.layers}")
    layer = _layer(config, target, ("target_layer_ids", "num_target_layers"))
    return _version3(layer, shapes, target, {}, _taps(config["target_layer_ids"], after=1))


def _taps(ids: object, *, after: int) -> tuple[int, ...] | None:
    """Return how many layers have run before each state that a head reads; None where no ids are given.

    `after`=0: id k stands for the state after k layers, the input of layer k (the authors, vLLM, speculators).
    `after`=1: id k stands for the output of layer k (SpecForge, SGLang and ModelOpt in `eagle_config`; DeepSpec).
    """
    if not ids:
        return None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise ValueError(f"the ids of layers must be a list of integers, not {json.dumps(ids)}")
    return tuple(i + after for i in ids)


def _version1(layer: Config, shapes: Shapes, *, said: Config, fc: str = "fc.", prefix: str = OWN_LAYER) -> Published:
    """A Llama layer without norms before and after it on `fc` [embedding ; feature]; it shares the target's LM head."""
    for key, value in said.items():
        _agree(key, value, f"{fc}bias", shapes)
    form = {"version": 1, "fc_bias": f"{fc}bias" in shapes, "input_norm": False, "output_norm": False}
    return _published(layer, shapes, prefix, form, {"fc.": fc}, {_EMBEDDING, _HEAD})


def _version3(
    layer: Config, shapes: Shapes, target: DecoderConfig, config: Config, taps: tuple[int, ...] | None
) -> Published:
    """`config`: where the norms, the draft vocabulary and the target's hidden size are looked up."""
    if (width := config.get("target_hidden_size")) not in (None, layer["hidden_size"]):
        raise ValueError(f"hidden_size={layer['hidden_size']} differs from target_hidden_size={width}")
    size = config.get("draft_vocab_size") or target.vocab
    if type(size) is not int:
        raise ValueError(f"draft_vocab_size={json.dumps(size)} is no integer")
    if size > target.vocab:
        raise ValueError(f"draft_vocab_size={size} is more than the {target.vocab} tokens of the model")
    taps = taps or (2, target.layers // 2, target.layers - 3)  # the authors' own (modeling_llama_kv.py)
    form = {
        "version": 3,
        "taps": taps,
        "fc_bias": "fc.bias" in shapes,
        "draft_vocab": size if size < target.vocab else 0,
        "own_head": size if size < target.vocab or _HEAD in shapes else 0,
        **{name: config.get(name) or False for name in _NORMS},
    }
    if size < target.vocab and "d2t" not in shapes:
        raise ValueError(f"draft_vocab_size={size} needs the tensor d2t, which is missing")
    prefix = "midlayer." if any(name.startswith("midlayer.") for name in shapes) else OWN_LAYER
    unused = {_EMBEDDING, "d2t", "t2d", *(_FC_NORMS.format(i) for i in range(len(taps)) if form["fc_norm"])}
    renamed = {} if form["fc_norm"] else {_FC_NORM: "input_norm.weight"}
    return _published(layer, shapes, prefix, form, renamed, unused)


def _published(
    layer: Config, shapes: Shapes, prefix: str, form: Config, renamed: dict[str, str], unused: Collection[str]
) -> Published:
    """Put together what `_layer` and `form` say with what the tensors' names say: biases and q/k norms."""
    q = f"{prefix}self_attn.q"
    for key in ("attention_bias", "qkv_bias"):
        _agree(key, layer.pop(key, None), f"{q}_proj.bias", shapes)
    seen = {"qkv_bias": f"{q}_proj.bias" in shapes, "qk_norm": f"{q}_norm.weight" in shapes}
    head = decode_value(HeadConfig, {**layer, **form, **seen})
    names = {}
    for ours, name in NAMES.items():
        for old, new in {OWN_LAYER: prefix, **renamed}.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        names[ours] = name
    return Published(head, names, frozenset(unused) | {name.format(prefix) for name in _UNUSED})


def _layer(
    config: Config, target: DecoderConfig, others: Collection[str] = (), required: Collection[str] = _REQUIRED
) -> Config:
    """Return the fields of a `HeadConfig` that a configuration of transformers gives: sizes and RoPE.

    `others`: keys that are looked up elsewhere. `required`: keys that must be there.
    """
    from transformers import AutoConfig

    _require(config, required)
    kind = config.get("model_type", "llama")
    if kind not in _KINDS:
        raise ValueError(f"model_type={json.dumps(kind)} is none of {', '.join(_KINDS)}")
    plain = AutoConfig.for_model(kind)
    _check_keys(config, (*others, "attention_bias", *plain.to_dict()))
    try:
        c = type(plain)(**{key: config[key] for key in _READ if config.get(key) is not None})
    except Exception as error:  # transformers raises nearly every type here
        raise ValueError(f"config.json is no {kind} configuration ({first_line(error)})") from error
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise ValueError("layer_types has sliding_attention, which is not supported")
    if c.hidden_act not in ("silu", "swish"):
        raise ValueError(f"hidden_act={json.dumps(c.hidden_act)} is not supported; supported: silu")
    if c.vocab_size != target.vocab:
        raise ValueError(f"it is for a vocabulary of {c.vocab_size} tokens, not {target.vocab}")
    rope = {key: value for key, value in c.rope_parameters.items() if key != "type"}
    theta, form = rope.pop("rope_theta"), rope.get("rope_type", "default")
    if form not in STATIC_ROPE or rope.pop("partial_rotary_factor", 1) != 1:
        supported = ", ".join(STATIC_ROPE)
        raise ValueError(f"RoPE scaling {json.dumps(c.rope_parameters)} is not supported; supported: {supported}")
    bias: Config = {key: config[key] for key in ("attention_bias", "qkv_bias") if key in config}
    dimensions = {name: getattr(c, name, None) for name in _SIZES}
    dimensions["head_dim"] = dimensions["head_dim"] or c.hidden_size // c.num_attention_heads
    scaling = {} if form == "default" else {"rope_scaling": rope}
    return {**dimensions, "rms_norm_eps": c.rms_norm_eps, "rope_theta": float(theta), **scaling, **bias}


def _part(config: Config, key: str, others: Collection[str]) -> Config:
    """Return an object within config.json, whose other keys must be known, too."""
    part = config.get(key)
    if not isinstance(part, dict):
        raise ValueError(f"config.json: {key} is {'missing' if part is None else 'no object'}")
    _check_keys(config, (key, *others))
    return part


def _check_keys(config: Config, known: Collection[str], prefix: str = "") -> None:
    """Refuse keys that are not known, and values that are not supported."""
    if unknown := sorted(config.keys() - set(known) - _IGNORED - _ONLY.keys()):
        raise ValueError(
            f"config.json: {prefix}{unknown[0]} is unknown, and may change what the head computes (where it does not, "
            "remove it from the file)"
        )
    for key, only in _ONLY.items():
        if config.get(key) not in (None, only):
            raise ValueError(f"{prefix}{key}={json.dumps(config[key])} is not supported, only {json.dumps(only)}")


def _require(config: Config, keys: Collection[str]) -> None:
    if missing := [key for key in keys if config.get(key) is None]:
        raise ValueError(f"config.json: {missing[0]} is missing")


def _agree(key: str, said: object, bias: str, shapes: Shapes) -> None:
    """Refuse a configuration that says otherwise than the tensors whether there is a bias."""
    if said is not None and said != (bias in shapes):
        has = "has" if bias in shapes else "does not have"
        raise ValueError(f"config.json says {key}={json.dumps(said)}, but the file {has} {bias}")


def read_weights(folder: Path, target: Decoder, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a head's tensors, and the names that our parameters have among them.

    A draft vocabulary becomes the ranking of tokens that our own files have, and the rows of the LM head are sorted by
    token. The embedding, and the LM head of version 1, must be the target's, which is used in their place.

    Raises:
        UserError: an unreadable file, tensors that do not fit, or an embedding of its own.

    """
    found = read(folder, target, what)
    weights = trained.read_shards(folder, what)
    try:
        for name, ours in ((_EMBEDDING, target.embedding), (_HEAD, target.head_weight)):
            if name in found.unused and name in weights:
                _check_same(name, weights[name], ours)
        if found.config.fc_norm:
            weights[_FC_NORM] = _stacked(weights, len(found.config.taps), found.config.hidden_size)
        if "d2t" in weights:
            tokens = draft_tokens(weights["d2t"], weights.get("t2d"), found.config.draft_vocab, target.config.vocab)
            if len(weights.get(_HEAD, ())) == len(tokens):  # else `trained.filled` names it
                weights[_HEAD] = weights[_HEAD][tokens.argsort()]
            if found.config.draft_vocab:
                weights[trained.RANKING] = tokens
    except ValueError as error:
        raise UserError(f"the {what} in {folder} cannot be used: {error}; fetch it again") from error
    return {name: tensor for name, tensor in weights.items() if name not in found.unused}, found.names


def _stacked(weights: Mapping[str, Tensor], count: int, size: int) -> Tensor:
    for name in map(_FC_NORMS.format, range(count)):
        if name not in weights or weights[name].shape != (size,):
            has = f"has shape {tuple(weights[name].shape)}" if name in weights else "is missing"
            raise ValueError(f"{name} {has}, expected {(size,)}")
    return torch.stack([weights[_FC_NORMS.format(i)].float() for i in range(count)])


def draft_tokens(d2t: Tensor, t2d: Tensor | None, size: int, vocab: int) -> Tensor:
    """Return the tokens that rows of a draft vocabulary stand for [n]: d2t has offsets, row i is token i + d2t[i].

    `size`: of the draft vocabulary; 0: all of `vocab`.

    Raises:
        ValueError: not distinct ids of the vocabulary, or not those that t2d marks.

    """
    size = size or vocab
    if d2t.shape != (size,) or d2t.is_floating_point():
        raise ValueError(f"d2t has shape {tuple(d2t.shape)} and {d2t.dtype}, expected {(size,)} and integers")
    tokens = torch.arange(size) + d2t.long()
    if len(bad := ((tokens < 0) | (tokens >= vocab)).nonzero()):
        row = int(bad[0])
        raise ValueError(f"d2t[{row}]={int(d2t[row])} makes token {int(tokens[row])}, but there are {vocab} tokens")
    marked = torch.zeros(vocab, dtype=torch.bool)
    marked[tokens] = True
    if int(marked.sum()) < size:
        raise ValueError("d2t gives one token several rows")
    if t2d is not None and (t2d.shape != marked.shape or not torch.equal(t2d.bool(), marked)):
        raise ValueError("t2d does not mark the tokens that d2t gives")
    return tokens


def _check_same(name: str, theirs: Tensor, ours: Tensor) -> None:
    """Refuse a copy of the target's matrix that is not one. It may have been rounded to another precision."""
    if theirs.shape != ours.shape:
        raise ValueError(f"{name} has shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
    rows, off, size = 8192, 0.0, 0.0  # at a time: matrices are large
    for a, b in zip(theirs.split(rows), ours.split(rows), strict=True):
        b = b.float().cpu()
        off, size = off + float((a.float() - b).square().sum()), size + float(b.square().sum())
    if off > 0.02**2 * size:
        raise ValueError(f"{name} is not the model's own: heads with one of their own are not supported")
