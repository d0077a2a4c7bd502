# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that booted with memory devices: computes the boot state without them.

Every check compares with a boot without plugged devices. If devices were present before the kernel started (cold plug,
a warm reboot), that baseline is this boot less the devices' memory: it is not online yet, so neither zones nor MemTotal
include it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from harness.errors import UnsupportedError
from harness.model.actions import Action
from harness.model.boot_layout import BootLayout, MachineShape, boot_layout
from harness.model.memory_model import MemoryModel
from harness.state import (
    GuestState,
    HostMapping,
    HostTables,
    IomemEntry,
    KernelFacts,
    Mapping,
    MemoryBlock,
    NotObserved,
)
from harness.units import AddrRange, merge_ranges, subtract_ranges

_BUS = re.compile(r"PCI Bus ([0-9a-f]{4}:(?!00)[0-9a-f]{2})")
_MEMMAP = ("nr_memmap", "nr_memmap_pages")


def plugged_devices(model: MemoryModel) -> tuple[Action, ...]:
    """The devices of ``model``, as actions in the order in which a booting kernel finds them.

    Virtio devices are numbered again. Raises UsageError for a device that the model cannot track across a boot.
    """
    ports = model.layout.machine.ports
    found = [(device.replug(), device.boot_rank(ports)) for device in model.devices.values()]
    return tuple(action for action, _ in sorted(found, key=lambda item: item[1]))


def booted_model(
    machine: MachineShape, facts: KernelFacts, state: GuestState, plugged: Sequence[Action]
) -> MemoryModel:
    """The model of a guest that booted with the ``plugged`` devices; ``state`` is its first snapshot.

    Raises UnsupportedError if the memory came online automatically.
    """
    if not plugged:
        return MemoryModel(boot_layout(machine, facts, state))
    if state.auto_online != "offline":
        raise UnsupportedError(
            "offline-at-boot",
            f"memory present at boot comes online automatically (policy {state.auto_online}), before the first look",
            hint="boot it with memhp_default_state=offline",
        )
    layout = boot_layout(machine, facts, state)
    bare = _follow(layout, plugged)
    baseline = _without(layout, bare)
    return _follow(dataclasses.replace(layout, baseline=baseline), plugged)


def _follow(layout: BootLayout, plugged: Iterable[Action]) -> MemoryModel:
    model = MemoryModel(layout)
    for action in plugged:
        model.apply(action)
    return model


def _without(layout: BootLayout, model: MemoryModel) -> GuestState:
    """The state of ``layout`` without the devices of ``model``."""
    state, window, expected = layout.baseline, layout.machine.device_window(), model.expected()
    changes: dict[str, object] = {}
    if not isinstance(state.iomem, NotObserved):
        changes["iomem"] = _outside(state.iomem, window)
    if not isinstance(state.records.iomem, NotObserved):
        changes["records"] = replace(state.records, iomem=_outside(state.records.iomem, window))
    if not isinstance(state.blocks, NotObserved):
        changes["blocks"] = tuple(block for block in state.blocks if not _inside(block, layout, window))
    if not isinstance(state.backends, NotObserved):
        gone = {device.qmp().backend for device in model.devices.values()}
        changes["backends"] = {id: size for id, size in state.backends.items() if id not in gone}
    if not isinstance(state.vmstat, NotObserved):
        less = {name: state.vmstat[name] - expected.memmap_pages for name in _MEMMAP if name in state.vmstat}
        # The number of page tables that belong to the devices is unknown.
        changes["vmstat"] = {k: less.get(k, v) for k, v in state.vmstat.items() if k != "nr_page_table_pages"}
    if layout.kernel is not None:
        virtual = merge_ranges([*map(layout.kernel.linear, expected.hot), *map(layout.kernel.memmap, expected.hot)])
        changes |= _tables_without(state, virtual)
    return replace(state, **changes)  # type: ignore[arg-type]


def _inside(block: MemoryBlock, layout: BootLayout, window: AddrRange) -> bool:
    return window.overlaps(AddrRange.sized(block.index * layout.block_size, layout.block_size))


def _outside(entries: Iterable[IomemEntry], window: AddrRange) -> tuple[IomemEntry, ...]:
    return tuple(_without_bars(entry) for entry in entries if not window.covers(entry.range))


def _without_bars(entry: IomemEntry) -> IomemEntry:
    """``entry`` without the BARs of devices plugged into ports below it."""
    bus = _BUS.fullmatch(entry.name)
    own = f"{bus[1]}:00.0" if bus is not None else None
    kept = tuple(_without_bars(child) for child in entry.children if child.name != own)
    return entry if kept == entry.children else replace(entry, children=kept)


def _tables_without(state: GuestState, gone: Sequence[AddrRange]) -> dict[str, object]:
    """Page tables without the mappings in ``gone``, and without the table pages that are used only for them."""
    changes: dict[str, object] = {}
    if not isinstance(state.page_tables, NotObserved):
        mappings = tuple(part for mapping in state.page_tables.mappings for part in _cut(mapping, gone))
        changes["page_tables"] = replace(state.page_tables, mappings=mappings)
    tables = state.host_tables
    if not isinstance(tables, NotObserved):
        left = tuple(part for mapping in tables.mappings for part in _cut_host(mapping, gone))
        used = merge_ranges(mapping.range for mapping in left)
        served = tuple(
            page
            for page in tables.pages
            if any(page.range.overlaps(place) for place in used) or not any(page.range.overlaps(it) for it in gone)
        )
        changes["host_tables"] = HostTables(left, served, tables.faults)
    return changes


def _cut(mapping: Mapping, gone: Sequence[AddrRange]) -> Iterator[Mapping]:
    for part in subtract_ranges([mapping.range], gone):
        yield replace(mapping, range=part)


def _cut_host(mapping: HostMapping, gone: Sequence[AddrRange]) -> Iterator[HostMapping]:
    for part in subtract_ranges([mapping.range], gone):
        yield replace(mapping, range=part, physical=mapping.physical + part.start - mapping.range.start)
