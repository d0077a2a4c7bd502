# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from harness.arch import ARM64, RISCV64
from harness.arch.config_queries import Build
from harness.arch.features import kasan_shadow
from harness.arch.modes import VA_BITS, va_bits_of_build
from harness.units import GIB, MIB, AddrRange

COMMON = {"PAGESIZE": "4096", "SIZE(page)": "64", "NUMBER(VMALLOC_END)": "0xfffffdffbf800000"}


@pytest.mark.parametrize(
    ("bits", "start", "end"),
    [
        ("39", 0xFFFFFF80_00000000, 0xFFFFFFC0_00000000),
        ("48", 0xFFFF0000_00000000, 0xFFFF8000_00000000),
        ("52", 0xFFF00000_00000000, 0xFFFF8000_00000000),
    ],
)
def test_arm64s_linear_map_is_the_lower_part_of_the_kernels_half(bits: str, start: int, end: int) -> None:
    note = COMMON | {
        "NUMBER(VA_BITS)": bits,
        "NUMBER(PHYS_OFFSET)": "0x40000000",
        "SYMBOL(vmemmap)": "fffffdffbf000000",
        "NUMBER(VMEMMAP_START)": "0xfffffdffc0000000",
        "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
    }
    layout = ARM64.kernel_layout(note, None)
    assert layout.linear_window == AddrRange(start, end)
    assert layout.vmemmap_window == AddrRange(0xFFFFFDFF_C0000000, 0xFFFFFFFF_C0000000)
    assert layout.linear(AddrRange.sized(0x40000000, MIB)) == AddrRange.sized(start, MIB)


def test_a_52_bit_arm64_kernel_on_48_bit_hardware_counts_from_below_zero() -> None:
    note = COMMON | {
        "NUMBER(VA_BITS)": "52",
        "NUMBER(PHYS_OFFSET)": "0xfff0b337c0000000",
        "NUMBER(VMEMMAP_START)": "0xffffc1ffc0000000",
        "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
    }
    layout = ARM64.kernel_layout(note, None)
    assert layout.vmemmap_window == AddrRange(0xFFFFFDFF_BF800000, 0xFFFFFFFF_C0000000)
    assert layout.linear(AddrRange.sized(0x40000000, MIB)).start == 0xFFFF4CC8_80000000
    # The note of an older kernel does not have vmemmap either: it follows from these two.
    assert layout.vmemmap == 0xFFFFC1FF_C0000000 + (0x000F4CC8_40000000 >> 12) * 64


def test_pages_of_16k_share_one_bit_less_with_lesser_hardware() -> None:
    # From a kernel with 52 bits on a CPU without LPA2, which used 47.
    note = {
        "PAGESIZE": "16384",
        "SIZE(page)": "64",
        "NUMBER(VA_BITS)": "52",
        "NUMBER(VMALLOC_END)": "0xffffffbfbf800000",
        "NUMBER(PHYS_OFFSET)": "0xfff0800040000000",
        "NUMBER(VMEMMAP_START)": "0xfffff03fc0000000",
        "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
        "NUMBER(TCR_EL1_T1SZ)": "0x11",
    }
    layout = ARM64.kernel_layout(note, None)
    assert layout.linear_window.end == 0xFFFFC000_00000000
    assert layout.linear(AddrRange.sized(0x40000000, MIB)).start == 0xFFFF8000_00000000
    assert VA_BITS["arm64"](note) == 47


def test_a_kernel_of_48_bits_with_pages_of_16k_has_no_lesser_hardware_to_share_with() -> None:
    # From 6.1.176 with CONFIG_ARM64_16K_PAGES, which has no 52 bits.
    note = {
        "PAGESIZE": "16384",
        "SIZE(page)": "64",
        "NUMBER(VA_BITS)": "48",
        "NUMBER(VMALLOC_END)": "0xfffffefff0000000",
        "NUMBER(PHYS_OFFSET)": "0x40000000",
        "NUMBER(VMEMMAP_START)": "0xffffff0000000000",
        "NUMBER(VMEMMAP_END)": "0xffffff8000000000",
        "NUMBER(TCR_EL1_T1SZ)": "0x10",
    }
    assert ARM64.kernel_layout(note, None).linear_window.end == 0xFFFF8000_00000000


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({"ARM64_VA_BITS": "48", "ARM64_16K_PAGES": "y"}, {48}),
        ({"ARM64_VA_BITS": "52", "ARM64_16K_PAGES": "y"}, {47, 52}),
        ({"ARM64_VA_BITS": "52", "ARM64_64K_PAGES": "y"}, {48, 52}),
        ({"ARM64_VA_BITS": "39"}, {39}),
        ({"ARM64_VA_BITS": "many"}, set()),
        ({}, set()),
        (None, set()),
    ],
)
def test_the_configuration_tells_what_address_spaces_an_arm64_kernel_can_have(
    options: dict[str, str] | None, bits: set[int]
) -> None:
    assert va_bits_of_build(Build(options)) == bits


@pytest.mark.parametrize(
    ("bits", "start", "end", "leaves"),
    [
        ("39", 0xFFFFFFD6_00000000, 0xFFFFFFF7_00000000, {"PTE", "PMD"}),
        ("48", 0xFFFFAF80_00000000, 0xFFFFEF80_00000000, {"PTE", "PMD", "PUD"}),
        ("57", 0xFF600000_00000000, 0xFFDF0000_00000000, {"PTE", "PMD", "PUD", "P4D"}),
    ],
)
def test_riscv64s_layout_follows_the_paging_mode(bits: str, start: int, end: int, leaves: set[str]) -> None:
    note = COMMON | {
        "NUMBER(VA_BITS)": bits,
        "NUMBER(PAGE_OFFSET)": hex(start),
        "NUMBER(KERNEL_LINK_ADDR)": "0xffffffff80000000",
        "NUMBER(phys_ram_base)": "2147483648",
        "SYMBOL(vmemmap)": "ff1bfffffe000000",
        "NUMBER(VMEMMAP_START)": "0xff1c000000000000",
        "NUMBER(VMEMMAP_END)": "0xff20000000000000",
    }
    layout = RISCV64.kernel_layout(note, None)
    assert layout.linear_window == AddrRange(start, end)
    assert layout.leaf_levels == leaves


@pytest.mark.parametrize("bits", ["39", "48", "57"])
@pytest.mark.parametrize("link", [0xFFFFFFFF_80000000, 0xFFFFFFFE_80000000])
def test_riscv64s_linear_map_ends_where_kasans_shadow_would_begin(bits: str, link: int) -> None:
    note = COMMON | {
        "NUMBER(VA_BITS)": bits,
        "NUMBER(PAGE_OFFSET)": "0xff60000000000000",
        "NUMBER(KERNEL_LINK_ADDR)": hex(link),
        "NUMBER(phys_ram_base)": "2147483648",
        "SYMBOL(vmemmap)": "ff1bfffffe000000",
        "NUMBER(VMEMMAP_START)": "0xff1c000000000000",
        "NUMBER(VMEMMAP_END)": "0xff20000000000000",
    }
    shadow = kasan_shadow("riscv64", note, Build({"KASAN_GENERIC": "y"}))
    assert isinstance(shadow, AddrRange) and shadow.end == link - 2 * GIB
    assert RISCV64.kernel_layout(note, None).linear_window.end == shadow.start


def test_arm64s_linear_map_ends_where_kasans_shadow_begins() -> None:
    note = COMMON | {
        "NUMBER(VA_BITS)": "48",
        "NUMBER(PHYS_OFFSET)": "0x40000000",
        "NUMBER(VMEMMAP_START)": "0xfffffdffc0000000",
        "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
    }
    shadow = AddrRange(0xFFFF6000_00000000, 0xFFFF8000_00000000)
    assert ARM64.kernel_layout(note, shadow).linear_window == AddrRange(0xFFFF0000_00000000, shadow.start)


def test_riscv64_populates_vmemmap_by_whole_pmd_entries_and_arm64_by_pages() -> None:
    piece = AddrRange.sized(0x1_0000_0000, 2 * MIB)
    arm = ARM64.kernel_layout(
        COMMON
        | {
            "NUMBER(VA_BITS)": "48",
            "NUMBER(PHYS_OFFSET)": "0x40000000",
            "SYMBOL(vmemmap)": "fffffdffbf000000",
            "NUMBER(VMEMMAP_START)": "0xfffffdffc0000000",
            "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
        },
        None,
    )
    assert arm.memmap(piece).size == 512 * 64
    riscv = RISCV64.kernel_layout(
        COMMON
        | {
            "NUMBER(VA_BITS)": "39",
            "NUMBER(PAGE_OFFSET)": "0xffffffd600000000",
            "NUMBER(KERNEL_LINK_ADDR)": "0xffffffff80000000",
            "NUMBER(phys_ram_base)": "0x80000000",
            "SYMBOL(vmemmap)": "ffffffc3fe000000",
            "NUMBER(VMEMMAP_START)": "0xffffffc400000000",
            "NUMBER(VMEMMAP_END)": "0xffffffc600000000",
        },
        None,
    )
    assert riscv.memmap(piece).size == 2 * MIB
