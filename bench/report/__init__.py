"""A run's records as readable files: summary, tables, pages and plots. Needs no torch and no model."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from bench.figures.axis import at_first
from bench.figures.metrics import summarize
from bench.figures.records import atomic_writer, read_records, read_token_texts, write_json
from bench.figures.summary import SUMMARY_FILE
from bench.figures.waves import add_batches, read_blocks
from bench.report.tables import csv_frame
from bench.report.terminal import terminal_table

__all__ = ["HTML_FILE", "REPORT_FILE", "SUMMARY_CSV", "SUMMARY_FILE", "TEX_FILE", "terminal_table", "write_report"]

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
    from bench.report.figures import PLOTS, write_figures
    from bench.report.latex import report_tex
    from bench.report.model import Image
    from bench.report.sections import sections

    (run, turns), token_texts = read_records(run_dir), read_token_texts(run_dir)
    summary = summarize(run, turns)
    add_batches(summary, run, read_blocks(run_dir, run))
    turns = at_first(run, turns)
    write_json(run_dir / SUMMARY_FILE, summary)
    with atomic_writer(run_dir / SUMMARY_CSV) as file:
        csv_frame(summary).to_csv(file, index=False, lineterminator="\n")
    figures = write_figures(summary, plots_dir)
    images = [Image(PLOTS[path.stem].title, path, link(path, run_dir), PLOTS[path.stem].caption) for path in figures]
    found = sections(run, summary, images, turns=turns, token_texts=token_texts)
    pages = {HTML_FILE: html.page(summary, found), REPORT_FILE: markdown.page(found), TEX_FILE: report_tex(summary)}
    for name, content in pages.items():
        with atomic_writer(run_dir / name) as file:
            file.write(content)
    return [*(run_dir / name for name in (*pages, SUMMARY_FILE, SUMMARY_CSV)), *figures]


def link(path: Path, folder: Path) -> str:
    """A file's address from a page in `folder`."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())
