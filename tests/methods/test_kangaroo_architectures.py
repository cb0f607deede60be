"""The adapters of the paper's Table 2, run by Kangaroo, against a reference without caches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from bench.drafting.loop import decode
from bench.engine.decoder import Decoder
from bench.errors import UserError
from methods.kangaroo.adapter import Adapter, AdapterConfig, Stored, load_adapter, save_adapter
from methods.kangaroo.method import Kangaroo, KangarooConfig

LIMIT = 30
D, V, FFN, EXIT = 48, 272, 40, 1
RANKING = torch.randperm(V, generator=torch.Generator().manual_seed(3)).tolist()[:200]
CUT = 140
LAYER = "layers.0."
O_PROJ, DOWN, GATE, UP = (f"{LAYER}{name}_proj.weight" for name in ("self_attn.o", "mlp.down", "mlp.gate", "mlp.up"))
FFN_NORM, INPUT_NORM = LAYER + "post_attention_layernorm.weight", LAYER + "input_layernorm.weight"
# name -> (what config.json says beside the dimensions, tokens that the draft is over)
ARCHITECTURES: dict[str, tuple[dict, int]] = {
    "own head": ({"own_head": V}, V),
    "own head, cut": ({"own_head": CUT, "draft_vocab": CUT}, CUT),
    "layer": ({"ffn": FFN}, V),
    "mlp": ({"attention": False, "ffn": D, "gated": False, "own_head": V}, V),
    "mlp, cut": ({"attention": False, "ffn": D, "gated": False, "own_head": CUT, "draft_vocab": CUT}, CUT),
}


def tensors_of(model, changes: dict) -> dict[str, torch.Tensor | None]:
    """What the architecture adds to a random adapter that is often right, and what it leaves out."""
    generator = torch.Generator().manual_seed(4)

    def small(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.035

    tensors: dict[str, torch.Tensor | None] = {}
    if width := changes.get("ffn"):
        tensors |= {UP: small(width, D) * 8, DOWN: small(D, width), FFN_NORM: 1 + small(D)}
        if changes.get("gated", True):
            tensors[GATE] = small(width, D) * 8
    if not changes.get("attention", True):
        tensors |= {f"{LAYER}self_attn.{name}_proj.weight": None for name in "qkvo"} | {INPUT_NORM: None}
    if rows := changes.get("own_head"):
        head = model.lm_head.weight.detach()
        own = head if rows == V else head[sorted(RANKING[:rows])]
        tensors["lm_head.weight"] = own + small(rows, D)
    return tensors


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def scene(architecture, tiny_model, tiny_decoder, tiny_adapter):
    """(decoder, transformers' model, adapter's folder, reference draft)."""
    config, model = tiny_model("tied", faint=True)
    changes, _ = ARCHITECTURES[architecture]
    changes = {"exit_layer": EXIT, **changes}
    folder = tiny_adapter(model, ranking=RANKING, changes=changes, tensors=tensors_of(model, changes))
    return tiny_decoder(config, model), model, folder, drafter(model, folder)


def drafter(model, folder) -> Callable[[tuple[int, ...]], int]:
    """context -> the draft after it, everything computed from scratch; the form is read off the tensors."""
    weights = load_file(folder / "adapter.safetensors")
    llama = LlamaConfig(
        hidden_size=D,
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="eager",
    )
    rotary, attention = LlamaRotaryEmbedding(llama), LlamaAttention(llama, layer_idx=0)
    if O_PROJ in weights:
        own = {f"{name}_proj.weight": weights[f"{LAYER}self_attn.{name}_proj.weight"] for name in "qkvo"}
        attention.load_state_dict(own)

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        norm = LlamaRMSNorm(D, 1e-6)
        norm.load_state_dict({"weight": weights[name]})
        return norm(x)

    def states(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        if O_PROJ in weights:
            mask = torch.full((1, 1, n, n), -torch.inf).triu(1)
            rope = rotary(x, torch.arange(n)[None])
            x = x + attention(normed(x, INPUT_NORM), position_embeddings=rope, attention_mask=mask)[0]
        if UP in weights:
            inner = normed(x, FFN_NORM)
            if GATE in weights:
                x = x + (F.silu(inner @ weights[GATE].T) * (inner @ weights[UP].T)) @ weights[DOWN].T
            else:
                x = x + F.silu(inner @ weights[UP].T) @ weights[DOWN].T
        return normed(x, "norm.weight")

    @functools.cache
    @torch.inference_mode()
    def draft(context: tuple[int, ...]) -> int:
        exits = model(torch.tensor([context]), output_hidden_states=True).hidden_states[EXIT]
        own = weights.get("lm_head.weight", model.lm_head.weight)
        best = int((states(exits)[0, -1] @ own.T).argmax())
        return best if len(own) == V else sorted(RANKING[: len(own)])[best]

    return draft


def steps_of(decoder: Decoder, folder, prompt: list[int], **knobs):
    method = Kangaroo(decoder, KangarooConfig(weights=str(folder), stop="threshold", **knobs))
    return decode(method, prompt, LIMIT, frozenset()).steps


@pytest.mark.parametrize("length", [1, 13])
def test_drafts_are_those_of_the_reference_and_the_answer_transformers(scene, random_ids, hf_greedy, length):
    decoder, model, folder, draft = scene
    prompt = random_ids(length, seed=length)
    answer = hf_greedy(model, prompt, LIMIT)
    steps = steps_of(decoder, folder, prompt, gamma=3, threshold=0.0)
    assert [token for step in steps for token in step.emitted] == answer[1:]
    done = 1
    for step in steps:
        context, accepted = (*prompt, *answer[:done]), 0
        while accepted < step.drafted and draft((*context, *step.emitted[:accepted])) == answer[done + accepted]:
            accepted += 1
        assert step.accepted == accepted
        done += len(step.emitted)
    assert len({step.accepted for step in steps}) > 1  # right ones and wrong ones


@pytest.mark.parametrize("threshold", [0.0, 0.15])
def test_trees_are_lossless_too(scene, random_ids, hf_greedy, threshold):
    decoder, model, folder, _ = scene
    prompt = random_ids(9, seed=3)
    steps = steps_of(decoder, folder, prompt, gamma=4, beam=3, threshold=threshold)
    assert [token for step in steps for token in step.emitted] == hf_greedy(model, prompt, LIMIT)[1:]
    assert sum(step.accepted for step in steps) > 0
    assert max(step.drafted for step in steps) > 3


@pytest.mark.parametrize("layout", [None, "plain", "the target's"])
def test_the_layout_does_not_change_the_states(scene, layout):
    decoder, _, folder, _ = scene
    adapter, _ = load_adapter(folder, decoder)
    states = torch.randn(1, 12, D, generator=torch.Generator().manual_seed(5))
    adapter.prepare(16, torch.device("cpu"))
    plain = adapter(states)
    if layout is not None:
        adapter.pack("plain" if layout == "plain" else decoder.layout)
    torch.testing.assert_close(adapter(states), plain, rtol=0, atol=1e-5)


def test_what_is_saved_is_what_is_loaded(scene, tmp_path):
    decoder, _, folder, _ = scene
    adapter, stored = load_adapter(folder, decoder)
    save_adapter(tmp_path, adapter, Stored(stored.ranking))
    again, _ = load_adapter(tmp_path, decoder)
    assert again.config == adapter.config
    saved, loaded = dict(adapter.named_parameters()), dict(again.named_parameters())
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name].half().float(), loaded[name]) for name in saved)


def parameters_of(config: AdapterConfig) -> int:
    method = Kangaroo.__new__(Kangaroo)
    with torch.device("meta"):
        method.adapter = Adapter(config)
    return method.extra_parameters


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({}, 67),
        ({"own_head": 32000}, 198),
        ({"ffn": 11008}, 202),
        ({"attention": False, "ffn": 4096, "gated": False, "own_head": 32000}, 165),
    ],
)
def test_parameters_for_vicuna_7b_are_those_of_table_2(settings, millions):
    assert round(parameters_of(AdapterConfig(4096, 32, 1e-6, **settings)) / 1e6) == millions


def test_own_head_is_cut_to_the_draft_vocabulary_and_counted_so(tiny_model, tiny_decoder, tiny_adapter, random_ids):
    config, model = tiny_model("tied", faint=True)
    decoder = tiny_decoder(config, model)
    changes = {"own_head": CUT, "draft_vocab": CUT}
    folder = tiny_adapter(model, ranking=RANKING, changes=changes, tensors=tensors_of(model, changes))
    attention = 4 * D**2 + 2 * D
    rows = load_file(folder / "adapter.safetensors")["lm_head.weight"]
    for size in (CUT, 60, 1):
        method = Kangaroo(decoder, KangarooConfig(weights=str(folder), draft_vocab=size))
        assert method.extra_parameters == attention + size * D
        states = torch.randn(1, D, generator=torch.Generator().manual_seed(1))
        expected = states @ rows[[sorted(RANKING[:CUT]).index(token) for token in sorted(RANKING[:size])]].T
        torch.testing.assert_close(method.draft_head(states), expected)
        assert method.draft_ids.tolist() == sorted(RANKING[:size])


@pytest.mark.parametrize("asked", [0, 141])
def test_own_head_says_nothing_of_tokens_that_it_was_not_trained_for(asked, tiny_model, tiny_decoder, tiny_adapter):
    config, model = tiny_model("tied", faint=True)
    changes = {"own_head": CUT, "draft_vocab": CUT}
    folder = tiny_adapter(model, ranking=RANKING, changes=changes, tensors=tensors_of(model, changes))
    with pytest.raises(UserError, match=r"more than the 140 tokens that the own LM head .*take draft_vocab=140"):
        Kangaroo(tiny_decoder(config, model), KangarooConfig(weights=str(folder), draft_vocab=asked))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"own_head": 100}, "has an LM head of 100 tokens, but is for 272 of tiny"),
        ({"own_head": -1}, "own_head: Input should be greater than or equal to 0, not -1"),
        ({"ffn": -4}, "ffn: Input should be greater than or equal to 0, not -4"),
        ({"attention": False}, "without attention needs an ffn"),
        ({"attention": False, "ffn": 8, "feedback": True}, "without attention needs an ffn and cannot have feedback"),
        ({"own_head": V}, r"lm_head.weight is missing, expected \(272, 48\)"),
    ],
)
def test_an_impossible_form_is_told(changes, told, tiny_model, tiny_decoder, tiny_adapter):
    config, model = tiny_model("tied", faint=True)
    with pytest.raises(UserError, match=told):
        load_adapter(tiny_adapter(model, changes=changes), tiny_decoder(config, model))
