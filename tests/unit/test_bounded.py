# SPDX-License-Identifier: GPL-2.0-or-later
"""Bounded reading, JSON without surprises, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.bounded import MAX_DEPTH, MAX_NUMBER, MAX_VALUES, load_json, read_file, write_file

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_NUMBER, MAX_NUMBER)
    | st.floats(-float(MAX_NUMBER), float(MAX_NUMBER), allow_nan=False)
    | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_what_json_writes_is_read_as_it_was(value: object) -> None:
    assert load_json(json.dumps(value)) == value
    assert load_json(json.dumps(value).encode()) == value


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text('[]{}",:0123456789.eE+-naifNIty ', max_size=60).map(str.encode))
def test_anything_else_is_a_value_error(data: bytes) -> None:
    try:
        value = load_json(data)
    except ValueError:
        return
    assert json.loads(data) == value


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "[Infinity]", "-Infinity", "1e999", "1" + "0" * 400, "-1" + "0" * 5000, str(MAX_NUMBER + 1), "1e20"),
        *("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "[" * 100_000, '{"a":' * 100_000, "", "[1", "\x00"),
    ],
    ids=lambda text: text[:12],
)
def test_numbers_and_nesting_are_bounded(text: str) -> None:
    with pytest.raises(ValueError):
        load_json(text)


def test_the_largest_that_is_read() -> None:
    assert load_json(str(MAX_NUMBER)) == MAX_NUMBER
    assert load_json("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    assert len(load_json("[" + "0," * (MAX_VALUES - 3) + "0]")) == MAX_VALUES - 2
    with pytest.raises(ValueError, match="more than 4194304 values"):
        load_json("[" + "0," * MAX_VALUES + "0]")


def test_a_file_has_a_limit(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_bytes(bytes(2048))
    link.symlink_to(path)
    assert read_file(path, 2048) == read_file(link, 2048) == bytes(2048)
    with pytest.raises(OSError, match="larger than 1K"):
        read_file(path, 1024)
    for other, message in ((tmp_path, "Is a directory"), (Path("/dev/zero"), "not a regular file")):
        with pytest.raises(OSError, match=message):
            read_file(other, 1024)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_file(path, "old é")
    assert path.read_bytes() == "old é".encode()
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "new \udc80")
    assert path.read_bytes() == "old é".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_no_other_reader_of_json() -> None:
    """JSON of others goes through ``load_json``; a selftest edits what memhp has just written."""
    ours = {"bounded.py", "report/json.py", "selftest/corruption.py"}
    root = Path(harness.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert found == ours
