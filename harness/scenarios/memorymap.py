# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's physical memory in one snapshot, small enough to be kept with every step's result and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.state import GuestState, IomemEntry, MemoryBlock, NotObserved
from harness.units import AddrRange

#: maximum number of runs in a map: a guest may print anything
MAX_RUNS = 400


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """``iomem`` are (depth, physical range, name) of RAM and memory devices, outer before inner; ``blocks`` are
    (physical range, state with zones) of memory blocks that are next to each other and alike, in address order."""

    iomem: tuple[tuple[int, AddrRange, str], ...]
    blocks: tuple[tuple[AddrRange, str], ...]


def memory_map(state: GuestState, ram_base: int, block_size: int) -> MemoryMap | None:
    """The map of a snapshot at or above ``ram_base``, without PCI windows; None if nothing was observed.

    Both numbers are bytes.
    """
    if isinstance(state.resources, NotObserved) and isinstance(state.memory_blocks, NotObserved):
        return None
    lines = () if isinstance(state.resources, NotObserved) else state.resources
    blocks = () if isinstance(state.memory_blocks, NotObserved) else state.memory_blocks
    iomem = tuple(_lines(lines, 0, ram_base))[:MAX_RUNS]
    return MemoryMap(iomem, tuple(_runs(blocks, block_size))[:MAX_RUNS])


def _lines(entries: Iterable[IomemEntry], depth: int, ram_base: int) -> Iterator[tuple[int, AddrRange, str]]:
    for entry in entries:
        if entry.range.start < ram_base or entry.name.startswith("PCI"):
            continue
        yield depth, entry.range, entry.name
        # Entries below System RAM (the kernel image and the like) are omitted.
        if not entry.name.startswith("System RAM"):
            yield from _lines(entry.children, depth + 1, ram_base)


def _runs(blocks: Iterable[MemoryBlock], block_size: int) -> list[tuple[AddrRange, str]]:
    runs: list[tuple[AddrRange, str]] = []
    for block in sorted(blocks, key=lambda block: block.index):
        where = AddrRange.sized(block.index * block_size, block_size)
        zones = " ".join(block.valid_zones or ()) if block.state == "online" else ""
        text = f"{block.state} {zones}".strip()
        if runs and runs[-1][1] == text and runs[-1][0].end == where.start:
            runs[-1] = (AddrRange(runs[-1][0].start, where.end), text)
        else:
            runs.append((where, text))
    return runs
