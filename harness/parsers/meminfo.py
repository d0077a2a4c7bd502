# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/meminfo (fs/proc/meminfo.c, mm/hugetlb.c)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.parsers.notes import STRICT, Notes
from harness.units import KIB

SOURCE = "/proc/meminfo"

_LINE = re.compile(r"([^\s:]+): *([0-9]+)( kB)?", re.ASCII)


def parse_meminfo(text: str, notes: Notes = STRICT) -> dict[str, int]:
    """Return the fields by name: bytes, except HugePages_Total, _Free, _Rsvd and _Surp, which count pages.

    A field may have any name. A malformed field, one with another unit, and a repeated one (which would count?) are
    unknown and omitted. Raises ParseError without a MemTotal.
    """
    fields: dict[str, int] = {}
    twice: set[str] = set()
    for line, row in numbered(SOURCE, text, notes):
        match = _LINE.fullmatch(row)
        counts_pages = row.startswith("HugePages_")
        if match is not None and counts_pages == (match[3] is None):
            if match[1] in fields:
                notes.add_unknown(SOURCE, "name with two values", row)
                twice.add(match[1])
            fields[match[1]] = decimal(SOURCE, line, row, match[2]) * (1 if counts_pages else KIB)
        elif row.startswith("MemTotal"):
            raise ParseError(SOURCE, line, row, "not 'MemTotal: <number> kB'")
        else:
            notes.add_unknown(SOURCE, "line", row)
    if "MemTotal" not in fields.keys() - twice:
        raise ParseError(SOURCE, 1, text[:200], "MemTotal twice" if "MemTotal" in twice else "no MemTotal")
    return {name: value for name, value in fields.items() if name not in twice}
