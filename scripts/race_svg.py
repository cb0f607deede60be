"""Draw a recorded race as an animated SVG.

    .venv/bin/roobench generate "Why is the sky blue?" --record race.json
    .venv/bin/python scripts/race_svg.py race.json docs/race.svg

Text appears at the recorded times. A race that is too fast to follow is replayed slower by a whole factor, which the
picture states. The animation is CSS alone and loops; a reader who asked for reduced motion sees the end.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from rich.cells import cell_len

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

from bench.errors import UserError  # noqa: E402
from bench.figures.race import Race, RaceSide  # noqa: E402
from bench.figures.records import atomic_writer  # noqa: E402
from bench.typed_json import MismatchError, read  # noqa: E402

COLUMNS = 40  # characters of a side
CELL, LINE = 8.4, 19.0  # pixels of a character of 14 pixels, and of a line
EDGE, GAP = 20.0, 24.0
TOP = 112.0  # of the answers
WIDTH = 2 * (EDGE + COLUMNS * CELL) + GAP
SEEN_S = 6.0  # that a race should last to be followed
HOLD_S = 3.0  # that its end is shown
MOST_BYTES = 200_000

STYLE = """\
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#e6edf3}}
.a{{fill:#7ee787}}.m{{fill:#9198a1}}.b{{font-weight:700}}.e{{text-anchor:end}}
.t{{animation:{duration}s step-end infinite}}.p{{transform-box:fill-box;transform-origin:0 0;fill:#7ee787}}
.v{{fill:#9198a1}}
{keyframes}
@media(prefers-reduced-motion:reduce){{.t{{animation:none}}}}"""


@dataclass(frozen=True)
class Glyph:
    """A character of an answer."""

    text: str
    t_s: float
    accepted: bool


def read_race(path: Path) -> Race:
    """Read a recording.

    Raises:
        UserError: it cannot be read, is not a recording, or a side has no text.

    """
    try:
        race = read(Race, path)
    except (OSError, MismatchError) as error:
        raise UserError(f"{path} is not a race ({error}): make one with `generate PROMPT --record {path}`") from error
    if len(race.sides) != 2 or not all(side.pieces for side in race.sides):
        raise UserError(f"{path} needs two sides with text: make one with `generate PROMPT --record {path}`")
    return race


def glyphs(side: RaceSide) -> list[Glyph]:
    """Split a side's text into characters; control characters other than line ends are left out."""
    return [
        Glyph(letter, piece.t_s, piece.accepted)
        for piece in side.pieces
        for letter in piece.text.replace("\t", "    ")
        if letter == "\n" or letter.isprintable()
    ]


def wrapped(text: Iterable[Glyph], columns: int = COLUMNS) -> list[list[Glyph]]:
    """Break text into lines of at most `columns` cells, between words where possible."""
    lines: list[list[Glyph]] = [[]]
    for is_space, group in groupby(text, lambda glyph: glyph.text.isspace()):
        word = list(group)
        if not is_space and lines[-1] and cells(lines[-1]) + cells(word) > columns:
            lines.append([])
        for glyph in word:
            if glyph.text == "\n":
                lines.append([])
                continue
            if cells(lines[-1]) + cell_len(glyph.text) > columns:
                if is_space:
                    continue  # at the end of a full line
                lines.append([])
            lines[-1].append(glyph)
    while lines and not any(glyph.text.strip() for glyph in lines[-1]):
        lines.pop()
    return lines


def cells(line: Iterable[Glyph]) -> int:
    """Return the width of a line in a terminal."""
    return sum(cell_len(glyph.text) for glyph in line)


class Timeline:
    """The moments of a picture, as keyframes of one looping animation."""

    def __init__(self, end_s: float, slower: int):
        self.slower = slower
        self.duration_s = slower * end_s + HOLD_S
        self.moments: dict[float, str] = {}

    def percent(self, t_s: float) -> str:
        """Return the place of a recorded time in the animation."""
        return f"{100 * self.slower * t_s / self.duration_s:.2f}".rstrip("0").rstrip(".") + "%"

    def at(self, t_s: float) -> str:
        """Return the attributes of what appears at a recorded time."""
        name = self.moments.setdefault(t_s, f"k{len(self.moments)}")
        return f'style="animation-name:{name}"'

    def keyframes(self) -> Iterator[str]:
        """Yield the animations of everything that appears."""
        for t_s, name in self.moments.items():
            yield f"@keyframes {name}{{0%{{opacity:0}}{self.percent(t_s)}{{opacity:1}}}}"

    def growing(self, name: str, side: RaceSide) -> str:
        """Return the animation of a bar that grows with every token."""
        count = len(side.pieces)
        grown = {self.percent(piece.t_s): number / count for number, piece in enumerate(side.pieces, 1)}
        steps = "".join(f"{place}{{transform:scaleX({share:.3g})}}" for place, share in grown.items())
        return f"@keyframes {name}{{0%{{transform:scaleX(0)}}{steps}}}"


def answer(side: RaceSide, left: float, timeline: Timeline) -> Iterator[str]:
    """Yield the words of a side, each with its moment."""
    for row, line in enumerate(wrapped(glyphs(side))):
        column = 0
        for (t_s, accepted), group in groupby(line, lambda glyph: (glyph.t_s, glyph.accepted)):
            text = "".join(glyph.text for glyph in group)
            start, column = column + cell_len(text) - cell_len(text.lstrip()), column + cell_len(text)
            shown = text.strip()
            if not shown:
                continue
            width = f' textLength="{cell_len(shown) * CELL:.1f}"' if len(shown) > 1 else ""
            words = escape(shown.replace(" ", "\u00a0"), quote=False)
            kind = "t a" if accepted else "t"
            place = f'x="{left + start * CELL:.1f}" y="{TOP + row * LINE:.1f}"{width}'
            yield f'<text class="{kind}" {timeline.at(t_s)} {place}>{words}</text>'


def header(side: RaceSide, left: float, timeline: Timeline, number: int) -> Iterator[str]:
    """Yield a side's name, its bar, and its time once it has finished."""
    width = COLUMNS * CELL
    yield text_at(left, 62, side.name, "b")
    said = f"{side.tokens} tokens in {side.wall_s:.2f} s"
    yield f'<text class="t e a" {timeline.at(side.pieces[-1].t_s)} x="{left + width:.1f}" y="62">{said}</text>'
    yield f'<rect x="{left:.1f}" y="74" width="{width:.1f}" height="6" rx="3" fill="#30363d"/>'
    kind = "p t" if number else "p t v"
    yield (
        f'<rect class="{kind}" style="animation-name:bar{number}" x="{left:.1f}" y="74" '
        f'width="{width:.1f}" height="6" rx="3"/>'
    )


def text_at(x: float, y: float, text: str, kind: str = "") -> str:
    """Return a line that is always there."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text, quote=False)}</text>'


def shortened(text: str, most: int) -> str:
    """Return one line of at most so many characters."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    return line if len(line) <= most else line[: most - 1] + "…"


def draw(race: Race, slower: int | None = None, machine: str = "") -> str:
    """Draw the race; `slower`: how many times slower than it was, by default as much as can be followed."""
    end_s = max(side.pieces[-1].t_s for side in race.sides)
    slower = slower or max(1, math.ceil(SEEN_S / max(end_s, 0.1)))
    timeline = Timeline(end_s, slower)
    lefts = (EDGE, EDGE + COLUMNS * CELL + GAP)
    parts = [text_at(EDGE, 30, shortened(f'$ roobench generate "{race.prompt}"', 2 * COLUMNS), "m")]
    for number, (side, left) in enumerate(zip(race.sides, lefts, strict=True)):
        parts += header(side, left, timeline, number)
        parts += answer(side, left, timeline)
    lines = max(len(wrapped(glyphs(side))) for side in race.sides)
    below = TOP + lines * LINE
    height = below + 53
    speed = "real speed" if slower == 1 else f"replayed {slower}x slower"
    where = ", ".join(filter(None, (race.model, race.dtype, machine or race.device, speed)))
    parts.append(text_at(EDGE, below + 10, shortened(where, 2 * COLUMNS), "m"))
    same = len({"".join(piece.text for piece in side.pieces) for side in race.sides}) == 1
    legend = "green: drafted and accepted" + ("; both answers are identical" if same else "")
    parts.append(text_at(EDGE, below + 29, legend, "a"))
    bars = [timeline.growing(f"bar{number}", side) for number, side in enumerate(race.sides)]
    style = STYLE.format(duration=f"{timeline.duration_s:.2f}", keyframes="\n".join([*timeline.keyframes(), *bars]))
    title = escape(" and ".join(side.name for side in race.sides) + f" answer: {shortened(race.prompt, 80)}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}" '
            f'height="{height:.0f}" role="img">',
            f"<title>{title}</title>",
            f"<style>{style}</style>",
            f'<rect x=".5" y=".5" width="{WIDTH - 1:.0f}" height="{height - 1:.0f}" rx="10" fill="#0d1117" '
            'stroke="#30363d"/>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> int:
    """Draw the recording that the command line names."""
    parser = argparse.ArgumentParser(description="Draw a recorded race as an animated SVG.")
    parser.add_argument("race", type=Path, help="file that `generate --record` wrote")
    parser.add_argument("svg", type=Path, help="file to write")
    parser.add_argument("--machine", default="", metavar="TEXT", help="what it ran on, instead of the device's name")
    parser.add_argument("--slower", type=int, choices=range(1, 101), metavar="N", help="replay N times slower")
    options = parser.parse_args()
    try:
        picture = draw(read_race(options.race), options.slower, options.machine)
        if (size := len(picture.encode())) > MOST_BYTES:
            raise UserError(f"the picture would take {size} bytes, more than {MOST_BYTES}: record a shorter answer")
        with atomic_writer(options.svg) as file:
            file.write(picture)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.svg} ({size / 1000:.0f} KB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
