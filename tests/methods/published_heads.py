"""EAGLE heads in the layouts of other projects, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.eagle_reference import PaperHead
from tests.reference import VOCAB

D, LAYERS, DRAFTED, EPS = 48, 8, 40, 1e-5
HEADS, KV, WIDTH, FFN = 6, 2, 8, 72  # of the heads, unlike the targets'
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": D, "initializer_range": 0.02, "intermediate_size": FFN, "max_position_embeddings": 2048,
    "model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KV, "num_hidden_layers": 1,
    "pad_token_id": 0, "rms_norm_eps": EPS, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.28.1", "use_cache": True, "vocab_size": VOCAB,
}  # fmt: skip
QWEN3 = LLAMA | {
    "model_type": "qwen3", "architectures": ["Qwen3Eagle3Model"], "attention_bias": False, "attention_dropout": 0.0,
    "head_dim": 16, "layer_types": ["full_attention"], "rope_theta": 1000000, "rope_scaling": None,
    "max_window_layers": LAYERS, "sliding_window": None, "use_sliding_window": False,
}  # fmt: skip
MODELOPT = {
    "use_aux_hidden_state": True, "use_input_layernorm_in_first_layer": True, "use_last_layernorm": True,
    "use_mtp_layernorm": False, "next_layer_regular": True, "parallel_draft_step": 1,
    "parallel_draft_heads_num_layers": 1,
}  # fmt: skip
SPECULATORS = {
    "architectures": ["Eagle3Speculator"], "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
    "draft_vocab_size": DRAFTED,
    "has_no_defaults_at_init": False, "speculators_model_type": "eagle3", "speculators_version": "0.3.0",
    "speculators_config": {"algorithm": "eagle3", "proposal_methods": [{"proposal_type": "greedy"}]},
    "norm_before_residual": True, "tie_word_embeddings": False, "target_hidden_size": None,
    "embed_requires_grad": False, "norm_before_fc": False, "fc_norm": False, "norm_output": False,
}  # fmt: skip
INNER = {key: value for key, value in LLAMA.items() if key not in ("torch_dtype", "transformers_version", "use_cache")}


def layer(
    version: int, taps: int = 3, width: int = WIDTH, own: int = DRAFTED, **extra: tuple[int, ...]
) -> dict[str, Tensor]:
    """Random weights of a head, in float64, under the names that the authors have within a layer."""
    read = D if version == 1 else 2 * D
    shapes = {
        "self_attn.q_proj.weight": (HEADS * width, read), "self_attn.k_proj.weight": (KV * width, read),
        "self_attn.v_proj.weight": (KV * width, read), "self_attn.o_proj.weight": (D, HEADS * width),
        "mlp.gate_proj.weight": (FFN, D), "mlp.up_proj.weight": (FFN, D), "mlp.down_proj.weight": (D, FFN),
        "post_attention_layernorm.weight": (D,), "fc.weight": (D, 2 * D if version == 1 else taps * D), **extra,
    }  # fmt: skip
    if version == 3:
        shapes |= dict.fromkeys(("input_layernorm.weight", "hidden_norm.weight", "norm.weight"), (D,))
        shapes |= {"lm_head.weight": (own, D)}
    generator = torch.Generator().manual_seed(3)
    return {
        name: (
            torch.randn(shape, generator=generator) / shape[1] ** 0.5 if len(shape) == 2
            else (0.5 if name.endswith("bias") else 1) + 0.3 * torch.randn(shape, generator=generator)
        )
        for name, shape in shapes.items()
    }  # fmt: skip


OUTSIDE = ("fc.", "norm.", "lm_head.", "fc_norm.", "input_norm.")


def named(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same as files have them: what is within the layer has its prefix."""
    return {name if name.startswith(OUTSIDE) else prefix + name: tensor for name, tensor in weights.items()}


def vocabulary(step: int = 6) -> dict[str, Tensor]:
    """d2t and t2d of the tokens 3, 9, 15, .."""
    tokens = 3 + step * torch.arange(DRAFTED)
    marked = torch.zeros(VOCAB, dtype=torch.bool)
    marked[tokens] = True
    return {"d2t": tokens - torch.arange(DRAFTED), "t2d": marked}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], *, pickled: bool = False) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if pickled:
        torch.save(plain, folder / "pytorch_model.bin")
    else:
        save_file(plain, folder / "model.safetensors")
    return folder


class Case:
    """One layout: what it writes, and the form of the paper's head (`tests.eagle_reference`) that this is."""

    def __init__(self, config, weights, prefix, form, *, also=(), pickled=False, target="vicuna", rename=("", "")):
        self.config, self.weights, self.form, self.pickled, self.target = config, weights, form, pickled, target
        self.prefix, self.also, self.rename = prefix, also, rename

    def paper(self) -> PaperHead:
        """The head that the files hold, in float64."""
        w = {name: tensor.double() for name, tensor in named(self.weights, "layers.0.").items()}
        if "fc_norm.0.weight" in w:
            w["fc_norm.weight"] = torch.stack([w[f"fc_norm.{i}.weight"] for i in range(len(self.form["taps"]))])
        elif "input_norm.weight" in w:
            w["fc_norm.weight"] = w["input_norm.weight"]
        sizes = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": WIDTH, "rms_norm_eps": EPS}
        return PaperHead(w, sizes | self.form)

    def write(self, folder: Path, model: Any) -> Path:
        copies = {
            "embed_tokens.weight": model.model.embed_tokens.weight.detach().half(),
            "lm_head.weight": model.lm_head.weight.detach().clone(),
            f"{self.prefix}self_attn.rotary_emb.inv_freq": torch.ones(WIDTH // 2),
            **vocabulary(),
        }
        tensors = named(self.weights, self.prefix) | {name: copies[name] for name in self.also}
        old, new = self.rename
        tensors = {
            new + name.removeprefix(old) if old and name.startswith(old) else name: tensor
            for name, tensor in tensors.items()
        }
        return write(folder, self.config, tensors, pickled=self.pickled)


BIAS = {"fc.bias": (D,)}
QKV_BIAS = {f"self_attn.{name}_proj.bias": ((HEADS if name == "q" else KV) * WIDTH,) for name in "qkv"}
QK_NORMS = {"self_attn.q_norm.weight": (16,), "self_attn.k_norm.weight": (16,)}
NORMS = {f"fc_norm.{i}.weight": (D,) for i in range(3)}
ONE, THREE = {"version": 1, "taps": ()}, {"version": 3, "taps": (2, 4, 5)}
MAPPED = ("d2t", "t2d")
CASES = {
    "authors 1, biased, pickled": Case(
        LLAMA, layer(1, **BIAS), "layers.0.", ONE, pickled=True,
        also=("embed_tokens.weight", "layers.0.self_attn.rotary_emb.inv_freq"),
    ),
    "authors 1, no bias": Case(
        LLAMA | {"bias": False, "rope_theta": 500000.0}, layer(1), "layers.0.", ONE | {"rope_theta": 5e5}
    ),
    "authors 1, q, k and v biased": Case(
        LLAMA | {"qkv_bias": True, "bias": True, "rope_scaling": {"type": "linear", "factor": 4.0}},
        layer(1, **BIAS, **QKV_BIAS), "layers.0.", ONE | {"rope_factor": 4.0},
    ),
    "vllm's wrapper": Case(
        {"model_type": "eagle", "model": LLAMA | {"eagle_fc_bias": True}}, layer(1, **BIAS), "layers.0.", ONE,
        also=("embed_tokens.weight", "lm_head.weight"),
    ),
    "vllm's wrapper that forgets the bias": Case(
        {"model_type": "eagle", "model": LLAMA}, layer(1, **BIAS), "layers.0.", ONE, also=("lm_head.weight",)
    ),
    "speculators 1": Case(
        {"speculators_model_type": "eagle", "architectures": ["EagleSpeculator", "LlamaDecoderLayer"],
         "fusion_bias": True, "layernorms": False, "transformer_layer_architecture": "LlamaDecoderLayer",
         "transformer_layer_config": INNER, "speculators_version": "0.1.0", "speculators_config": {}},
        layer(1, **BIAS), "transformer.", ONE, also=("embed_tokens.weight",), rename=("fc.", "fusion_fc."),
    ),
    "authors 3": Case(
        LLAMA | {"draft_vocab_size": DRAFTED}, layer(3), "midlayer.", THREE, also=MAPPED, pickled=True,
    ),
    "authors 3, whole vocabulary": Case(
        LLAMA | {"draft_vocab_size": VOCAB}, layer(3, own=VOCAB), "midlayer.", THREE, also=("embed_tokens.weight",),
    ),
    "specforge": Case(
        LLAMA | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": DRAFTED, "head_dim": 16,
                 "rope_theta": 1000000.0, "max_window_layers": 36, "sliding_window": 99, "use_sliding_window": False,
                 "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 6]}},
        layer(3, width=16), "midlayer.", THREE | {"taps": (2, 4, 7), "head_dim": 16, "rope_theta": 1e6}, also=MAPPED,
        target="qwen3",
    ),
    "specforge 3.1": Case(
        LLAMA | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": DRAFTED, "fc_norm": True,
                 "norm_output": True},
        layer(3, **NORMS), "midlayer.", THREE | {"norm_output": True, "fc_norm": True}, also=MAPPED,
    ),
    "modelopt": Case(
        LLAMA | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": DRAFTED, "pretraining_tp": None,
                 "rope_theta": None, "rope_scaling": None, "attention_bias": None, "mlp_bias": None, "use_cache": None,
                 "eagle_config": MODELOPT | {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}},
        layer(3), "layers.0.", THREE, also=("d2t",),
    ),
    "speculators 3": Case(
        SPECULATORS | {"transformer_layer_config": INNER, "eagle_aux_hidden_state_layer_ids": [1, 4, 8]}, layer(3),
        "layers.0.", THREE | {"taps": (1, 4, 8), "norm_before_residual": True}, also=(*MAPPED, "embed_tokens.weight"),
    ),
    "speculators 3, one norm over all taps": Case(
        SPECULATORS | {"norm_before_residual": False, "norm_before_fc": True, "transformer_layer_config": INNER},
        layer(3, **{"input_norm.weight": (3 * D,)}), "layers.0.",
        THREE | {"norm_before_fc": True}, also=MAPPED,
    ),
    "speculators 3, a layer of qwen 3's": Case(
        SPECULATORS | {"fc_norm": True, "norm_output": True, "transformer_layer_config": {
            key: value for key, value in QWEN3.items() if key not in ("architectures", "rope_theta", "rope_scaling")
        } | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}},
        layer(3, width=16, **QK_NORMS, **NORMS), "layers.0.",
        THREE | {"head_dim": 16, "rope_theta": 1e6, "norm_output": True, "fc_norm": True, "norm_before_residual": True},
        also=MAPPED, target="qwen3",
    ),
    "deepspec": Case(
        QWEN3 | {"num_target_layers": LAYERS, "target_model_name_or_path": "Qwen/Qwen3-4B", "ttt_length": 7,
                 "target_layer_ids": [1, 2, 4, 5, 6], "step_loss_decay": 0.8, "draft_num_hidden_layers": 1},
        layer(3, taps=5, width=16, own=VOCAB, **QK_NORMS), "layers.0.",
        THREE | {"taps": (2, 3, 5, 6, 7), "head_dim": 16, "rope_theta": 1e6}, also=("embed_tokens.weight",),
        target="qwen3",
    ),
}  # fmt: skip
