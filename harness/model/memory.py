# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference model: boot layout + what was done = the exact state of the guest's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from harness.errors import UsageError
from harness.model import pmem
from harness.model.actions import (
    ONLINE_TYPES,
    Action,
    PlugDimm,
    PlugVirtioMem,
    PlugVirtioPmem,
    Resize,
    SetAutoOnline,
    SetBlock,
    SetDaxState,
    SetPmemMode,
    StartLoad,
    Unplug,
)
from harness.model.devices import UNPLUGGED, Device, Dimm, Pmem, VirtioMem
from harness.model.expected import ExpectedState, IomemAddition, LinearPiece, PciWindow
from harness.model.layout import BootLayout
from harness.model.offlining import spanned_blocks
from harness.model.sections import SectionTable
from harness.model.zones import DEVICE, MOVABLE, ZoneTable
from harness.state import MemoryBlock, NotObserved
from harness.units import GIB, MIB, AddrRange, align_up, format_size, merge_ranges

DeviceT = TypeVar("DeviceT", Dimm, VirtioMem, Pmem)

#: QEMU aligns memfd-backed memory devices to this on Linux hosts (QEMU_VMALLOC_ALIGN and huge pages aside)
BACKEND_ALIGNMENT = 2 * MIB
#: loads that change the permissions of single pages of the linear map; of huge pages
SPLITTING_LOADS = frozenset({"bpf", "memfd-secret"})
HUGE_PAGE_LOAD = "hugetlb"
#: VIRTIO_MEM_DEFAULT_OFFLINE_THRESHOLD (drivers/virtio/virtio_mem.c, v6.12): bytes that a device adds ahead of onlining
OFFLINE_THRESHOLD = GIB


@dataclass
class Block:
    """One memory block: ``managed`` bytes are given to the buddy while it is online, ``zone`` is None while offline."""

    index: int
    node: int
    owner: str | None
    zone: str | None
    managed: int
    self_hosted: int = 0


class MemoryModel:
    """Follows the actions and predicts the state after each of them.

    Everything comes from the boot layout, the actions, and QEMU's documented placement; nothing from the guest's
    later reports. ``apply`` raises UsageError for an action that contradicts what was done before.
    """

    def __init__(self, layout: BootLayout) -> None:
        baseline = layout.baseline
        if isinstance(baseline.zones, NotObserved):
            raise UsageError(f"the model needs the zones of the freshly booted guest: {baseline.zones.reason}")
        self.layout = layout
        ram = layout.machine.node_ranges()
        self.zones = ZoneTable(baseline.zones, ram, layout.page_size)
        self.auto_online = "offline" if isinstance(baseline.auto_online, NotObserved) else baseline.auto_online
        self.devices: dict[str, Device] = {}
        self.loads: set[str] = set()
        self.blocks: dict[int, Block] = {}
        self.sections = SectionTable(
            layout.paging.section_size, layout.machine.arch.subsection_size, layout.boot_memory()
        )
        self._pieces: tuple[LinearPiece, ...] = ()
        self._once: tuple[AddrRange, ...] = ()
        self._offlined_boot: set[int] = set()
        self._boot_managed = sum(zone.managed for zone in baseline.zones) * layout.page_size
        for node, piece in enumerate(ram):
            for part in piece.chunks(layout.block_size):
                index = part.start // layout.block_size
                self.blocks[index] = Block(index, node, None, self._boot_zone(node, part), part.size)

    def _boot_zone(self, node: int, piece: AddrRange) -> str | None:
        names = [
            zone.name
            for zone in self.zones.to_state()
            if zone.node == node and (span := self.zones.get(node, zone.name).span) is not None and span.overlaps(piece)
        ]
        return names[0] if len(names) == 1 else None

    def apply(self, action: Action) -> None:
        """Take note of something that took effect."""
        match action:
            case PlugDimm():
                self._plug_dimm(action)
            case PlugVirtioMem():
                self._plug_virtio_mem(action)
            case PlugVirtioPmem():
                self._plug_pmem(action)
            case Unplug():
                self._unplug(action.id)
            case Resize():
                self._resize(self._device(action.id, VirtioMem), action.requested)
            case SetBlock():
                self._set_block(action.index, action.state)
                owner = self.devices.get(self.blocks[action.index].owner or "")
                if action.state != "offline" and isinstance(owner, VirtioMem):
                    self._go_on(owner)
            case SetAutoOnline():
                self.auto_online = action.policy
            case SetPmemMode():
                self._set_pmem_mode(self._device(action.id, Pmem), action)
            case SetDaxState():
                self._set_dax_state(self._device(action.id, Pmem), action.state)
            case StartLoad():
                self.loads.add(action.kind)
        self._follow_pieces()

    def _follow_pieces(self) -> None:
        """Take the calls of arch_add_memory and arch_remove_memory that the action came to into account."""
        before, now = set(self._pieces), self._linear()
        for piece in sorted(before.difference(now), key=lambda piece: piece.range):
            self.sections.remove(piece.range)
        for piece in now:
            if piece not in before:
                self.sections.add(piece.range, device=piece.pages == "device")
        self._pieces = tuple(now)
        self._once = merge_ranges([*self._once, *(piece.range for piece in now)])

    def _device(self, id: str, kind: type[DeviceT]) -> DeviceT:
        device = self.devices.get(id)
        if not isinstance(device, kind):
            raise UsageError(f"{id} is not a {kind.__name__} that was plugged before")
        return device

    def place(self, size: int, alignment: int = BACKEND_ALIGNMENT) -> AddrRange:
        """The lowest gap of the device window (memory_device_get_free_addr, hw/mem/memory-device.c, QEMU 10.0).

        Raises UsageError if nothing fits.
        """
        window = self.layout.machine.device_window()
        at = align_up(window.start, alignment)
        for taken in sorted(device.range for device in self.devices.values()):
            if AddrRange.sized(at, size).overlaps(taken):
                at = align_up(taken.end, alignment)
        if at + size > window.end:
            raise UsageError(f"no room for {format_size(size)} in the device window {window}")
        return AddrRange.sized(at, size)

    def _add(self, device: Device) -> None:
        if device.id in self.devices:
            raise UsageError(f"{device.id} is plugged already")
        self.devices[device.id] = device

    def _free_index(self, used: set[int], first: int) -> int:
        return next(index for index in range(first, first + len(used) + 1) if index not in used)

    def _free_virtio_index(self) -> int:
        used = {device.virtio_index for device in self.devices.values() if not isinstance(device, Dimm)}
        return self._free_index(used, self.layout.machine.virtio_devices)

    def _plug_dimm(self, action: PlugDimm) -> None:
        used = {device.slot for device in self.devices.values() if isinstance(device, Dimm)}
        slot = self._free_index(used, 0) if action.slot is None else action.slot
        place = self.place(action.size) if action.address is None else AddrRange.sized(action.address, action.size)
        self._add(Dimm(action.id, place, action.node, slot, action.kernel_added))
        if action.kernel_added:
            self._add_blocks(place, action.node, action.id, self_hosted=self.layout.self_hosted(place.size))

    def _plug_virtio_mem(self, action: PlugVirtioMem) -> None:
        sub_block, at = max(action.block_size, self.layout.pageblock_size), action.address
        place = self.place(action.max_size, max(action.block_size, BACKEND_ALIGNMENT)) if at is None else None
        device = VirtioMem(
            id=action.id,
            range=place or AddrRange.sized(at or 0, action.max_size),
            node=action.node,
            block_size=action.block_size,
            requested=0,
            virtio_index=self._free_virtio_index(),
            port=action.port,
            memory_block=self.layout.block_size,
            sub_block=sub_block,
        )
        self._add(device)
        self._resize(device, action.requested)

    def _plug_pmem(self, action: PlugVirtioPmem) -> None:
        used = {device.region_index for device in self.devices.values() if isinstance(device, Pmem)}
        device = Pmem(
            id=action.id,
            range=self.place(action.size),
            virtio_index=self._free_virtio_index(),
            port=action.port,
            region_index=self._free_index(used, 0),
            raw_has_pages=self.layout.pmem_api,
        )
        self._add(device)
        self._map_pmem(device)

    def _unplug(self, id: str) -> None:
        for block in [block for block in self.blocks.values() if block.owner == id]:
            self._remove_block(block)
        if self.devices.pop(id, None) is None:
            raise UsageError(f"{id} was not plugged")

    def _rank(self, device: VirtioMem) -> dict[int, int]:
        rank = {None: 2, MOVABLE: 1}
        return {index: rank.get(self.blocks[index].zone, 0) for index in device.plugged}

    def _resize(self, device: VirtioMem, requested: int) -> None:
        device.requested = requested
        if device.big_block is not None:
            self._resize_by_big_blocks(device, requested, device.big_block)
            return
        grow = (requested - device.size) // device.sub_block * device.sub_block
        if grow > 0:
            for index in device.grow_order(self._rank(device)):
                if index not in device.plugged and not self._may_add(device, device.memory_block):
                    break
                self._grow_block(device, index, min(grow, device.memory_block - device.plugged.get(index, 0)))
                grow = (requested - device.size) // device.sub_block * device.sub_block
                if grow <= 0:
                    break
        shrink = (device.size - requested) // device.sub_block * device.sub_block
        if shrink > 0:
            for index in device.shrink_order(self._rank(device)):
                self._shrink_block(device, index, min(shrink, device.plugged[index]))
                shrink = (device.size - requested) // device.sub_block * device.sub_block
                if shrink <= 0:
                    break

    def _resize_by_big_blocks(self, device: VirtioMem, requested: int, size: int) -> None:
        """virtio_mem_bbm_plug_request, virtio_mem_bbm_unplug_request (drivers/virtio/virtio_mem.c, v6.12)."""
        for blocks in device.absent_big_blocks():
            if requested - device.size < size or not self._may_add(device, size):
                break
            for index in blocks:
                self._grow_block(device, index, device.memory_block)
        for blocks in device.present_big_blocks(self._rank(device)):
            if device.size - requested < size:
                break
            for index in blocks:
                self._shrink_block(device, index, device.memory_block)

    def _may_add(self, device: VirtioMem, size: int) -> bool:
        """virtio_mem_could_add_memory (drivers/virtio/virtio_mem.c, v6.12): not too much may be offline at a time."""
        offline = sum(self.blocks[index].zone is None for index in device.plugged) * device.memory_block
        return offline + size <= self._offline_threshold(device)

    def _offline_threshold(self, device: VirtioMem) -> int:
        return max(2 * (device.big_block or device.memory_block), OFFLINE_THRESHOLD)

    def _go_on(self, device: VirtioMem) -> None:
        """virtio_mem_memory_notifier_cb, MEM_ONLINE: it adds more once half of what may be offline is free."""
        if device.requested > device.size and self._may_add(device, self._offline_threshold(device) // 2):
            self._resize(device, device.requested)

    def _grow_block(self, device: VirtioMem, index: int, size: int) -> None:
        if index in device.plugged:
            device.plugged[index] += size
            self._change_managed(self.blocks[index], size)
            return
        device.plugged[index] = size
        place = AddrRange.sized(index * device.memory_block, device.memory_block)
        self._add_blocks(place, device.node, device.id)

    def _shrink_block(self, device: VirtioMem, index: int, size: int) -> None:
        device.plugged[index] -= size
        if device.plugged[index]:
            self._change_managed(self.blocks[index], -size)
        else:
            del device.plugged[index]
            self._remove_block(self.blocks[index])

    def _change_managed(self, block: Block, size: int) -> None:
        if block.zone is not None:
            block.managed += size
            self.zones.get(block.node, block.zone).managed += size // self.layout.page_size

    def _add_blocks(
        self, place: AddrRange, node: int, owner: str, *, self_hosted: int = 0, policy: str | None = None
    ) -> None:
        size, policy = self.layout.block_size, policy or self.auto_online
        self.zones.bring_online(node)
        for part in place.chunks(size):
            index = part.start // size
            self.blocks[index] = Block(index, node, owner, None, 0, self_hosted)
        if policy in ONLINE_TYPES:
            for part in place.chunks(size):
                self._set_block(part.start // size, policy)

    def _remove_block(self, block: Block) -> None:
        if block.zone is not None:
            self._set_block(block.index, "offline")
        del self.blocks[block.index]
        self._try_offline_node(block.node)

    def _try_offline_node(self, node: int) -> None:
        """try_offline_node (mm/memory_hotplug.c, v6.12): a node without memory, blocks and CPUs goes."""
        used = any(block.node == node for block in self.blocks.values())
        if not used and self.zones.is_empty(node) and not self.layout.machine.has_cpu(node):
            self.zones.take_offline(node)

    def _set_block(self, index: int, state: str) -> None:
        block = self.blocks.get(index)
        if block is None:
            raise UsageError(f"memory{index} does not exist")
        piece = self.block_range(index)
        if block.zone is not None:
            self.zones.get(block.node, block.zone).remove(piece, block.managed // self.layout.page_size)
            block.zone, block.managed = None, 0
        if block.owner is None:
            (self._offlined_boot.add if state == "offline" else self._offlined_boot.discard)(index)
        if state == "offline":
            return
        owner = self.devices.get(block.owner or "")
        plugged = owner.plugged[index] if isinstance(owner, VirtioMem) else piece.size
        block.managed = plugged - block.self_hosted
        block.zone = self.zones.zone_for(block.node, piece, state)
        self.zones.get(block.node, block.zone).add(piece, block.managed // self.layout.page_size)

    def block_range(self, index: int) -> AddrRange:
        """Physical range of memory block ``index``."""
        return AddrRange.sized(index * self.layout.block_size, self.layout.block_size)

    def blocks_of(self, id: str) -> tuple[int, ...]:
        """Indexes of the memory blocks that device ``id`` brought."""
        return tuple(sorted(index for index, block in self.blocks.items() if block.owner == id))

    def kept_blocks(self) -> Mapping[int, str]:
        """The blocks that this kernel is known not to take offline once they are online, and why."""
        spanned = spanned_blocks(self.layout, self._pieces)
        known = self.layout.features.keeps_spanned_blocks is True and not isinstance(spanned, NotObserved)
        return spanned if known and not isinstance(spanned, NotObserved) else {}

    def boot_blocks(self) -> tuple[int, ...]:
        """Indexes of the memory blocks of boot memory."""
        return tuple(sorted(index for index, block in self.blocks.items() if block.owner is None))

    def pmem_data(self, device: Pmem) -> AddrRange:
        """What a namespace in device-dax mode offers behind its metadata."""
        return device.data(self.layout.page_size, self.layout.machine.arch.max_struct_page)

    def kmem_range(self, device: Pmem) -> AddrRange:
        """What the kmem driver makes of it: whole memory blocks (dax_kmem_range, drivers/dax/kmem.c, v6.12)."""
        return self.pmem_data(device).align_inward(self.layout.block_size)

    def _map_pmem(self, device: Pmem) -> None:
        mapped = device.pagemap()
        if mapped is not None:
            self.zones.get(self.layout.node_of_pmem(), DEVICE).grow(mapped)

    def _set_pmem_mode(self, device: Pmem, action: SetPmemMode) -> None:
        self._set_dax_state(device, UNPLUGGED)
        device.mode, device.map, device.align = action.mode, action.map, action.align
        self._map_pmem(device)
        if device.mode == "kmem":
            self._set_dax_state(device, self.auto_online)

    def _set_dax_state(self, device: Pmem, state: str) -> None:
        """state_store (drivers/dax/kmem.c, v7.3); the driver's own probe adds the memory as the policy says."""
        if state == device.dax_state:
            return
        device.dax_state = state
        if state == UNPLUGGED:
            for index in self.blocks_of(device.id):
                self._remove_block(self.blocks[index])
        else:
            node = self.layout.target_node_of_pmem()
            self._add_blocks(self.kmem_range(device), node, device.id, policy=state)

    def _iomem(self) -> list[IomemAddition]:
        out: list[IomemAddition] = []
        for device in self.devices.values():
            match device:
                case Dimm(kernel_added=True):
                    out.append(IomemAddition(device.range, "System RAM", device.id))
                case VirtioMem():
                    out.append(IomemAddition(device.range, f"virtio{device.virtio_index}", device.id))
                    present = merge_ranges(self.block_range(index) for index in device.plugged)
                    out.extend(IomemAddition(part, "System RAM (virtio_mem)", device.id) for part in present)
                case Pmem():
                    out.extend(pmem.iomem(device, self.pmem_data(device), self.kmem_range(device)))
        return out

    def _linear(self) -> list[LinearPiece]:
        out = [piece for device in self.devices.values() for piece in self._pieces_of(device)]
        return sorted(out, key=lambda piece: piece.range)

    def _pieces_of(self, device: Device) -> Iterator[LinearPiece]:
        match device:
            case Dimm(kernel_added=True) if hosted := self.layout.self_hosted(device.range.size):
                for part in device.range.chunks(self.layout.block_size):
                    yield LinearPiece(part, device.id, "ram", AddrRange.sized(part.start, hosted))
            case Dimm(kernel_added=True):
                yield LinearPiece(device.range, device.id, "ram")
            case VirtioMem():
                for added in device.added():
                    yield LinearPiece(added, device.id, "ram")
            case Pmem(mode="kmem"):
                if device.is_ram:
                    yield LinearPiece(self.kmem_range(device), device.id, "ram")
            case Pmem():
                mapped = device.pagemap()
                if mapped is not None:
                    altmap = device.altmap(self.layout.page_size, self.layout.machine.arch.max_struct_page)
                    folded = self.layout.folded_memmap(device.align) if device.optimized else 0
                    yield LinearPiece(mapped, device.id, "device", altmap, folded)

    def _block_state(self, block: Block) -> MemoryBlock:
        if block.zone is not None:
            zones: tuple[str, ...] = (block.zone,)
        else:
            zones = self.zones.valid_zones(block.node, self.block_range(block.index))
        return MemoryBlock(
            index=block.index,
            phys_index=block.index,
            state="offline" if block.zone is None else "online",
            removable=True,
            valid_zones=zones,
            nodes=(block.node,),
        )

    def _memmap_split(self) -> bool:
        """True if there are huge pages, or have been, and this kernel folds their memmap."""
        meminfo = self.layout.baseline.meminfo
        at_boot = not isinstance(meminfo, NotObserved) and meminfo.get("Hugetlb", 0) > 0
        return (at_boot or HUGE_PAGE_LOAD in self.loads) and self.layout.folds_hugetlb()

    def _memmap_pages(self) -> int:
        page, total = self.layout.page_size, 0
        for piece in self._pieces:
            size = self.layout.memmap_bytes(piece.range)
            total += 2 * size // piece.folded if piece.folded else size // page
        online = sum(block.owner is not None and block.zone is not None for block in self.blocks.values())
        return total + (online - len(self._offlined_boot)) * self.layout.page_ext_pages

    def _kernel_memory(self) -> tuple[AddrRange, ...]:
        lent = [
            AddrRange(place.start + block.self_hosted, place.end)
            for block in self.blocks.values()
            if block.zone not in (None, MOVABLE)
            for place in (self.block_range(block.index),)
        ]
        return merge_ranges([*self.layout.machine.node_ranges(), *lent])

    def _is_online(self, section: int, early: bool) -> bool:
        if early:
            return section not in self._offlined_boot
        block = self.blocks.get(section)
        return block is not None and block.zone is not None

    def expected(self) -> ExpectedState:
        """The state that must be found now."""
        linear = self._pieces
        hot = merge_ranges(piece.range for piece in linear)
        boot = [r.align_outward(self.layout.block_size) for r in self.layout.machine.node_ranges()]
        virtio = [device for device in self.devices.values() if not isinstance(device, Dimm)]
        return ExpectedState(
            devices=tuple(device.qmp() for device in self.devices.values()),
            iomem=tuple(self._iomem()),
            pci=tuple(PciWindow(device.port, device.id) for device in virtio),
            blocks=tuple(self._block_state(self.blocks[index]) for index in sorted(self.blocks)),
            auto_online=self.auto_online,
            zones=self.zones.to_state(),
            managed_bytes=sum(z.managed for z in self.zones.to_state()) * self.layout.page_size - self._boot_managed,
            linear=linear,
            memmap=merge_ranges([*boot, *hot]),
            hot=hot,
            memmap_pages=self._memmap_pages(),
            linear_split=not self.loads.isdisjoint(SPLITTING_LOADS),
            memmap_split=self._memmap_split(),
            virtio_names={device.id: f"virtio{device.virtio_index}" for device in virtio},
            kernel_memory=self._kernel_memory(),
            sections=self.sections.to_state(self._is_online),
            once=self._once,
            spanned=spanned_blocks(self.layout, linear),
            dax_states={
                device.dax_name: device.dax_state
                for device in virtio
                if isinstance(device, Pmem) and device.mode == "kmem"
            },
        )
