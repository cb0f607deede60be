"""Time to the first token by prompt length: ours beside transformers' `generate`, in turns.

    python scripts/prefill.py [MODEL] [--dtype bfloat16] [--quantize q4] [--lengths 16 128 1024] [--json FILE]

Medians over the repeats; the ratio is the median of the pairs' ratios, above 1 where ours is faster. transformers has
the same weights; quantised ones as the float32 numbers that their codes stand for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tqdm import tqdm

from bench.config import DEFAULT_MODEL
from bench.drafting.loop import decode
from bench.drafting.method import Method
from bench.models import loading
from methods.hf_generate import HFGenerate
from methods.vanilla import Vanilla


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 128, 256, 512, 1024, 1536], metavar="N")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures for programs")
    options = parser.parse_args()
    compute = loading.Compute(dtype=options.dtype, quantize=options.quantize, threads=options.threads)
    model = loading.find(options.model, None, print)
    loaded = loading.load(model, compute, max(options.lengths) + 1, print)
    ours: Method = Vanilla(loaded.target, Vanilla.Config())
    theirs: Method = HFGenerate(loaded.target, HFGenerate.Config(), loaded.checkpoint)
    rows = []
    for length in tqdm(options.lengths, unit="length"):
        prompt = [7 + i % 100 for i in range(length)]
        pairs = [(prefill_s(ours, prompt), prefill_s(theirs, prompt)) for _ in range(options.repeats + 1)][1:]
        medians_ms = [statistics.median(own) * 1e3 for own in zip(*pairs, strict=True)]
        ratio = statistics.median(other / own for own, other in pairs)
        rows.append({"tokens": length, "ours_ms": medians_ms[0], "generate_ms": medians_ms[1], "ratio": ratio})
        tqdm.write(f"{length:6d} tokens  {medians_ms[0]:9.1f} ms, generate {medians_ms[1]:9.1f} ms  {ratio:.2f}x")
    if options.json:
        facts = {"model": model.name, "precision": loaded.target.precision, "threads": torch.get_num_threads()}
        facts |= {"torch": torch.__version__, "repeats": options.repeats, "prefills": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def prefill_s(method: Method, prompt: list[int]) -> float:
    """Seconds from the prompt to the first token."""
    return decode(method, prompt, 1, frozenset()).prefill_s


if __name__ == "__main__":
    main()
