# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/iomem: the tree of physical address ranges (kernel/resource.c, r_show)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.state import IomemEntry
from harness.units import AddrRange

SOURCE = "/proc/iomem"

#: the kernel's MAX_IORES_LEVEL: whatever is nested deeper is printed at this depth
MAX_DEPTH = 5

_LINE = re.compile(r"( *)([0-9a-f]{8,16})-([0-9a-f]{8,16}) : (.*)")


class _Node:
    """An entry whose children are still being collected."""

    __slots__ = ("children", "name", "range")

    def __init__(self, extent: AddrRange, name: str) -> None:
        self.range = extent
        self.name = name
        self.children: list[_Node] = []

    def freeze(self) -> IomemEntry:
        # At most MAX_DEPTH calls deep: parse_iomem lets nothing deeper in.
        return IomemEntry(self.range, self.name, tuple(child.freeze() for child in self.children))


def parse_iomem(text: str) -> tuple[IomemEntry, ...]:
    """Return the top-level entries of ``text``, children nested by the two spaces a level that the kernel prints.

    Addresses are bytes; the kernel's inclusive ends become half-open. Overlapping siblings and children outside
    their parents are kept as they are (check IOM-3 looks at those). Raises ParseError for any other line, for an
    empty text, and when all addresses are zero, which is what a reader without CAP_SYS_ADMIN gets.
    """
    roots: list[_Node] = []
    path: list[_Node] = []
    all_zero = True
    line, row = 1, ""
    for line, row in numbered(SOURCE, text):
        indent, extent, name = _parse_line(line, row)
        if indent % 2:
            raise ParseError(SOURCE, line, row, f"indented by {indent} spaces, which is no multiple of two")
        depth = indent // 2
        if depth > MAX_DEPTH:
            raise ParseError(SOURCE, line, row, f"nested {depth} levels deep; the kernel prints at most {MAX_DEPTH}")
        if depth > len(path):
            raise ParseError(SOURCE, line, row, f"nested {depth} levels deep below a line at level {len(path) - 1}")
        del path[depth:]
        node = _Node(extent, name)
        (path[-1].children if path else roots).append(node)
        path.append(node)
        all_zero = all_zero and extent == AddrRange(0, 1)
    if not roots:
        raise ParseError(SOURCE, 1, "", "empty; every kernel has at least its RAM here")
    if all_zero:
        raise ParseError(SOURCE, line, row, "all addresses are zero: the reader was not root (CAP_SYS_ADMIN)")
    return tuple(node.freeze() for node in roots)


def render_iomem(entries: Iterable[IomemEntry]) -> str:
    """The text of /proc/iomem that ``parse_iomem`` turns into ``entries``, byte for byte.

    Raises ValueError for an empty range, which /proc/iomem cannot express.
    """
    out: list[str] = []
    stack = [(entry, 0) for entry in reversed(tuple(entries))]
    while stack:
        entry, depth = stack.pop()
        if not entry.range:
            raise ValueError(f"iomem cannot express the empty range of {entry.name!r}")
        out.append(f"{'  ' * depth}{entry.range.start:08x}-{entry.range.end - 1:08x} : {entry.name}\n")
        stack.extend((child, depth + 1) for child in reversed(entry.children))
    return "".join(out)


def _parse_line(line: int, row: str) -> tuple[int, AddrRange, str]:
    match = _LINE.fullmatch(row)
    if match is None:
        raise ParseError(SOURCE, line, row, "not '<start>-<end> : <name>'")
    for digits in (match[2], match[3]):
        if len(digits) > 8 and digits[0] == "0":
            raise ParseError(SOURCE, line, row, f"address {digits} is padded beyond eight digits")
    start, last = int(match[2], 16), int(match[3], 16)
    if last < start:
        raise ParseError(SOURCE, line, row, "range runs backwards")
    return len(match[1]), AddrRange(start, last + 1), match[4]
