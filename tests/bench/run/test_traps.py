"""The traps of published harnesses, each with a test that fails once we fall into it.

Some have their tests elsewhere: warm-up and history in `test_runner.py`, failures in `test_runner_failures.py`, state
of an earlier question in `tests/methods/test_contract.py`, ratios of sums in `test_metrics.py`. No test here waits:
times come from a clock that only scripted methods move.
"""

from __future__ import annotations

import json
import shutil

import pytest

from bench.drafting import loop
from bench.drafting.loop import decode
from bench.drafting.method import NoKnobs, Peer
from bench.run import examiner
from methods.vanilla import Vanilla
from tests.oracle import Clock, Oracle, Sideways, knowing, timed
from tests.tiny import ANOTHER, ONE_TURN, QUESTIONS, TWO_TURNS, records, run_bench, words_of, write_questions

EOS = 258


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("bench.drafting.loop.now_s", clock)
    return clock


@pytest.fixture
def asked(monkeypatch):
    """Every counted decode of the run as (method, prompt, limit, end tokens); warm-ups come without end tokens."""
    calls, decoding = [], examiner.decoding

    def spy(method, prompt, limit, eos, *more):
        if eos:
            calls.append((method, tuple(prompt), limit, eos))
        return decoding(method, prompt, limit, eos, *more)

    monkeypatch.setattr(examiner, "decoding", spy)
    return calls


def task_of(setting, method: str, task: str) -> dict:
    summary = json.loads((setting.out / "summary.json").read_text())
    return summary["methods"][method]["tasks"][task]


def turns_of(setting, method: str) -> list:
    return [turn for turn in records(setting.out)[1] if turn.method == method]


# --- one loop counts for everybody -----------------------------------------------------------------------------------


def test_baseline_is_not_retokenised_from_its_text(setting, hf_greedy):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    tokenizer = setting.chat.tokenizer
    for method in ("vanilla", setting.kangaroo):
        answers = {turn.question_id: turn.token_ids for turn in turns_of(setting, method) if turn.turn == 0}
        for i, _, texts in QUESTIONS:
            assert answers[i] == hf_greedy(setting.hf, setting.chat.prompt([], texts[0]), 8, frozenset({EOS}))
        count = sum(len(turn.token_ids) for turn in turns_of(setting, method))
        assert task_of(setting, method, "overall")["generated_tokens"] == count
    # Of such an answer the text says nothing about how many tokens it had.
    texts = [setting.chat.answer_text(ids) for ids in answers.values()]
    assert [len(tokenizer(text)["input_ids"]) for text in texts] != [len(ids) for ids in answers.values()]


def test_tokens_after_the_end_token_are_not_counted(setting, add_method, hf_greedy, tmp_path):
    answer = hf_greedy(setting.hf, setting.chat.prompt([], ONE_TURN[2][0]), 60)
    place = next(i for i in range(2, 5) if answer[i] not in answer[:i])  # within the first step's drafts
    model = shutil.copytree(setting.model, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": answer[place]}))
    source = write_questions(tmp_path / "one.jsonl", ONE_TURN)
    add_method("oracle", knowing(Oracle, setting, hf_greedy))
    assert run_bench(model, source, setting.out, "--method", "oracle") == 0
    for turn in records(setting.out)[1]:
        assert turn.token_ids == answer[: place + 1]
        assert turn.finish == "eos"
        assert sum(turn.per_step_emitted) == place
    (turn,) = turns_of(setting, "oracle")
    assert (turn.per_step_drafted, turn.per_step_accepted, turn.per_step_emitted) == ([4], [place], [place])
    assert task_of(setting, "oracle", "qa")["generated_tokens"] == place + 1
    assert task_of(setting, "oracle", "qa")["compression_rate"] == place


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_limit_is_neither_overshot_by_a_trees_depth_nor_undershot(setting, add_method, hf_greedy, limit):
    add_method("chain", knowing(Oracle, setting, hf_greedy))
    add_method("tree", knowing(Sideways, setting, hf_greedy))
    flags = ["--method", "chain", "--method", "tree", "--max-new-tokens", str(limit)]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    turns = records(setting.out)[1]
    assert {turn.error for turn in turns} == {None}
    assert {len(turn.token_ids) for turn in turns if turn.finish == "length"} == {limit}


def test_step_that_overshoots_the_limit_is_a_failure_and_counts_for_nobody(setting, add_method, hf_greedy):
    class Greedy(knowing(Oracle, setting, hf_greedy)):
        def draft(self, room):
            return super().draft(60 if self.context[: len(marzipan)] == marzipan else room)

    marzipan = setting.chat.prompt([], ONE_TURN[2][0])
    add_method("greedy", Greedy)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "greedy") == 0
    failed = {turn.question_id: turn.error for turn in turns_of(setting, "greedy") if turn.error}
    assert list(failed) == [ONE_TURN[0]]
    assert "with a budget of 1" in failed[ONE_TURN[0]]
    assert json.loads((setting.out / "summary.json").read_text())["excluded_questions"] == [ONE_TURN[0]]


def test_limit_prompt_and_end_tokens_are_the_same_for_method_baseline_and_peer(setting, asked, tmp_path):
    room = 512 - len(setting.chat.prompt([], ""))
    source = write_questions(tmp_path / "q.jsonl", (1, "qa", ["x" * (room - 5)]), ONE_TURN, TWO_TURNS)
    peers = ["--peer", "hf-generate", "--peer", "hf-prompt-lookup", "--peer-limit", "0"]
    assert run_bench(setting.model, source, setting.out, "--method", setting.kangaroo, *peers) == 0
    given: dict[tuple, set] = {}
    for _, prompt, limit, eos in asked:
        given.setdefault(prompt, set()).add((limit, eos))
    assert sorted(given.values(), key=str) == sorted([{(5, frozenset({EOS}))}, *[{(8, frozenset({EOS}))}] * 3], key=str)
    assert len(asked) == 4 * 4


# --- paired, on one engine, timed apart ------------------------------------------------------------------------------


def test_everybody_answers_a_prompt_before_the_next_one_is_asked(setting, asked):
    flags = ["--method", setting.kangaroo, "--method", f"{setting.kangaroo},beam=3", "--peer", "hf-generate"]
    run_bench(setting.model, setting.questions, setting.out, *flags, "--peer-limit", "0", "--rounds", "2")
    groups = [asked[i : i + 4] for i in range(0, len(asked), 4)]
    assert len(groups) == 2 * 4
    for group in groups:
        assert len({prompt for _, prompt, *_ in group}) == 1
        assert len({id(method) for method, *_ in group}) == 4
    firsts = [isinstance(group[0][0], Vanilla) for group in groups]
    lasts = [isinstance(group[-1][0], Vanilla) for group in groups]
    assert sum(firsts) == sum(lasts) == 4  # the baseline is as often first as last


def test_baseline_runs_on_the_very_decoder_of_the_methods(setting, asked):
    flags = ["--method", setting.kangaroo, "--peer", "hf-generate"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    assert len({id(method.target) for method, *_ in asked}) == 1
    caches = [loop._caches[method][0].data for method, *_ in asked if not isinstance(method, Peer)]
    assert len({(cache.shape, cache.dtype) for cache in caches}) == 1


def test_prefill_counts_end_to_end_only(setting, add_method, clock):
    add_method("vanilla", timed(clock, prefill_s=1, step_s=1))
    add_method("late", timed(clock, prefill_s=10, step_s=0.5))
    source = write_questions(setting.out.parent / "q.jsonl", ONE_TURN)
    assert run_bench(setting.model, source, setting.out, "--method", "late") == 0
    (turn,) = turns_of(setting, "late")
    steps = len(turn.token_ids) - 1
    assert steps > 0
    assert (turn.prefill_s, turn.decode_s) == (10, 0.5 * steps)
    cell = task_of(setting, "late", "qa")
    assert cell["speedup_decode"]["value"] == pytest.approx(2)
    assert cell["speedup_total"]["value"] == pytest.approx((1 + steps) / (10 + 0.5 * steps))
    assert cell["ttft_s"] == pytest.approx(10)


def test_warm_up_lasts_until_steps_are_stable_and_is_not_counted(setting, add_method, clock):
    paces = iter([64.0, 16.0, 4.0, 1.0])
    add_method("vanilla", timed(clock, prefill_s=1, step_s=1))
    add_method("cold", timed(clock, prefill_s=1, step_s=lambda prompt: next(paces, 1.0)))
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "cold") == 0
    for turn in records(setting.out)[1]:
        assert turn.decode_s == len(turn.token_ids) - 1
    assert task_of(setting, "cold", "overall")["speedup_decode"]["value"] == pytest.approx(1)


def test_peer_with_an_arithmetic_of_its_own_is_never_called_equal(setting, add_method, capsys):
    class Quantised(Peer):
        """Another library, which happens to answer as vanilla does but for the last token."""

        lossless = False

        def __init__(self, target, config, checkpoint):
            super().__init__(target, config, checkpoint)
            self.vanilla = Vanilla(target, NoKnobs())

        def generate(self, prompt, limit, eos, sampler=None):
            answer = decode(self.vanilla, prompt, limit, eos)
            answer.token_ids[-1] = (answer.token_ids[-1] + 1) % 256
            return answer

    add_method("quantised", Quantised)
    flags = ["--method", setting.kangaroo, "--peer", "quantised", "--peer-limit", "0"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    assert [turn.audit for turn in turns_of(setting, "quantised")] == [None] * 4
    assert task_of(setting, "quantised", "overall")["lossless"] is None
    assert "quantised (not lossless)" in capsys.readouterr().out


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(setting, add_method, clock, tmp_path):
    """A run of two questions of a task, in the second of which `breaks` fails half-way and vanilla is a hundred times
    slower."""
    fatal = setting.chat.prompt([], "Fail here.")
    add_method("vanilla", timed(clock, prefill_s=1, step_s=lambda prompt: 100 if prompt == fatal else 1))

    class Breaks(timed(clock, prefill_s=1, step_s=0.5)):
        def propose(self, sequences, budgets):
            if sequences[0].context[: len(fatal)] == fatal and sequences[0].length > len(fatal):
                raise RuntimeError("half-way")
            return super().propose(sequences, budgets)

    add_method("breaks", Breaks)
    source = write_questions(tmp_path / "q.jsonl", ONE_TURN, (22, "qa", ["Fail here."]), ANOTHER)
    assert run_bench(setting.model, source, setting.out, "--method", "breaks") == 0
    return setting


def test_failed_turn_does_not_record_the_previous_turns_time_again(failing):
    *_, before, failed = turns_of(failing, "breaks")
    assert before.decode_s > 0
    assert failed.error == "RuntimeError: half-way"
    assert (failed.prefill_s, failed.decode_s, failed.draft_s) == (0, 0, 0)
    assert (failed.token_ids, failed.finish) == ([], "")
    assert (failed.per_step_drafted, failed.per_step_accepted, failed.per_step_emitted) == ([], [], [])


def test_failed_question_is_excluded_on_both_sides(failing):
    cell = task_of(failing, "breaks", "qa")
    assert (cell["questions"], cell["turns"]) == (1, 1)
    assert cell["speedup_decode"]["value"] == pytest.approx(2)
    assert cell["tok_per_s_vanilla"] == pytest.approx(1)  # not with the steps that took a hundred seconds
    assert task_of(failing, "vanilla", "qa")["tok_per_s"] == pytest.approx(1)
    assert json.loads((failing.out / "summary.json").read_text())["excluded_questions"] == [22]


# --- prompts, state, records -----------------------------------------------------------------------------------------


def test_history_is_the_baselines_answer_for_every_method(setting, add_method, asked):
    class Chatters(Vanilla):
        """Answers otherwise, and never promised not to."""

        lossless = False

        def verification(self, sampler):
            return lambda draft, logits: ([], int(logits[-1].topk(2).indices[1]))

    add_method("chatters", Chatters)
    source = write_questions(setting.out.parent / "q.jsonl", TWO_TURNS)
    assert run_bench(setting.model, source, setting.out, "--method", "chatters") == 0
    (own, _), (vanilla, _) = turns_of(setting, "chatters"), turns_of(setting, "vanilla")
    assert own.token_ids != vanilla.token_ids
    expected = setting.chat.prompt([(TWO_TURNS[2][0], setting.chat.answer_text(vanilla.token_ids))], TWO_TURNS[2][1])
    assert [list(prompt) for _, prompt, *_ in asked[2:]] == [expected] * 2


def test_nothing_learned_in_one_question_helps_in_the_next(setting, tmp_path):
    def steps(name: str, *questions):
        source = write_questions(tmp_path / f"{name}.jsonl", *questions)
        peers = ["--peer", "hf-prompt-lookup", "--peer-limit", "0"]
        flags = ["--method", setting.kangaroo, *peers, "--max-new-tokens", "24"]
        assert run_bench(setting.model, source, tmp_path / name, *flags) == 0
        return [
            (turn.method, turn.token_ids, turn.per_step_drafted, turn.per_step_accepted)
            for turn in records(tmp_path / name)[1]
            if turn.question_id == ONE_TURN[0]
        ]

    assert steps("alone", ONE_TURN) == steps("after", TWO_TURNS, ANOTHER, ONE_TURN)


def test_no_record_holds_a_questions_text(setting):
    peers = ["--peer", "hf-generate", "--peer", "hf-prompt-lookup"]
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo, *peers) == 0
    forbidden = words_of(*QUESTIONS)
    files = [path for path in setting.out.rglob("*") if path.is_file()]
    assert len(files) >= 5
    for path in files:
        assert not [word for word in forbidden if word in path.read_text(encoding="utf-8")], path
