# SPDX-License-Identifier: GPL-2.0-or-later
"""/sys/kernel/debug/kernel_page_tables: arch/{arm64,riscv}/mm/ptdump.c over mm/ptdump.c.

Both print ``---[ MARKER ]---`` lines and one line per run of equal entries. arm64 prints unmapped runs as well,
without attributes, so its lines are contiguous; riscv omits them and adds the physical address of the run's start.
An end of zero stands for 2**64.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.arch.architecture import ArchSpec
from harness.errors import InfraError, ParseError
from harness.parsers._lines import numbered
from harness.parsers.notes import STRICT, Notes
from harness.state import Mapping, PageTables
from harness.units import TOP, AddrRange

SOURCE = "/sys/kernel/debug/kernel_page_tables"


_UNITS = "KMGTPE"
_MARKER = re.compile(r"---\[ (.+) \]---")
_RUN = re.compile(
    r"0x([0-9a-f]{16})-0x([0-9a-f]{16}) +(?:0x[0-9a-f]{1,16} +){0,4}([0-9]{1,20}[KMGTPE])"
    r" (PGD|P4D|PUD|PMD|PTE)( .*)?"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class _Format:
    """How one architecture prints attributes: the known words, and the ``needed`` groups, each of which has one word.

    ``blank`` are the words for a column that is not set, ``columns`` the least number of known words, including those.
    ``holes`` is True if unmapped runs are printed too (without attributes).
    """

    words: frozenset[str]
    needed: tuple[frozenset[str], ...]
    blank: frozenset[str]
    columns: int
    holes: bool


# The words of v6.1 to v7.3. In v6.1, riscv lacks N, MT(…) and the number behind RSW; v6.12 has them.
_FORMATS = {
    "arm64": _Format(
        words=_words(
            "F USR ro RW NX x SHD AF NG CON BLK UXN GP"
            " DEVICE/nGnRnE DEVICE/nGnRE MEM/NORMAL-NC MEM/NORMAL MEM/NORMAL-TAGGED"
        ),
        needed=(_words("ro RW"), _words("NX x")),
        blank=frozenset(),
        columns=2,
        holes=True,
    ),
    "riscv64": _Format(
        words=_words("N MT(NC) MT(IO) MT(??) RSW RSW(1) RSW(2) RSW(3) D A G U X W R V"),
        needed=(),
        blank=_words(". .."),
        columns=8,
        holes=False,
    ),
}


def parse_ptdump(text: str, arch: ArchSpec, notes: Notes = STRICT) -> PageTables:
    """Return the mapped runs of ``text`` in address order, and the markers.

    A run whose entry is present but not valid (arm64 prints ``F`` in the first column, as after set_memory_valid)
    is a mapping with the attribute ``F``; a run of empty entries is checked and omitted. Attribute words are those of
    the kernel: arm64 ``F USR ro RW NX x SHD AF NG CON BLK UXN GP`` and a memory type, riscv ``N MT(…) RSW(…) D A G
    U X W R V``.

    The kernel does not print the addresses of its markers. The returned address is the start of the first run printed
    below the marker (2**64 if there is none): on arm64 the marker itself or the next entry of the walk, on riscv an
    upper bound, because unmapped runs are not printed.

    Another word among the attributes, another line, a repeated marker, and a gap where unmapped runs are printed are
    unknown. Runs that note_page cannot print are garbled and omitted: with a size that is not end - start, empty,
    unaligned, out of order or overlapping. Raises ParseError for a run that cannot be read, lacks needed attributes or
    precedes the first marker, for a dump without runs, and, where unmapped runs are printed, for an end before the top
    of the address space (a truncated dump). Raises InfraError for an architecture whose format is unknown.
    """
    form = _FORMATS.get(arch.name)
    if form is None:
        raise InfraError(f"no parser for the page-table dumps of {arch.name}")
    return _Dump(form, min(arch.paging), notes).parse(text)


class _Dump:
    """One dump being parsed."""

    def __init__(self, form: _Format, alignment: int, notes: Notes) -> None:
        self.form = form
        self.alignment = alignment
        self.notes = notes
        self.markers: dict[str, int] = {}
        self.fresh: list[str] = []
        self.region: str | None = None
        self.mappings: list[Mapping] = []
        self.words: dict[str, tuple[str, ...]] = {}
        self.sizes: dict[int, str] = {}
        self.end: int | None = None

    def parse(self, text: str) -> PageTables:
        match_run = _RUN.fullmatch
        line, row = 1, ""
        for line, row in numbered(SOURCE, text, self.notes):
            run = match_run(row)
            if run is None:
                self.take_marker(line, row)
                continue
            start, end, size, level, attributes = run.groups()
            extent = self.check_extent(line, row, int(start, 16), int(end, 16) or TOP, size)
            if extent is not None and (attributes or not self.form.holes):
                words = self.words.get(attributes or "")
                if words is None:
                    words = self.read_attributes(line, row, attributes or "")
                self.mappings.append(Mapping(extent, level, words, self.region or ""))
        if self.end is None:
            raise ParseError(SOURCE, line, row, "a dump without any run")
        if self.form.holes and self.end != TOP:
            raise ParseError(SOURCE, line, row, "the dump ends before the top of the address space: it is truncated")
        self.markers.update((name, TOP) for name in self.fresh)
        return PageTables(self.markers, tuple(self.mappings))

    def take_marker(self, line: int, row: str) -> None:
        marker = _MARKER.fullmatch(row)
        if marker is not None:
            self.region = marker[1]
            if self.region in self.markers or self.region in self.fresh:
                self.notes.add_unknown(SOURCE, "marker seen twice", row)
            else:
                self.fresh.append(self.region)
        elif row.startswith("0x"):
            raise ParseError(SOURCE, line, row, "not a run of page-table entries in the format of any known kernel")
        else:
            self.notes.add_unknown(SOURCE, "line", row)

    def check_extent(self, line: int, row: str, start: int, end: int, size: str) -> AddrRange | None:
        if self.region is None:
            raise ParseError(SOURCE, line, row, "a run before the first marker")
        why = ""
        if end <= start:
            why = "an empty run, or one that runs backwards"
        elif start % self.alignment or end % self.alignment:
            why = f"not aligned to {self.alignment} bytes"
        elif self.end is not None and start < self.end:
            why = f"overlaps or precedes the previous run, which ends at {self.end:#x}"
        elif size != self.size_column(end - start):
            why = f"the size is not end - start, {self.size_column(end - start)}"
        if why:
            self.notes.add_garbled(SOURCE, line, row, why)
            return None
        if self.form.holes and self.end is not None and start != self.end:
            self.notes.add_unknown(SOURCE, "gap in front of a run", row)
        self.end = end
        if self.fresh:
            self.markers.update((name, start) for name in self.fresh)
            self.fresh.clear()
        return AddrRange(start, end)

    def size_column(self, size: int) -> str:
        column = self.sizes.get(size)
        if column is None:
            column = self.sizes[size] = _size_column(size)
        return column

    def read_attributes(self, line: int, row: str, attributes: str) -> tuple[str, ...]:
        form, found = self.form, attributes.split()
        for word in found:
            if word not in form.words and word not in form.blank:
                self.notes.add_unknown(SOURCE, "attribute", f"{word} in {row}")
        known = tuple(word for word in found if word in form.words)
        columns = sum(word in form.words or word in form.blank for word in found)
        if columns < form.columns or not all(group & set(known) for group in form.needed):
            raise ParseError(SOURCE, line, row, "needed attributes are missing for this architecture")
        self.words[attributes] = known
        return known


def _size_column(size: int) -> str:
    delta = size >> 10
    unit = 0
    while not delta & 1023 and unit + 1 < len(_UNITS):
        delta >>= 10
        unit += 1
    return f"{delta}{_UNITS[unit]}"
