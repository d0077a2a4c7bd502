# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of the kernel's symbols, from its own symbol table (scripts/kallsyms.c).

vmcoreinfo has the addresses of its parts (since v6.0, commit 5fd8fea935a1). A symbol's address is its offset plus
kallsyms_relative_base or, in kernels whose note lacks that key (at least 7.2 and later), plus the address of the offset
itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from harness.kmem._runs import Indices
from harness.kmem.lookup import KernelReader
from harness.state import NotObserved

#: a kernel has 0.1 to 0.3 million symbols of 15 bytes on average
_MAX_SYMBOLS = 4 << 20
_CHUNK = 1 << 20
#: maximum bytes of a packed name, including its length
_LONGEST = 2 + (1 << 15)
_TOKENS = 256
#: size limit of the token table in bytes
_TOKEN_TABLE = 4096


def find_symbols(reader: KernelReader, note: Mapping[str, str], names: Collection[str]) -> dict[str, int] | NotObserved:
    """The addresses of those ``names`` that exist; the first one if several symbols share a name.

    ``note`` is vmcoreinfo. Raises Untranslated and OutsideMemory if the table is not where the note says.
    """
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
