# SPDX-License-Identifier: GPL-2.0-or-later
"""MEM-3: anything that grows in each round of a soak is a leak, however small."""

from __future__ import annotations

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Outcome, invariant
from harness.state import NotObserved

#: the slab cache for directories of memory blocks in sysfs (fs/kernfs/dir.c)
SLAB = "kernfs_node_cache"


@invariant(
    "MEM-3",
    "over the rounds of a soak, every counter, the objects of memory blocks in sysfs and what each allocation site "
    "holds stay level",
    source="memory_block_release (drivers/base/memory.c), memmap_pages_add (mm/sparse-vmemmap.c), v6.12",
    motive="a few bytes that each round leaves behind show in no single step",
    needs=("slabs",),
)
def mem_3(evidence: Evidence) -> Outcome:
    if not evidence.slopes and not evidence.unread:
        return None
    broken = [Broken(slope.name, "slope 0", slope.spelled, "least squares") for slope in evidence.slopes if slope.leaks]
    return broken or (NotObserved("; ".join(evidence.unread)) if evidence.unread else [])
