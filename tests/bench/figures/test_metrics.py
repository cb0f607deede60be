"""Every expected figure here was worked out by hand from the records above it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from bench.figures import metrics
from bench.figures.machine import Machine
from bench.figures.records import Audit, MethodInfo, Run, Turn

SPEEDUPS = [f"speedup_{time}{name}" for time in ("decode", "total") for name in ("", "_mean_rates", "_geometric")]
CELL_KEYS = {
    "questions",
    "turns",
    "generated_tokens",
    "steps",
    *SPEEDUPS,
    "speedup_decode_median",
    "speedup_decode_steps",
    "worth_decode",
    "worth_total",
    "tok_per_s",
    "tok_per_s_vanilla",
    "compression_rate",
    "draft_token_share",
    "perfect_stopping",
    "drafts",
    "draft_time_share",
    "repetition",
    "ctar",
    "conditional_acceptance",
    "window_ctar",
    "emitted_histogram",
    "confidence",
    "step_time",
    "predicted",
    "prediction_error",
    "context",
    "ttft_s",
    "eos_share",
    "lossless",
    "numerical_rate",
}
OF_STEPS = [
    "steps",
    "compression_rate",
    "draft_token_share",
    "draft_time_share",
    "ctar",
    "conditional_acceptance",
    "window_ctar",
    "emitted_histogram",
    "confidence",
    "step_time",
    "predicted",
    "prediction_error",
]
UNDEFINED = {"value": None, "low": None, "high": None}


def make_run(**kinds: str) -> Run:
    """A run of vanilla and the named methods ("method", "peer" or "lossy")."""
    methods = {"vanilla": MethodInfo("vanilla", True, 0, {})}
    for name, kind in kinds.items():
        methods[name] = MethodInfo("method" if kind == "lossy" else kind, kind != "lossy", 7, {"gamma": 3})
    return Run(
        run_id="r1",
        command="roobench",
        model={"name": "tiny", "sha256": "ab"},
        dataset={"name": "mini", "sha256": "cd", "questions": 3, "tasks": ["qa", "translation"]},
        machine=Machine("cpu", "a CPU", 2),
        dtype="float32",
        config={},
        methods=methods,
        engine={},
        provenance={},
    )


def summarized(run: Run, turns: list[Turn]) -> dict:
    """The content of `summary.json`."""
    return dataclasses.asdict(metrics.summarize(run, turns))


def make_turn(method: str, question: int, tokens: int, decode_s: float, **more) -> Turn:
    """An answer of `tokens` different tokens; (drafted, accepted, emitted) of its steps as `steps`."""
    steps = more.pop("steps", [])
    values = {
        "task": "qa",
        "turn": 0,
        "round": 0,
        "token_ids": list(range(tokens)),
        "prefill_s": 1.0,
        "finish": "length",
        "per_step_drafted": [step[0] for step in steps],
        "per_step_accepted": [step[1] for step in steps],
        "per_step_emitted": [step[2] for step in steps],
    }
    return Turn(method=method, question_id=question, category="c", decode_s=decode_s, **(values | more))


def plain(tokens: int) -> list[tuple[int, int, int]]:
    """Vanilla's steps for an answer of so many tokens."""
    return [(0, 0, 1)] * (tokens - 1)


@pytest.fixture
def turns() -> list[Turn]:
    """Two questions of one task and one of another; the second's last step was cut by an accepted EOS."""
    return [
        make_turn("vanilla", 1, 9, 4.0, steps=plain(9)),
        make_turn("vanilla", 2, 5, 2.0, steps=plain(5)),
        make_turn("vanilla", 3, 3, 0.5, task="translation", steps=plain(3)),
        make_turn(
            "kangaroo",
            1,
            9,
            1.0,
            prefill_s=0.5,
            draft_s=0.5,
            steps=[(4, 2, 3), (2, 0, 1), (3, 3, 4)],
            audit=Audit("identical"),
        ),
        make_turn(
            "kangaroo",
            2,
            5,
            2.0,
            prefill_s=1.5,
            draft_s=0.25,
            finish="eos",
            steps=[(1, 1, 2), (4, 2, 2)],
            audit=Audit("numerical", 4, 8, 9, 1e-6, 2e-6),
        ),
        make_turn(
            "kangaroo",
            3,
            3,
            1.0,
            task="translation",
            steps=[(1, 0, 1), (1, 0, 1)],
            audit=Audit("identical"),
        ),
    ]


def cell(turns: list[Turn], task: str = "qa", method: str = "kangaroo", kind: str = "method") -> dict:
    return summarized(make_run(**{method: kind}), turns)["methods"][method]["tasks"][task]


def test_a_tasks_rates_and_speedups_are_ratios_of_sums(turns):
    qa = cell(turns)
    # 8 + 4 decode tokens in 1 + 2 s, vanilla's in 4 + 2 s; a mean of the questions' ratios would be 2.5.
    assert qa["tok_per_s"] == 4.0
    assert qa["tok_per_s_vanilla"] == 2.0
    assert qa["speedup_decode"]["value"] == 2.0
    # 14 tokens in 2 + 3 s against 14 in 2 + 6 s.
    assert qa["speedup_total"]["value"] == pytest.approx(1.6)
    assert qa["ttft_s"] == 1.0
    assert (qa["eos_share"], cell(turns, "translation")["eos_share"]) == (0.5, 0.0)
    assert qa["draft_time_share"] == pytest.approx(0.25)
    assert (qa["questions"], qa["turns"], qa["generated_tokens"], qa["steps"]) == (2, 2, 14, 5)


def test_compression_counts_tokens_without_the_prefills(turns):
    assert cell(turns)["compression_rate"] == pytest.approx(12 / 5)
    assert cell(turns, method="vanilla", kind="vanilla")["compression_rate"] == 1.0


def test_compression_comes_from_the_token_ids_and_not_from_what_steps_claim():
    honest = make_turn("kangaroo", 1, 7, 1.0, steps=[(2, 2, 3), (2, 2, 3)])
    boasting = make_turn("kangaroo", 1, 7, 1.0, steps=[(2, 2, 30), (2, 2, 30)])
    assert metrics.compression_rate([honest]) == metrics.compression_rate([boasting]) == 3.0


def test_window_rates_count_the_kept_part_of_a_step_cut_by_eos(turns):
    qa = cell(turns)
    # Emitted 3 1 4 2 2; the last would have been 3 with a bonus behind the EOS.
    assert qa["ctar"] == [0.8, 0.4, 0.2]
    # w = 3: drafted >= 3 and accepted >= 2 holds for (4, 2), (3, 3), (4, 2), of which one kept three.
    assert qa["conditional_acceptance"] == [0.8, 1.0, pytest.approx(1 / 3)]
    assert qa["draft_token_share"] == pytest.approx(8 / 14)


def test_overall_is_the_unweighted_mean_of_the_tasks(turns):
    translation, overall = cell(turns, "translation"), cell(turns, "overall")
    assert translation["speedup_decode"]["value"] == 0.5
    assert translation["ctar"] == [0.0, 0.0, 0.0]
    assert translation["conditional_acceptance"] == [0.0, None, None]
    # The mean of 2.0 and 0.5; the ratio of the mean rates, 3 and 3, would be 1.
    assert overall["speedup_decode"]["value"] == 1.25
    assert (overall["tok_per_s"], overall["tok_per_s_vanilla"]) == (3.0, 3.0)
    assert overall["compression_rate"] == pytest.approx(1.7)
    assert overall["ctar"] == pytest.approx([0.4, 0.2, 0.1])
    assert overall["conditional_acceptance"] == pytest.approx([0.4, 1.0, 1 / 3])
    assert (overall["questions"], overall["turns"], overall["generated_tokens"], overall["steps"]) == (3, 3, 17, 7)
    assert overall["lossless"] == {"identical": 2, "numerical": 1, "different": 0}


def test_a_question_that_failed_once_is_left_out_of_both_sides_in_every_round(turns):
    failure = make_turn("medusa", 1, 0, 0.0, round=1, error="RuntimeError: no")
    medusa = make_turn("medusa", 2, 5, 1.0, steps=plain(5))
    summary = summarized(make_run(kangaroo="method", medusa="method"), [*turns, failure, medusa])
    # What is left of qa is question 2: 4 tokens in 2 s, vanilla's 4 in 2 s.
    for name, speedup in (("vanilla", 1.0), ("kangaroo", 1.0), ("medusa", 2.0)):
        qa = summary["methods"][name]["tasks"]["qa"]
        assert (qa["turns"], qa["tok_per_s_vanilla"]) == (1, 2.0)
        assert qa["speedup_decode"]["value"] == speedup
    assert summary["excluded_questions"] == [1]
    assert summary["failed"] == [
        {
            "question_id": 1,
            "task": "qa",
            "method": "medusa",
            "turn": 0,
            "round": 1,
            "error": "RuntimeError: no",
            "at": None,
        }
    ]


def test_a_vanilla_failure_excludes_the_question_too(turns):
    turns[0].error = "RuntimeError: no"
    assert cell(turns)["turns"] == 1
    assert cell(turns)["speedup_decode"]["value"] == 1.0


def test_a_peer_is_compared_on_the_questions_that_it_was_asked(turns):
    peer = make_turn("hf-generate", 1, 9, 8.0)
    summary = summarized(make_run(**{"kangaroo": "method", "hf-generate": "peer"}), [*turns, peer])
    tasks = summary["methods"]["hf-generate"]["tasks"]
    assert list(tasks) == ["qa", "overall"]
    # 8 tokens in 8 s against vanilla's 8 in 4 s; with question 2 vanilla's sum would be 12 in 6 s: equal here,
    # so the end-to-end figure decides: 9 tokens in 9 s against 9 in 5 s.
    assert tasks["qa"]["speedup_decode"]["value"] == 0.5
    assert tasks["qa"]["speedup_total"]["value"] == pytest.approx(5 / 9)
    for key in OF_STEPS:
        assert tasks["qa"][key] is None
        assert tasks["overall"][key] is None
    # The peer's gaps cost the others nothing.
    assert summary["methods"]["kangaroo"]["tasks"]["qa"]["turns"] == 2


def test_pairs_need_the_same_question_turn_and_round():
    vanilla = make_turn("vanilla", 1, 3, 1.0)
    others = [
        make_turn("kangaroo", 2, 3, 1.0),
        make_turn("kangaroo", 1, 3, 1.0, turn=1),
        make_turn("kangaroo", 1, 3, 1.0, round=1),
    ]
    assert metrics.pairs([vanilla, *others], "kangaroo", "vanilla") == []
    match = make_turn("kangaroo", 1, 4, 1.0)
    assert metrics.pairs([*others, match, vanilla], "kangaroo", "vanilla") == [(match, vanilla)]


def test_every_round_counts_for_times_and_counters():
    answers = [
        make_turn("vanilla", 1, 5, 4.0, steps=plain(5)),
        make_turn("vanilla", 1, 5, 2.0, steps=plain(5), round=1),
        make_turn("kangaroo", 1, 5, 1.0, steps=[(1, 1, 2), (1, 1, 2)]),
        make_turn("kangaroo", 1, 5, 2.0, steps=[(1, 1, 2), (1, 1, 2)], round=1),
    ]
    qa = cell(answers)
    assert (qa["questions"], qa["turns"], qa["steps"]) == (1, 2, 4)
    assert qa["speedup_decode"]["value"] == 2.0
    assert qa["compression_rate"] == 2.0
    assert summarized(make_run(kangaroo="method"), answers)["rounds"] == 2


def test_a_turn_whose_first_token_is_eos_adds_no_step(turns):
    turns.append(make_turn("vanilla", 4, 1, 0.0, finish="eos"))
    turns.append(make_turn("kangaroo", 4, 1, 0.0, finish="eos", audit=Audit("identical")))
    qa = cell(turns)
    assert (qa["turns"], qa["generated_tokens"], qa["steps"]) == (3, 15, 5)
    assert qa["compression_rate"] == pytest.approx(12 / 5)
    assert qa["speedup_decode"]["value"] == 2.0
    assert qa["lossless"]["identical"] == 2


def test_what_nothing_was_measured_of_is_null():
    answers = [make_turn(name, 1, 1, 0.0, finish="eos") for name in ("vanilla", "kangaroo")]
    qa = cell(answers)
    assert qa["tok_per_s"] is None
    assert [qa[key] for key in SPEEDUPS if "decode" in key] == [UNDEFINED] * 3
    assert qa["compression_rate"] is None
    assert qa["repetition"] is None
    assert qa["step_time"] == {"draft": None, "verify": None, "rest": None, "total": None}
    assert qa["numerical_rate"] is None
    assert qa["speedup_total"] == {"value": 1.0, "low": None, "high": None}
    assert cell(answers, "overall")["speedup_decode"] == UNDEFINED


def test_a_method_without_a_finished_question_has_an_empty_overall(turns):
    tasks = summarized(make_run(medusa="method"), turns)["methods"]["medusa"]["tasks"]
    assert list(tasks) == ["overall"]
    assert tasks["overall"]["turns"] == 0
    assert tasks["overall"]["compression_rate"] is None
    assert tasks["overall"]["ctar"] == []
    assert tasks["overall"]["context"] == []
    assert [tasks["overall"][key] for key in SPEEDUPS] == [UNDEFINED] * 6
    for key in ("window_ctar", "confidence", "predicted", "prediction_error", "numerical_rate"):
        assert tasks["overall"][key] is None


def test_a_method_that_drafts_in_vain_shows_a_zero_and_vanilla_no_window():
    in_vain = [make_turn(name, 1, 3, 1.0, steps=[(4, 0, 1)] * 2) for name in ("vanilla", "kangaroo")]
    assert cell(in_vain)["ctar"] == [0.0]
    assert cell(in_vain)["conditional_acceptance"] == [0.0]
    plainly = [make_turn("vanilla", 1, 3, 1.0, steps=plain(3))]
    assert cell(plainly, method="vanilla", kind="vanilla")["ctar"] == []


def test_repetition_counts_8_grams_within_each_answer():
    # Twelve tokens have five 8-grams; a loop of two tokens has only two different ones.
    loop = make_turn("vanilla", 1, 0, 1.0, token_ids=[1, 2] * 6)
    assert metrics.repetition([loop]) == pytest.approx(3 / 5)
    # The same loop in a second answer repeats nothing across answers: 6 of 10.
    assert metrics.repetition([loop, loop]) == pytest.approx(6 / 10)
    # Pooled with an answer of nine different tokens (two 8-grams): 3 of 7.
    assert metrics.repetition([loop, make_turn("vanilla", 2, 9, 1.0)]) == pytest.approx(3 / 7)
    assert metrics.repetition([make_turn("vanilla", 2, 7, 1.0)]) is None


def test_losslessness_is_counted_only_where_it_was_audited_and_claimed(turns):
    turns[3].audit = None
    assert cell(turns)["lossless"] == {"identical": 0, "numerical": 1, "different": 0}
    assert cell(turns, kind="lossy")["lossless"] is None
    assert cell(turns, "overall", kind="lossy")["lossless"] is None
    assert cell(turns, method="vanilla", kind="vanilla")["lossless"] is None


def test_divergences_are_listed_with_their_gap(turns):
    turns[5].audit = Audit("different", 1, None, 3, math.inf, 2e-6)
    found = summarized(make_run(kangaroo="method"), turns)["divergences"]
    assert [(item["question_id"], item["verdict"], item["token"]) for item in found] == [
        (2, "numerical", 8),
        (3, "different", None),
    ]
    # What JSON cannot hold becomes null.
    assert [item["gap"] for item in found] == [1e-6, None]


def test_tasks_come_in_the_order_of_spec_bench():
    assert metrics.ordered_tasks(["own", "rag", "qa", "rag", "mt_bench"]) == ["mt_bench", "qa", "rag", "own"]
