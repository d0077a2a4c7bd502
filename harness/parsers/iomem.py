# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/iomem: the tree of physical address ranges (kernel/resource.c, r_show)."""

from __future__ import annotations

import re
from collections import Counter

from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.parsers.notes import STRICT, Notes
from harness.state import IomemEntry
from harness.units import AddrRange

SOURCE = "/proc/iomem"
#: the same tree as the host reads it
HOST_IOMEM = "the resource tree in guest memory"

#: values of the kernel's MAX_IORES_LEVEL: deeper entries are printed at this depth. 5 in v6.1 and v6.12, 8 in v7.2 and
#: v7.3.
DEEPEST = (5, 8)
#: maximum depth of the parsed tree, whatever the kernel prints
MAX_DEPTH = 32

_LINE = re.compile(r"( *)([0-9a-f]{8,16})-([0-9a-f]{8,16}) : (.*)")


class _Node:
    """An entry that is still collecting its children."""

    __slots__ = ("children", "depth", "name", "range")

    def __init__(self, extent: AddrRange, name: str, depth: int) -> None:
        self.range = extent
        self.name = name
        self.depth = depth
        self.children: list[_Node] = []

    def freeze(self) -> IomemEntry:
        # At most MAX_DEPTH calls deep: see _nest.
        return IomemEntry(self.range, self.name, tuple(child.freeze() for child in self.children))


def parse_iomem(text: str, notes: Notes = STRICT, *, source: str = SOURCE) -> tuple[IomemEntry, ...]:
    """Return the top-level entries of ``text`` with nested children (the kernel indents by two spaces per level).

    Addresses are bytes; the kernel's inclusive ends become half-open. An end one below its start, as the kernel prints
    for a resource without addresses, becomes an empty range. Overlapping siblings and children outside their parents
    are kept unchanged (invariant IOM-3 checks them).

    Lines that r_show cannot print are garbled: malformed, without a name, with a range that runs backwards, with an
    indentation that skips a level. Nesting deeper than in any known kernel is unknown. Raises ParseError for an empty
    text, and when all addresses are zero, as for a reader without CAP_SYS_ADMIN.
    """
    nodes: list[_Node] = []
    all_zero = True
    line, row = 1, ""
    for line, row in numbered(source, text, notes):
        node = _parse_line(source, line, row, notes)
        if node is None:
            continue
        above = nodes[-1].depth if nodes else -1
        if node.depth > above + 1:
            notes.add_garbled(source, line, row, f"nested {node.depth} levels deep below a line at level {above}")
            node.depth = above + 1
        if node.depth > max(DEEPEST):
            notes.add_unknown(source, f"line nested deeper than {max(DEEPEST)} levels", row)
            node.depth = min(node.depth, MAX_DEPTH)
        nodes.append(node)
        all_zero = all_zero and node.range == AddrRange(0, 1)
    if not nodes:
        raise ParseError(source, 1, text[:200], "no line with a range, but every kernel lists at least its RAM")
    if all_zero:
        raise ParseError(source, line, row, "all addresses are zero: the reader was not root (CAP_SYS_ADMIN)")
    return tuple(node.freeze() for node in _nest(nodes))


def looks_torn(text: str) -> bool:
    """True if the tree may have changed while ``text`` was read: a line is repeated, or a level is skipped.

    The kernel drops its lock between two pages of text and then counts lines from the start (r_start). Read again: an
    anomaly that persists is real.
    """
    rows = text.split("\n")
    depths = [(len(row) - len(row.lstrip(" "))) // 2 for row in rows if row]
    skipped = any(depth > above + 1 for above, depth in zip([-1, *depths], depths, strict=False))
    return skipped or any(count > 1 for row, count in Counter(rows).items() if row)


def _nest(nodes: list[_Node]) -> list[_Node]:
    """Attach every node to its parent, and return those without one."""
    deepest = max(node.depth for node in nodes)
    roots: list[_Node] = []
    path: list[_Node] = []
    for node in nodes:
        if node.depth == deepest and deepest in DEEPEST:
            # The kernel may have run out of levels: then a child follows its parent at the same depth.
            while len(path) > node.depth and not (path[-1].range.covers(node.range) and len(path) < MAX_DEPTH):
                path.pop()
        else:
            del path[node.depth :]
        (path[-1].children if path else roots).append(node)
        path.append(node)
    return roots


def _parse_line(source: str, line: int, row: str, notes: Notes) -> _Node | None:
    match = _LINE.fullmatch(row)
    if match is None:
        notes.add_garbled(source, line, row, "not '<start>-<end> : <name>'")
        return None
    indent, start, last, name = len(match[1]), int(match[2], 16), int(match[3], 16), match[4]
    for digits in (match[2], match[3]):
        if len(digits) > 8 and digits[0] == "0":
            notes.add_garbled(source, line, row, f"address {digits} is padded beyond eight digits")
    if indent % 2:
        notes.add_garbled(source, line, row, f"indented by {indent} spaces, which is not a multiple of two")
    if last + 1 < start:
        notes.add_garbled(source, line, row, "range runs backwards")
        last = start - 1
    if not name.strip():
        notes.add_garbled(source, line, row, "a resource without a name")
    return _Node(AddrRange(start, last + 1), name, indent // 2)
