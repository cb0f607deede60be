"""A run's records as something to read: summary, tables, page and plots. Needs no torch and no model."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from bench.metrics import summarize
from bench.records import atomic_writer, read_run, read_turns, write_json
from bench.report.tables import csv_frame, terminal_table

__all__ = ["REPORT_FILE", "SUMMARY_CSV", "SUMMARY_FILE", "terminal_table", "write_report"]

SUMMARY_FILE = "summary.json"
SUMMARY_CSV = "summary.csv"
REPORT_FILE = "report.md"


def write_report(run_dir: Path, plots_dir: Path) -> list[Path]:
    """Derive everything readable from a run's records; each file is replaced only when completely written.

    Returns the page, the summary as JSON and CSV, then the plots.

    Raises:
        UserError: the records are missing or malformed, or a folder cannot be written.

    """
    # Drawing libraries take a second to load, and a table in a terminal needs none.
    from bench.report.figures import PLOTS, write_figures
    from bench.report.page import report_page

    run = read_run(run_dir)
    summary = summarize(run, read_turns(run_dir))
    write_json(run_dir / SUMMARY_FILE, summary)
    with atomic_writer(run_dir / SUMMARY_CSV) as file:
        csv_frame(summary).to_csv(file, index=False, lineterminator="\n")
    figures = write_figures(summary, plots_dir)
    images = [
        (PLOTS[path.stem], quote(Path(os.path.relpath(path, run_dir)).as_posix()))
        for path in figures
        if path.suffix == ".png"
    ]
    with atomic_writer(run_dir / REPORT_FILE) as file:
        file.write(report_page(run, summary, images))
    return [run_dir / REPORT_FILE, run_dir / SUMMARY_FILE, run_dir / SUMMARY_CSV, *figures]
