# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaf rules of the linear map, compared with a walk that maps page by page like the kernel's loops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_kernel import kernel_walk

from harness.arch import ARM64, RISCV64
from harness.model.leaves import LeafRun, leaf_runs
from harness.units import GIB, KIB, MIB, AddrRange

P4K = ARM64.paging[4 * KIB]


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
