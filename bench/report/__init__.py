"""A run's records as readable files: summary, tables, pages and plots. Needs no torch and no model."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bench.figures.axis import at_first
from bench.figures.metrics import summarize
from bench.figures.records import Run, Turn, atomic_writer, read_records, read_token_texts, write_json
from bench.figures.summary import SUMMARY_FILE, Summary
from bench.figures.waves import add_batches, read_blocks
from bench.report.tables import csv_frame
from bench.report.terminal import terminal_table

if TYPE_CHECKING:
    from bench.report.model import Section

__all__ = [
    "HTML_FILE",
    "REPORT_FILE",
    "SUMMARY_CSV",
    "SUMMARY_FILE",
    "TEX_FILE",
    "figures_of",
    "terminal_table",
    "write_page",
    "write_report",
]

SUMMARY_CSV = "summary.csv"
REPORT_FILE = "report.md"
HTML_FILE = "report.html"
TEX_FILE = "report.tex"


def write_report(run_dir: Path, plots_dir: Path) -> list[Path]:
    """Write all readable files of a run from its records; each file is replaced only when completely written.

    Returns the pages, the summary as JSON and CSV, then the plots.

    Raises:
        UserError: the records are missing or malformed, or a folder cannot be written.

    """
    # Drawing libraries take a second to load, and a table in a terminal needs none.
    from bench.report import html, markdown
    from bench.report.latex import report_tex

    run, summary, turns = figures_of(run_dir)
    plots, found = _drawn(run_dir, (run, summary, turns), plots_dir)
    _write_figures(summary, run_dir)
    pages = {HTML_FILE: html.page(summary, found), REPORT_FILE: markdown.page(found), TEX_FILE: report_tex(summary)}
    for name, content in pages.items():
        with atomic_writer(run_dir / name) as file:
            file.write(content)
    return [*(run_dir / name for name in (*pages, SUMMARY_FILE, SUMMARY_CSV)), *plots]


def write_page(run_dir: Path, folder: Path, home: str) -> tuple[Run, Summary, list[Turn]]:
    """Write the HTML page and the figures of a run into another folder; `home` is the page to which it links back.

    Raises:
        UserError: as `write_report`.

    """
    from bench.report import html

    run, summary, turns = figures_of(run_dir)
    with tempfile.TemporaryDirectory() as plots_dir:  # the page holds them itself
        found = _drawn(run_dir, (run, summary, turns), Path(plots_dir))[1]
        page = html.page(summary, found, home)
    _write_figures(summary, folder)
    with atomic_writer(folder / HTML_FILE) as file:
        file.write(page)
    return run, summary, turns


def figures_of(run_dir: Path) -> tuple[Run, Summary, list[Turn]]:
    """A run, everything that is computed from its records, and its turns.

    Raises:
        UserError: the records are missing or malformed.

    """
    run, turns = read_records(run_dir)
    summary = summarize(run, turns)
    add_batches(summary, run, read_blocks(run_dir, run))
    return run, summary, turns


def _write_figures(summary: Summary, folder: Path) -> None:
    write_json(folder / SUMMARY_FILE, summary)
    with atomic_writer(folder / SUMMARY_CSV) as file:
        csv_frame(summary).to_csv(file, index=False, lineterminator="\n")


def _drawn(
    run_dir: Path, computed: tuple[Run, Summary, list[Turn]], plots_dir: Path
) -> tuple[list[Path], list[Section]]:
    """A run's plots, drawn into `plots_dir`, and the sections of its report."""
    from bench.report.figures import PLOTS, write_figures
    from bench.report.model import Image
    from bench.report.sections import sections

    run, summary, turns = computed
    token_texts = read_token_texts(run_dir)
    plots = write_figures(summary, plots_dir)
    images = [Image(PLOTS[path.stem].title, path, link(path, run_dir), PLOTS[path.stem].caption) for path in plots]
    return plots, sections(run, summary, images, turns=at_first(run, turns), token_texts=token_texts)


def link(path: Path, folder: Path) -> str:
    """A file's address from a page in `folder`."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())
