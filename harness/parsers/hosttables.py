# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's readings of a guest's memory as text for a snapshot: one line per item.

::

    map 0xffff000000000000-0xffff000000200000 0x0000000040000000 PMD RW NX SHD AF BLK UXN MEM/NORMAL
    table 0x0000000041c2f000 PMD 0xffff000000000000-0xffff000040000000 512
    table 0x0000000041c31000 PTE 0xffff000000000000-0xffff000000200000 512 counted
    count 51 2 49 1 0
    count - the kernel's symbols have no init_task
    fault 0x0000000041c2f000 7 0x0000000000000001 0xffff000000e00000-0xffff000001000000 points outside of memory
    section 8 0xfffffdffc0000000 0xffff000001fff000 0xffffffffffffffff present,has-mem-map,online,early
    fault 9 1 0x0000000000000007 a pointer to mem_section_usage that is not aligned
    page 0x47fff 0x3fffe0000002000 1 0 DMA
    page 0x4ffff - it is not initialized
    pages - the kernel does not tell the layout of struct page
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import Any

from harness.errors import ParseError
from harness.parsers._lines import numbered
from harness.state import (
    HostMapping,
    HostTables,
    NotObserved,
    Section,
    SectionFault,
    StructPage,
    TableCount,
    TableFault,
    TablePage,
)
from harness.units import AddrRange

TABLES = "host_tables"
SECTIONS = "sections"
#: lines of page tables that are remembered: those of a guest with 64 GiB
_ROWS = 1 << 15

_HEX = r"0x([0-9a-f]{1,17})"
_RANGE = rf"{_HEX}-{_HEX}"
_LEVEL = r"(PGD|P4D|PUD|PMD|PTE)"
_MAP = re.compile(rf"map {_RANGE} {_HEX} {_LEVEL}((?: [!-~]+)*)")
_TABLE = re.compile(rf"table {_HEX} {_LEVEL} {_RANGE} ([0-9]{{1,5}})(?: (counted|uncounted))?")
_COUNT = re.compile(
    r"count (?:- ([ -~]+)|(-?[0-9]{1,19}) ([0-9]{1,12}) ([0-9]{1,12}) ([0-9]{1,6})(?: (-?[0-9]{1,12}))?)"
)
_MARKS = {None: "", True: " counted", False: " uncounted"}
_FAULT = re.compile(rf"fault {_HEX} ([0-9]{{1,7}}) {_HEX} {_RANGE} ([ -~]+)")
_PAGE = re.compile(rf"page {_HEX} (?:{_HEX} (-?[0-9]{{1,12}}) ([0-9]{{1,5}}) ([!-~]{{1,20}})|- ([ -~]+))")
_SECTION_FAULT = re.compile(rf"fault ([0-9]{{1,12}}) ([0-9]{{1,12}}) {_HEX} ([ -~]+)")
#: a section of 512 MiB has this many sub-sections
_BITMAP = r"0x([0-9a-f]{1,64})"
_SECTION = re.compile(rf"section ([0-9]{{1,12}}) {_HEX} {_HEX} (?:{_BITMAP}|-) ((?:[a-z0-9-]+)(?:,[a-z0-9-]+)*|-)")


def format_tables(tables: HostTables) -> str:
    """The text of ``tables``; ``parse_tables`` reads it back."""
    return format_entries(tables) + format_count(tables.count)


def format_entries(tables: HostTables) -> str:
    """The text of ``tables`` without their count."""
    # Two formats in one are quicker than a call for each range.
    lines = [
        f"map {run.range.start:#018x}-{run.range.end:#018x} {run.physical:#018x} {' '.join((run.level, *run.attrs))}"
        for run in tables.mappings
    ]
    lines += [
        f"table {page.address:#018x} {page.level} {page.range.start:#018x}-{page.range.end:#018x} {page.entries}"
        f"{_MARKS[page.counted]}"
        for page in tables.pages
    ]
    lines += [
        f"fault {fault.table:#018x} {fault.index} {fault.entry:#018x} {_range(fault.range)} {fault.reason}"
        for fault in tables.faults
    ]
    return "".join(f"{line}\n" for line in lines)


def format_count(count: TableCount | NotObserved) -> str:
    """The line with the count."""
    if isinstance(count, NotObserved):
        return f"count - {count.reason}\n"
    return " ".join(("count", *(str(number) for number in astuple(count) if number is not None))) + "\n"


def parse_tables(text: str) -> HostTables:
    """Read what ``format_tables`` wrote. Raises ParseError for any other line, or a range that runs backwards."""
    found: dict[type, list[Any]] = {HostMapping: [], TablePage: [], TableFault: []}
    count: TableCount | NotObserved = NotObserved("this snapshot predates the count of page tables")
    for line, row in numbered(TABLES, text):
        try:
            item = _read_row(row)
        except ValueError as error:
            raise ParseError(TABLES, line, row, str(error)) from None
        if isinstance(item, (TableCount, NotObserved)):
            count = item
        else:
            found[type(item)].append(item)
    return HostTables(tuple(found[HostMapping]), tuple(found[TablePage]), tuple(found[TableFault]), count)


# Most lines are those of the last snapshot.
@functools.lru_cache(_ROWS)
def _read_row(row: str) -> HostMapping | TablePage | TableFault | TableCount | NotObserved:
    if found := _MAP.fullmatch(row):
        start, end, physical, level, attrs = found.groups()
        return HostMapping(_read_range(start, end), int(physical, 16), level, _read_words(attrs))
    if found := _TABLE.fullmatch(row):
        address, level, start, end, entries, mark = found.groups()
        counted = None if mark is None else mark == "counted"
        return TablePage(int(address, 16), level, _read_range(start, end), int(entries), counted)
    if found := _FAULT.fullmatch(row):
        table, index, entry, start, end, reason = found.groups()
        return TableFault(int(table, 16), int(index), int(entry, 16), _read_range(start, end), reason)
    if found := _COUNT.fullmatch(row):
        reason, *numbers = found.groups()
        return NotObserved(reason) if reason else TableCount(*(int(number) for number in numbers if number is not None))
    raise ValueError("neither 'map', 'table', 'fault' nor 'count'")


@functools.lru_cache(1024)
def _read_words(attrs: str) -> tuple[str, ...]:
    return tuple(attrs.split())


def format_pages(pages: Mapping[int, StructPage | NotObserved] | NotObserved) -> str:
    """The text of struct pages by pfn; ``parse_struct_pages`` reads it back."""
    if isinstance(pages, NotObserved):
        return f"pages - {pages.reason}\n"
    lines = [
        f"page {pfn:#x} - {page.reason}"
        if isinstance(page, NotObserved)
        else f"page {pfn:#x} {page.flags:#x} {page.refcount} {page.node} {page.zone}"
        for pfn, page in pages.items()
    ]
    return "".join(f"{line}\n" for line in lines)


def parse_struct_pages(text: str) -> dict[int, StructPage | NotObserved] | NotObserved:
    """The struct pages in the text of sections. Raises ParseError for a malformed one."""
    found: dict[int, StructPage | NotObserved] = {}
    for line, row in numbered(SECTIONS, text):
        if row.startswith("pages - "):
            return NotObserved(row.removeprefix("pages - "))
        if not row.startswith("page"):
            continue
        match = _PAGE.fullmatch(row)
        if match is None:
            raise ParseError(SECTIONS, line, row, "not 'page PFN FLAGS REFCOUNT NODE ZONE'")
        pfn, flags, count, node, zone, reason = match.groups()
        number = int(pfn, 16)
        found[number] = (
            NotObserved(reason) if flags is None else StructPage(number, int(flags, 16), int(count), int(node), zone)
        )
    return found


def format_sections(sections: tuple[Section, ...], faults: tuple[SectionFault, ...] = ()) -> str:
    """The text of ``sections`` and ``faults``; ``parse_sections`` and ``parse_section_faults`` read it back."""
    lines = [*_section_lines(sections)]
    lines += [f"fault {fault.first} {fault.count} {fault.address:#018x} {fault.reason}" for fault in faults]
    return "".join(f"{line}\n" for line in lines)


def parse_section_faults(text: str) -> tuple[SectionFault, ...]:
    """The faults in the output of ``format_sections``. Raises ParseError for a malformed one."""
    found = []
    for line, row in numbered(SECTIONS, text):
        if row.startswith("fault"):
            match = _SECTION_FAULT.fullmatch(row)
            if match is None:
                raise ParseError(SECTIONS, line, row, "not 'fault FIRST COUNT ADDRESS REASON'")
            found.append(SectionFault(int(match[1]), int(match[2]), int(match[3], 16), match[4]))
    return tuple(found)


def parse_sections(text: str) -> tuple[Section, ...]:
    """The sections in the output of ``format_sections``. Raises ParseError for any other or repeated line."""
    found: dict[int, Section] = {}
    for line, row in numbered(SECTIONS, text):
        if row.startswith(("fault", "page")):
            continue
        match = _SECTION.fullmatch(row)
        if match is None:
            raise ParseError(SECTIONS, line, row, "not 'section NUMBER MEM_MAP USAGE SUBSECTIONS FLAGS'")
        number, mem_map, usage, bits, flags = match.groups()
        if int(number) in found:
            raise ParseError(SECTIONS, line, row, "the same section twice")
        found[int(number)] = Section(
            number=int(number),
            flags=() if flags == "-" else tuple(flags.split(",")),
            mem_map=int(mem_map, 16),
            usage=int(usage, 16),
            subsections=None if bits is None else int(bits, 16),
        )
    return tuple(found[number] for number in sorted(found))


def _section_lines(sections: tuple[Section, ...]) -> Iterator[str]:
    for section in sections:
        bits = "-" if section.subsections is None else f"{section.subsections:#018x}"
        flags = ",".join(section.flags) or "-"
        yield f"section {section.number} {section.mem_map:#018x} {section.usage:#018x} {bits} {flags}"


def _range(piece: AddrRange) -> str:
    return f"{piece.start:#018x}-{piece.end:#018x}"


def _read_range(start: str, end: str) -> AddrRange:
    if int(end, 16) < int(start, 16):
        raise ValueError("a range that runs backwards")
    return AddrRange(int(start, 16), int(end, 16))
