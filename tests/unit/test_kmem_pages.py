# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmem_sparse_guest import BASE, VMEMMAP, RecordedGuest, SparseGuest

from harness.kmem.address import PageMap
from harness.kmem.pages import read_struct_pages
from harness.kmem.physical_memory import PhysicalMemory
from harness.kmem.structs import PageLayout
from harness.state import HostMapping, NotObserved, StructPage
from harness.units import KIB, MIB, AddrRange

MEMMAP = BASE + 16 * MIB


@pytest.fixture
def guest(tmp_path: Path) -> SparseGuest:
    guest = SparseGuest(tmp_path / "ram")
    guest.boot()
    return guest


def page_layout(guest: SparseGuest, **config: str) -> PageLayout:
    found = guest.layout(**config).page
    assert isinstance(found, PageLayout)
    return found


def vmemmap(pages: int = 64 * KIB // 64) -> PageMap:
    """The struct pages from pfn 0 on, at MEMMAP."""
    return PageMap([HostMapping(AddrRange.sized(VMEMMAP, pages * 64), MEMMAP, "PTE", ())])


def put(guest: SparseGuest, pfn: int, flags: int, refcount: int) -> None:
    guest.put(MEMMAP + pfn * 64, flags)
    guest.put(MEMMAP + pfn * 64 + 48, (refcount % (1 << 32)) << 32 | 0xFFFFFFFF)


@given(
    shift=st.integers(0, 10),
    extra=st.sets(st.sampled_from(["ZONE_DMA", "ZONE_DMA32", "ZONE_DEVICE"])),
    data=st.data(),
)
def test_node_and_zone_are_at_the_top_of_the_flags(
    shift: int, extra: set[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guest = SparseGuest(tmp_path_factory.mktemp("pages") / "ram")
    guest.boot()
    options = {name: "y" if name in extra else "n" for name in ("ZONE_DMA", "ZONE_DMA32", "ZONE_DEVICE")}
    layout = page_layout(guest, NODES_SHIFT=str(shift), **options)
    zones = [name for name, option in (("DMA", "ZONE_DMA"), ("DMA32", "ZONE_DMA32")) if option in extra]
    zones += ["Normal", "Movable", *(["Device"] if "ZONE_DEVICE" in extra else [])]
    assert layout.zones == tuple(zones)
    width = {2: 1, 3: 2, 4: 2, 5: 3}[len(zones)]
    wanted = []
    for pfn in data.draw(st.lists(st.integers(0, 1000), unique=True, max_size=10)):
        node, zone = data.draw(st.integers(0, (1 << shift) - 1)), data.draw(st.integers(0, len(zones) - 1))
        flags = node << 64 - shift | zone << 64 - shift - width | data.draw(st.integers(0, (1 << 40) - 1))
        refcount = data.draw(st.integers(-(1 << 31), (1 << 31) - 1))
        put(guest, pfn, flags, refcount)
        wanted.append(StructPage(pfn, flags, refcount, node, zones[zone]))
    with guest.memory() as memory:
        assert read_struct_pages(memory, layout, vmemmap(), [page.pfn for page in wanted]) == tuple(wanted)


def test_what_is_not_there_is_not_observed(guest: SparseGuest) -> None:
    put(guest, 1, 3 << 60, 1)
    put(guest, 2, (1 << 64) - 1, -1)
    mappings = PageMap(
        [
            HostMapping(AddrRange.sized(VMEMMAP, 192), MEMMAP, "PTE", ()),
            HostMapping(AddrRange.sized(VMEMMAP + 4096, 4096), 0x1000, "PTE", ()),
        ]
    )
    with guest.memory() as memory:
        found = read_struct_pages(memory, page_layout(guest), mappings, [1, 2, 3, 64, 1 << 30])
    assert found[0] == StructPage(1, 3 << 60, 1, 0, "Device")
    assert found[1:] == (
        NotObserved("the struct page of pfn 0x2 is poisoned: it was never initialised"),
        NotObserved("the struct page of pfn 0x3, at 0xfffffc00000000c0, is not mapped to memory"),
        NotObserved("the struct page of pfn 0x40, at 0xfffffc0000001000, is not mapped to memory"),
        NotObserved("the struct page of pfn 0x40000000, at 0xfffffc1000000000, is not mapped to memory"),
    )


def test_a_zone_that_the_kernel_does_not_have(guest: SparseGuest) -> None:
    put(guest, 0, 7 << 59, 0)
    layout = page_layout(guest, NODES_SHIFT="2", ZONE_DMA="y")
    with guest.memory() as memory:
        [page] = read_struct_pages(memory, layout, vmemmap(), [0])
    assert page == StructPage(0, 7 << 59, 0, 0, "zone-7")


def test_no_pages_at_all(guest: SparseGuest) -> None:
    with guest.memory() as memory:
        assert read_struct_pages(memory, page_layout(guest), vmemmap(), []) == ()


@pytest.mark.parametrize("name", ["sparse-arm64/built.json", "sparse-arm64/debian.json", "sparse-riscv64/built.json"])
def test_struct_pages_of_real_guests(name: str, tmp_path: Path) -> None:
    guest = RecordedGuest(name, tmp_path)
    with PhysicalMemory(guest.regions) as memory:
        layout = guest.sparse_layout(memory)
        assert not isinstance(layout, NotObserved) and not isinstance(layout.page, NotObserved)
        pfns = [int(pfn, 16) for pfn, _ in guest.data["pages"]]
        found = read_struct_pages(memory, layout.page, PageMap(guest.mappings()), pfns)
    seen = [
        None if isinstance(page, NotObserved) else [hex(page.flags), page.refcount, page.node, page.zone]
        for page in found
    ]
    poison = [hex((1 << 64) - 1), -1]
    assert seen == [None if page is None or page[:2] == poison else page for _, page in guest.data["pages"]]
