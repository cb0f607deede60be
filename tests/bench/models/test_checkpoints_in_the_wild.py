"""Forms in which people publish checkpoints: answers are those of transformers' own `generate` on the same folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import methods
from bench.drafting.loop import decode
from bench.models import loading
from bench.models.hf_peer import shared_model
from bench.models.loading import Compute
from tests.byte_tokenizer import CHAT_TEMPLATE
from tests.tiny import ONE_TURN, TWO_TURNS, records, run_bench, write_questions

LIMIT = 16
PROMPT = "Who are you?"
State = dict[str, Tensor]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def restore(folder: Path, change: Callable[[State], State]) -> None:
    stored = change(load_file(folder / "model.safetensors"))
    made = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})


def as_it_is(folder: Path) -> None:
    """Nothing changes."""


def another_name_of_silu(folder: Path) -> None:
    edit(folder / "config.json", hidden_act="swish")


def in_half_the_bits(folder: Path) -> None:
    restore(folder, lambda stored: {name: tensor.bfloat16() for name, tensor in stored.items()})


def with_old_buffers(folder: Path) -> None:
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(6) for i in range(4)}
    restore(folder, lambda stored: stored | old)


def without_a_prefix(folder: Path) -> None:
    """As the bare model is saved, beside its head."""
    restore(folder, lambda stored: {name.removeprefix("model."): tensor for name, tensor in stored.items()})


def in_shards(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(stored)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: stored[name] for name in own}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in halves.items() for name in own}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def in_one_file_and_in_shards(folder: Path) -> None:
    """The index is out of date: its shards are gone."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-gone.safetensors"}}))


def pickled_beside_an_adapter(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    save_file({"base_model.model.lora_A.weight": torch.zeros(4, 48)}, folder / "adapter_model.safetensors")


def tied_but_two(folder: Path) -> None:
    head = 0.3 * torch.randn(272, 48, generator=torch.Generator().manual_seed(5))
    restore(folder, lambda stored: stored | {"lm_head.weight": head})


def tied_and_stored_twice(folder: Path) -> None:
    restore(folder, lambda stored: stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()})


def tied_with_the_head_alone(folder: Path) -> None:
    restore(folder, lambda s: {("lm_head.weight" if "embed" in name else name): tensor for name, tensor in s.items()})


def fp8(rows: int | None) -> Callable[[Path], None]:
    """All matrices of the layers in eight bits, with one scale each or one a block."""

    def change(stored: State) -> State:
        made = dict(stored)
        for name, tensor in stored.items():
            if name.endswith("_proj.weight"):
                n, k = tensor.shape
                size = (rows, rows) if rows else (n, k)
                blocks = tensor.view(n // size[0], size[0], k // size[1], size[1])
                scale = blocks.abs().amax((1, 3)) / 448
                codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
                made |= {name: codes.view(n, k), f"{name}_scale_inv": scale}
        return made

    def store(folder: Path) -> None:
        restore(folder, change)
        block = [rows, rows] if rows else [128, 128]
        scheme = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
        edit(folder / "config.json", quantization_config=scheme)

    return store


def ending(where: str) -> Callable[[Path], None]:
    """One of the tokens of the answer ends it, as one of these files says."""

    def store(folder: Path) -> None:
        answer = theirs(folder, tokens_of(folder))
        end = next(token for i, token in enumerate(answer) if i >= 3 and token not in answer[:i])
        (folder / where).exists() or (folder / where).write_text("{}")
        edit(folder / where, eos_token_id=[257, end])
        assert len(theirs(folder, tokens_of(folder))) < len(answer)

    return store


FORMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "plain": ("vicuna", as_it_is),
    "biases": ("biased", as_it_is),
    "swish": ("vicuna", another_name_of_silu),
    "bfloat16": ("vicuna", in_half_the_bits),
    "old buffers": ("vicuna", with_old_buffers),
    "no prefix": ("vicuna", without_a_prefix),
    "shards": ("vicuna", in_shards),
    "stale index": ("vicuna", in_one_file_and_in_shards),
    "beside an adapter": ("vicuna", pickled_beside_an_adapter),
    "tied but two": ("qwen2", tied_but_two),
    "tied and stored twice": ("qwen2", tied_and_stored_twice),
    "tied with the head alone": ("qwen2", tied_with_the_head_alone),
    "fp8, a scale a matrix": ("vicuna", fp8(None)),
    "fp8, a scale a block": ("qwen3", fp8(16)),
    "end tokens in config.json": ("vicuna", ending("config.json")),
    "end tokens in generation_config.json": ("vicuna", ending("generation_config.json")),
}


@pytest.fixture
def store(tmp_path, cache, tiny_checkpoint) -> Callable[..., Path]:
    """(kind of model, form) -> a folder."""

    def make(kind: str, form: Callable[[Path], None] = as_it_is) -> Path:
        folder = shutil.copytree(tiny_checkpoint(kind).folder, tmp_path / "model")
        (folder / "generation_config.json").unlink(missing_ok=True)
        form(folder)
        return folder

    return make


def tokens_of(folder: Path) -> list[int]:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": PROMPT}]
    made = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    return list(made["input_ids"])


@torch.inference_mode()
def theirs(folder: Path, prompt: list[int]) -> list[int]:
    """The greedy answer of transformers, which reads the folder by itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False)
    return out[0, len(prompt) :].tolist()


def ours(folder: Path) -> SimpleNamespace:
    loaded = loading.load(loading.find(str(folder), None, print), Compute(device="cpu", dtype="float32"), 256, print)
    prompt = loaded.chat.prompt([], PROMPT)
    variant = methods.parse("vanilla")
    answer = decode(variant.method(loaded.target, variant.config), prompt, LIMIT, loaded.eos)
    return SimpleNamespace(loaded=loaded, prompt=prompt, answer=list(answer.token_ids))


@pytest.mark.parametrize(("kind", "form"), FORMS.values(), ids=FORMS)
def test_answers_are_those_of_transformers(store, kind, form):
    folder = store(kind, form)
    found = ours(folder)
    assert found.prompt == tokens_of(folder)
    right = theirs(folder, found.prompt)
    assert found.answer == right
    assert len(set(right)) > 3  # a model that says one thing would hide a mistake


@pytest.mark.parametrize(("kind", "form"), [("qwen2", tied_but_two), ("vicuna", fp8(None))], ids=["two heads", "fp8"])
def test_the_form_matters(store, kind, form, tmp_path):
    """Without the head, or the codes, the answer would differ."""
    before = theirs(store(kind), tokens_of(tmp_path / "model"))
    form(tmp_path / "model")
    if kind == "qwen2":
        assert theirs(tmp_path / "model", tokens_of(tmp_path / "model")) != before
    else:
        codes = load_file(tmp_path / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        assert codes.dtype == torch.float8_e4m3fn


def test_the_peers_have_the_weights_of_the_target(store):
    found = ours(store("vicuna", fp8(None)))
    target = found.loaded.target
    peer = shared_model(found.loaded.checkpoint, target.dtype, target.device)
    qkv = [getattr(peer.model.layers[2].self_attn, f"{name}_proj").weight for name in "qkv"]
    assert torch.equal(torch.cat(qkv), target.layers[2].qkv.weight)


def test_of_two_heads_the_stored_one_counts_as_weights_of_its_own(store):
    target = ours(store("qwen2", tied_but_two)).loaded.target
    assert not target.config.tied
    assert target.head_weight.shape == target.embedding.shape
    assert not torch.equal(target.head_weight, target.embedding)


# --- chat templates --------------------------------------------------------------------------------------------------


def named_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = {"default": CHAT_TEMPLATE, "tool_use": f"TOOLS{CHAT_TEMPLATE}"}
    templates = [{"name": name, "template": text} for name, text in named.items()]
    edit(folder / "tokenizer_config.json", chat_template=templates)


def no_system_role(folder: Path) -> None:
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusal + CHAT_TEMPLATE)


def one_turn_only(folder: Path) -> None:
    refusal = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusal + CHAT_TEMPLATE)


@pytest.mark.parametrize("form", [named_templates, no_system_role, one_turn_only])
def test_prompts_are_those_of_the_default_template(store, form):
    plain = store("vicuna")
    expected = tokens_of(plain)
    form(plain)
    chat = loading.find(str(plain), None, print).chat
    assert chat.prompt([], PROMPT) == tokens_of(plain) == expected


def test_a_template_for_one_turn_is_reported_and_questions_of_one_turn_run(store, tmp_path, capsys):
    source = write_questions(tmp_path / "q.jsonl", ONE_TURN, TWO_TURNS)
    out = tmp_path / "out"
    assert run_bench(store("vicuna", one_turn_only), source, out, "--method", "vanilla") == 0
    run, turns = records(out)
    errors = {(turn.question_id, turn.turn): turn.error for turn in turns}
    assert set(errors) == {(12, 0), (11, 0), (11, 1)}
    assert errors[12, 0] is None
    assert errors[11, 0] is None
    assert "cannot render a second turn (one turn only)" in str(errors[11, 1])
    told = [text for text in run.provenance["warnings"] if text.startswith("second turns fail, in 1 of 2 questions: ")]
    assert len(told) == 1
    assert f"WARNING: {told[0]}" in "".join(capsys.readouterr())


# --- sliding windows -------------------------------------------------------------------------------------------------


def windowed(folder: Path) -> None:
    edit(folder / "config.json", sliding_window=160)


@pytest.mark.parametrize(("letters", "told"), [(130, True), (20, False)])
def test_a_window_that_may_cut_answers_is_reported_with_the_run(store, tmp_path, letters, told):
    source = write_questions(tmp_path / "q.jsonl", (7, "qa", ["w" * letters]))
    out = tmp_path / "out"
    assert run_bench(store("mistral", windowed), source, out, "--method", "vanilla", "--max-new-tokens", "32") == 0
    run, (turn,) = records(out)
    assert (len(turn.token_ids) == 160 - turn.prompt_tokens) == told
    warnings = run.provenance["warnings"]
    expected = "question 7 may need more than the sliding window of 160 tokens"
    assert any(text.startswith(expected) for text in warnings) == told
