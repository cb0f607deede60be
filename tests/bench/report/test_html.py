"""The HTML page of a run: what is in it, that nothing in it can act, and that tokens are told apart as recorded."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures.machine import Machine
from bench.figures.metrics import summarize
from bench.figures.published import Result, Source
from bench.figures.records import Turn, read_run, read_turns
from bench.figures.summary import StepTime
from bench.report import html
from bench.report.figures import PLOTS
from bench.report.formats import shown_name
from bench.report.model import Image, Section
from bench.report.sections import sections
from tests import html_runs
from tests.html_runs import HOSTILE, KANGAROO, LOSSY, TOKEN_TEXTS
from tests.html_tree import Element, Tree

ROOT = Path(__file__).parents[3]
REFERENCE = sorted((ROOT / "results" / "reference").glob("*/summary.json"))
RESULT = Result(
    "kangaroo", "Kangaroo", "Vicuna-7B", "A100", "chain", {"mt_bench": 1.68, "overall": 1.5}, {"mt_bench": 2.22}, {}
)
PUBLISHED = Source("A Paper", "Someone: A Paper", "https://example.org/paper", "Spec-Bench", {}, [RESULT], [], [])
HEADLINE = "Decode speedup by task"
OVERALL = "Over all tasks"


def page_text(run=None, turns=None, summary=None, token_texts=TOKEN_TEXTS, figures=(), published=(), more=()):
    run = run or html_runs.run()
    turns = html_runs.turns() if turns is None else turns
    summary = summary or html_runs.summary(run, turns)
    found = sections(run, summary, figures, turns=turns, token_texts=token_texts, sources=list(published))
    return html.page(summary, [*found, *more])


def page(**given) -> Element:
    return Tree(page_text(**given)).root


def table(root: Element, caption: str) -> list[list[str]]:
    """The cells of the table with this caption, as shown, headings included."""
    found = next(one for one in root.all("table") if [each.text for each in one.all("caption")] == [caption])
    rows = [[cell for cell in row.children if isinstance(cell, Element)] for row in found.all("tr")]
    return [[" ".join(cell.text.split()) for cell in row] for row in rows]


def method(root: Element, name: str) -> Element:
    """What is folded under a method's name."""
    return next(one for one in root.all("details") if one.all("h2")[0].text == name)


def part(root: Element, anchor: str) -> Element:
    """The section with this anchor."""
    return next(one for one in root.all("section") if one.attributes["aria-labelledby"] == anchor)


def answers(root: Element) -> dict[str, dict[str, Element]]:
    """Panels by the answer's title and the method."""
    return {
        answer.all("h3")[0].text: {panel.all("h4")[0].text: panel for panel in answer.all("section", "panel")}
        for answer in root.all("article", "answer")
    }


def renamed(name: str) -> dict:
    """The full run with another name for its method."""
    run, turns = html_runs.run(), html_runs.turns()
    run.methods = {name if key == KANGAROO else key: info for key, info in run.methods.items()}
    for turn in turns:
        turn.method = name if turn.method == KANGAROO else turn.method
    return {"run": run, "turns": turns}


def test_the_title_says_model_device_dtype_and_questions():
    header = page().all("header")[0].text
    for what in ("tiny-model", "A Processor", "bfloat16", "12 (mini)", "greedy"):
        assert what in header


def test_the_headline_table_has_a_column_a_method_with_intervals():
    root = page()
    rows = table(root, HEADLINE)
    assert [row[0] for row in rows[1:4]] == ["Multi-turn conversation", "Translation", "Summarization"]
    assert rows[0][1] == KANGAROO
    # 54 tokens in 1.3 s each; vanilla 54 in 2.0 and in 2.1 s: 4.1 / 2.6.
    assert rows[1][1] == "1.58x [1.47, 1.67]"
    assert rows[-1][:2] == ["Overall", "1.58x [1.47, 1.67]"]
    kangaroo = next(row for row in table(root, OVERALL) if row[0] == KANGAROO)
    assert (kangaroo[1], kangaroo[-1]) == ("2,000,000", "11/12")
    assert "output of 12 turns: 11 identical, 1 numerical." in root.all("article", "card")[0].text
    assert table(method(root, "vanilla"), "Vanilla's own rates")[1][3] == "26.3"  # 108 / 4.1 tokens/s


def test_a_lossy_method_never_passes_for_a_lossless_one():
    root = page()
    assert f"{LOSSY} (not lossless)" in table(root, HEADLINE)[0]
    assert f"{LOSSY} (not lossless)" in [card.all("h3")[0].text for card in root.all("article", "card")]


def test_a_card_says_how_fast_and_at_what_price():
    card = page().all("article", "card")[0]
    assert card.all("h3")[0].text == KANGAROO
    assert "1.58x" in card.text
    assert "[1.47, 1.67]" in card.text
    assert "2,000,000" in card.text


def test_the_page_has_every_estimator_and_where_the_time_goes():
    root = page()
    estimators = table(root, f"Speedup over vanilla: {KANGAROO}")
    assert len(estimators[0]) == 8  # with the median, which has no interval
    assert estimators[-1][0] == "Overall"
    assert all(cell.endswith("]") for row in estimators[1:] for cell in row[1:-1])
    details = method(root, KANGAROO)
    overall = table(details, "Where the time goes")[-1]
    assert overall[:6] == ["Overall", "0.21", "0.98", "0.02", "1.21", "1.25"]
    assert overall[-3:] == ["1.58x", "1.40x", "+10.0%"]
    assert table(details, "What the figures were counted from")[1][-1] == "0.61 0.32 0.13"  # window CTAR
    windows = table(details, "Window CTAR(w): share of positions at which w forced drafts are right")
    assert (windows[0], windows[1][1:]) == (["task", "w = 1", "w = 2", "w = 3"], ["0.61", "0.32", "0.13"])
    ctar = table(details, "CTAR(w): share of steps that added more than w tokens")
    # Of the 24 steps of an answer, 15 added more than one token.
    assert ctar[0][:2] == ["task", "w = 1"]
    assert ctar[-1][:2] == ["Overall", "0.62"]
    histogram = table(details, "Steps by how many tokens they added")
    assert histogram[1][1:] == ["40.0% 40", "30.0% 30", "20.0% 20", "10.0% 10"]
    assert table(details, "Time per token by length of context")[1] == ["100 tokens", "31.0", "41.0", "5"]


def test_vanilla_is_the_baseline_and_neither_lossy_nor_faster_than_itself():
    run, turns = html_runs.run(), html_runs.turns()
    summary = html_runs.summary(run, turns)
    for cell in summary.methods["vanilla"].tasks.values():
        cell.step_time = StepTime(0.0, 0.97, 0.03, 1.0)
    details = method(page(run=run, turns=turns, summary=summary), "vanilla")
    steps = table(details, "Where the time goes")
    assert (steps[0], steps[-1]) == (
        ["task", "draft", "verify", "rest", "total"],
        ["Overall", "0.00", "0.97", "0.03", "1.00"],
    )
    assert "lossless" not in details.text
    assert "speedup" not in details.text.lower()


def test_the_markdown_of_warnings_and_definitions_becomes_markup():
    warnings = Section("More warnings", ["- **Few questions** (qa 2): see [Divergences](#divergences)."])
    definitions = Section("More words", ["- **CR** is *tokens* per\n  step, `a < b`.\n- Second."])
    root = page(more=[warnings, definitions])
    warning = part(root, "more-warnings").all("li")[0]
    assert warning.text == "Few questions (qa 2): see Divergences."
    assert warning.all("strong")[0].text == "Few questions"
    assert warning.all("a")[0].attributes["href"] == "#divergences"
    items = part(root, "more-words").all("li")
    assert [" ".join(item.text.split()) for item in items] == ["CR is tokens per step, a < b.", "Second."]
    assert [item.all("code")[0].text for item in items[:1]] == ["a < b"]


def test_a_list_of_knobs_gets_a_short_name_that_a_table_explains():
    name = "kangaroo:" + ",".join(f"knob{i}=value{i}" for i in range(9))
    root = page(**renamed(name))
    assert table(root, HEADLINE)[0][1] == "kangaroo (1)"
    assert table(root, "Short names of methods")[1:] == [["kangaroo (1)", name]]
    assert root.all("article", "card")[0].all("h3")[0].text == "kangaroo (1)"
    assert "kangaroo (1)" in answers(root)["Translation: question 84, turn 1"]
    assert table(root, "First differing tokens")[1][0].startswith("kangaroo (1), question 84")
    assert "Short names of methods" not in page().text


def test_published_figures_stand_apart_with_their_source():
    root = page(published=[PUBLISHED])
    rows = table(root, "kangaroo: speedup, here and as published")
    assert [row[:2] for row in rows[1:]] == [["this run", KANGAROO], ["A Paper", "Kangaroo (chain)"]]
    assert rows[2][2:5] == ["Vicuna-7B", "A100", "1.68x"]
    assert rows[2][-1] == "1.50x"
    assert rows[2][5] == "-"
    assert table(root, "kangaroo: CR, here and as published")[2][4] == "2.22"
    section = part(root, "published-figures-of-the-same-method")
    assert "Not measured here" in section.text
    assert [link.attributes["href"] for link in section.all("a")] == ["https://example.org/paper"]


def test_a_source_that_is_no_https_address_is_not_made_a_link():
    root = page(published=[dataclasses.replace(PUBLISHED, url="javascript:alert(1)")])
    assert not part(root, "published-figures-of-the-same-method").all("a")


def test_figures_are_inside_the_page_and_grouped(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    titles = [PLOTS[name].title for name in ("ctar_by_window", "speedup_by_task", "three_estimators")]
    root = page(figures=[Image(title, tmp_path / "picture.png", "") for title in [*titles, "Unheard of"]])
    images = root.all("img")
    assert [image.attributes["alt"] for image in images] == [titles[1], titles[2], titles[0], "Unheard of"]
    start, data = images[1].attributes["src"].split(",")
    assert start == "data:image/png;base64"
    assert base64.b64decode(data) == b"\x89PNG"
    groups = [heading.text for heading in part(root, "plots").all("h3")]
    assert groups == ["How fast", "What is accepted", "Further figures"]


def test_failures_and_divergences_are_listed():
    run, turns = html_runs.run(), html_runs.turns()
    turns.append(Turn(KANGAROO, 99, "qa", "qa", 0, 0, error=f"ValueError: {HOSTILE}"))
    root = page(run=run, turns=turns)
    assert table(root, "Turns that failed")[1][1] == f"ValueError: {HOSTILE}"
    row = table(root, "First differing tokens")[1]
    assert row[0].startswith("kangaroo, question 84 (Translation)")
    assert row[1:] == ["numerical", "20", "sea", "the", "0.001", "0.004"]


def test_nothing_from_the_records_becomes_markup():
    run, turns = html_runs.run(), html_runs.turns()
    given = renamed(f'{HOSTILE}"onload="x')
    run, turns = given["run"], given["turns"]
    run.command = run.provenance["started"] = HOSTILE
    run.model["name"] = HOSTILE
    run.machine = Machine(name=HOSTILE)
    turns.append(Turn(LOSSY, 99, "qa", "qa", 0, 0, error=HOSTILE))
    token_texts = dict.fromkeys(TOKEN_TEXTS, f"{HOSTILE}\n<img src=x onerror=alert(1)>")
    text = page_text(
        run=run,
        turns=turns,
        token_texts=token_texts,
        more=[
            Section(HOSTILE, [f"- {HOSTILE}", f"[x](javascript:{HOSTILE})", "![x](https://evil.example/x.png)\x1b[0m"])
        ],
    )
    root = Tree(text).root
    assert len(root.all("script")) == 1
    assert not root.all("img")
    assert "\x1b" not in text
    assert not {name for element in root.all() for name in element.attributes if name.startswith("on")}
    assert text.count(html.escape(HOSTILE)) > 20, "the text itself is still there to read"


def test_the_page_loads_nothing_and_may_run_only_its_own_script():
    text = page_text(published=[PUBLISHED])
    root = Tree(text).root
    sources = [one.attributes[name] for one in root.all() for name in ("src", "href") if name in one.attributes]
    remote = [source for source in sources if not source.startswith(("#", "data:"))]
    assert set(remote) == {"https://example.org/paper"}
    assert "url(" not in text
    assert "@import" not in text
    policy = root.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]
    assert "default-src 'none'" in policy.attributes["content"]
    assert re.search(r"script-src 'sha256-[\w+/=]+'$", policy.attributes["content"])


def test_links_within_the_page_lead_somewhere_and_ids_are_unique():
    root = page(published=[PUBLISHED], more=[Section("More", ["[Provenance](#provenance)"])])
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for link in root.all("a"):
        if link.attributes["href"].startswith("#"):
            assert link.attributes["href"][1:] in ids


def test_headings_stand_in_order_and_cells_say_what_they_head():
    root = page(published=[PUBLISHED])
    levels = [int(one.tag[1]) for one in root.all() if re.fullmatch(r"h[1-6]", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for heading in root.all("th"):
        assert heading.attributes.get("scope") in ("col", "row")
    for found in root.all("table"):
        widths = {len([cell for cell in row.children if isinstance(cell, Element)]) for row in found.all("tr")}
        assert len(widths) == 1, f"rows of {found.text[:50]!r} differ in length"


def test_provenance_sessions_and_knobs_are_complete():
    root = page()
    facts = dict(table(root, "Provenance of the run")[1:])
    assert facts["commit"] == "0123abc with uncommitted changes"
    assert facts["command"] == "roobench --method kangaroo"
    assert facts["model"] == f"tiny-model, sha256 {'ab' * 6}"
    sessions = table(root, "Sessions")
    assert sessions[2] == ["2", "2026-01-02", "12 s", "25.0%", "b2 with uncommitted changes", "hot"]
    knobs = table(root, "Methods with every knob")
    assert knobs[2] == [
        KANGAROO,
        "method",
        "yes",
        "question",
        "2,000,000",
        "-",
        "gamma=6",
        "-",
    ]  # written before memory was recorded


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.parent.name)
def test_the_reference_runs_render(path):
    run, turns = read_run(path.parent), read_turns(path.parent)
    summary = summarize(run, turns)
    root = page(run=run, turns=turns, summary=summary, token_texts={})
    header, *rows = table(root, HEADLINE)
    many = header[-1] == "Overall"  # then each method is a row
    overall = {row[0]: row[-1] for row in rows} if many else dict(zip(header, rows[-1], strict=True))
    for name, entry in summary.of_kind("method").items():
        assert overall[shown_name(name, entry)].split()[0] == f"{entry.overall.speedup_decode.value:.2f}x"
    shown = [panel for panels in answers(root).values() for panel in panels.values()]
    assert len(shown) >= 6
    assert all(panel.all("span", "t") for panel in shown)


def test_a_run_of_vanilla_alone_says_so():
    run = html_runs.run()
    run.methods = {"vanilla": run.methods["vanilla"]}
    turns = [turn for turn in html_runs.turns() if turn.method == "vanilla"]
    root = page(run=run, turns=turns, summary=summarize(run, turns))
    assert "Only vanilla was run" in root.text
    assert not answers(root)


def test_a_run_in_which_nothing_was_finished_renders():
    run, turns = html_runs.run(), html_runs.turns()
    failed = [dataclasses.replace(turn, error="RuntimeError: out of memory") for turn in turns]
    root = page(run=run, turns=failed, summary=summarize(run, failed))
    assert "no question was finished by both this method and vanilla" in root.text
    assert not answers(root)


def test_the_page_needs_no_torch():
    code = "import sys, bench.report.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
