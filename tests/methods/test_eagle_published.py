"""Published EAGLE heads: every layout against the papers' forward in float64, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import methods
from bench.drafting import trained
from bench.drafting.loop import decode
from bench.engine.decoder import Decoder
from bench.errors import UserError
from methods.eagle import formats
from methods.eagle.head import load_head, read_dimensions
from tests.methods.published_heads import (
    CASES,
    DRAFTED,
    FFN,
    KV,
    LAYERS,
    MAPPED,
    WIDTH,
    Case,
    D,
    named,
    vocabulary,
    write,
)
from tests.reference import VOCAB

NEAR = {"rtol": 0, "atol": 1e-6}  # rotations are made in float32


@pytest.fixture(scope="module")
def build(tiny_config, tiny_decoder) -> Callable[[str], tuple[Decoder, Any]]:
    """Model type -> a target of eight layers, and its model."""
    made: dict[str, tuple[Decoder, Any]] = {}

    def target(kind: str = "vicuna") -> tuple[Decoder, Any]:
        if kind not in made:
            torch.manual_seed(5)
            config = tiny_config(kind, num_hidden_layers=LAYERS)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            made[kind] = tiny_decoder(config, model, dtype=torch.float64), model
        return made[kind]

    return target


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@torch.inference_mode()
def test_a_published_head_computes_what_the_paper_says(case, build, tmp_path):
    target, model = build(case.target)
    folder = case.write(tmp_path, model)
    head, stored = load_head(folder, target)
    assert read_dimensions(folder, target)[0] == head.config
    assert head.config.taps == case.form["taps"]

    head.prepare(target)
    generator = torch.Generator().manual_seed(1)
    embedded, *taps = torch.randn(1 + max(len(head.config.taps), 1), 6, D, generator=generator, dtype=torch.float64)
    outputs = head(embedded[None], head.join_taps(torch.cat(taps, dim=-1)[None]))
    paper = case.paper()
    fed_back, read = paper.outputs(embedded, paper.features(taps) if paper.version == 3 else taps[0])
    torch.testing.assert_close(outputs[0], fed_back, **NEAR)
    torch.testing.assert_close(head.head_states(outputs)[0], read, **NEAR)

    if head.head is not None:
        assert torch.equal(head.head.weight.float(), case.weights["lm_head.weight"])
    drafted = head.config.draft_vocab
    assert drafted == (DRAFTED if "d2t" in case.also else 0)
    assert (stored.ranking is None) == (drafted == 0)
    if stored.ranking is not None:
        assert stored.ranking.tolist() == [3 + 6 * i for i in range(DRAFTED)]


def test_of_a_vocabulary_without_a_ranking_no_part_is_taken(build, tmp_path):
    target, model = build(V3.target)
    variant = methods.parse(f"eagle3:weights={V3.write(tmp_path, model)},draft_vocab={DRAFTED - 1}")
    with pytest.raises(UserError, match=rf"which {DRAFTED} tokens it drafts, .* leave draft_vocab out"):
        variant.method(target, variant.config)


@pytest.mark.parametrize("name", ["authors 1, biased, pickled", "authors 3", "deepspec"])
def test_a_method_runs_it(name, build, tmp_path, random_ids):
    case = CASES[name]
    target, model = build(case.target)
    folder = case.write(tmp_path, model)
    mine, other = ("eagle", "eagle3") if case.form["version"] == 1 else ("eagle3", "eagle")
    knobs = f"weights={folder},gamma=2,beam=1,threshold=0"

    def made(text: str):
        variant = methods.parse(text)
        return variant.method(target, variant.config)

    prompt = random_ids(9, seed=4)
    answer = decode(made(f"{mine}:{knobs}"), prompt, 8, frozenset())
    assert answer.token_ids == decode(made("vanilla"), prompt, 8, frozenset()).token_ids
    assert sum(step.drafted for step in answer.steps) > 4
    with pytest.raises(UserError, match=f"{mine}:weights={folder}"):
        made(f"{other}:{knobs}")


def test_rows_of_the_lm_head_follow_their_tokens(build, tmp_path):
    """d2t need not rise: here row 0 is token 50 and row 1 is token 7."""
    target, model = build()
    case = CASES["authors 3"]
    folder = case.write(tmp_path, model)
    tensors = torch.load(folder / "pytorch_model.bin")
    order = torch.randperm(DRAFTED, generator=torch.Generator().manual_seed(2))
    tokens = 3 + 6 * order
    write(folder, case.config, tensors | {"d2t": tokens - torch.arange(DRAFTED)}, pickled=True)
    head, stored = load_head(folder, target)
    assert stored.ranking.tolist() == tokens.tolist()
    made = trained.draft_ids(DRAFTED, stored.ranking, target, folder).tolist()
    for row, token in enumerate(tokens.tolist()):
        assert torch.equal(head.head.weight[made.index(token)].float(), case.weights["lm_head.weight"][row])


def test_shards_are_one_file(build, tmp_path):
    target, model = build()
    case = CASES["authors 1, no bias"]
    whole, _ = load_head(case.write(tmp_path, model), target)
    one = trained.digest(tmp_path, formats.FILES)
    tensors, where = named(case.weights, "layers.0."), {}
    for i, part in enumerate((list(tensors)[:4], list(tensors)[4:]), 1):
        name = f"model-0000{i}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, tmp_path / name)
        where |= dict.fromkeys(part, name)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    head, _ = load_head(tmp_path, target)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), whole.parameters(), strict=True))
    assert trained.digest(tmp_path, formats.FILES) not in (one, "")


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(case: Case, build: Any, folder: Path, config: Any = None, tensors: Any = None) -> str:
    """The error with changes to a case's files; a value of None leaves a key out."""
    target, model = build(case.target)
    case.write(folder, model)
    if tensors:
        stored = named(case.weights, case.prefix) | {name: vocabulary()[name] for name in case.also if name in MAPPED}
        stored |= tensors
        write(folder, case.config, {k: v for k, v in stored.items() if v is not None}, pickled=case.pickled)
    if config:
        changed = {key: value for key, value in (case.config | config).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError) as error:
        load_head(folder, target)
    said = str(error.value)
    assert said.count("\n") == 0
    assert str(folder) in said
    return said


V1, V3, MODEL_OPT = CASES["authors 1, biased, pickled"], CASES["authors 3"], CASES["modelopt"]
SPEC3, VLLM, DEEPSPEC = CASES["speculators 3"], CASES["vllm's wrapper"], CASES["deepspec"]
V31, NESTED = CASES["specforge 3.1"], MODEL_OPT.config["eagle_config"]


@pytest.mark.parametrize(
    ("case", "tensors", "said"),
    [
        (V1, {"layers.0.mlp.up_proj.weight": None}, "layers.0.mlp.up_proj.weight is missing, expected (72, 48)"),
        (V1, {"layers.1.mlp.up_proj.weight": torch.ones(FFN, D)}, "it also has layers.1.mlp.up_proj.weight"),
        (V1, {"layers.0.input_layernorm.weight": torch.ones(D)}, "it also has layers.0.input_layernorm.weight"),
        (V1, {"fc.weight": torch.ones(D, D)}, "fc.weight has shape (48, 48), expected (48, 96)"),
        (V1, {"layers.0.self_attn.k_proj.bias": torch.ones(KV * WIDTH)}, "it also has layers.0.self_attn.k_proj.bias"),
        (V1, {"embed_tokens.weight": torch.ones(VOCAB, D)}, "embed_tokens.weight is not the model's own"),
        (V1, {"embed_tokens.weight": torch.ones(9, D)}, "embed_tokens.weight has shape (9, 48), expected (272, 48)"),
        (VLLM, {"lm_head.weight": torch.randn(VOCAB, D)}, "lm_head.weight is not the model's own"),
        (VLLM, {"token_map": torch.arange(9)}, "it also has token_map"),
        (V3, {"d2t": None}, "draft_vocab_size=40 needs the tensor d2t, which is missing"),
        (V3, {"lm_head.weight": None}, "lm_head.weight is missing, expected (40, 48)"),
        (V3, {"midlayer.hidden_norm.weight": None}, "midlayer.hidden_norm.weight is missing, expected (48,)"),
        (V3, {"d2t": vocabulary()["d2t"] + 40}, "d2t[39]=238 makes token 277, but there are 272 tokens"),
        (V3, {"d2t": -torch.arange(DRAFTED)}, "d2t gives one token several rows"),
        (V3, {"d2t": torch.arange(DRAFTED - 1)}, "d2t has shape (39,) and torch.int64, expected (40,) and integers"),
        (V3, {"d2t": vocabulary()["d2t"] + 1}, "t2d does not mark the tokens that d2t gives"),
        (V3, {"t2d": torch.ones(9, dtype=torch.bool)}, "t2d does not mark the tokens"),
        (V3, {"fc_norm.0.weight": torch.ones(D)}, "it also has fc_norm.0.weight"),
        (V31, {"fc_norm.1.weight": None}, "fc_norm.1.weight is missing, expected (48,)"),
        (V31, {"fc_norm.1.weight": torch.ones(9)}, "fc_norm.1.weight has shape (9,), expected (48,)"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_a_heads_are_named(case, tensors, said, build, tmp_path):
    assert said in refused(case, build, tmp_path, tensors=tensors)


@pytest.mark.parametrize(
    ("case", "config", "said"),
    [
        # vLLM takes a missing `eagle_fc_bias` for false and `fc.bias` for nothing; acceptance collapsed.
        (VLLM, {"eagle_fc_bias": False}, "config.json says eagle_fc_bias=false, but the file has fc.bias"),
        (V1, {"bias": False}, "config.json says bias=false, but the file has fc.bias"),
        (CASES["authors 1, no bias"], {"bias": True}, "config.json says bias=true, but the file does not have fc.bias"),
        (V1, {"qkv_bias": True}, "qkv_bias=true, but the file does not have layers.0.self_attn.q_proj.bias"),
        (CASES["speculators 1"], {"fusion_bias": False}, "fusion_bias=false, but the file has fusion_fc.bias"),
        (CASES["speculators 1"], {"layernorms": True}, "layernorms=true is not supported, only false"),
        (SPEC3, {"speculators_model_type": "peagle"}, 'speculators_model_type="peagle" is neither eagle nor eagle3'),
        (SPEC3, {"norm_before_residual": None}, "norm_before_residual is missing"),
        (SPEC3, {"fc_norm": True, "norm_before_fc": True}, "fc_norm and norm_before_fc exclude each other"),
        (SPEC3, {"target_hidden_size": 96}, "hidden_size=48 differs from target_hidden_size=96"),
        (SPEC3, {"transformer_layer_config": None}, "transformer_layer_config is missing"),
        (SPEC3, {"eagle_aux_hidden_state_layer_ids": [1, 4, 9]}, "states after 9 layers, but tiny has 8"),
        (SPEC3, {"eagle_aux_hidden_state_layer_ids": [4, 1, 5]}, "taps=[4, 1, 5] must rise"),
        (SPEC3, {"eagle_aux_hidden_state_layer_ids": [1, 4]}, "fc.weight has shape (48, 144), expected (48, 96)"),
        (V1, {"hidden_size": None}, "config.json: hidden_size is missing"),
        (V1, {"hidden_size": 96}, "its hidden size is 96, but tiny's is 48"),
        (V1, {"hidden_size": "48"}, "config.json is no llama configuration"),
        (V1, {"num_attention_heads": 0}, "config.json is no llama configuration"),
        (V1, {"vocab_size": 32000}, "it is for a vocabulary of 32000 tokens, not 272"),
        (V1, {"num_hidden_layers": 4}, "num_hidden_layers=4 is not supported, only 1"),
        (V1, {"model_type": "gemma"}, 'model_type="gemma" is none of llama, qwen2, qwen3'),
        (V1, {"hidden_act": "gelu"}, 'hidden_act="gelu" is not supported; supported: silu'),
        (V1, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "is not supported; supported: default, linear"),
        (V1, {"quantization_config": {"bits": 4}}, "config.json: quantization_config is unknown"),
        (V1, {"layer_types": ["sliding_attention"]}, "layer_types has sliding_attention"),
        (V3, {"draft_vocab_size": 99999}, "draft_vocab_size=99999 is more than the 272 tokens of the model"),
        (V3, {"draft_vocab_size": "40"}, 'draft_vocab_size="40" is no integer'),
        (V3, {"norm_output": "yes"}, "norm_output"),
        (MODEL_OPT, {"eagle_config": NESTED | {"use_aux_hidden_state": False}}, "use_aux_hidden_state=false"),
        (MODEL_OPT, {"eagle_config": NESTED | {"parallel_draft_step": 4}}, "eagle_config.parallel_draft_step=4"),
        (MODEL_OPT, {"eagle_config": NESTED | {"mask_token": 4}}, "eagle_config.mask_token is unknown"),
        (DEEPSPEC, {"architectures": ["Qwen3DSparkModel"]}, "are not EAGLE-3's"),
        (DEEPSPEC, {"num_target_layers": 36}, "it is for a model of 36 layers, not 8"),
        (DEEPSPEC, {"target_layer_ids": ["1"]}, "must be a list of integers"),
        (DEEPSPEC, {"block_size": 16}, "config.json: block_size is unknown"),
    ],
)  # fmt: skip
def test_what_config_json_says_otherwise_is_named(case, config, said, build, tmp_path):
    assert said in refused(case, build, tmp_path, config=config)


def test_the_remedy_of_an_unknown_key_works(build, tmp_path):
    assert "remove it from the file" in refused(V1, build, tmp_path, config={"note": "trained twice"})
    V1.write(tmp_path, build()[1])
    load_head(tmp_path, build()[0])
