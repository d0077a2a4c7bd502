# SPDX-License-Identifier: GPL-2.0-or-later
"""Freshly booted guests for tests of model and checks: 1 GB of boot RAM, two zones."""

from __future__ import annotations

import dataclasses

from harness.arch import ARM64, RISCV64, ArchSpec
from harness.model.boot_layout import BootLayout, MachineShape, boot_layout
from harness.model.memory_model import MemoryModel
from harness.state import GuestState, IomemEntry, KernelFacts, KernelRecords, MemoryBlock, NotObserved, Zone
from harness.units import GIB, KIB, MIB, AddrRange

BLOCK = 128 * MIB
PAGE = 4096
FIRST = 0x8000_0000 // BLOCK
UNSEEN = NotObserved("not part of this test")
_TOP = 1 << 64


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of kernel: architecture, page size, bits of virtual addresses."""

    arch: ArchSpec
    page_size: int
    bits: int

    def __str__(self) -> str:
        return f"{self.arch.name}-{self.page_size // KIB}k-{self.bits}"


ARM64_4K = Kind(ARM64, 4 * KIB, 52)
KINDS = (
    ARM64_4K,
    Kind(ARM64, 4 * KIB, 48),
    Kind(ARM64, 16 * KIB, 48),
    Kind(ARM64, 64 * KIB, 48),
    Kind(RISCV64, 4 * KIB, 39),
    Kind(RISCV64, 4 * KIB, 48),
    Kind(RISCV64, 4 * KIB, 57),
)

_RISCV_PAGE_OFFSET = {39: 0xFFFFFFD6_00000000, 48: 0xFFFFAF80_00000000, 57: 0xFF600000_00000000}


def note(kind: Kind = ARM64_4K) -> dict[str, str]:
    """The vmcoreinfo note of a kernel of this kind, computed with the definitions in its headers (v6.12)."""
    common = {
        "OSRELEASE": "6.12",
        "PAGESIZE": str(kind.page_size),
        "SIZE(page)": "64",
        "NUMBER(VA_BITS)": str(kind.bits),
        "LENGTH(zone.free_area)": "11",
    }
    base = kind.arch.ram_base
    if kind.arch is ARM64:
        end = _TOP - GIB
        least = min(kind.bits, 48)
        page_end = _TOP - (1 << least - 1)
        start = end - ((page_end - (_TOP - (1 << kind.bits))) // kind.page_size * 64)
        return common | {
            "NUMBER(TCR_EL1_T1SZ)": hex(64 - kind.bits),
            "NUMBER(MAX_PHYSMEM_BITS)": "52" if kind.bits == 52 else "48",
            "NUMBER(PHYS_OFFSET)": hex(base),
            "NUMBER(VMEMMAP_START)": hex(start),
            "NUMBER(VMEMMAP_END)": hex(end),
            "SYMBOL(vmemmap)": f"{start - base // kind.page_size * 64:x}",
            "NUMBER(MODULES_VADDR)": hex(page_end),
            "NUMBER(MODULES_END)": hex(page_end + 2 * GIB),
            "NUMBER(VMALLOC_START)": hex(page_end + 2 * GIB),
            "NUMBER(VMALLOC_END)": hex(start - 8 * MIB),
            "NUMBER(kimage_voffset)": hex(page_end + 4 * GIB - base),
            "SYMBOL(swapper_pg_dir)": f"{page_end + 4 * GIB + 32 * MIB:x}",
        }
    offset = _RISCV_PAGE_OFFSET[kind.bits]
    vmalloc = offset - (1 << kind.bits - 3)
    start = vmalloc - (1 << kind.bits - 12 - 1 + 6)
    image = 0xFFFFFFFF_80000000
    return common | {
        "NUMBER(phys_ram_base)": str(base),
        "NUMBER(PAGE_OFFSET)": hex(offset),
        "NUMBER(VMALLOC_START)": hex(vmalloc),
        "NUMBER(VMALLOC_END)": hex(offset),
        "NUMBER(VMEMMAP_START)": hex(start),
        "NUMBER(VMEMMAP_END)": hex(vmalloc),
        "SYMBOL(vmemmap)": f"{start - base // kind.page_size * 64:x}",
        "NUMBER(MODULES_VADDR)": hex(image - 2 * GIB),
        "NUMBER(MODULES_END)": hex(image),
        "NUMBER(KERNEL_LINK_ADDR)": hex(image),
        "NUMBER(va_kernel_pa_offset)": hex(image - base - 2 * MIB),
        "SYMBOL(swapper_pg_dir)": f"{image + 16 * MIB:x}",
    }


def zones(node: int = 0, kind: Kind = ARM64_4K, memory: int = GIB) -> tuple[Zone, ...]:
    pages = memory // kind.page_size
    managed = pages - 8564 if kind is ARM64_4K else pages - 4096
    low = "DMA" if kind.arch is ARM64 else "DMA32"
    return (
        Zone(node, low, pages, pages, managed, kind.arch.ram_base // kind.page_size),
        Zone(node, "Normal", 0, 0, 0, None),
        Zone(node, "Movable", 0, 0, 0, None),
        Zone(node, "Device", 0, 0, 0, None),
    )


def boot_state(kind: Kind = ARM64_4K, memory: int = GIB) -> GuestState:
    ram = AddrRange.sized(kind.arch.ram_base, memory)
    block = kind.arch.paging[kind.page_size].section_size
    counts = zones(kind=kind, memory=memory)
    return GuestState(
        raw={},
        boot_id="boot",
        uptime=1.0,
        iomem=(IomemEntry(ram, "System RAM"),),
        blocks=tuple(
            MemoryBlock(i, i, "online", True, (counts[0].name,), (0,))
            for i in range(ram.start // block, -(-ram.end // block))
        ),
        auto_online="offline",
        zones=counts,
        meminfo={"MemTotal": counts[0].managed * kind.page_size, "Hugetlb": 0},
        vmstat={"nr_memmap_pages": 0, "nr_memmap_boot_pages": 4096, "nr_page_table_pages": 80},
        slabs=UNSEEN,
        page_tables=UNSEEN,
        dax=UNSEEN,
        dmesg=(),
        devices=(),
        backends={"ram0": memory},
        console=(),
        host_tables=UNSEEN,
        sections=UNSEEN,
        section_faults=UNSEEN,
        struct_pages=UNSEEN,
        pause=UNSEEN,
    )


def with_records(state: GuestState) -> GuestState:
    """The same snapshot with the kernel's records, which tell the same as the text."""
    blocks = state.blocks
    if not isinstance(blocks, NotObserved):
        blocks = tuple(
            dataclasses.replace(one, removable=None, valid_zones=one.valid_zones if one.state == "online" else None)
            for one in blocks
        )
    records = KernelRecords(state.iomem, blocks, state.zones, state.vmstat, state.meminfo, state.dmesg, (0, 0))
    return dataclasses.replace(state, records=records)


def facts(kind: Kind = ARM64_4K, **changes: object) -> KernelFacts:
    base = KernelFacts(
        arch=kind.arch.name,
        release="6.12",
        cmdline="",
        page_size=kind.page_size,
        memory_block_size=kind.arch.paging[kind.page_size].section_size,
        config={"HUGETLB_PAGE": "y"},
        vmcoreinfo=note(kind),
        parameters={"memory_hotplug.memmap_on_memory": "N"},
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def shape(kind: Kind = ARM64_4K, **changes: object) -> MachineShape:
    base = MachineShape(kind.arch, (GIB,), 16 * GIB, 8, ("rp0", "rp1", "rp2", "rp3"), 2)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def layout(kind: Kind = ARM64_4K, **fact_changes: object) -> BootLayout:
    return boot_layout(shape(kind), facts(kind, **fact_changes), boot_state(kind))


def model(kind: Kind = ARM64_4K, **fact_changes: object) -> MemoryModel:
    return MemoryModel(layout(kind, **fact_changes))
