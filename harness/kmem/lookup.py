# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads any kernel address in the guest's memory: by arithmetic, or by a page-table walk as in hardware."""

from __future__ import annotations

import numpy as np

from harness.arch.pagetable import TableFormat
from harness.kmem._copy import physical
from harness.kmem.address import DirectMap, Flags, Untranslated, Words
from harness.kmem.physical_memory import PhysicalMemory

_ENTRY = 8


class LiveTables:
    """init_mm's page tables as a translation: each lookup walks from the root, in the current memory.

    A page of a running guest may be gone a moment later: a caller that needs it to stay pauses the guest.
    """

    def __init__(self, memory: PhysicalMemory, tables: TableFormat) -> None:
        self._memory, self._tables = memory, tables

    def translate(self, addresses: Words) -> tuple[Words, Flags]:
        """See ``Translation``."""
        tables = self._tables
        mask, value = (np.uint64(number) for number in tables.table)
        table = np.full(addresses.shape, tables.root, dtype=np.uint64)
        found, done = np.zeros_like(addresses), np.zeros(addresses.shape, dtype=np.bool_)
        going = ~done
        for depth, level in enumerate(tables.levels):
            # Addresses of both halves index the root modulo its number of entries.
            index = (addresses - np.uint64(tables.start)) >> np.uint64(level.shift) & np.uint64(level.entries - 1)
            place = table + index * np.uint64(_ENTRY)
            going &= self._memory.holds(place, _ENTRY)
            entry = np.zeros_like(addresses)
            entry[going] = self._memory.gather(place[going], _ENTRY)[:, 0]
            below = (entry & mask == value) & (depth < len(tables.levels) - 1)
            leaf = going & ~below & (entry & np.uint64(tables.valid) != 0)
            found[leaf] = self._behind(entry[leaf], addresses[leaf], depth)
            done |= leaf
            going &= below
            table = physical(tables, entry)
        return found, done

    def _behind(self, entries: Words, addresses: Words, depth: int) -> Words:
        level, tables = self._tables.levels[depth], self._tables
        span = np.full(entries.shape, level.entry_span, dtype=np.uint64)
        if tables.napot and level.group:
            span[entries & np.uint64(tables.contiguous) != 0] *= np.uint64(level.group)
        within: Words = span - np.uint64(1)
        return np.asarray((physical(tables, entries) & ~within) | (addresses & within), dtype=np.uint64)


class KernelReader:
    """Dereferences kernel pointers in a paused guest.

    Its methods raise Untranslated for a pointer that is not mapped, and OutsideMemory.
    """

    def __init__(self, memory: PhysicalMemory, direct: DirectMap, tables: TableFormat) -> None:
        self.memory, self.direct = memory, direct
        self.live = LiveTables(memory, tables)
        self._page = tables.page_size
        self._known: dict[int, int] = {}

    def physical(self, address: int) -> int:
        """The physical address behind a kernel pointer. In the linear map this is fast arithmetic."""
        try:
            return self.direct.physical(address)
        except Untranslated:
            page = address - address % self._page
            self._learn([page])
            return self._known[page] + address - page

    def read(self, address: int, size: int) -> bytes:
        """The ``size`` bytes at ``address``."""
        parts = []
        if size > self._page:
            self._learn(list(range(address - address % self._page, address + size, self._page)))
        while size > 0:
            piece = min(size, self._page - address % self._page)
            parts.append(self.memory.read(self.physical(address), piece))
            address, size = address + piece, size - piece
        return b"".join(parts)

    def word(self, address: int) -> int:
        """The 64-bit word at ``address``."""
        return int.from_bytes(self.read(address, 8), "little")

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """``count`` 64-bit words from ``address`` on."""
        return tuple(np.frombuffer(self.read(address, count * 8), dtype="<u8").tolist())

    def _learn(self, pages: list[int]) -> None:
        missing = [page for page in pages if page not in self._known]
        if not missing:
            return
        where, mapped = self.live.translate(np.array(missing, dtype=np.uint64))
        for page, physical_page, there in zip(missing, where.tolist(), mapped.tolist(), strict=True):
            if not there:
                raise Untranslated(page, "is not mapped")
            self._known[page] = physical_page
