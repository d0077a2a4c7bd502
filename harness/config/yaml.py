# SPDX-License-Identifier: GPL-2.0-or-later
"""Strict YAML: every value knows its file, line and dotted key, and every error is a ConfigError that names them.

The reader works on PyYAML's node graph, not on constructed objects: nothing is guessed from the spelling of a scalar
(``on`` is text, ``1:30`` is text) and nothing is ever instantiated. Anchors, aliases and merge keys (``<<``) work;
custom tags, several documents in one file, duplicate and unknown keys do not.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

import yaml

from harness.bounded import read_file
from harness.errors import ConfigError
from harness.units import format_size, parse_size

T = TypeVar("T")
D = TypeVar("D")

#: more than any hand-written file needs, and little enough to parse at once
MAX_FILE = 256 * 1024
#: mappings and lists inside one another
MAX_DEPTH = 40

_REQUIRED = object()
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {
    _PREFIX + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp", "value")
}
_NAMES = {"map": "a mapping", "seq": "a list", "null": "nothing", "int": "a number", "bool": "true or false"}
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``word``: the closest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"


def show(text: str, limit: int = 80) -> str:
    """``text`` quoted, cut to ``limit`` characters, with control characters escaped."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


@dataclass(frozen=True)
class Value:
    """One node of a document: its file, dotted key and line (1-based).

    The readers below return a checked Python value or raise ConfigError.
    """

    file: Path
    key: str
    node: yaml.Node

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1

    def fail(self, message: str, *, hint: str | None = None) -> NoReturn:
        """Raise ConfigError about this value."""
        raise ConfigError(message, file=self.file, line=self.line, key=self.key, hint=hint)

    def _error(self, message: str, at: yaml.Node, hint: str | None = None) -> ConfigError:
        """An error about the node ``at`` within this value."""
        line = at.start_mark.line + 1
        return ConfigError(message, file=self.file, line=line, key=self.key or None, hint=hint)

    def described(self) -> str:
        """This value in words: ``a list``, ``'text'``, ``nothing``."""
        kind = self.node.tag.removeprefix(_PREFIX)
        if kind in ("map", "seq", "null"):
            return _NAMES[kind]
        return show(str(self.node.value))

    def _scalar(self, wanted: str) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or self._is_null():
            self.fail(f"expected {wanted}, found {self.described()}")
        return str(self.node.value)

    def is_mapping(self) -> bool:
        """True if this is a mapping."""
        return isinstance(self.node, yaml.MappingNode)

    def is_list(self) -> bool:
        """True if this is a list."""
        return isinstance(self.node, yaml.SequenceNode)

    def scalar(self) -> str:
        """Any scalar, as spelled."""
        return self._scalar("one value")

    def is_text(self, text: str) -> bool:
        """True if this is exactly ``text``."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.value == text

    def _is_null(self) -> bool:
        return self.node.tag == _PREFIX + "null"

    def text(self) -> str:
        """Any text, empty text included; numbers and booleans must be quoted to count as text."""
        text = self._scalar("text")
        if self.node.tag in (_PREFIX + "int", _PREFIX + "float", _PREFIX + "timestamp"):
            self.fail(f"expected text, found the number {show(text)}", hint=f'quote it if you mean text: "{text}"')
        return text

    def line_of_text(self) -> str:
        """Text that is not empty and has no control characters, such as a name."""
        text = self.text()
        if not text.strip():
            self.fail("expected text, found empty text")
        if not text.isprintable():
            self.fail(f"control characters in {show(text)}", hint="write plain text on one line")
        return text

    def choice(self, known: Collection[str]) -> str:
        """One of ``known``, spelled exactly."""
        text = self._scalar(f"one of {', '.join(known)}")
        if text not in known:
            self.fail(f"{show(text)} is not one of {', '.join(known)}", hint=suggest(text, known))
        return text

    def boolean(self) -> bool:
        """``true`` or ``false``; YAML 1.1's other spellings are refused."""
        text = self._scalar("true or false")
        if text not in ("true", "false"):
            self.fail(f"expected true or false, found {show(text)}")
        return text == "true"

    def integer(self, *, minimum: int | None = None, maximum: int | None = None) -> int:
        """A whole number, decimal or 0x hexadecimal, within the bounds (both included)."""
        text = self._scalar("a whole number")
        if not _INTEGER.fullmatch(text) or len(text) > 40:
            self.fail(f"expected a whole number, found {show(text)}")
        value = int(text, 16 if "x" in text.lower() else 10)
        if minimum is not None and value < minimum:
            self.fail(f"{value} is too small", hint=f"at least {minimum}")
        if maximum is not None and value > maximum:
            self.fail(f"{value} is too large", hint=f"at most {maximum}")
        return value

    def number(self, *, minimum: float, maximum: float) -> float:
        """A decimal number within the bounds (both included)."""
        text = self._scalar("a number")
        if not _NUMBER.fullmatch(text) or len(text) > 40:
            self.fail(f"expected a number, found {show(text)}")
        value = float(text)
        if value < minimum:
            self.fail(f"{text} is too small", hint=f"at least {minimum:g}")
        if value > maximum:
            self.fail(f"{text} is too large", hint=f"at most {maximum:g}")
        return value

    def size(self, *, multiple: int = 1, minimum: int = 0) -> int:
        """A size in bytes, spelled as units.parse_size takes it; a multiple of ``multiple``, at least ``minimum``."""
        text = self._scalar("a size")
        try:
            size = parse_size(text[:80])
        except ValueError as error:
            self.fail(str(error), hint="whole numbers with K, M, G or T, powers of 1024")
        problem = size_problem(size, multiple=multiple, minimum=minimum)
        if problem is not None:
            self.fail(problem[0], hint=problem[1])
        return size

    def path(self) -> Path:
        """A file or folder that exists; a relative one starts at the file's own directory."""
        path = self.place()
        if not path.is_file() and not path.is_dir():
            self.fail(f"no such file: {path}", hint="relative paths start at the directory of the YAML file")
        return path

    def place(self) -> Path:
        """A path, which need not exist; a relative one starts at the file's own directory."""
        text = self.line_of_text()
        try:
            return (self.file.parent / Path(os.path.expanduser(text))).resolve()
        except (OSError, RuntimeError) as error:
            self.fail(f"{show(text)} cannot be a path: {error}")

    def items(self) -> tuple[Value, ...]:
        """The elements of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f"expected a list, found {self.described()}")
        return tuple(Value(self.file, f"{self.key}[{number}]", node) for number, node in enumerate(self.node.value))

    def mapping(self, *known: str) -> Reader:
        """A mapping; if ``known`` keys are given, any other key is an error."""
        pairs = self._pairs()
        if known:
            for key, (at, _) in pairs.items():
                if key not in known:
                    raise self._error(f"unknown key {show(key)}", at, suggest(key, known))
        return Reader(self, {key: Value(self.file, self._below(key), node) for key, (_, node) in pairs.items()})

    def _below(self, key: str) -> str:
        shown = key if key.isprintable() and len(key) <= 80 else show(key)
        return f"{self.key}.{shown}" if self.key else shown

    def _pairs(self) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"expected a mapping, found {self.described()}")
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in self.node.value:
            if key.tag == _PREFIX + "merge":
                inner = Value(self.file, self._below("<<"), value)
                for source in inner.items() if isinstance(value, yaml.SequenceNode) else (inner,):
                    merged = {**source._pairs(), **merged}
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise self._error("a key must be plain text", key)
            if key.value in own:
                first = own[key.value][0].start_mark.line + 1
                raise self._error(f"duplicate key {show(key.value)}", key, f"the first one is on line {first}")
            own[key.value] = (key, value)
        return {**merged, **own}


@dataclass(frozen=True)
class Reader:
    """The checked keys of one mapping."""

    value: Value
    values: Mapping[str, Value]

    @overload
    def take(self, key: str, read: Callable[[Value], T]) -> T: ...

    @overload
    def take(self, key: str, read: Callable[[Value], T], default: D) -> T | D: ...

    def take(self, key: str, read: Callable[[Value], Any], default: Any = _REQUIRED) -> Any:
        """``read`` the value of ``key``; without a ``default`` the key must be there."""
        found = self.values.get(key)
        if found is not None:
            return read(found)
        if default is _REQUIRED:
            self.value.fail(f"key {key!r} is missing")
        return default


def size_problem(size: int, *, multiple: int = 1, minimum: int = 0) -> tuple[str, str] | None:
    """Say (message, hint) what is wrong with a size, None if nothing is."""
    if size < minimum:
        return f"{format_size(size)} is too small", f"at least {format_size(minimum)}"
    if size % multiple:
        below = size - size % multiple
        near = [format_size(value) for value in (below, below + multiple) if value >= max(minimum, 1)]
        return f"{format_size(size)} is not a multiple of {format_size(multiple)}", f"nearest: {' or '.join(near)}"
    return None


def load(path: Path) -> Value:
    """Parse the one document in ``path``; raises ConfigError (file, line, key) for anything unusual."""
    return parse(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a configuration file; raises ConfigError if it cannot be read, is too large or not UTF-8."""
    try:
        data = read_file(path, MAX_FILE)
    except OSError as error:
        hint = "check the path" if isinstance(error, FileNotFoundError) else "is this the right file?"
        raise ConfigError(f"cannot be read: {error.strerror}", file=path, hint=hint) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"byte {data[error.start]:#04x} is not UTF-8", file=path, line=line, hint="save the file as UTF-8"
        ) from error


def parse(text: str, path: Path) -> Value:
    """Like ``load``, from text in memory; ``path`` is for messages and relative paths."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except RecursionError:
        raise ConfigError("nested too deeply", file=path, hint=f"at most {MAX_DEPTH} levels") from None
    except yaml.YAMLError as error:
        raise _syntax_error(error, path, text) from error
    if node is None:
        raise ConfigError("the file is empty", file=path)
    _check_shape(node, path)
    return Value(path, "", node)


def _syntax_error(error: yaml.YAMLError, path: Path, text: str) -> ConfigError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, int(error.position)) + 1
        return ConfigError(f"the character {text[int(error.position)]!r} is not allowed in YAML", file=path, line=line)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        line = error.problem_mark.line + 1
        if error.context == "expected a single document in the stream":
            return ConfigError("a second document starts", file=path, line=line, hint="use one document per file")
        what = ", ".join(part for part in (error.context, error.problem) if part)
        return ConfigError(f"not YAML: {what}", file=path, line=line, hint=f"column {error.problem_mark.column + 1}")
    return ConfigError(f"not YAML: {error}", file=path)


def _check_shape(root: yaml.Node, path: Path) -> None:
    """Refuse custom tags, aliases that contain themselves, and nesting beyond MAX_DEPTH (aliases followed)."""
    heights: dict[int, int] = {}
    above: set[int] = set()

    def height(node: yaml.Node, depth: int) -> int:
        line = node.start_mark.line + 1
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"tag {show(node.tag)} is not allowed", file=path, line=line, hint="write plain values")
        if id(node) in above:
            raise ConfigError("an alias inside its own anchor", file=path, line=line)
        if id(node) not in heights:
            above.add(id(node))
            children = [part for child in node.value for part in (child if isinstance(child, tuple) else (child,))]
            below = [] if isinstance(node, yaml.ScalarNode) else children
            if depth > MAX_DEPTH:
                raise ConfigError("nested too deeply", file=path, line=line, hint=f"at most {MAX_DEPTH} levels")
            heights[id(node)] = 1 + max((height(child, depth + 1) for child in below), default=0)
            above.remove(id(node))
        if depth + heights[id(node)] > MAX_DEPTH + 1:
            raise ConfigError("nested too deeply", file=path, line=line, hint=f"at most {MAX_DEPTH} levels")
        return heights[id(node)]

    height(root, 0)
