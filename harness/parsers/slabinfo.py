# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/slabinfo (mm/slab_common.c, print_slabinfo_header and cache_show)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.parsers.notes import STRICT, Notes
from harness.state import SlabCache

SOURCE = "/proc/slabinfo"

#: version 2.1, the same in v6.1 to v7.3
HEADER = (
    "slabinfo - version: 2.1",
    "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
    " : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>",
)

_KNOWN = frozenset(re.findall(r"<\w+>|\w+", HEADER[1]))
_NEEDED = ("<active_objs>", "<num_objs>", "<objsize>")


def parse_slabinfo(text: str, notes: Notes = STRICT) -> tuple[SlabCache, ...]:
    """Return the caches in the order printed.

    Columns are found by the names in the file's second line, so that versions with other columns can be read: anything
    beyond version 2.1 is unknown. A cache's name may be repeated: two modules may choose the same one. A line is
    garbled if it lacks the header's columns or a name in front of them: the name is its only text, and cache_show
    prints whatever it finds there. Raises ParseError for a header without the needed columns, and for bad numbers.
    """
    rows = numbered(SOURCE, text, notes)
    _, version = next(rows, (1, ""))
    line, header = next(rows, (2, ""))
    if not version.startswith("slabinfo"):
        raise ParseError(SOURCE, 1, version, "not the header of slabinfo")
    if version != HEADER[0]:
        notes.add_unknown(SOURCE, "version", version)
    first, *others = header.split(" : ")
    columns = first.split()[2:]
    if not first.startswith("# name ") or not set(_NEEDED) <= set(columns):
        raise ParseError(SOURCE, line, header, f"the header does not have the columns {', '.join(_NEEDED)}")
    for word in dict.fromkeys(header.split()):
        if word not in _KNOWN and word not in ("#", ":"):
            notes.add_unknown(SOURCE, "column", word)
    table = _Table(tuple(columns), tuple(len(part.split()) for part in others))
    found = (table.parse(line, row, notes) for line, row in rows)
    return tuple(cache for cache in found if cache is not None)


class _Table:
    """The columns behind a cache's name, and the number of words in each part behind a colon."""

    def __init__(self, columns: tuple[str, ...], parts: tuple[int, ...]) -> None:
        self.columns = columns
        self.parts = parts

    def parse(self, line: int, row: str, notes: Notes) -> SlabCache | None:
        # From the right: a cache's name may contain spaces and colons.
        head, *tail = row.rsplit(" : ", len(self.parts)) if self.parts else [row]
        words = head.rsplit(None, len(self.columns))
        if tuple(len(part.split()) for part in tail) != self.parts:
            notes.add_garbled(SOURCE, line, row, "not a cache: it does not have the columns of the header")
            return None
        if len(words) != len(self.columns) + 1 or words[0] != words[0].strip():
            notes.add_garbled(SOURCE, line, row, f"expected {len(self.columns)} numbers behind a cache's name")
            return None
        numbers = dict(zip(self.columns, words[1:], strict=True))
        active, total, size = (decimal(SOURCE, line, row, numbers[name]) for name in _NEEDED)
        return SlabCache(words[0], active, total, size)
