# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of real guests: the walk must match the guest's own dump line by line."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.arch import arch_named
from harness.arch.markers import MarkerSet
from harness.arch.pagetable import TableFormat, coalesce
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.kmem.table_walk import TableImage, copy_tables, walk
from harness.parsers.hosttables import format_tables, parse_tables
from harness.parsers.ptdump import parse_ptdump
from harness.parsers.vmcoreinfo import parse_vmcoreinfo
from harness.report.notepage import dump_tables
from harness.report.ptdump_text import render
from harness.units import GIB, AddrRange

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED = [
    *("arm64/lpa2", "arm64/48-bit", "arm64/16k-lpa2", "arm64/16k-47-bit", "arm64/64k-lpa", "arm64/64k-48-bit"),
    *("riscv64/sv57", "riscv64/sv48", "riscv64/sv39"),
]
MEMORY = {"arm64": 0x4000_0000, "riscv64": 0x8000_0000}


def recorded(name: str, suffix: str) -> Path:
    arch, _, boot = name.partition("/")
    return FIXTURES / f"tables-{arch}" / f"{boot}.{suffix}"


def table_format(name: str) -> TableFormat:
    note = parse_vmcoreinfo(recorded(name, "vmcoreinfo.txt").read_text())
    return arch_named(name.partition("/")[0]).table_format(note, int(note["PAGESIZE"]))


@contextmanager
def memory_of(name: str, path: Path) -> Iterator[PhysicalMemory]:
    """A guest's memory that contains only its page tables."""
    base = MEMORY[name.partition("/")[0]]
    size = table_format(name).page_size
    pages = lzma.decompress(recorded(name, "pages.xz").read_bytes())
    with path.open("wb") as file:
        file.truncate(2 * GIB)
        for at in range(0, len(pages), 8 + size):
            file.seek(int.from_bytes(pages[at : at + 8], "little") - base)
            file.write(pages[at + 8 : at + 8 + size])
    with PhysicalMemory([Region(AddrRange.sized(base, 2 * GIB), path)]) as memory:
        yield memory


def image_of(name: str, directory: Path) -> TableImage:
    with memory_of(name, directory / "memory") as memory:
        return copy_tables(memory, table_format(name))


def markers_of(name: str) -> tuple[str, list[tuple[int, str]]]:
    """The guest's own dump, and the addresses of the markers in it."""
    text = recorded(name, "ptdump.txt").read_text()
    found = parse_ptdump(text, arch_named(name.partition("/")[0])).markers
    return text, sorted(((address, marker) for marker, address in found.items()), key=lambda pair: pair[0])


@pytest.mark.parametrize("name", RECORDED)
def test_the_walk_prints_what_the_guest_printed(name: str, tmp_path: Path) -> None:
    found = walk(image_of(name, tmp_path))
    text, markers = markers_of(name)
    state = found.to_state()
    form = table_format(name)
    places = MarkerSet(form.dump_start, tuple(markers), ())
    dump = dump_tables(state, arch_named(name.partition("/")[0]), form.page_size, places)
    assert "".join(render(dump)) == text
    assert state.faults == ()


@pytest.mark.parametrize("name", RECORDED)
def test_the_walk_coalesces_to_what_the_parser_reads(name: str, tmp_path: Path) -> None:
    found = walk(image_of(name, tmp_path))
    text, markers = markers_of(name)
    theirs = parse_ptdump(text, arch_named(name.partition("/")[0])).mappings
    assert found.coalesce(markers) == theirs
    assert tuple(coalesce(found.mappings(), table_format(name), markers)) == theirs


@pytest.mark.parametrize("name", [*RECORDED, "arm64/debian"])
def test_a_snapshot_keeps_the_walk(name: str, tmp_path: Path) -> None:
    state = walk(image_of(name, tmp_path)).to_state()
    assert state.faults == ()
    assert len(state.pages) > 10
    assert parse_tables(format_tables(state)) == state


@pytest.mark.parametrize("name", [*RECORDED, "arm64/debian"])
def test_the_linear_map_leads_where_its_addresses_say(name: str, tmp_path: Path) -> None:
    note = parse_vmcoreinfo(recorded(name, "vmcoreinfo.txt").read_text())
    # __phys_to_virt; on a kernel that falls back to fewer bits, arm64's PHYS_OFFSET wraps around to this address.
    if "NUMBER(PHYS_OFFSET)" in note:
        offset = -(1 << int(note["NUMBER(VA_BITS)"])) - int(note["NUMBER(PHYS_OFFSET)"], 0)
    else:
        offset = int(note["NUMBER(PAGE_OFFSET)"], 0) - int(note["NUMBER(phys_ram_base)"])
    base = MEMORY[name.partition("/")[0]]
    start = (base + offset) % (1 << 64)
    linear = [run for run in walk(image_of(name, tmp_path)).mappings() if start <= run.range.start < start + 2 * GIB]
    assert linear
    assert {run.range.start - run.physical for run in linear} == {start - base}
