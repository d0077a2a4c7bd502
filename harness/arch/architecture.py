# SPDX-License-Identifier: GPL-2.0-or-later
"""The properties of an architecture that matter to memory hotplug."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.arch.kernel_layout import KernelLayout
from harness.arch.pagetable import TableFormat
from harness.arch.table_removal import TableRules
from harness.units import GIB, AddrRange


@dataclass(frozen=True, slots=True)
class PagingMode:
    """Geometry of the kernel's own page tables for one base page size.

    All sizes are bytes. ``leaf_sizes`` maps a level's name (PTE, PMD, PUD, P4D) to the size one entry of it maps;
    only levels that the kernel uses for leaves of RAM are in it. ``contiguous_sizes`` maps a level to the size of
    one contiguous group there (arm64 CONT_PTE_SIZE, CONT_PMD_SIZE); empty where the architecture has no such hint.
    """

    page_size: int
    section_size: int
    leaf_sizes: Mapping[str, int]
    contiguous_sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ArchSpec:
    """One architecture as QEMU, Debian and the kernel know it."""

    #: the kernel's and Debian's name
    name: str
    #: the suffix of qemu-system-*
    qemu_target: str
    #: ``-machine`` without guest-specific options
    machine: str
    #: options of ``-machine`` for every guest
    machine_options: tuple[str, ...]
    #: ``-cpu``
    cpu: str
    #: kernel console on the first serial port
    console: str
    #: GNU triplet of the cross compiler
    triplet: str
    #: ``ARCH=`` of the kernel's build
    kernel_arch: str
    #: path of the Image below the kernel's build directory
    image: str
    #: (offset, bytes) of the magic number in a bare Image (Documentation/arch/*/boot*.rst)
    image_magic: tuple[int, bytes]
    #: where boot RAM starts on QEMU's ``virt`` board
    ram_base: int
    #: QEMU starts device memory at the end of boot RAM rounded up to this, and adds as much slack for each slot
    device_memory_alignment: int
    #: geometry by base page size
    paging: Mapping[int, PagingMode]
    #: sub-section size (include/linux/mmzone.h, SUBSECTION_SHIFT 21)
    subsection_size: int
    #: Debian's packages: QEMU, firmware, the kernel's meta-package
    qemu_package: str
    firmware_package: str
    kernel_package: str
    #: firmware files inside their package: code and variable store; bytes of one flash bank (VIRT_FLASH of the board)
    firmware_code: str
    firmware_vars: str
    flash_size: int
    #: (package, file inside it) of the firmware that runs before the kernel or the flash, None if there is none
    bios: tuple[str, str] | None
    #: a boot's virtual layout, from its vmcoreinfo note and the place of KASAN's shadow; raises KeyError, ValueError
    kernel_layout: Callable[[Mapping[str, str], AddrRange | None], KernelLayout]
    #: init_mm's page tables in one boot, from its vmcoreinfo note and page size; raises KeyError, ValueError
    table_format: Callable[[Mapping[str, str], int], TableFormat]
    #: how page tables are freed when memory is removed
    table_rules: TableRules
    #: ptdump words that name the leaf's shape, not its permissions or memory type
    shape_words: frozenset[str]
    #: ptdump words that make a page writable, and executable by the kernel
    writable_word: str
    executable_word: str
    #: how the attributes of ZONE_DEVICE pages differ from hot-added RAM's in a dump (pgprot_mhp, v6.12)
    device_page_words: Mapping[str, str]
    #: bytes of one struct page that memory bring-up reserves room for (MAX_STRUCT_PAGE_SIZE, drivers/nvdimm/nd.h)
    max_struct_page: int = 64
    #: a line of the kernel log that is not an alarm before a boot's first snapshot: a known race during boot
    boot_race: str | None = None
    #: extra space that QEMU requires for a slot
    slot_slack: int = GIB
    #: True if QEMU's device tree lists the memory of the last node first (arm_load_dtb, hw/arm/boot.c, QEMU 10.0)
    dt_lists_nodes_backwards: bool = False
