# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-table formats compared with the kernel's headers, and attribute words with the kernel's printers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmem_walk_oracle import BASE, FORMATS, KIB, TOP, arm64_note, riscv64_note

from harness.arch import arch_named
from harness.arch.pagetable import TableFormat, coalesce, level_names
from harness.arch.pagetable_arm64 import arm64_tables, arm64_words
from harness.arch.pagetable_riscv64 import riscv64_tables, riscv64_words
from harness.parsers.ptdump import parse_ptdump
from harness.state import HostMapping, Mapping
from harness.units import GIB, MIB, TIB, AddrRange

WORD = st.integers(0, TOP - 1)


@pytest.mark.parametrize(
    ("name", "names", "shifts", "root_entries", "start"),
    [
        ("arm64-4k-39", "PGD PMD PTE", (30, 21, 12), 512, 39),
        ("arm64-4k-48", "PGD PUD PMD PTE", (39, 30, 21, 12), 512, 48),
        ("arm64-4k-52", "PGD P4D PUD PMD PTE", (48, 39, 30, 21, 12), 16, 52),
        ("arm64-4k-52-on-48", "PGD PUD PMD PTE", (39, 30, 21, 12), 512, 48),
        ("arm64-16k-36", "PGD PTE", (25, 14), 2048, 36),
        ("arm64-16k-47", "PGD PMD PTE", (36, 25, 14), 2048, 47),
        ("arm64-16k-48", "PGD PUD PMD PTE", (47, 36, 25, 14), 2, 48),
        ("arm64-16k-52", "PGD PUD PMD PTE", (47, 36, 25, 14), 32, 52),
        ("arm64-16k-52-on-47", "PGD PMD PTE", (36, 25, 14), 2048, 47),
        ("arm64-64k-42", "PGD PTE", (29, 16), 8192, 42),
        ("arm64-64k-48", "PGD PMD PTE", (42, 29, 16), 64, 48),
        ("arm64-64k-52", "PGD PMD PTE", (42, 29, 16), 1024, 52),
        ("arm64-64k-52-on-48", "PGD PMD PTE", (42, 29, 16), 1024, 52),
        ("riscv64-sv39", "PGD PMD PTE", (30, 21, 12), 512, 64),
        ("riscv64-sv48", "PGD PUD PMD PTE", (39, 30, 21, 12), 512, 64),
        ("riscv64-sv57", "PGD P4D PUD PMD PTE", (48, 39, 30, 21, 12), 512, 64),
    ],
)
def test_geometry(name: str, names: str, shifts: tuple[int, ...], root_entries: int, start: int) -> None:
    tables = FORMATS[name]
    assert " ".join(level.name for level in tables.levels) == names
    assert tuple(level.shift for level in tables.levels) == shifts
    assert [level.entries for level in tables.levels] == [root_entries] + [tables.page_size // 8] * (len(shifts) - 1)
    assert (tables.root, tables.start) == (BASE, TOP - (1 << start))
    assert tables.levels[0].table_size == 8 * root_entries
    assert all(
        upper.entry_span == lower.table_span for upper, lower in zip(tables.levels, tables.levels[1:], strict=False)
    )


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("arm64-4k-39", "PGD PMD PTE"),
        ("arm64-4k-52", "PUD PMD PTE"),
        ("arm64-16k-52", "PMD PTE"),
        ("arm64-64k-52", "PMD PTE"),
        ("riscv64-sv57", "PGD P4D PUD PMD PTE"),
    ],
)
def test_levels_with_leaves(name: str, leaves: str) -> None:
    assert " ".join(level.leaf_name for level in FORMATS[name].levels if level.leaves) == leaves


#: VMEMMAP_START and VMEMMAP_SIZE, arch/arm64/include/asm/memory.h (v6.1), for 42 bits and 64K pages
BEFORE_6_9 = {"NUMBER(VMEMMAP_END)": hex(TOP - (1 << 42 - 10) + (1 << 41 - 10))}


def test_a_block_in_a_folded_pmd_is_named_as_the_kernel_names_it() -> None:
    note = arm64_note(42)
    assert [level.leaf_name for level in arm64_tables(note, 64 * KIB).levels] == ["PMD", "PTE"]
    before = arm64_tables(note | BEFORE_6_9, 64 * KIB)
    assert [level.leaf_name for level in before.levels] == ["PGD", "PTE"]


def test_the_dump_begins_with_the_addresses_in_use() -> None:
    note = arm64_note(52, 48)
    assert arm64_tables(note, 64 * KIB).dump_start == TOP - (1 << 48)
    assert arm64_tables(note | BEFORE_6_9, 64 * KIB).dump_start == TOP - (1 << 52)


@pytest.mark.parametrize(
    ("name", "entry", "physical"),
    [
        ("arm64-4k-48", 0x0068_8123_4567_8F03, 0x8123_4567_8000),
        ("arm64-4k-52", 0x0069_8123_4567_8F03, 0x000D_8123_4567_8000),
        ("arm64-16k-52", 0x0069_8123_4567_8F03, 0x000D_8123_4567_8000),
        ("arm64-64k-48", 0x0068_8123_4567_0F03, 0x8123_4567_0000),
        ("arm64-64k-52", 0x0068_8123_4567_EF03, 0x000E_8123_4567_0000),
        ("riscv64-sv48", 0xFFC0_0000_2000_00E7 & ~(1 << 63), 0x8000_0000),
        ("riscv64-sv57", 0x003F_FFFF_FFFF_FCE7, 0x00FF_FFFF_FFFF_F000),
    ],
)
def test_physical_addresses(name: str, entry: int, physical: int) -> None:
    assert FORMATS[name].physical(entry) == physical


def test_lpa_shares_its_bits_with_the_page_offset() -> None:
    # __phys_to_pte_val: the bits of the address from 48 on, shifted down by 36
    address = 0x000D_1234_5678_0000
    assert FORMATS["arm64-64k-52"].physical(address & (1 << 48) - 1 | address >> 36 & 0xF000) == address


def print_arm64(entry: int) -> str:
    """dump_prot written by hand: each column as in the kernel's table pte_bits."""

    def column(bit: int, full: str, rest: str) -> str:
        return " " + (full if entry >> bit & 1 else rest)

    text = column(0, " ", "F") + column(6, "USR", "   ") + column(7, "ro", "RW") + column(53, "NX", "x ")
    text += " SHD" if entry >> 8 & 3 == 3 else "    "
    text += column(10, "AF", "  ") + column(11, "NG", "  ") + column(52, "CON", "   ") + column(1, "   ", "BLK")
    text += column(54, "UXN", "   ") + column(50, "GP", "  ")
    kinds = {3: "DEVICE/nGnRnE", 4: "DEVICE/nGnRE", 2: "MEM/NORMAL-NC", 0: "MEM/NORMAL", 1: "MEM/NORMAL-TAGGED"}
    kind = kinds.get(entry >> 2 & 7)
    return text + (f" {kind}" if kind else "")


def print_riscv64(entry: int) -> str:
    kinds = ["  ..  ", "MT(NC)", "MT(IO)", "MT(??)"]
    text = f" {'N' if entry >> 63 else '.'} {kinds[entry >> 61 & 3]} "
    text += f"RSW({entry >> 8 & 3})" if entry >> 8 & 3 else "  ..  "
    for bit, word in zip((7, 6, 5, 4, 3, 2, 1, 0), "DAGUXWRV", strict=True):
        text += f" {word if entry >> bit & 1 else '.'}"
    return text


@given(WORD)
def test_words_are_those_of_arm64s_dump(entry: int) -> None:
    text = (
        f"---[ Linear Mapping start ]---\n0xffff000000000000-0x0000000000000000   {256:9d}T PGD{print_arm64(entry)}\n"
    )
    assert parse_ptdump(text, arch_named("arm64")).mappings[0].attrs == arm64_words(entry)


@given(WORD)
def test_words_are_those_of_riscv64s_dump(entry: int) -> None:
    line = f"0xffffffd800000000-0xffffffd800001000    0x0000000080000000         4K PTE{print_riscv64(entry)}\n"
    text = f"---[ Linear mapping ]---\n{line}"
    assert parse_ptdump(text, arch_named("riscv64")).mappings[0].attrs == riscv64_words(entry)


@given(WORD, st.sampled_from(sorted(FORMATS)))
def test_words_depend_on_nothing_but_the_attributes(entry: int, name: str) -> None:
    tables = FORMATS[name]
    assert tables.words(entry) == tables.words(entry & tables.attributes)


def wrong(tables: TableFormat, name: str, entry: int, *, table: bool = False) -> list[str]:
    level = next(level for level in tables.levels if level.name == name)
    return [
        rule.reason
        for rule in (level.table_rules if table else level.leaf_rules)
        if (entry & rule.mask == rule.value if rule.value is not None else entry & rule.mask)
    ]


PAGE = 0x0068_0000_4000_0F03
BLOCK = PAGE & ~2


@pytest.mark.parametrize(
    ("name", "level", "entry", "reasons"),
    [
        ("arm64-4k-48", "PTE", PAGE, []),
        ("arm64-4k-48", "PTE", PAGE & ~1, []),
        ("arm64-4k-48", "PTE", BLOCK, ["not the descriptor of a page"]),
        ("arm64-4k-48", "PMD", BLOCK, []),
        ("arm64-4k-48", "PMD", BLOCK | 1 << 12, ["the output address is not aligned"]),
        ("arm64-4k-48", "PUD", BLOCK | 1 << 21, ["the output address is not aligned"]),
        ("arm64-4k-48", "PTE", PAGE | 1 << 48, ["reserved bits are set"]),
        ("arm64-4k-52", "PTE", PAGE | 1 << 48, []),
        ("arm64-16k-48", "PTE", PAGE | 1 << 12, ["reserved bits are set"]),
        ("arm64-64k-48", "PTE", PAGE | 1 << 12, ["reserved bits are set"]),
        ("arm64-64k-52", "PTE", PAGE | 1 << 12, []),
        ("arm64-64k-52", "PMD", BLOCK | 1 << 16, ["the output address is not aligned"]),
        ("arm64-4k-48", "PTE", PAGE | 1 << 6, ["user mode has access"]),
        ("arm64-4k-48", "PTE", PAGE | 4 << 2, []),
        ("arm64-4k-48", "PTE", PAGE | 5 << 2, ["a memory type that the kernel does not use"]),
        ("arm64-4k-48", "PTE", PAGE | 6 << 2, ["a memory type that the kernel does not use"]),
        ("riscv64-sv48", "PTE", 0x2000_00E7, []),
        ("riscv64-sv48", "PTE", 0x2000_00E6, []),
        ("riscv64-sv48", "PTE", 0x2000_0001, ["not the entry of a page"]),
        ("riscv64-sv48", "PTE", 0x2000_00F7, ["user mode has access"]),
        ("riscv64-sv48", "PTE", 0x2000_00E5, ["writable, but not readable"]),
        ("riscv64-sv48", "PTE", 0x2000_00E7 | 3 << 61, ["a reserved memory type"]),
        ("riscv64-sv48", "PTE", 0x2000_00E7 | 1 << 54, ["reserved bits are set"]),
        ("riscv64-sv48", "PTE", 0x2000_00E7 | 1 << 63 | 8 << 10, []),
        ("riscv64-sv48", "PTE", 0x2000_00E7 | 1 << 63, ["the size of its contiguous group is reserved"]),
        ("riscv64-sv48", "PTE", 0x2000_00E7 | 1 << 63 | 12 << 10, ["the size of its contiguous group is reserved"]),
        ("riscv64-sv48", "PMD", 0x2000_00E7, []),
        ("riscv64-sv48", "PMD", 0x2000_04E7, ["the output address is not aligned"]),
        ("riscv64-sv48", "PMD", 0x2000_00E7 | 1 << 63, ["reserved bits are set"]),
        ("riscv64-sv48", "PGD", 0x2000_00E7, ["the output address is not aligned"]),
    ],
)
def test_rules_of_mappings(name: str, level: str, entry: int, reasons: list[str]) -> None:
    assert wrong(FORMATS[name], level, entry) == reasons


def test_rules_of_tables() -> None:
    arm, risc = FORMATS["arm64-4k-48"], FORMATS["riscv64-sv48"]
    hierarchical = 0x1F << 59
    assert wrong(arm, "PMD", 0x4000_1003 | hierarchical, table=True) == []
    assert wrong(arm, "PMD", 0x4000_1003 | 1 << 49, table=True) == ["reserved bits are set"]
    assert wrong(risc, "PMD", 0x2000_0001 | 1 << 5, table=True) == []
    assert wrong(risc, "PMD", 0x2000_0041, table=True) == ["bits of a mapping are set"]
    assert wrong(risc, "PMD", 0x2000_0001 | 1 << 61, table=True) == ["reserved bits are set"]


@pytest.mark.parametrize("key", sorted(set(arm64_note(48)) - {"OSRELEASE", "NUMBER(TCR_EL1_T1SZ)"}))
def test_a_key_that_arm64_needs(key: str) -> None:
    note = arm64_note(48)
    del note[key]
    with pytest.raises(KeyError, match=key.replace("(", r"\(").replace(")", r"\)")):
        arm64_tables(note, 4 * KIB)


def test_without_t1sz_all_configured_bits_are_used() -> None:
    note = arm64_note(48)
    del note["NUMBER(TCR_EL1_T1SZ)"]
    assert arm64_tables(note, 4 * KIB).va_bits == 48


@pytest.mark.parametrize(
    ("note", "page", "why"),
    [
        (arm64_note(48), 8192, "invalid page size for arm64: 8192 bytes"),
        (arm64_note(48, 52), 4096, "52 bits of virtual addresses where the kernel has 48"),
        (arm64_note(60), 4096, "60 bits of virtual addresses where the kernel has 60"),
        (arm64_note(48, root=BASE + 8), 4096, "invalid physical address of the kernel's root table: 0x40000008"),
        (arm64_note(48, root=-4096), 4096, "invalid physical address of the kernel's root table: -0x1000"),
    ],
)
def test_an_arm64_note_that_no_kernel_writes(note: dict[str, str], page: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        arm64_tables(note, page)


@pytest.mark.parametrize("key", sorted(set(riscv64_note(48)) - {"OSRELEASE"}))
def test_a_key_that_riscv64_needs(key: str) -> None:
    note = riscv64_note(48)
    del note[key]
    with pytest.raises(KeyError, match=key.replace("(", r"\(").replace(")", r"\)")):
        riscv64_tables(note, 4 * KIB)


@pytest.mark.parametrize(
    ("note", "page", "why"),
    [
        (riscv64_note(48), 65536, "invalid page size for riscv64: 65536 bytes"),
        (riscv64_note(32), 4096, "riscv64 has no paging mode of 32 bits"),
        (riscv64_note(48, root=BASE + 8), 4096, "invalid physical address of the kernel's root table: 0x40000008"),
        (riscv64_note(48, root=-4096), 4096, "invalid physical address of the kernel's root table: 0xfffffffffffff000"),
    ],
)
def test_a_riscv64_note_that_no_kernel_writes(note: dict[str, str], page: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        riscv64_tables(note, page)


def test_names_of_folded_levels() -> None:
    assert [" ".join(level_names(count)) for count in range(2, 6)] == [
        "PGD PTE",
        "PGD PMD PTE",
        "PGD PUD PMD PTE",
        "PGD P4D PUD PMD PTE",
    ]


LINEAR = TOP - (1 << 48)
MARKERS = [(LINEAR, "linear"), (LINEAR + TIB, "vmalloc"), (LINEAR + 2 * TIB, "fixmap"), (LINEAR + 2 * TIB, "end")]


def run(offset: int, size: int, physical: int, level: str = "PTE", *attrs: str) -> HostMapping:
    return HostMapping(AddrRange.sized(LINEAR + offset, size), physical, level, attrs or ("RW",))


def joined(*runs: HostMapping, markers: list[tuple[int, str]] | None = None) -> list[Mapping]:
    return list(coalesce(runs, FORMATS["arm64-4k-48"], MARKERS if markers is None else markers))


def shown(offset: int, size: int, level: str, region: str, *attrs: str) -> Mapping:
    return Mapping(AddrRange.sized(LINEAR + offset, size), level, attrs or ("RW",), region)


def test_runs_join_wherever_they_lead() -> None:
    assert joined(run(0, 4096, 0), run(4096, 8192, 1 << 40)) == [shown(0, 12288, "PTE", "linear")]


def test_runs_do_not_join_across_holes_levels_and_attributes() -> None:
    runs = [
        run(0, 4096, 0),
        run(8192, 2 * MIB - 8192, 0),
        run(2 * MIB, 2 * MIB, 0, "PMD"),
        run(4 * MIB, 2 * MIB, 0, "PMD", "ro"),
    ]
    assert joined(*runs) == [
        shown(0, 4096, "PTE", "linear"),
        shown(8192, 2 * MIB - 8192, "PTE", "linear"),
        shown(2 * MIB, 2 * MIB, "PMD", "linear"),
        shown(4 * MIB, 2 * MIB, "PMD", "linear", "ro"),
    ]


def test_a_marker_ends_a_run_at_the_next_entry() -> None:
    assert joined(run(TIB - GIB, 2 * GIB, 0)) == [
        shown(TIB - GIB, GIB, "PTE", "linear"),
        shown(TIB, GIB, "PTE", "vmalloc"),
    ]
    markers = [(LINEAR, "linear"), (LINEAR + 3 * MIB, "middle of a block")]
    assert joined(run(0, 8 * MIB, 0, "PMD"), markers=markers) == [
        shown(0, 4 * MIB, "PMD", "linear"),
        shown(4 * MIB, 4 * MIB, "PMD", "middle of a block"),
    ]
    assert joined(run(0, 4 * MIB, 0, "PMD"), run(4 * MIB, 4096, 0), markers=markers) == [
        shown(0, 4 * MIB, "PMD", "linear"),
        shown(4 * MIB, 4096, "PTE", "middle of a block"),
    ]


def test_the_last_of_several_markers_counts() -> None:
    assert joined(run(2 * TIB, 4096, 0)) == [shown(2 * TIB, 4096, "PTE", "end")]


def test_below_the_first_marker_and_below_the_dump() -> None:
    user = HostMapping(AddrRange(0x1000, 0x2000), 0, "PTE", ("RW",))
    assert joined(user, run(0, 4096, 0), markers=[(LINEAR + GIB, "late")]) == [shown(0, 4096, "PTE", "late")]
    assert joined(run(0, 4096, 0), markers=[]) == [shown(0, 4096, "PTE", "")]
