"""What a precision costs in accuracy: logits and perplexity beside float32's, on the prompts of the mini questions.

    python scripts/accuracy.py [MODEL] [--json FILE]

Every token of every first-turn prompt is predicted from those before it. Logit error: mean distance of a logit from
float32's, in standard deviations of float32's logits. Same choice: positions where the most probable token is
float32's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tqdm import tqdm

from bench import questions
from bench.config import DEFAULT_MODEL
from bench.engine.decoder import Decoder
from bench.models import loading

PRECISIONS = {
    "float32": ("float32", "none", False),
    "bfloat16": ("bfloat16", "none", False),
    "q4, float32 activations": ("float32", "q4", True),
    "q4": ("float32", "q4", False),
}


def main() -> None:
    """Measure all precisions, print them and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--json", type=Path, help="also write the figures for programs")
    options = parser.parse_args()
    model = loading.find(options.model, None, print)
    prompts = [model.chat.prompt([], question.turns[0]) for question in questions.load("mini").questions]
    longest = max(map(len, prompts))
    decoders = {}
    for name, (dtype, quantize, by_operations) in PRECISIONS.items():
        made = loading.load_decoder(
            model.checkpoint, torch.device("cpu"), getattr(torch, dtype), max_len=longest, quantize=quantize
        )
        decoders[name] = made.by_operations() if by_operations else made
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in decoders}
    count = 0
    for ids in tqdm(prompts, unit="prompt"):
        wanted = torch.tensor(ids[1:])
        exact = logits_of(decoders["float32"], ids)
        count += len(wanted)
        for name, decoder in decoders.items():
            found = exact if name == "float32" else logits_of(decoder, ids)
            lost = torch.nn.functional.cross_entropy(found, wanted, reduction="sum")
            error = ((found - exact).abs().mean(-1) / exact.std(-1)).sum()
            same = (found.argmax(-1) == exact.argmax(-1)).sum()
            sums[name] += torch.stack((lost, error, same.float())).double()
    rows = {}
    for name, total in sums.items():
        loss, error, same = (total / count).tolist()
        rows[name] = {"perplexity": math.exp(loss), "logit_error": error, "same_choice": same}
        print(f"{name:24s} perplexity {math.exp(loss):8.3f}  logit error {error:.4f}  same choice {same:.2%}")
    if options.json:
        facts = {"model": model.checkpoint.name, "tokens": count, "torch": torch.__version__, "precisions": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def logits_of(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    """float32 logits [n - 1, V] after each token but the last."""
    states = decoder.run_layers(decoder.embed(ids), 0, decoder.new_cache())
    return decoder.logits(states[0, :-1]).float()


if __name__ == "__main__":
    main()
