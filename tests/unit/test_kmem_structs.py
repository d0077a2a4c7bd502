# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmem_sparse_guest import (
    BASE,
    CONFIG,
    EARLY,
    FIXTURES,
    MAPPED,
    ONLINE,
    PRESENT,
    VMEMMAP,
    RecordedGuest,
    SparseGuest,
    virtual,
)
from test_kmem_btf import Writer

from harness.arch.config_queries import Build
from harness.kmem.address import direct_map
from harness.kmem.btf import Btf
from harness.kmem.physical_memory import OutsideMemory, PhysicalMemory
from harness.kmem.structs import BitField, BootedMemory, PageLayout, SparseLayout, UsagePlace, sparse_layout
from harness.state import NotObserved
from harness.units import GIB, MIB, AddrRange

ALL_BOOT = PRESENT | MAPPED | ONLINE | EARLY


@pytest.fixture
def guest(tmp_path: Path) -> SparseGuest:
    guest = SparseGuest(tmp_path / "ram")
    guest.boot()
    return guest


def find(
    guest: SparseGuest,
    note: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = CONFIG,
    btf: Btf | None = None,
    ram: tuple[AddrRange, ...] | None = None,
) -> SparseLayout | NotObserved:
    with guest.memory() as memory:
        return sparse_layout(
            guest.note() if note is None else note,
            guest.kernel(),
            subsection_size=2 * MIB,
            build=Build(config),
            btf=btf,
            evidence=BootedMemory(memory, guest.direct(), guest.ram if ram is None else ram),
        )


def layout_of(found: SparseLayout | NotObserved) -> SparseLayout:
    assert isinstance(found, SparseLayout), found
    return found


def reason(found: object) -> str:
    assert isinstance(found, NotObserved), found
    return found.reason


def test_by_note_configuration_and_evidence(guest: SparseGuest) -> None:
    layout = layout_of(find(guest))
    assert (layout.array.address, layout.array.extreme) == (virtual(guest.array), True)
    assert (layout.array.roots, layout.array.per_root, layout.array.entry_size) == (32, 256, 16)
    assert (layout.section_size, layout.subsections, layout.map_offset) == (128 * MIB, 64, 0)
    assert layout.flags == ("present", "has-mem-map", "online", "early", "zone-device")
    assert layout.usage == UsagePlace(8, 16)
    assert layout.page == PageLayout(
        vmemmap=VMEMMAP,
        size=64,
        flags=0,
        refcount=52,
        node=BitField(62, 2),
        zone=BitField(60, 2),
        zones=("DMA32", "Normal", "Movable", "Device"),
    )


@given(
    page_size=st.sampled_from([(4096, 27), (16384, 27), (65536, 29)]),
    entry_size=st.sampled_from([16, 32]),
    pointer=st.sampled_from([8, 16, 24]),
    bitmap=st.sampled_from([0, 8, 16, 24, 32]),
    extreme=st.booleans(),
)
def test_the_evidence_shows_where_the_bitmap_is(
    page_size: tuple[int, int],
    entry_size: int,
    pointer: int,
    bitmap: int,
    extreme: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    guest = SparseGuest(
        tmp_path_factory.mktemp("probe") / "ram",
        page_size=page_size[0],
        section_bits=page_size[1],
        entry_size=entry_size,
        pointer=pointer if pointer < entry_size else 8,
        bitmap=bitmap,
        extreme=extreme,
        size=2 * GIB,
    )
    guest.boot()
    layout = layout_of(find(guest))
    assert layout.usage == UsagePlace(guest.pointer, bitmap)
    assert layout.array.extreme == extreme and layout.subsections == guest.subsections


def test_other_words_of_an_entry_do_not_confuse(tmp_path: Path) -> None:
    """CONFIG_PAGE_EXTENSION adds page_ext, also a pointer into the linear map, and padding."""
    guest = SparseGuest(tmp_path / "ram", entry_size=32)
    for number in guest.boot():
        guest.put(guest.entry(number) + 16, virtual(BASE + 8 * MIB))
    assert layout_of(find(guest)).usage == UsagePlace(8, 16)


def test_a_few_odd_sections_do_not_confuse(guest: SparseGuest) -> None:
    first, second, third, *_ = guest.usages
    guest.put(guest.usages[first] + 16, 0xFFFF_FFFF_FFFF_FFF0)
    guest.put(guest.entry(second) + 8, 0x1234_5678)
    guest.put(guest.entry(third) + 8, virtual(BASE + 64 * GIB))
    assert layout_of(find(guest)).usage == UsagePlace(8, 16)


def test_evidence_that_shows_nothing(guest: SparseGuest) -> None:
    partly = (AddrRange(BASE + 2 * MIB, BASE + 200 * MIB),)
    assert "no section lies wholly in boot RAM" in reason(layout_of(find(guest, ram=partly)).usage)
    for usage in list(guest.usages.values())[:4]:
        guest.put(usage + 16, 0x7FFF_FFFF_FFFF_FFFF)
    assert reason(layout_of(find(guest)).usage) == (
        "of 8 whole sections of boot RAM these have all sub-sections, by place of the bitmap: 4 at 16 behind 8"
    )
    for usage in guest.usages.values():
        guest.put(usage + 16, 0)
    assert reason(layout_of(find(guest)).usage).endswith("by place of the bitmap: none")


def test_evidence_for_two_places_is_for_none(guest: SparseGuest) -> None:
    guest.put(next(iter(guest.usages.values())) + 24, (1 << 64) - 1)
    found = reason(layout_of(find(guest)).usage)
    assert found.endswith("by place of the bitmap: 8 at 16 behind 8, 1 at 24 behind 8")


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({}, ()),
        ({"ZONE_DEVICE": "y"}, ("zone-device",)),
        ({"SPARSEMEM_VMEMMAP_PREINIT": "y"}, ("vmemmap-preinit",)),
        ({"ZONE_DEVICE": "y", "SPARSEMEM_VMEMMAP_PREINIT": "y"}, ("zone-device", "vmemmap-preinit")),
    ],
)
def test_flags_by_configuration(guest: SparseGuest, config: dict[str, str], flags: tuple[str, ...]) -> None:
    layout = layout_of(find(guest, config={"SPARSEMEM_VMEMMAP": "y", **config}))
    assert layout.flags == ("present", "has-mem-map", "online", "early", *flags)


def test_without_vmemmap_there_are_no_subsections(guest: SparseGuest) -> None:
    layout = layout_of(find(guest, config={"ZONE_DEVICE": "y"}))
    assert reason(layout.usage) == "the kernel keeps no sub-sections (no CONFIG_SPARSEMEM_VMEMMAP)"
    assert "page flags do not always hold the node" in reason(layout.page)
    assert layout.array.roots == 32


@pytest.mark.parametrize("shift", ["", "11", "many", "-1", "999999"])
def test_nodes_that_nobody_tells(guest: SparseGuest, shift: str) -> None:
    layout = layout_of(find(guest, config=CONFIG | {"NODES_SHIFT": shift}))
    assert reason(layout.page) == "the kernel's maximum number of nodes is unknown"
    assert not isinstance(layout.usage, NotObserved)


def test_without_numa_the_zone_comes_first(guest: SparseGuest) -> None:
    page = layout_of(find(guest, config={"SPARSEMEM_VMEMMAP": "y", "ZONE_DMA": "y"})).page
    assert isinstance(page, PageLayout)
    assert (page.node, page.zone, page.zones) == (BitField(64, 0), BitField(62, 2), ("DMA", "Normal", "Movable"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"NUMBER(SECTION_SIZE_BITS)": None}, "the vmcoreinfo note has no NUMBER(SECTION_SIZE_BITS)"),
        ({"NUMBER(MAX_PHYSMEM_BITS)": "27"}, "the vmcoreinfo note has sections of 27 bits in a memory of 27"),
        ({"NUMBER(SECTION_SIZE_BITS)": "20"}, "the vmcoreinfo note has sections of 20 bits in a memory of 40"),
        ({"NUMBER(MAX_PHYSMEM_BITS)": "64"}, "the vmcoreinfo note has NUMBER(MAX_PHYSMEM_BITS)=64"),
        ({"SYMBOL(mem_section)": "mem"}, "the vmcoreinfo note has SYMBOL(mem_section)=mem"),
        (
            {"SIZE(mem_section)": "24"},
            "the vmcoreinfo note has a struct mem_section of 24 bytes, which is not a power of two",
        ),
        ({"SIZE(mem_section)": "8192"}, "the vmcoreinfo note has SIZE(mem_section)=8192"),
        ({"LENGTH(mem_section)": "33"}, "the vmcoreinfo note has 33 roots of mem_section, which fits neither kind"),
        ({"LENGTH(mem_section)": "-1"}, "the vmcoreinfo note has LENGTH(mem_section)=-1"),
        ({"OFFSET(mem_section.section_mem_map)": "4"}, "has OFFSET(mem_section.section_mem_map)=4"),
        ({"OFFSET(mem_section.section_mem_map)": "16"}, "has OFFSET(mem_section.section_mem_map)=16"),
    ],
)
def test_a_note_that_does_not_do(guest: SparseGuest, change: dict[str, str | None], why: str) -> None:
    note = {key: value for key, value in (guest.note() | change).items() if value is not None}
    assert why in reason(find(guest, note=note))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"SIZE(page)": None}, "the vmcoreinfo note has no SIZE(page)"),
        ({"OFFSET(page.flags)": "3"}, "the vmcoreinfo note has OFFSET(page.flags)=3"),
        ({"OFFSET(page._refcount)": "64"}, "the vmcoreinfo note has OFFSET(page._refcount)=64"),
    ],
)
def test_a_note_without_struct_page_still_has_sections(
    guest: SparseGuest, change: dict[str, str | None], why: str
) -> None:
    note = {key: value for key, value in (guest.note() | change).items() if value is not None}
    layout = layout_of(find(guest, note=note))
    assert reason(layout.page) == why and layout.usage == UsagePlace(8, 16)


def test_neither_btf_nor_configuration(guest: SparseGuest) -> None:
    assert "neither BTF nor a configuration" in reason(find(guest, config=None))


def test_an_array_outside_of_memory(guest: SparseGuest) -> None:
    note = guest.note() | {"SYMBOL(mem_section)": f"{virtual(BASE + 64 * GIB):x}"}
    with pytest.raises(OutsideMemory):
        find(guest, note=note)


def kernel_btf(
    *,
    bits: tuple[str, ...] = ("SECTION_MARKED_PRESENT_BIT", "SECTION_IS_ONLINE_BIT", "SECTION_IS_NEW_THING_BIT"),
    zones: tuple[str, ...] = ("ZONE_NORMAL", "ZONE_MOVABLE", "ZONE_FAR_AWAY"),
    nodes: int = 8,
    entry_size: int = 16,
    words: int = 1,
    pointer: int = 64,
    usage: bool = True,
    last: int = 0,
) -> Btf:
    writer = Writer()
    long = writer.int()
    reference = writer.add(2, "", 0)
    writer.struct("mem_section", entry_size, ("section_mem_map", long, 0), ("usage", reference, pointer))
    bitmap = writer.array(long, words)
    members = (("rcu", writer.array(long, 4), 0), ("subsection_map", bitmap, 256)) if usage else ()
    writer.struct("mem_section_usage", 40 if usage else 0, *members)
    places = writer.array(writer.struct("zoneref", 16), nodes * len(zones) + 1)
    writer.struct("zonelist", 16, ("_zonerefs", places, 0))
    writer.enum("", *((name, value) for value, name in enumerate(bits)), ("SECTION_MAP_LAST_BIT", last or len(bits)))
    writer.enum("zone_type", *((name, value) for value, name in enumerate(zones)), ("__MAX_NR_ZONES", len(zones)))
    return Btf(writer.blob())


def test_btf_is_believed_before_all(guest: SparseGuest) -> None:
    layout = layout_of(find(guest, config=None, btf=kernel_btf()))
    assert layout.usage == UsagePlace(8, 32)
    assert layout.flags == ("present", "online", "new-thing")
    assert isinstance(layout.page, PageLayout)
    assert layout.page.zones == ("Normal", "Movable", "far-away")
    assert (layout.page.node, layout.page.zone) == (BitField(61, 3), BitField(59, 2))
    assert find(guest, btf=kernel_btf()) == layout


def test_btf_of_a_kernel_without_vmemmap(guest: SparseGuest) -> None:
    layout = layout_of(find(guest, btf=kernel_btf(usage=False)))
    assert "keeps no sub-sections" in reason(layout.usage) and isinstance(layout.page, NotObserved)


def test_btf_that_does_not_do(guest: SparseGuest) -> None:
    assert reason(find(guest, btf=kernel_btf(entry_size=32))) == (
        "the BTF is not that of the running kernel: SIZE(mem_section) is 32 in the BTF, 16 in the kernel"
    )
    assert "SECTION_MAP_LAST_BIT" in reason(find(guest, btf=Btf(Writer().blob())))
    assert reason(find(guest, btf=kernel_btf(last=9))) == (
        "the kernel's enum that ends with SECTION_MAP_LAST_BIT does not count up from 0"
    )
    for nodes in (3, 2048):
        assert "maximum number of nodes" in reason(layout_of(find(guest, btf=kernel_btf(nodes=nodes))).page)
    odd = kernel_btf(words=2)
    assert reason(layout_of(find(guest, btf=odd)).usage) == (
        "the kernel's BTF has 16 bytes of bitmap for 64 sub-sections"
    )
    for pointer in (32, 128):
        found = layout_of(find(guest, btf=kernel_btf(pointer=pointer)))
        assert reason(found.usage) == "the kernel's BTF has no pointer from mem_section to its usage"


@pytest.mark.parametrize("name", ["sparse-arm64/built.json", "sparse-arm64/debian.json", "sparse-riscv64/built.json"])
def test_real_guests(name: str, tmp_path: Path) -> None:
    guest = RecordedGuest(name, tmp_path)

    def found(btf: Btf | None) -> SparseLayout | NotObserved:
        with PhysicalMemory(guest.regions) as memory:
            return sparse_layout(
                guest.note,
                guest.kernel,
                subsection_size=guest.arch.subsection_size,
                build=Build(guest.config),
                btf=btf,
                evidence=BootedMemory(memory, direct_map(guest.kernel), guest.ram),
            )

    layout = layout_of(found(None))
    assert layout.usage == UsagePlace(8, 16)
    assert layout.array.entry_size == (32 if guest.config.get("PAGE_EXTENSION") == "y" else 16)
    debians = Btf((FIXTURES / name).with_name("debian.btf").read_bytes())
    if "debian" in name:
        assert found(debians) == layout
    else:
        assert "the BTF is not that of the running kernel" in reason(found(debians))
