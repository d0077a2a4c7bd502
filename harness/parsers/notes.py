# SPDX-License-Identifier: GPL-2.0-or-later
"""What parsers put down beside their values: text that memhp does not know, and lines that no sound kernel prints.

What nothing needs is let through, counted, and told once a run, so that somebody can look. What no kernel prints (a
resource without a name, control characters in one) is evidence against it: a finding, no failure of the harness.
Text that memhp needs and cannot read is neither: it stays a ParseError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.errors import ParseError
from harness.state import Garbled, Unknown

#: different things of one source that are told apart; what comes after them is counted with the last
MAX_UNKNOWN = 16
#: garbled lines of one source that are kept; the first ones tell the story
MAX_GARBLED = 16
#: characters of a line that are kept
MAX_SHOWN = 160
#: examples that people are told of each kind
_EXAMPLES = 3

_DIGITS = re.compile(r"\b(?:0x)?[0-9a-f]*[0-9][0-9a-f]*\b|[0-9]+")


def printable(text: str) -> str:
    """``text`` on one line and not too long, with escapes for whatever a terminal might obey."""
    cut = text[: MAX_SHOWN + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in cut)
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "…"


class Notes:
    """The notes of one snapshot, or of one kernel's facts. However long and strange the text is, they stay small."""

    def __init__(self) -> None:
        self._unknown: dict[tuple[str, str, str], Unknown] = {}
        self._garbled: dict[str, list[Garbled]] = {}

    def add_unknown(self, source: str, kind: str, text: str, count: int = 1) -> None:
        """Put down that ``source`` has ``text``, of a ``kind`` (line, field, column, …) that memhp does not know."""
        _count(self._unknown, Unknown(source, kind, printable(text), count), add=True)

    def add_garbled(self, source: str, line: int, text: str, why: str) -> None:
        """Put down line ``line`` (1-based) of ``source``, which no sound kernel prints."""
        lines = self._garbled.setdefault(source, [])
        if len(lines) < MAX_GARBLED:
            lines.append(Garbled(source, line, printable(text), why))

    @property
    def unknown(self) -> tuple[Unknown, ...]:
        """Everything unknown, in the order in which it was met."""
        return tuple(self._unknown.values())

    @property
    def garbled(self) -> tuple[Garbled, ...]:
        """The garbled lines, source by source."""
        return tuple(line for lines in self._garbled.values() for line in lines)


class _Strict(Notes):
    """For whoever keeps no notes: what is unknown is let through, what is garbled is an error."""

    def add_unknown(self, source: str, kind: str, text: str, count: int = 1) -> None:
        pass

    def add_garbled(self, source: str, line: int, text: str, why: str) -> None:
        raise ParseError(source, line, text, why)


STRICT: Notes = _Strict()


def summed(notes: Iterable[Unknown]) -> tuple[Unknown, ...]:
    """One note for each thing in the ``notes`` of many snapshots; ``count`` is the most that one snapshot had."""
    found: dict[tuple[str, str, str], Unknown] = {}
    for note in notes:
        _count(found, note, add=False)
    return tuple(found.values())


def told(notes: Iterable[Unknown]) -> list[str]:
    """A line for people about each source and kind: how many there are, and some of them."""
    groups: dict[tuple[str, str], list[Unknown]] = {}
    for note in notes:
        groups.setdefault((note.source, note.kind), []).append(note)
    return [_tell(*key, found) for key, found in groups.items()]


def _tell(source: str, kind: str, found: Sequence[Unknown]) -> str:
    count = sum(note.count for note in found)
    noun, space, rest = kind.partition(" ")
    kind = kind if count == 1 else f"{noun}s{space}{rest}"
    shown = ", ".join(f"'{note.example.strip()}'" for note in found[:_EXAMPLES])
    more = ", …" if len(found) > _EXAMPLES else ""
    return f"{source}: {count} {kind} that memhp does not know: {shown}{more}"


def _count(found: dict[tuple[str, str, str], Unknown], note: Unknown, *, add: bool) -> None:
    """Numbers do not make two lines different things: a counter has another value in every snapshot."""
    key = (note.source, note.kind, _DIGITS.sub("0", " ".join(note.example.split())))
    same = [known for known in found if known[0] == note.source]
    if key not in found and len(same) >= MAX_UNKNOWN:
        key = same[-1]
    old = found.get(key)
    if old is None:
        found[key] = note
    else:
        found[key] = replace(old, count=old.count + note.count if add else max(old.count, note.count))
