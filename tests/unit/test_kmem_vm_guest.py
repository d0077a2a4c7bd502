# SPDX-License-Identifier: GPL-2.0-or-later
"""Zones, memory blocks and counters, read from the memory of made-up and recorded kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmem_vm_guest import LINEAR, OF_NODES, OF_ZONES, SIZE, ZONES, RecordedVm, VmGuest, types

from harness.errors import InfraError
from harness.kmem.block_devices import BlockDevices, block_devices
from harness.kmem.lookup import KernelReader
from harness.kmem.node_zones import NodeZones, node_zones
from harness.kmem.physical_memory import PhysicalMemory
from harness.kmem.vm_counters import TotalMemory, VmCounters, total_memory, vm_counters
from harness.kmem.xarray import array_layout, read_array
from harness.parsers.blocks import parse_blocks
from harness.parsers.meminfo import parse_meminfo
from harness.parsers.vmstat import parse_vmstat
from harness.parsers.zoneinfo import parse_zoneinfo
from harness.state import MemoryBlock, NotObserved, Zone

#: every example writes its guest anew
ANEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def zone(node: int, name: str, spanned: int = 0, present: int = 0, managed: int = 0, start: int | None = None) -> Zone:
    return Zone(node, name, spanned, present, managed, start)


#: an empty node and one with memory
PLAIN = (zone(0, "DMA", 32, 24, 20, 4096), zone(0, "Normal"), zone(0, "Movable", 8, 8, 8, 9000))
OTHER = (zone(1, "DMA"), zone(1, "Normal", 16, 16, 0, 5000), zone(1, "Movable"))


def found_zones(guest: VmGuest, reader: KernelReader) -> NodeZones:
    found = node_zones(reader, guest.note, guest.symbols, types())
    assert not isinstance(found, NotObserved), found
    return found


def found_blocks(guest: VmGuest, reader: KernelReader, *, enum: bool = True) -> BlockDevices:
    found = block_devices(guest.symbols, types(enum=enum), found_zones(guest, reader))
    assert not isinstance(found, NotObserved), found
    return found


# zones ---------------------------------------------------------------------------------------------------------------


def test_zones_are_those_of_the_online_nodes(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones((*PLAIN, *OTHER), online=(1,))
    with guest.memory() as memory:
        reader = guest.reader(memory)
        assert parse_zoneinfo(found_zones(guest, reader).copy(reader).text().decode()) == OTHER


def test_without_numa_there_is_one_node(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones(PLAIN, numa=False)
    guest.add_blocks({3: (3, 0, 0, 0)})
    with guest.memory() as memory:
        reader = guest.reader(memory)
        assert found_zones(guest, reader).copy(reader).zones == PLAIN
        # No node of sysfs has links to blocks then.
        [block] = parse_blocks(found_blocks(guest, reader).copy(reader).text().decode())
        assert block.nodes == ()


@ANEW
@given(data=st.data())
def test_any_zones(data: st.DataObject, tmp_path: Path) -> None:
    counts = st.integers(0, (1 << 40) - 1)
    nodes = data.draw(st.lists(st.integers(0, 63), unique=True, min_size=1, max_size=4))
    wanted = []
    for node in sorted(nodes):
        for name in ZONES:
            present, start = data.draw(counts), data.draw(counts)
            wanted.append(zone(node, name, data.draw(counts), present, data.draw(counts), start if present else None))
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones(wanted)
    with guest.memory() as memory:
        reader = guest.reader(memory)
        assert parse_zoneinfo(found_zones(guest, reader).copy(reader).text().decode()) == tuple(wanted)


def test_a_kernel_that_does_not_tell_its_nodes(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones(PLAIN)
    with guest.memory() as memory:
        reader = guest.reader(memory)
        reasons = [
            node_zones(reader, guest.note, {}, types()),
            node_zones(reader, guest.note | {"SIZE(nodemask_t)": "7"}, guest.symbols, types()),
            node_zones(reader, {}, guest.symbols, types()),
        ]
        assert reasons == [
            NotObserved("the kernel's symbols have neither node_data nor contig_page_data (CONFIG_KALLSYMS_ALL)"),
            NotObserved("vmcoreinfo has no SYMBOL(node_online_map) or no SIZE(nodemask_t)"),
            NotObserved("vmcoreinfo has no SYMBOL(node_online_map) or no SIZE(nodemask_t)"),
        ]
        layout = found_zones(guest, reader)
        guest.put(int(guest.note["SYMBOL(node_online_map)"], 16), 0)
        with pytest.raises(InfraError, match="no node of the kernel is online"):
            layout.copy(reader)


# memory blocks -------------------------------------------------------------------------------------------------------


@ANEW
@given(data=st.data())
def test_any_blocks(data: st.DataObject, tmp_path: Path) -> None:
    enum, per_block = data.draw(st.booleans()), data.draw(st.sampled_from([1, 4]))
    words = {0: "online", 1: "going-offline", 2: "offline", 3: "ERROR-UNKNOWN-3"}
    numbers = {0: 0, 1: 1, 2: 2, 3: 3} if enum else {0: 1, 1: 2, 2: 4, 3: 3}
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones((*PLAIN, *OTHER))
    blocks, wanted = {}, []
    indexes = st.one_of(st.integers(0, 200), st.integers(0, 1 << 40))
    for index in sorted(data.draw(st.sets(indexes, min_size=1, max_size=40))):
        state, node = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([-1, 0, 1]))
        name = data.draw(st.sampled_from([*ZONES, None]))
        place = 0 if name is None or node < 0 else guest.zones[node, name]
        blocks[index] = (index * per_block, numbers[state], node, place)
        zones = (("none" if place == 0 else str(name)),) if state == 0 else None
        wanted.append(MemoryBlock(index, index, words[state], None, zones, () if node < 0 else (node,)))
    guest.add_blocks(blocks, per_block=per_block, enum=enum)
    with guest.memory() as memory:
        reader = guest.reader(memory)
        text = found_blocks(guest, reader, enum=enum).copy(reader).text().decode()
    assert parse_blocks(text) == tuple(wanted)


def test_a_zone_that_is_none_or_another_nodes_is_told(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones((*PLAIN, *OTHER))
    guest.add_blocks({1: (7, 0, 0, guest.zones[1, "Normal"]), 2: (2, 0, 1, 0xDEAD)})
    with guest.memory() as memory:
        reader = guest.reader(memory)
        one, two = parse_blocks(found_blocks(guest, reader).copy(reader).text().decode())
    assert one == MemoryBlock(1, 7, "online", None, ("Normal", "of", "node", "1"), (0,))
    assert two.valid_zones == ("0xdead",)


def test_a_kernel_without_memory_hotplug(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones(PLAIN)
    with guest.memory() as memory:
        found = block_devices(guest.symbols, types(), found_zones(guest, guest.reader(memory)))
    why = "the kernel's symbols have no memory_blocks, sections_per_block (MEMORY_HOTPLUG, KALLSYMS_ALL)"
    assert found == NotObserved(why)
    assert block_devices({"memory_blocks": 0, "sections_per_block": 0}, types(), NotObserved("x")) == NotObserved("x")


def test_v61_has_no_enum(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones(PLAIN)
    guest.add_blocks({0: (0, 4, 0, 0)}, enum=False)
    with guest.memory() as memory:
        reader = guest.reader(memory)
        [block] = parse_blocks(found_blocks(guest, reader, enum=False).copy(reader).text().decode())
    assert block.state == "offline"


# xarray --------------------------------------------------------------------------------------------------------------

LAYOUT = array_layout(types())
assert not isinstance(LAYOUT, NotObserved)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda guest, node: guest.put(node + 40, 3), "has entries that are neither pointers nor nodes"),
        (lambda guest, node: guest.put(node + 40, LINEAR), "has entries that are neither pointers nor nodes, or both"),
        (lambda guest, node: guest.put(node + 40, LINEAR + SIZE + 2), "has a node that cannot be read"),
        (lambda guest, node: guest.put(node + 40, node + 2), "has nodes that do not fit their level"),
        (lambda guest, node: guest.write(node, b"\x05"), "has nodes that do not fit their level"),
        (lambda guest, node: guest.write(node, b"\x48"), "has nodes that do not fit their level"),
        (lambda guest, node: guest.put(node + 40, *[node + 2] * 64), "has more than 50 entries"),
    ],
)
def test_an_array_that_is_broken(damage: Callable[[VmGuest, int], None], why: str, tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    head = guest.array({1 << 6: LINEAR, 2 << 6: LINEAR})
    place = guest.put(guest.take(16), 0, head)
    damage(guest, head - 2)
    with guest.memory() as memory, pytest.raises(InfraError, match=f"the kernel's xarray at {place:#x} {why}"):
        assert not isinstance(LAYOUT, NotObserved)
        read_array(guest.reader(memory), LAYOUT, place, 50)


@ANEW
@given(content=st.binary(max_size=4096), words=st.lists(st.integers(0, 511), max_size=60), entry=st.integers(0, 511))
def test_rubbish_ends_any_array(content: bytes, words: list[int], entry: int, tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.write(LINEAR, content)
    for number, word in enumerate(words):
        guest.put(LINEAR + 64 * number, LINEAR + 64 * word + 2)
    head = guest.put(LINEAR + 64 * 512, 0, LINEAR + 64 * entry + 2)
    with guest.memory() as memory:
        try:
            assert not isinstance(LAYOUT, NotObserved)
            index, found = read_array(guest.reader(memory), LAYOUT, head, 1000)
        except InfraError:
            return
        assert len(index) == len(found) <= 1000


# counters ------------------------------------------------------------------------------------------------------------


@ANEW
@given(
    zones=st.lists(st.integers(-5, 1 << 40), min_size=3, max_size=3),
    nodes=st.lists(st.integers(-5, 1 << 40), min_size=3, max_size=3),
    waiting=st.dictionaries(
        st.integers(0, 3),
        st.tuples(*(st.lists(st.integers(-128, 127), min_size=3, max_size=3) for _ in range(2))),
        min_size=1,
    ),
)
def test_what_cpus_have_not_added_yet_counts(
    zones: list[int],
    nodes: list[int],
    waiting: dict[int, tuple[list[int], list[int]]],
    tmp_path: Path,
) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones((*PLAIN, *OTHER))
    guest.add_counters(zones, nodes, waiting)
    guest.symbols["nr_memmap_pages"] = guest.put(guest.take(8), 77)
    with guest.memory() as memory:
        reader = guest.reader(memory)
        found = vm_counters(reader, guest.symbols, types(), found_zones(guest, reader))
        assert isinstance(found, VmCounters)
        counters = parse_vmstat(found.copy(reader).text().decode())
    wanted = {
        name: max(0, value + sum(of_cpu[place][item] for of_cpu in waiting.values()))
        for place, names in enumerate((OF_ZONES, OF_NODES))
        for item, (name, value) in enumerate(zip(names, (zones, nodes)[place], strict=True))
    }
    del wanted["nr_anon_transparent_hugepages"]
    assert counters == wanted | {"nr_memmap_pages": 77}


def test_counters_that_cannot_be_found(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    guest.add_zones(PLAIN)
    guest.add_counters((1, 2, 3), (4, 5, 6), {0: ((0, 0, 0), (0, 0, 0))})
    with guest.memory() as memory:
        reader = guest.reader(memory)
        zones = found_zones(guest, reader)
        symbols = {name: at for name, at in guest.symbols.items() if name != "vmstat_text"}
        assert vm_counters(reader, symbols, types(), zones) == NotObserved(
            "the kernel's symbols have no vmstat_text (CONFIG_KALLSYMS_ALL)"
        )
        assert vm_counters(reader, guest.symbols, types(), NotObserved("no zones")) == NotObserved("no zones")
        guest.put(guest.symbols["vmstat_text"], guest.text("nr_other"))
        with pytest.raises(InfraError):
            vm_counters(reader, guest.symbols, types(), zones)
    assert total_memory({}, {}) == NotObserved("the kernel's symbols have no _totalram_pages (CONFIG_KALLSYMS_ALL)")
    assert total_memory({}, {"_totalram_pages": LINEAR}) == NotObserved("vmcoreinfo has no PAGESIZE")


def test_the_total_is_in_kib(tmp_path: Path) -> None:
    guest = VmGuest(tmp_path / "memory")
    total = total_memory({"PAGESIZE": "16384"}, {"_totalram_pages": guest.put(guest.take(8), 5)})
    assert isinstance(total, TotalMemory)
    with guest.memory() as memory:
        assert parse_meminfo(total.copy(guest.reader(memory)).text().decode()) == {"MemTotal": 5 * 16384}


# recorded kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arm64-7.2.json", "riscv64-6.12.json"])
def test_real_kernels(name: str, tmp_path: Path) -> None:
    guest = RecordedVm(name, tmp_path)
    with PhysicalMemory(guest.regions) as memory:
        reader, layouts = guest.reader(memory), guest.types()
        zones = node_zones(reader, guest.note, guest.symbols, layouts)
        records = {
            "zoneinfo": zones,
            "blocks": block_devices(guest.symbols, layouts, zones),
            "vmstat": vm_counters(reader, guest.symbols, layouts, zones),
            "meminfo": total_memory(guest.note, guest.symbols),
        }
        for source, record in records.items():
            assert not isinstance(record, NotObserved), record
            assert record.copy(reader).text().decode().splitlines() == guest.data[source]
