# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is done twice: what was parsed of the last snapshot, for the sources of the next one that are equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from harness.collect.decoded_tables import DecodedTables
from harness.collect.hostside import Glance
from harness.errors import ParseError
from harness.kmem.physical_memory import PhysicalMemory
from harness.parsers.notes import Notes
from harness.state import Garbled, NotObserved, Unknown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """The value of a source, and the parser's notes; NotObserved if its lines are too garbled to be parsed."""

    value: T | NotObserved
    unknown: tuple[Unknown, ...]
    garbled: tuple[Garbled, ...]


class ParseCache:
    """The sources of the last snapshot of one guest, each with what was parsed of it; values are shared, not copied.

    ``glance`` is where the host found what it read itself, in ``memory``; ``tables`` the page tables that it found.
    """

    def __init__(self) -> None:
        self.glance: Glance | None = None
        self.memory: PhysicalMemory | None = None
        self.tables = DecodedTables()
        self._last: dict[str, tuple[bytes, Parsed[Any]]] = {}

    def parsed(self, name: str, data: bytes, parser: Callable[[str, Notes], T]) -> Parsed[T]:
        """What ``parser``, always the same one for ``name``, makes of ``data``.

        Raises ParseError for what is malformed though no line of it is garbled.
        """
        last = self._last.get(name)
        if last is not None and last[0] == data:
            return last[1]
        found = _parse(data.decode(errors="replace"), parser)
        self._last[name] = data, found
        return found


def _parse(text: str, parser: Callable[[str, Notes], T]) -> Parsed[T]:
    notes = Notes()
    value: T | NotObserved
    try:
        value = parser(text, notes)
    except ParseError as error:
        if not notes.garbled:
            raise
        value = NotObserved(f"garbled: {error.message}")
    return Parsed(value, notes.unknown, notes.garbled)
