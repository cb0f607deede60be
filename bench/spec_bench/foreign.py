"""Figures of answer files of other harnesses, in the shape of `summary.json`: Spec-Bench's own. No torch.

Source: `evaluation/speed.py` and `equal.py` of Spec-Bench (Xia et al., arXiv 2401.07851). Where both files hold the
same questions, none of which failed, `speedup_total_mean_rates`, `mean_accepted_tokens` and the tokens/s equal what
`speed.py` prints; `limits()` says where they do not, and what such files cannot tell at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean

from bench.errors import UserError
from bench.figures import metrics
from bench.figures.machine import Machine
from bench.figures.notable import Failure, Where
from bench.figures.summary import OVERALL, Answered, Cell, Dataset, Entry, Estimate, Summary
from bench.spec_bench.exchange import ForeignAnswer, mean_accepted, read_answers

FAILED_TEXT = "ERROR"  # Spec-Bench's answer of a turn that raised; its time and counts are the turn's before

Pair = tuple[ForeignAnswer, ForeignAnswer]  # the method's answer, then the baseline's
Count = Callable[[ForeignAnswer], int]  # tokens of an answer


@dataclass(slots=True, kw_only=True)
class ForeignCell(Cell):
    """A cell with what `speed.py` prints; what the files do not tell is None."""

    text_equal: dict[str, int]  # questions: equal, different
    mean_accepted_tokens: float | None  # overall: pooled
    tok_per_s_total: float  # means of the questions' rates
    tok_per_s_total_vanilla: float


@dataclass(slots=True, kw_only=True)
class ForeignSummary(Summary):
    """A summary of answer files."""

    limits: list[str]
    baseline_tokens: str  # "new_tokens" | "retokenized"
    unpaired_questions: dict[str, list[int]]
    unequal_texts: list[Where]
    text_equal: dict[str, dict[str, int]]  # by method, over all tasks


def limits(*, retokenized: bool = False) -> list[str]:
    """The limits of figures from answer files of other harnesses."""
    counted = (
        "The baseline's tokens are those of its stripped text, retokenised, as Spec-Bench's speed.py counts them; "
        "the method's are the file's new_tokens, which may include EOS and tokens that the text no longer shows."
        if retokenized
        else "Tokens are the files' new_tokens on both sides; Spec-Bench's speed.py tokenises the baseline's stripped "
        "text instead, which misses EOS and stripped characters and favours the method slightly."
    )
    return [
        "Speedups are end-to-end: the files do not tell prefill from decoding.",
        counted,
        "The files may come from different machines, days, engines or models: nothing in them shows it.",
        "Losslessness cannot be checked: the files hold no token ids; text_equal compares texts as equal.py does.",
        "CR is the mean of accept_lengths, which count the prefill's token in some harnesses and not in others; "
        "where a file has idxs instead, it is new_tokens over passes.",
        "How much was drafted and how long it took is not recorded.",
        f"Questions with a turn {FAILED_TEXT!r} are left out on both sides, and so are those that only one file holds; "
        "speed.py keeps them.",
        "There are no intervals: a file holds one answer a question.",
    ]


def foreign_summary(
    baseline_path: Path, method_paths: Sequence[Path], retokenize: Callable[[str], int] | None = None
) -> ForeignSummary:
    """Answer files of a baseline and of methods -> a summary as `figures.metrics` makes of a run, the unknown None.

    Each method is compared on the questions that its file shares with the baseline's; methods are named after their
    files. `retokenize`: tokens of a text without special ones; the baseline is then counted by its text, as `speed.py`
    does with `len(tokenizer(text).input_ids) - 1`.

    Raises:
        UserError: a malformed file, two of one name, or no question in common with the baseline.

    """
    files = _named([baseline_path, *method_paths])
    vanilla, baseline = next(iter(files.items()))
    failed = [fault for name, answers in files.items() for fault in _failures(name, answers.values())]
    excluded = {fault.question_id for fault in failed}
    paired = {name: _pairs(answers, baseline, excluded, name, vanilla) for name, answers in files.items()}

    def of_text(answer: ForeignAnswer) -> int:
        assert retokenize is not None
        return sum(map(retokenize, answer.texts))

    count: Count = _new_tokens if retokenize is None else of_text
    cells = {name: _by_task(pairs, count if name == vanilla else _new_tokens, count) for name, pairs in paired.items()}
    return ForeignSummary(
        run_id=f"{vanilla} and others",
        model=next(iter(baseline.values())).model_id,
        dataset=Dataset("unknown", None, len(baseline)),
        device=Machine(name="unknown device"),
        dtype="unknown dtype",
        excluded_questions=sorted(excluded),
        failed=failed,
        limits=limits(retokenized=retokenize is not None),
        baseline_tokens="new_tokens" if retokenize is None else "retokenized",
        unpaired_questions={name: sorted(answers.keys() ^ baseline.keys()) for name, answers in files.items()},
        unequal_texts=[Where(*_where(name, a, turn)) for name in paired for a, turn in _unequal(paired[name])],
        text_equal={name: tasks[OVERALL].text_equal for name, tasks in cells.items()},
        methods={
            name: Entry(
                "vanilla" if name == vanilla else "method",
                True,  # lossless, taken on trust, so that tables say "not checked" and not "not lossless"
                0,
                {},
                Answered(len(paired[name]), len(paired[name])),
                dict(tasks),
            )
            for name, tasks in cells.items()
        },
    )


def _named(paths: Sequence[Path]) -> dict[str, dict[int, ForeignAnswer]]:
    """The files' answers by the files' names, or by folder and name where names repeat (`run_1/vanilla`)."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}" for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two answer files are called {name}: rename one of them")
    return {name: read_answers(path) for name, path in zip(names, paths, strict=True)}


def _failures(name: str, answers: Iterable[ForeignAnswer]) -> list[Failure]:
    return [
        Failure(*_where(name, answer, turn), f"the file says {FAILED_TEXT}")
        for answer in answers
        for turn, text in enumerate(answer.texts)
        if text == FAILED_TEXT
    ]


def _where(name: str, answer: ForeignAnswer, turn: int) -> tuple[int, str, str, int, int]:
    return answer.question_id, answer.task, name, turn, 0


def _pairs(
    answers: dict[int, ForeignAnswer], baseline: dict[int, ForeignAnswer], excluded: set[int], name: str, vanilla: str
) -> list[Pair]:
    pairs = [(answers[i], baseline[i]) for i in answers if i in baseline and i not in excluded]
    if not pairs:
        raise UserError(f"{name} and {vanilla} share no question that both answered: give files of one question set")
    return pairs


def _unequal(pairs: Iterable[Pair]) -> list[tuple[ForeignAnswer, int]]:
    """Answers whose text is not the baseline's, with the first turn where it differs."""
    return [
        (answer, next(i for i, (a, b) in enumerate(itertools.zip_longest(answer.texts, base.texts)) if a != b))
        for answer, base in pairs
        if answer.texts != base.texts
    ]


def _by_task(pairs: list[Pair], count: Count, count_baseline: Count) -> dict[str, ForeignCell]:
    tasks = metrics.ordered_tasks(answer.task for answer, _ in pairs)
    lengths = [length for answer, _ in pairs for length in answer.accept_lengths]
    windows = max(lengths, default=1) - 1
    cells = {
        task: _cell([pair for pair in pairs if pair[0].task == task], windows, count, count_baseline) for task in tasks
    }
    overall = _cell(pairs, windows, count, count_baseline)  # pooled, as in Spec-Bench's script
    overall.speedup_total = Estimate(_mean([cell.speedup_total.value for cell in cells.values()]))
    overall.speedup_total_geometric = Estimate(_mean([cell.speedup_total_geometric.value for cell in cells.values()]))
    overall.compression_rate = _mean([cell.compression_rate for cell in cells.values()])
    columns = [cell.ctar for cell in cells.values() if cell.ctar is not None]
    overall.ctar = [_mean(column) for column in zip(*columns, strict=True)] if columns else None
    return {**cells, OVERALL: overall}


def _cell(pairs: list[Pair], windows: int, count: Count, count_baseline: Count) -> ForeignCell:
    """One method on one task, as `speed.py` figures it; what it does not figure, as `bench.figures.metrics` does."""
    answers, baseline = [answer for answer, _ in pairs], [base for _, base in pairs]
    rates = [count(answer) / sum(answer.wall_s) for answer in answers]
    rates_baseline = [count_baseline(base) / sum(base.wall_s) for base in baseline]
    lengths = [length for answer in answers for length in answer.accept_lengths]
    equal = sum(answer.texts == base.texts for answer, base in pairs)
    accepted, passes = mean_accepted(answers)
    return ForeignCell(
        questions=len(pairs),
        turns=sum(len(answer.texts) for answer in answers),
        generated_tokens=sum(map(_new_tokens, answers)),
        steps=passes or None,
        speedup_total=Estimate(_ratio(_pooled(answers, count), _pooled(baseline, count_baseline))),
        speedup_total_mean_rates=Estimate(_ratio(fmean(rates), fmean(rates_baseline))),
        speedup_total_geometric=Estimate(_geometric(rates, rates_baseline)),
        tok_per_s_total=fmean(rates),
        tok_per_s_total_vanilla=fmean(rates_baseline),
        compression_rate=accepted,
        mean_accepted_tokens=accepted,
        ctar=[fmean(length > w for length in lengths) for w in range(1, windows + 1)] if lengths else None,
        emitted_histogram=[lengths.count(n) for n in range(1, windows + 2)] if lengths else None,
        text_equal={"equal": equal, "different": len(pairs) - equal},
        lossless=dict.fromkeys(metrics.VERDICTS, 0),  # nothing was audited
    )


def _new_tokens(answer: ForeignAnswer) -> int:
    return sum(answer.new_tokens)


def _pooled(answers: Iterable[ForeignAnswer], count: Count) -> float:
    answers = list(answers)
    return sum(map(count, answers)) / math.fsum(second for answer in answers for second in answer.wall_s)


def _geometric(rates: Sequence[float], rates_baseline: Sequence[float]) -> float | None:
    """Undefined where an answer has no tokens."""
    if not all(rates) or not all(rates_baseline):
        return None
    return geometric_mean(rate / base for rate, base in zip(rates, rates_baseline, strict=True))


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
