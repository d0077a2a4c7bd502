# SPDX-License-Identifier: GPL-2.0-or-later
"""/sys/kernel/debug/kernel_page_tables: arch/{arm64,riscv}/mm/ptdump.c over mm/ptdump.c.

Both print ``---[ MARKER ]---`` lines and one line per run of equal entries. arm64 prints unmapped runs as well,
without attributes, so its lines touch; riscv leaves them out and adds the physical address of the run's start.
An end of zero stands for 2**64.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.arch.spec import ArchSpec
from harness.errors import InfraError, ParseError
from harness.parsers._lines import numbered
from harness.state import Mapping, PageTables
from harness.units import AddrRange

SOURCE = "/sys/kernel/debug/kernel_page_tables"

TOP = 1 << 64

_UNITS = "KMGTPE"
_MARKER = re.compile(r"---\[ (.+) \]---")
_RUN = r"0x([0-9a-f]{16})-0x([0-9a-f]{16})   %s( {0,8}[0-9]{1,20}[KMGTPE]) (PGD|P4D|PUD|PMD|PTE)(.*)"


@dataclass(frozen=True, slots=True)
class _Format:
    """How one architecture prints: ``run`` has groups start, end, size, level, attributes.

    ``attributes`` has one group for each column; ``blank`` are the contents of a column that say "not set".
    ``holes`` is True if unmapped runs are printed too (without attributes).
    """

    run: re.Pattern[str]
    attributes: re.Pattern[str]
    blank: frozenset[str]
    holes: bool


_FORMATS = {
    "arm64": _Format(
        run=re.compile(_RUN % ""),
        attributes=re.compile(
            r" ( |F) (USR|   ) (ro|RW) (NX|x ) (SHD|   ) (AF|  ) (NG|  ) (CON|   ) (BLK|   ) (UXN|   ) (GP|  )"
            r"(?: (DEVICE/nGnRnE|DEVICE/nGnRE|MEM/NORMAL-NC|MEM/NORMAL|MEM/NORMAL-TAGGED))?"
        ),
        blank=frozenset({""}),
        holes=True,
    ),
    "riscv64": _Format(
        run=re.compile(_RUN % " 0x[0-9a-f]{16} "),
        attributes=re.compile(
            r" (N|\.) (MT\((?:NC|IO|\?\?)\)|  \.\.  ) (RSW\([1-3]\)|  \.\.  )"
            r" (D|\.) (A|\.) (G|\.) (U|\.) (X|\.) (W|\.) (R|\.) (V|\.)"
        ),
        blank=frozenset({".", ".."}),
        holes=False,
    ),
}


def parse_ptdump(text: str, arch: ArchSpec) -> PageTables:
    """Return the mapped runs of ``text`` in address order, and the markers.

    A run whose entry is present but not valid (arm64 prints ``F`` in the first column, as after set_memory_valid)
    is a mapping with the attribute ``F``; a run of empty entries is checked and left out. Attribute words are those of
    the kernel: arm64 ``F USR ro RW NX x SHD AF NG CON BLK UXN GP`` and a memory type, riscv ``N MT(…) RSW(…) D A G
    U X W R V``.

    The kernel does not print the addresses of its markers. What is returned is the start of the first run printed
    below (2**64 if there is none): on arm64 the marker itself or the next entry that the walk came to after it, on
    riscv an upper bound, because unmapped runs are not printed.

    Raises ParseError for an unknown line or attribute, a marker that comes twice, a run before the first marker, a
    size that is not end - start, a run that is empty, unaligned, out of order or overlapping, and, where unmapped runs
    are printed, a gap or an end before the top of the address space (a dump that was cut off).
    Raises InfraError for an architecture whose format is not known.
    """
    form = _FORMATS.get(arch.name)
    if form is None:
        raise InfraError(f"no parser for the page-table dumps of {arch.name}")
    return _Dump(form, min(arch.paging)).parse(text)


class _Dump:
    """One dump being parsed."""

    def __init__(self, form: _Format, alignment: int) -> None:
        self.form = form
        self.alignment = alignment
        self.markers: dict[str, int] = {}
        self.fresh: list[str] = []
        self.region: str | None = None
        self.mappings: list[Mapping] = []
        self.words: dict[str, tuple[str, ...]] = {}
        self.sizes: dict[int, str] = {}
        self.end: int | None = None

    def parse(self, text: str) -> PageTables:
        match_run = self.form.run.fullmatch
        line, row = 1, ""
        for line, row in numbered(SOURCE, text):
            run = match_run(row)
            if run is None:
                self.take_marker(line, row)
                continue
            start, end, size, level, attributes = run.groups()
            extent = self.check_extent(line, row, int(start, 16), int(end, 16) or TOP, size)
            if attributes or not self.form.holes:
                words = self.words.get(attributes)
                if words is None:
                    words = self.read_attributes(line, row, attributes)
                self.mappings.append(Mapping(extent, level, words, self.region or ""))
        if self.end is None:
            raise ParseError(SOURCE, line, row, "a dump without a single run")
        if self.form.holes and self.end != TOP:
            raise ParseError(SOURCE, line, row, "the dump ends before the top of the address space: it was cut off")
        self.markers.update((name, TOP) for name in self.fresh)
        return PageTables(self.markers, tuple(self.mappings))

    def take_marker(self, line: int, row: str) -> None:
        marker = _MARKER.fullmatch(row)
        if marker is None:
            raise ParseError(SOURCE, line, row, "neither a marker nor a run of page-table entries")
        self.region = marker[1]
        if self.region in self.markers or self.region in self.fresh:
            raise ParseError(SOURCE, line, row, "the same marker twice")
        self.fresh.append(self.region)

    def check_extent(self, line: int, row: str, start: int, end: int, size: str) -> AddrRange:
        if self.region is None:
            raise ParseError(SOURCE, line, row, "a run before the first marker")
        if end <= start:
            raise ParseError(SOURCE, line, row, "an empty run, or one that runs backwards")
        if start % self.alignment or end % self.alignment:
            raise ParseError(SOURCE, line, row, f"not aligned to {self.alignment} bytes")
        if self.end is not None and start < self.end:
            raise ParseError(SOURCE, line, row, f"overlaps or precedes the run before, which ends at {self.end:#x}")
        if self.form.holes and self.end is not None and start != self.end:
            raise ParseError(SOURCE, line, row, f"a gap after the run before, which ends at {self.end:#x}")
        expected = self.sizes.get(end - start)
        if expected is None:
            expected = self.sizes[end - start] = _size_column(end - start)
        if size != expected:
            raise ParseError(SOURCE, line, row, f"the size is not end - start, {expected.strip()}")
        self.end = end
        if self.fresh:
            self.markers.update((name, start) for name in self.fresh)
            self.fresh.clear()
        return AddrRange(start, end)

    def read_attributes(self, line: int, row: str, attributes: str) -> tuple[str, ...]:
        columns = self.form.attributes.fullmatch(attributes)
        if columns is None:
            raise ParseError(SOURCE, line, row, "attributes that this architecture does not print")
        found = (column.strip() for column in columns.groups(""))
        words = self.words[attributes] = tuple(word for word in found if word and word not in self.form.blank)
        return words


def _size_column(size: int) -> str:
    delta = size >> 10
    unit = 0
    while not delta & 1023 and unit + 1 < len(_UNITS):
        delta >>= 10
        unit += 1
    return f"{delta:9d}{_UNITS[unit]}"
