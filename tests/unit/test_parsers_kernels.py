# SPDX-License-Identifier: GPL-2.0-or-later
"""Every parser with output of real kernels: nothing is unknown or garbled, and all that invariants need is there."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from iomem_text import render_iomem

from harness.arch import arch_named
from harness.collect.look import parse_parameters
from harness.parsers.blocks import parse_blocks
from harness.parsers.dmesg import parse_dmesg
from harness.parsers.iomem import looks_torn, parse_iomem
from harness.parsers.kernel_config import parse_config
from harness.parsers.meminfo import parse_meminfo
from harness.parsers.notes import Notes
from harness.parsers.ptdump import parse_ptdump
from harness.parsers.slabinfo import parse_slabinfo
from harness.parsers.vmcoreinfo import parse_vmcoreinfo
from harness.parsers.vmstat import parse_vmstat
from harness.parsers.zoneinfo import parse_zoneinfo

FOLDER = Path(__file__).parent / "fixtures" / "kernels"
KERNELS = sorted(path.name for path in FOLDER.iterdir())


def on(source: str) -> pytest.MarkDecorator:
    """All kernels with a recorded ``source``: Debian's have no dump, and their configuration is too large."""
    return pytest.mark.parametrize(
        "kernel", [name for name in KERNELS if (FOLDER / name / f"{source}.txt.gz").exists()]
    )


def read(kernel: str, source: str) -> str:
    return gzip.decompress((FOLDER / kernel / f"{source}.txt.gz").read_bytes()).decode()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture(autouse=True)
def nothing_odd(notes: Notes) -> Iterator[None]:
    yield
    assert (notes.unknown, notes.garbled) == ((), ())


def test_both_architectures_and_old_and_new_kernels_are_here() -> None:
    assert {
        *("arm64-6.1-debian", "arm64-6.12", "arm64-6.12-debian", "arm64-7.3", "arm64-7.3-debian"),
        *("riscv64-6.12-debian", "riscv64-7.3"),
    } <= set(KERNELS)


@on("iomem")
def test_iomem(kernel: str, notes: Notes) -> None:
    text = read(kernel, "iomem")
    entries = parse_iomem(text, notes)
    assert render_iomem(entries) == text and not looks_torn(text)
    assert any(entry.name == "System RAM" for entry in entries)


@on("blocks")
def test_blocks(kernel: str, notes: Notes) -> None:
    blocks = parse_blocks(read(kernel, "blocks"), notes)
    assert {block.state for block in blocks} == {"online"}
    assert all(block.phys_index == block.index and block.valid_zones and block.nodes == (0,) for block in blocks)


@on("zoneinfo")
def test_zoneinfo(kernel: str, notes: Notes) -> None:
    zones = parse_zoneinfo(read(kernel, "zoneinfo"), notes)
    assert sum(zone.present for zone in zones) > 0
    assert all((zone.start_pfn is None) == (not zone.present) for zone in zones)


@on("vmstat")
def test_meminfo_and_vmstat(kernel: str, notes: Notes) -> None:
    meminfo, vmstat = parse_meminfo(read(kernel, "meminfo"), notes), parse_vmstat(read(kernel, "vmstat"), notes)
    assert 0 < meminfo["MemFree"] < meminfo["MemTotal"] and "PageTables" in meminfo
    assert vmstat["nr_page_table_pages"] > 0
    assert len(meminfo) == read(kernel, "meminfo").count("\n") and len(vmstat) == read(kernel, "vmstat").count("\n")


@on("slabinfo")
def test_slabinfo(kernel: str, notes: Notes) -> None:
    text = read(kernel, "slabinfo")
    caches = parse_slabinfo(text, notes)
    assert len(caches) == text.count("\n") - 2
    assert {cache.name: cache.objsize for cache in caches}["kmalloc-4k"] == 4096


@on("ptdump")
def test_ptdump(kernel: str, notes: Notes) -> None:
    text = read(kernel, "ptdump")
    tables = parse_ptdump(text, arch_named(kernel.partition("-")[0]), notes)
    assert len(tables.markers) == sum(row.startswith("---[") for row in text.splitlines())
    assert any(mapping.region.startswith("vmemmap") for mapping in tables.mappings)


@on("dmesg")
def test_dmesg(kernel: str, notes: Notes) -> None:
    text = read(kernel, "dmesg")
    lines = parse_dmesg(text, notes)
    assert len(lines) == text.count("\n") and lines[-1].seconds > 0
    assert [line.text for line in lines if line.alarm] == []


@on("vmcoreinfo")
def test_vmcoreinfo_and_parameters(kernel: str, notes: Notes) -> None:
    note = parse_vmcoreinfo(read(kernel, "vmcoreinfo"), notes)
    assert note["OSRELEASE"].startswith(f"{kernel.split('-')[1]}.") and int(note["PAGESIZE"]) == 4096
    assert parse_parameters(read(kernel, "parameters"), notes)["printk.time"] == "Y"


@on("config")
def test_config(kernel: str, notes: Notes) -> None:
    assert parse_config(read(kernel, "config"), notes)["MEMORY_HOTPLUG"] == "y"
