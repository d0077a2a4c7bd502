# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/zoneinfo (mm/vmstat.c, zoneinfo_show_print)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.state import Zone

SOURCE = "/proc/zoneinfo"

_HEAD = re.compile(r"Node (0|[1-9][0-9]{0,5}), zone +(\w+)", re.ASCII)
_NUMBER = re.compile(r"( +)(\w+) +([0-9]+)", re.ASCII)
_PROTECTION = re.compile(r" {8}protection: \(-?[0-9]{1,20}(?:, -?[0-9]{1,20})*\)")
_CPU = re.compile(r" {4}cpu: ([0-9]{1,6})")
_PCP = re.compile(r" {14}(\w+): +(-?[0-9]{1,20})", re.ASCII)
_THRESHOLD = re.compile(r" {2}vm stats threshold: -?[0-9]{1,20}")
# The last two stand in v7.2 and v7.3, not yet in v6.12.
_TAIL = re.compile(r" {2}(node_unreclaimable|start_pfn|reserved_highatomic|free_highatomic): +([0-9]+)")

_PAGES_INDENT = 8
_STAT_INDENT = 6


@dataclass
class _Draft:
    """One zone while its lines come in; ``seen`` holds (section, name)."""

    line: int
    row: str
    node: int
    name: str
    section: str = "head"
    seen: dict[tuple[str, str], int] = field(default_factory=dict)

    def put(self, line: int, row: str, name: str, value: int) -> None:
        if (self.section, name) in self.seen:
            raise ParseError(SOURCE, line, row, f"{name!r} twice in one zone")
        self.seen[self.section, name] = value


def parse_zoneinfo(text: str) -> tuple[Zone, ...]:
    """Return every zone of every node, in the order printed; counts are pages.

    ``start_pfn`` is None for a zone without present pages: the kernel prints none there. Raises ParseError for an
    unknown line, a name or a zone that comes twice, a zone that lacks spanned, present, managed or (when it has pages)
    start_pfn, and an empty text.
    """
    zones: list[Zone] = []
    heads: set[str] = set()
    draft: _Draft | None = None
    for line, row in numbered(SOURCE, text):
        head = _HEAD.fullmatch(row)
        if head is not None:
            if draft is not None:
                zones.append(_freeze(draft))
            if row in heads:
                raise ParseError(SOURCE, line, row, "this zone comes twice")
            heads.add(row)
            draft = _Draft(line, row, int(head[1]), head[2])
        elif draft is None:
            raise ParseError(SOURCE, line, row, "before the first 'Node N, zone NAME'")
        elif not _accept(draft, line, row):
            raise ParseError(SOURCE, line, row, f"no such line in a zone after its {draft.section}")
    if draft is None:
        raise ParseError(SOURCE, 1, "", "no zone at all")
    zones.append(_freeze(draft))
    return tuple(zones)


def _accept(draft: _Draft, line: int, row: str) -> bool:
    """Note one line below a zone's head; False if it has no business there."""
    if row == "  per-node stats" and draft.section == "head":
        draft.section = "per-node stats"
        return True
    if row == "  pagesets" and draft.section == "zone stats":
        draft.section = "pagesets"
        return True
    if row.startswith("  pages free ") and draft.section in ("head", "per-node stats"):
        draft.section = "pages"
        draft.put(line, row, "free", decimal(SOURCE, line, row, row[len("  pages free ") :].lstrip(" ")))
        return True
    if draft.section == "pages" and _PROTECTION.fullmatch(row):
        draft.section = "zone stats"
        return True
    if draft.section.startswith(("pagesets", "end")):
        return _accept_late(draft, line, row)
    number = _NUMBER.fullmatch(row)
    if number is None:
        return False
    if len(number[1]) != (_PAGES_INDENT if draft.section == "pages" else _STAT_INDENT) or draft.section == "head":
        return False
    draft.put(line, row, number[2], decimal(SOURCE, line, row, number[3]))
    return True


def _accept_late(draft: _Draft, line: int, row: str) -> bool:
    """The lines from 'pagesets' on."""
    tail = _TAIL.fullmatch(row)
    if tail is not None:
        draft.section = "end"
        draft.put(line, row, tail[1], decimal(SOURCE, line, row, tail[2]))
        return True
    if draft.section == "end":
        return False
    cpu = _CPU.fullmatch(row)
    if cpu is not None:
        draft.section = f"pagesets of cpu {cpu[1]}"
        draft.put(line, row, "cpu", int(cpu[1]))
        return True
    if draft.section == "pagesets":
        return False
    pcp = _PCP.fullmatch(row)
    if pcp is not None:
        draft.put(line, row, pcp[1], int(pcp[2]))
        return True
    return _THRESHOLD.fullmatch(row) is not None


def _freeze(draft: _Draft) -> Zone:
    counts: dict[str, int] = {}
    for name in ("spanned", "present", "managed"):
        value = draft.seen.get(("pages", name))
        if value is None:
            raise ParseError(SOURCE, draft.line, draft.row, f"this zone has no {name!r}")
        counts[name] = value
    start_pfn = draft.seen.get(("end", "start_pfn"))
    if counts["present"] and start_pfn is None:
        raise ParseError(SOURCE, draft.line, draft.row, "this zone has present pages but no 'start_pfn'")
    return Zone(draft.node, draft.name, counts["spanned"], counts["present"], counts["managed"], start_pfn)
