"""scripts/race_svg.py: everything appears when it did, in two columns, without a script."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def race_svg():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("race_svg", ROOT / "scripts" / "race_svg.py")
    module = sys.modules["race_svg"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = [f"word{number}" for number in range(40)]
VANILLA = [(0.1 * (number + 1), f" {word}") for number, word in enumerate(WORDS)]
# Two tokens a step, the first of them drafted.
METHOD = [(0.08 * (number // 2 + 1), f" {word}") for number, word in enumerate(WORDS)]


LONG = {"name": "a", "pieces": [{"t_s": 1.0 * second, "text": "x "} for second in range(5000)]}


def recording(**changes) -> dict:
    def side(name, pieces):
        drafted = name != "vanilla"
        return {
            "name": name,
            "tokens": len(pieces),
            "wall_s": pieces[-1][0],
            "pieces": [
                {"t_s": t_s, "text": text, "accepted": drafted and number % 2 == 0}
                for number, (t_s, text) in enumerate(pieces)
            ],
        }

    made = {"prompt": "Is 1 < 2 & 3?", "model": "tiny", "device": "a CPU", "dtype": "float32"}
    return made | {"sides": [side("vanilla", VANILLA), side("echo", METHOD)]} | changes


@pytest.fixture
def draw(race_svg, tmp_path, monkeypatch):
    """Write a recording and draw it; the exit status and the picture."""

    def call(race, *flags):
        file, svg = tmp_path / "race.json", tmp_path / "race.svg"
        file.write_text(race if isinstance(race, str) else json.dumps(race))
        monkeypatch.setattr(sys, "argv", ["race_svg.py", str(file), str(svg), *flags])
        status = race_svg.main()
        return status, svg.read_text() if svg.exists() else None

    return call


def texts(svg: str, race_svg) -> list[list[tuple[float, float, str, str]]]:
    """Of each side, (y, x, text, name of its moment) in reading order."""
    middle = race_svg.WIDTH / 2
    found: list[list[tuple[float, float, str, str]]] = [[], []]
    for element in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        y, x = float(element.get("y")), float(element.get("x"))
        if y >= race_svg.TOP and (style := element.get("style")):
            found[x > middle].append((y, x, element.text, style.removeprefix("animation-name:")))
    return [sorted(side) for side in found]


def moments(svg: str) -> dict[str, float]:
    """Seconds into the animation at which each name appears."""
    (duration,) = re.findall(r"animation:([\d.]+)s step-end infinite", svg)
    places = re.findall(r"@keyframes (\w+)\{0%\{opacity:0\}([\d.]+)%\{opacity:1\}\}", svg)
    return {name: float(place) / 100 * float(duration) for name, place in places}


def test_every_word_appears_when_it_did(draw, race_svg):
    status, svg = draw(recording(), "--slower", "2")
    assert status == 0
    at = moments(svg)
    for side, pieces in zip(texts(svg, race_svg), (VANILLA, METHOD), strict=True):
        shown = [(word, at[name]) for _, _, text, name in side for word in text.split("\u00a0")]
        assert [word for word, _ in shown] == WORDS
        for (_, seen_s), (t_s, _) in zip(shown, pieces, strict=True):
            assert seen_s == pytest.approx(2 * t_s, abs=0.01)
    assert "replayed 2x slower" in svg
    assert "40 tokens in 4.00 s" in svg
    assert "40 tokens in 1.60 s" in svg
    assert "tiny, float32, a CPU" in svg


def test_sides_are_wrapped_into_their_columns(draw, race_svg):
    _, svg = draw(recording())
    width = race_svg.COLUMNS * race_svg.CELL
    lefts = (race_svg.EDGE, race_svg.EDGE + width + race_svg.GAP)
    for side, left in zip(texts(svg, race_svg), lefts, strict=True):
        assert len({y for y, *_ in side}) > 3
        for _, x, text, _ in side:
            assert left <= x
            assert x + len(text) * race_svg.CELL <= left + width + 0.1


def test_what_was_drafted_and_accepted_is_green(draw):
    _, svg = draw(recording())
    root = ElementTree.fromstring(svg)
    green = {element.text for element in root.iter(f"{SVG}text") if element.get("class") == "t a"}
    assert green == set(WORDS[::2])
    assert "both answers are identical" in svg
    race = recording()
    race["sides"][1]["pieces"].pop()
    assert "identical" not in draw(race)[1]


@pytest.mark.parametrize(
    ("scale", "said"), [(1, "replayed 2x slower"), (0.1, "replayed 15x slower"), (2, "real speed")]
)
def test_a_race_is_slowed_down_as_far_as_needed(scale, said, draw):
    race = recording()
    for side in race["sides"]:
        for piece in side["pieces"]:
            piece["t_s"] *= scale
    assert said in draw(race)[1]


def test_the_picture_has_no_script_and_nothing_from_elsewhere(draw):
    race = recording(prompt="</text><script>x</script>")
    race["sides"][0]["pieces"][3]["text"] = ' <image href="https://x/y"/>\x1b[2J&\n\n'
    _, svg = draw(race)
    root = ElementTree.fromstring(svg)
    kinds = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert kinds == {"svg", "title", "style", "rect", "text"}
    assert "\x1b" not in svg
    assert not any("href" in name for element in root.iter() for name in element.attrib)
    assert len(svg.encode()) < 200_000


@pytest.mark.parametrize(
    ("race", "told"),
    [
        ("{", "is not a race"),
        ({"prompt": "", "model": "", "device": "", "dtype": ""}, "sides: missing"),
        (recording(sides=[]), "needs two sides with text"),
        (recording(sides=[{"name": "a", "pieces": [{"t_s": -1.0, "text": "x"}]}] * 2), r"sides\[0\].pieces\[0\].t_s"),
        (
            recording(sides=[{"name": "a", "pieces": [{"t_s": 1.0 * i, "text": "x "} for i in range(5000)]}] * 2),
            "shorter",
        ),
    ],
)
def test_what_is_no_recording_is_refused(race, told, draw, capsys):
    status, svg = draw(race)
    assert (status, svg) == (2, None)
    assert re.search(told, capsys.readouterr().err)


def test_long_words_and_empty_lines_are_wrapped(race_svg):
    text = [race_svg.Glyph(letter, 0.0, False) for letter in "a" * 50 + "\n\n" + "b " * 30]
    lines = ["".join(glyph.text for glyph in line) for line in race_svg.wrapped(text, 40)]
    assert lines == ["a" * 40, "a" * 10, "", "b " * 20, "b " * 10]
