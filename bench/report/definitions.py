"""What the figures of a report mean, in words: the last part of the page."""

from __future__ import annotations

from bench.figures.records import QUANTIZED
from bench.figures.summary import Summary
from bench.report.formats import interval_text

DEFINITIONS = """\
- **Speedup** is a method's tokens/s over vanilla's, on the same prompts in the same rounds of the same run.
  **Decode** excludes the prefill and the first token, which the prefill yields; **end-to-end** includes both.
- **Ratio of sums**: all tokens over all seconds of a task, the method's over vanilla's; *overall* is the
  unweighted mean of the tasks, as in Liu et al. (arXiv 2404.18911). Long answers weigh more. Tables and plots show
  this estimator unless they name another.
- **Spec-Bench's mean of rates**: the mean over questions of the method's tokens/s, over the same mean of vanilla;
  *overall* pools all questions, so tasks with more questions weigh more. Fast questions weigh more.
- **Geometric mean** of the questions' own ratios of method to vanilla: every question weighs the same; *overall* is
  the unweighted mean of the tasks.
- **CR** (compression rate) = (generated tokens - turns) / steps: tokens per verification pass. Vanilla's is 1.
- **CTAR(w)**: share of steps that added more than w tokens. A step that drafted fewer counts as a miss.
- **Conditional acceptance** at w: among the steps that drafted at least w deep and accepted at least w - 1 tokens, the
  share that accepted at least w. The depth of a tree is the length of its longest path.
- **Window CTAR(w)**: at every position of vanilla's answer the method is made to draft w tokens; the share of the
  positions, among those with w tokens of the answer left, at which all w are right. It compares drafters whatever
  their stopping rule, as far as each can draft (with heads: one token per head).
- **Draft share** = accepted draft tokens / generated tokens.
- **Time drafting**: share of the decode time; the rest is verification and bookkeeping.
- **Where the time goes**: mean time of a step over the mean time of a vanilla step of the same turns. *Draft*:
  producing drafts. *Verify*: the target's forward pass and the choice of tokens. *Rest*: everything else. By task, CR
  over the total is the speedup.
- **Predicted** cost of a step: the sum of its parts, measured before the run, for the drafts that each step made. The
  cost of a draft and of a forward pass over n tokens is measured alone; the rest (and drafts that cannot be produced
  alone) in the warm-up. Predicted speedup: CR over that cost. *Error*: predicted over measured, minus 1. Predictions do
  not include sampling.
- **Confidence**: the draft model's own probability of a token, for *accepted* drafts and for drafts *rejected* where
  verification ended.
- **Time by context**: turns in bins of prompt length plus half the answer, with the decode time per token in each bin.
- **Repetition**: share of repeated 8-grams within the answers. Loops are easy to draft.
- **Identical**: turns whose token ids equal vanilla's. *Numerical*: at the first differing token the two candidates
  were tied within the measured error of the run's passes. *Different*: neither, so the method is not lossless.
  **Numerical rate**: share of numerical turns among those audited.
- Turns count once per round. Questions that failed in any method are left out of all methods."""

QUANTIZED_DEFINITION = """
- **q4**: the target's matrices are in four bits and its LM head in eight, on GGUF's grids Q4_1 and Q8_0. In products
  activations are rounded to eight bits as well, with a scale for every 32 inputs of a token; sums are float32. Vanilla
  and the methods run this arithmetic, and so does the audit of the methods. transformers' peers have the same weights
  and float32 activations: their answers are audited against that rounding."""

SAMPLED_DEFINITION = """
- **Sampled**: answers were drawn at random, so they are not compared token by token. Lossless then means the same
  distribution as vanilla's, which the project's distribution tests show, not this run."""

SPEC_BENCH = """\
Spec-Bench's `evaluation/speed.py` differs from the headline here in four ways:

- It uses end-to-end time, and a mean of rates over questions (above) instead of a ratio of sums.
- Its *overall* pools all questions: 80 per task in its own set, but tasks with fast answers weigh more.
- It counts the baseline's tokens by tokenising the stored text again, minus one per turn. Stripped spaces and special
  tokens, and text that tokenises differently than it was generated, change that count; the method's count is taken from
  its file. Here both sides are counted by their token ids.
- It trusts the files: tokens after the end of an answer, or beyond the limit, count if the file counted them. Here one
  loop cuts every answer at the first end token and at the limit, vanilla's too.

So compare its speedup with *end-to-end, Spec-Bench's mean of rates*, and its mean accepted tokens with CR, task by
task (its overall pools all steps, ours is the mean of the tasks). The token count alone can make a difference of a few
hundredths."""


def definitions(summary: Summary) -> str:
    """The meaning of every figure; intervals and sampling only where the run has them."""
    interval = interval_text(summary, full=True)
    text = DEFINITIONS
    if interval:
        text += (
            f"\n- **Intervals**: {interval}. They show how far the figure could move with other questions of the "
            "same kind on this device, not with another device, model or day."
        )
    if summary.dtype in QUANTIZED and summary.activations == "int8":
        text += QUANTIZED_DEFINITION
    return text + (SAMPLED_DEFINITION if summary.sampling else "")
