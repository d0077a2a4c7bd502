# SPDX-License-Identifier: GPL-2.0-or-later
"""Which frames vmemmap leads to where the kernel's choice can be foretold."""

from __future__ import annotations

from harness.model.boot_layout import BootLayout
from harness.model.expected import LinearPiece
from harness.units import AddrRange, align_up


def altmap_start(piece: LinearPiece, layout: BootLayout) -> int | None:
    """Where the frames of a memmap begin that lies on its own device; they follow one another from there.

    None where they lie elsewhere or their places cannot be foretold. altmap_alloc_block_buf (mm/sparse-vmemmap.c,
    v6.12) hands the reserved pages out from the first to the last, in naturally aligned units, as __add_pages comes to
    section after section. A unit is a PMD where a whole section's struct pages fill PMDs (or vmemmap is populated by
    nothing less), else a page. What alignment skipped is counted once more when a device is bound to its driver a
    second time: with units of two sizes the places depend on that.
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
