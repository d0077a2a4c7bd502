# SPDX-License-Identifier: GPL-2.0-or-later
"""mem_section as a table, and its changes between two snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.report.text import aligned, clean
from harness.state import Section
from harness.units import AddrRange, merge_ranges

_HEADER = ("section", "physical", "flags", "sub-sections", "mem_map", "usage", "present if partial")


@dataclass(frozen=True, slots=True)
class SectionShape:
    """Bytes of a section and of a sub-section."""

    section: int
    subsection: int

    @property
    def count(self) -> int:
        """Sub-sections in a section."""
        return self.section // self.subsection

    def physical(self, section: Section) -> AddrRange:
        """The physical range of ``section``."""
        return AddrRange.sized(section.number * self.section, self.section)

    def present(self, section: Section) -> tuple[AddrRange, ...]:
        """The merged physical ranges of the present sub-sections; empty without a bitmap."""
        start = section.number * self.section
        bits = section.subsections or 0
        return merge_ranges(
            AddrRange.sized(start + bit * self.subsection, self.subsection)
            for bit in range(self.count)
            if bits >> bit & 1
        )

    def is_partial(self, section: Section) -> bool:
        """True if some sub-sections are present and others are not."""
        return section.subsections is not None and 0 < section.subsections < (1 << self.count) - 1


def within(sections: Iterable[Section], shape: SectionShape, ranges: Sequence[AddrRange]) -> tuple[Section, ...]:
    """The sections that overlap one of the physical ``ranges``; all sections without ranges."""
    return tuple(
        section
        for section in sections
        if not ranges or any(shape.physical(section).overlaps(place) for place in ranges)
    )


def render_sections(sections: Sequence[Section], shape: SectionShape) -> Iterator[str]:
    """A header and a line for each section: number, physical range, flags, bitmap, mem_map as stored, usage.

    The last column has the present physical ranges of a partial section.
    """
    yield from aligned([_header(sections, shape), *(_cells(section, shape) for section in sections)])


@dataclass(frozen=True, slots=True)
class SectionChange:
    """The change of one section: ``before`` is None if it was added, ``after`` if it was removed."""

    before: Section | None
    after: Section | None


def compare_sections(old: Iterable[Section], new: Iterable[Section]) -> list[SectionChange]:
    """The sections that differ, ordered by number."""
    before = {section.number: section for section in old}
    after = {section.number: section for section in new}
    return [
        SectionChange(before.get(number), after.get(number))
        for number in sorted(before.keys() | after.keys())
        if before.get(number) != after.get(number)
    ]


def render_section_changes(changes: Sequence[SectionChange], shape: SectionShape) -> Iterator[str]:
    """A header and unified diff lines (``-`` before, ``+`` after); a changed section ends with its differences."""
    if not changes:
        return
    both = [section for change in changes for section in (change.before, change.after) if section is not None]
    first, *others = _header(both, shape)
    rows: list[Sequence[str]] = [(f" {first}", *others)]
    for change in changes:
        for sign, section in (("-", change.before), ("+", change.after)):
            if section is not None:
                number, *rest = _cells(section, shape)
                rows.append((f"{sign}{number}", *rest))
        if change.before is not None and change.after is not None:
            rows[-1] = (*rows[-1][:-1], f"{rows[-1][-1]}  # {', '.join(section_differences(change))}".lstrip())
    yield from aligned(rows)


def section_differences(change: SectionChange) -> list[str]:
    """The differences of a section that was not added or removed: ``+online``, ``-early``, names of other fields."""
    before, after = change.before, change.after
    if before is None or after is None:
        return []
    found = [f"+{clean(flag)}" for flag in after.flags if flag not in before.flags]
    found += [f"-{clean(flag)}" for flag in before.flags if flag not in after.flags]
    if before.flags != after.flags and not found:
        found.append("flags")
    pairs = (
        ("sub-sections", before.subsections, after.subsections),
        ("mem_map", before.mem_map, after.mem_map),
        ("usage", before.usage, after.usage),
    )
    return found + [name for name, old, new in pairs if old != new]


def section_to_json(section: Section, shape: SectionShape) -> dict[str, object]:
    """A section as JSON; addresses and the bitmap are hexadecimal strings, ranges half-open pairs of them."""
    physical = shape.physical(section)
    return {
        "number": section.number,
        "start": hex(physical.start),
        "end": hex(physical.end),
        "flags": list(section.flags),
        "subsections": None if section.subsections is None else hex(section.subsections),
        "present": [[hex(place.start), hex(place.end)] for place in shape.present(section)],
        "mem_map": hex(section.mem_map),
        "usage": hex(section.usage),
    }


def section_change_to_json(change: SectionChange, shape: SectionShape) -> dict[str, object]:
    """A change as JSON."""
    kind = "added" if change.before is None else "removed" if change.after is None else "changed"
    return {
        "change": kind,
        "differences": section_differences(change),
        "before": None if change.before is None else section_to_json(change.before, shape),
        "after": None if change.after is None else section_to_json(change.after, shape),
    }


def _header(sections: Iterable[Section], shape: SectionShape) -> tuple[str, ...]:
    partial = any(shape.is_partial(section) for section in sections)
    return _HEADER if partial else (*_HEADER[:-1], "")


def _cells(section: Section, shape: SectionShape) -> tuple[str, ...]:
    bits = "-" if section.subsections is None else f"{section.subsections:#0{shape.count // 4 + 2}x}"
    present = shape.present(section) if shape.is_partial(section) else ()
    return (
        str(section.number),
        str(shape.physical(section)),
        clean(",".join(section.flags)) or "-",
        bits,
        f"{section.mem_map:#018x}",
        f"{section.usage:#018x}",
        ", ".join(str(place) for place in present),
    )
