# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory blocks that must stay online: a leaf of the linear map extends beyond them, or they are not whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from harness.model.boot_layout import BootLayout
from harness.model.expected import LinearPiece
from harness.model.leaves import LeafRun, leaf_runs
from harness.model.zones import MIXED
from harness.state import NotObserved
from harness.units import AddrRange, format_size, intersect_ranges, merge_ranges


def ram_leaves(layout: BootLayout, piece: AddrRange, *, pages_only: bool) -> tuple[LeafRun, ...]:
    """The leaves, at virtual addresses, of one call that maps physical ``piece``; the linear map must be known."""
    kernel = layout.kernel
    assert kernel is not None
    offset = kernel.linear_start - kernel.phys_offset
    sizes = {level: size for level, size in layout.paging.leaf_sizes.items() if level in kernel.leaf_levels}
    paging = dataclasses.replace(layout.paging, leaf_sizes=sizes)
    return leaf_runs(piece.shift(offset), paging, offset, pages_only=pages_only)


def spanned_blocks(layout: BootLayout, linear: Iterable[LinearPiece]) -> dict[int, str] | NotObserved:
    """The memory blocks of hot-added RAM with an edge inside a leaf, and that leaf.

    On kernels that check this (``KernelFeatures.keeps_spanned_blocks``), such a block never goes offline: unmapping it
    would split the leaf (can_unmap_without_split, arch/arm64/mm/mmu.c, v7.3). The memmap of a whole block always ends
    at the end of a vmemmap leaf.
    """
    pages_only, kernel = layout.maps_pages_only, layout.kernel
    if isinstance(pages_only, NotObserved):
        return pages_only
    assert kernel is not None
    found: dict[int, str] = {}
    for piece in linear if not pages_only else ():
        if piece.pages != "ram":
            continue
        runs = ram_leaves(layout, piece.range, pages_only=False)
        for block in piece.range.chunks(layout.block_size):
            for leaf in _spanning(layout, runs, kernel.linear(block)):
                found[block.start // layout.block_size] = leaf
    return found


def kept_blocks(layout: BootLayout, linear: Iterable[LinearPiece]) -> Mapping[int, str]:
    """The blocks of ``linear`` that this kernel refuses to offline, and why."""
    spanned = spanned_blocks(layout, linear)
    known = layout.features.keeps_spanned_blocks is True
    return spanned if known and not isinstance(spanned, NotObserved) else {}


def broken_blocks(layout: BootLayout, zones: Mapping[int, str | None]) -> dict[int, str]:
    """The blocks of boot memory that no kernel offlines (EINVAL), and why; ``zones`` are theirs after boot.

    A block must have no hole, neither behind the last RAM nor where firmware keeps memory (walk_system_ram_range in
    offline_pages, mm/memory_hotplug.c), and be of a single zone (memory_block_offline, drivers/base/memory.c; v6.12).
    """
    nodes, iomem = layout.machine.node_ranges(), layout.baseline.resources
    listed = [] if isinstance(iomem, NotObserved) else [e.range for e in iomem if e.name == "System RAM"]
    ram = merge_ranges(nodes if isinstance(iomem, NotObserved) else intersect_ranges(nodes, listed))
    found: dict[int, str] = {}
    for index, zone in zones.items():
        block = AddrRange.sized(index * layout.block_size, layout.block_size)
        if not any(part.covers(block) for part in ram):
            found[index] = "it has a hole"
        elif zone == MIXED:
            found[index] = "it has pages of several zones"
    return found


def _spanning(layout: BootLayout, runs: Iterable[LeafRun], block: AddrRange) -> Iterator[str]:
    paging = layout.paging
    for run in runs:
        size = (paging.contiguous_sizes if run.contiguous else paging.leaf_sizes)[run.level]
        for edge in (block.start, block.end):
            if run.range.start < edge < run.range.end and edge % size:
                kind = f"{run.level} group" if run.contiguous else run.level
                yield f"a {kind} of {format_size(size)} reaches beyond it"
