# SPDX-License-Identifier: GPL-2.0-or-later
"""VMM-*: the memmap in vmemmap: which parts are mapped, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from harness.arch.kernel_layout import KernelLayout
from harness.check.counters import counts_memmap, memmap_pages
from harness.check.evidence import Evidence
from harness.check.linear_invariants import by_witness, compare_cover
from harness.check.memmap_frames import misplaced, moved, shared
from harness.check.registry import Broken, Seen, invariant
from harness.check.witnesses import WALK, Attributes, Pair, View, clip, wanted_memmap
from harness.model.expected import ExpectedState
from harness.units import AddrRange, merge_ranges, subtract_ranges


@invariant(
    "VMM-1",
    "vmemmap is mapped, as boot's is, for exactly the present (sub-)sections; its frames are its own and lie where the "
    "kernel takes them from: the device's reserved pages, or memory that was online",
    source="vmemmap_populate (arch/arm64/mm/mmu.c, arch/riscv/mm/init.c), section_activate (mm/sparse.c), "
    "altmap_alloc_block_buf (mm/sparse-vmemmap.c, v6.12)",
    motive="d4234d131b0a: arm64: mm: Populate vmemmap at the page level if not section aligned",
    needs=("tables",),
)
@by_witness
def vmm_1(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    wanted = wanted_memmap(evidence.expected, pair.now.kernel)
    optional = _optional(evidence.expected, pair.now, wanted)
    seen = merge_ranges(leaf.range for leaf in pair.now.vmemmap)
    yield from compare_cover(subtract_ranges(wanted, optional), subtract_ranges(seen, optional), "vmemmap", pair.source)
    yield from _permissions(evidence, pair)
    if pair.source == WALK:
        yield from moved(evidence, pair)
        yield from misplaced(evidence, pair.now)
        yield from shared(evidence, pair.now)


def _optional(expected: ExpectedState, now: View, wanted: Sequence[AddrRange]) -> tuple[AddrRange, ...]:
    """What may be populated for a partial section beyond its own struct pages, where a PTE table exists already.

    Where a whole entry of the PMD is populated (riscv64), an entry that leads to a table already gets single pages for
    the struct pages alone (vmemmap_populate_hugepages, mm/sparse-vmemmap.c, v7.3); one that was split later has all.
    """
    kernel = now.kernel
    exact = [kernel.struct_pages(piece) for piece in [*expected.memmap, *(piece.range for piece in expected.linear)]]
    beyond = subtract_ranges(wanted, [part.align_outward(kernel.page_size) for part in exact])
    tables = [leaf.range for part in beyond for leaf in clip(now.vmemmap, _entry(part, kernel)) if leaf.level == "PTE"]
    split = merge_ranges(_entry(leaf, kernel) for leaf in tables)
    return merge_ranges(part for one in beyond for area in split if (part := one.intersect(area)) is not None)


def _entry(part: AddrRange, kernel: KernelLayout) -> AddrRange:
    return part.align_outward(kernel.vmemmap_granule)


def _permissions(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    sizes: Counter[Attributes] = Counter()
    for leaf in pair.boot.vmemmap:
        sizes[pair.boot.permissions(leaf)] += leaf.range.size
    if not sizes:
        return
    wanted = sizes.most_common(1)[0][0]
    writable = evidence.layout.machine.arch.writable_word
    folded = tuple(word for word in wanted if word != writable) if evidence.expected.memmap_split else wanted
    for leaf in pair.now.vmemmap:
        seen = pair.now.permissions(leaf)
        if seen != wanted and (seen != folded or leaf.level != "PTE"):
            yield Broken(f"vmemmap {leaf.range}", " ".join(wanted), " ".join(seen), pair.source)


@invariant(
    "VMM-2",
    "vmemmap of removed (sub-)sections is unmapped, and the kernel counts no page of it any more",
    source="vmemmap_free (arch/arm64/mm/mmu.c, arch/riscv/mm/init.c), depopulate_section_memmap (mm/sparse.c, v6.12)",
    motive="9d8573111024: memmap accounting; a memmap left behind is lost with every cycle",
    needs=("tables",),
    when=lambda evidence: subtract_ranges(evidence.expected.once, evidence.expected.hot),
)
def vmm_2(evidence: Evidence) -> Seen:
    outcome = _left_behind(evidence)
    if not counts_memmap(evidence):
        uncounted = "the frames were not counted: no nr_memmap in /proc/vmstat (it is there since v6.11)"
        return Seen(outcome.broken, "; ".join(filter(None, (outcome.note, uncounted))))
    return Seen([*outcome.broken, *memmap_pages(evidence)], outcome.note)


@by_witness
def _left_behind(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    expected, kernel = evidence.expected, pair.now.kernel
    gone = [kernel.memmap(piece) for piece in subtract_ranges(expected.once, expected.hot)]
    for window in subtract_ranges(gone, wanted_memmap(expected, kernel)):
        for left in merge_ranges(leaf.range for leaf in clip(pair.now.vmemmap, window)):
            yield Broken(f"vmemmap {left}", "not mapped any more", "mapped", pair.source)
