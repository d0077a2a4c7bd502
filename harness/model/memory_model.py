# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference model: boot layout + actions = the exact state of the guest's memory."""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import UsageError
from harness.model.actions import Action, SetAutoOnline, SetBlock, StartLoad, Unplug
from harness.model.blocktable import Block, BlockTable
from harness.model.boot_layout import BootLayout
from harness.model.devices.device import BACKEND_ALIGNMENT, Device, DeviceAction, VirtioDevice, free_place
from harness.model.expected import ExpectedState, LinearPiece, PciWindow
from harness.model.spanned_blocks import broken_blocks, kept_blocks, spanned_blocks
from harness.model.sparse_sections import SectionTable
from harness.state import NotObserved
from harness.units import AddrRange, merge_ranges

#: loads that change the permissions of single pages of the linear map; the load that uses huge pages
SPLITTING_LOADS = frozenset({"bpf", "memfd-secret"})
HUGE_PAGE_LOAD = "hugetlb"


class MemoryModel:
    """Follows the actions and predicts the state after each of them.

    Everything comes from the boot layout, the actions, and QEMU's documented placement; nothing from later reports of
    the guest. ``apply`` raises UsageError for an action that contradicts earlier ones.
    """

    def __init__(self, layout: BootLayout) -> None:
        baseline = layout.baseline
        if isinstance(baseline.zones, NotObserved):
            raise UsageError(f"the model needs the zones of the freshly booted guest: {baseline.zones.reason}")
        self.layout = layout
        policy = "offline" if isinstance(baseline.auto_online, NotObserved) else baseline.auto_online
        self.devices: dict[str, Device] = {}
        self.loads: set[str] = set()
        self.sections = SectionTable(
            layout.paging.section_size, layout.machine.arch.subsection_size, layout.boot_memory()
        )
        self._table = BlockTable(layout, baseline.zones, policy)
        self._broken = broken_blocks(layout, {index: self.blocks[index].zone for index in self.boot_blocks()})
        self._pieces: tuple[LinearPiece, ...] = ()
        self._once: tuple[AddrRange, ...] = ()
        self._boot_managed = sum(zone.managed for zone in baseline.zones) * layout.page_size

    def apply(self, action: Action) -> None:
        """Follow an action that took effect."""
        match action:
            case DeviceAction():
                action.follow(self.devices, self._table)
            case Unplug():
                self._unplug(action.id)
            case SetBlock():
                self._table.set_state(action.index, action.state)
                owner = self.devices.get(self.blocks[action.index].owner or "")
                if action.state != "offline" and owner is not None:
                    owner.went_online(self._table)
            case SetAutoOnline():
                self._table.policy = action.policy
            case StartLoad():
                self.loads.add(action.kind)
        self._follow_pieces()

    def _unplug(self, id: str) -> None:
        for index in self.blocks_of(id):
            self._table.remove(index)
        if self.devices.pop(id, None) is None:
            raise UsageError(f"{id} was not plugged")

    def _follow_pieces(self) -> None:
        """Follow the calls of arch_add_memory and arch_remove_memory that resulted from the action."""
        pieces = (piece for device in self.devices.values() for piece in device.linear(self.layout))
        before, now = set(self._pieces), sorted(pieces, key=lambda piece: piece.range)
        for piece in sorted(before.difference(now), key=lambda piece: piece.range):
            self.sections.remove(piece.range)
        for piece in now:
            if piece not in before:
                self.sections.add(piece.range, device=piece.pages == "device")
        self._pieces = tuple(now)
        self._once = merge_ranges([*self._once, *(piece.range for piece in now)])

    def place(self, size: int, alignment: int = BACKEND_ALIGNMENT) -> AddrRange:
        """Where QEMU places a device without an address; raises UsageError if nothing fits."""
        return free_place(self.layout, self.devices, size, alignment)

    @property
    def blocks(self) -> Mapping[int, Block]:
        """All memory blocks by index."""
        return self._table.blocks

    def block_range(self, index: int) -> AddrRange:
        """Physical range of memory block ``index``."""
        return self._table.range_of(index)

    def blocks_of(self, id: str) -> tuple[int, ...]:
        """Indexes of the memory blocks of device ``id``."""
        return self._table.of(id)

    def boot_blocks(self) -> tuple[int, ...]:
        """Indexes of the memory blocks of boot memory."""
        return self._table.of(None)

    def kept_blocks(self) -> Mapping[int, str]:
        """The blocks that this kernel refuses to offline, and why."""
        return kept_blocks(self.layout, self._pieces)

    def _memmap_split(self) -> bool:
        """True if there are or were huge pages, and this kernel folds their memmap."""
        meminfo = self.layout.baseline.meminfo
        at_boot = not isinstance(meminfo, NotObserved) and meminfo.get("Hugetlb", 0) > 0
        return (at_boot or HUGE_PAGE_LOAD in self.loads) and self.layout.folds_hugetlb()

    def _memmap_pages(self) -> int:
        page, total = self.layout.page_size, 0
        for piece in self._pieces:
            size = self.layout.memmap_bytes(piece.range)
            total += 2 * size // piece.folded if piece.folded else size // page
        return total + self._table.onlined_since_boot() * self.layout.page_ext_pages

    def expected(self) -> ExpectedState:
        """The expected current state."""
        layout, linear, devices = self.layout, self._pieces, self.devices.values()
        hot = merge_ranges(piece.range for piece in linear)
        boot = [r.align_outward(layout.block_size) for r in layout.machine.node_ranges()]
        virtio = [device for device in devices if isinstance(device, VirtioDevice)]
        zones = self._table.zones.to_state()
        return ExpectedState(
            devices=tuple(device.qmp() for device in devices),
            iomem=tuple(line for device in devices for line in device.iomem(layout)),
            pci=tuple(PciWindow(device.port, device.id) for device in virtio),
            blocks=self._table.to_state(),
            auto_online=self._table.policy,
            zones=zones,
            managed_bytes=sum(zone.managed for zone in zones) * layout.page_size - self._boot_managed,
            linear=linear,
            memmap=merge_ranges([*boot, *hot]),
            hot=hot,
            memmap_pages=self._memmap_pages(),
            linear_split=not self.loads.isdisjoint(SPLITTING_LOADS),
            memmap_split=self._memmap_split(),
            virtio_names={device.id: device.virtio_name for device in virtio},
            kernel_memory=self._table.kernel_memory(),
            sections=self.sections.to_state(self._table.is_online),
            once=self._once,
            spanned=spanned_blocks(layout, linear),
            broken=self._broken,
            dax_states={name: state for device in devices for name, state in device.dax_states().items()},
        )
