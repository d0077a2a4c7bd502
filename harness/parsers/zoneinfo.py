# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/zoneinfo (mm/vmstat.c, zoneinfo_show_print)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.parsers.notes import STRICT, Notes
from harness.state import Zone

SOURCE = "/proc/zoneinfo"

_HEAD = re.compile(r"Node (0|[1-9][0-9]{0,5}), zone +(\w+)", re.ASCII)
_NEEDED = re.compile(r" {8}(spanned|present|managed) +([0-9]+)| {2}(start_pfn): +([0-9]+)")
_NEEDS = re.compile(r" *(spanned|present|managed|start_pfn)\b")

# The other lines of zoneinfo_show_print in a zone. Statistics have names from vmstat_text: any name is accepted.
_KNOWN = (
    re.compile(r" {2}per-node stats| {2}pagesets| {4}cpu: [0-9]{1,6}| {2}vm stats threshold: -?[0-9]{1,20}"),
    re.compile(r" {2}pages free +[0-9]{1,20}| {8}(?:boost|min|low|high|promo|cma) +[0-9]{1,20}"),
    re.compile(r" {8}protection: \(-?[0-9]{1,20}(?:, -?[0-9]{1,20})*\)"),
    re.compile(r" {6}\w+ +[0-9]{1,20}", re.ASCII),
    # the last two are in v7.2, but not yet in v6.12
    re.compile(r" {14}(?:count|high|batch|high_min|high_max): +-?[0-9]{1,20}"),
    # the last two are in v7.2, but not yet in v6.12
    re.compile(r" {2}(?:node_unreclaimable|reserved_highatomic|free_highatomic): +[0-9]{1,20}"),
)


@dataclass
class _Draft:
    """One zone while its lines are being read."""

    line: int
    row: str
    node: int
    name: str
    seen: dict[str, int] = field(default_factory=dict)


def parse_zoneinfo(text: str, notes: Notes = STRICT) -> tuple[Zone, ...]:
    """Return every zone of every node, in the order printed; counts are pages.

    ``start_pfn`` is None for a zone without present pages: the kernel prints none there. Lines that no known kernel
    prints are unknown. A repeated zone or needed count, which zoneinfo_show_print cannot print, is garbled, and the
    second one is omitted. Raises ParseError for a needed count or a header that cannot be read, a zone that lacks
    spanned, present, managed or (when it has pages) start_pfn, and a text without zones.
    """
    drafts: dict[str, _Draft] = {}
    draft: _Draft | None = None
    for line, row in numbered(SOURCE, text, notes):
        head = _HEAD.fullmatch(row)
        if head is not None:
            draft = _Draft(line, row, int(head[1]), head[2])
            if row in drafts:
                notes.add_garbled(SOURCE, line, row, "this zone is repeated")
            drafts.setdefault(row, draft)
        elif row.startswith("Node "):
            raise ParseError(SOURCE, line, row, "not 'Node N, zone NAME'")
        elif draft is None or not _accept(draft, line, row, notes):
            notes.add_unknown(SOURCE, "line", row)
    if not drafts:
        raise ParseError(SOURCE, 1, text[:200], "no zone")
    return tuple(_freeze(draft) for draft in drafts.values())


def _accept(draft: _Draft, line: int, row: str, notes: Notes) -> bool:
    """Read one line below a zone's header; False if it is unknown."""
    needed = _NEEDED.fullmatch(row)
    if needed is None:
        if _NEEDS.match(row):
            raise ParseError(SOURCE, line, row, "this needed count is not in the kernel's format")
        return any(known.fullmatch(row) for known in _KNOWN)
    name, value = needed[1] or needed[3], needed[2] or needed[4]
    if name in draft.seen:
        notes.add_garbled(SOURCE, line, row, f"{name!r} twice in one zone")
    draft.seen.setdefault(name, decimal(SOURCE, line, row, value))
    return True


def _freeze(draft: _Draft) -> Zone:
    for name in ("spanned", "present", "managed"):
        if name not in draft.seen:
            raise ParseError(SOURCE, draft.line, draft.row, f"this zone has no {name!r}")
    seen = draft.seen
    if seen["present"] and "start_pfn" not in seen:
        raise ParseError(SOURCE, draft.line, draft.row, "this zone has present pages but no 'start_pfn'")
    return Zone(draft.node, draft.name, seen["spanned"], seen["present"], seen["managed"], seen.get("start_pfn"))
