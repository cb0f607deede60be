"""Draft models of tiny targets, and what they should draft by transformers' own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.engine.decoder import Decoder
from bench.engine.quantize import Q4, Q8
from bench.models import loading
from bench.models.checkpoints import Checkpoint, resolve
from methods.sps import SpS, SpSConfig
from tests.byte_tokenizer import byte_tokenizer
from tests.methods.tiny_weights.sps import small_model
from tests.wide import make_faint, wide_config

NEVER = frozenset()
LIMIT = 40
ALWAYS = {"stop": "threshold", "gamma": 4}


@dataclass
class Scene:
    """A target with a draft model of its first layer."""

    model: Any  # transformers' target
    decoder: Decoder
    checkpoint: Checkpoint
    small: Any  # transformers' draft model
    folder: Path  # of the draft model

    def sps(self, **knobs) -> SpS:
        return SpS(self.decoder, SpSConfig(model=str(self.folder), **knobs))


@pytest.fixture
def scene(tiny_model, tiny_decoder, tiny_checkpoint, tiny_weights):
    """(kind, faint, tokenizer of the draft model, what is special about it) -> a scene."""

    def make(kind="tied", faint=True, tokenizer=None, **options) -> Scene:
        config, model = tiny_model(kind, faint=faint)
        decoder, checkpoint = tiny_decoder(config, model), tiny_checkpoint(kind, faint)
        loading.stands_for(decoder, checkpoint)
        folder = tiny_weights("sps", model, tokenizer=tokenizer, **options)
        return Scene(model, decoder, checkpoint, small_model(model, **options), folder)

    return make


def watched(method: SpS) -> list[tuple[list[int], list[int]]]:
    """The list that fills with each text and what is drafted to follow it."""
    made, propose = [], method.propose

    def watch(sequences, budgets):
        drafts = propose(sequences, budgets)
        made.extend((list(s.context), list(d.tokens)) for s, d in zip(sequences, drafts, strict=True))
        return drafts

    method.propose = watch
    return made


def reads(method: SpS, monkeypatch) -> list[tuple[int, int]]:
    """The list that fills with the first position and the width of each pass of the draft model."""
    made, run = [], method.draft.run_layers

    def watch(x, places, *rest):
        made.append((places if isinstance(places, int) else places.end - x.shape[1], x.shape[1]))
        return run(x, places, *rest)

    monkeypatch.setattr(method.draft, "run_layers", watch)
    return made


@torch.inference_mode()
def chain(small, text: list[int], count: int, vocab: int) -> list[int]:
    """What transformers' draft model goes on with, token by token, every pass over the whole text."""
    rows, made = small.config.vocab_size, []
    for _ in range(count):
        ids = torch.tensor([[min(token, rows - 1) for token in [*text, *made]]])
        made.append(int(small(ids).logits[0, -1, :vocab].argmax()))
    return made


def counters(answer):
    return [(step.drafted, step.accepted) for step in answer.steps]


@pytest.fixture
def wide(tmp_path):
    """(on_the_grid, dtype, quantize) -> (hf_model, checkpoint, our decoder), whose matrices have whole groups."""

    def make(on_the_grid=False, dtype=torch.float32, quantize="none"):
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(wide_config()).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight.copy_(torch.randn(weight.shape) * weight.shape[1] ** -0.5)
        make_faint(model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if on_the_grid and ("_proj" in name or "lm_head" in name):
                    weight.copy_((Q8 if "lm_head" in name else Q4).of(weight).plain())
        folder = tmp_path / "wide"
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        checkpoint = resolve(str(folder))
        return model, checkpoint, loading.load_decoder(checkpoint, torch.device("cpu"), dtype, quantize=quantize)

    return make
