"""A static site over many runs: a leaderboard, history over commits, curves over batch sizes, a page a method, and the
report of every run. It needs no network and no server, and is whole without its script. No torch, no model.

Its pages are made of `index.json` alone, which is written next to them: what they show, other programs can read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from bench.errors import UserError
from bench.figures.index import INDEX_FILE, IndexEntry, entries_of, read_index, write_entries
from bench.figures.plausible import check_folder, runs_below
from bench.figures.records import atomic_writer, read_run
from bench.report import HTML_FILE, REPORT_FILE, figures_of, link, write_page
from bench.report.formats import sampling_text

Say = Callable[[str], None]
REPORTS = "runs"  # the folder of the runs' reports
PAGE = "index.html"


def write_site(folders: Sequence[Path], out: Path, say: Say) -> list[Path]:
    """Write the site over the runs in `folders` and below them; returns its first page and the index.

    Raises:
        UserError: a run cannot be read, two have one id, or `out` cannot be written.

    """
    from bench.report.site.pages import pages

    entries: list[IndexEntry] = []
    for run_dir in _distinct(folders):
        say(f"reading {run_dir}")
        run_id = read_run(run_dir).run_id
        run, summary, turns = write_page(run_dir, out / REPORTS / run_id, f"../../{PAGE}")
        address = quote(f"{REPORTS}/{run_id}/{HTML_FILE}")
        entries += entries_of((run, turns), summary, sampling_text(summary.sampling), check_folder(run_dir), address)
    write_entries(out / INDEX_FILE, entries)
    for name, content in pages(read_index(out / INDEX_FILE).entries).items():
        with atomic_writer(out / name) as file:
            file.write(content)
    return [out / PAGE, out / INDEX_FILE]


def write_index(folders: Sequence[Path], out: Path) -> Path:
    """Write `index.json` alone; the reports that it names are the Markdown pages next to the records, where they are.

    Raises:
        UserError: as `write_site`.

    """
    entries: list[IndexEntry] = []
    for run_dir in _distinct(folders):
        run, summary, turns = figures_of(run_dir)
        page = run_dir / REPORT_FILE
        address = link(page, out) if page.is_file() else None
        entries += entries_of((run, turns), summary, sampling_text(summary.sampling), check_folder(run_dir), address)
    write_entries(out / INDEX_FILE, entries)
    return out / INDEX_FILE


def _distinct(folders: Sequence[Path]) -> list[Path]:
    """The folders of the runs, none of which is there twice."""
    found: dict[str, Path] = {}
    for run_dir in runs_below(folders):
        run_id = read_run(run_dir).run_id
        if run_id in found:
            raise UserError(f"{found[run_id]} and {run_dir} are both run {run_id}: leave one of them out")
        found[run_id] = run_dir
    return list(found.values())
