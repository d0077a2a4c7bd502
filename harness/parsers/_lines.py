# SPDX-License-Identifier: GPL-2.0-or-later
"""What all text parsers share: hostile input is turned away before anybody looks at its meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.errors import ParseError
from harness.units import MIB

#: characters; the largest honest source (a page-table dump of a fragmented guest) is far below
MAX_CHARS = 64 * MIB
#: decimal digits of 2**64 - 1
MAX_DIGITS = 20

_FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufffd\ud800-\udfff]")
_FOREIGN_LOG = re.compile("[\x00\ud800-\udfff]")
_DECIMAL = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")


def split_lines(source: str, text: str, *, free_text: bool = False) -> list[str]:
    """Cut ``text`` at its newlines and return the lines without them; only a newline ends a line.

    Raises ParseError for text that is too long, that was cut off (its last line has no newline), or that holds
    what no kernel file holds: NUL, control characters, and the marks that undecodable bytes leave behind.
    ``free_text`` lets control characters pass (log messages may carry them), but neither NUL nor undecodable bytes.
    """
    if len(text) > MAX_CHARS:
        raise ParseError(source, 1, text[:200], f"longer than {MAX_CHARS} characters")
    foreign = (_FOREIGN_LOG if free_text else _FOREIGN).search(text)
    if foreign is not None:
        start = text.rfind("\n", 0, foreign.start()) + 1
        line = text.count("\n", 0, start) + 1
        why = f"character {foreign[0]!r} does not belong into this file"
        raise ParseError(source, line, text[start : foreign.start() + 20].split("\n")[0], why)
    lines = text.split("\n")
    if lines[-1]:
        raise ParseError(source, len(lines), lines[-1], "the text ends in the middle of a line")
    del lines[-1]
    return lines


def numbered(source: str, text: str, *, free_text: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of ``text`` with their numbers, from 1; as strict as ``split_lines``."""
    return enumerate(split_lines(source, text, free_text=free_text), 1)


def decimal(source: str, line: int, text: str, digits: str) -> int:
    """The unsigned 64-bit number that ``digits`` spells; raises ParseError, which quotes the whole ``text``."""
    if _DECIMAL.fullmatch(digits) is None or int(digits) >= 1 << 64:
        raise ParseError(source, line, text, f"{digits[:40]!r} is not an unsigned 64-bit number")
    return int(digits)
