# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaf rules of the linear map, against a walk that maps one page at a time the way the kernel's loops do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.arch import ARM64, RISCV64, PagingMode
from harness.model.leaves import LeafRun, leaf_runs
from harness.units import GIB, KIB, MIB, AddrRange

P4K = ARM64.paging[4 * KIB]


def kernel_walk(piece: AddrRange, paging: PagingMode, offset: int) -> list[LeafRun]:
    """alloc_init_pud/cont_pmd/pmd/cont_pte, recursively: each level tries its leaf, then its table."""
    out: list[tuple[AddrRange, str, bool]] = []
    levels = sorted(paging.leaf_sizes.items(), key=lambda item: -item[1])

    def aligned(at: int, stop: int, size: int) -> bool:
        return at % size == 0 and stop % size == 0 and (at - offset) % size == 0

    def level(part: AddrRange, depth: int, hinted: bool) -> None:
        name, size = levels[depth]
        group = paging.contiguous_sizes.get(name)
        if group is not None and not hinted:
            for chunk in part.chunks(group):
                fits = aligned(chunk.start, chunk.end, group)
                for leaf in chunk.chunks(size):
                    step(leaf, depth, fits)
            return
        for leaf in part.chunks(size):
            step(leaf, depth, False)

    def step(leaf: AddrRange, depth: int, contiguous: bool) -> None:
        name, size = levels[depth]
        if aligned(leaf.start, leaf.end, size):
            out.append((leaf, name, contiguous))
        else:
            level(leaf, depth + 1, False)

    level(piece, 0, False)
    joined: list[LeafRun] = []
    for where, name, contiguous in out:
        if joined and (joined[-1].level, joined[-1].contiguous) == (name, contiguous):
            where = AddrRange(joined.pop().range.start, where.end)
        joined.append(LeafRun(where, name, contiguous))
    return joined


@given(
    start=st.integers(0, 3 * 512),
    length=st.integers(1, 3 * 512),
    offset=st.sampled_from([0, 2 * MIB, 32 * MIB, GIB, 1 << 40]),
    arch=st.sampled_from([ARM64, RISCV64]),
)
def test_runs_equal_the_kernels_own_loops(start: int, length: int, offset: int, arch: object) -> None:
    paging = (ARM64 if arch is ARM64 else RISCV64).paging[4 * KIB]
    piece = AddrRange.sized((1 << 40) + start * 2 * MIB, length * 2 * MIB)
    assert list(leaf_runs(piece, paging, offset, pages_only=False)) == kernel_walk(piece, paging, offset)


@given(start=st.integers(0, 64), length=st.integers(1, 64))
def test_small_pieces_get_pages_and_hints(start: int, length: int) -> None:
    piece = AddrRange.sized(GIB + start * 4 * KIB, length * 4 * KIB)
    assert list(leaf_runs(piece, P4K, 0, pages_only=False)) == kernel_walk(piece, P4K, 0)


def test_pages_only() -> None:
    piece = AddrRange.sized(GIB, GIB)
    assert leaf_runs(piece, P4K, 0, pages_only=True) == (LeafRun(piece, "PTE", False),)


def test_a_gigabyte_is_one_pud() -> None:
    piece = AddrRange.sized(2 * GIB, GIB)
    assert leaf_runs(piece, P4K, 0, pages_only=False) == (LeafRun(piece, "PUD", False),)


def test_what_is_not_whole_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        leaf_runs(AddrRange(0, 100), P4K, 0, pages_only=False)
