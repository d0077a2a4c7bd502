# SPDX-License-Identifier: GPL-2.0-or-later
"""riscv64: Documentation/arch/riscv/vm-layout.rst, arch/riscv/include/asm/{sparsemem,pgtable}.h (v6.12)."""

from __future__ import annotations

from harness.arch.architecture import ArchSpec, PagingMode
from harness.arch.kernel_layout import riscv64_layout
from harness.arch.pagetable_riscv64 import riscv64_tables
from harness.arch.table_removal import RISCV64_TABLE_RULES
from harness.units import GIB, KIB, MIB

RISCV64 = ArchSpec(
    name="riscv64",
    qemu_target="riscv64",
    machine="virt",
    machine_options=("aia=aplic-imsic",),
    cpu="rv64",
    console="ttyS0",
    triplet="riscv64-linux-gnu",
    kernel_arch="riscv",
    image="arch/riscv/boot/Image",
    image_magic=(56, b"RSC\x05"),
    ram_base=0x8000_0000,
    device_memory_alignment=GIB,
    paging={
        4 * KIB: PagingMode(
            page_size=4 * KIB,
            section_size=128 * MIB,
            leaf_sizes={"PTE": 4 * KIB, "PMD": 2 * MIB, "PUD": GIB, "P4D": 512 * GIB},
            contiguous_sizes={},
        ),
    },
    subsection_size=2 * MIB,
    qemu_package="qemu-system-riscv",
    firmware_package="qemu-efi-riscv64",
    kernel_package="linux-image-riscv64",
    firmware_code="usr/share/qemu-efi-riscv64/RISCV_VIRT_CODE.fd",
    firmware_vars="usr/share/qemu-efi-riscv64/RISCV_VIRT_VARS.fd",
    flash_size=32 * MIB,
    bios=("opensbi", "usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"),
    kernel_layout=riscv64_layout,
    table_format=riscv64_tables,
    table_rules=RISCV64_TABLE_RULES,
    shape_words=frozenset(set()),
    writable_word="W",
    device_page_words={},
    executable_word="X",
    # ACPI's acpi_scan_clear_dep_fn (drivers/acpi/scan.c) and pci_sysfs_init (drivers/pci/pci-sysfs.c, both v6.12) both
    # create the files of a PCI device's BARs, and either may come first.
    boot_race=r"cannot create duplicate filename '/devices/pci[0-9a-f:./]+/resource[0-5](?:_wc)?'",
)
