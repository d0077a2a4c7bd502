# SPDX-License-Identifier: GPL-2.0-or-later
"""The frames of vmemmap that can be predicted."""

from __future__ import annotations

from harness.model.boot_layout import BootLayout
from harness.model.expected import LinearPiece
from harness.units import AddrRange, align_up


def altmap_start(piece: LinearPiece, layout: BootLayout) -> int | None:
    """The physical start of a memmap on its own device, whose frames are contiguous from there.

    None if they are elsewhere or cannot be predicted. altmap_alloc_block_buf (mm/sparse-vmemmap.c, v6.12) allocates the
    reserved pages in order, in naturally aligned units, section by section as __add_pages proceeds. A unit is a PMD if
    a whole section's struct pages fill PMDs (or vmemmap is populated only by PMDs), else a page. Pages skipped for
    alignment are counted again when a device is bound to its driver a second time: with units of two sizes the
    addresses depend on that.
    """
    kernel = layout.kernel
    if kernel is None or piece.altmap is None or kernel.struct_page_size != layout.machine.arch.max_struct_page:
        return None
    section, pmd = layout.paging.section_size, layout.paging.leaf_sizes["PMD"]
    fills = layout.memmap_bytes(AddrRange.sized(0, section)) % pmd == 0
    units = {
        pmd if kernel.vmemmap_granule == pmd or (fills and part.size == section) else layout.page_size
        for part in piece.range.chunks(section)
    }
    return align_up(piece.altmap.start, units.pop()) if len(units) == 1 else None
