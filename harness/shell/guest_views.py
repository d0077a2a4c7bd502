# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's state on a terminal: tables, coloured changes, and a map of its physical memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.text import Text

from harness.errors import InfraError
from harness.report.text import clean
from harness.scenarios.changes import describe_changes
from harness.state import GuestState, IomemEntry, MemoryBlock, MemoryDevice, NotObserved
from harness.units import AddrRange, format_size

T = TypeVar("T")

_SIGN = {"+": "green", "-": "red", "→": "yellow"}
_SPAN = re.compile(r"memory([0-9]+)(?:-([0-9]+))? ")
#: memory blocks in a row of the map
_ROW = 64
#: character and style of a block, by state
_MARKS = {"offline": ("░", "yellow"), "going-offline": ("?", "red"), "absent": ("·", "dim")}
_KERNEL, _MOVABLE = ("█", "green"), ("▓", "cyan")
_LEGEND = (
    (*_KERNEL, "online, kernel"),
    (*_MOVABLE, "online, movable"),
    (*_MARKS["offline"], "offline"),
    (*_MARKS["absent"], "no memory block"),
)


def _seen(value: T | NotObserved, what: str) -> T:
    if isinstance(value, NotObserved):
        raise InfraError(f"{what} could not be observed: {clean(value.reason)}")
    return value


def changes(before: GuestState, after: GuestState, block_size: int) -> list[Text]:
    """The differences, one per line: added in green, removed in red, changed in yellow."""
    return [change_line(line, block_size) for line in describe_changes(before, after)]


def change_line(line: str, block_size: int) -> Text:
    """One line of ``describe_changes``, in colour; memory blocks get their address range."""
    match = _SPAN.match(line)
    if match is not None:
        first, last = int(match[1]), int(match[2] or match[1])
        where = AddrRange(first * block_size, (last + 1) * block_size)
        line = f"{line[: match.end() - 1]} [{where}]{line[match.end() - 1 :]}"
    sign = next((mark for mark in ("→", "+", "-") if f" {mark}" in line), "")
    return Text(clean(line), style=_SIGN.get(sign, ""))


def iomem(state: GuestState) -> Iterator[Text]:
    """The tree of /proc/iomem, with System RAM highlighted."""
    yield from _entries(_seen(state.iomem, "/proc/iomem"), 0)


def _entries(entries: Iterable[IomemEntry], depth: int) -> Iterator[Text]:
    for entry in entries:
        style = "bold green" if entry.name.startswith("System RAM") else ""
        yield Text(f"{'  ' * depth}{entry.range} : {clean(entry.name)} ({format_size(entry.range.size)})", style=style)
        yield from _entries(entry.children, depth + 1)


def blocks(state: GuestState, block_size: int) -> Iterator[Text]:
    """Memory blocks, adjacent equal ones in one line: numbers, addresses, state, zones, node."""
    ordered = sorted(_seen(state.blocks, "memory blocks"), key=lambda block: block.index)
    for run in _runs(ordered):
        first, last = run[0], run[-1]
        where = AddrRange(first.index * block_size, (last.index + 1) * block_size)
        name = f"memory{first.index}" + (f"-{last.index}" if last is not first else "")
        zones = " ".join(first.valid_zones or ())
        nodes = ",".join(map(str, first.nodes))
        style = _mark(first)[1]
        yield Text(clean(f"{name:<16} {where}  {first.state:<8} {zones:<16} node {nodes}"), style=style)


def _runs(ordered: Sequence[MemoryBlock]) -> Iterator[list[MemoryBlock]]:
    def key(numbered: tuple[int, MemoryBlock]) -> tuple[object, ...]:
        # The difference is the same for consecutive blocks.
        number, block = numbered
        return block.index - number, block.state, block.valid_zones, block.nodes

    for _, run in itertools.groupby(enumerate(ordered), key):
        yield [block for _, block in run]


def zones(state: GuestState) -> Iterator[Text]:
    """The zones that are not empty: node, name, first page frame, pages spanned, present and managed."""
    found = _seen(state.zones, "/proc/zoneinfo")
    yield Text(
        f"{'node':>4} {'zone':<8} {'start pfn':>12} {'spanned':>10} {'present':>10} {'managed':>10}", style="bold"
    )
    for zone in found:
        if zone.spanned or zone.present:
            start = "-" if zone.start_pfn is None else f"{zone.start_pfn:#x}"
            row = f"{zone.node:>4} {zone.name:<8} {start:>12} {zone.spanned:>10} {zone.present:>10} {zone.managed:>10}"
            yield Text(clean(row))


def devices(state: GuestState) -> Iterator[Text]:
    """The memory devices as QEMU reports them."""
    found = _seen(state.devices, "QEMU's memory devices")
    if not found:
        yield Text("no memory device is plugged", style="dim")
    for device in found:
        yield Text(clean(_device(device)))


def _device(device: MemoryDevice) -> str:
    size = format_size(device.size)
    if device.requested_size is not None:
        size = f"{size} of {format_size(device.max_size)}, {format_size(device.requested_size)} requested"
    place = "" if device.node is None else f", node {device.node}"
    slot = "" if device.slot is None else f", slot {device.slot}"
    return f"{device.id:<8} {device.kind:<12} {device.range}  {size}{place}{slot}"


def draw_map(state: GuestState, block_size: int) -> Iterator[Text]:
    """The physical address space, one character per memory block, without empty rows.

    The devices and their addresses follow.
    """
    present = {block.index: block for block in _seen(state.blocks, "memory blocks")}
    taken = set(present)
    found = () if isinstance(state.devices, NotObserved) else state.devices
    for device in found:
        whole = device.range.align_outward(block_size)
        # Limits the time to draw a region of terabytes.
        taken.update(itertools.islice(range(whole.start // block_size, whole.end // block_size), _ROW * 64))
    yield Text.assemble(*(Text.assemble((mark, style), f" {text}  ") for mark, style, text in _LEGEND))
    last: int | None = None
    for row in sorted({index // _ROW for index in taken}):
        if last is not None and row != last + 1:
            yield Text("            …", style="dim")
        cells = [_mark(present.get(index)) for index in range(row * _ROW, (row + 1) * _ROW)]
        yield Text.assemble(f"{row * _ROW * block_size:>12x} ", *(cell for cell in cells))
        last = row
    yield Text(f"{'':>12} one character is {format_size(block_size)}", style="dim")
    for device in found:
        yield Text(clean(_device(device)))


def _mark(block: MemoryBlock | None) -> tuple[str, str]:
    if block is None:
        return _MARKS["absent"]
    if block.state == "online":
        return _MOVABLE if block.valid_zones and block.valid_zones[0] == "Movable" else _KERNEL
    return _MARKS.get(block.state, ("?", "red"))
