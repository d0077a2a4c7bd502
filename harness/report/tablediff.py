# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of a kernel's page tables between two dumps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from harness.report.ptdump_text import Dump, Run, by_column, clip, dump_format, format_run, run_to_json
from harness.report.text import clean
from harness.units import AddrRange


@dataclass(frozen=True, slots=True)
class TableChange:
    """The change of one address range: ``before`` is None if it was added, ``after`` if it was removed."""

    before: Run | None
    after: Run | None

    @property
    def range(self) -> AddrRange:
        """The addresses."""
        run = self.after or self.before
        assert run is not None
        return run.range

    @property
    def region(self) -> str:
        """The marker above it, in the later dump if it is mapped there."""
        run = self.after or self.before
        assert run is not None
        return run.region


def compare(old: Dump, new: Dump) -> list[TableChange]:
    """The differences between the mappings of two dumps, in address order, merged like the kernel's runs.

    Physical addresses are compared if both dumps are ``exact``, even if the architecture's dump does not print them.
    """
    physical = old.exact and new.exact
    bounds = sorted({at for run in (*old.pieces, *new.pieces) for at in (run.range.start, run.range.end)})
    changes: list[TableChange] = []
    before, after = _Cursor(old), _Cursor(new)
    for start, end in itertools.pairwise(bounds):
        part = AddrRange(start, end)
        change = TableChange(before.at(part), after.at(part))
        if _same(change.before, change.after, physical=physical):
            continue
        joined = _join(changes[-1], change) if changes else None
        if joined is None:
            changes.append(change)
        else:
            changes[-1] = joined
    return changes


class _Cursor:
    """Finds the run that covers a range; ranges must be asked for in ascending order."""

    def __init__(self, dump: Dump) -> None:
        self.pieces = dump.pieces
        self.exact = dump.exact
        self.number = 0

    def at(self, part: AddrRange) -> Run | None:
        """The run that covers ``part``, cut to it; None if nothing does."""
        while self.number < len(self.pieces) and self.pieces[self.number].range.end <= part.start:
            self.number += 1
        if self.number == len(self.pieces) or not self.pieces[self.number].range.covers(part):
            return None
        return clip(self.pieces[self.number], part, exact=self.exact)


def _same(before: Run | None, after: Run | None, *, physical: bool) -> bool:
    if before is None or after is None:
        return before is after
    return (before.level, before.attrs) == (after.level, after.attrs) and (
        not physical or before.physical == after.physical
    )


def _join(first: TableChange, second: TableChange) -> TableChange | None:
    """Both as one change, None if they are not adjacent or differ."""
    if first.range.end != second.range.start:
        return None
    for one, other in ((first.before, second.before), (first.after, second.after)):
        if _key(one) != _key(other):
            return None
    return TableChange(_extend(first.before, second.range.end), _extend(first.after, second.range.end))


def _key(run: Run | None) -> tuple[object, ...]:
    return () if run is None else (run.level, run.attrs, run.region)


def _extend(run: Run | None, end: int) -> Run | None:
    return None if run is None else replace(run, range=AddrRange(run.range.start, end))


def render_changes(changes: Iterable[TableChange], arch: str) -> Iterator[str]:
    """Unified diff lines (``@@ marker @@``, ``-`` before, ``+`` after); a changed run ends with its differences."""
    form, shown = dump_format(arch), dict[tuple[str, ...], str]()
    region: str | None = None
    for change in changes:
        if change.region != region:
            region = change.region
            yield f"@@ {clean(region)} @@\n"
        if change.before is not None:
            yield f"-{format_run(change.before, form, shown)}\n"
        if change.after is not None:
            mark = "" if change.before is None else f"  # {', '.join(differences(change, arch))}"
            yield f"+{format_run(change.after, form, shown)}{mark}\n"


def differences(change: TableChange, arch: str) -> list[str]:
    """The differences of a run that is mapped in both: ``PMD -> PTE``, ``ro -> RW``, ``+CON``, ``0x… -> 0x…``.

    The last is the physical address of its start.
    """
    before, after = change.before, change.after
    if before is None or after is None:
        return []
    form = dump_format(arch)
    found = [] if before.level == after.level else [f"{before.level} -> {after.level}"]
    for old, new in zip(by_column(before.attrs, form), by_column(after.attrs, form), strict=True):
        if old == new:
            continue
        found.append(f"+{new}" if old is None else f"-{old}" if new is None else f"{old} -> {new}")
    if before.physical != after.physical and None not in (before.physical, after.physical):
        found.append(f"{before.physical:#x} -> {after.physical:#x}")
    return found


def change_to_json(change: TableChange, arch: str) -> dict[str, object]:
    """A change as JSON."""
    kind = "added" if change.before is None else "removed" if change.after is None else "changed"
    return {
        "change": kind,
        "start": hex(change.range.start),
        "end": hex(change.range.end),
        "differences": differences(change, arch),
        "before": None if change.before is None else run_to_json(change.before),
        "after": None if change.after is None else run_to_json(change.after),
    }
