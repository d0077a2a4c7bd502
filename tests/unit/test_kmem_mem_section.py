# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmem_sparse_guest import (
    BASE,
    DEVICE,
    EARLY,
    MAPPED,
    ONLINE,
    PRESENT,
    VMEMMAP,
    RecordedGuest,
    SparseGuest,
    virtual,
)

from harness.kmem import _sparse_entries, mem_section
from harness.kmem.address import Untranslated, direct_map
from harness.kmem.mem_section import Sections, copy_sections, decode_sections, find_roots
from harness.kmem.physical_memory import OutsideMemory, PhysicalMemory
from harness.kmem.structs import SparseLayout
from harness.state import NotObserved, Section, SectionFault
from harness.units import GIB, MIB

ALL = (1 << 64) - 1
BOOT = ("present", "has-mem-map", "online", "early")


@pytest.fixture
def guest(tmp_path: Path) -> SparseGuest:
    guest = SparseGuest(tmp_path / "ram")
    guest.boot()
    return guest


def read(guest: SparseGuest, layout: SparseLayout | None = None) -> Sections:
    with guest.memory() as memory:
        return decode_sections(copy_sections(memory, guest.direct(), layout or guest.layout()))


def section(guest: SparseGuest, number: int, flags: tuple[str, ...], bits: int | None) -> Section:
    usage = guest.usages.get(number)
    return Section(number, flags, VMEMMAP, virtual(usage) if usage else 0, bits)


def test_boot_sections(guest: SparseGuest) -> None:
    found = read(guest)
    assert found.faults == ()
    assert found.sections == tuple(section(guest, number, BOOT, ALL) for number in range(16, 24))


@given(data=st.data())
def test_any_sections(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    guest = SparseGuest(
        tmp_path_factory.mktemp("any") / "ram",
        section_bits=data.draw(st.sampled_from([27, 29])),
        entry_size=data.draw(st.sampled_from([16, 32])),
        bitmap=data.draw(st.sampled_from([0, 16])),
        extreme=data.draw(st.booleans()),
        size=2 * GIB,
    )
    early = guest.boot()
    layout = guest.layout()
    names = {PRESENT: "present", MAPPED: "has-mem-map", ONLINE: "online", EARLY: "early", DEVICE: "zone-device"}
    wanted = {number: section(guest, number, BOOT, (1 << guest.subsections) - 1) for number in early}
    for number in data.draw(st.lists(st.integers(0, (1 << 40 - guest.section_bits) - 1), unique=True, max_size=8)):
        flags = data.draw(st.integers(0, 31))
        bits = data.draw(st.none() | st.integers(0, (1 << guest.subsections) - 1))
        guest.usages.pop(number, None)
        guest.add(number, flags, bits)
        wanted[number] = section(guest, number, tuple(word for bit, word in names.items() if flags & bit), bits)
    found = read(guest, layout)
    assert found.faults == ()
    assert found.sections == tuple(wanted[number] for number in sorted(wanted))


def test_entries_that_removal_leaves(guest: SparseGuest) -> None:
    """A hot-added section leaves nothing, an early one leaves its usage (section_deactivate, mm/sparse-vmemmap.c)."""
    guest.add(40, 0, None)
    guest.put(guest.entry(40), 0)
    guest.put(guest.entry(20), 0)
    guest.put(guest.usages[20] + 16, 0)
    found = {one.number: one for one in read(guest).sections}
    assert 40 not in found
    assert found[20] == Section(20, (), 0, virtual(guest.usages[20]), 0)


def test_bits_that_have_no_name(guest: SparseGuest) -> None:
    guest.put(guest.entry(16), VMEMMAP | PRESENT | 1 << 5 | 1 << 11)
    guest.put(guest.entry(17), VMEMMAP + 4096 | PRESENT)
    first, second, *_ = read(guest).sections
    assert (first.flags, first.mem_map) == (("present", "bit-5", "bit-11"), VMEMMAP)
    assert (second.flags, second.mem_map) == (("present",), VMEMMAP + 4096)


@pytest.mark.parametrize(
    ("pointer", "why"),
    [
        (virtual(BASE) + 4, "a pointer to mem_section_usage that is not aligned"),
        (0x1000, "a pointer to mem_section_usage that is not in the linear map"),
        (ALL - 7, "a pointer to mem_section_usage that is not in the linear map"),
        (virtual(BASE + 2 * GIB), "a pointer to mem_section_usage outside of memory"),
        (virtual(BASE + GIB) - 8, "a pointer to mem_section_usage outside of memory"),
    ],
)
def test_a_usage_that_cannot_be_read_costs_one_section(guest: SparseGuest, pointer: int, why: str) -> None:
    layout = guest.layout()
    guest.put(guest.entry(18) + 8, pointer)
    found = read(guest, layout)
    assert found.faults == (SectionFault(18, 1, pointer, why),)
    assert found.sections[2] == Section(18, BOOT, VMEMMAP, pointer, None)
    assert [one.subsections for one in found.sections if one.number != 18] == [ALL] * 7


def test_a_usage_of_two_sections(guest: SparseGuest) -> None:
    pointer = virtual(guest.usages[16])
    guest.put(guest.entry(23) + 8, pointer)
    guest.put(guest.entry(19) + 8, pointer)
    faults = read(guest).faults
    assert faults == (
        SectionFault(19, 1, pointer, "shares its mem_section_usage with section 16"),
        SectionFault(23, 1, pointer, "shares its mem_section_usage with section 19"),
    )


@pytest.mark.parametrize(
    ("pointer", "why"),
    [
        (virtual(BASE + MIB) + 4, "a pointer to entries that is not aligned"),
        (0xDEAD_0000, "a pointer to entries that is not in the linear map"),
        (virtual(BASE + 2 * GIB), "a pointer to entries outside of memory"),
        (virtual(BASE + GIB) - 2048, "a pointer to entries outside of memory"),
    ],
)
def test_a_root_that_cannot_be_followed_costs_its_sections(guest: SparseGuest, pointer: int, why: str) -> None:
    layout = guest.layout()
    guest.put(guest.root(3), pointer)
    found = read(guest, layout)
    assert found.faults == (SectionFault(768, 256, pointer, why),)
    assert len(found.sections) == 8


def test_no_root_that_can_be_followed(guest: SparseGuest) -> None:
    layout = guest.layout()
    guest.put(guest.root(0), 0x1000)
    found = read(guest, layout)
    assert found.sections == ()
    assert found.faults == (SectionFault(0, 256, 0x1000, "a pointer to entries that is not in the linear map"),)
    guest.put(guest.root(0), 0)
    assert read(guest, layout) == Sections((), ())


def test_two_roots_with_one_page(guest: SparseGuest) -> None:
    guest.put(guest.root(5), virtual(guest.pages[0]))
    found = read(guest)
    assert found.faults == (
        SectionFault(1280, 256, virtual(guest.pages[0]), "a page of entries that another root points to, too"),
    )
    assert [one.number for one in found.sections] == list(range(16, 24))


def test_garbage_all_over(guest: SparseGuest) -> None:
    layout = guest.layout()
    rng = np.random.default_rng(7)
    guest.write(guest.array, rng.bytes(32 * 8))
    guest.put(guest.root(0), virtual(guest.pages[0]))
    guest.write(guest.pages[0], rng.bytes(4096))
    found = read(guest, layout)
    assert len(found.sections) == 256 and len(found.faults) == 31 + 256
    assert all(one.subsections is None for one in found.sections)


def test_what_nobody_has_is_not_read(guest: SparseGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = guest.layout()
    for number in (300, 600, 900):
        guest.add(number, PRESENT, None)
    monkeypatch.setattr(_sparse_entries, "MAX_ROOTS", 2)
    found = read(guest, layout)
    assert [one.number for one in found.sections] == [*range(16, 24), 300]
    [fault] = found.faults
    assert (fault.first, fault.count) == (512, 512)
    assert fault.reason == "2 more roots than any machine has; they were not read"
    monkeypatch.setattr(_sparse_entries, "MAX_ROOTS", 100)
    monkeypatch.setattr(_sparse_entries, "MAX_SECTIONS", 7)
    found = read(guest, layout)
    assert [one.number for one in found.sections] == list(range(16, 23))
    assert found.faults == (
        SectionFault(23, 4, layout.array.address, "4 more sections than any machine has; they were not read"),
    )


def test_faults_are_told_up_to_a_number(guest: SparseGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = guest.layout()
    for number in range(16, 24):
        guest.put(guest.entry(number) + 8, 0x1000)
    monkeypatch.setattr(mem_section, "MAX_FAULTS", 3)
    found = read(guest, layout)
    assert [fault.first for fault in found.faults] == [16, 17, 18] and len(found.sections) == 8


def test_a_root_that_came_after_the_search(guest: SparseGuest) -> None:
    layout = guest.layout()
    guest.size = 40 * GIB
    with guest.path.open("r+b") as file:
        file.truncate(guest.size)
    with guest.memory() as memory:
        roots = find_roots(memory, guest.direct(), layout.array)
        assert roots.tolist() == [0]
        guest.add(300, PRESENT, 1)
        guest.add(1000, PRESENT, 1)
        image = copy_sections(memory, guest.direct(), layout, roots)
        assert [one.number for one in decode_sections(image).sections] == [*range(16, 24), 300]
        assert find_roots(memory, guest.direct(), layout.array).tolist() == [0, 1, 3]
        again = copy_sections(memory, guest.direct(), layout)
        assert [one.number for one in decode_sections(again).sections] == [*range(16, 24), 300, 1000]


def test_the_copy_stays_what_it_was(guest: SparseGuest) -> None:
    layout = guest.layout()
    with guest.memory() as memory:
        image = copy_sections(memory, guest.direct(), layout)
        before = decode_sections(image)
        guest.put(guest.entry(16), 0)
        guest.put(guest.usages[17] + 16, 0)
    assert decode_sections(image) == before


def test_millions_of_roots(tmp_path: Path) -> None:
    """riscv64 has 56 bits of physical addresses, which makes 16 MiB of roots."""
    guest = SparseGuest(tmp_path / "ram", memory_bits=56)
    guest.boot()
    guest.add((1 << 29) - 1, PRESENT, 1)
    with guest.memory() as memory:
        assert find_roots(memory, guest.direct(), guest.layout().array).tolist() == [0, (1 << 21) - 1]
    assert [one.number for one in read(guest).sections] == [*range(16, 24), (1 << 29) - 1]


def test_without_subsections(guest: SparseGuest) -> None:
    layout = dataclasses.replace(guest.layout(), usage=NotObserved("none"))
    found = read(guest, layout)
    assert found.faults == ()
    assert found.sections[0] == Section(16, BOOT, VMEMMAP, 0, None)
    flat = dataclasses.replace(layout.array, extreme=False, roots=256, per_root=1)
    with guest.memory() as memory:
        assert find_roots(memory, guest.direct(), flat).tolist() == []


def test_an_array_that_cannot_be_read(guest: SparseGuest) -> None:
    layout = guest.layout()
    for address, error in ((0x1000, Untranslated), (virtual(BASE + 4 * GIB), OutsideMemory)):
        for extreme in (True, False):
            array = dataclasses.replace(layout.array, address=address, extreme=extreme)
            with pytest.raises(error):
                read(guest, dataclasses.replace(layout, array=array))


@pytest.mark.parametrize("name", ["sparse-arm64/built.json", "sparse-arm64/debian.json", "sparse-riscv64/built.json"])
def test_real_guests(name: str, tmp_path: Path) -> None:
    guest = RecordedGuest(name, tmp_path)
    direct = direct_map(guest.kernel)
    with PhysicalMemory(guest.regions) as memory:
        layout = guest.sparse_layout(memory)
        assert isinstance(layout, SparseLayout)
        found = decode_sections(copy_sections(memory, direct, layout, find_roots(memory, direct, layout.array)))
    assert found.faults == ()
    recorded = [
        Section(number, tuple(flags.split(",")), int(mem_map, 16), int(usage, 16), int(bits, 16))
        for number, flags, mem_map, usage, bits in guest.data["sections"]
    ]
    assert list(found.sections) == recorded
    assert {one.mem_map for one in found.sections} == {guest.kernel.vmemmap}
    by_number = {one.number: one for one in found.sections}
    for number in range(guest.ram[0].start >> 27, (guest.ram[-1].end >> 27) + 1):
        assert by_number.pop(number).flags == BOOT
    start, end = (piece >> 21 for piece in guest.data["pmem"])
    for number in range(start >> 6, (end >> 6) + 1):
        one = by_number.pop(number)
        assert "online" not in one.flags and ("zone-device" in one.flags) == (number == end >> 6)
    hot = guest.data["hot"] or (0, 0)
    online = [number for number in range(hot[0] >> 27, hot[1] >> 27) if "online" in by_number.pop(number).flags]
    assert len(online) == (6 if guest.data["hot"] else 0) and not by_number
