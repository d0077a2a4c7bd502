# SPDX-License-Identifier: GPL-2.0-or-later
"""Small trees of page tables, and note_page entry by entry: the reference for printing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st

from harness.arch import ARM64, ArchSpec
from harness.arch.markers import MarkerSet
from harness.report.notepage import dump_tables
from harness.report.ptdump_text import Dump
from harness.state import HostMapping, HostTables, TablePage
from harness.units import AddrRange

TOP = 1 << 64
PAGE = 4096
PMD = 512 * PAGE
PGD = 512 * PMD

# A tree of tables: at an index is a leaf (attributes, physical address) or another table.
Leaf = tuple[tuple[str, ...], int]
Table = dict[int, "Leaf | Table"]

WORDS = {
    "arm64": (("RW", "NX", "AF", "UXN", "MEM/NORMAL"), ("ro", "x", "AF", "CON"), ("F", "USR", "RW", "NX", "GP")),
    "riscv64": (("D", "A", "G", "W", "R", "V"), ("N", "MT(IO)", "R", "V"), ("RSW(2)", "X")),
}
START = {"arm64": TOP - 512 * PGD, "riscv64": TOP - 256 * PGD}
LEVELS = (("PGD", PGD), ("PMD", PMD), ("PTE", PAGE))
INDEXES = st.sampled_from([0, 1, 2, 3, 255, 256, 257, 510, 511])


def tables_of(depth: int, words: Sequence[tuple[str, ...]]) -> st.SearchStrategy[Table]:
    leaf = st.tuples(st.sampled_from(words), st.integers(0, 1 << 20).map(lambda number: number * PAGE))
    entry: st.SearchStrategy[Leaf | Table] = leaf
    if depth < len(LEVELS) - 1:
        entry = st.one_of(leaf, tables_of(depth + 1, words))
    return st.dictionaries(INDEXES, entry, min_size=0 if depth else 1, max_size=4).map(
        lambda table: spread(table, depth)
    )


def spread(table: Table, depth: int) -> Table:
    """``table`` with every second leaf followed by up to three more that continue its range."""
    out = dict(table)
    for index, entry in table.items():
        if isinstance(entry, tuple) and index % 2:
            for more in range(1, 4):
                if index + more < 512:
                    out.setdefault(index + more, (entry[0], entry[1] + more * LEVELS[depth][1]))
    return out


def walk(table: Table, depth: int, start: int) -> Iterator[tuple[int, int, tuple[str, ...], int]]:
    """(address, level, attributes, physical) of every entry that is no table."""
    for index in range(512):
        at = start + index * LEVELS[depth][1]
        entry = table.get(index)
        if isinstance(entry, dict):
            yield from walk(entry, depth + 1, at)
        else:
            yield (at, depth, *(entry or ((), 0)))


def as_the_kernel(entries: Iterator[tuple[int, int, tuple[str, ...], int]], arch: str, places: MarkerSet) -> list[str]:
    """note_page as in the kernel, one entry at a time; runs as (start, end, physical, level, attributes)."""
    out: list[str] = []
    starts = [address for address, _ in places.markers] + [TOP]
    marker, pending = 0, None

    def put_marker() -> None:
        out.append(places.markers[marker][1])

    for at, depth, attrs, physical in entries:
        if at < places.start:
            continue
        if pending is None:
            pending = (at, physical, depth, attrs)
            put_marker()
        elif pending[2:] != (depth, attrs) or at >= starts[marker + 1]:
            if arch == "arm64" or pending[3]:
                out.append(repr((pending[0], at, pending[1], *pending[2:])))
            if arch == "arm64" and at >= starts[marker + 1]:
                marker += 1
                put_marker()
            while arch == "riscv64" and at >= starts[marker + 1]:
                marker += 1
                put_marker()
            pending = (at, physical, depth, attrs)
        if arch == "arm64" and at >= starts[marker + 1]:
            marker += 1
            put_marker()
    assert pending is not None
    if arch == "arm64" or pending[3]:
        out.append(repr((pending[0], TOP, pending[1], *pending[2:])))
    return out


def host_tables(root: Table, arch: str) -> HostTables:
    """The result of the host's walk: adjacent leaves are merged if their physical addresses are adjacent, too."""
    mappings: list[HostMapping] = []
    pages = [TablePage(0, "PGD", AddrRange(0, 512 * PGD) if arch == "riscv64" else AddrRange(START[arch], TOP), 1)]

    def visit(table: Table, depth: int, start: int) -> None:
        level, span = LEVELS[depth]
        for index, entry in sorted(table.items()):
            at = start + index * span
            if isinstance(entry, dict):
                pages.append(TablePage(len(pages) * PAGE, LEVELS[depth + 1][0], AddrRange.sized(at, span), len(entry)))
                visit(entry, depth + 1, at)
                continue
            found = HostMapping(AddrRange.sized(at, span), entry[1], level, entry[0])
            last = mappings[-1] if mappings else None
            same = last is not None and (last.range.end, last.level, last.attrs) == (at, level, found.attrs)
            if last is not None and same and last.physical + last.range.size == found.physical:
                mappings.pop()
                found = dataclasses.replace(last, range=AddrRange(last.range.start, at + span))
            mappings.append(found)

    visit(root, 0, START[arch])
    return HostTables(tuple(mappings), tuple(pages), ())


@st.composite
def trees(draw: st.DrawFn, arch: str) -> Table:
    root = draw(tables_of(0, WORDS[arch]))
    # riscv's root has only the kernel's half; as in every kernel, there are tables of each level
    root = {index: entry for index, entry in root.items() if arch == "arm64" or index < 256}
    return root | {draw(st.sampled_from([4, 100])): {7: {9: (WORDS[arch][0], 0x1000)}}}


@st.composite
def marker_sets(draw: st.DrawFn, arch: str) -> MarkerSet:
    start = START[arch]
    near = st.builds(
        lambda root, middle, low: start + root * PGD + middle * PMD + low * PAGE,
        st.sampled_from([0, 1, 2, 3, 254, 255]),
        st.sampled_from([0, 1, 2, 511]),
        st.sampled_from([0, 1, 3, 511]),
    )
    found = [start, *sorted(draw(st.lists(near, max_size=8)))]
    return MarkerSet(start, tuple((at, f"marker {number}") for number, at in enumerate(found)), ())


def small(arch: ArchSpec = ARM64, root: Table | None = None, *markers: tuple[int, str]) -> Dump:
    """The tables of one PGD entry: by default 4 MiB of blocks and 8 KiB of pages, under two markers."""
    start = START[arch.name]
    words = WORDS[arch.name]
    table: Table = {0: {0: (words[0], 0), 1: (words[0], PMD), 2: {0: (words[0], 0x5000), 1: (words[0], 0x9000)}}}
    places = MarkerSet(start, markers or ((start, "Linear start"), (start + PGD, "Linear end")), ())
    return dump_tables(host_tables(root or table, arch.name), arch, PAGE, places)
