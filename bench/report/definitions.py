"""What the figures of a report mean, in words: the page's last say."""

from __future__ import annotations

from bench.figures.summary import Summary
from bench.report.formats import interval_text

DEFINITIONS = """\
- **Speedup** is a method's tokens/s over vanilla's, on the same prompts in the same rounds of the same run.
  **Decode** leaves out the prefill and the first token, which belongs to it; **end-to-end** has both.
- **Ratio of sums**: all tokens over all seconds of a task, the method's over vanilla's; *overall* is the
  unweighted mean of the tasks, as in Liu et al. (arXiv 2404.18911). Long answers count more. Tables and plots show
  it where they name no other.
- **Spec-Bench's mean of rates**: the mean over questions of the method's tokens/s, over the same mean of vanilla;
  *overall* pools all questions, so that tasks with more questions count more. Quick questions count more.
- **Geometric mean**: of the questions' own ratios of method to vanilla, every question alike; *overall* is the
  unweighted mean of the tasks.
- **CR** (compression rate) = (generated tokens - turns) / steps: tokens per verification pass. Vanilla's is 1.
- **CTAR(w)**: share of steps that added more than w tokens. A step that drafted fewer counts as a miss.
- **Conditional acceptance** at w: share that accepted >= w among steps that drafted at least w deep and accepted
  >= w - 1 (a tree's depth is its longest path's; records without it count a tree's nodes, and say little).
- **Window CTAR(w)**: at every position of vanilla's answer the method is made to draft w tokens; the share of
  positions, among those with w tokens of answer left, at which all of them are right. It compares drafters
  whatever their rule for stopping, as far as each can draft (with heads: a draft a head).
- **Draft share** = accepted draft tokens / generated tokens.
- **Time drafting**: share of the decode time; the rest is verification and bookkeeping.
- **Where the time goes**: mean time of a step over the mean time of a vanilla step of the same turns. *Draft*:
  making drafts. *Verify*: the target's pass and the choice of tokens. *Rest*: everything else. A task's CR over its
  total is its speedup.
- **Predicted** cost of a step: its parts, measured before the run, put together for the drafts that each step made: a
  draft and a pass over so many tokens by themselves, the rest (and drafts that cannot be called alone) in the warm-up.
  Predicted speedup: CR over that. *Error*: predicted over measured, less 1. Sampling is in no prediction.
- **Confidence**: the draft model's own probability of a token; *accepted* drafts against drafts *rejected* where
  verification ended.
- **Time by context**: turns in bins of prompt length plus half the answer; decode time per token in each.
- **Repetition**: share of repeated 8-grams within the answers. Loops are easy to draft.
- **Identical**: turns whose token ids equal vanilla's. *Numerical*: the first differing token was, within the
  dtype's measured error, a tie. *Different*: neither, so the method is not lossless. **Numerical rate**: share of
  numerical turns among those audited.
- Turns are counted once a round. Questions that failed anywhere are left out on both sides."""

SAMPLED_DEFINITION = """
- **Sampled**: answers were drawn at random, so no two methods' are compared token by token. Lossless then means: the
  same distribution as vanilla's. That is shown by the project's distribution tests and not by this run."""

SPEC_BENCH = """\
What Spec-Bench's `evaluation/speed.py` would print differs from the headline here in four ways:

- it takes end-to-end time, and a mean of rates over questions (above) instead of a ratio of sums;
- its *overall* pools all questions: 80 of each task in its own set, but tasks with quick answers count more;
- it counts the baseline's tokens by tokenising the stored text again, less one a turn. Spaces and special tokens
  that were stripped, and text that tokenises otherwise than it was written, change that count; the method's count
  is taken from its file. Here both sides are counted by their token ids;
- it believes the files: tokens after the end of an answer, or past the limit, count where the file has counted
  them. Here one loop cuts every answer at the first end token and at the limit, vanilla's too.

So compare its speedup with *end-to-end, Spec-Bench's mean of rates*, and its mean accepted tokens with CR, task by
task (its overall pools all steps, ours is the tasks' mean); a difference of a few hundredths can come from the count
alone."""


def definitions(summary: Summary) -> str:
    """What every figure means, intervals and sampling where the run has them."""
    interval = interval_text(summary, full=True)
    text = DEFINITIONS
    if interval:
        text += (
            f"\n- **Intervals**: {interval}. They say how far the figure could move with other questions of the "
            "same kind on this device; not what another device, model or day would give."
        )
    return text + (SAMPLED_DEFINITION if summary.sampling else "")
