"""JSON decoded into declared types: what fits is kept, what does not is named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import pytest

from bench.typed_json import Count, FileName, MismatchError, OneOf, Seconds, Share, decode, parse, read


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
    label: Annotated[str, FileName()] = "x"
    verdict: Annotated[str, OneOf(("good", "bad"))] = "good"
    counts: list[Count] = field(default_factory=list)
    shares: dict[str, Share] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    place: Place | None = None
    guests: list[Guest] | None = None
    anything: Any = None
    doubled: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.took_s)


def test_what_fits_is_kept_as_declared():
    value = {
        "who": "x", "took_s": 3, "counts": [0, 2], "shares": {"a": 0.5}, "labels": ["b"], "place": {"floors": 1},
        "guests": [{"name": "y"}], "anything": [{}], "doubled": 99,
    }  # fmt: skip
    found = decode(Visit, value)
    assert found == Visit("x", 3.0, "x", "good", [0, 2], {"a": 0.5}, ("b",), {"floors": 1}, [Guest("y")], [{}])
    assert (found.doubled, type(found.took_s)) == (6.0, float)  # derived anew, whatever the file says


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"who": None}, "who: None must be a text"),
        ({"who": "\ud800"}, "who: .* is not valid Unicode"),
        ({"took_s": "fast"}, "took_s: 'fast' must be a number"),
        ({"took_s": True}, "took_s: True must be a number"),
        ({"took_s": -5.0}, "took_s: -5.0 must be at least 0"),
        ({"took_s": 10**400}, "took_s: 1000.* must be a finite number"),
        ({"verdict": "maybe"}, "verdict: 'maybe' must be one of 'good', 'bad'"),
        ({"label": "../x"}, "label: '../x' must be a name"),
        ({"label": ".."}, "label: '..' must be a name"),
        ({"counts": None}, "counts: None must be a list"),
        ({"counts": [1, 2.0]}, r"counts\[1\]: 2.0 must be a whole number"),
        ({"counts": [1, -2]}, r"counts\[1\]: -2 must be at least 0"),
        ({"shares": {"a": 1.5}}, "shares.a: 1.5 must be between 0 and 1"),
        ({"shares": [1]}, "shares: list must be an object"),
        ({"place": {"floors": "1"}}, "place.floors: '1' must be a whole number"),
        ({"place": {"flors": 1}}, "place.flors: no such field, did you mean 'floors'"),
        ({"guests": [{"name": "y"}, {}]}, r"guests\[1\].name: missing"),
        ({"tookk_s": 1}, "tookk_s: no such field, did you mean 'took_s'"),
    ],
)
def test_what_does_not_fit_is_named_with_its_field(change, said):
    with pytest.raises(MismatchError, match=f"^{said}"):
        decode(Visit, {"who": "x"} | change)


def test_lenient_decoding_leaves_out_what_is_unknown_but_checks_the_rest():
    value = {"who": "x", "new": 1, "guests": [{"name": "y", "new": 2}]}
    assert decode(Visit, value, lenient=True) == Visit("x", guests=[Guest("y")])
    with pytest.raises(MismatchError, match="who: missing"):
        decode(Visit, {"new": 1}, lenient=True)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "[" * 100_000, b"\xff", "9" * 5000])
def test_text_that_is_not_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_a_file_is_read_as_what_is_asked_for(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 1, "b": 2}))
    assert read(dict[str, Count], tmp_path / "x.json") == {"a": 1, "b": 2}
