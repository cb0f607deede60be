"""The `spec-bench` peer: files of Spec-Bench's form, ours and ones that fail, each in an interpreter of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import methods
from bench.drafting.loop import decode
from bench.drafting.sampling import Sampler
from bench.errors import UserError
from methods.spec_bench.method import SpecBench, SpecBenchConfig, _passes
from tests.methods.peer_scene import scene as scene

NEVER: frozenset[int] = frozenset()
LOOKUP = Path(__file__).parents[2] / "templates" / "spec-bench" / "inference_lookup.py"
# Its answer depends on the prompt's first token, and needs no model.
ODD = """\
import types

import torch

from evaluation.eval import reorg_answer_file, run_eval
from fastchat.utils import str_to_torch_dtype
from tokens import BASE

print("this is no reply")


class Model(torch.nn.Module):
    device = torch.device("cpu")
    config = types.SimpleNamespace(vocab_size=9)

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(2, 9)


def forward(inputs, model, tokenizer, max_new_tokens, shift=0, threads=0):
    assert inputs.input_ids.shape == inputs["attention_mask"].shape
    kind = int(inputs.input_ids[0, 0])
    new = [BASE + shift + place for place in range(max_new_tokens + 3)]  # beyond the limit, as such files go
    if kind == 1:
        raise RuntimeError("CUDA error: an illegal memory access")
    if kind == 2:  # a head that is called: once for the prefill, and once a step
        for _ in range(len(new)):
            model.head(torch.zeros(1, 2))
        return torch.tensor([[*inputs.input_ids[0].tolist(), *new]]), len(new), len(new), [1] * len(new)
    if kind == 3:
        new = [torch.get_num_threads(), int(torch.cuda.is_available())]
    if kind == 4:
        new = []
    return torch.tensor([[*inputs.input_ids[0].tolist(), *new]]), len(new), 2, [len(new) - 1, 1]


if __name__ == "__main__":
    import sys

    run_eval(
        model=Model(), tokenizer=None, forward_func=forward, model_id="x", question_file="", question_begin=None,
        question_end=None, answer_file="", max_new_tokens=1024, num_choices=1, num_gpus_per_model=1, num_gpus_total=1,
        shift=int(sys.argv[sys.argv.index("--shift") + 1]),
    )
    reorg_answer_file("")
"""


@pytest.fixture
def peer(scene):
    """(file, knobs) -> the peer that runs it."""
    return lambda file, **knobs: SpecBench(scene[1], SpecBenchConfig(file=str(file), **knobs), scene[2])


@pytest.fixture
def odd(tmp_path):
    """A file as in Spec-Bench's repository, next to a module of the repository."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "tokens.py").write_text("BASE = 50\n")
    (tmp_path / "evaluation" / "inference_odd.py").write_text(ODD)
    return tmp_path / "evaluation" / "inference_odd.py"


def test_our_file_answers_as_the_model_does_and_is_counted_by_its_steps(peer, scene, hf_greedy, random_ids):
    hf = scene[0]
    lookup = peer(LOOKUP)
    start = random_ids(12, seed=1)
    repeating = start + hf_greedy(hf, start, 60)
    free = hf_greedy(hf, repeating, 40)
    answer = decode(lookup, repeating, 40, NEVER)
    ended = free.index(258) + 1 if 258 in free else 40  # its tokenizer's end token
    assert answer.token_ids == free[:ended]
    assert 0 < answer.decode_passes < len(answer.token_ids) - 1
    assert answer.prefill_s > 0
    assert answer.first_tokens == 1
    for limit in (1, 2, 7):
        assert decode(lookup, start, limit, NEVER).token_ids == hf_greedy(hf, start, limit)
    eos = frozenset({free[4], 258})
    assert decode(lookup, repeating, 40, eos).token_ids == hf_greedy(hf, repeating, 40, eos)
    assert lookup.lossless
    assert lookup.engine["name"] == "inference_lookup.py"
    assert "transformers" in lookup.engine["version"]
    assert len(lookup.notes["file_sha256"]) == 64


def test_what_a_file_says_is_cut_counted_and_its_errors_are_one_answers(two_threads, odd, peer):
    asking = peer(odd, args="--shift 7")
    answer = decode(asking, [5, 5], 4, frozenset({59}))
    assert answer.token_ids == [57, 58, 59]  # of 57 .. 63
    assert (answer.prefill_s, answer.first_tokens, answer.decode_passes) == (0, 0, 1)  # no head was seen
    assert "could not be told apart" in asking.notes["times"]
    with pytest.raises(UserError, match=r"inference_odd\.py fails: RuntimeError: CUDA error: an illegal memory access"):
        decode(asking, [1], 4, NEVER)
    answer = decode(asking, [2], 4, NEVER)  # and it goes on
    assert answer.token_ids == [57, 58, 59, 60]
    assert answer.first_tokens == 1
    assert answer.decode_passes == 3  # of seven ones: the first is the prefill's, the last three are beyond the limit
    assert decode(asking, [3], 4, NEVER).token_ids == [two_threads, 0]
    with pytest.raises(UserError, match="gave an empty answer to a prompt of 1 tokens"):
        decode(asking, [4], 4, NEVER)
    with pytest.raises(UserError, match="decodes as its args= say: leave --temperature or the peer out"):
        decode(asking, [5], 4, NEVER, Sampler(0.7))
    assert asking.elsewhere_s() > 0.1  # it has imported torch
    asking._process.kill()
    with pytest.raises(UserError, match=r"ended with status -9: .*this is no reply"):
        decode(asking, [5], 4, NEVER)
    assert asking.elsewhere_s() is None


@pytest.mark.parametrize(
    ("lengths", "came", "kept", "passes"),
    [
        ([3, 1, 4], 8, 8, 3),
        ([3, 1, 4], 8, 4, 2),
        ([3, 1, 4], 8, 3, 1),
        ([3, 1, 4], 8, 0, 0),
        ([1, 1, 1, 1], 3, 3, 3),  # the last one's token is not in the answer
        ([2, 0, 3], 8, 8, 3),  # accepted drafts alone
        ([2, 0, 3], 8, 4, None),
        ([], 5, 5, 0),
    ],
)
def test_only_the_steps_of_what_was_kept_are_counted(lengths, came, kept, passes):
    assert _passes(lengths, came, kept) == passes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("print('done')", "ended without calling run_eval: done"),
        ("import flash_attn_9", "ended with status 1: .*No module named 'flash_attn_9'"),
        ("import sys; sys.exit(3)", "ended with status 3: it printed nothing"),
    ],
)
def test_a_file_that_does_not_get_to_its_model_is_told(text, told, tmp_path, peer):
    (tmp_path / "inference_x.py").write_text(text)
    with pytest.raises(UserError, match=told):
        peer(tmp_path / "inference_x.py")


def test_its_interpreter_may_be_another(tmp_path, peer):
    (tmp_path / "inference_x.py").write_text("import sys; print(*sys.argv[1:])")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho by another >&2\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"by another \| --model-path .* --dtype float32"):
        peer(tmp_path / "inference_x.py", python=str(python))


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ("", "file= is missing: spec-bench:file=evaluation/inference_eagle.py"),
        ("file=none.py", "file=none.py: there is no such file"),
        (f"file={LOOKUP},python=none", "python=none: there is no such file"),
        (f"file={LOOKUP},args=--path {{folder}}", "args='--path {folder}' cannot be read"),
        (f"file={LOOKUP},args=--path '", "cannot be read"),
    ],
)
def test_wrong_knobs_are_told(knobs, told):
    with pytest.raises(UserError) as raised:
        methods.parse(f"spec-bench:{knobs}").check_files("tiny")
    assert told in str(raised.value)


def test_a_lossy_file_and_one_beside_quantised_weights_are_not_audited(monkeypatch, scene):
    from types import SimpleNamespace

    out = SimpleNamespace(readline=lambda: '{"versions": {}, "device": "cpu"}', close=lambda: None)
    made = SimpleNamespace(stdin=None, stdout=out, kill=lambda: None, wait=lambda: 0)
    monkeypatch.setattr("methods.spec_bench.method.subprocess.Popen", lambda *_, **__: made)
    config = SpecBenchConfig(file=str(LOOKUP))
    assert SpecBench(scene[1], config, scene[2]).lossless
    assert not SpecBench(scene[1], SpecBenchConfig(file=str(LOOKUP), audit=False), scene[2]).lossless
    monkeypatch.setattr(scene[1], "quantize", "q4")
    assert not SpecBench(scene[1], config, scene[2]).lossless
