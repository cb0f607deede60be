"""The columns that the terminal's tables and the page's share, each with what it shows of a task or method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.figures.metrics import OVERALL
from bench.report.formats import (
    UNDEFINED,
    count,
    identical_text,
    number,
    overall,
    percent,
    shortened,
    task_name,
    times,
    times_between,
    window_list,
)

_TASK_CHARS = 24  # of a task's name in the terminal's overview; all of Spec-Bench's fit


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures: its heading, what it belongs to, and what it shows of a task (in an overview: a method)."""

    title: str
    show: Callable[[Any], str]
    group: str = ""  # neighbours of one group share a heading in the terminal
    left: bool = False
    full: str = ""  # the heading where there is room; else group and title


def method_columns(windows: int | None, verdict: Callable[[dict[str, int] | None], str]) -> list[Column]:
    """A method's main figures by task."""
    many = "w = 1" if windows == 1 else f"w = 1..{windows}"
    return [
        Column("turns", lambda cell: f"{cell['turns']}"),
        Column("decode", lambda cell: times_between(cell["speedup_decode"]), "speedup"),
        Column("total", lambda cell: times_between(cell["speedup_total"]), "speedup", full="speedup end-to-end"),
        Column("method", lambda cell: number(cell["tok_per_s"], 1), "tok/s", full="tok/s"),
        Column("vanilla", lambda cell: number(cell["tok_per_s_vanilla"], 1), "tok/s", full="vanilla tok/s"),
        Column("CR", lambda cell: number(cell["compression_rate"])),
        Column(many, lambda cell: window_list(cell["ctar"], windows), "CTAR", left=True, full="CTAR(1..)"),
        Column("share", lambda cell: number(cell["draft_token_share"]), "draft"),
        Column("identical", lambda cell: verdict(cell["lossless"]), "output", full="lossless"),
    ]


def peer_columns(verdict: Callable[[dict[str, int] | None], str]) -> list[Column]:
    """What vanilla is worth in units of a peer, by task."""
    decode, total = (lambda cell, key=key: times_between(cell.get(key)) for key in ("worth_decode", "worth_total"))
    return [
        Column("turns", lambda cell: f"{cell['turns']}"),
        Column("decode", decode, "vanilla is", full="vanilla is, decode"),
        Column("total", total, "vanilla is", full="vanilla is, end-to-end"),
        Column("peer", lambda cell: number(cell["tok_per_s"], 1), "tok/s", full="peer tok/s"),
        Column("vanilla", lambda cell: number(cell["tok_per_s_vanilla"], 1), "tok/s", full="vanilla tok/s"),
        Column("identical", lambda cell: verdict(cell["lossless"]), "output", full="lossless"),
    ]


def vanilla_columns() -> list[Column]:
    """Vanilla's own rates by task."""
    return [
        Column("turns", lambda cell: f"{cell['turns']}"),
        Column("tokens", lambda cell: f"{cell['generated_tokens']:,}"),
        Column("tok/s", lambda cell: number(cell["tok_per_s"], 1), "decode"),
        Column("seconds", lambda cell: number(cell["ttft_s"], 3), "prefill", full="prefill, s"),
        Column("repetition", lambda cell: number(cell["repetition"])),
        Column("by EOS", lambda cell: number(cell["eos_share"]), "ended", full="ended by EOS"),
    ]


def overall_columns() -> list[Column]:
    """Of a method or peer over all tasks, for the page."""
    return [
        Column("extra parameters", lambda entry: count(entry["extra_parameters"])),
        Column("speedup decode", lambda entry: times_between(overall(entry)["speedup_decode"])),
        Column("speedup end-to-end", lambda entry: times_between(overall(entry)["speedup_total"])),
        Column("CR", lambda entry: number(overall(entry)["compression_rate"])),
        Column("draft share", lambda entry: number(overall(entry)["draft_token_share"])),
        Column("time drafting", lambda entry: number(overall(entry)["draft_time_share"])),
        Column("output identical", lambda entry: identical_text(overall(entry)["lossless"])),
    ]


def overview_columns() -> list[Column]:
    """Of a method over all tasks, for the terminal."""
    return [
        Column("decode", lambda entry: times_between(overall(entry)["speedup_decode"]), "speedup"),
        Column("total", lambda entry: times(overall(entry)["speedup_total"]["value"]), "speedup"),
        Column("CR", lambda entry: number(overall(entry)["compression_rate"])),
        Column("parameters", lambda entry: count(entry["extra_parameters"]), "extra"),
        Column("task", _slowest, "slowest", left=True),
        Column("identical", lambda entry: identical_text(overall(entry)["lossless"]), "output"),
    ]


def time_columns() -> list[Column]:
    """Where a step's time goes over all tasks, in vanilla steps, and what was predicted of it."""

    def part(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda entry: number((overall(entry).get("step_time") or {}).get(name))

    def predicted(name: str) -> Callable[[dict[str, Any]], float | None]:
        return lambda entry: (overall(entry).get("predicted") or {}).get(name)

    step = "time of a step"
    return [
        Column("draft", part("draft"), step, full="draft"),
        Column("verify", part("verify"), step, full="verify"),
        Column("rest", part("rest"), step, full="rest"),
        Column("total", part("total"), step, full="total"),
        Column("predicted", lambda entry: number(predicted("step_cost")(entry)), step, full="total, predicted"),
        Column("CR", lambda entry: number(overall(entry)["compression_rate"])),
        Column("measured", lambda entry: times(overall(entry)["speedup_decode"]["value"]), "decode speedup"),
        Column("predicted", lambda entry: times(predicted("speedup")(entry)), "decode speedup"),
        Column("error", lambda entry: percent(overall(entry).get("prediction_error")), full="prediction's error"),
    ]


def _slowest(entry: dict[str, Any]) -> str:
    """The task that the method helps least, like `RAG 0.45x`."""
    speedups = {task: cell["speedup_decode"]["value"] for task, cell in entry["tasks"].items() if task != OVERALL}
    defined = {task: value for task, value in speedups.items() if value is not None}
    if not defined:
        return UNDEFINED
    task = min(defined, key=lambda task: defined[task])
    return f"{shortened(task_name(task), _TASK_CHARS)} {times(defined[task])}"
