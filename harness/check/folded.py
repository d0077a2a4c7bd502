# SPDX-License-Identifier: GPL-2.0-or-later
"""The memmap of huge pages that a kernel folds: what is allowed while there are any, and afterwards.

All but the first page of a huge page's struct pages then lead to one frame, read-only: that of the first one, or one
that all huge pages of a zone and an order share (``KernelFeatures.shares_tails``). Giving the huge page back puts other
frames in their place. PMDs of vmemmap that were split for it stay split (vmemmap_split_pmd, vmemmap_remap_pte,
vmemmap_restore_pte, mm/hugetlb_vmemmap.c, v6.12 and v7.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.check.evidence import Evidence
from harness.check.registry import Broken
from harness.check.witnesses import WALK, Leaf, View, clip, translate
from harness.state import HostMapping, NotObserved
from harness.units import AddrRange, format_size, merge_ranges


def may_move(evidence: Evidence, leaf: Leaf) -> bool:
    """True if a part of vmemmap may have been folded: single pages then map it, with frames anywhere in memory."""
    return evidence.expected.memmap_split and leaf.level == "PTE"


def read_only_memmap(evidence: Evidence, view: View) -> tuple[AddrRange, ...]:
    """The virtual ranges of folded struct pages: single pages of vmemmap that cannot be written."""
    if not evidence.expected.memmap_split:
        return ()
    writable = evidence.layout.machine.arch.writable_word
    return merge_ranges(leaf.range for leaf in view.vmemmap if leaf.level == "PTE" and writable not in leaf.attrs)


def folded_pages(evidence: Evidence) -> int:
    """How many more pages of vmemmap are folded now than after boot, 0 if no page tables were observed."""
    for pair in evidence.views.pairs:
        now, boot = (read_only_memmap(evidence, view) for view in (pair.now, pair.boot))
        return (sum(part.size for part in now) - sum(part.size for part in boot)) // evidence.layout.page_size
    return 0


@dataclass(frozen=True, slots=True)
class _Folded:
    """One folded huge page: its own range, the frames of its first page of vmemmap, and the pages that are folded."""

    huge: AddrRange
    heads: frozenset[int]
    tails: tuple[HostMapping, ...]


def badly_folded_tails(evidence: Evidence, now: View) -> Iterator[Broken]:
    """Folded struct pages that do not belong to exactly one huge page, or more than there are huge pages."""
    meminfo, found = evidence.observed.meminfo, []
    for tails in read_only_memmap(evidence, now):
        head = AddrRange(tails.start - now.kernel.page_size, tails.start)
        huge = _huge_page(evidence, now, AddrRange(head.start, tails.end))
        if huge is None:
            yield Broken(f"vmemmap {tails}", "struct pages of one huge page, but the first", "others", WALK)
            continue
        heads = frozenset(translate(leaf, leaf.range).start for leaf in _pages(now, head))
        found.append(_Folded(huge, heads, tuple(_pages(now, tails))))
    shares = evidence.layout.features.shares_tails
    if isinstance(shares, NotObserved):
        # Without BTF the tables themselves decide, and must be consistent.
        shares = bool(found) and not any(page.physical in one.heads for one in found for page in one.tails)
    yield from _not_shared(evidence, now, found) if shares else _not_as_the_first(found)
    folded = sum(one.huge.size for one in found)
    if not isinstance(meminfo, NotObserved) and folded > meminfo.get("Hugetlb", 0):
        there = format_size(meminfo.get("Hugetlb", 0))
        yield Broken("vmemmap", f"at most {there} of huge pages folded", format_size(folded), WALK)


def _not_as_the_first(folds: Iterable[_Folded]) -> Iterator[Broken]:
    for one in folds:
        for page in one.tails:
            if {page.physical} != one.heads:
                wanted = ", ".join(f"{frame:#x}" for frame in sorted(one.heads)) or "none"
                yield Broken(
                    f"vmemmap {page.range}", f"frame {wanted}, as the first", f"frame {page.physical:#x}", WALK
                )


def _not_shared(evidence: Evidence, now: View, folds: Sequence[_Folded]) -> Iterator[Broken]:
    """vmemmap_get_tail, mm/hugetlb_vmemmap.c (v7.3): one page for each zone and order, which is no other's memmap."""
    writable = evidence.layout.machine.arch.writable_word
    own = [
        translate(leaf, leaf.range)
        for leaf in now.vmemmap
        if isinstance(leaf, HostMapping) and (leaf.level != "PTE" or writable in leaf.attrs)
    ]
    owned = merge_ranges(own)
    frames: dict[tuple[object, ...], Counter[int]] = {}
    for one in folds:
        for page in one.tails:
            frames.setdefault(_zone_and_size(evidence, one), Counter())[page.physical] += 1
    for one in folds:
        wanted = frames[_zone_and_size(evidence, one)].most_common(1)[0][0]
        for page in one.tails:
            if page.physical != wanted:
                yield Broken(
                    f"vmemmap {page.range}",
                    f"frame {wanted:#x}, as other huge pages of its zone and size",
                    f"frame {page.physical:#x}",
                    WALK,
                )
            elif any(page.physical in part for part in owned):
                yield Broken(
                    f"vmemmap {page.range}", "a frame that is no other page's memmap", f"frame {page.physical:#x}", WALK
                )


def _zone_and_size(evidence: Evidence, one: _Folded) -> tuple[object, ...]:
    index = one.huge.start // evidence.layout.block_size
    block = next((block for block in evidence.expected.blocks if block.index == index), None)
    # Two zones may meet in a block of boot memory.
    known = block is not None and block.state == "online"
    return (one.huge.size, (block.nodes, block.valid_zones) if known and block is not None else index)


def _pages(view: View, place: AddrRange) -> Iterator[HostMapping]:
    for leaf in clip(view.vmemmap, place):
        if isinstance(leaf, HostMapping):
            for part in leaf.range.chunks(view.kernel.page_size):
                yield HostMapping(part, translate(leaf, part).start, leaf.level, leaf.attrs)


def _huge_page(evidence: Evidence, view: View, memmap: AddrRange) -> AddrRange | None:
    """The huge page whose struct pages are ``memmap``, None if that is none."""
    kernel, paging = view.kernel, evidence.layout.paging
    start, size = (
        count // kernel.struct_page_size * kernel.page_size for count in (memmap.start - kernel.vmemmap, memmap.size)
    )
    known = size in paging.leaf_sizes.values() and start % size == 0
    return AddrRange.sized(start, size) if known else None
