"""Tiny random models, a byte tokenizer and Kangaroo adapters, all made here: no test needs a network.

What is said to be right comes from transformers: `hf_logits` and `hf_greedy` are the references of the engine's and the
methods' tests. Models are shared between tests: copy one (`copy.deepcopy`) before changing its weights.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bench.engine.decoder import Decoder
from bench.models.checkpoints import Checkpoint

VOCAB = 272
CONTEXT = 512
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# kind -> (model type, what is special about it). Head counts and sizes differ, so that no mix-up cancels out.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama3": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": ROPE_LLAMA3}),
    "biased": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "vicuna": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "mistral": ("mistral", {"num_attention_heads": 6, "num_key_value_heads": 3, "sliding_window": CONTEXT}),
    "qwen2": ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Every supported kind of model in turn."""
    return request.param


def _config(kind: str, **changes: Any) -> Any:
    model_type, special = KINDS[kind]
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model(model_type, **{**values, **special, **changes})


@functools.cache
def _model(kind: str, faint: bool) -> tuple[Any, Any]:
    config = _config(kind)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(sum(kind.encode()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):  # ones otherwise, which would hide a norm that is left out
                weight.copy_(1 + 0.3 * noise)
            elif weight.dim() == 1:  # a bias, zero otherwise
                weight.copy_(0.5 * noise)
            elif "embed" in name or "head" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(noise * 1.5 / weight.shape[1] ** 0.5)
        if faint:
            for layer in model.model.layers[1:]:
                layer.self_attn.o_proj.weight.mul_(0.15)
                layer.mlp.down_proj.weight.mul_(0.15)
    return config, model


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """(kind, changes) -> a transformers configuration."""
    return _config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., tuple[Any, Any]]:
    """(kind, faint=False) -> (hf_config, hf_model) with weights that make argmaxes vary.

    `faint`: layers after the first add so little that the states after it often suffice to guess the next token.
    """
    return lambda kind, faint=False: _model(kind, faint)


@pytest.fixture(scope="session")
def tiny_decoder() -> Callable[..., Decoder]:
    """(hf_config, hf_model, options of `from_weights`) -> our decoder of it."""

    def build(config: Any, model: Any, **options: Any) -> Decoder:
        weights = model.state_dict()
        if config.tie_word_embeddings:  # as checkpoints are stored
            del weights["lm_head.weight"]
        return Decoder.from_weights(config, weights.items(), **{"max_len": 256, "name": "tiny", **options})

    return build


@functools.cache
def _logits(model: Any, token_ids: tuple[int, ...]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


@pytest.fixture(scope="session")
def hf_logits() -> Callable[..., Tensor]:
    """(hf_model, token ids [n]) -> transformers' logits [n, V], one pass without a cache."""
    return lambda model, token_ids: _logits(model, tuple(token_ids))


@functools.cache
def _greedy(model: Any, prompt: tuple[int, ...], limit: int, eos: frozenset[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=sorted(eos) or None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="session")
def hf_greedy() -> Callable[..., list[int]]:
    """(hf_model, prompt, limit, eos) -> the answer of transformers' own greedy `generate`."""
    return lambda model, prompt, limit, eos=frozenset(): list(_greedy(model, tuple(prompt), limit, frozenset(eos)))


@pytest.fixture(scope="session")
def random_ids() -> Callable[..., list[int]]:
    """(how many, seed) -> token ids."""

    def make(count: int, seed: int = 0) -> list[int]:
        return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, three special tokens (ids 256 to 258) and a chat template."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Checkpoint]:
    """(kind, faint=False) -> the model with the byte tokenizer in a folder of Hugging Face's layout."""

    @functools.cache
    def save(kind: str, faint: bool = False) -> Checkpoint:
        folder = tmp_path_factory.mktemp(f"checkpoint-{kind}")
        _model(kind, faint)[1].save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return Checkpoint(f"tiny-{kind}", folder, "0" * 64, None)

    return save


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(hf_model, options) -> the folder of a random Kangaroo adapter with 4 heads.

    Written here, not by the project: file and tensor names are the published ones. `useful`: its final norm is the
    target's and its attention is weak, so on a `faint` model many drafts are right. `authors`: their two files, which
    know neither exit layer nor ranking. `changes` go into config.json (a value of None: left out), `tensors` replace
    weights (None: left out), `ranking` lists token ids by falling frequency.
    """

    def write(
        model: Any,
        *,
        useful: bool = True,
        authors: bool = False,
        ranking: list[int] | None = None,
        changes: dict[str, Any] | None = None,
        tensors: dict[str, Tensor | None] | None = None,
    ) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        d = model.config.hidden_size
        weights = _adapter_weights(d)
        if useful:
            weights["layers.0.self_attn.o_proj.weight"] *= 0.1
            weights["norm.weight"] = model.model.norm.weight.detach().clone()
        config = {"hidden_size": d, "num_attention_heads": 4, "rms_norm_eps": 1e-6}
        if authors:
            config |= {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": VOCAB}
        else:
            config |= {"exit_layer": 1, "draft_vocab": 0}
            if ranking is not None:
                weights["token_ranking"] = torch.tensor(ranking, dtype=torch.int32)
        weights = {name: tensor for name, tensor in (weights | (tensors or {})).items() if tensor is not None}
        config = {key: value for key, value in (config | (changes or {})).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        if authors:
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            from safetensors.torch import save_file

            save_file(weights, folder / "adapter.safetensors")
        return folder

    return write


def _adapter_weights(d: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    matrices = {
        f"layers.0.self_attn.{name}_proj.weight": torch.randn(d, d, generator=generator) * 1.5 / d**0.5
        for name in "qkvo"
    }
    names = ("layers.0.input_layernorm.weight", "norm.weight")
    return matrices | {name: 1 + 0.3 * torch.randn(d, generator=generator) for name in names}


@pytest.fixture(scope="session")
def tiny_heads(tmp_path_factory: pytest.TempPathFactory, random_ids: Callable[..., list[int]]) -> Callable[..., Path]:
    """(hf_model, options) -> the folder of Medusa heads.

    `useful`: own LM heads that fit the model's greedy answers to a few prompts, so that drafts are often right, and
    sometimes wrong; otherwise random ones that share the target's LM head and read the newest token. `authors`: their
    file, which knows nothing else. `ranks` [T, heads] with `lengths` and `kinds`: the record of ranks. `ranking` lists
    token ids by falling frequency; `changes` go into config.json, `tensors` replace weights (None: left out).
    """

    def write(
        model: Any,
        *,
        heads: int = 3,
        useful: bool = True,
        authors: bool = False,
        ranks: tuple[Tensor, list[int], list[int]] | None = None,
        ranking: list[int] | None = None,
        changes: dict[str, Any] | None = None,
        tensors: dict[str, Tensor | None] | None = None,
    ) -> Path:
        folder = tmp_path_factory.mktemp("heads")
        d, vocab = model.config.hidden_size, model.config.vocab_size
        generator = torch.Generator().manual_seed(5)
        weights = {"weight": torch.zeros(heads, d, d), "bias": torch.zeros(heads, d)}
        if useful:
            weights["lm_heads"] = _fitted_lm_heads(model, heads, [random_ids(12, seed=1), random_ids(1, seed=2)])
        else:
            weights["weight"] = torch.randn(heads, d, d, generator=generator) / d**0.5
            weights["bias"] = torch.randn(heads, d, generator=generator)
            weights["input"] = torch.randn(heads, d, 2 * d, generator=generator) / d**0.5
        if authors:
            named = {}
            for i in range(heads):
                named[f"{i}.0.linear.weight"], named[f"{i}.0.linear.bias"] = weights["weight"][i], weights["bias"][i]
                named[f"{i}.1.weight"] = weights["lm_heads"][i]
            torch.save(_without_nones(named | (tensors or {})), folder / "medusa_lm_head.pt")
            (folder / "config.json").write_text(json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1}))
            return folder
        if ranking is not None:
            weights["token_ranking"] = torch.tensor(ranking, dtype=torch.int32)
        if ranks is not None:
            weights["ranks"] = ranks[0].to(torch.uint8)
            weights["rank_lengths"] = torch.tensor(ranks[1], dtype=torch.int32)
            weights["rank_kinds"] = torch.tensor(ranks[2], dtype=torch.int8)
        config = {"hidden_size": d, "heads": heads, "vocab_size": vocab, "own_lm_heads": useful}
        config |= {"reads_newest": not useful, "draft_vocab": 0}
        from safetensors.torch import save_file

        save_file(_without_nones(weights | (tensors or {})), folder / "heads.safetensors")
        (folder / "config.json").write_text(json.dumps({"heads": config | (changes or {})}))
        return folder

    return write


def _without_nones(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}


def _fitted_lm_heads(model: Any, heads: int, prompts: list[list[int]]) -> Tensor:
    """[heads, V, d]: from final states to the tokens that came 2, 3, .. places later, by regression."""
    rows: list[Tensor] = []
    texts = [prompt + _greedy(model, tuple(prompt), 40, frozenset()) for prompt in prompts]
    with torch.inference_mode():
        states = [model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0] for text in texts]
    for head in range(heads):
        x = torch.cat([state[: -head - 2] for state in states]).double()
        y = torch.nn.functional.one_hot(torch.tensor([t for text in texts for t in text[head + 2 :]]), VOCAB).double()
        solution = torch.linalg.solve(x.T @ x + 3.0 * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)
        rows.append(solution.T.float())
    return torch.stack(rows).clone()
