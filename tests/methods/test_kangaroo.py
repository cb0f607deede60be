"""Kangaroo against a slow reference: the paper's step without any cache, on transformers' modules alone."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from bench.drafting.loop import decode
from bench.engine.cache import KVCache
from methods.kangaroo.adapter import load_adapter
from methods.kangaroo.method import Kangaroo, KangarooConfig
from tests.reference import emitted

LIMIT = 30
UNSURE = 0.15  # some drafts of these models are more probable than this, others less
CUT = 140
RANKING = torch.randperm(272, generator=torch.Generator().manual_seed(3)).tolist()[:200]


class PaperAdapter:
    """h + Attention(RMSNorm(h)), then RMSNorm: transformers' layer with multi-head attention and RoPE base 10000."""

    def __init__(self, folder: Path):
        weights = load_file(folder / "adapter.safetensors")
        config = json.loads((folder / "config.json").read_text())
        d, heads = config["hidden_size"], config["num_attention_heads"]
        llama = LlamaConfig(
            hidden_size=d,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attn_implementation="eager",
        )
        self.attention, self.rotary = LlamaAttention(llama, layer_idx=0), LlamaRotaryEmbedding(llama)
        self.input_norm, self.norm = (LlamaRMSNorm(d, config["rms_norm_eps"]) for _ in range(2))
        attention = {f"{n}_proj.weight": weights[f"layers.0.self_attn.{n}_proj.weight"] for n in "qkvo"}
        self.attention.load_state_dict(attention)
        self.input_norm.load_state_dict({"weight": weights["layers.0.input_layernorm.weight"]})
        self.norm.load_state_dict({"weight": weights["norm.weight"]})

    @torch.inference_mode()
    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        n = h.shape[1]
        mask = torch.full((1, 1, n, n), -torch.inf).triu(1)
        rope = self.rotary(h, torch.arange(n)[None])
        out = self.attention(self.input_norm(h), position_embeddings=rope, attention_mask=mask)[0]
        return self.norm(h + out)


class Reference:
    """The paper's decoding, everything computed from scratch for every single token."""

    def __init__(self, model, folder: Path):
        self.model, self.adapter = model, PaperAdapter(folder)
        # The same contexts come up for many settings.
        self.target = functools.cache(self._target)
        self.draft_logits = functools.cache(self._draft_logits)

    @torch.inference_mode()
    def _target(self, context: tuple[int, ...]):
        return self.model(torch.tensor([context]), output_hidden_states=True)

    @torch.inference_mode()
    def _draft_logits(self, context: tuple[int, ...], exit_layer: int) -> torch.Tensor:
        return self.model.lm_head(self.adapter(self.target(context).hidden_states[exit_layer]))[0, -1]

    def draft(self, context: tuple[int, ...], exit_layer: int, ids: list[int] | None) -> tuple[int, float]:
        logits = self.draft_logits(context, exit_layer)
        allowed = list(range(len(logits))) if ids is None else ids
        probabilities = logits[allowed].softmax(-1)
        best = int(probabilities.argmax())
        return allowed[best], float(probabilities[best])

    def steps(self, prompt, exit_layer, gamma, threshold, ids) -> list[tuple[list[int], int, int]]:
        """(emitted, drafted, accepted) of each step."""
        context = tuple(prompt)
        context += (int(self.target(context).logits[0, -1].argmax()),)
        steps = []
        while len(context) - len(prompt) < LIMIT:
            room = LIMIT - (len(context) - len(prompt))
            drafts: list[int] = []
            confidence = 1.0
            while len(drafts) < min(gamma, room - 1) and not (drafts and confidence < threshold):
                token, confidence = self.draft((*context, *drafts), exit_layer, ids)
                drafts.append(token)
            choices = self.target((*context, *drafts)).logits[0, len(context) - 1 :].argmax(-1).tolist()
            added = emitted(drafts, choices)
            context += tuple(added)
            steps.append((added, len(drafts), len(added) - 1))
        return steps


@pytest.fixture(scope="module")
def scene(tiny_model, tiny_decoder, tiny_adapter):
    """kind -> (decoder, adapter's folder, reference); the adapter does not say its exit layer."""

    @functools.cache
    def make(kind: str):
        config, model = tiny_model(kind, faint=True)
        folder = tiny_adapter(model, ranking=RANKING, changes={"exit_layer": None})
        return tiny_decoder(config, model), folder, Reference(model, folder)

    return make


def found_steps(decoder, prompt, **knobs) -> list[tuple[list[int], int, int]]:
    answer = decode(Kangaroo(decoder, KangarooConfig(**knobs)), prompt, LIMIT, frozenset())
    return [(step.emitted, step.drafted, step.accepted) for step in answer.steps]


SETTINGS = list(itertools.product((1, 2), (1, 3, 6), (0.0, UNSURE, 1.0), (0, CUT)))


@pytest.mark.parametrize(("exit_layer", "gamma", "threshold", "draft_vocab"), SETTINGS)
def test_every_step_is_the_papers(exit_layer, gamma, threshold, draft_vocab, scene, random_ids):
    decoder, folder, reference = scene("tied")
    prompt = random_ids(11, seed=2)
    ids = sorted(RANKING[:draft_vocab]) or None
    expected = reference.steps(prompt, exit_layer, gamma, threshold, ids)
    knobs = {"exit_layer": exit_layer, "gamma": gamma, "threshold": threshold, "draft_vocab": draft_vocab}
    assert found_steps(decoder, prompt, weights=str(folder), **knobs) == expected


def test_every_step_is_the_papers_on_every_kind_of_model(kind, scene, random_ids):
    decoder, folder, reference = scene(kind)
    for prompt in (random_ids(1, seed=7), random_ids(17, seed=8)):
        expected = reference.steps(prompt, 1, 4, UNSURE, None)
        assert found_steps(decoder, prompt, weights=str(folder), exit_layer=1, gamma=4, threshold=UNSURE) == expected


def test_the_settings_above_meet_every_case(scene, random_ids):
    """Full matches, which leave a lag of one token, rejections at once and later, and early stops before γ."""
    reference, prompt = scene("tied")[2], random_ids(11, seed=2)
    steps = reference.steps(prompt, 1, 3, 0.0, None)
    kept = [accepted for _, _, accepted in steps]
    assert {0, 1, 2, 3} <= set(kept)
    assert (3, 3, 3) in zip(kept, kept[1:], kept[2:], strict=False)  # a lag behind a lag
    stopped = [drafted for _, drafted, _ in reference.steps(prompt, 1, 6, UNSURE, None)]
    assert {1, 2, 3, 6} <= set(stopped)
    assert {drafted for _, drafted, _ in reference.steps(prompt, 1, 6, 1.0, None)} <= {0, 1}
    assert reference.steps(prompt, 1, 3, 0.0, sorted(RANKING[:CUT])) != steps


def test_the_adapter_is_the_papers_whatever_the_passes(scene, tiny_model, random_ids):
    decoder, folder, reference = scene("tied")
    adapter, _ = load_adapter(folder, decoder)
    states = torch.randn(1, 30, 48, generator=torch.Generator().manual_seed(5))
    expected = reference.adapter(states)
    adapter.prepare(64, torch.device("cpu"))
    for layout in (None, "plain", decoder.layout):
        if layout is not None:
            adapter.pack(layout)
        cache = KVCache(1, 4, 12, 64)
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
        found = [adapter(states[:, :9], 0, cache)]
        adapter(states[:, :12].flip(1)[:, :6], 9, cache)  # drafts that are then rejected: positions 9 to 14
        for start, end in ((9, 10), (10, 12), (12, 13), (13, 30)):
            found.append(adapter(states[:, start:end], start, cache))
        torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(adapter(states), expected, rtol=0, atol=1e-4)  # training: no cache


def test_the_first_layers_never_run_twice(scene, random_ids, monkeypatch):
    decoder, folder, _ = scene("tied")
    prompt = random_ids(11, seed=2)
    rows = [0] * 4
    run_layer = decoder.run_layer
    numbers = {id(layer): number for number, layer in enumerate(decoder.layers)}

    def counting(layer, x, *rest):
        rows[numbers[id(layer)]] += x.shape[1]
        return run_layer(layer, x, *rest)

    monkeypatch.setattr(decoder, "run_layer", counting)
    monkeypatch.setattr(decoder, "native_layers", None)  # layer by layer
    steps = found_steps(decoder, prompt, weights=str(folder), exit_layer=2, gamma=3, threshold=0.0)
    assert rows == [len(prompt) + sum(drafted + 1 for _, drafted, _ in steps)] * 4


def test_an_adapter_for_vicuna_7b_has_67_million_parameters():
    from methods.kangaroo.adapter import Adapter, AdapterConfig

    method = Kangaroo.__new__(Kangaroo)
    with torch.device("meta"):
        method.adapter = Adapter(AdapterConfig(hidden_size=4096, num_attention_heads=32, rms_norm_eps=1e-6))
    assert method.extra_parameters == 67_117_056  # 4 * 4096^2 + 2 * 4096


def grown(reference: Reference, context: tuple[int, ...], exit_layer: int, gamma: int, beam: int, nodes: int, rule):
    """The dynamic tree, every path drafted from scratch: (tokens, parents), level by level, best paths first."""
    tokens: list[int] = []
    parents: list[int] = []
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    reached = {-1: 1.0}
    level, confidence = [-1], 1.0
    while len(paths[level[0]]) < gamma and len(tokens) < nodes and confidence >= rule:
        candidates = []
        for parent in level:
            probabilities = reference.draft_logits((*context, *paths[parent]), exit_layer).softmax(-1)
            best = probabilities.topk(beam)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append((reached[parent] * value, parent, token, value))
        candidates.sort(key=lambda candidate: -candidate[0])
        level = []
        for total, parent, token, _ in candidates[: min(beam, nodes - len(tokens))]:
            number = len(tokens)
            tokens.append(token)
            parents.append(parent)
            paths[number], reached[number] = (*paths[parent], token), total
            level.append(number)
        confidence = candidates[0][3]
    return tokens, parents


@pytest.mark.parametrize(
    ("gamma", "beam", "nodes", "threshold"), [(3, 3, 24, 0.0), (4, 2, 24, UNSURE), (3, 10, 13, 0.0), (5, 4, 9, 0.3)]
)
@pytest.mark.parametrize("kind", ["tied", "qwen3"])
def test_dynamic_trees_are_those_grown_from_scratch(kind, gamma, beam, nodes, threshold, scene, random_ids):
    decoder, folder, reference = scene(kind)
    knobs = {"gamma": gamma, "beam": beam, "nodes": nodes, "threshold": threshold}
    method = Kangaroo(decoder, KangarooConfig(exit_layer=1, weights=str(folder), **knobs))
    made = []
    propose = method.propose

    def noted(sequences, rooms):
        drafts = propose(sequences, rooms)
        made.append((tuple(sequences[0].context), rooms[0], drafts[0]))
        return drafts

    method.propose = noted
    answer = decode(method, random_ids(12, seed=1), LIMIT, frozenset())
    for context, room, draft in made:
        tokens, parents = grown(reference, context, 1, min(gamma, room), beam, nodes, threshold)
        assert (list(draft.tokens), list(draft.parents)) == (tokens, parents)
    assert {step.accepted for step in answer.steps} >= {0, 1, 2}  # deep and shallow ones
    assert len({step.drafted for step in answer.steps}) > (1 if threshold else 0)
