# SPDX-License-Identifier: GPL-2.0-or-later
"""VMM-*: the memory map in vmemmap: what is mapped, how, and where its frames lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from harness.check.evidence import Evidence
from harness.check.linear import by_witness, compare_cover
from harness.check.registry import Broken, Outcome, invariant
from harness.check.views import WALK, Attributes, Leaf, Pair, View, clip, overlaps, translate
from harness.model.expected import LinearPiece
from harness.state import HostMapping, NotObserved
from harness.units import AddrRange, merge_ranges, subtract_ranges


@invariant(
    "VMM-1",
    "vmemmap is mapped for exactly the present (sub-)sections, at the page where a section is partial, as boot's is; "
    "its frames are its own, and lie in the device's reserved pages where it hosts its memmap, else in other memory",
    source="vmemmap_populate, vmemmap_free (arch/arm64/mm/mmu.c, v6.12); section_activate (mm/sparse.c, v6.12); "
    "altmap_alloc_block_buf (mm/sparse-vmemmap.c), create_altmaps_and_memory_blocks (mm/memory_hotplug.c, v6.12)",
    motive="d4234d131b0a: arm64: mm: Populate vmemmap at the page level if not section aligned",
)
def vmm_1(evidence: Evidence) -> Outcome:
    return by_witness(evidence, _vmemmap)


def _vmemmap(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    now = pair.now
    wanted = merge_ranges(now.kernel.memmap(piece) for piece in evidence.expected.memmap)
    yield from compare_cover(wanted, merge_ranges(leaf.range for leaf in now.vmemmap), "vmemmap", pair.source)
    yield from _permissions(pair)
    if pair.source == WALK:
        yield from _moved(evidence, pair)
        yield from _misplaced(evidence, now)
        yield from _shared(evidence, now)


def _permissions(pair: Pair) -> Iterator[Broken]:
    sizes: Counter[Attributes] = Counter()
    for leaf in pair.boot.vmemmap:
        sizes[pair.boot.permissions(leaf)] += leaf.range.size
    if not sizes:
        return
    wanted = sizes.most_common(1)[0][0]
    for leaf in pair.now.vmemmap:
        seen = pair.now.permissions(leaf)
        if seen != wanted:
            yield Broken(f"vmemmap {leaf.range}", " ".join(wanted), " ".join(seen), pair.source)


def _hosted(leaves: Iterable[Leaf]) -> list[HostMapping]:
    return [leaf for leaf in leaves if isinstance(leaf, HostMapping)]


def _moved(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    """Boot memory's memmap stays where it was put during boot."""
    if _optimizes_hugetlb(evidence):
        return
    for part, before, now in overlaps(_hosted(pair.boot.vmemmap), _hosted(pair.now.vmemmap)):
        assert isinstance(before, HostMapping) and isinstance(now, HostMapping)
        was, is_now = translate(before, part), translate(now, part)
        if was != is_now:
            yield Broken(f"vmemmap {part}", f"frames {was}, as at boot", f"frames {is_now}", WALK)


def _misplaced(evidence: Evidence, now: View) -> Iterator[Broken]:
    memmaps = [now.kernel.memmap(piece.range) for piece in evidence.expected.linear]
    boot = [now.kernel.memmap(piece) for piece in subtract_ranges(evidence.expected.memmap, evidence.expected.hot)]
    leaves = _hosted(now.vmemmap)
    for number, piece in enumerate(evidence.expected.linear):
        # Two calls may share the mapping of a partial section; whose frames it has depends on which came first.
        shared = [*boot, *memmaps[max(0, number - 1) : number], *memmaps[number + 1 : number + 2]]
        own = subtract_ranges([memmaps[number]], shared)
        for part in own:
            yield from _outside(_clip(leaves, part), piece, evidence.expected.kernel_memory)


def _clip(leaves: Sequence[HostMapping], window: AddrRange) -> list[HostMapping]:
    return _hosted(clip(leaves, window))


def _outside(leaves: Iterable[HostMapping], piece: LinearPiece, memory: Sequence[AddrRange]) -> Iterator[Broken]:
    # While a range is being added its own memory is not online yet, so that the page allocator cannot hand it out.
    allowed = [piece.altmap] if piece.altmap is not None else subtract_ranges(memory, [piece.range])
    for leaf in leaves:
        frames = AddrRange.sized(leaf.physical, leaf.range.size)
        for part in subtract_ranges([frames], allowed):
            where = leaf.range.start + part.start - leaf.physical
            yield Broken(
                f"vmemmap {AddrRange.sized(where, part.size)}",
                f"frames in {', '.join(map(str, allowed))}",
                f"frames {part}",
                WALK,
            )


def _shared(evidence: Evidence, now: View) -> Iterator[Broken]:
    config = evidence.layout.facts.config
    if config is None or "ARCH_WANT_OPTIMIZE_DAX_VMEMMAP" in config or _optimizes_hugetlb(evidence):
        return
    leaves = sorted(_hosted(now.vmemmap), key=lambda leaf: leaf.physical)
    last: HostMapping | None = None
    for leaf in leaves:
        frames = AddrRange.sized(leaf.physical, leaf.range.size)
        if last is not None:
            twice = frames.intersect(AddrRange.sized(last.physical, last.range.size))
            if twice is not None:
                yield Broken(
                    f"vmemmap {leaf.range}", "frames of its own", f"frames {twice} serve {last.range} too", WALK
                )
        if last is None or frames.end > last.physical + last.range.size:
            last = leaf


def _optimizes_hugetlb(evidence: Evidence) -> bool:
    """True if vmemmap of huge pages may be folded (mm/hugetlb_vmemmap.c): the kernel can, and there are such pages."""
    config, meminfo = evidence.layout.facts.config, evidence.observed.meminfo
    can = config is None or "HUGETLB_PAGE_OPTIMIZE_VMEMMAP" in config
    return can and (isinstance(meminfo, NotObserved) or meminfo.get("Hugetlb", 0) > 0)
