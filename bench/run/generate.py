"""One prompt answered by vanilla and a method side by side, streamed into the terminal.

Both decode on one target, one step at a time. The side whose own clock is behind goes next: the screen shows the race
as it would be run, and the rate of each side comes from its own steps alone. EOS and the limit are applied as
`bench.drafting.loop.decode` applies them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

import methods
from bench.config import RunConfig
from bench.drafting.loop import decode, decoding
from bench.drafting.method import Answer, SpeculativeMethod
from bench.drafting.sampling import Sampler
from bench.drafting.sequence import Step
from bench.errors import UserError
from bench.figures.race import Piece, Race, RaceSide
from bench.models.loading import Compute, find, load, memory_errors
from bench.progress import Log
from bench.run.contestants import sampler_of
from bench.run.cores import on_free_cores
from bench.text import visible

WIDE = 72  # columns from which two answers fit next to each other
ACCEPTED, BONUS, REJECTED = "bold green", "", "dim red strike"
_WARM_UP_TOKENS = 6
_WARM_UP_PROMPT = 64  # tokens of the prompt's end that the warm-up reads
_SPARE_POSITIONS = 64  # beyond the answer, for a tree's drafts


class Detokenizer:
    """Token ids -> text, piece by piece. The first bytes of a character are held back until the others arrive."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # what came out last, then what is held back
        self._out = 0  # how many of them are out
        self._shown = 0  # characters of their text

    def push(self, token: int) -> str:
        """Return the text that `token` completes; may be empty."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith("\ufffd"):
            return ""
        piece = text[self._shown :]
        # Some tokens stay, because a word may begin with a space depending on what precedes it. Whole characters stay,
        # because a decoder that falls back to bytes gives up a run of bytes if one of its characters is cut.
        self._ids = self._ids[self._out :]
        self._out, self._shown = len(self._ids), len(self._decode())
        return piece

    def rest(self) -> str:
        """Return what is still held back when no token follows."""
        return self._decode()[self._shown :]

    def alone(self, token: int) -> str:
        """Return the text of `token` at this place, without keeping it."""
        text: str = self._tokenizer.decode([*self._ids, token], skip_special_tokens=True)
        return text[self._shown :]

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text


@dataclass
class Side:
    """One method while it answers."""

    label: str
    method: SpeculativeMethod
    limit: int
    eos: frozenset[int]
    detokenizer: Detokenizer
    sampler: Sampler | None = None
    said: Answer = field(default_factory=lambda: Answer([], 0.0, 0.0))  # so far
    text: list[tuple[str, str]] = field(default_factory=list)  # (piece, style), rejected drafts included
    pieces: list[Piece] = field(default_factory=list)  # one per token
    done: bool = False

    @property
    def token_ids(self) -> list[int]:
        """The answer's tokens so far."""
        return self.said.token_ids

    @property
    def steps(self) -> list[Step]:
        """The steps so far, cut off at EOS."""
        return self.said.steps

    @property
    def wall_s(self) -> float:
        """Seconds on this side's own clock."""
        return self.said.prefill_s + self.said.decode_s

    @property
    def tok_per_s(self) -> float | None:
        """Decode rate; the first token belongs to the prefill."""
        return (len(self.token_ids) - 1) / self.said.decode_s if self.said.decode_s else None

    @property
    def compression_rate(self) -> float | None:
        """CR: tokens per step; None without steps."""
        return (len(self.token_ids) - 1) / len(self.steps) if self.steps else None

    @property
    def answer(self) -> str:
        """The text so far, without rejected drafts."""
        return "".join(piece for piece, style in self.text if style != REJECTED)

    def begin(self, prompt: Sequence[int]) -> None:
        """Read the prompt and take the first token."""
        self._going = decoding(self.method, prompt, self.limit, self.eos, self.sampler, pause_after=1)
        self.said = next(self._going)
        self._take(self.token_ids[0], BONUS)
        self._end()

    def advance(self) -> None:
        """Take one step and the text of its tokens."""
        next(self._going)
        step = self.steps[-1]
        for number, token in enumerate(step.emitted):
            if number == len(step.emitted) - 1:
                self.text += [(self.detokenizer.alone(other), REJECTED) for other in step.rejected]
            self._take(token, ACCEPTED if number < step.accepted else BONUS)
        self._end()

    def _take(self, token: int, style: str) -> None:
        piece = self.detokenizer.push(token)
        self.text.append((piece, style))
        self.pieces.append(Piece(self.wall_s, piece, style == ACCEPTED))

    def _end(self) -> None:
        """After the last token, take the text that was held back."""
        self.done = len(self.token_ids) >= self.limit or self.token_ids[-1] in self.eos
        if self.done:
            rest, last = self.detokenizer.rest(), self.pieces[-1]
            self.text.append((rest, self.text[-1][1]))
            self.pieces[-1] = replace(last, text=last.text + rest)


@dataclass
class Generation:
    """Vanilla and a method, ready to answer one prompt."""

    config: RunConfig
    model: str
    prompt: list[int]
    sides: list[Side]  # vanilla first
    question: str = ""  # the prompt's text

    def run(self, on_step: Callable[[], None] = lambda: None) -> None:
        """Answer to the end; `on_step` is called whenever a side has new text."""
        for side in self.sides:
            limit = min(_WARM_UP_TOKENS, side.limit)
            decode(side.method, self.prompt[-_WARM_UP_PROMPT:], limit, frozenset(), side.sampler)
        if (graphs := self.sides[0].method.target.graphs) is not None:
            graphs.close()
        for side in self.sides:
            if side.sampler is not None:
                side.sampler.seed(f"{self.config.seed}")
            side.begin(self.prompt)
            on_step()
        while going := [side for side in self.sides if not side.done]:
            min(going, key=lambda side: side.said.decode_s).advance()
            on_step()

    @property
    def identical(self) -> bool | None:
        """Whether the token ids are the same; None for samples, which differ from one method to the next."""
        vanilla, method = self.sides
        return None if self.config.temperature else vanilla.token_ids == method.token_ids

    @property
    def speedup(self) -> float | None:
        """Decode speedup over vanilla; None for an answer of one token."""
        vanilla, method = (side.tok_per_s for side in self.sides)
        return method / vanilla if method and vanilla else None

    @property
    def race(self) -> Race:
        """What happened when, for a recording."""
        target = self.sides[0].method.target
        sides = [RaceSide(side.label, side.pieces, len(side.token_ids), side.wall_s) for side in self.sides]
        return Race(self.question, self.model, str(target.device), target.precision, sides)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        target = self.sides[0].method.target
        sampled = ("temperature", "top_p", "top_k", "seed")
        return {
            "model": self.model,
            "device": str(target.device),
            "dtype": target.precision,
            "sampling": {key: getattr(self.config, key) for key in sampled} if self.config.temperature else None,
            "prompt_tokens": len(self.prompt),
            "sides": {side.label: _side_json(side) for side in self.sides},
            "speedup_decode": self.speedup,
            "identical": self.identical,
        }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "text": side.answer,
        "token_ids": side.token_ids,
        "finish": side.said.finish(side.eos),
        "prefill_s": side.said.prefill_s,
        "decode_s": side.said.decode_s,
        "tok_per_s": side.tok_per_s,
        "compression_rate": side.compression_rate,
        "per_step_drafted": [step.drafted for step in side.steps],
        "per_step_accepted": [step.accepted for step in side.steps],
        "per_step_emitted": [len(step.emitted) for step in side.steps],
    }


def prepare(config: RunConfig, text: str, log: Log) -> Generation:
    """Load the model and get both sides ready; `config.method` names one method.

    Raises:
        UserError: unknown method or model, a peer, or a prompt that fills the context.

    """
    (label,) = config.method
    variant = methods.parse_drafting(label, "generate")
    model = find(config.model, config.revision, log)
    variant.method.check_weights(variant.config, model)
    prompt, context = model.chat.prompt([], text), model.context
    limit = min(config.max_new_tokens, context - len(prompt))
    if limit < 1:
        raise UserError(f"the prompt's {len(prompt)} tokens leave no room in the context of {context}: shorten it")
    if limit < config.max_new_tokens:
        log(f"the context of {context} tokens leaves room for {limit} new tokens")
    config, warnings = on_free_cores(config)
    for warning in warnings:
        log(f"WARNING: {warning}")
    log(f"loading {model.checkpoint.name}")
    target = load(model, Compute.of(config), min(context, len(prompt) + limit + _SPARE_POSITIONS), log).target
    sides = []
    for one in (methods.parse(methods.BASELINE), variant):
        with memory_errors(f"method {one.label}"):
            method = one.method(target, one.config)
        assert isinstance(method, SpeculativeMethod)
        sampler = sampler_of(config, config.temperature)
        sides.append(Side(one.label, method, limit, model.eos, Detokenizer(model.chat.tokenizer), sampler))
    return Generation(config, model.checkpoint.name, prompt, sides, text)


def show(generation: Generation, console: Console, *, rejected: bool = False) -> None:
    """Answer and stream: both sides at once on a terminal, one after the other into files and pipes."""
    live = console.is_terminal and not console.is_dumb_terminal
    # Where nothing can be struck through, a rejected draft would look like a part of the answer.
    rejected = rejected and live
    if live:
        _show_live(generation, console, rejected)
    else:
        _show_plain(generation, console)
    if console.is_terminal:
        console.print(_legend(rejected))
    for line in closing_lines(generation):
        console.print(Text(line), soft_wrap=not console.is_terminal)


def print_json(generation: Generation) -> None:
    """Answer, then print one JSON object to standard output."""
    generation.run()
    # JSON leaves some control characters as they are unless it is ASCII.
    print(json.dumps(generation.as_json(), ensure_ascii=sys.stdout.isatty(), allow_nan=False))


def _show_live(generation: Generation, console: Console, rejected: bool) -> None:
    try:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            generation.run(lambda: live.update(_panels(generation, console, rejected, whole=False), refresh=True))
    finally:  # also what was said before an interruption
        console.print(_panels(generation, console, rejected, whole=True))


def _panels(generation: Generation, console: Console, rejected: bool, *, whole: bool) -> Columns | Group:
    """Both answers, next to each other if the terminal is wide enough; not `whole`: the last lines that fit."""
    beside = console.width >= WIDE
    width = console.width // 2 if beside else console.width
    height = max(1, console.height - 3 if beside else (console.height - 1) // 2 - 2)
    panels = []
    for side in generation.sides:
        lines = styled(side, rejected).wrap(console, width - 4)
        body = Text("\n").join(lines if whole else lines[-height:])
        title = Text(visible(f"{side.label}  {_rate(side)}"))
        panels.append(Panel(body, title=title, title_align="left", width=width, height=None if whole else height + 2))
    return Columns(panels, padding=0, expand=False) if beside else Group(*panels)


def _show_plain(generation: Generation, console: Console) -> None:
    """Vanilla's answer, streamed unless it has to be broken into lines; then the method's."""
    vanilla, method = generation.sides
    shown = 0

    def stream() -> None:
        nonlocal shown
        for piece, style in vanilla.text[shown:]:
            if style != REJECTED:
                console.print(Text(visible(piece)), end="", soft_wrap=True)
        shown = len(vanilla.text)

    console.print(Text(f"--- {vanilla.label}"), soft_wrap=True)
    if console.is_terminal:
        generation.run()
        console.print(styled(vanilla))
        console.print()
    else:
        generation.run(stream)
        console.print("\n")
    answer = Group(Text(visible(f"--- {method.label}")), styled(method), Text(""))
    console.print(answer, soft_wrap=not console.is_terminal)


def styled(side: Side, rejected: bool = False) -> Text:
    """Return the text so far in its colors."""
    parts = [(visible(piece), style) for piece, style in side.text if rejected or style != REJECTED]
    return Text.assemble(*parts)


def closing_lines(generation: Generation) -> list[str]:
    """Return one line per side: tokens, rate, steps, CR; the method's also has the speedup and the comparison."""
    said = {True: "identical to vanilla's", False: "NOT vanilla's", None: "sampled: not compared"}
    lines = []
    for side in generation.sides:
        rate = f"CR {side.compression_rate:.2f}" if side.compression_rate is not None else "CR -"
        tokens, steps = _count(len(side.token_ids), "token"), _count(len(side.steps), "step")
        lines.append(visible(f"{side.label}: {tokens}, {_rate(side)}, {steps}, {rate}"))
    speedup = f"{generation.speedup:.2f}x" if generation.speedup is not None else "-"
    lines[-1] += f", speedup {speedup}, output {said[generation.identical]}{_divergence(generation)}"
    return lines


def _divergence(generation: Generation) -> str:
    vanilla, method = (side.token_ids for side in generation.sides)
    if generation.identical is not False:
        return ""
    shared = next((i for i, (a, b) in enumerate(zip(vanilla, method, strict=False)) if a != b), None)
    place = min(len(vanilla), len(method)) if shared is None else shared
    return f" from token {place + 1} on (a run audits whether that was a tie)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rate(side: Side) -> str:
    return f"{side.tok_per_s:.1f} tok/s" if side.tok_per_s is not None else "- tok/s"


def _legend(rejected: bool) -> Text:
    legend = Text.assemble(("accepted draft", ACCEPTED), "  the target's own token")
    return legend.append("  ").append("rejected draft", REJECTED) if rejected else legend
