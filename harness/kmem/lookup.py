# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads any kernel address in the guest's memory: by arithmetic, or by a page-table walk as in hardware.

Addresses of symbols come from the kernel's own table (scripts/kallsyms.c), whose parts have theirs in vmcoreinfo (since
v6.0, commit 5fd8fea935a1). A symbol's address is its offset plus kallsyms_relative_base or, in kernels whose note lacks
that key (at least 7.2 and later), plus the address of the offset itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from harness.arch.pagetable import TableFormat
from harness.kmem._copy import physical
from harness.kmem.address import DirectMap, Untranslated
from harness.kmem.physical_memory import Flags, Indices, OutsideMemory, PhysicalMemory, Words
from harness.state import NotObserved
from harness.units import TOP

_ENTRY = 8
#: a kernel has 0.1 to 0.3 million symbols of 15 bytes on average
_MAX_SYMBOLS = 4 << 20
_CHUNK = 1 << 20
#: maximum bytes of a packed name, including its length
_LONGEST = 2 + (1 << 15)
_TOKENS = 256
#: size limit of the token table in bytes
_TOKEN_TABLE = 4096


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

    ``likely`` are pages outside the linear map that will be read, such as the ``walked`` ones of an earlier reader:
    one walk for all of them is much quicker than one for each. Methods raise Untranslated for a pointer that is not
    mapped, and OutsideMemory.
    """

    def __init__(
        self, memory: PhysicalMemory, direct: DirectMap, tables: TableFormat, likely: Collection[int] = ()
    ) -> None:
        self.memory, self.direct = memory, direct
        self.live = LiveTables(memory, tables)
        self._page = tables.page_size
        self._likely = likely
        #: physical addresses of pages, -1 for one that is not mapped
        self._known: dict[int, int] = {}

    @property
    def walked(self) -> tuple[int, ...]:
        """The virtual addresses of all pages that were looked up in the page tables."""
        return tuple(self._known)

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
        if address % self._page + size <= self._page:
            return self.memory.read(self.physical(address), size)
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
        if address & 7:
            return int.from_bytes(self.read(address, 8), "little")
        return self.memory.word(self.physical(address))

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """``count`` 64-bit words from ``address`` on."""
        return tuple(np.frombuffer(self.read(address, count * 8), dtype="<u8").tolist())

    def gather(self, addresses: Words, count: int) -> tuple[Words, Flags]:
        """``count`` 64-bit words from each of ``addresses`` on (multiples of 8), one row each.

        The second array has the same shape: whether a word could be read; it is 0 otherwise.
        """
        cells = (addresses[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(8)).ravel()
        where, found = self.direct.translate(cells)
        beyond = np.flatnonzero(~found)
        if len(beyond):
            # One walk per page: neighbouring words mostly share it.
            pages, page = np.unique(cells[beyond] & ~np.uint64(self._page - 1), return_inverse=True)
            starts = np.array(self._find(pages.tolist()), dtype=np.int64)
            where[beyond] = starts.astype(np.uint64)[page] + cells[beyond] % np.uint64(self._page)
            found[beyond] = starts[page] >= 0
        found &= self.memory.holds(where, 8) & (where & np.uint64(7) == 0)
        words = np.zeros(len(cells), dtype=np.uint64)
        words[found] = self.memory.gather(where[found], 8)[:, 0]
        return words.reshape(-1, count), found.reshape(-1, count)

    def _learn(self, pages: list[int]) -> None:
        for page, physical_page in zip(pages, self._find(pages), strict=True):
            if physical_page < 0:
                raise Untranslated(page, "is not mapped")

    def _find(self, pages: list[int]) -> list[int]:
        if not self._known.keys() >= set(pages):
            missing = [page for page in {*pages, *self._likely} if page not in self._known]
            self._likely = ()
            # A pointer of a broken kernel may lie so high that what it points to ends beyond the last address.
            where, mapped = self.live.translate(np.array([page % TOP for page in missing], dtype=np.uint64))
            there = np.where(mapped, where.astype(np.int64), -1)
            self._known.update(zip(missing, there.tolist(), strict=True))
        return [self._known[page] for page in pages]


def find_symbols(reader: KernelReader, note: Mapping[str, str], names: Collection[str]) -> dict[str, int] | NotObserved:
    """The addresses of those ``names`` that exist; the first one if several symbols share a name.

    ``note`` is vmcoreinfo. Not observed if the kernel has no table, or it is not where the note says.
    """
    try:
        return _symbols(reader, note, names)
    except (Untranslated, OutsideMemory) as error:
        return NotObserved(f"the kernel's symbols cannot be read: {error.message}")


def _symbols(reader: KernelReader, note: Mapping[str, str], names: Collection[str]) -> dict[str, int] | NotObserved:
    keys = ("kallsyms_names", "kallsyms_num_syms", "kallsyms_token_table", "kallsyms_token_index", "kallsyms_offsets")
    places = {}
    for key in keys:
        text = note.get(f"SYMBOL({key})")
        if text is None:
            return NotObserved(f"vmcoreinfo has no SYMBOL({key}): no CONFIG_KALLSYMS, or older than v6.0")
        places[key] = int(text, 16)
    count = int.from_bytes(reader.read(places["kallsyms_num_syms"], 4), "little")
    if not 0 < count <= _MAX_SYMBOLS:
        return NotObserved(f"implausible kernel symbol table: {count} symbols")
    tokens = _tokens(reader, places["kallsyms_token_table"], places["kallsyms_token_index"])
    numbers = _numbers(reader, places["kallsyms_names"], count, tokens, frozenset(name.encode() for name in names))
    base = note.get("SYMBOL(kallsyms_relative_base)")
    start = None if base is None else reader.word(int(base, 16))
    found = {}
    for name, number in numbers.items():
        place = places["kallsyms_offsets"] + 4 * number
        offset = int.from_bytes(reader.read(place, 4), "little", signed=start is None)
        found[name] = ((place if start is None else start) + offset) % (1 << 64)
    return found


def _tokens(reader: KernelReader, table: int, index: int) -> list[bytes]:
    text = reader.read(table, _TOKEN_TABLE)
    starts = np.frombuffer(reader.read(index, 2 * _TOKENS), dtype="<u2").tolist()
    return [text[start : text.find(b"\0", start)] for start in starts]


def _numbers(
    reader: KernelReader, at: int, count: int, tokens: list[bytes], wanted: frozenset[bytes]
) -> dict[str, int]:
    """The numbers of the ``wanted`` symbols, in address order. The first letter of a symbol is its type."""
    data, starts, ends = _spans(reader, at, count)
    # Most can be ruled out by their length, without unpacking them.
    sizes = np.array([len(token) for token in tokens], dtype=np.int64)[np.frombuffer(data, dtype=np.uint8)]
    upto = np.concatenate(([0], np.cumsum(sizes)))
    likely = np.isin(upto[ends] - upto[starts], [len(name) + 1 for name in wanted])
    found: dict[str, int] = {}
    for number in np.flatnonzero(likely).tolist():
        packed = data[starts[number] : ends[number]]
        name = b"".join(map(tokens.__getitem__, packed))[1:]
        if name in wanted:
            found.setdefault(name.decode(), number)
    return found


def _spans(reader: KernelReader, at: int, count: int) -> tuple[bytes, Indices, Indices]:
    """The packed names with their start and end: each begins with its length, in one byte or two."""
    data, starts, ends = reader.read(at, _CHUNK), [], []
    place = 0
    for _ in range(count):
        if place + _LONGEST > len(data):
            data += reader.read(at + len(data), _CHUNK)
        length = data[place]
        place += 1
        if length & 0x80:
            length = length & 0x7F | data[place] << 7
            place += 1
        starts.append(place)
        place += length
        ends.append(place)
    return data, np.array(starts, dtype=np.intp), np.array(ends, dtype=np.intp)
