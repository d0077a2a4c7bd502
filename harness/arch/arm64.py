# SPDX-License-Identifier: GPL-2.0-or-later
"""arm64: Documentation/arch/arm64/memory.rst, arch/arm64/include/asm/{sparsemem,pgtable-hwdef}.h (v6.12)."""

from __future__ import annotations

from harness.arch.architecture import ArchSpec, PagingMode
from harness.arch.kernel_layout import arm64_layout
from harness.arch.pagetable_arm64 import arm64_tables
from harness.arch.table_removal import ARM64_TABLE_RULES
from harness.units import GIB, KIB, MIB

ARM64 = ArchSpec(
    name="arm64",
    qemu_target="aarch64",
    machine="virt",
    machine_options=("gic-version=3",),
    cpu="max,pauth-impdef=on",
    console="ttyAMA0",
    triplet="aarch64-linux-gnu",
    kernel_arch="arm64",
    image="arch/arm64/boot/Image",
    image_magic=(56, b"ARM\x64"),
    ram_base=0x4000_0000,
    device_memory_alignment=GIB,
    dt_lists_nodes_backwards=True,
    paging={
        4 * KIB: PagingMode(
            page_size=4 * KIB,
            section_size=128 * MIB,
            leaf_sizes={"PTE": 4 * KIB, "PMD": 2 * MIB, "PUD": GIB},
            contiguous_sizes={"PTE": 64 * KIB, "PMD": 32 * MIB},
        ),
        16 * KIB: PagingMode(
            page_size=16 * KIB,
            section_size=128 * MIB,
            leaf_sizes={"PTE": 16 * KIB, "PMD": 32 * MIB},
            contiguous_sizes={"PTE": 2 * MIB, "PMD": GIB},
        ),
        64 * KIB: PagingMode(
            page_size=64 * KIB,
            section_size=512 * MIB,
            leaf_sizes={"PTE": 64 * KIB, "PMD": 512 * MIB},
            contiguous_sizes={"PTE": 2 * MIB, "PMD": 16 * GIB},
        ),
    },
    subsection_size=2 * MIB,
    qemu_package="qemu-system-arm",
    firmware_package="qemu-efi-aarch64",
    kernel_package="linux-image-arm64",
    firmware_code="usr/share/AAVMF/AAVMF_CODE.no-secboot.fd",
    firmware_vars="usr/share/AAVMF/AAVMF_VARS.fd",
    flash_size=64 * MIB,
    bios=None,
    kernel_layout=arm64_layout,
    table_format=arm64_tables,
    table_rules=ARM64_TABLE_RULES,
    shape_words=frozenset({"CON", "BLK"}),
    writable_word="RW",
    device_page_words={"MEM/NORMAL-TAGGED": "MEM/NORMAL"},
    executable_word="x",
)
