# SPDX-License-Identifier: GPL-2.0-or-later
"""The leaf entries that map a range of the linear map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.arch import PagingMode
from harness.units import AddrRange, align_down, align_up


@dataclass(frozen=True, slots=True)
class LeafRun:
    """A run of equal leaves: ``contiguous`` is arm64's contiguous hint."""

    range: AddrRange
    level: str
    contiguous: bool

    @property
    def shape(self) -> tuple[str, bool]:
        """Level and contiguous hint, by which runs are joined."""
        return self.level, self.contiguous


def leaf_runs(piece: AddrRange, paging: PagingMode, offset: int, *, pages_only: bool) -> tuple[LeafRun, ...]:
    """The leaves that map virtual ``piece``, whose physical address is ``offset`` lower, in one mapping call.

    The largest leaf that fits and is aligned on both sides wins; whole aligned groups carry the contiguous hint
    (__create_pgd_mapping, arch/arm64/mm/mmu.c; best_map_size, arch/riscv/mm/init.c; v6.12). With ``pages_only``
    (NO_BLOCK_MAPPINGS | NO_CONT_MAPPINGS) everything is a plain page.
    """
    if pages_only:
        return (LeafRun(piece, "PTE", False),)
    levels = _by_level(piece, paging, offset)
    return join_runs(
        run for level, chunk in levels for run in _with_hint(chunk, level, paging.contiguous_sizes.get(level), offset)
    )


def join_runs(runs: Iterable[LeafRun]) -> tuple[LeafRun, ...]:
    """Join adjacent runs of equal shape; ``runs`` are in address order."""
    out: list[LeafRun] = []
    for run in runs:
        last = out[-1] if out else None
        if last is not None and last.range.end == run.range.start and last.shape == run.shape:
            run = LeafRun(AddrRange(out.pop().range.start, run.range.end), run.level, run.contiguous)
        out.append(run)
    return tuple(out)


def _by_level(piece: AddrRange, paging: PagingMode, offset: int) -> Iterator[tuple[str, AddrRange]]:
    sizes = sorted(paging.leaf_sizes.items(), key=lambda item: -item[1])
    at = piece.start
    while at < piece.end:
        for level, size in sizes:
            if at % size == 0 and (at - offset) % size == 0 and at + size <= piece.end:
                stop = _end_of_level(at, piece.end, level, size, sizes, offset)
                yield level, AddrRange(at, stop)
                at = stop
                break
        else:
            raise ValueError(f"{piece} is not made of whole pages")


def _end_of_level(at: int, end: int, level: str, size: int, sizes: list[tuple[str, int]], offset: int) -> int:
    stop = align_down(end, size)
    larger = [other for name, other in sizes if other > size and offset % other == 0]
    for other in larger:
        boundary = align_up(at + 1, other)
        if boundary + other <= end:
            stop = min(stop, boundary)
    return stop


def _with_hint(chunk: AddrRange, level: str, group: int | None, offset: int) -> Iterator[LeafRun]:
    inner = AddrRange(chunk.start, chunk.start) if group is None or offset % group else chunk.align_inward(group)
    if not inner:
        yield LeafRun(chunk, level, False)
        return
    for part, hint in (
        (AddrRange(chunk.start, inner.start), False),
        (inner, True),
        (AddrRange(inner.end, chunk.end), False),
    ):
        if part:
            yield LeafRun(part, level, hint)
