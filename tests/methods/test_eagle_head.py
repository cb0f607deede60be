"""EAGLE's head against a literal reading of the papers in float64: uncached, cached, chains, trees, all forms."""

from __future__ import annotations

import json
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from bench.drafting.stopping import CALIBRATED_AT, Calibration
from bench.drafting.trained import Stored
from bench.drafting.tree import tree_of
from bench.engine.cache import KVCache
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from methods.eagle.drafting import published_config
from methods.eagle.head import Head, HeadConfig, load_head, save_head
from tests.eagle_reference import PaperHead

NEAR = 1e-5  # of the norm: the tables of rotations are made in float32
FORMS = {
    "ours": {},
    "EAGLE-1": {"fc_bias": True, "input_norm": False, "output_norm": False},
    "EAGLE-1 of Qwen 2": {"fc_bias": True, "qkv_bias": True, "input_norm": False, "output_norm": False},
    "multi-head": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "rope_theta": 1e6},
    "q/k norms": {"qk_norm": True},
    "EAGLE-3": {"version": 3, "taps": [1, 2, 3]},
    "EAGLE-3 of RedHat": {"version": 3, "taps": [0, 2, 4], "norm_before_residual": True},
    "EAGLE-3.1": {"version": 3, "taps": [1, 2, 3], "fc_norm": True, "norm_output": True},
    "gpt-oss": {"version": 3, "taps": [1, 3], "norm_before_fc": True},
    "DeepSpec": {"version": 3, "taps": [0, 1, 2, 3, 4], "qk_norm": True, "rope_theta": 1e6},
}


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def scene(request, tiny_model, tiny_decoder, tiny_weights):
    """(our head on a float64 decoder, the paper's)."""
    config, model = tiny_model("tied")
    folder = tiny_weights("eagle", model, version=request.param.get("version", 1), useful=False, changes=request.param)
    decoder = tiny_decoder(config, model, dtype=torch.float64)
    head, _ = load_head(folder, decoder)
    head.prepare(decoder)
    weights = {name: value.double() for name, value in load_file(folder / "head.safetensors").items()}
    return head, PaperHead(weights, json.loads((folder / "config.json").read_text()))


def check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= NEAR * expected.norm()


def pairs(head: Head, n: int, seed: int = 0, batch: int = 1):
    """(embeddings [B, n, d], what the features are made of [B, n, k d])."""
    generator = torch.Generator().manual_seed(seed)
    d = head.config.hidden_size
    width = d * max(1, len(head.config.taps))
    return tuple(torch.randn(batch, n, size, generator=generator, dtype=torch.float64) for size in (d, width))


def features(paper: PaperHead, states: torch.Tensor) -> torch.Tensor:
    """Of one text [n, k d]."""
    return states if paper.version == 1 else paper.features(states.split(paper.c["hidden_size"], dim=-1))


def new_cache(head: Head) -> KVCache:
    return KVCache(1, head.config.num_key_value_heads, head.config.head_dim, 64, dtype=torch.float64)


@torch.inference_mode()
def test_whole_texts_are_the_papers(scene):
    head, paper = scene
    embedded, states = pairs(head, 9, batch=2)
    found = head(embedded, head.join_taps(states))
    for text in range(2):
        fed_back, read = paper.outputs(embedded[text], features(paper, states[text]))
        check_close(found[text], fed_back)
        check_close(head.head_states(found)[text], read)


@pytest.mark.parametrize("packed", [False, True])
@torch.inference_mode()
def test_a_cached_chain_is_the_papers(scene, packed):
    head, paper = scene
    if packed:
        head.pack("plain")
    embedded, states = pairs(head, 8, seed=1)
    ahead, _ = pairs(head, 4, seed=2)
    cache = new_cache(head)
    joined = head.join_taps(states)
    head(embedded[:, :5], joined[:, :5], 0, cache)
    output = head(embedded[:, 5:], joined[:, 5:], 5, cache)[:, -1:]  # read later, as after a verification
    for i in range(5):
        fed_back, read = paper.follow(embedded[0], features(paper, states[0]), ahead[0, :i])
        check_close(output[0, 0], fed_back)
        check_close(head.head_states(output)[0, 0], read)
        if i < 4:
            output = head(ahead[:, i : i + 1], output, 8 + i, cache)
    head.packed.clear()


@torch.inference_mode()
def test_a_cached_tree_is_the_papers(scene):
    """Level by level; each node's feature is its parent's output."""
    head, paper = scene
    embedded, states = pairs(head, 7, seed=3)
    drafts, _ = pairs(head, 6, seed=4)
    parents = [-1, -1, 0, 1, 1, 4]
    tree, cache = tree_of(parents), new_cache(head)
    known = head(embedded, head.join_taps(states), 0, cache)[:, -1]
    outputs = {-1: known}
    for level in ([0, 1], [2, 3, 4], [5]):
        places = tree.places(6, torch.device("cpu"), level[0] + 1, len(level))
        given = torch.stack([outputs[parents[node]] for node in level], dim=1)
        found = head(drafts[:, level], given, places, cache)
        outputs |= {node: found[:, i] for i, node in enumerate(level)}
    for node in range(len(parents)):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        fed_back, _ = paper.follow(embedded[0], features(paper, states[0]), drafts[0, path])
        check_close(outputs[node][0], fed_back)


@torch.inference_mode()
def test_unrolled_chains_are_the_papers(scene):
    head, paper = scene
    embedded, states = pairs(head, 6, seed=5, batch=2)
    unrolled = list(head.unrolled(embedded, head.join_taps(states), 3))
    for text in range(2):
        known = features(paper, states[text])
        for w, outputs in enumerate(unrolled):
            for row in range(w, 6):
                start = row - w  # the chain's last known pair
                ahead = embedded[text, start + 1 : row + 1]
                fed_back, _ = paper.follow(embedded[text, : start + 1], known[: start + 1], ahead)
                check_close(outputs[text, row], fed_back)


def test_a_head_is_read_back_as_written(scene, tmp_path, tiny_model, tiny_decoder):
    head, _ = scene
    calibration = Calibration(CALIBRATED_AT, CALIBRATED_AT)
    save_head(tmp_path, head, Stored(torch.tensor([3, 1, 2]), calibration, {"beam": 3, "stop": "gain"}))
    again, stored = load_head(tmp_path, tiny_decoder(*tiny_model("tied"), dtype=torch.float64))
    assert again.config == head.config
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        name: value.half().double().tolist() for name, value in head.state_dict().items()
    }
    assert stored.ranking.tolist() == [3, 1, 2]
    assert (stored.calibration, stored.knobs) == (calibration, {"beam": 3, "stop": "gain"})


def test_published_forms_have_the_published_numbers_of_parameters():
    """EAGLE-1 for Vicuna-7B: 0.24B (its files); EAGLE-3: fc 3d -> d, 2d wide q, k and v, and an LM head of 32,000."""
    names = {field.name for field in fields(DecoderConfig)}
    sizes = {"layers": 32, "hidden": 4096, "intermediate": 11008, "heads": 32, "kv_heads": 32, "head_dim": 128}
    given = dict.fromkeys(names, None) | sizes | {"vocab": 32000, "norm_eps": 1e-6, "qk_norm": False}
    vicuna = SimpleNamespace(name="vicuna", config=DecoderConfig(**given))
    counts = []
    for version in (1, 3):
        with torch.device("meta"):
            head = Head(published_config(vicuna, version))
        counts.append(sum(parameter.numel() for parameter in head.parameters()))
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    assert counts[0] == layer + 2 * 4096**2 + 4096 + 4096
    assert round(counts[0] / 1e9, 2) == 0.24
    assert counts[1] == layer + 3 * 4096**2 + 3 * 4096**2 + 32000 * 4096 + 4 * 4096


SIZES = (48, 6, 2, 8, 80, 1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5 is no multiple of num_key_value_heads=2"),
        ({"version": 2}, r"version: .*2"),
        ({"version": 3}, "version=3 needs taps"),
        ({"taps": [1, 2]}, "version=1 has no taps"),
        ({"version": 3, "taps": [2, 2]}, r"taps=\[2, 2\] must rise"),
        ({"version": 3, "taps": [1, 5]}, "states after 5 layers, but tiny has 4"),
        ({"version": 3, "taps": [1, 2], "fc_norm": True, "norm_before_fc": True}, "exclude each other"),
        ({"norm_output": True}, "norm_output is of version 3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling needs a rope_theta"),
        ({"head_dim": 12}, "heads have 12 dimensions, but tiny's have 8"),
        ({"own_head": 7}, "its LM head has 7 tokens, not 272"),
        ({"draft_vocab": 300}, "draft_vocab is 300, but tiny has 272 tokens"),
        ({"hidden_size": 64}, "hidden size is 64, but tiny's is 48"),
        ({"fc_bias": True}, r"fc.bias is missing, expected \(48,\)"),
        ({"input_norm": False}, "it also has layers.0.input_layernorm.weight"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_an_impossible_form_is_told(changes, told, tiny_model, tiny_decoder, tiny_weights):
    config, model = tiny_model("tied")
    folder = tiny_weights("eagle", model, useful=False)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | changes))
    with pytest.raises(UserError, match=told):
        load_head(folder, tiny_decoder(config, model))


def test_rotations_that_transformers_refuses_are_told(tiny_model, tiny_decoder):
    decoder = tiny_decoder(*tiny_model("tied"))
    head = Head(HeadConfig(*SIZES, rope_theta=1e4, rope_scaling={"rope_type": "spiral"}))
    with pytest.raises(UserError, match=r"spiral.*cannot be used"):
        head.prepare(decoder)
