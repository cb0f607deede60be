"""The section of a report about decoding in batches."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures.summary import BatchCell, Summary
from bench.report import tables
from bench.report.formats import UNDEFINED, lossless_text, number, shown_name, times, times_between
from bench.report.formats import share as share_text
from bench.report.model import Code, Part, Section, Table, table

ABOUT = (
    "The same questions, so many at once. Each sequence goes at its own pace; a slot that falls free takes the next "
    "question. Throughput, speedup and times per token are of *full* waves (steps in which every slot is taken), "
    "without prefills. Speedup is throughput over vanilla's at the same batch size; in brackets the 95% bootstrap "
    "interval, clustered by blocks of questions (four at least). Time per token: of a sequence, a step's time over "
    "the tokens that the step adds. Output is held against vanilla's of the questions one by one."
)
CROSSOVER = (
    "The crossover is the batch size at which a method's throughput falls to vanilla's, interpolated between sizes "
    "that ran. Beyond it, drafts cost more than they gain. It is predicted from costs measured before the batches and "
    "from the steps that they took."
)


def section(summary: Summary) -> Section:
    """Throughput, times per token and acceptance by batch size; where methods cross vanilla."""
    if not summary.batches:
        return Section("Batches")
    sampled = summary.sampling is not None
    parts: list[Part] = [ABOUT, _throughput(summary), CROSSOVER, _crossovers(summary)]
    details = [
        _method(shown_name(name, summary.methods[name]), cells, sampled) for name, cells in summary.batches.items()
    ]
    folded = Section("Batches by method", details, folded=True)
    return Section("Batches", [*parts, *_failures(summary), folded], "Batches")


def _sizes(summary: Summary) -> list[int]:
    return sorted({cell.batch for cells in summary.batches.values() for cell in cells})


def _throughput(summary: Summary) -> Table:
    """A row a method, a column a batch size: vanilla's tokens/s, the others' speedup."""
    sizes, rows = _sizes(summary), []
    for name in tables.in_order(summary, "vanilla", "method"):
        by_size = {cell.batch: cell for cell in summary.batches.get(name, ())}
        if not by_size:
            continue
        vanilla = summary.methods[name].kind == "vanilla"
        shown = [_shown(by_size.get(size), vanilla=vanilla) for size in sizes]
        rows.append([shown_name(name, summary.methods[name]), *shown])
    return table(["throughput", *(f"batch {size}" for size in sizes)], rows, caption="Throughput by batch size")


def _shown(cell: BatchCell | None, *, vanilla: bool) -> str:
    if cell is None:
        return UNDEFINED
    return f"{number(cell.tok_per_s, 1)} tok/s" if vanilla else times_between(cell.speedup)


def _crossovers(summary: Summary) -> Table:
    """Where each method crosses vanilla."""
    rows = []
    for name, found in summary.crossovers.items():
        cells = summary.batches[name]
        measured = _crossover(found.measured, [(cell.batch, cell.speedup.value) for cell in cells])
        predicted = _crossover(found.predicted, [(cell.batch, cell.predicted) for cell in cells])
        rows.append([shown_name(name, summary.methods[name]), measured, predicted])
    caption = "Batch size at which throughput falls to vanilla's"
    return table(["method", "crossover", "predicted"], rows, caption=caption)


def _crossover(found: float | None, curve: Sequence[tuple[int, float | None]]) -> str:
    known = [(batch, value) for batch, value in curve if value is not None]
    if not known:
        return UNDEFINED
    text = number(found, 1) if found is not None else f"above {known[-1][0]}"
    return below_from_the_start(known) or text


def below_from_the_start(curve: Sequence[tuple[int, float]]) -> str:
    """What to say of a curve whose first speedup is below 1, as the others may be; of another curve nothing."""
    if not curve or curve[0][1] >= 1:
        return ""
    stays = len(curve) > 1 and all(value < 1 for _, value in curve)
    return f"below 1 from batch {curve[0][0]} on" if stays else f"below 1 at batch {curve[0][0]}"


def _method(name: str, cells: Sequence[BatchCell], sampled: bool) -> Table:
    """A method's figures, a row a batch size."""
    header = ["batch", "throughput", "each sequence", "speedup", "ms per token: mean", "p50", "p99"]
    header += ["predicted", "CR", "accepted", "full waves", "with the drain", "prefill", "output"]
    rows = [
        [
            str(cell.batch),
            f"{number(cell.tok_per_s, 1)} tok/s",
            f"{number(cell.tok_per_s_each, 1)} tok/s",
            times_between(cell.speedup),
            number(cell.ms_per_token, 1),
            number(cell.ms_per_token_p50, 1),
            number(cell.ms_per_token_p99, 1),
            times(cell.predicted),
            number(cell.compression_rate),
            share_text(cell.accepted),
            share_text(cell.full_share),
            f"{number(cell.tok_per_s_whole, 1)} tok/s",
            UNDEFINED if cell.ttft_s is None else f"{1000 * cell.ttft_s:.0f} ms",
            lossless_text(cell.lossless, sampled=sampled),
        ]
        for cell in cells
    ]
    return table(header, rows, caption=name)


def _failures(summary: Summary) -> list[Table]:
    rows = [
        [shown_name(name, summary.methods[name]), str(cell.batch), str(cell.failed), Code(cell.error)]
        for name, cells in summary.batches.items()
        for cell in cells
        if cell.failed
    ]
    header = ["method", "batch", "blocks that failed", "first error"]
    return [table(header, rows, caption="Blocks of questions that failed in batches")] if rows else []
