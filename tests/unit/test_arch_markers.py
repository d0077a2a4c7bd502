# SPDX-License-Identifier: GPL-2.0-or-later
"""ptdump's markers, compared with recorded dumps and with numbers calculated by hand from the kernel's headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.arch import ARM64, RISCV64, arch_named
from harness.arch.architecture import ArchSpec
from harness.arch.config_queries import NO_CONFIG
from harness.arch.markers import marker_set
from harness.parsers.kernel_config import parse_config
from harness.parsers.ptdump import parse_ptdump
from harness.parsers.vmcoreinfo import parse_vmcoreinfo

FIXTURES = Path(__file__).parent / "fixtures"
TOP = 1 << 64
RECORDED = [
    (arch, facts, dump)
    for arch, bundle in (
        ("arm64", FIXTURES / "bundles" / "arm64-dimm"),
        ("arm64", FIXTURES / "bundles" / "arm64-virtio"),
        ("arm64", FIXTURES / "walks" / "arm64"),
        ("riscv64", FIXTURES / "walks" / "riscv64"),
    )
    for facts in [bundle / "facts"]
    for dump in sorted(bundle.glob("states/*/ptdump.txt"))[:2]
]

ARM64_NOTE = {
    "OSRELEASE": "6.12.107",
    "PAGESIZE": "4096",
    "SIZE(page)": "64",
    "NUMBER(VA_BITS)": "52",
    "NUMBER(TCR_EL1_T1SZ)": "0xc",
    "NUMBER(MODULES_VADDR)": "0xffff800000000000",
    "NUMBER(MODULES_END)": "0xffff800080000000",
    "NUMBER(VMALLOC_START)": "0xffff800080000000",
    "NUMBER(VMALLOC_END)": "0xffffc1ffbf800000",
    "NUMBER(VMEMMAP_START)": "0xffffc1ffc0000000",
    "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
}
RISCV64_NOTE = {
    "OSRELEASE": "6.12.107",
    "NUMBER(VA_BITS)": "39",
    "NUMBER(PAGE_OFFSET)": "0xffffffd600000000",
    "NUMBER(VMALLOC_START)": "0xffffffc600000000",
    "NUMBER(VMALLOC_END)": "0xffffffd600000000",
    "NUMBER(VMEMMAP_START)": "0xffffffc500000000",
    "NUMBER(VMEMMAP_END)": "0xffffffc600000000",
    "NUMBER(MODULES_VADDR)": "0xffffffff00f14000",
    "NUMBER(MODULES_END)": "0xffffffff80000000",
    "NUMBER(KERNEL_LINK_ADDR)": "0xffffffff80000000",
}


def test_there_are_recorded_dumps() -> None:
    assert len({arch for arch, _, _ in RECORDED}) == 2 and len(RECORDED) >= 6


@pytest.mark.parametrize(("arch", "facts", "dump"), RECORDED, ids=lambda value: getattr(value, "parts", [value])[-2:])
def test_recorded_dumps_have_these_markers_where_they_must_be(arch: str, facts: Path, dump: Path) -> None:
    note = parse_vmcoreinfo((facts / "vmcoreinfo.txt").read_text())
    tables = parse_ptdump(dump.read_text(), arch_named(arch))
    found = marker_set(arch, note, parse_config((facts / "config.txt").read_text()), tables.markers)
    assert found.left_out == () and found.markers[0][0] >= found.start
    assert [name for _, name in found.markers] == list(tables.markers)
    for address, name in found.markers:
        assert address <= tables.markers[name]
    starts = [address for address, _ in found.markers]
    regions = dict(zip((name for _, name in found.markers), zip(starts, [*starts[1:], TOP], strict=True), strict=True))
    for run in tables.mappings:
        start, end = regions[run.region]
        assert start <= run.range.start < run.range.end <= end


def test_arm64_with_an_unmoved_fixmap() -> None:
    assert dict((name, at) for at, name in marker_set(ARM64, ARM64_NOTE, {}).markers) == {
        "Linear Mapping start": 0xFFF0000000000000,
        "Linear Mapping end": 0xFFFF800000000000,
        "Modules start": 0xFFFF800000000000,
        "Modules end": 0xFFFF800080000000,
        "vmalloc() area": 0xFFFF800080000000,
        "vmalloc() end": 0xFFFFC1FFBF800000,
        "vmemmap start": 0xFFFFC1FFC0000000,
        "vmemmap end": 0xFFFFFFFFC0000000,
        "PCI I/O start": 0xFFFFFFFFC0800000,
        "PCI I/O end": 0xFFFFFFFFC1800000,
        "Fixmap start": 0xFFFFFFFFC1800000,
        "Fixmap end": 0xFFFFFFFFFF800000,
    }


def test_arm64_on_hardware_with_fewer_bits_walks_from_there() -> None:
    found = marker_set(ARM64, {**ARM64_NOTE, "NUMBER(TCR_EL1_T1SZ)": "0x10"}, {})
    assert found.start == 0xFFFF000000000000
    assert found.markers[0] == (0xFFF0000000000000, "Linear Mapping start")
    # 0xf000000000000 bytes of unused linear map also have struct pages in vmemmap
    assert (0xFFFFC1FFC0000000 + 0xF000000000000 // 4096 * 64, "vmemmap start") in found.markers


def test_arm64_with_48_bits_does_not_ask_the_hardware() -> None:
    note = {key: value for key, value in ARM64_NOTE.items() if "TCR" not in key} | {"NUMBER(VA_BITS)": "48"}
    assert marker_set(ARM64, note, {}).start == 0xFFFF000000000000


@pytest.mark.parametrize(
    ("option", "offset", "start"),
    [
        ("KASAN_GENERIC", "0xdfff800000000000", 0xFFFD800000000000),
        ("KASAN_SW_TAGS", "0xefff800000000000", 0xFFFE800000000000),
    ],
)
def test_arm64_kasan(option: str, offset: str, start: int) -> None:
    found = marker_set(ARM64, ARM64_NOTE, {option: "y", "KASAN_SHADOW_OFFSET": offset}).markers
    assert found[1:5] == (
        (start, "Linear Mapping end"),
        (start, "Kasan shadow start"),
        (0xFFFF800000000000, "Kasan shadow end"),
        (0xFFFF800000000000, "Modules start"),
    )


@pytest.mark.parametrize(("arch", "note"), [(ARM64, ARM64_NOTE), (RISCV64, RISCV64_NOTE)])
def test_what_a_kernel_without_config_cannot_tell_is_left_out_and_named(arch: ArchSpec, note: dict[str, str]) -> None:
    found = marker_set(arch, note, None, {"Fixmap start": 0xFFFFFFFFFF436000})
    assert [name for _, name in found.markers] == [name for _, name in marker_set(arch, note, {}).markers]
    assert found.left_out == (f"KASAN's markers: {NO_CONFIG.reason}",)


def test_the_guests_own_dump_tells_how_large_the_fixmap_is() -> None:
    alone = marker_set(ARM64, ARM64_NOTE, {})
    assert len(alone.left_out) == 1 and "'Fixmap start'" in alone.left_out[0]
    told = marker_set(ARM64, ARM64_NOTE, {}, {"Fixmap start": 0xFFFFFFFFFF436000})
    assert told.left_out == () and (0xFFFFFFFFFF436000, "Fixmap start") in told.markers


def test_arm64_before_6_9_keeps_fixmap_and_ports_below_vmemmap() -> None:
    # arch/arm64/include/asm/memory.h, fixmap.h (v6.1), for 48 bits and 4K pages
    vmemmap = TOP - (1 << 42)
    note = ARM64_NOTE | {
        "NUMBER(VA_BITS)": "48",
        "NUMBER(TCR_EL1_T1SZ)": "0x10",
        "NUMBER(VMALLOC_END)": hex(vmemmap - (256 << 20)),
        "NUMBER(VMEMMAP_START)": hex(vmemmap),
        "NUMBER(VMEMMAP_END)": hex(vmemmap + (1 << 41)),
    }
    found = marker_set(ARM64, note, {})
    assert found.start == TOP - (1 << 48)
    assert found.markers[-6:] == (
        (0xFFFFFBFFF0000000, "Fixmap start"),
        (0xFFFFFBFFFE000000, "Fixmap end"),
        (0xFFFFFBFFFE800000, "PCI I/O start"),
        (0xFFFFFBFFFF800000, "PCI I/O end"),
        (0xFFFFFC0000000000, "vmemmap start"),
        (0xFFFFFE0000000000, "vmemmap end"),
    )


def test_riscv64() -> None:
    found = marker_set(RISCV64, RISCV64_NOTE, {})
    assert found.start == 0xFFFFFFC4FEA00000
    assert found.markers == (
        (0xFFFFFFC4FEA00000, "Fixmap start"),
        (0xFFFFFFC4FF000000, "Fixmap end"),
        (0xFFFFFFC4FF000000, "PCI I/O start"),
        (0xFFFFFFC500000000, "PCI I/O end"),
        (0xFFFFFFC500000000, "vmemmap start"),
        (0xFFFFFFC600000000, "vmemmap end"),
        (0xFFFFFFC600000000, "vmalloc() area"),
        (0xFFFFFFD600000000, "vmalloc() end"),
        (0xFFFFFFD600000000, "Linear mapping"),
        (0xFFFFFFFF00F14000, "Modules/BPF mapping"),
        (0xFFFFFFFF80000000, "Kernel mapping"),
    )


def test_riscv64_kasan() -> None:
    found = marker_set(RISCV64, RISCV64_NOTE, {"KASAN_GENERIC": "y"}).markers
    # the shadow of 2**38 bytes has 32 GiB, and its start is aligned to 1 GiB
    assert (0xFFFFFFF700000000, "Kasan shadow start") in found and (0xFFFFFFFF00000000, "Kasan shadow end") in found


def test_a_kernel_that_kaslr_moved_begins_where_modules_end() -> None:
    note = {**RISCV64_NOTE, "NUMBER(MODULES_VADDR)": "0xffffffff10f14000", "NUMBER(MODULES_END)": "0xffffffff90000000"}
    assert marker_set("riscv64", note, {}).markers[-1] == (0xFFFFFFFF90000000, "Kernel mapping")


@pytest.mark.parametrize("key", ["NUMBER(VA_BITS)", "PAGESIZE", "NUMBER(VMEMMAP_END)", "SIZE(page)"])
def test_a_key_that_the_note_lacks_is_named(key: str) -> None:
    with pytest.raises(KeyError, match=key.replace("(", r"\(").replace(")", r"\)")):
        marker_set(ARM64, {name: value for name, value in ARM64_NOTE.items() if name != key}, {})


@pytest.mark.parametrize(
    ("arch", "note", "why"),
    [
        ("x86_64", {}, "no markers are known for x86_64"),
        (
            "arm64",
            {**ARM64_NOTE, "NUMBER(VA_BITS)": "57"},
            "no arm64 kernel has 57 bits of virtual addresses and uses 52",
        ),
        ("arm64", {**ARM64_NOTE, "NUMBER(VA_BITS)": "x"}, "invalid literal"),
        ("arm64", {**ARM64_NOTE, "NUMBER(VMALLOC_END)": "0x1000"}, "'vmalloc.. area' at .* below 'vmalloc.. end' at"),
        ("riscv64", {**RISCV64_NOTE, "NUMBER(VA_BITS)": "52"}, "riscv64 has no paging mode of 52 bits"),
        ("riscv64", {**RISCV64_NOTE, "NUMBER(VMEMMAP_START)": "0x0"}, "'Fixmap start' at -0x"),
    ],
)
def test_values_that_no_kernel_has(arch: str, note: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        marker_set(arch, note, {})
