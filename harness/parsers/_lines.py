# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared by all text parsers: splitting text into lines, reading numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.errors import ParseError
from harness.parsers.notes import STRICT, Notes, printable
from harness.units import MIB

#: in characters; the largest real source (a page-table dump of a fragmented guest) is far smaller
MAX_CHARS = 64 * MIB
#: decimal digits of 2**64 - 1
MAX_DIGITS = 20

_FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufffd\ud800-\udfff]")
_DECIMAL = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")


def split_lines(source: str, text: str) -> list[str]:
    """Split ``text`` at newlines, the only line ends, and return the lines without them.

    Raises ParseError for text that is too long or truncated (its last line has no newline).
    """
    if len(text) > MAX_CHARS:
        raise ParseError(source, 1, text[:200], f"longer than {MAX_CHARS} characters")
    lines = text.split("\n")
    if lines[-1]:
        raise ParseError(source, len(lines), lines[-1], "the text ends in the middle of a line")
    del lines[-1]
    return lines


def numbered(source: str, text: str, notes: Notes = STRICT) -> Iterator[tuple[int, str]]:
    """The lines of ``text`` with their numbers, starting at 1.

    Characters that no kernel file contains are noted as garbled and escaped: NUL, control characters, and replacement
    marks of undecodable bytes. Raises ParseError as ``split_lines`` does.
    """
    lines = split_lines(source, text)
    if _FOREIGN.search(text) is not None:
        for at, row in enumerate(lines):
            foreign = _FOREIGN.search(row)
            if foreign is not None:
                why = f"character {foreign[0]!r} does not belong in this file"
                notes.add_garbled(source, at + 1, row, why)
                lines[at] = printable(row)
    return enumerate(lines, 1)


def decimal(source: str, line: int, text: str, digits: str) -> int:
    """``digits`` as an unsigned 64-bit number; raises ParseError, which quotes the whole ``text``."""
    if _DECIMAL.fullmatch(digits) is None or int(digits) >= 1 << 64:
        raise ParseError(source, line, text, f"{digits[:40]!r} is not an unsigned 64-bit number")
    return int(digits)
