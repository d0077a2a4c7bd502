# SPDX-License-Identifier: GPL-2.0-or-later
"""Strict YAML: each mistake is a ConfigError with file, line, key and, if possible, a hint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.yaml import MAX_FILE, Value, load, parse, suggest
from harness.errors import ConfigError

FILE = Path("f.yaml")


def refused(text: str, use: Callable[[Value], object] = lambda value: None) -> str:
    with pytest.raises(ConfigError) as caught:
        use(parse(text, FILE))
    return str(caught.value)


def take(read: Callable[[Value], object]) -> Callable[[Value], object]:
    return lambda value: value.mapping("a").take("a", read)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: the file is empty"),
        ("# only a comment\n", "f.yaml: the file is empty"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: a second document starts\n  hint: use one document per file"),
        ("a: [1\nb: 2\n", "f.yaml:2: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        ("a: *nobody\n", "f.yaml:1: not YAML: found undefined alias 'nobody'\n  hint: column 4"),
        ("a: 1\nb: \x01\n", r"f.yaml:2: the character '\x01' is not allowed in YAML"),
        ("a: 1\nb: !!python/object:os.system {}\n", "f.yaml:2: tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: 1\nb: !secret x\n", "f.yaml:2: tag '!secret' is not allowed\n  hint: write plain values"),
        ("a: &x\n  b: *x\n", "f.yaml:1: an alias inside its own anchor"),
        ("[" * 45 + "]" * 45, "f.yaml:1: nested too deeply\n  hint: at most 40 levels"),
        ("[" * 5000 + "]" * 5000, "f.yaml: nested too deeply\n  hint: at most 40 levels"),
    ],
)
def test_what_is_no_plain_document(text: str, message: str) -> None:
    assert message in refused(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "f.yaml:1: expected a mapping, found a list"),
        ("hello\n", "f.yaml:1: expected a mapping, found 'hello'"),
        ("a: 1\nmemroy: 2\n", "f.yaml:2: unknown key 'memroy'\n  hint: did you mean 'memory'?"),
        ("a: 1\nzzz: 2\n", "f.yaml:2: unknown key 'zzz'\n  hint: known: a, memory"),
        ("a: 1\nmemory: 2\n\na: 3\n", "f.yaml:4: duplicate key 'a'\n  hint: the first one is on line 1"),
        ("? [x]\n: 1\n", "f.yaml:1: a key must be plain text"),
        ("memory: 1\n", "f.yaml:1: key 'a' is missing"),
    ],
)
def test_wrong_mappings(text: str, message: str) -> None:
    found = refused(text, lambda value: value.mapping("a", "memory").take("a", Value.integer))
    assert message in found


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ("a: [x]", Value.text, "f.yaml:1: a: expected text, found a list"),
        ("a:", Value.text, "f.yaml:1: a: expected text, found nothing"),
        ("a: 5", Value.text, "a: expected text, found the number '5'\n  hint: quote it if you mean text: \"5\""),
        ('a: ""', Value.line_of_text, "a: expected text, found empty text"),
        ('a: "x\\ey"', Value.line_of_text, r"a: control characters in 'x\x1by'"),
        ("a: yes", Value.boolean, "a: expected true or false, found 'yes'"),
        ("a: 1.5", Value.integer, "a: expected a whole number, found '1.5'"),
        ("a: 1" + "0" * 60, Value.integer, "a: expected a whole number, found '1000"),
        ("a: 3", lambda v: v.integer(minimum=4), "a: 3 is too small\n  hint: at least 4"),
        ("a: 3", lambda v: v.integer(maximum=2), "a: 3 is too large\n  hint: at most 2"),
        ("a: x", lambda v: v.number(minimum=0, maximum=9), "a: expected a number, found 'x'"),
        ("a: 0.5", lambda v: v.number(minimum=1, maximum=9), "a: 0.5 is too small\n  hint: at least 1"),
        ("a: red", lambda v: v.choice(("green", "blue")), "a: 'red' is not one of green, blue"),
        ("a: gren", lambda v: v.choice(("green", "blue")), "hint: did you mean 'green'?"),
        ("a: 1 apple", Value.size, "a: '1 apple' is not a size (examples: 512M, 1G, 0x8000000)\n  hint: whole numbers"),
        ("a: {}", Value.size, "a: expected a size, found a mapping"),
        ("a: 100M", lambda v: v.size(multiple=128 << 20), "a: 100M is not a multiple of 128M\n  hint: nearest: 128M"),
        ("a: 200M", lambda v: v.size(multiple=128 << 20), "hint: nearest: 128M or 256M"),
        ("a: 1M", lambda v: v.size(minimum=2 << 20), "a: 1M is too small\n  hint: at least 2M"),
        ("a: x", Value.items, "a: expected a list, found 'x'"),
        ("a: nowhere/at/all", Value.path, "a: no such file: "),
        ("a: [1, x]", lambda v: [i.integer() for i in v.items()], "f.yaml:1: a[1]: expected a whole number"),
    ],
)
def test_wrong_values(text: str, read: Callable[[Value], object], message: str) -> None:
    assert message in refused(text, take(read))


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("a: 1G", Value.size, 1 << 30),
        ('a: "1G"', Value.size, 1 << 30),
        ("a: 0x8000000", Value.size, 128 << 20),
        ("a: 0", Value.size, 0),
        ("a: 0x10", Value.integer, 16),
        ("a: -3", Value.integer, -3),
        ("a: 010", Value.integer, 10),
        ("a: 2.5", lambda v: v.number(minimum=0, maximum=9), 2.5),
        ("a: true", Value.boolean, True),
        ("a: false", Value.boolean, False),
        ("a: on", Value.text, "on"),
        ('a: "5"', Value.text, "5"),
        ("a: []", Value.items, ()),
    ],
)
def test_values(text: str, read: Callable[[Value], object], expected: object) -> None:
    assert take(read)(parse(text, FILE)) == expected


def test_a_default_stands_in_only_for_an_absent_key() -> None:
    reader = parse("a: 1", FILE).mapping("a", "b")
    assert (reader.take("a", Value.integer, 7), reader.take("b", Value.integer, 7)) == (1, 7)


def test_anchors_and_merge_keys() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 5, z: 6}\nuse: {<<: [*b, *m], y: 3}\nagain: *b\n"
    root = parse(text, FILE).mapping()
    use, again = root.values["use"].mapping(), root.values["again"].mapping()
    assert {key: value.integer() for key, value in use.values.items()} == {"x": 1, "y": 3, "z": 6}
    assert list(again.values) == ["x", "y"]


def test_errors_name_the_nested_key_and_its_line() -> None:
    value = parse("a:\n  - b:\n      c: x\n", FILE)
    inner = value.mapping().values["a"].items()[0].mapping().values["b"].mapping().values["c"]
    with pytest.raises(ConfigError) as caught:
        inner.integer()
    assert (caught.value.line, caught.value.key, caught.value.file) == (3, "a[0].b.c", "f.yaml")


def test_files_that_cannot_be_text(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    with pytest.raises(ConfigError, match=r"f\.yaml: cannot be read: No such file .*\n  hint: check the path"):
        load(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yaml:2: byte 0xff is not UTF-8\n  hint: save the file as UTF-8"):
        load(path)
    path.write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(ConfigError, match="larger than 256K\n  hint: is this the right file"):
        load(path)
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load(path).mapping("a").take("a", Value.integer) == 1


def test_suggest_without_anything_known() -> None:
    assert suggest("x", ()) == "known: none"


@given(st.text(max_size=200))
def test_any_text_is_a_document_or_a_config_error(text: str) -> None:
    try:
        value = parse(text, FILE)
        value.mapping("a").take("a", Value.size, None)
    except ConfigError as error:
        assert str(error).startswith("f.yaml:")
