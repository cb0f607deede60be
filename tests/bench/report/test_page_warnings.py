"""What the Markdown page warns of."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from bench.figures.summary import Estimate, Summary
from bench.report import cautions
from tests.bench.report.full_summary import SIX, change, rich_summary
from tests.bench.report.helpers import make_run, rows, section
from tests.bench.report.test_page import rich_page


def warned(summary: Summary, **more) -> list[str]:
    return cautions.cautions(make_run(dict.fromkeys(SIX[:2], "method"), **more), summary)


@pytest.fixture
def calm() -> Summary:
    """A summary that nothing speaks against."""
    summary = rich_summary(SIX[:2])
    for entry in summary.methods.values():
        for cell in entry.tasks.values():
            value = cell.speedup_decode.value
            cell.questions = 80
            cell.prediction_error = 0.01
            cell.speedup_decode = Estimate(value, value * 0.96, value * 1.04)
    assert warned(summary) == []
    return summary


def test_a_wide_interval_is_warned_of_overall_first(calm):
    for task, width in (("overall", 1.06), ("rag", 1.2)):
        estimate = calm.methods["kangaroo"].tasks[task].speedup_decode
        estimate.low, estimate.high = estimate.value * (2 - width), estimate.value * width
    (text,) = warned(calm)
    assert text.startswith("**Wide intervals**")
    assert "kangaroo, Overall: ±6%; kangaroo, RAG: ±20%." in text


@pytest.mark.parametrize(("error", "told"), [(0.08, "kangaroo +8.0%"), (-0.08, "kangaroo -8.0%"), (0.07, None)])
def test_a_prediction_that_is_off_is_warned_of(calm, error, told):
    calm.methods["kangaroo"].overall.prediction_error = error
    assert [told in text for text in warned(calm)] == ([True] if told else [])


def test_many_numerical_turns_are_a_finding_in_float32_only(calm):
    calm.methods["kangaroo"].overall.numerical_rate = 0.003
    (text,) = warned(calm)
    assert "Many numerical divergences for float32** (kangaroo 0.3%" in text
    assert warned(dataclasses.replace(calm, dtype="bfloat16")) == []
    (text,) = warned(dataclasses.replace(calm, dtype="q4"))
    assert "Many numerical divergences for q4** (kangaroo 0.3%" in text


def test_numerical_turns_of_peers_with_other_arithmetic_are_no_finding(calm):
    quantised = dataclasses.replace(copy.deepcopy(calm), dtype="q4", activations="int8")
    peer = next(iter(quantised.of_kind("peer").values())).overall
    change(peer, numerical_rate=0.25, lossless={"identical": 15, "numerical": 5, "different": 0})
    assert warned(quantised) == []
    page = rich_page(quantised)
    text = section(page, "## Numerical rate")
    assert "the rounding of int8 activations" in text
    assert "hf-generate | 25.0% | 15 identical, 5 numerical" in text
    assert "kangaroo | 0.0%" in text
    assert ", q4, int8 activations" in page.splitlines()[0]
    assert "activations are rounded to eight bits as well" in section(page, "## What the figures mean")


def test_a_record_that_does_not_say_the_activations_is_shown_without(calm):
    """Records of earlier versions."""
    page = rich_page(dataclasses.replace(copy.deepcopy(calm), dtype="q4"))
    assert page.splitlines()[0].endswith(", q4")
    assert "eight bits as well" not in page


def test_a_busy_machine_is_warned_of(calm):
    assert warned(calm, provenance={"sessions": [SESSIONS[0] | {"others_share": 0.09}]}) == []
    busy = [SESSIONS[0] | {"others_share": 0.02}, SESSIONS[0] | {"others_share": 0.31}]
    (text,) = warned(calm, provenance={"sessions": busy})
    assert text.startswith("**Busy machine**: other programs used 2%, 31% of the processors")


SESSIONS = [
    {
        "started": "2026-11-01T10:00",
        "wall_s": 61,
        "others_share": 0.01,
        "commit": "aaa",
        "dirty": False,
        "warnings": [],
    },
    {"started": "2026-11-02T11:00", "wall_s": 5, "commit": "aaa", "dirty": True, "warnings": ["hot"]},
]


def test_sessions_on_other_code_are_warned_of_and_listed(calm):
    texts = warned(calm, provenance={"sessions": SESSIONS})
    assert [text.split("**")[1] for text in texts] == ["Hot.", "Sessions on different commits"]
    alike = [session | {"dirty": False, "warnings": []} for session in SESSIONS]
    assert warned(calm, provenance={"sessions": alike}) == []
    table = rows(section(rich_page(calm, provenance={"sessions": SESSIONS}), "### Sessions"))
    assert table[1:] == [
        ["1", "2026-11-01T10:00", "61 s", "1.0%", "aaa", "-"],
        ["2", "2026-11-02T11:00", "5 s", "-", "aaa with uncommitted changes", "hot"],
    ]


def test_a_warning_of_run_and_session_is_told_once(calm):
    told = {"warnings": ["hot"], "sessions": [SESSIONS[1] | {"commit": None, "dirty": False}]}
    assert warned(calm, provenance=told) == ["**Hot.**"]


def test_of_a_recorded_warning_the_heading_stands_out_and_a_methods_name_stays_as_it_is(calm):
    told = {"warnings": ["pld is left out: it has no corpus", "the machine is hot: it is slow"]}
    assert warned(calm, provenance=told) == [
        "**pld is left out**: it has no corpus.",
        "**The machine is hot**: it is slow.",
    ]


def test_coarse_dtypes_get_their_numerical_rate(calm):
    assert "## Numerical rate" not in rich_page(calm)
    coarse = dataclasses.replace(copy.deepcopy(calm), dtype="bfloat16")
    overall = coarse.methods["kangaroo"].overall
    change(overall, numerical_rate=0.1, lossless={"identical": 18, "numerical": 2, "different": 0})
    table = rows(section(rich_page(coarse), "## Numerical rate"))
    assert table[1] == ["kangaroo", "10.0%", "18 identical, 2 numerical"]
    assert table[2] == ["kangaroo:tree", "0.0%", "20/20 identical"]
