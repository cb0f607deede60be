"""A run's figures: from its records to the content of `summary.json`. Pure: no files, no torch.

Source: the paper of each metric as in the docstrings; Spec-Bench is Xia et al., arXiv 2401.07851; CR and CTAR are
Liu et al.'s, arXiv 2404.18911. Words have one meaning everywhere:

- A *pair* is a method's turn and vanilla's for the same question, turn and round. Everything said of a method
  is said of its pairs, so both sides always answered the same prompts. A peer may have run on fewer questions.
- A question that failed anywhere (any method, turn or round) is left out of both sides of every method.
- Every round counts: in the times, in the counters (which repeat), and as turns of its own.
- An undefined figure is None, never NaN and never 0.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.errors import UserError
from bench.figures import breakdown, disturbed, hindsight, stats, workers
from bench.figures.axis import at_first, over_axis, sampling
from bench.figures.breakdown import decode_tok_per_s, finite, mean, ratio
from bench.figures.checks import own_baseline
from bench.figures.notable import Divergence, Failure
from bench.figures.records import MethodInfo, Run, Turn
from bench.figures.summary import (
    OVERALL,
    Answered,
    Beside,
    Cell,
    Dataset,
    Entry,
    Estimate,
    Predicted,
    Statistics,
    StepTime,
    Summary,
)
from bench.figures.sums import Pair, by_steady_steps, question_sums, speedups
from bench.questions import TASKS
from bench.typed_json import decode_value

VERDICTS = ("identical", "numerical", "different")
REPETITION_N = 8  # length of the n-grams whose repetition is counted

# Figures whose overall is the tasks' unweighted mean; the second kind a peer does not have.
_MEANS = ("tok_per_s", "tok_per_s_vanilla", "repetition", "ttft_s", "eos_share", "compression_rate")
_MEANS_OF_STEPS = ("draft_token_share", "draft_time_share")


def summarize(run: Run, turns: Sequence[Turn]) -> Summary:
    """Every figure of a run: the content of `summary.json`.

    Of a run with an axis they are those of its first value; `axis` has the others. Failures and divergences are listed
    for all.

    Raises:
        UserError: the run has no vanilla, so nothing can be compared.

    """
    return over_axis(run, turns, _at)


def _at(run: Run, turns: Sequence[Turn], value: float | None) -> Summary:
    """The figures of the turns at one value of the run's axis."""
    sampled = sampling(run, value)
    if sampled is not None or run.kinds:  # costs are of greedy decoding, and on one kind of machine
        run = dataclasses.replace(run, methods={n: dataclasses.replace(i, costs=None) for n, i in run.methods.items()})
    vanilla = vanilla_name(run)
    failed = [turn for turn in turns if turn.error is not None]
    dead = {name: error for name, error in _failed_throughout(run, turns).items() if name != vanilla}
    excluded = {turn.question_id for turn in failed if turn.method not in dead}
    kept = [turn for turn in turns if turn.question_id not in excluded and turn.method not in dead]
    paired = {name: pairs(kept, name, vanilla) for name in run.methods}
    asked = {turn.question_id for turn, _ in paired[vanilla]}
    return Summary(
        run_id=run.run_id,
        model=str(run.model.get("name")),
        dataset=Dataset(
            run.dataset.get("name"),
            run.dataset.get("sha256"),
            run.dataset.get("questions"),
            run.config.get("max_new_tokens"),
        ),
        device=run.machine,
        dtype=run.dtype,
        activations=run.engine.get("activations", ""),
        sampling=sampled,
        complete=run.complete,
        rounds=len({turn.round for turn in turns}),
        statistics=decode_value(Statistics, stats.STATISTICS | (workers.CLUSTER if workers.several(kept) else {})),
        excluded_questions=sorted(excluded),
        failed_methods=dead,
        failed=[Failure(*disturbed.where(turn), str(turn.error), at=turn.at) for turn in failed],
        divergences=[
            found
            for name in run.methods
            if not own_baseline(run, name)
            for turn, _ in paired[name]
            for found in _divergence(turn)
        ],
        busy_turns=disturbed.busy_turns(kept),
        outliers=disturbed.outliers(paired, vanilla),
        methods={
            name: Entry(
                info.kind,
                info.lossless,
                info.extra_parameters,
                info.notes,
                Answered(len({turn.question_id for turn, _ in paired[name]}), len(asked)),
                _by_task(paired[name], info, run.config.get("probe_windows") or 0),
                breakdown.members([turn for turn, _ in paired[name]], info),
                family=info.family,
            )
            for name, info in run.methods.items()
        },
        against=_against(run, paired),
        hindsight=hindsight.bounds({name: info.costs for name, info in run.methods.items()}, paired),
        beside=_beside(run, kept),
        workers=workers.figures(run, paired, vanilla),
        worker_differences=workers.differences(run, paired, vanilla),
    )


def pairs(turns: Iterable[Turn], method: str, vanilla: str) -> list[Pair]:
    """Each of the method's turns with vanilla's answer to the same question, turn and round.

    Turns without a partner (an interrupted run's last question, a peer's unasked ones) are left out.
    """
    sides: dict[str, dict[tuple[int, int, int], Turn]] = {method: {}, vanilla: {}}
    for turn in turns:
        if turn.method in sides:
            sides[turn.method][turn.question_id, turn.turn, turn.round] = turn
    return [(turn, sides[vanilla][key]) for key, turn in sides[method].items() if key in sides[vanilla]]


def compression_rate(turns: Sequence[Turn]) -> float | None:
    """CR = tokens after the prefill / steps, pooled (Liu et al.): Spec-Bench's "mean accepted tokens".

    Each turn's first token comes from the prefill, which is no step; a peer that drafts may get several from it.
    Tokens are counted from the ids and not from `per_step_emitted`, so that a method which misreports its steps'
    tokens cannot raise its own rate. Vanilla's is 1.00; a turn whose first token is EOS has no step and changes
    nothing, nor does one of a peer that did not count its forward passes.
    """
    stepped = [turn for turn in turns if steps([turn])]
    return ratio(sum(turn.decode_tokens for turn in stepped), steps(stepped))


def steps(turns: Iterable[Turn]) -> int:
    """Return the number of forward passes after the prefill; 0 for a peer that does not count them."""
    return sum(turn.decode_passes or len(turn.per_step_emitted) for turn in turns)


def ctar(turns: Iterable[Turn], windows: int) -> list[float | None]:
    """Consistent token acceptance rate, w = 1..windows: share of steps with s_k > w (Liu et al., on metrics).

    s_k is what the step added to the kept answer. A step that never proposed w tokens counts as a miss.
    """
    emitted = [count for turn in turns for count in turn.per_step_emitted]
    return [ratio(sum(count > w for count in emitted), len(emitted)) for w in range(1, windows + 1)]


def conditional_acceptance(turns: Iterable[Turn], windows: int) -> list[float | None]:
    """At w = 1..windows: share with accepted >= w among steps with drafted >= w and accepted >= w - 1.

    Unlike CTAR it does not punish drafting that stops early. Drafts that EOS or the limit cut from the
    answer's tail count as not accepted. Of a tree, `drafted` is its longest path; in records from before depths
    were kept it counts the nodes, and the first condition then says little.
    """
    steps = [
        step
        for turn in turns
        for step in zip(turn.per_step_depth or turn.per_step_drafted, turn.per_step_accepted, strict=True)
    ]
    rates = []
    for w in range(1, windows + 1):
        reached = [accepted for drafted, accepted in steps if drafted >= w and accepted >= w - 1]
        rates.append(ratio(sum(accepted >= w for accepted in reached), len(reached)))
    return rates


def draft_token_share(turns: Sequence[Turn]) -> float | None:
    """Accepted draft tokens / all generated tokens (some write-ups call this the compression rate)."""
    return ratio(sum(sum(turn.per_step_accepted) for turn in turns), _generated(turns))


def repetition(turns: Iterable[Turn]) -> float | None:
    """1 - distinct / total of the 8-grams within each answer, pooled: a loop is easy to draft."""
    distinct = total = 0
    for turn in turns:
        ids = turn.token_ids
        grams = [tuple(ids[i : i + REPETITION_N]) for i in range(len(ids) - REPETITION_N + 1)]
        distinct += len(set(grams))
        total += len(grams)
    return ratio(total - distinct, total)


def lossless_counts(turns: Iterable[Turn]) -> dict[str, int]:
    """How many turns were audited with which verdict; turns without an audit are not counted: no sampled one is."""
    verdicts = [turn.audit.verdict for turn in turns if turn.audit is not None]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def ordered_tasks(tasks: Iterable[str]) -> list[str]:
    """Each task once, Spec-Bench's six first in the order of the tables, others as they come."""
    seen = list(dict.fromkeys(tasks))
    return [task for task in TASKS if task in seen] + [task for task in seen if task not in TASKS]


def failed_throughout(record: Run, turns: Sequence[Turn]) -> dict[str, str]:
    """Methods of ours (vanilla too) that answered nothing at all, with their first error: exit status 1."""
    dead = _failed_throughout(record, turns)
    return {label: error for label, error in dead.items() if record.methods[label].kind != "peer"}


def _failed_throughout(run: Run, turns: Sequence[Turn]) -> dict[str, str]:
    """Whoever answered nothing at all, with the first error: it must not take the questions from all others."""
    errors = {label: [turn.error for turn in turns if turn.method == label] for label in run.methods}
    return {label: str(said[0]) for label, said in errors.items() if said and None not in said}


def _against(run: Run, paired: dict[str, list[Pair]]) -> dict[str, dict[str, Estimate]]:
    """Decode speed of each method over each other one's, on the questions that both answered: overall, with interval.

    Two methods' own intervals say little of their difference, because both hold the same questions' variation.
    """
    names = [name for name, info in run.methods.items() if info.kind == "method" and paired[name]]
    found: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for name, other in itertools.permutations(names, 2):
        turns = [turn for turn, _ in paired[name]]
        both = pairs([*turns, *(turn for turn, _ in paired[other])], name, other)
        tasks = [[pair for pair in both if pair[0].task == task] for task in ordered_tasks(t.task for t in turns)]
        found[name][other] = speedups([task for task in tasks if task], prefilled=False)["ratio_of_sums"]
    return found if len(names) > 1 else {}


def _beside(run: Run, turns: Sequence[Turn]) -> dict[str, Beside]:
    """The peers with a baseline of their own, in units of that; their audits are against its answers."""
    found = {}
    for name, info in run.methods.items():
        other = own_baseline(run, name)
        if paired := pairs(turns, name, other) if other else []:
            gaps = [abs(turn.audit.gap) for turn, _ in paired if turn.audit is not None and turn.audit.gap is not None]
            tasks = _by_task(paired, replace(info, lossless=True), 0)
            found[name] = Beside(other, tasks, max(gaps, default=None))
    return found


def not_lossless(record: Run, turns: Sequence[Turn]) -> list[str]:
    """Methods of ours whose output differs from vanilla's though it must not: the run then ends with status 1."""
    different = {turn.method for turn in turns if turn.audit is not None and turn.audit.verdict == "different"}
    return [label for label, info in record.methods.items() if info.kind == "method" and label in different]


def questions_asked(run: Run, turns: Sequence[Turn]) -> set[tuple[int, str]]:
    """Vanilla's questions at the first value of the axis, by id and task."""
    name = vanilla_name(run)
    return {(turn.question_id, turn.task) for turn in at_first(run, turns) if turn.method == name}


def vanilla_name(run: Run) -> str:
    """The baseline among a run's methods.

    Raises:
        UserError: it has none.

    """
    for name, info in run.methods.items():
        if info.kind == "vanilla":
            return name
    raise UserError(f"run {run.run_id} has no vanilla among its methods: there is nothing to compare with")


def _by_task(paired: list[Pair], info: MethodInfo, probe_windows: int) -> dict[str, Cell]:
    """Each task's figures, then `overall`. One length of the window lists for all tasks."""
    windows = _windows(turn for turn, _ in paired)
    tasks = {
        task: [pair for pair in paired if pair[0].task == task]
        for task in ordered_tasks(turn.task for turn, _ in paired)
    }
    cells = {task: _cell(of_task, info, windows, probe_windows) for task, of_task in tasks.items()}
    return {**cells, OVERALL: _overall(list(cells.values()), list(tasks.values()), info)}


def _windows(turns: Iterable[Turn]) -> int:
    """The widest window that any step of the method kept; 1 for a method that drafted in vain.

    Not the most that was drafted: a tree drafts 63 nodes to keep four, and every CTAR beyond these is zero.
    """
    turns = list(turns)
    emitted = max((count for turn in turns for count in turn.per_step_emitted), default=1)
    return max(emitted - 1, int(any(any(turn.per_step_drafted) for turn in turns)))


def _cell(paired: list[Pair], info: MethodInfo, windows: int, probe_windows: int) -> Cell:
    """One method on one task: every figure over its pairs."""
    turns, baseline = [turn for turn, _ in paired], [vanilla for _, vanilla in paired]
    cell = Cell(
        **_pooled([paired], info),
        tok_per_s=decode_tok_per_s(turns),
        tok_per_s_vanilla=decode_tok_per_s(baseline),
        repetition=repetition(turns),
        ttft_s=mean(turn.prefill_s for turn in turns),
        eos_share=ratio(sum(turn.finish == "eos" for turn in turns), len(turns)),
        compression_rate=compression_rate(turns),
    )
    if info.kind == "peer":
        return cell
    cell.draft_token_share = draft_token_share(turns)
    cell.draft_time_share = ratio(sum(turn.draft_s for turn in turns), sum(turn.decode_s for turn in turns))
    cell.ctar = ctar(turns, windows)
    cell.conditional_acceptance = conditional_acceptance(turns, windows)
    cell.window_ctar = breakdown.window_ctar(turns, probe_windows, info.notes.get("probe_windows", probe_windows))
    cell.emitted_histogram = breakdown.emitted_histogram(turns, windows + 1)
    cell.step_time = breakdown.step_time(turns, baseline)
    step_cost = breakdown.predicted_step_cost(turns, info.costs)
    _predict(cell, step_cost, ratio(cell.compression_rate, step_cost))
    if cell.predicted and info.kind == "method":
        least = breakdown.predicted_step_cost(turns, info.costs, hindsight=True)
        cell.perfect_stopping = ratio(cell.compression_rate, least)
    return cell


def _overall(cells: list[Cell], tasks: list[list[Pair]], info: MethodInfo) -> Cell:
    """The tasks' unweighted mean, as in Liu et al.; `*_mean_rates` pools all questions, as Spec-Bench does.

    A speedup is the mean of the tasks' ratios, not the ratio of `tok_per_s` to `tok_per_s_vanilla`, which are
    means of their own. Tasks in which a figure is undefined are left out of its mean. Counts are sums, and so are
    those of the histograms; `context` has bins of its own over all turns.
    """
    peer = info.kind == "peer"
    means: dict[str, Any] = {key: mean(getattr(cell, key) for cell in cells) for key in _MEANS}
    means |= {} if peer else {key: mean(getattr(cell, key) for cell in cells) for key in _MEANS_OF_STEPS}
    overall = Cell(**_pooled(tasks, info), **means)
    if peer:
        return overall
    overall.ctar = breakdown.mean_by_position(cell.ctar for cell in cells)
    overall.conditional_acceptance = breakdown.mean_by_position(cell.conditional_acceptance for cell in cells)
    overall.window_ctar = breakdown.mean_by_position(cell.window_ctar for cell in cells) or None
    counts = (cell.emitted_histogram or [] for cell in cells)
    overall.emitted_histogram = [sum(column) for column in zip(*counts, strict=True)]
    parts = (mean(getattr(cell.step_time, part) for cell in cells) for part in breakdown.STEP_PARTS)
    overall.step_time = StepTime(*parts)
    # A task that was measured but not predicted leaves it undefined: the prediction is compared with both.
    if all(cell.predicted for cell in cells if cell.speedup_decode.value is not None):
        found = [cell.predicted for cell in cells if cell.predicted]
        _predict(overall, mean(each.step_cost for each in found), mean(each.speedup for each in found))
        overall.perfect_stopping = mean(cell.perfect_stopping for cell in cells)
    return overall


def _pooled(tasks: list[list[Pair]], info: MethodInfo) -> dict[str, Any]:
    """The figures that one task and all of them have alike, as fields of a `Cell`."""
    paired = [pair for task in tasks for pair in task]
    turns = [turn for turn, _ in paired]
    peer = info.kind == "peer"
    found: dict[str, Any] = {
        "questions": len({(turn.task, turn.question_id) for turn in turns}),
        "turns": len(turns),
        "generated_tokens": _generated(turns),
        "steps": None if peer and not steps(turns) else steps(turns),
        "confidence": None if peer else breakdown.confidence(turns),
        "drafts": breakdown.drafts(turns) if info.kind == "method" else breakdown.told_drafts(turns),
        "speedup_decode_median": Estimate(stats.median_ratio([question_sums(t, prefilled=False) for t in tasks])),
        "speedup_decode_steps": by_steady_steps(tasks),
        "context": breakdown.context(paired),
    }
    if info.lossless and info.kind != "vanilla":  # how the audits of a method that claims to be lossless ended
        counts = lossless_counts(turns)
        found |= {"lossless": counts, "numerical_rate": ratio(counts["numerical"], sum(counts.values()))}
    for key, prefilled in (("decode", False), ("total", True)):
        estimates = speedups(tasks, prefilled)
        found[f"speedup_{key}"] = estimates["ratio_of_sums"]
        found |= {f"speedup_{key}_{name}": estimates[name] for name in ("mean_rates", "geometric")}
        if peer:  # vanilla's speed over its own; overall the mean of the tasks' own, and no inverse of a mean
            found[f"worth_{key}"] = speedups(tasks, prefilled, turned=True)["ratio_of_sums"]
    return found


def _predict(cell: Cell, step_cost: float | None, speedup: float | None) -> None:
    """Set the prediction, if there is one, and its relative error."""
    if step_cost is not None and speedup is not None:
        cell.predicted = Predicted(step_cost, speedup)
        over = ratio(speedup, cell.speedup_decode.value)
        cell.prediction_error = None if over is None else over - 1


def _divergence(turn: Turn) -> Iterator[Divergence]:
    """None of an answer that is vanilla's, or was not audited."""
    audit = turn.audit
    if audit is not None and audit.verdict != "identical":
        what = audit.verdict, audit.position, audit.token, audit.vanilla_token
        gaps = finite(audit.gap), finite(audit.tolerance)
        yield Divergence(*disturbed.where(turn), *what, *gaps, at=turn.at)


def _generated(turns: Iterable[Turn]) -> int:
    return sum(len(turn.token_ids) for turn in turns)
