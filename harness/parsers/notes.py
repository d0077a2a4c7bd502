# SPDX-License-Identifier: GPL-2.0-or-later
"""The parsers' notes beside their values: text that memhp does not know, and lines that no sound kernel prints.

Unknown text that nothing needs is accepted, counted, and reported once per run for review. Text that no kernel prints
(a resource without a name, control characters in a name) is evidence against the kernel: a finding, not a failure of
the harness. Text that memhp needs and cannot read is neither: it remains a ParseError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.errors import ParseError
from harness.state import Garbled, Unknown

#: how many kinds of unknown text are distinguished per source; further ones are counted with the last
MAX_UNKNOWN = 16
#: how many garbled lines per source are kept: the first ones
MAX_GARBLED = 16
#: how many characters of a line are kept
MAX_SHOWN = 160
#: how many examples of each kind are shown
_EXAMPLES = 3

_DIGITS = re.compile(r"\b(?:0x)?[0-9a-f]*[0-9][0-9a-f]*\b|[0-9]+")


def printable(text: str) -> str:
    """``text`` on one line, shortened, with control characters escaped."""
    cut = text[: MAX_SHOWN + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in cut)
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "…"


class Notes:
    """The notes of one snapshot, or of one kernel's facts. Their size is bounded for any text."""

    def __init__(self) -> None:
        self._unknown: dict[tuple[str, str, str], Unknown] = {}
        self._garbled: dict[str, list[Garbled]] = {}

    def add_unknown(self, source: str, kind: str, text: str, count: int = 1) -> None:
        """Note that ``source`` has ``text`` of a ``kind`` (line, field, column, …) that memhp does not know."""
        _count(self._unknown, Unknown(source, kind, printable(text), count), add=True)

    def add_garbled(self, source: str, line: int, text: str, why: str) -> None:
        """Note line ``line`` (1-based) of ``source``, which no sound kernel prints."""
        lines = self._garbled.setdefault(source, [])
        if len(lines) < MAX_GARBLED:
            lines.append(Garbled(source, line, printable(text), why))

    @property
    def unknown(self) -> tuple[Unknown, ...]:
        """Everything unknown, in order of appearance."""
        return tuple(self._unknown.values())

    @property
    def garbled(self) -> tuple[Garbled, ...]:
        """The garbled lines, source by source."""
        return tuple(line for lines in self._garbled.values() for line in lines)


class _Strict(Notes):
    """For callers that keep no notes: unknown text is accepted, garbled text is an error."""

    def add_unknown(self, source: str, kind: str, text: str, count: int = 1) -> None:
        pass

    def add_garbled(self, source: str, line: int, text: str, why: str) -> None:
        raise ParseError(source, line, text, why)


STRICT: Notes = _Strict()


def summed(notes: Iterable[Unknown]) -> tuple[Unknown, ...]:
    """The ``notes`` of many snapshots merged by item; ``count`` is the maximum of any snapshot."""
    sums: dict[tuple[str, str, str], Unknown] = {}
    for note in notes:
        _count(sums, note, add=False)
    return tuple(sums.values())


def note_lines(notes: Iterable[Unknown]) -> list[str]:
    """A line of text about each source and kind: how many there are, with examples."""
    groups: dict[tuple[str, str], list[Unknown]] = {}
    for note in notes:
        groups.setdefault((note.source, note.kind), []).append(note)
    return [_tell(*key, group) for key, group in groups.items()]


def _tell(source: str, kind: str, group: Sequence[Unknown]) -> str:
    count = sum(note.count for note in group)
    noun, space, rest = kind.partition(" ")
    kind = kind if count == 1 else f"{noun}s{space}{rest}"
    shown = ", ".join(f"'{note.example.strip()}'" for note in group[:_EXAMPLES])
    more = ", …" if len(group) > _EXAMPLES else ""
    return f"{source}: {count} {kind} that memhp does not know: {shown}{more}"


def _count(sums: dict[tuple[str, str, str], Unknown], note: Unknown, *, add: bool) -> None:
    """``text`` without its numbers: a counter has another value in every snapshot."""
    key = (note.source, note.kind, _DIGITS.sub("0", " ".join(note.example.split())))
    same = [known for known in sums if known[0] == note.source]
    if key not in sums and len(same) >= MAX_UNKNOWN:
        key = same[-1]
    old = sums.get(key)
    if old is None:
        sums[key] = note
    else:
        sums[key] = replace(old, count=old.count + note.count if add else max(old.count, note.count))
