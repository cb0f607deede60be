"""Medusa heads, written here, not by the project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference import greedy, random_ids


def variants(write: Callable[..., Path]) -> list[dict[str, Any]]:
    """Knobs to test the method with; `write` takes the options of the function below."""
    return [
        {"weights": str(write()), "tree": "chain"},
        {"weights": str(write()), "tree": "mc_sim_7b_63"},
        {"weights": str(write()), "tree": "0/1/0-0/1-0/1-1/0-0-2"},
        {"weights": str(write()), "tree": "0/2", "heads": 1},
        {"weights": str(write(useful=False)), "tree": "0/1/0-3"},
        {"weights": str(write(ranking=list(range(60, 200)))), "tree": "chain", "draft_vocab": 140},
    ]


def write(
    folder: Path,
    model: Any,
    *,
    heads: int = 3,
    useful: bool = True,
    authors: bool = False,
    ranks: tuple[Tensor, list[int], list[int]] | None = None,
    ranking: list[int] | None = None,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
) -> None:
    """Heads for transformers' `model`.

    `useful`: own LM heads that fit the model's greedy answers to a few prompts, so that drafts are often right, and
    sometimes wrong; otherwise random ones that share the target's LM head and read the newest token. `authors`: their
    file, which knows nothing else. `ranks` [T, heads] with `lengths` and `kinds`: the record of ranks. `ranking` lists
    token ids by falling frequency; `changes` go into config.json, `tensors` replace weights (None: left out).
    """
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
        return
    if ranking is not None:
        weights["token_ranking"] = torch.tensor(ranking, dtype=torch.int32)
    if ranks is not None:
        weights["ranks"] = ranks[0].to(torch.uint8)
        weights["rank_lengths"] = torch.tensor(ranks[1], dtype=torch.int32)
        weights["rank_kinds"] = torch.tensor(ranks[2], dtype=torch.int8)
    config = {"hidden_size": d, "heads": heads, "vocab_size": vocab, "own_lm_heads": useful}
    config |= {"reads_newest": not useful, "draft_vocab": 0}
    save_file(_without_nones(weights | (tensors or {})), folder / "heads.safetensors")
    (folder / "config.json").write_text(json.dumps({"heads": config | (changes or {})}))


def _without_nones(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}


def _fitted_lm_heads(model: Any, heads: int, prompts: list[list[int]]) -> Tensor:
    """[heads, V, d]: from final states to the tokens that came 2, 3, .. places later, by regression."""
    rows: list[Tensor] = []
    texts = [prompt + greedy(model, tuple(prompt), 40, frozenset()) for prompt in prompts]
    with torch.inference_mode():
        states = [model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0] for text in texts]
    for head in range(heads):
        x = torch.cat([state[: -head - 2] for state in states]).double()
        y = torch.nn.functional.one_hot(
            torch.tensor([t for text in texts for t in text[head + 2 :]]), model.config.vocab_size
        ).double()
        solution = torch.linalg.solve(x.T @ x + 3.0 * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)
        rows.append(solution.T.float())
    return torch.stack(rows).clone()
