"""Faults planted on purpose, in whole runs: each comes out as *different* and ends the run with status 1, all written.

A control shows each time that it is the fault and not the setting that is found.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from bench.drafting import loop
from bench.drafting.sequence import Step
from bench.engine.cache import KVCache
from bench.run import examiner
from methods.vanilla import Vanilla
from tests.oracle import Oracle, Sideways, knowing
from tests.tiny import ONE_TURN, Watched, records, run_bench, write_questions

LIMIT = 24


def status_of(setting, *flags: str) -> int:
    return run_bench(setting.model, setting.questions, setting.out, "--method", "faulty", *flags)


def audits_of(setting, method: str = "faulty"):
    return [turn.audit for turn in records(setting.out)[1] if turn.method == method]


def check_found(setting, capsys, status: int) -> list:
    """A run with a fault: status 1, told by name, and nothing of the run is lost. Returns the verdicts *different*."""
    assert status == 1
    assert "NOT LOSSLESS: faulty" in capsys.readouterr().err
    assert records(setting.out)[0].complete
    found = [audit for audit in audits_of(setting) if audit.verdict == "different"]
    summary = json.loads((setting.out / "summary.json").read_text())
    told = [divergence for divergence in summary["divergences"] if divergence["verdict"] == "different"]
    assert len(told) == len(found) >= 1
    assert summary["methods"]["faulty"]["tasks"]["overall"]["lossless"]["different"] == len(found)
    assert "faulty" in (setting.out / "report.md").read_text()
    return found


def check_sound(setting, status: int) -> None:
    assert status == 0
    assert {audit.verdict for audit in audits_of(setting)} == {"identical"}


@pytest.mark.parametrize("forgotten", [0, 1])
def test_cache_that_forgets_to_move_one_row_behind_a_rejected_draft_is_found(
    setting, add_method, hf_greedy, monkeypatch, capsys, forgotten
):
    add_method("faulty", knowing(Sideways, setting, hf_greedy))
    check_sound(setting, status_of(setting, "--max-new-tokens", str(LIMIT)))
    keep_path, moved = KVCache.keep_path, []

    def forgetful(self, start, path):
        stale = self.data[..., start + 1 + forgotten, :].clone()
        keep_path(self, start, path)
        if list(path) == [1, 2]:
            self.data[..., start + 1 + forgotten, :] = stale
            moved.append(start)

    monkeypatch.setattr(KVCache, "keep_path", forgetful)
    found = check_found(setting, capsys, status_of(setting, "--max-new-tokens", str(LIMIT)))
    assert moved
    assert all(abs(audit.gap) > audit.tolerance for audit in found)


def test_doubled_token_is_found(setting, add_method, monkeypatch, capsys):
    class Doubles(Vanilla):
        """Its third step says its token twice."""

        def open(self, sequence, prompt):
            self.steps = 0

    def doubled(method, sequences, budgets, *_):
        steps = speculate(method, sequences, budgets)
        if isinstance(method, Doubles):
            method.steps += 1
            return [Step(steps[0].emitted * 2, 1, 1, marks=steps[0].marks)] if method.steps == 3 else steps
        return steps

    speculate = loop.speculate
    monkeypatch.setattr(loop, "speculate", doubled)
    add_method("faulty", Doubles)
    found = check_found(setting, capsys, status_of(setting))
    assert {audit.position for audit in found} == {4}  # the first token is the prefill's, then two of one token each


@pytest.mark.parametrize("short", [0, 1])
def test_answer_that_is_cut_one_short_is_found(setting, add_method, monkeypatch, capsys, short):
    add_method("faulty", Watched)
    decoding = examiner.decoding

    def cut(method, prompt, limit, *more):
        return decoding(method, prompt, limit - short if isinstance(method, Watched) else limit, *more)

    monkeypatch.setattr(examiner, "decoding", cut)
    status = status_of(setting)
    if not short:
        return check_sound(setting, status)
    found = check_found(setting, capsys, status)
    vanilla = [turn.token_ids for turn in records(setting.out)[1] if turn.method == "vanilla"]
    expected = [(len(ids) - 1, None, ids[-1]) for ids in vanilla if len(ids) == 8]
    assert [(audit.position, audit.token, audit.vanilla_token) for audit in found] == expected


def test_answer_that_goes_on_past_its_end_token_is_found(setting, add_method, hf_greedy, tmp_path, monkeypatch, capsys):
    answer = hf_greedy(setting.hf, setting.chat.prompt([], ONE_TURN[2][0]), 60)
    place = next(i for i in range(2, 5) if answer[i] not in answer[:i])  # within the first step's drafts
    setting.model = shutil.copytree(setting.model, tmp_path / "model")
    (setting.model / "generation_config.json").write_text(json.dumps({"eos_token_id": answer[place]}))
    setting.questions = write_questions(tmp_path / "one.jsonl", ONE_TURN)
    add_method("faulty", knowing(Oracle, setting, hf_greedy))
    check_sound(setting, status_of(setting))
    monkeypatch.setattr(Step, "cut_at", lambda self, eos: self)
    (audit,) = check_found(setting, capsys, status_of(setting))
    assert (audit.position, audit.token, audit.vanilla_token) == (place + 1, answer[place + 1], None)


def test_rounding_in_bfloat16_is_counted_as_numerical_and_fails_no_run(setting, add_method, capsys):
    class RoundsElsewhere(Vanilla):
        """Says the runner-up once, where bfloat16 cannot tell it from the best, as another pass's rounding might."""

        swapped = True

        def open(self, sequence, prompt):
            self.swapped = False

        def verification(self, sampler):
            verify = super().verification(sampler)
            return lambda draft, logits: self.rounded(logits, *verify(draft, logits))

        def rounded(self, logits, accepted, best):
            values, tokens = logits[-1].topk(2)
            close = values[0] - values[1] <= torch.finfo(torch.bfloat16).eps * values[0].abs()
            if close and not self.swapped:
                self.swapped = True
                return accepted, int(tokens[tokens != best][0])
            return accepted, best

    add_method("faulty", RoundsElsewhere)
    assert status_of(setting, "--dtype", "bfloat16", "--max-new-tokens", "64") == 0
    assert "NOT LOSSLESS" not in capsys.readouterr().err
    verdicts = [audit.verdict for audit in audits_of(setting)]
    counts = {verdict: verdicts.count(verdict) for verdict in ("identical", "numerical", "different")}
    assert counts["numerical"] >= 1
    assert counts["different"] == 0
    summary = json.loads((setting.out / "summary.json").read_text())
    overall = summary["methods"]["faulty"]["tasks"]["overall"]
    assert overall["lossless"] == counts
    assert overall["numerical_rate"] == pytest.approx(counts["numerical"] / len(verdicts))
    for audit in audits_of(setting):
        assert audit.verdict == "identical" or abs(audit.gap) <= audit.tolerance
