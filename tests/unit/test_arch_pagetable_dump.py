# SPDX-License-Identifier: GPL-2.0-or-later
"""The dump that the kernel would print, from tables as a walk describes them."""

from __future__ import annotations

import pytest
from kmem_walk_oracle import FORMATS, TOP

from harness.arch.pagetable_dump import dump_lines
from harness.state import HostMapping, HostTables, TablePage
from harness.units import GIB, KIB, MIB, TIB, AddrRange

LINEAR = TOP - (1 << 48)
PAGE = ("RW", "NX", "SHD", "AF", "UXN", "MEM/NORMAL")
BLOCK = ("RW", "NX", "SHD", "AF", "BLK", "UXN", "MEM/NORMAL")


def arm64(*markers: tuple[int, str]) -> list[str]:
    """One PUD table with one PMD table with one PTE table, and a few mappings."""
    pages = (
        TablePage(0x1000, "PGD", AddrRange(LINEAR, TOP), 1),
        TablePage(0x2000, "PUD", AddrRange.sized(LINEAR, 512 * GIB), 2),
        TablePage(0x3000, "PMD", AddrRange.sized(LINEAR, GIB), 3),
        TablePage(0x4000, "PTE", AddrRange.sized(LINEAR + 4 * MIB, 2 * MIB), 2),
    )
    mappings = (
        HostMapping(AddrRange.sized(LINEAR, 4 * MIB), 0x4000_0000, "PMD", BLOCK),
        HostMapping(AddrRange.sized(LINEAR + 4 * MIB, 4 * KIB), 0x5000_0000, "PTE", PAGE),
        HostMapping(AddrRange.sized(LINEAR + 4 * MIB + 4 * KIB, 4 * KIB), 0x6000_0000, "PTE", PAGE),
        HostMapping(AddrRange.sized(LINEAR + 6 * MIB - 4 * KIB, 4 * KIB), 0x7000_0000, "PTE", ("F", *PAGE)),
        HostMapping(AddrRange.sized(LINEAR + GIB, GIB), 0x8000_0000, "PUD", BLOCK),
    )
    return list(dump_lines(HostTables(mappings, pages, ()), FORMATS["arm64-4k-48"], list(markers)))


def test_arm64_prints_holes_by_the_table_they_are_in() -> None:
    assert arm64((LINEAR, "Linear Mapping start")) == [
        "---[ Linear Mapping start ]---",
        "0xffff000000000000-0xffff000000400000           4M PMD       RW NX SHD AF        BLK UXN    MEM/NORMAL",
        "0xffff000000400000-0xffff000000402000           8K PTE       RW NX SHD AF            UXN    MEM/NORMAL",
        "0xffff000000402000-0xffff0000005ff000        2036K PTE",
        "0xffff0000005ff000-0xffff000000600000           4K PTE F     RW NX SHD AF            UXN    MEM/NORMAL",
        "0xffff000000600000-0xffff000040000000        1018M PMD",
        "0xffff000040000000-0xffff000080000000           1G PUD       RW NX SHD AF        BLK UXN    MEM/NORMAL",
        "0xffff000080000000-0xffff008000000000         510G PUD",
        "0xffff008000000000-0x0000000000000000      261632G PGD",
    ]


def test_arm64_passes_two_markers_at_a_step() -> None:
    at = LINEAR + TIB
    lines = arm64((LINEAR, "start"), *((at + number, f"marker {number}") for number in range(5)))
    assert lines[7:] == [
        "0xffff000080000000-0xffff008000000000         510G PUD",
        "0xffff008000000000-0xffff010000000000         512G PGD",
        "---[ marker 0 ]---",
        "0xffff010000000000-0xffff018000000000         512G PGD",
        "---[ marker 1 ]---",
        "---[ marker 2 ]---",
        "0xffff018000000000-0xffff020000000000         512G PGD",
        "---[ marker 3 ]---",
        "---[ marker 4 ]---",
        "0xffff020000000000-0x0000000000000000         254T PGD",
    ]


@pytest.mark.parametrize("markers", [[], [(TOP - (1 << 38), "Page tables")]])
def test_riscv64_prints_physical_addresses_and_no_holes(markers: list[tuple[int, str]]) -> None:
    tables = FORMATS["riscv64-sv39"]
    start = TOP - (1 << 38)
    pages = (
        TablePage(0x1000, "PGD", AddrRange(0, TOP), 3),
        TablePage(0x2000, "PMD", AddrRange.sized(0, GIB), 1),
        TablePage(0x3000, "PMD", AddrRange.sized(start, GIB), 2),
    )
    words = ("D", "A", "G", "W", "R", "V")
    mappings = (
        HostMapping(AddrRange.sized(0, 2 * MIB), 0x8000_0000, "PMD", words),
        HostMapping(AddrRange.sized(start + 2 * MIB, 2 * MIB), 0x8020_0000, "PMD", words),
        HostMapping(AddrRange.sized(start + 4 * MIB, 2 * MIB), 0x9000_0000, "PMD", words),
        HostMapping(AddrRange.sized(start + GIB, GIB), 0xC000_0000, "PGD", ("N", "MT(IO)", "RSW(1)", *words)),
    )
    assert list(dump_lines(HostTables(mappings, pages, ()), tables, markers)) == [
        "---[ Page tables ]---",
        "0xffffffc000200000-0xffffffc000600000    0x0000000080200000         4M PMD .   ..     ..   D A G . . W R V",
        "0xffffffc040000000-0xffffffc080000000    0x00000000c0000000         1G PGD N MT(IO) RSW(1) D A G . . W R V",
    ]


def test_riscv64_passes_all_markers_at_once() -> None:
    start = TOP - (1 << 38)
    tables = HostTables((), (TablePage(0x1000, "PGD", AddrRange(0, TOP), 0),), ())
    markers = [(start + number * MIB, f"marker {number}") for number in range(9)]
    assert list(dump_lines(tables, FORMATS["riscv64-sv39"], markers)) == [f"---[ marker {n} ]---" for n in range(9)]
