"""report --open: the page in the browser, or its path."""

from __future__ import annotations

import webbrowser

import pytest

from bench.cli import main
from tests.bench.report.helpers import make_run, make_turns, save


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.report.figures.write_figures", lambda summary, folder: [])
    return save(tmp_path / "r 1", make_run({"kangaroo": "method"}), make_turns({"kangaroo": "method"}, ("qa",)))


def test_the_page_is_opened_once_it_is_written(run_dir, monkeypatch, capsys):
    opened, page = [], run_dir / "report.html"
    monkeypatch.setattr(
        webbrowser, "open", lambda address: opened.append(address) or (run_dir / "report.html").exists()
    )
    assert main(["report", str(run_dir), "--open"]) == 0
    assert opened == [page.as_uri()]
    assert "no browser" not in capsys.readouterr().err


@pytest.mark.parametrize("raises", [False, True])
def test_without_a_browser_the_path_is_told(run_dir, monkeypatch, capsys, raises):
    def no_browser(address):
        if raises:
            raise webbrowser.Error("could not locate runnable browser")
        return False

    monkeypatch.setattr(webbrowser, "open", no_browser)
    assert main(["report", str(run_dir), "--open"]) == 0
    assert capsys.readouterr().err.endswith(f"no browser was found here: open {run_dir / 'report.html'} in one\n")


def test_nothing_is_opened_unasked_and_answer_files_have_no_page(run_dir, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(webbrowser, "open", None)
    assert main(["report", str(run_dir)]) == 0
    file = tmp_path / "a.jsonl"
    file.write_text("{}")
    assert main(["report", str(file), str(file), "--open"]) == 2
    assert "--open: answer files are tabled, not drawn" in capsys.readouterr().err
