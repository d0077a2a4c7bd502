# SPDX-License-Identifier: GPL-2.0-or-later
"""A freshly booted guest for tests of model and checks: 1 GB of boot RAM, two zones' worth of counters."""

from __future__ import annotations

import dataclasses

from harness.arch import ARM64
from harness.model.layout import BootLayout, MachineShape, boot_layout
from harness.model.memory import MemoryModel
from harness.state import GuestState, IomemEntry, KernelFacts, MemoryBlock, NotObserved, Zone
from harness.units import GIB, MIB, AddrRange

BLOCK = 128 * MIB
PAGE = 4096
FIRST = 0x8000_0000 // BLOCK
UNSEEN = NotObserved("not part of this test")


def zones(node: int = 0) -> tuple[Zone, ...]:
    return (
        Zone(node, "DMA", 262144, 262144, 253580, 262144),
        Zone(node, "Normal", 0, 0, 0, None),
        Zone(node, "Movable", 0, 0, 0, None),
        Zone(node, "Device", 0, 0, 0, None),
    )


def boot_state() -> GuestState:
    ram = AddrRange.sized(ARM64.ram_base, GIB)
    return GuestState(
        raw={},
        boot_id="boot",
        uptime=1.0,
        iomem=(IomemEntry(ram, "System RAM"),),
        blocks=tuple(
            MemoryBlock(i, i, "online", True, ("DMA",), (0,)) for i in range(ram.start // BLOCK, ram.end // BLOCK)
        ),
        auto_online="offline",
        zones=zones(),
        meminfo={"MemTotal": 253580 * PAGE},
        vmstat={"nr_memmap_pages": 0, "nr_memmap_boot_pages": 4096, "nr_page_table_pages": 80},
        user_page_tables=0,
        slabs=UNSEEN,
        page_tables=UNSEEN,
        dax=UNSEEN,
        dmesg=(),
        devices=(),
        backends={"ram0": GIB},
        console=(),
        host_tables=UNSEEN,
        sections=UNSEEN,
        pause=UNSEEN,
    )


def facts(**changes: object) -> KernelFacts:
    base = KernelFacts(
        arch="arm64",
        release="6.12",
        cmdline="",
        page_size=PAGE,
        memory_block_size=BLOCK,
        config={"HUGETLB_PAGE": "y"},
        vmcoreinfo={
            "NUMBER(VA_BITS)": "52",
            "NUMBER(PHYS_OFFSET)": "0x40000000",
            "SYMBOL(vmemmap)": "ffffc1ffbf000000",
            "SIZE(page)": "64",
            "PAGESIZE": "4096",
        },
        parameters={"memory_hotplug.memmap_on_memory": "N"},
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def shape(**changes: object) -> MachineShape:
    base = MachineShape(ARM64, (GIB,), 16 * GIB, 8, ("rp0", "rp1", "rp2", "rp3"), 2)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def layout(**fact_changes: object) -> BootLayout:
    return boot_layout(shape(), facts(**fact_changes), boot_state())


def model(**fact_changes: object) -> MemoryModel:
    return MemoryModel(layout(**fact_changes))
