# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/meminfo (fs/proc/meminfo.c, mm/hugetlb.c)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.units import KIB

SOURCE = "/proc/meminfo"

_LINE = re.compile(r"(\w+(?:\(\w+\))?): *([0-9]+)( kB)?", re.ASCII)


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the fields by name: bytes, but for HugePages_Total, _Free, _Rsvd and _Surp, which count pages.

    Raises ParseError for any other line, for a name that comes twice, for a missing or unexpected unit, and when
    MemTotal is missing.
    """
    fields: dict[str, int] = {}
    for line, row in numbered(SOURCE, text):
        match = _LINE.fullmatch(row)
        if match is None:
            raise ParseError(SOURCE, line, row, "not '<name>: <number> kB'")
        name = match[1]
        if name in fields:
            raise ParseError(SOURCE, line, row, f"{name!r} twice")
        counts_pages = name.startswith("HugePages_")
        if counts_pages == (match[3] is not None):
            raise ParseError(SOURCE, line, row, "a count with a unit" if counts_pages else "an amount without its unit")
        fields[name] = decimal(SOURCE, line, row, match[2]) * (1 if counts_pages else KIB)
    if "MemTotal" not in fields:
        raise ParseError(SOURCE, 1, text[:200], "no MemTotal")
    return fields
