"""What the engine's parts cost on a device: passes, their products, drafts, LM head, cache; and whole answers beside
other engines.

Ratios are taken within one run: what is compared was timed in turns.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

import methods
from bench.config import RunConfig
from bench.drafting.costs import Passes
from bench.drafting.loop import decode
from bench.drafting.method import Answer, Method, Peer, SpeculativeMethod
from bench.drafting.published import Published
from bench.drafting.sequence import Step
from bench.engine.decoder import Decoder
from bench.engine.timing import interleaved, least_s
from bench.errors import UserError
from bench.figures import stats
from bench.figures.engine_record import EngineRecord
from bench.lab import limits, neighbour
from bench.models import checkpoints
from bench.models.checkpoints import Checkpoint
from bench.models.loading import Compute, engine_facts, load_decoder, memory_errors, set_up
from bench.models.shapes import check_shape, checkpoint_of, config_of, random_weights
from bench.progress import Log
from bench.run import environment
from bench.run.contestants import Contestant
from bench.run.cores import on_free_cores
from bench.run.memory import peak_bytes
from bench.run.plan import variants
from methods import BASELINE

SCHEMA = 2
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)
HEADS = (1024, 4096, 8192, 16384)
_BUFFER_BYTES = 512 << 20  # read from end to end: larger than any cache
_PATH = [1, 3, 5]  # drafts kept of a tree: their rows have to move
_PROMPT = 64  # tokens


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int = 15  # of each pass
    rounds: int = 7  # of each answer
    new_tokens: int = 64


def run(
    config: RunConfig, shape: str | None, context: int, repeats: int, log: Log, *, beside: bool = False
) -> EngineRecord:
    """Measure the model of `config`, or a shape's random weights, with its methods and peers; with provenance.

    `beside`: measure what a busy process beside it costs instead, see `neighbour.measure`.

    Raises:
        UserError: no such model or shape, or not enough memory for it; or `beside` on a GPU.

    """
    config, warnings = (config, []) if beside else on_free_cores(config)
    chosen, left_out = variants(config, shape)
    for warning in (*warnings, *left_out):
        log(f"WARNING: {warning}")
    if shape is None:
        checkpoint = checkpoints.resolve(config.model, config.revision, log=log)
        target = load_decoder(checkpoint, *set_up(Compute.of(config), log), max_len=context, quantize=config.quantize)
    else:
        checkpoint, target = _of_shape(config, shape, context, log)
    contestants = []
    peak = 0  # without peers, which load the model again, and without what is measured with
    for variant in chosen:  # peers come last
        with memory_errors(f"method {variant.label}"):
            extra = (checkpoint,) if issubclass(variant.method, Peer) else ()
            contestants.append(Contestant(variant.label, variant.method(target, variant.config, *extra)))
        peak = peak if extra else peak_bytes(target.device)
    facts = {
        "schema": SCHEMA,
        "model": checkpoint.name,
        "random_weights": shape is not None,
        "parameters": target.parameters,
        "device": environment.describe_machine(target.device, torch.get_num_threads()),
        "dtype": target.precision,
        "peak_bytes": peak,
        "command": environment.command_line(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **environment.describe_software(),
        "warnings": [*warnings, *filter(None, [environment.busy_warning()])],
    }
    found = neighbour.measure(target, repeats) if beside else measure(target, contestants, Effort(repeats=repeats))
    return cast(EngineRecord, {**facts, "engine": engine_facts(target), **found})


def _of_shape(config: RunConfig, shape: str, context: int, log: Log) -> tuple[Checkpoint, Decoder]:
    check_shape(shape)
    log(f"making random weights of {shape}")
    device, dtype = set_up(Compute.of(config), log)
    hf_config = config_of(shape)
    with memory_errors(f"random weights of {shape} in {dtype}"):
        target = Decoder.from_weights(
            hf_config, random_weights(hf_config, dtype, device),
            name=shape, dtype=dtype, device=device, max_len=context,
            quantize=config.quantize, homes=[device] * hf_config.num_hidden_layers,
        )  # fmt: skip
    return checkpoint_of(shape), target


@torch.inference_mode()
def measure(target: Decoder, contestants: Sequence[Contestant], effort: Effort) -> dict[str, Any]:
    """Everything that `bench-engine` tells. `contestants`: vanilla, methods and peers, made ready on `target`."""
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("memory", lambda: bandwidth(target.device, effort.repeats)),
        ("arithmetic", lambda: limits.arithmetic(target, effort.repeats)),
        ("passes and products", lambda: _passes(target, effort.repeats)),
        ("drafts", lambda: _drafts(target, effort.repeats)),
        ("head", lambda: _heads(target, effort.repeats)),
        ("drafters", lambda: _drafters(target, effort.repeats)),
        ("cache", lambda: _cache(target, effort.repeats)),
        ("answers", lambda: _answers(target, contestants, effort)),
    ]
    found: dict[str, Any] = {}
    with tqdm(parts, unit="part", dynamic_ncols=True) as bar:
        for name, part in bar:
            bar.set_description(name)
            with memory_errors(f"measuring {name}"):
                found[name] = part()
    found |= found.pop("passes and products")
    _conclude(found, target)
    return found


def bandwidth(device: torch.device, repeats: int) -> dict[str, float]:
    """GB/s (1e9 bytes) at which memory is read, and copied (both ways counted): the best of what torch offers."""
    values = torch.ones(_BUFFER_BYTES // 4, device=device)
    into = torch.zeros_like(values)
    (copy_s,) = least_s([lambda: into.copy_(values)], repeats, device)
    read = environment.read_gb_per_s(device, _BUFFER_BYTES, repeats)
    return {"read_gb_s": read, "copy_gb_s": 2 * _BUFFER_BYTES / copy_s / 1e9}


def _passes(target: Decoder, repeats: int) -> dict[str, dict[str, float]]:
    """A pass through all layers and the LM head over so many positions, and its products alone, in turns; ms."""
    passes = Passes(target, 0)
    widths = [n for n in WIDTHS if n < target.max_len]
    calls = [call for n in widths for call in (passes.verify(n), limits.products(target, n))]
    times = _ms(calls, repeats, target.device)
    by_kind = {"passes": times[::2], "products": times[1::2]}
    return {kind: dict(zip(map(str, widths), own, strict=True)) for kind, own in by_kind.items()}


def _drafts(target: Decoder, repeats: int) -> dict[str, Any]:
    """The layers below an exit over one position, by exit layer, ms; of the whole target the last."""
    layers = sorted({1, 2, 3, 4, 5, 8, target.config.layers // 2, target.config.layers} - {0})
    layers = [layer for layer in layers if layer <= target.config.layers]
    calls = [Passes(target, layer).shallow for layer in layers]
    return dict(zip(map(str, layers), _ms(calls, repeats, target.device), strict=True))


def _heads(target: Decoder, repeats: int) -> dict[str, Any]:
    """The LM head over one position, cut to so many tokens and whole, ms."""
    vocab = target.config.vocab
    state = torch.randn(1, target.config.hidden, device=target.device).to(target.dtype)
    cuts = [size for size in HEADS if size < vocab]
    heads = [target.cut_head(torch.arange(size, device=target.device)) for size in cuts] + [target.head]
    calls = [lambda head=head: head(state) for head in heads]
    return dict(zip(map(str, [*cuts, vocab]), _ms(calls, repeats, target.device), strict=True))


def published() -> dict[str, Published]:
    """What methods say of their published forms, by method."""
    loaded = {name: methods.load(name) for name in methods.names()}
    declared = {name: m.published for name, m in loaded.items() if issubclass(m, SpeculativeMethod)}
    return {name: own for name, own in declared.items() if own}


def _drafters(target: Decoder, repeats: int) -> dict[str, float]:
    """A call of each published draft model that can have the target's sizes, with random weights, ms."""
    calls = {name: call for name, own in published().items() if (call := own.call(target))}
    return dict(zip(calls, _ms(list(calls.values()), repeats, target.device), strict=True))


def _cache(target: Decoder, repeats: int) -> dict[str, float]:
    """Keeping a tree's path in the cache, ms: its rows move; and a chain's, which lie right."""
    cache = target.new_cache()
    cache.zero()
    moved, stayed = _ms(
        [lambda: cache.keep_path(0, _PATH), lambda: cache.keep_path(0, [0, 1, 2])], repeats, target.device
    )
    return {"tree": moved, "chain": stayed}


def _answers(target: Decoder, contestants: Sequence[Contestant], effort: Effort) -> dict[str, Any]:
    """Whole answers of everybody, each in turns with one of vanilla; and what of a step no pass accounts for."""
    prompt = [7 + i % 100 for i in range(min(_PROMPT, target.max_len // 4))]
    limit = min(effort.new_tokens, target.max_len - len(prompt) - 1)
    alone = Passes(target, 0, len(prompt) + limit // 2).vanilla
    made: dict[str, list[dict[str, Answer]]] = {contestant.label: [] for contestant in contestants}
    by_label = {contestant.label: contestant.method for contestant in contestants}
    for method in by_label.values():
        if isinstance(method, Peer):
            method.tune(prompt)
    passes_s: list[float] = []
    for round_number in range(effort.rounds + 1):  # the first warms up
        for label in by_label:
            pair = dict.fromkeys([BASELINE, label] if round_number % 2 else [label, BASELINE])
            answers = {one: decode(by_label[one], prompt, limit, frozenset()) for one in pair}
            made[label] += [answers] if round_number else []
        passes_s += interleaved([alone], limit // 4, target.device)[0] if round_number else []
    pass_s = statistics.median(passes_s)
    return {label: _of_answers(by_label[label], label, pairs, pass_s) for label, pairs in made.items()}


def _of_answers(method: Method, label: str, pairs: Sequence[dict[str, Answer]], pass_s: float) -> dict[str, Any]:
    """Medians over the rounds, and the ratio to vanilla's answers; `pass_s`: a vanilla pass alone, timed between."""
    answers, of_vanilla = ([pair[one] for pair in pairs] for one in (label, BASELINE))
    seconds = [answer.decode_s for answer in answers]
    if not all(seconds):
        raise UserError(f"{label} gives its answer all at once, so that its decoding cannot be timed: leave it out")
    tokens = _decoded(answers[0])
    rows = [
        [_decoded(own), own.decode_s, _decoded(base), base.decode_s]
        for own, base in zip(answers, of_vanilla, strict=True)
    ]
    ratio = stats.estimates([np.array(rows)])["geometric"]
    found: dict[str, Any] = {
        "tok_per_s": [tokens / s for s in seconds],
        "over_vanilla": ratio.value,
        "prefill_ms": _median_ms([answer.prefill_s for answer in answers]),
    }
    if label != BASELINE:
        found["vanilla_tok_per_s"] = [_decoded(base) / base.decode_s for base in of_vanilla]
        found["interval"] = ratio.bounds
    if isinstance(method, Peer) and method.notes:
        found["notes"] = method.notes
    if steps := answers[0].steps:
        step_s = statistics.median(seconds) / len(steps)
        found |= {"step_ms": step_s * 1e3, "tokens_per_step": tokens / len(steps)}
        passes = _passes_of(method, steps)
        found["outside_passes"] = None if passes is None else 1 - passes * pass_s / step_s
    return found


def _decoded(answer: Answer) -> int:
    return len(answer.token_ids) - answer.first_tokens


def _passes_of(method: Method, steps: Sequence[Step]) -> float | None:
    """What the passes of a mean step cost by themselves, in vanilla passes; None where that is not known."""
    if not isinstance(method, SpeculativeMethod):
        return None
    if any(step.drafted for step in steps) and not method.draft_calls():
        return None
    costs = method.costs
    draft = method.draft_cost(costs)
    found = statistics.fmean(
        costs.shallow * (step.depth + 1) + draft * step.calls + costs.verifying(step.drafted + step.scouts + 1)
        for step in steps
    )
    return found if math.isfinite(found) else None


def _conclude(found: dict[str, Any], target: Decoder) -> None:
    """What follows from the parts, and what to know of the draft models that were timed."""
    forms = {name: dataclasses.asdict(own) for name, own in published().items() if name in found["drafters"]}
    found["published"] = {name: {k: v for k, v in form.items() if k != "call"} for name, form in forms.items()}
    answers = found["answers"]
    vanilla = answers[BASELINE]
    step_s = vanilla["step_ms"] / 1e3
    read = target.weight_bytes
    found["vanilla"] = {
        "tok_per_s": statistics.median(vanilla["tok_per_s"]),
        "weight_bytes": read,
        "gb_s": read / step_s / 1e9,
        "share_of_read_bandwidth": read / step_s / 1e9 / found["memory"]["read_gb_s"],
        "share_of_copy_bandwidth": read / step_s / 1e9 / found["memory"]["copy_gb_s"],
    }
    found["operations"] = limits.operations(target)
    found["shares"] = {kind: limits.shares(found, kind) for kind in ("passes", "products")}


def _ms(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    return [_median_ms(own) for own in interleaved(calls, repeats, device)]


def _median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3
