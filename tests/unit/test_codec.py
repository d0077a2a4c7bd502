# SPDX-License-Identifier: GPL-2.0-or-later
"""Records to JSON and back: no implicit conversions, and errors name the place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.codec import Codec, override
from harness.units import AddrRange


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    places: tuple[tuple[int, AddrRange, str], ...] = ()
    late: int | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    parts: tuple[Part, ...]
    seconds: float
    where: AddrRange
    file: Path | None
    kept: bool


def codec() -> Codec:
    made = Codec()
    made.describe(Part, since=("late",), places=override(rename="ranges"))
    made.describe(Whole, forbid_extra=True)
    return made


WHOLE = Whole((Part("a", ((1, AddrRange(2, 3), "x"),), 4), Part("b")), 1.5, AddrRange(5, 6), Path("f"), True)
JSON: dict[str, Any] = {
    "parts": [{"name": "a", "ranges": [[1, 2, 3, "x"]], "late": 4}, {"name": "b", "ranges": [], "late": None}],
    "seconds": 1.5,
    "where": [5, 6],
    "file": "f",
    "kept": True,
}


def test_there_and_back() -> None:
    assert codec().dump(WHOLE) == JSON and codec().load(json.loads(json.dumps(JSON)), Whole) == WHOLE


def test_what_earlier_files_lack_and_later_ones_add() -> None:
    value = {**JSON, "seconds": 2, "parts": [{"name": "b", "ranges": [], "newer": {}}]}
    found = codec().load(value, Whole)
    assert found.parts == (Part("b"),) and type(found.seconds) is float


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"parts": "ab"}, TypeError, "parts: 'ab' is not of the type list"),
        ({"parts": [5]}, TypeError, r"parts\[0\]: '5' is not of the type dict"),
        ({"parts": [{"ranges": []}]}, KeyError, r"^'parts\[0\]\.name'$"),
        ({"parts": [{"name": "a"}]}, KeyError, r"^'parts\[0\]\.ranges'$"),
        ({"parts": [{"name": "a", "ranges": [[1, 2, "x"]]}]}, ValueError, "does not have 4 parts"),
        ({"parts": [JSON["parts"][0], {"name": 5, "ranges": []}]}, TypeError, r"parts\[1\]\.name: '5' is not"),
        ({"seconds": "1"}, TypeError, "seconds: '1' is not of the type float"),
        ({"seconds": True}, TypeError, "seconds: 'True' is not of the type float"),
        ({"kept": 1}, TypeError, "kept: '1' is not of the type bool"),
        ({"where": [6, 5]}, ValueError, "where: range runs backwards"),
        ({"where": [True, 5]}, TypeError, "where: 'True' is not of the type int"),
        ({"file": 5}, TypeError, "file: '5' is not of the type str"),
        ({"other": 5}, ValueError, "other"),
    ],
    ids=str,
)
def test_an_error_says_where_it_is(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codec().load({**JSON, **change}, Whole)


def test_a_key_that_is_missing_at_the_top() -> None:
    with pytest.raises(KeyError, match=r"^'kept'$"):
        codec().load({name: value for name, value in JSON.items() if name != "kept"}, Whole)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    where: AddrRange
    parts: tuple[AddrRange, ...]


def test_a_record_that_is_a_row() -> None:
    made = Codec()
    made.describe_row(Row)
    found = Row("a", AddrRange(1, 2), (AddrRange(3, 4),))
    assert made.dump(found) == ["a", 1, 2, [[3, 4]]] and made.load(["a", 1, 2, [[3, 4]]], Row) == found
    with pytest.raises(ValueError, match="does not have 4 parts"):
        made.load(["a", 1, 2], Row)


def test_what_a_key_was_called_formerly() -> None:
    made = Codec()
    made.describe(Part, since=("late",), formerly={"title": "name"})
    assert made.load({"title": "a", "places": []}, Part) == Part("a")
