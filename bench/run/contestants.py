"""Who takes part in a run: methods and peers made ready, warmed up, and what their passes cost by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import methods
from bench.config import RunConfig
from bench.drafting.loop import decode
from bench.drafting.method import Answer, Method, Peer, SpeculativeMethod
from bench.drafting.sampling import Sampler
from bench.engine.huge_pages import use_huge_pages
from bench.errors import UserError, told
from bench.figures.facts import PassCosts
from bench.models.loading import Loaded, memory_errors
from bench.progress import progress

T = TypeVar("T", methods.Variant, "Contestant")
LEAST_ANSWER = 2  # tokens of the warm-up's answer, without which nothing is timed
_WARM_UP_TOKENS = 24
_WARM_UP_MOST = 6  # repetitions at most until the time per token is stable
_STABLE = 0.1  # relative change of the time per token between repetitions that counts as stable
# Told who cannot take part, and why; returns where the others go on without.
Fails = Callable[[str, Exception], None]


def raising(label: str, error: Exception) -> None:
    """End the run, as where nobody is told what else to do."""
    raise error


@dataclass
class Contestant:
    """A method or peer, ready to decode."""

    label: str
    method: Method
    prober: SpeculativeMethod | None = None  # the same method as it drafts for the window probe
    windows: int = 0  # drafts in a row that it can be forced to make there
    warm: Answer | None = None  # the warm-up's last answer
    warm_prompt: int = 0  # tokens of its prompt
    baseline: str = ""  # the label of the peer that this one is compared with

    @property
    def is_peer(self) -> bool:
        """Whether it brings its own loop."""
        return isinstance(self.method, Peer)

    def elsewhere_s(self) -> float | None:
        """Processor seconds of its own processes beside this one; None: not known."""
        return self.method.elsewhere_s() if isinstance(self.method, Peer) else 0.0

    def expected_s(self, prompt_tokens: int, new_tokens: int) -> float:
        """Estimated seconds of one answer, from the warm-up's rates."""
        assert self.warm is not None
        per_token_s = self.warm.decode_s / max(1, len(self.warm.token_ids) - 1)
        return prompt_tokens / self.warm_prompt * self.warm.prefill_s + new_tokens * per_token_s

    def warm_up(self, prompt: list[int], room: int, sampler: Sampler | None) -> Contestant:
        """Decode `prompt` until the time per token is stable; never counted."""
        limit = min(_WARM_UP_TOKENS, room - len(prompt))
        assert limit >= LEAST_ANSWER, f"{room} positions for a prompt of {len(prompt)}"
        last_s = 0.0  # of no repetition: the first is never stable
        for _ in range(_WARM_UP_MOST):
            try:
                with memory_errors(f"method {self.label}"):
                    self.warm = decode(self.method, prompt, limit, frozenset(), sampler)
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"{self.label} fails at its first answer, in the warm-up: {told(error)}") from error
            per_token_s = self.warm.decode_s / (limit - 1)
            stable = abs(per_token_s - last_s) <= _STABLE * last_s
            last_s = per_token_s
            if stable:
                break
        self.warm_prompt = len(prompt)
        return self


def line_up(
    chosen: Sequence[methods.Variant], loaded: Loaded, windows: int, fails: Fails = raising
) -> list[Contestant]:
    """The variants made ready on the target; with `windows`, those that can are made once more for the probe.

    Raises:
        UserError: no weights, or out of memory; what else `fails` raises.

    """
    return each_able("getting ready", chosen, lambda variant: _ready(variant, loaded, windows), fails)


def _ready(variant: methods.Variant, loaded: Loaded, windows: int) -> Contestant:
    target = loaded.target
    with memory_errors(f"method {variant.label}"):
        if issubclass(variant.method, Peer):
            peer = variant.method(target, variant.config, loaded.checkpoint)
            return Contestant(variant.label, peer, baseline=variant.baseline)
        method = variant.method(target, variant.config)
        if target.device.type == "cpu":
            use_huge_pages()  # not for peers, which come later: they run as they do elsewhere
        return Contestant(variant.label, method, *prober(method, windows))


def each_able(what: str, items: Sequence[T], act: Callable[[T], Contestant], fails: Fails) -> list[Contestant]:
    """What `act` makes of the items, but for those where it fails and `fails` returns; `what` is in progress."""
    made = []
    with progress(len(items), what) as bar:
        for item in items:
            bar.at(item.label)
            try:
                made.append(act(item))
            except Exception as error:
                fails(item.label, error)
            bar.add(1)
    return made


def prober(method: Method, windows: int) -> tuple[SpeculativeMethod | None, int]:
    """`method` made once more to draft up to `windows` tokens in a row, and how many it can; None where it cannot."""
    if not windows or not isinstance(method, SpeculativeMethod):
        return None, 0
    forced, reach = method.probing(windows)
    return (type(method)(method.target, forced), reach) if reach else (None, 0)


def sampler_of(config: RunConfig, temperature: float) -> Sampler | None:
    """One sampler for all, where the run samples."""
    return Sampler(temperature, config.top_p, config.top_k) if temperature else None


def pass_costs(contestant: Contestant, vanilla: Contestant) -> PassCosts | None:
    """What the method's passes cost by themselves, in units of a vanilla step with its bookkeeping.

    Passes come from microbenchmarks. What they leave out (`rest`), and the draft runs of a method that cannot be asked
    for one, come from the warm-up. Predictions are made of these, never of the run itself.
    """
    method = contestant.method
    if not isinstance(method, SpeculativeMethod):
        return None
    return costs_of(method, _per_step(contestant), None if contestant is vanilla else _per_step(vanilla))


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a mean step, or wave, in a warm-up."""

    total: float
    rest: float  # of it: bookkeeping
    per_call: float  # of drafting, per call of the draft model


def costs_of(method: SpeculativeMethod, warm: StepTimes, vanilla: StepTimes | None) -> PassCosts:
    """`pass_costs` of a method whose steps took `warm`; `vanilla`: its steps, None if the method is vanilla."""
    base = vanilla or warm
    passes = 1 - base.rest / base.total  # the share of a vanilla step that the microbenchmarks' unit is
    rest = warm.rest / base.total
    if vanilla is None:
        return {"shallow": 0.0, "draft": 0.0, "verify": {"1": passes}, "rest": rest}
    costs = method.costs
    draft = passes * method.draft_cost(costs)
    if not method.draft_calls():
        draft = warm.per_call / base.total
    verify = {str(n): passes * cost for n, cost in costs.verify}
    return {"shallow": passes * costs.shallow, "draft": draft, "verify": verify, "rest": rest}


def _per_step(contestant: Contestant) -> StepTimes:
    """The steps of the warm-up's last answer."""
    assert contestant.warm is not None
    steps, draft_s = contestant.warm.steps, sum(step.draft_s for step in contestant.warm.steps)
    rest_s = contestant.warm.decode_s - draft_s - sum(step.verify_s for step in steps)
    calls = sum(step.calls for step in steps)
    return StepTimes(contestant.warm.decode_s / len(steps), rest_s / len(steps), draft_s / calls if calls else 0.0)
