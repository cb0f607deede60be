"""Whole runs on tiny models, through the command line: what is asked, in which order, and what is written down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.run import contestants, examiner, plan
from methods import BASELINE, built_in, is_peer, names
from methods.vanilla import Vanilla
from tests.tiny import ANOTHER, ONE_TURN, QUESTIONS, TWO_TURNS, Watched, records, run_bench, words_of, write_questions

EOS = 258


class Wrong(Vanilla):
    """Calls itself lossless, but its third token is another."""

    steps = 0

    def open(self, sequence, prompt):
        self.steps = 0

    def propose(self, sequences, budgets):
        self.steps += 1
        return super().propose(sequences, budgets)

    def verification(self, sampler):
        verify = super().verification(sampler)

        def wrong(draft, logits):
            accepted, best = verify(draft, logits)
            return accepted, (best + 1) % 256 if self.steps == 2 else best

        return wrong


class Admits(Wrong):
    lossless = False


@pytest.fixture
def calls(monkeypatch):
    """Every decode of the run as (method's class, prompt, whether it was a warm-up)."""
    made = []

    def watched(decode):
        def spy(method, prompt, limit, eos, *more):
            made.append((type(method).__name__, list(prompt), not eos))
            return decode(method, prompt, limit, eos, *more)

        return spy

    monkeypatch.setattr(examiner, "decoding", watched(examiner.decoding))
    monkeypatch.setattr(contestants, "decode", watched(contestants.decode))
    return made


# --- what is asked and written down ----------------------------------------------------------------------------------


def test_run_leaves_records_report_and_a_table(setting, capsys):
    flags = ["--method", setting.kangaroo, "--peer", "hf-generate", "--peer-limit", "0"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    files = {path.name for path in setting.out.iterdir()}
    assert files == {
        "run.json",
        "turns.jsonl",
        "pieces.json",
        "summary.json",
        "summary.csv",
        "report.md",
        "report.html",
        "report.tex",
    }
    assert setting.drawn == [setting.out / "plots"]
    printed = capsys.readouterr()
    assert "Question answering" in printed.out
    assert str(setting.out / "report.md") in printed.out
    assert "Loading weights" not in printed.err
    run, turns = records(setting.out)
    assert run.complete
    assert [info.kind for info in run.methods.values()] == ["vanilla", "method", "peer"]
    assert run.methods[setting.kangaroo].config["threshold"] == 0
    assert run.methods[setting.kangaroo].config["exit_layer"] == 1  # as it ran, not as it was left open
    assert run.dataset["tasks"] == ["mt_bench", "qa", "rag"]
    assert (run.model["name"], run.model["chat_template"], run.dtype) == (setting.model.name, "tokenizer", "float32")
    assert run.model["parameters"] == sum(p.numel() for p in setting.hf.parameters())
    assert len(turns) == 4 * 3
    assert 1e8 < run.memory["peak_bytes"] < 1e11
    assert set(run.memory["methods"]) in (set(), set(run.methods))  # nothing where peaks cannot be reset
    assert all(1e8 < peak <= run.memory["peak_bytes"] for peak in run.memory["methods"].values())


def test_every_answer_is_transformers_own_with_consistent_step_lists(setting, hf_greedy):
    flags = ["--method", setting.kangaroo, "--peer", "hf-generate", "--peer-limit", "0", "--max-new-tokens", "24"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    _, turns = records(setting.out)
    prompts = {(i, 0): setting.chat.prompt([], turns[0]) for i, _, turns in QUESTIONS}
    (first,) = (t for t in turns if (t.method, t.question_id, t.turn) == ("vanilla", 11, 0))
    asked = TWO_TURNS[2]
    prompts[11, 1] = setting.chat.prompt([(asked[0], setting.chat.answer_text(first.token_ids))], asked[1])
    for turn in turns:
        prompt = prompts[turn.question_id, turn.turn]
        assert turn.prompt_tokens == len(prompt)
        assert turn.token_ids == hf_greedy(setting.hf, prompt, 24, frozenset({EOS}))
        assert turn.finish == ("eos" if turn.token_ids[-1] == EOS else "length")
        assert turn.error is None
        if turn.method != "hf-generate":
            assert sum(turn.per_step_emitted) == len(turn.token_ids) - 1
            steps = zip(turn.per_step_emitted, turn.per_step_accepted, turn.per_step_drafted, strict=True)
            assert all(accepted <= drafted and emitted <= accepted + 1 for emitted, accepted, drafted in steps)
        assert (turn.audit is None) == (turn.method == "vanilla")
        assert turn.audit is None or turn.audit.verdict == "identical"
    kangaroo = [t for t in turns if t.method == setting.kangaroo]
    assert 0 < sum(sum(t.per_step_accepted) for t in kangaroo) < sum(sum(t.per_step_drafted) for t in kangaroo)


def test_every_step_is_timed_and_peers_have_none(setting):
    run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo, "--peer", "hf-generate")
    _, turns = records(setting.out)
    assert any(turn.per_step_s for turn in turns)
    for turn in turns:
        assert len(turn.per_step_s) == len(turn.per_step_emitted)
        assert all(seconds > 0 for seconds in turn.per_step_s)
        assert sum(turn.per_step_s) == pytest.approx(
            turn.draft_s + turn.verify_s, abs=1e-6 * (1 + len(turn.per_step_s))
        )
    report = (setting.out / "report.md").read_text()
    assert "decode: ratio of sums by step medians" in report


def test_no_file_of_a_run_holds_a_questions_text(setting, monkeypatch):
    monkeypatch.undo()  # with plots
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    files = [path for path in setting.out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".csv", ".md", ".tex", ".html", ".png"}
    forbidden = words_of(*QUESTIONS)
    assert "zucchini" in forbidden
    for path in files:
        content = path.read_bytes().decode("utf-8", errors="replace")
        assert not [word for word in forbidden if word in content], path


def test_second_turn_follows_vanillas_own_answer_for_everybody(setting, add_method, calls):
    add_method("admits", Admits)
    flags = ["--method", "admits", "--method", setting.kangaroo, "--peer", "hf-generate"]
    assert run_bench(setting.model, write_questions(Path(setting.questions), TWO_TURNS), setting.out, *flags) == 0
    _, turns = records(setting.out)
    answers = {t.method: t.token_ids for t in turns if t.turn == 0}
    assert answers["admits"] != answers["vanilla"]
    history = [(TWO_TURNS[2][0], setting.chat.answer_text(answers["vanilla"]))]
    expected = setting.chat.prompt(history, TWO_TURNS[2][1])
    asked = [prompt for _, prompt, warm in calls if not warm]
    assert asked[4:] == [expected] * 4
    assert {t.audit for t in turns if t.method == "admits"} == {None}  # it never promised vanilla's answer


@pytest.mark.parametrize("count", [2, 3])
def test_order_is_reversed_from_question_to_question_and_round_to_round(setting, add_method, calls, count):
    add_method("other", Watched)
    source = write_questions(Path(setting.questions), *((i, "qa", [f"{i}?"]) for i in range(count)))
    assert run_bench(setting.model, source, setting.out, "--method", "other", "--rounds", "2") == 0
    orders: dict[str, list[str]] = {}
    for name, prompt, warm in calls:
        if not warm:
            orders.setdefault(setting.chat.tokenizer.decode(prompt), []).append(name)
    forth, back = ["Vanilla", "Watched"], ["Watched", "Vanilla"]
    expected = [forth + back, back + forth, forth + back]
    assert list(orders.values()) == expected[:count]


def test_rounds_repeat_everything_and_are_told_apart(setting):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo, "--rounds", "2") == 0
    _, turns = records(setting.out)
    by_round = [[(t.method, t.question_id, t.turn, t.token_ids) for t in turns if t.round == n] for n in (0, 1)]
    assert len(turns) == 16
    assert len(by_round[0]) == 8
    assert sorted(by_round[0]) == sorted(by_round[1])


def test_no_round_knows_what_another_has_learned(setting, add_method, calls):
    class Remembers(Vanilla):
        memory = "run"

        def forget(self):
            calls.append("forget")

    add_method("remembers", Remembers)
    source = write_questions(Path(setting.questions), ONE_TURN, ANOTHER)
    assert run_bench(setting.model, source, setting.out, "--method", "remembers", "--rounds", "2") == 0
    own = [call if call == "forget" else call[2] for call in calls if call == "forget" or call[0] == "Remembers"]
    warm_ups = own.index("forget")
    assert warm_ups >= 1
    assert own == [True] * warm_ups + ["forget", False, False] * 2


def test_warm_up_decodes_with_everybody_and_is_recorded_nowhere(setting, calls):
    flags = ["--method", setting.kangaroo, "--peer", "hf-generate"]
    assert run_bench(setting.model, setting.questions, setting.out, *flags) == 0
    assert {name for name, _, warm in calls if warm} == {"Vanilla", "Kangaroo", "HFGenerate"}
    _, turns = records(setting.out)
    assert len(turns) == sum(not warm for *_, warm in calls)
    warm_lengths = {len(prompt) for _, prompt, warm in calls if warm}
    assert not warm_lengths & {t.prompt_tokens for t in turns}


def test_short_questions_leave_room_for_the_warm_up(setting, tmp_path):
    source = write_questions(tmp_path / "q.jsonl", (1, "qa", ["?"]))
    assert run_bench(setting.model, source, setting.out, "--method", "vanilla", "--max-new-tokens", "2") == 0
    assert [len(t.token_ids) for t in records(setting.out)[1]] == [2]


@pytest.mark.parametrize(("flags", "answered"), [([], 1), (["--peer-limit", "2"], 2), (["--peer-limit", "0"], 3)])
def test_peer_answers_as_many_questions_a_task_as_its_limit(setting, tmp_path, flags, answered):
    asked = [(1, "qa", ["a?"]), (2, "qa", ["b?"]), (3, "qa", ["c?"]), (4, "rag", ["d?"])]
    source = write_questions(tmp_path / "q.jsonl", *asked)
    flags = [*flags, "--method", "vanilla", "--peer", "hf-generate"]
    assert run_bench(setting.model, source, setting.out, *flags) == 0
    _, turns = records(setting.out)
    assert {t.question_id for t in turns if t.method == "vanilla"} == {1, 2, 3, 4}
    by_peer = [t.question_id for t in turns if t.method == "hf-generate"]
    assert len(by_peer) == len(set(by_peer)) == answered + 1
    assert 4 in by_peer


def test_run_without_peers_has_none(setting):
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo, "--peer", "none") == 0
    assert list(records(setting.out)[0].methods) == ["vanilla", setting.kangaroo]


def test_limit_and_tasks_choose_what_is_asked(setting, tmp_path):
    source = write_questions(tmp_path / "q.jsonl", *((i, "qa", ["?" * i]) for i in range(1, 6)), ONE_TURN, ANOTHER)
    flags = ["--method", "vanilla", "--tasks", "qa", "--limit", "2", "--seed", "1"]
    assert run_bench(setting.model, source, setting.out, *flags) == 0
    run, turns = records(setting.out)
    assert (run.dataset["questions"], run.dataset["tasks"]) == (2, ["qa"])
    assert len({t.question_id for t in turns}) == 2


@pytest.mark.parametrize("where", ["tokenizer", "generation_config.json"])
def test_answers_end_at_any_of_the_checkpoints_end_tokens(setting, tmp_path, hf_greedy, where):
    answer = hf_greedy(setting.hf, setting.chat.prompt([], ONE_TURN[2][0]), 16)
    end = next(token for i, token in enumerate(answer) if i >= 3 and token not in answer[:i])
    model = shutil.copytree(setting.model, tmp_path / "model")
    if where == "tokenizer":
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["eos_token"] = setting.chat.tokenizer.convert_ids_to_tokens(end)
        (model / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        (model / where).write_text(json.dumps({"eos_token_id": [EOS, end]}))
    source = write_questions(tmp_path / "q.jsonl", ONE_TURN)
    flags = ["--method", setting.kangaroo, "--peer", "hf-generate", "--max-new-tokens", "16"]
    assert run_bench(model, source, setting.out, *flags) == 0
    for turn in records(setting.out)[1]:
        assert turn.token_ids == answer[: answer.index(end) + 1]
        assert turn.finish == "eos"


def test_results_lie_under_the_run_id_without_an_output_folder(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from bench.cli import main

    given = ["--model", str(setting.model), "--questions", setting.questions, "--method", "vanilla", "--peer", "none"]
    assert main([*given, "--max-new-tokens", "2"]) == 0
    (run_dir,) = (tmp_path / "results" / "runs").iterdir()
    assert records(run_dir)[0].run_id == run_dir.name
    assert setting.drawn == [Path("plots") / run_dir.name]


# --- a method that is not what it says -------------------------------------------------------------------------------


def test_json_is_all_of_standard_output_whatever_a_method_prints(setting, add_method, capsys):
    class Talks(Vanilla):
        def propose(self, sequences, budgets):
            print("drafting")
            return super().propose(sequences, budgets)

    add_method("talks", Talks)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "talks", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"folder": str(setting.out), "complete": True, "not_lossless": [], "failed": {}}
    assert "drafting" in told.err


def test_lossless_method_with_another_answer_fails_the_run_once_all_is_written(setting, add_method, capsys):
    add_method("wrong", Wrong)
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "wrong") == 1
    assert "NOT LOSSLESS: wrong" in capsys.readouterr().err
    run, turns = records(setting.out)
    assert run.complete
    audits = [t.audit for t in turns if t.method == "wrong"]
    assert [(a.verdict, a.position) for a in audits] == [("different", 2)] * 4
    for audit, vanilla in zip(audits, (t for t in turns if t.method == "vanilla"), strict=True):
        assert audit.vanilla_token == vanilla.token_ids[2]
        assert audit.token == (audit.vanilla_token + 1) % 256
        assert audit.gap > audit.tolerance > 0
    summary = json.loads((setting.out / "summary.json").read_text())
    assert len(summary["divergences"]) == 4
    assert (setting.out / "report.md").exists()


# --- sampling, and all methods ---------------------------------------------------------------------------------------


def sampled_answers(setting, out, *flags):
    """(method, question, turn) -> token ids of a run at temperature 1."""
    methods = ["--method", setting.kangaroo, "--method", f"{setting.kangaroo},beam=3", "--peer", "hf-generate"]
    given = [*methods, "--peer-limit", "0", "--temperature", "1", *flags]
    assert run_bench(setting.model, setting.questions, out, *given) == 0
    return {(turn.method, turn.question_id, turn.turn): turn.token_ids for turn in records(out)[1]}


def test_samples_are_repeated_by_their_seed_and_differ_from_greedy_answers(setting, tmp_path):
    first, again, other = (
        sampled_answers(setting, tmp_path / name, "--seed", seed)
        for name, seed in (("first", "3"), ("again", "3"), ("other", "4"))
    )
    assert first == again
    for method in {method for method, *_ in first}:
        assert {key: ids for key, ids in first.items() if key[0] == method} != {
            key: ids for key, ids in other.items() if key[0] == method
        }
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    greedy = {(turn.question_id, turn.turn): turn.token_ids for turn in records(setting.out)[1]}
    assert {key[1:]: ids for key, ids in first.items() if key[0] == "vanilla"} != greedy


def test_samples_are_not_compared_token_by_token(setting):
    sampled_answers(setting, setting.out)
    run, turns = records(setting.out)
    assert [turn.audit for turn in turns] == [None] * len(turns)
    assert {turn.error for turn in turns} == {None}
    assert (run.config["temperature"], run.config["top_p"], run.config["top_k"]) == (1.0, 1.0, 0)
    assert "sampled" in (setting.out / "report.md").read_text()


def test_one_most_probable_token_leaves_nothing_to_chance(setting, hf_greedy):
    """Whatever the temperature: top-k 1 is greedy decoding, for vanilla, drafts and the peer alike."""
    answers = sampled_answers(setting, setting.out, "--top-k", "1")
    assert run_bench(setting.model, setting.questions, setting.out, "--method", setting.kangaroo) == 0
    greedy = {(turn.question_id, turn.turn): turn.token_ids for turn in records(setting.out)[1]}
    assert len(answers) == 4 * 4
    assert {key: ids for key, ids in answers.items() if ids != greedy[key[1:]]} == {}


def test_all_stands_for_every_built_in_method_and_no_peer(monkeypatch):
    from bench.config import RunConfig

    monkeypatch.setattr("methods.names", lambda: [*names(), "elsewhere"])
    found, left_out = plan.variants(RunConfig(method=("all", "kangaroo:gamma=2")))
    labels = [variant.label for variant in found]
    drafting = [name for name in built_in() if not is_peer(name) and name != BASELINE]
    assert {"kangaroo", "medusa", "pld"} <= set(drafting)
    unpackaged = {"dflash", "dspark", "hydra", "sps"}
    packaged = [name for name in drafting if name not in unpackaged]
    assert labels == [BASELINE, *packaged, "kangaroo:gamma=2", "hf-generate"]
    assert {told.partition(" is left out")[0] for told in left_out} == unpackaged


def test_all_leaves_out_what_has_no_files_for_the_model(setting, capsys):
    """Each in one line with its reason; a method that is asked for by name is refused instead."""
    assert run_bench(setting.model, setting.questions, setting.out, "--method", "all", "--max-new-tokens", "4") == 0
    run, turns = records(setting.out)
    out = {"dflash", "dspark", "eagle", "eagle3", "hydra", "kangaroo", "medusa", "rest", "sps"}
    assert not out & set(run.methods)
    assert {"pld", "suffix", "recycling", "lookahead", "layer-skip"} <= set(run.methods)
    assert {turn.error for turn in turns} == {None}
    told = [line for line in run.provenance["warnings"] if "left out of --method all" in line]
    assert [line.partition(" is left out")[0] for line in told] == sorted(out)
    assert "no conversations come with the project for model" in told[-2]
    assert "sps needs a draft model" in told[-1]
    assert "kangaroo is left out of --method all: no weights of kangaroo" in capsys.readouterr().err
    for name in out:
        assert run_bench(setting.model, setting.questions, setting.out, "--method", "all", "--method", name) == 2
