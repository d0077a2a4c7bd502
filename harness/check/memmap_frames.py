# SPDX-License-Identifier: GPL-2.0-or-later
"""The frames of vmemmap, which only the host's walk shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.check.evidence import Evidence
from harness.check.folded import badly_folded_tails, may_move, read_only_memmap
from harness.check.registry import Broken
from harness.check.witnesses import WALK, Pair, View, clip, memmap_of, overlaps, translate, walked
from harness.model.expected import LinearPiece
from harness.model.vmemmap_frames import altmap_start
from harness.state import HostMapping
from harness.units import AddrRange, subtract_ranges


def moved(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    """Boot memory's memmap stays where it was put during boot, unless huge pages were folded: see ``unfolded``."""
    for part, before, now in overlaps(walked(pair.boot.vmemmap), walked(pair.now.vmemmap)):
        if may_move(evidence, now):
            continue
        was, is_now = translate(before, part), translate(now, part)
        if was != is_now:
            yield Broken(f"vmemmap {part}", f"frames {was}, as at boot", f"frames {is_now}", WALK)
        elif before.level != now.level:
            yield Broken(f"vmemmap {part}", f"{before.level} leaves, as at boot", f"{now.level} leaves", WALK)


def misplaced(evidence: Evidence, now: View) -> Iterator[Broken]:
    """Frames of hot-added memory's memmap in memory from which the kernel cannot have allocated them."""
    expected, leaves = evidence.expected, walked(now.vmemmap)
    boot = [now.kernel.memmap(piece) for piece in subtract_ranges(expected.memmap, expected.hot)]
    memmaps = [memmap_of(piece, now.kernel) for piece in expected.linear]
    for number, piece in enumerate(expected.linear):
        # Two calls may share the mapping of a partial section: whose frames it has depends on which of them came first.
        neighbours = [*memmaps[max(0, number - 1) : number], *memmaps[number + 1 : number + 2]]
        first = altmap_start(piece, evidence.layout)
        for part in subtract_ranges([memmaps[number]], [*boot, *neighbours]):
            inside = walked(clip(leaves, part))
            if first is None:
                yield from _outside(evidence, inside, piece)
            else:
                yield from _elsewhere(inside, memmaps[number].start, first)


def _outside(evidence: Evidence, leaves: Iterable[HostMapping], piece: LinearPiece) -> Iterator[Broken]:
    memory = evidence.expected.kernel_memory
    # While a range is being added its own memory is not online yet, so that the page allocator cannot hand it out.
    lent = [piece.altmap] if piece.altmap is not None else subtract_ranges(memory, [piece.range])
    for leaf in leaves:
        allowed = memory if may_move(evidence, leaf) else lent
        for part in subtract_ranges([translate(leaf, leaf.range)], allowed):
            where = part.shift(leaf.range.start - leaf.physical)
            yield Broken(f"vmemmap {where}", f"frames in {', '.join(map(str, allowed))}", f"frames {part}", WALK)


def _elsewhere(leaves: Iterable[HostMapping], start: int, first: int) -> Iterator[Broken]:
    for leaf in leaves:
        wanted, seen = leaf.range.shift(first - start), translate(leaf, leaf.range)
        if wanted != seen:
            yield Broken(f"vmemmap {leaf.range}", f"frames {wanted} of the device itself", f"frames {seen}", WALK)


def shared(evidence: Evidence, now: View) -> Iterator[Broken]:
    """Frames shared by two parts of vmemmap that are not folded; and wrongly folded ones."""
    leaves = walked(now.vmemmap)
    if evidence.expected.memmap_split:
        yield from badly_folded_tails(evidence, now)
        tails = read_only_memmap(evidence, now)
        leaves = [leaf for part in _complement(now, tails) for leaf in walked(clip(leaves, part))]
    folded = [piece for piece in evidence.expected.linear if piece.folded]
    heads: list[HostMapping] = []
    for piece in folded:
        yield from _badly_folded(walked(clip(leaves, memmap_of(piece, now.kernel))), piece, now, heads)
    areas = [memmap_of(piece, now.kernel) for piece in folded]
    plain = [leaf for part in _complement(now, areas) for leaf in walked(clip(leaves, part))]
    yield from _twice([*plain, *heads])


def _complement(now: View, areas: Sequence[AddrRange]) -> tuple[AddrRange, ...]:
    return subtract_ranges([now.kernel.vmemmap_window], areas)


def _twice(leaves: Iterable[HostMapping]) -> Iterator[Broken]:
    last: HostMapping | None = None
    for leaf in sorted(leaves, key=lambda leaf: leaf.physical):
        frames = translate(leaf, leaf.range)
        if last is not None:
            both = frames.intersect(translate(last, last.range))
            if both is not None:
                here = both.shift(leaf.range.start - leaf.physical)
                there = both.shift(last.range.start - last.physical)
                yield Broken(f"vmemmap {here}", "frames of its own", f"frames {both}, as vmemmap {there} has", WALK)
            if frames.end <= last.physical + last.range.size:
                continue
        last = leaf


def _badly_folded(
    leaves: Sequence[HostMapping], piece: LinearPiece, now: View, heads: list[HostMapping]
) -> Iterator[Broken]:
    """Each compound page's vmemmap has a first page and a second one, which all others are again; adds both to heads.

    Where the range does not begin with a compound page the kernel folds by another rhythm, which is not judged.
    """
    page, memmap = now.kernel.page_size, memmap_of(piece, now.kernel)
    if piece.range.start % (piece.folded // now.kernel.struct_page_size * page):
        return
    tail = 0
    for leaf in leaves:
        for part in leaf.range.chunks(page):
            number = (part.start - memmap.start) % piece.folded // page
            frame = translate(leaf, part).start
            if number < 2:
                heads.append(HostMapping(part, frame, leaf.level, leaf.attrs))
                tail = frame
            elif frame != tail:
                yield Broken(f"vmemmap {part}", f"frame {tail:#x}, as the page before", f"frame {frame:#x}", WALK)
