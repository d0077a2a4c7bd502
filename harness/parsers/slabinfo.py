# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/slabinfo, version 2.1 (mm/slab_common.c, print_slabinfo_header and cache_show)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, split_lines
from harness.state import SlabCache

SOURCE = "/proc/slabinfo"

HEADER = (
    "slabinfo - version: 2.1",
    "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
    " : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>",
)

_TUNABLES = re.compile(r"tunables +[0-9]+ +[0-9]+ +[0-9]+")
_SLABDATA = re.compile(r"slabdata +[0-9]+ +[0-9]+ +[0-9]+")


def parse_slabinfo(text: str) -> tuple[SlabCache, ...]:
    """Return the caches in the order printed.

    A name may come twice: the kernel does not keep two modules from choosing the same one. Raises ParseError for
    another version of the file and for any line that is not a cache.
    """
    rows = split_lines(SOURCE, text)
    for at, expected in enumerate(HEADER):
        row = rows[at] if at < len(rows) else ""
        if row != expected:
            raise ParseError(SOURCE, at + 1, row, "not the header of slabinfo version 2.1")
    return tuple(_parse_cache(line, row) for line, row in enumerate(rows[len(HEADER) :], len(HEADER) + 1))


def _parse_cache(line: int, row: str) -> SlabCache:
    parts = row.rsplit(" : ", 2)
    if len(parts) != 3 or not _TUNABLES.fullmatch(parts[1]) or not _SLABDATA.fullmatch(parts[2]):
        raise ParseError(SOURCE, line, row, "not '<name> <five numbers> : tunables … : slabdata …'")
    # From the right: a cache's name may hold spaces.
    head = parts[0].rsplit(None, 5)
    if len(head) != 6 or head[0] != head[0].strip():
        raise ParseError(SOURCE, line, row, "a cache's name must be followed by five numbers")
    active, total, size, _, _ = (decimal(SOURCE, line, row, digits) for digits in head[1:])
    return SlabCache(head[0], active, total, size)
