"""JSON decoded into declared types: what fits is kept, what does not is named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from bench.typed_json import Count, FileName, MismatchError, Seconds, Share, decode, decode_value, read


class Place(TypedDict, total=False):
    name: str
    floors: Count


@dataclass(frozen=True)
class Guest:
    name: str
    age: Count = 0


@dataclass(frozen=True)
class Visit:
    who: str
    took_s: Seconds = 0.0
    label: FileName = "x"
    verdict: Annotated[str, Field(pattern="^(good|bad)$")] = "good"
    counts: list[Count] = field(default_factory=list)
    shares: dict[str, Share] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    place: Place | None = None
    guests: list[Guest] | None = None
    anything: Any = None
    doubled: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.took_s)


def test_what_fits_is_kept_as_declared():
    value = {
        "who": "x", "took_s": 3, "counts": [0, 2], "shares": {"a": 0.5}, "labels": ["b"], "place": {"floors": 1},
        "guests": [{"name": "y"}], "anything": [{}], "doubled": 99,
    }  # fmt: skip
    found = decode_value(Visit, value)
    assert found == Visit("x", 3.0, "x", "good", [0, 2], {"a": 0.5}, ("b",), {"floors": 1}, [Guest("y")], [{}])
    assert (found.doubled, type(found.took_s)) == (6.0, float)  # derived anew, whatever the file says


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"who": None}, "who: Input should be a valid string, not None"),
        ({"who": "\ud800"}, "unexpected end of hex escape"),
        ({"took_s": "fast"}, "took_s: Input should be a valid number, not 'fast'"),
        ({"took_s": True}, "took_s: Input should be a valid number"),
        ({"took_s": -5.0}, "took_s: Input should be greater than or equal to 0, not -5.0"),
        ({"took_s": float("inf")}, "took_s: Infinity is not a number in JSON"),
        ({"anything": [float("nan")]}, r"anything\[0\]: NaN is not a number in JSON"),
        ({"anything": {"NaN": ["-Infinity", {"b": -float("inf")}]}}, r"anything.NaN\[1\].b: -Infinity is not"),
        ({"took_s": 10**400}, "took_s: Input should be a finite number"),
        ({"verdict": "maybe"}, "verdict: String should match pattern .*good.bad.*, not 'maybe'"),
        ({"label": "../x"}, "label: String should match"),
        ({"label": ".."}, "label: String should match"),
        ({"counts": None}, "counts: Input should be a valid .*, not None"),
        ({"counts": [1, 2.0]}, r"counts\[1\]: Input should be a valid integer, not 2.0"),
        ({"counts": [1, -2]}, r"counts\[1\]: Input should be greater than or equal to 0, not -2"),
        ({"shares": {"a": 1.5}}, "shares.a: Input should be less than or equal to 1, not 1.5"),
        ({"shares": [1]}, "shares: Input should be"),
        ({"place": {"floors": "1"}}, "place.floors: Input should be a valid integer, not '1'"),
        ({"place": {"flors": 1}}, "place.flors: Extra inputs are not permitted"),
        ({"guests": [{"name": "y"}, {}]}, r"guests\[1\].name: missing"),
        ({"tookk_s": 1}, "tookk_s: Unexpected"),
    ],
)
def test_what_does_not_fit_is_named_with_its_field(change, said):
    with pytest.raises(MismatchError, match=said):
        decode_value(Visit, {"who": "x"} | change)


def test_lenient_decoding_leaves_out_what_is_unknown_but_checks_the_rest():
    value = {"who": "x", "new": 1, "guests": [{"name": "y", "new": 2}]}
    assert decode_value(Visit, value, lenient=True) == Visit("x", guests=[Guest("y")])
    with pytest.raises(MismatchError, match=r"who: missing"):
        decode_value(Visit, {"new": 1}, lenient=True)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "[" * 100_000, b"\xff"])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(MismatchError, match=r"."):
        decode(list[Any], text)


def test_a_text_may_speak_of_nan():
    assert decode(dict[str, Any], '{"NaN": "Infinity"}') == {"NaN": "Infinity"}


def test_a_file_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr("bench.files.MOST_BYTES", 1000)
    with pytest.raises(MismatchError, match="more than"):
        read(dict[str, Any], Path("/dev/zero"))


def test_a_file_is_read_as_what_is_asked_for(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 1, "b": 2}))
    assert read(dict[str, Count], tmp_path / "x.json") == {"a": 1, "b": 2}
