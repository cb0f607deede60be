"""Runs with --batch: every answer is held against vanilla's alone, and a killed run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.drafting import batch
from bench.figures.metrics import summarize
from bench.figures.waves import add_batches, read_blocks
from bench.report.batched import section
from methods.vanilla import Vanilla
from tests.tiny import records, run_bench

ROOT = Path(__file__).parents[3]
SIZES = "1,3"
# Kills its own process with SIGKILL once the next block is written down.
KILLED = """
import os, signal, sys
from bench.figures import records
from bench.run import recorder
from bench.cli import main

append = records.append_turns

def last_words(path, turns, go_on):
    append(path, turns, go_on)
    if path.name == "batches.jsonl":
        os.kill(os.getpid(), signal.SIGKILL)

recorder.append_turns = last_words
main(sys.argv[1:])
"""


def blocks_of(out):
    run, turns = records(out)
    return run, turns, read_blocks(out, run)


def answers(blocks):
    return {
        (block.method, block.place, turn.question_id, turn.turn): turn.token_ids
        for block in blocks
        for turn in block.turns
    }


@pytest.fixture
def flags(setting):
    return ["--method", setting.kangaroo, "--method", "pld", "--batch", SIZES]


def test_every_answer_in_a_batch_is_vanillas_alone(setting, flags, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    run, turns, blocks = blocks_of(setting.out)
    alone = {(turn.question_id, turn.turn): turn.token_ids for turn in turns if turn.method == "vanilla"}
    assert len(alone) == 4
    found = answers(blocks)
    assert len(found) == 3 * 2 * len(alone)  # methods, sizes
    assert all(ids == alone[question, index] for (*_, question, index), ids in found.items())
    assert {turn.audit.verdict for block in blocks for turn in block.turns} == {"identical"}
    assert run.batches.keys() == {"1", "3"}
    assert max(max(block.live) for block in blocks if block.batch == 3) == 3


def test_figures_are_those_of_the_records(setting, flags):
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    run, turns, blocks = blocks_of(setting.out)
    summary = summarize(run, turns)
    add_batches(summary, run, blocks)
    for name, cells in summary.batches.items():
        for cell in cells:
            own = [block for block in blocks if (block.method, block.batch) == (name, cell.batch)]
            tokens = seconds = 0.0
            for block in own:
                for wave, live in enumerate(block.live):
                    if live == cell.batch:
                        seconds += block.wall_s[wave]
                        for turn, first in zip(block.turns, block.first_waves, strict=True):
                            if first <= wave < first + len(turn.per_step_emitted):
                                tokens += turn.per_step_emitted[wave - first]
            assert cell.tok_per_s == pytest.approx(tokens / seconds)
            assert cell.turns == 4
    table = section(summary).parts[1]
    assert [row[0] for row in table.rows] == [entry.label for entry in summary.methods.values()]
    assert table.header == ["throughput", "batch 1", "batch 3"]


def test_a_system_message_is_part_of_the_prompt(setting, tmp_path):
    said = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Oh!"), ("user", "Bye."))
    log = {"messages": [{"role": role, "content": text} for role, text in said]}
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(log) + "\n")
    assert run_bench(setting.model, str(path), setting.out, "--method", "pld", "--batch", "2") == 0
    _, turns, blocks = blocks_of(setting.out)
    assert {turn.prompt_digest for block in blocks for turn in block.turns} == {turn.prompt_digest for turn in turns}
    assert {turn.audit.verdict for block in blocks for turn in block.turns} == {"identical"}


def test_a_mix_up_of_slots_is_found(setting, flags, monkeypatch, capsys):
    """All sequences of a batch share one cache: those of one slot are right, others read each other's text."""
    cache = batch.Slots.cache
    monkeypatch.setattr(batch.Slots, "cache", lambda self, slot: cache(self, 0))
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 1
    _, _, blocks = blocks_of(setting.out)
    verdicts = {
        size: {turn.audit.verdict for block in blocks if block.batch == size for turn in block.turns} for size in (1, 3)
    }
    assert verdicts[1] == {"identical"}
    assert "different" in verdicts[3]
    assert "NOT LOSSLESS" in capsys.readouterr().err


def test_killed_and_resumed_nothing_is_lost_or_doubled(setting, flags, tmp_path, cache, give_kernels):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    give_kernels(cache)
    assert run_bench(setting.model, setting.questions, whole, *flags) == 0
    begun = ["--model", str(setting.model), "--questions", setting.questions, "--out", str(out)]
    begun += ["--max-new-tokens", "8", "--peer", "none", *flags]
    for arguments in (begun, ["--resume", str(out)]):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=os.environ, capture_output=True, text=True
        )
        assert done.returncode == -9, done.stderr
    lines = (out / "batches.jsonl").read_bytes().splitlines(keepends=True)
    (out / "batches.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])  # a torn block
    assert main(["--resume", str(out)]) == 0
    assert answers(blocks_of(out)[2]) == answers(blocks_of(whole)[2])
    assert len(blocks_of(out)[2]) == len(blocks_of(whole)[2])


def test_a_method_that_fails_in_a_batch_is_told_and_the_others_go_on(setting, add_method, capsys):
    class Alone(Vanilla):
        """Cannot take two."""

        def propose(self, sequences, budgets):
            if len({tuple(sequence.context[:60]) for sequence in sequences}) == 2:  # in the warm-up all are alike
                raise RuntimeError("two are a crowd")
            return super().propose(sequences, budgets)

    add_method("alone", Alone)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "alone", "--batch", "2") == 1
    run, turns, blocks = blocks_of(setting.out)
    assert {block.method for block in blocks if block.error} == {"alone"}
    assert "two are a crowd" in capsys.readouterr().err
    summary = summarize(run, turns)
    add_batches(summary, run, blocks)
    assert summary.batches["alone"][0].failed
    assert summary.batches["vanilla"][0].tok_per_s


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0", "--batch 0 is too small: at least 1"),
        ("999", "--batch 999 is too large: at most 256"),
        ("2,x", "argument --batch: invalid counts value: '2,x'"),
        ("2,2", "'2,2' has a value twice"),
        ("5", "--batch 5: 4 turns of questions never fill it"),
    ],
)
def test_batches_that_cannot_be_are_refused(setting, capsys, given, said):
    try:
        status = run_bench(setting.model, setting.questions, setting.out, "--batch", given)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert not setting.out.exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda block: block | {"live": block["live"][1:]}, "waves"),
        (lambda block: block | {"first_waves": [0, *block["first_waves"]]}, "first_waves"),
        (lambda block: block | {"live": [9] * len(block["live"])}, "live"),
        (lambda block: block | {"method": "pld"}, "method"),
    ],
)
def test_damaged_blocks_are_refused_by_line(setting, flags, damage, said, capsys):
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    path = setting.out / "batches.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(damage(json.loads(first))), *others]) + "\n")
    capsys.readouterr()
    assert main(["report", str(setting.out)]) == 2
    error = capsys.readouterr().err
    assert "line 1" in error
    assert said in error
