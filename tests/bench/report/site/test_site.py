"""A site over several runs: what its pages say, that their links lead somewhere, and that nothing in them can act."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from bench.cli import main
from bench.figures.index import OverValue, read_index
from bench.figures.summary import Estimate
from bench.report.batched import below_from_the_start
from bench.report.site import board, curves, pages
from tests import html_runs, site_runs
from tests.html_tree import Element, Tree
from tests.site_runs import BATCHED, ELSEWHERE, HOSTILE, NEW, OLD

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def entries(site):
    return read_index(site / "index.json").entries


def root(path: Path) -> Element:
    return Tree(path.read_text(encoding="utf-8")).root


def all_pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def rows(page: Element, caption: str) -> list[list[str]]:
    """The body of the table with this caption, as shown."""
    found = next(one for one in page.all("table") if [each.text for each in one.all("caption")] == [caption])
    cells = [[cell for cell in row.children if isinstance(cell, Element)] for row in found.all("tbody")[0].all("tr")]
    return [[" ".join(cell.text.split()) for cell in row] for row in cells]


def section(page: Element, anchor: str) -> Element:
    return next(one for one in page.all("section") if one.attributes.get("aria-labelledby") == anchor)


def test_there_is_a_page_a_method_and_a_report_a_run(site):
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    reports = {f"runs/{run}/{name}" for run in (BATCHED, ELSEWHERE, NEW, OLD) for name in REPORT}
    shown = {f"methods/{name}.html" for name in ("vanilla", "kangaroo", "medusa", "hf-generate", "pld")}
    assert names == {"index.html", "index.json"} | reports | shown


A, B, C = ("gamma", 6), ("beam", 1), ("weights", "")  # knobs
REPORT = ("report.html", "summary.json", "summary.csv")


def test_links_lead_to_what_is_there_and_nowhere_else(site):
    for path in all_pages(site):
        page = root(path)
        for link in page.all("a"):
            address, _, anchor = unquote(link.attributes["href"]).partition("#")
            if address.startswith("https://"):
                continue
            target = (path.parent / address).resolve() if address else path
            assert target.is_relative_to(site.resolve())
            assert target.is_file(), f"{path.name}: {address}"
            if anchor and target.suffix == ".html":
                ids = [one.attributes.get("id") for one in root(target).all()]
                assert anchor in ids, f"{path.name}: #{anchor}"


def test_nothing_is_loaded_and_no_name_can_act(site):
    for path in all_pages(site):
        text, page = path.read_text(encoding="utf-8"), root(path)
        assert "default-src 'none'" in text
        assert "<script>alert" not in text
        assert len(page.all("script")) == 1
        for tag in ("img", "iframe", "object", "embed"):
            assert all(one.attributes.get("src", "").startswith("data:") for one in page.all(tag))
        assert [one.attributes["href"] for one in page.all("link")] == ["data:,"]
    assert HOSTILE.partition(":")[2] in root(site / "methods" / "pld.html").text


def test_a_row_of_the_leaderboard_has_setting_figures_interval_and_report(site):
    found = rows(root(site / "index.html"), "Leaderboard")
    assert [(row[0].split()[0], row[-1]) for row in found] == [
        ("kangaroo", "3 Nov 2026 2222222"),
        ("kangaroo", "2 Nov 2026 2222222"),
        ("kangaroo", "1 Nov 2026 1111111"),
        ("kangaroo", "1 Jan 2026 0123abc+"),
        ("medusa", "1 Jan 2026 0123abc+"),
        ("pld", "1 Jan 2026 0123abc+"),
        ("hf-generate", "1 Jan 2026 0123abc+"),
    ]
    row = found[1]
    assert re.fullmatch(r"1\.6\dx \[1\.6\d, 1\.\d\d\]", row[1])
    assert row[4] == "2.00"
    assert re.fullmatch(r"1\.\d vanilla 0\.\d", row[5])
    assert row[6] == "12/12 identical"
    assert row[7].startswith("smollm2-135m-instruct float32; a CPU, 2 threads (")
    assert row[8] == "mini (12) 9 new tokens"
    kangaroo, medusa, pld, peer = found[3:]
    assert kangaroo[6] == "11/12 1 numerical"
    assert medusa[0] == "medusa accept=typical"
    assert medusa[6] == "NOT lossless by design"
    assert pld[6] == "11/12 1 numerical"
    assert pld[0].endswith("; remembers the run")
    assert peer[0] == "hf-generate 9 of 12 questions"
    assert peer[4] == "-"


def test_only_identical_output_is_marked_as_good(site):
    body = root(site / "index.html").all("table")[0].all("tbody")[0]
    marks = [[name for name in ("good", "bad") if row.all("td", name)] for row in body.all("tr")]
    assert marks == [["good"], ["good"], ["good"], [], ["bad"], [], ["good"]]


def test_the_fastest_method_of_a_setting_is_lossless(site):
    cards = root(site / "index.html").all("article", "card")
    assert [card.all("h3")[0].text for card in cards] == ["kangaroo", "kangaroo"]  # a setting each
    assert "the only lossless method measured there" in cards[0].text
    assert "official" not in cards[0].text


def test_a_methods_own_caution_is_below_the_table(site):
    for name, anchor in ("index.html", "leaderboard"), ("methods/pld.html", "results"):
        shown = section(root(site / name), anchor)
        assert "it knows everything." in shown.text
        assert HOSTILE in shown.text


def test_a_caution_leads_nowhere_and_is_a_paragraph(tmp_path):
    run, turns = site_runs.older()
    name = "kangaroo:x=[name](https://example.org)\n# name"
    caution = "it *knows* `all`\n\n# Loud\n[link](https://example.org) ![i](https://example.org/i.png) "
    caution += "<https://example.org> <b>b</b>"
    run.methods[name] = dataclasses.replace(run.methods.pop("kangaroo"), notes={"caution": caution})
    turns = [dataclasses.replace(turn, method=name) if turn.method == "kangaroo" else turn for turn in turns]
    site_runs.write_run(tmp_path / "run", run, turns)
    assert main(["publish", str(tmp_path / "run"), "--out", str(tmp_path)]) == 0
    for page, anchor in ("index.html", "leaderboard"), ("methods/kangaroo.html", "results"):
        shown = section(root(tmp_path / page), anchor)
        paragraph = shown.all("p")[-1]
        assert "it knows all # Loud [link](https://example.org)" in paragraph.text
        assert [one.text for one in paragraph.all("em") + paragraph.all("code")] == ["knows", "all"]
        assert "[name](https://example.org)" in paragraph.all("strong")[0].text
        assert not [link for link in shown.all("a") if link.attributes["href"].startswith("https://")]
        assert not shown.all("h1") + shown.all("img") + shown.all("b")


def test_runs_with_the_most_questions_come_first(entries):
    few = [
        dataclasses.replace(
            one, speedup=Estimate(9.0), run_id="few", questions=dataclasses.replace(one.questions, asked=3)
        )
        for one in entries
        if one.run_id == NEW
    ]
    page = Tree(pages.pages([*few, *entries])["index.html"]).root
    assert rows(page, "Leaderboard")[-1][1] == "9.00x"
    last = page.all("article", "card")[-1]
    assert "9.00x" in last.text
    assert "too few questions for an interval" in last.text
    (listed,) = [one for one in section(page, "methods").all("li") if one.all("a")[0].text == "kangaroo"]
    assert "9.00x" not in listed.text  # which has no interval


def test_methods_are_listed_by_name_with_the_baseline_first_and_peers_last(site):
    listed = section(root(site / "index.html"), "methods").all("li")
    assert [one.all("a")[0].text for one in listed] == ["vanilla", "kangaroo", "medusa", "pld", "hf-generate"]


def test_the_same_knobs_in_another_order_are_one_variant(entries):
    one, other = (dataclasses.replace(entries[1], knobs=dict(knobs)) for knobs in ((A, B, C), (B, A, C)))
    page = Tree(pages.pages([one, other])["methods/kangaroo.html"]).root
    assert rows(page, "Every knob") == [["kangaroo", "beam=1, gamma=6"]]


def test_knobs_of_members_that_are_empty_are_left_out_too(entries):
    knobs = {"pld": {"ngram": 3}, "kangaroo": dict((A, C))}
    entry = dataclasses.replace(entries[1], method="pld+kangaroo", knobs=knobs)
    page = Tree(pages.pages([entry])["methods/pld+kangaroo.html"]).root
    assert rows(page, "Every knob") == [["pld+kangaroo", "pld=ngram 3, kangaroo=gamma 6"]]


def test_a_run_that_did_not_record_families_takes_them_from_another(entries):
    early, late = (dataclasses.replace(entries[1], family=family) for family in ("", "self"))
    for given, kind in (([early, late], "self"), ([early], "other")):
        page = Tree(pages.pages(given)["methods/kangaroo.html"]).root
        assert f"kind{kind}" in page.all("header")[0].text


def test_a_method_that_remembers_is_not_the_fastest(entries):
    elsewhere = [entry for entry in entries if entry.run_id == ELSEWHERE]
    remembering = next(entry for entry in elsewhere if entry.method == HOSTILE)
    assert remembering.remembers_the_run
    remembering = dataclasses.replace(remembering, speedup=Estimate(99.0))
    assert board.best([*elsewhere, remembering]).method == html_runs.KANGAROO
    broken = [dataclasses.replace(entry, lossless={"different": 1}) for entry in elsewhere]
    assert board.best(broken) is None


def test_the_list_of_methods_names_the_fastest_fair_variant_as_its_page_does(entries):
    new = [entry for entry in entries if entry.run_id == NEW]
    (kangaroo,) = [entry for entry in new if entry.kind == "method"]
    lossy = dataclasses.replace(
        kangaroo, method="kangaroo:x=1", claims_lossless=False, speedup=Estimate(9.0, 8.0, 10.0)
    )
    made = pages.pages([*new, lossy])
    assert "9.00x" not in section(Tree(made["index.html"]).root, "methods").text
    assert "9.00x" not in Tree(made["methods/kangaroo.html"]).root.all("header")[0].text


def test_the_value_of_a_filter_keeps_its_spaces(entries):
    name = "CPU     E5620"
    renamed = dataclasses.replace(entries[1], machine=dataclasses.replace(entries[1].machine, name=name))
    page = Tree(pages.pages([*entries, renamed])["index.html"]).root
    values = [option.attributes.get("value") for option in page.all("option")]
    assert any(value is not None and name in value for value in values)


def test_a_method_that_left_out_questions_is_not_the_fastest(entries):
    new = [entry for entry in entries if entry.run_id == NEW]
    (kangaroo,) = [entry for entry in new if entry.kind == "method"]
    few = dataclasses.replace(kangaroo, method="few", answered=11, speedup=Estimate(9.0))
    assert board.best([*new, few]).method == "kangaroo"
    (card,) = Tree(pages.pages([*new, few])["index.html"]).root.all("article", "card")
    assert "the only lossless method measured there" in card.text
    # A question that failed is left out for all.
    failed = [
        dataclasses.replace(one, answered=11, questions=dataclasses.replace(one.questions, failed=1))
        for one in (kangaroo, few)
    ]
    assert board.best(failed).method == "few"


def test_history_is_of_one_setting_in_the_order_of_its_runs(entries):
    (group,) = curves.history(entries)
    assert group.title == "smollm2-135m-instruct, float32"
    assert re.fullmatch(r"a CPU, 2 threads \(\w+\); mini \(12\), 9 new tokens \([0-9a-f]{12}\)", group.about)
    (panel,) = group.panels
    assert panel.title == "kangaroo"
    assert [x for x, _, _ in panel.dots] == sorted(x for x, _, _ in panel.dots)
    assert [text.partition(":")[0] for _, _, text in panel.dots] == ["1111111", "2222222", "2222222"]
    heights = [y for _, y, _ in panel.dots]
    assert heights[0] > heights[1]  # from above: it got faster
    assert panel.one > heights[0]
    assert re.match(r"1\.3\dx . 1\.6\dx", panel.summary)
    assert group.figures.rows[0][:3] == ["1 Nov 2026", "1111111", "kangaroo"]


def test_a_setting_of_one_commit_has_no_history(entries):
    alone = [entry for entry in entries if entry.run_id in (NEW, BATCHED)]
    assert curves.history(alone) == []
    assert "No setting was measured at several commits yet." in pages.pages(alone)["index.html"]


def test_batches_have_a_curve_a_prediction_and_a_crossover(entries):
    (group,) = curves.batches(entries)
    (panel,) = group.panels
    assert (len(panel.curve), len(panel.predicted), len(panel.dots)) == (2, 2, 3)
    assert panel.dots[1][1] < panel.one < panel.dots[2][1]  # above and below plain decoding
    assert [text for _, text in panel.columns] == ["1", "2", "4"]
    assert re.fullmatch(r"crosses at 2\.\d|crosses at 3\.\d", panel.summary)
    header, row = group.figures.header, group.figures.rows[0]
    assert header == ["method", "batch 1", "batch 2", "batch 4", "crossover"]
    assert row[-1] == panel.summary


def test_a_curve_that_rises_above_plain_decoding_is_not_below_it_from_its_start_on():
    curve = [(1, 0.98), (2, 1.05), (4, 0.9)]
    assert below_from_the_start(curve) == "below 1 at batch 1"
    assert below_from_the_start(curve[:1]) == "below 1 at batch 1"
    assert below_from_the_start([(2, 0.98), (4, 0.9)]) == "below 1 from batch 2 on"
    assert below_from_the_start(curve[1:]) == ""


@pytest.mark.parametrize("value", [1.0, 51.0, 1e9, 5.1e9, 1e300])
def test_a_scale_of_any_span_has_a_few_round_values(value):
    labels = curves._Scale([0.0, 1.0], 1.0, value).rows()
    assert 1 <= len(labels) <= 6
    assert "1x" in [text for _, text in labels]


def test_curves_over_temperatures(entries):
    first = entries[1]
    first.axis = "temperature"
    first.over = [OverValue(0.0, Estimate(1.5)), OverValue(1.0, Estimate(1.1))]
    (group,) = curves.over_axis([first])
    assert group.title == "By temperature: smollm2-135m-instruct, float32"
    assert curves.axes(entries) == ["temperatures"]
    assert [text for _, text in group.panels[0].columns] == ["0", "1"]
    made = pages.pages([first])
    for name in ("index.html", "methods/kangaroo.html"):
        over = section(Tree(made[name]).root, "over")
        assert over.all("h2")[0].text == "Speedup over temperatures"
        assert "1.50x" in over.text
    first.axis, first.over = "", []


def test_a_methods_page_says_what_it_is_and_has_its_rows_alone(site):
    page = root(site / "methods" / "kangaroo.html")
    assert "Kangaroo" in page.all("header")[0].text
    assert "arXiv 2404.18911" in page.all("header")[0].text
    assert {row[0] for row in rows(page, "Results of kangaroo")} == {"kangaroo"}
    tasks = rows(page, "Decode speedup and CR by task")
    assert len(tasks) == 4
    assert re.match(r"1\.6\dx CR 2\.00", tasks[0][-1])
    assert section(page, "history").all("svg")
    assert section(page, "batches").all("svg")
    baseline = root(site / "methods" / "vanilla.html")
    assert [row[-1] for row in rows(baseline, "Tokens per second of plain decoding")][3] == "26.3"


def test_the_runs_say_whether_their_checks_passed_and_what_failed(site):
    page = root(site / "index.html")
    found = {row[0]: row[-1] for row in rows(page, "Runs")}
    assert found == {BATCHED: "passed", NEW: "passed", OLD: "passed", ELSEWHERE: "5 problems"}
    assert "the run was made with uncommitted changes: commit them and measure again" in section(page, "runs").text


def test_a_report_leads_back_to_the_site(site):
    (brand,) = root(site / "runs" / NEW / "report.html").all("p", "brand")
    assert brand.all("a")[0].attributes["href"] == "../../index.html"


def test_filters_offer_what_there_is_a_choice_of(entries):
    found = board.leaderboard(entries, str).facets
    assert set(found) == {"model", "machine", "dtype", "questions", "kind"}
    assert found["dtype"] == ["bfloat16", "float32"]
    alone = board.leaderboard([entry for entry in entries if entry.run_id == NEW], str)
    assert alone.facets == {}


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a", "a+b"], ["a.html", "a+b.html"]),
        (["../../evil", "..", "a/b"], ["_.._evil.html", "_.html", "a_b.html"]),
        (["a b", "a?b", "A_b"], ["a_b.html", "a_b-2.html", "A_b-3.html"]),
    ],
)
def test_a_page_is_a_file_of_its_own_within_the_folder(entries, names, files):
    made = [dataclasses.replace(entries[1], method=name) for name in names]
    assert [name for name in pages.pages(made) if name != "index.html"] == [f"methods/{file}" for file in files]


def test_publishing_needs_no_torch(tmp_path):
    site_runs.write_run(tmp_path / "run", *site_runs.older())
    code = (
        "import sys; from bench.cli import main; "
        f"status = main(['publish', {str(tmp_path / 'run')!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "assert status == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "index.html").is_file()


def test_the_check_names_each_run_and_ends_with_its_verdict(tmp_path, capsys):
    folder = site_runs.write_all(tmp_path)
    assert main(["publish", "--check", str(folder / "new"), str(folder / "old")]) == 0
    assert capsys.readouterr().out.count(": plausible") == 2
    assert main(["publish", "--check", str(folder)]) == 1
    said = capsys.readouterr()
    assert f"{folder / 'elsewhere' / 'deeper'}:\n  the run was made with uncommitted changes" in said.out
    assert said.err == "1 run is not plausible\n"
    assert html_runs.LOSSY not in said.out


def test_without_runs_those_of_the_project_are_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "--check"]) == 2
    assert "no runs are given, and none are in results/reference and results/contributed" in capsys.readouterr().err
    site_runs.write_run(tmp_path / "results" / "contributed" / "mine", *site_runs.older())
    assert main(["publish", "--check"]) == 0
    assert "results/contributed/mine: plausible" in capsys.readouterr().out
