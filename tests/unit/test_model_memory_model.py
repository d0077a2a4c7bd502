# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference model, action by action, compared with kernel source and recorded guests."""

from __future__ import annotations

import dataclasses

import model_guest
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_guest import ARM64_4K, BLOCK, FIRST, KINDS, PAGE, Kind

from harness.errors import UnsupportedError, UsageError
from harness.model.actions import Action, SetAutoOnline, SetBlock, Unplug
from harness.model.boot_layout import boot_layout
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.pmem import SetDaxState, SetPmemMode
from harness.model.devices.virtio_mem import PlugVirtioMem, Resize
from harness.model.devices.virtio_pmem import PlugVirtioPmem
from harness.model.memory_model import MemoryModel
from harness.scenarios.record import CODEC
from harness.state import NotObserved, Zone
from harness.units import GIB, MIB, AddrRange

RISCV = KINDS[-1]


def zone(model: MemoryModel, name: str) -> Zone:
    return next(zone for zone in model.expected().zones if zone.name == name)


def test_a_fresh_guest_expects_its_own_boot_state() -> None:
    expected, boot = model_guest.model().expected(), model_guest.boot_state()
    assert expected.blocks == boot.blocks
    assert expected.zones == boot.zones
    assert (expected.devices, expected.iomem, expected.linear, expected.managed_bytes) == ((), (), (), 0)


def test_a_dimm_arrives_offline() -> None:
    model = model_guest.model()
    model.apply(PlugDimm("dimm0", GIB))
    expected = model.expected()
    place = AddrRange.sized(0x8000_0000, GIB)
    assert [(d.id, d.range, d.slot, d.node) for d in expected.devices] == [("dimm0", place, 0, 0)]
    assert [(i.range, i.name) for i in expected.iomem] == [(place, "System RAM")]
    new = expected.blocks[8:]
    assert [block.index for block in new] == list(range(FIRST, FIRST + 8))
    assert {(block.state, block.valid_zones) for block in new} == {("offline", ("Normal", "Movable"))}
    assert expected.managed_bytes == 0
    assert expected.memmap_pages == 8 * BLOCK // PAGE * 64 // PAGE
    assert [(piece.range, piece.pages) for piece in expected.linear] == [(place, "ram")]


def test_onlining_counts_pages_and_moves_spans() -> None:
    model = model_guest.model()
    model.apply(PlugDimm("dimm0", GIB))
    model.apply(SetBlock(FIRST + 2, "online_movable"))
    model.apply(SetBlock(FIRST + 5, "online_movable"))
    pages = BLOCK // PAGE
    assert zone(model, "Movable") == Zone(0, "Movable", 4 * pages, 2 * pages, 2 * pages, (FIRST + 2) * pages)
    model.apply(SetBlock(FIRST + 2, "offline"))
    assert zone(model, "Movable") == Zone(0, "Movable", pages, pages, pages, (FIRST + 5) * pages)
    model.apply(SetBlock(FIRST + 5, "offline"))
    assert zone(model, "Movable") == Zone(0, "Movable", 0, 0, 0, None)


def test_a_hole_in_the_middle_leaves_the_span() -> None:
    model = model_guest.model()
    model.apply(PlugDimm("dimm0", GIB))
    for index in range(FIRST, FIRST + 3):
        model.apply(SetBlock(index, "online_kernel"))
    model.apply(SetBlock(FIRST + 1, "offline"))
    pages = BLOCK // PAGE
    assert zone(model, "Normal") == Zone(0, "Normal", 3 * pages, 2 * pages, 2 * pages, FIRST * pages)


def test_the_default_zone_follows_the_neighbours() -> None:
    model = model_guest.model()
    model.apply(PlugDimm("dimm0", GIB))
    model.apply(SetBlock(FIRST, "online_movable"))
    model.apply(SetBlock(FIRST + 2, "online_movable"))
    block = next(block for block in model.expected().blocks if block.index == FIRST + 1)
    assert block.valid_zones == ("Movable", "Normal")
    model.apply(SetBlock(FIRST + 1, "online"))
    assert zone(model, "Movable").present == 3 * BLOCK // PAGE


def test_slots_and_addresses_are_reused_lowest_first() -> None:
    model = model_guest.model()
    for name in ("a", "b", "c"):
        model.apply(PlugDimm(name, 256 * MIB))
    model.apply(Unplug("b"))
    model.apply(PlugDimm("d", 128 * MIB))
    model.apply(PlugDimm("e", 256 * MIB))
    devices = {device.id: device for device in model.expected().devices}
    assert devices["d"].range.start == 0x9000_0000 and devices["d"].slot == 1
    assert devices["e"].range.start == 0xB000_0000 and devices["e"].slot == 3


def test_a_dimm_the_kernel_cannot_take_changes_nothing() -> None:
    model = model_guest.model()
    before = model.expected()
    model.apply(PlugDimm("dimm0", 64 * MIB, kernel_added=False))
    after = model.expected()
    assert dataclasses.replace(after, devices=()) == before


def test_memmap_on_memory_hosts_the_memmap_in_each_block() -> None:
    model = model_guest.model(parameters={"memory_hotplug.memmap_on_memory": "Y"})
    model.apply(PlugDimm("dimm0", 256 * MIB))
    model.apply(SetBlock(FIRST, "online_movable"))
    movable = zone(model, "Movable")
    assert movable.present - movable.managed == 2 * MIB // PAGE
    assert len(model.expected().linear) == 2


def test_only_a_single_block_could_host_its_memmap_once() -> None:
    model = model_guest.model(release="6.1.176", parameters={"memory_hotplug.memmap_on_memory": "Y"})
    model.apply(PlugDimm("dimm0", 256 * MIB))
    model.apply(PlugDimm("dimm1", BLOCK))
    assert [(piece.owner, piece.altmap is not None) for piece in model.expected().linear] == [
        ("dimm0", False),
        ("dimm1", True),
    ]


def test_virtio_mem_grows_by_blocks_and_sub_blocks() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioMem("vm0", 4 * GIB, 2 * MIB, 0, 0, "rp0"))
    model.apply(SetAutoOnline("online_movable"))
    model.apply(Resize("vm0", 3 * BLOCK + 2 * MIB))
    expected = model.expected()
    assert expected.devices[0].size == 3 * BLOCK + 2 * MIB
    assert expected.managed_bytes == 3 * BLOCK + 2 * MIB
    assert zone(model, "Movable").present == 4 * BLOCK // PAGE
    assert [entry.name for entry in expected.iomem] == ["virtio2", "System RAM (virtio_mem)"]
    assert expected.iomem[1].range.size == 4 * BLOCK


def test_virtio_mem_gives_offline_blocks_back_first() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioMem("vm0", 4 * GIB, 2 * MIB))
    model.apply(Resize("vm0", 4 * BLOCK))
    for index in (FIRST, FIRST + 2, FIRST + 3):
        model.apply(SetBlock(index, "online_movable"))
    model.apply(Resize("vm0", 3 * BLOCK))
    assert model.blocks_of("vm0") == (FIRST, FIRST + 2, FIRST + 3)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 2 * 1024), min_size=1, max_size=8), policy=st.sampled_from(["online_movable"]))
def test_virtio_mem_is_always_a_prefix_and_comes_back_to_nothing(sizes: list[int], policy: str) -> None:
    model = model_guest.model()
    fresh = model.expected()
    model.apply(SetAutoOnline(policy))
    model.apply(PlugVirtioMem("vm0", 4 * GIB, 2 * MIB))
    for size in sizes:
        model.apply(Resize("vm0", size * 2 * MIB))
        expected = model.expected()
        assert expected.devices[0].size == size * 2 * MIB == expected.managed_bytes
        assert model.blocks_of("vm0") == tuple(range(FIRST, FIRST + -(-size * 2 * MIB // BLOCK)))
    model.apply(Unplug("vm0"))
    model.apply(SetAutoOnline("offline"))
    assert dataclasses.replace(model.expected(), once=()) == fresh


def test_pmem_follows_its_drivers() -> None:
    model = model_guest.model()
    model.apply(PlugVirtioPmem("pm0", 2 * GIB, "rp0"))
    assert [entry.name for entry in model.expected().iomem] == ["namespace0.0"]
    assert model.expected().linear == ()
    model.apply(SetPmemMode("pm0", "devdax"))
    lines = [(str(entry.range), entry.name) for entry in model.expected().iomem]
    assert lines == [("80000000-801fffff", "namespace0.0"), ("80200000-ffffffff", "dax0.0")]
    assert [(piece.range.size, piece.pages) for piece in model.expected().linear] == [(2 * GIB, "device")]
    assert zone(model, "Device").spanned == 2 * GIB // PAGE
    model.apply(SetPmemMode("pm0", "kmem"))
    assert [str(entry.range) for entry in model.expected().iomem[1:]] == ["88000000-ffffffff"] * 2
    assert len(model.blocks_of("pm0")) == 15
    model.apply(SetPmemMode("pm0", "devdax", "dev"))
    assert str(model.expected().iomem[1].range) == "82200000-ffffffff"
    model.apply(SetPmemMode("pm0", "raw"))
    assert zone(model, "Device").spanned == 2 * GIB // PAGE, "ZONE_DEVICE never shrinks"


def test_the_state_of_a_kmem_device_brings_its_memory_and_takes_it() -> None:
    model = model_guest.model()
    for action in (PlugVirtioPmem("pm0", 2 * GIB, "rp0"), SetPmemMode("pm0", "devdax"), SetPmemMode("pm0", "kmem")):
        model.apply(action)
    assert model.expected().dax_states == {"dax0.0": "offline"}
    fresh = model.expected()
    model.apply(SetDaxState("pm0", "unplugged"))
    assert [entry.name for entry in model.expected().iomem] == ["namespace0.0"]
    assert (model.blocks_of("pm0"), model.expected().hot) == ((), ())
    model.apply(SetDaxState("pm0", "online_movable"))
    assert {block.state for block in model.expected().blocks} == {"online"}
    assert zone(model, "Movable").present == 15 * 128 * MIB // PAGE
    # The state file ignores single blocks: writing the same state again does nothing.
    model.apply(SetBlock(model.blocks_of("pm0")[0], "offline"))
    model.apply(SetDaxState("pm0", "online_movable"))
    assert zone(model, "Movable").present == 14 * 128 * MIB // PAGE
    assert model.expected().dax_states == {"dax0.0": "online_movable"}
    model.apply(SetDaxState("pm0", "unplugged"))
    model.apply(SetPmemMode("pm0", "devdax"))
    assert model.expected().dax_states == {}
    model.apply(SetPmemMode("pm0", "kmem"))
    assert model.expected() == fresh
    model.apply(SetAutoOnline("online_movable"))
    model.apply(SetPmemMode("pm0", "devdax"))
    model.apply(SetPmemMode("pm0", "kmem"))
    assert model.expected().dax_states == {"dax0.0": "online_movable"}
    assert {block.state for block in model.expected().blocks} == {"online"}


def test_a_raw_namespace_has_struct_pages_where_the_kernel_has_a_pmem_api() -> None:
    model = model_guest.model(config={"ARCH_HAS_PMEM_API": "y", "HUGETLB_PAGE": "y"})
    model.apply(PlugVirtioPmem("pm0", GIB))
    assert [piece.pages for piece in model.expected().linear] == ["device"]


def test_compound_device_dax_pages_keep_two_pages_of_vmemmap_where_the_kernel_optimizes_them() -> None:
    model = model_guest.model(config={"ARCH_WANT_OPTIMIZE_DAX_VMEMMAP": "y", "HUGETLB_PAGE": "y"})
    model.apply(PlugVirtioPmem("pm0", GIB))
    for mode, where, align, pages in (
        ("devdax", "mem", 2 * MIB, 1024),
        ("devdax", "dev", 2 * MIB, 4096),
        ("devdax", "mem", 4096, 4096),
        ("devdax", "mem", GIB, 2),
        ("kmem", "mem", 2 * MIB, 3584),
    ):
        model.apply(SetPmemMode("pm0", mode, where, align))
        assert model.expected().memmap_pages == pages, (mode, where, align)


@pytest.mark.parametrize(
    "action",
    [
        PlugDimm("d", GIB, 1, 2, 0x9000_0000, False),
        PlugVirtioMem("v", GIB, 2 * MIB, 0, 0, "rp0"),
        PlugVirtioPmem("p", GIB, "rp1"),
        Unplug("d"),
        Resize("v", 5 * MIB),
        SetBlock(16, "offline"),
        SetAutoOnline("online"),
        SetPmemMode("p", "kmem", "dev", 4096),
        SetDaxState("p", "unplugged"),
    ],
    ids=lambda action: type(action).__name__,
)
def test_actions_survive_json(action: object) -> None:
    assert CODEC.load(CODEC.dump(action, Action), Action) == action


def test_foreign_json_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown action 'Explode'"):
        CODEC.load({"action": "Explode"}, Action)
    with pytest.raises(ValueError, match="bogus"):
        CODEC.load({"action": "Resize", "id": "v", "requested": 0, "bogus": 1}, Action)
    with pytest.raises(TypeError, match="requested"):
        CODEC.load({"action": "Resize", "id": "v", "requested": "1G"}, Action)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Unplug("nope"), "nope was not plugged"),
        (Resize("nope", 0), "no VirtioMem nope is plugged"),
        (SetBlock(99, "online"), "memory99 does not exist"),
        (PlugDimm("big", 64 * GIB), "no room for 64G"),
    ],
)
def test_contradictions_are_refused(action: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_guest.model().apply(action)  # type: ignore[arg-type]


def test_an_id_cannot_be_used_twice() -> None:
    model = model_guest.model()
    model.apply(PlugDimm("a", GIB))
    with pytest.raises(UsageError, match="a is already plugged"):
        model.apply(PlugDimm("a", GIB))


def test_an_unknown_page_size_is_named() -> None:
    with pytest.raises(UnsupportedError, match="8192 bytes"):
        boot_layout(model_guest.shape(), model_guest.facts(page_size=8192), model_guest.boot_state())


def test_without_zones_there_is_no_model() -> None:
    blind = dataclasses.replace(model_guest.boot_state(), zones=NotObserved("no /proc/zoneinfo"))
    with pytest.raises(UsageError, match="no /proc/zoneinfo"):
        MemoryModel(boot_layout(model_guest.shape(), model_guest.facts(), blind))


def test_without_vmcoreinfo_there_is_no_virtual_layout() -> None:
    assert model_guest.layout(vmcoreinfo=NotObserved("no /proc/kcore")).kernel is None
    assert model_guest.layout(vmcoreinfo={"PAGESIZE": "4096"}).kernel is None


@pytest.mark.parametrize(
    ("arch", "acpi", "config", "own", "target"),
    [
        (ARM64_4K, True, {"NUMA_KEEP_MEMINFO": "y"}, 0, 2),
        (ARM64_4K, True, {}, 0, 0),
        (ARM64_4K, False, {"NUMA_KEEP_MEMINFO": "y"}, 1, 1),
        (ARM64_4K, False, {}, 0, 0),
        (RISCV, True, {"NUMA_KEEP_MEMINFO": "y"}, 0, 2),
        (RISCV, False, {"NUMA_KEEP_MEMINFO": "y"}, 0, 0),
    ],
)
def test_pmem_goes_to_the_node_that_the_kernel_can_know_of(
    arch: Kind, acpi: bool, config: dict[str, str], own: int, target: int
) -> None:
    shape = dataclasses.replace(model_guest.shape(arch), node_memory=(GIB // 2, GIB // 2, 0), acpi=acpi)
    layout = boot_layout(shape, model_guest.facts(arch, config=config), model_guest.boot_state(arch))
    assert (layout.node_of_pmem(), layout.target_node_of_pmem()) == (own, target)


def test_pmem_skips_nodes_without_memory() -> None:
    shape = dataclasses.replace(model_guest.shape(ARM64_4K), node_memory=(0, GIB))
    layout = boot_layout(
        shape, model_guest.facts(ARM64_4K, config={"NUMA_KEEP_MEMINFO": "y"}), model_guest.boot_state()
    )
    assert layout.node_of_pmem() == 1


def test_what_nothing_tells_of_a_kernel_is_no_guess() -> None:
    shape = dataclasses.replace(model_guest.shape(ARM64_4K), node_memory=(0, GIB))
    layout = boot_layout(shape, model_guest.facts(ARM64_4K, config=None), model_guest.boot_state())
    for ask in (layout.node_of_pmem, layout.target_node_of_pmem, layout.folds_hugetlb, lambda: layout.pageblock_size):
        with pytest.raises(UnsupportedError, match="is unknown, and the expected state depends on it") as caught:
            ask()
        assert caught.value.hint and "IKCONFIG_PROC" in caught.value.hint
