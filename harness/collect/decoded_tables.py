# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables of one guest as a raw source of its snapshots: what equals the last snapshot is not decoded again."""

from __future__ import annotations

from dataclasses import replace

from harness.kmem.table_walk import TableImage, Walk, walk
from harness.parsers.hosttables import format_count, format_entries
from harness.state import HostTables, NotObserved, TableCount


class DecodedTables:
    """The last page tables that were decoded; ``spare`` is a copy that is not needed any more, to be overwritten."""

    def __init__(self) -> None:
        self.spare: TableImage | None = None
        self._walk: Walk | None = None
        self._marked: frozenset[int] | None = None
        self._tables: HostTables | None = None
        self._entries = ""

    def decode(
        self, image: TableImage, counted: tuple[frozenset[int], TableCount] | NotObserved
    ) -> tuple[HostTables, str]:
        """A copy of page tables with their count, as values and as text. Raises GuestError for too many runs."""
        last, walked = self._walk, walk(image, self._walk)
        marked, count = (None, counted) if isinstance(counted, NotObserved) else counted
        if self._tables is None or walked is not self._walk or marked != self._marked:
            self._walk, self._marked, self._tables = walked, marked, walked.to_state(counted)
            self._entries = format_entries(self._tables)
        self.spare = image if walked is last else None if last is None else last.image
        return replace(self._tables, count=count), self._entries + format_count(count)
