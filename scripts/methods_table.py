"""Write the tables of methods in docs/methods.md: what each method is, and what it gained in a recorded run.

    .venv/bin/python scripts/methods_table.py [RUN_DIR]

Everything comes from the methods themselves and from the run's `summary.json`: nothing there is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

import methods  # noqa: E402
from bench.errors import UserError  # noqa: E402
from bench.figures.records import atomic_writer  # noqa: E402
from bench.figures.summary import Cell, Summary, base_of, read_summary  # noqa: E402
from bench.report import markdown, tables  # noqa: E402
from bench.report.formats import UNDEFINED, count, number, setting_text, times  # noqa: E402
from bench.report.model import Code, Table, table  # noqa: E402

RUN = Path("results/reference/all-methods-cpu")  # in the repository: the run that the tables show
PAGE = Path("docs/methods.md")
BEGIN, END = "<!-- tables: scripts/methods_table.py -->", "<!-- /tables -->"
_PAPER = re.compile(r" \(([^()]*(?:arXiv|github\.com)[^()]*)\)")  # in the first line of a docstring


def page_with_tables(page: str, run_dir: Path) -> str:
    """Return the page with its tables as they should be.

    Raises:
        UserError: the page has no place for them, or there is no such run.

    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE} has no lines {BEGIN} and {END}: restore them")
    folder = (ROOT / run_dir).resolve()
    if not folder.is_relative_to(ROOT):
        raise UserError(f"{folder} is outside the repository, whose pages link to the run: copy it to {RUN.parent}")
    return f"{before}{begin}\n\n{_tables(read_summary(folder), folder.relative_to(ROOT).as_posix())}\n\n{end}{after}"


def _tables(summary: Summary, run: str) -> str:
    return "\n\n".join(
        [
            markdown.table_text(_methods(summary)),
            "Decode speedup over vanilla and tokens per forward pass (CR), measured with "
            f"{', '.join(setting_text(summary))}\n"
            f"([report](../{run}/report.md), with intervals; [command](../{run}/run.json)):",
            markdown.table_text(tables.by_method("method", summary.ranked("method", "peer"), _gain)),
            *(f"{one.label}: `{name}`." for name, one in summary.methods.items() if one.label != name),
        ]
    )


def _methods(summary: Summary) -> Table:
    header = ["method", "how it drafts", "kind", "needs", "extra parameters", "paper"]
    rows = [list(_row(name, summary)) for name in methods.built_in() if not methods.is_peer(name)]
    return table(header, rows, len(header))


def _row(name: str, summary: Summary) -> Iterator[str]:
    knobs = {knob: default for knob, default, _ in methods.knobs(methods.declared(name))}
    title = methods.about(name).partition("\n")[0]
    yield f"[{name}]({page})" if (page := _page(name)) else Code(name)
    yield _PAPER.sub("", title).rstrip(".")
    yield "baseline" if name == methods.BASELINE else methods.load(name).family or UNDEFINED
    yield _needs(name, knobs)
    measured = [label for label in summary.methods if base_of(label) == name]
    unknown = "not in this run" if knobs.keys() & {"weights", "model"} else count(0)
    yield count(summary.methods[min(measured, key=len)].extra_parameters) if measured else unknown
    yield _source(title)


def _page(name: str) -> str:
    """Return where the documentation describes a method: a page with its name in the title, or a section of one."""
    folder = ROOT / PAGE.with_suffix("")
    for path in sorted(folder.glob("*.md")):
        title, _, text = path.read_text(encoding="utf-8").partition("\n")
        if name in title.removeprefix("# ").split(", "):
            return f"{folder.name}/{path.name}"
        if f"\n## {name}\n" in text:
            return f"{folder.name}/{path.name}#{name}"
    return ""


def _needs(name: str, knobs: Mapping[str, Any]) -> str:
    found = ["training"] if methods.training_module(name) else ["published weights"] if "weights" in knobs else []
    if "model" in knobs:
        found.append("a draft model")
    if "corpus" in knobs:
        found.append("a corpus" if knobs["corpus"] else "optionally a corpus")
    if "memory" in knobs:
        found.append("optionally memory of the run")
    return ", ".join(found) or "nothing"


def _source(title: str) -> str:
    """Return authors and links of what the first line of a docstring cites."""
    found = _PAPER.search(title)
    if found is None:
        return UNDEFINED
    who = re.split(r"(?:, )?(?:arXiv|github\.com)", found[1])[0]
    links = [f"[{number}](https://arxiv.org/abs/{number})" for number in re.findall(r"\d{4}\.\d{5}", found[1])]
    links += [f"[{path}](https://github.com/{path})" for path in re.findall(r"github\.com/(\S+)", found[1])]
    return ", ".join(filter(None, [who, *links]))


def _gain(cell: Cell) -> str:
    rate = cell.compression_rate
    return times(cell.speedup_decode.value) + ("" if rate is None else f", CR {number(rate)}")


def main() -> int:
    """Return the exit status: 2 where there is no such run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run_dir", type=Path, nargs="?", default=RUN, help=f"folder of the run (default: {RUN})")
    asked = parser.parse_args()
    try:
        made = page_with_tables((ROOT / PAGE).read_text(encoding="utf-8"), asked.run_dir)
        with atomic_writer(ROOT / PAGE) as file:
            file.write(made)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
