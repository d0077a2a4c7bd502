# SPDX-License-Identifier: GPL-2.0-or-later
"""Translates the kernel's virtual addresses to physical ones: by arithmetic like the kernel, or by its mappings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from harness.arch.kernel_layout import KernelLayout
from harness.errors import InfraError
from harness.kmem.physical_memory import Flags, Words
from harness.state import HostMapping
from harness.units import TOP, AddrRange


class Untranslated(InfraError):
    """A virtual address that cannot be translated."""

    def __init__(self, address: int, why: str) -> None:
        super().__init__(f"kernel address {address:#018x} {why}")
        self.address = address


class Translation(Protocol):
    """Translates virtual addresses to physical ones."""

    def translate(self, addresses: Words) -> tuple[Words, Flags]:
        """The physical address of each of ``addresses``, and whether it has one (if not, the first is meaningless)."""


@dataclass(frozen=True, slots=True)
class Window:
    """Virtual addresses that are ``offset`` (modulo 2**64) above their physical addresses."""

    virtual: AddrRange
    offset: int


@dataclass(frozen=True, slots=True)
class DirectMap:
    """Windows in which virtual and physical addresses differ by a constant; the first window with an address counts.

    ``tag`` is the mask of a pointer's KASAN tag; in an address these bits are all set (see ``KernelFeatures``).
    """

    windows: tuple[Window, ...]
    tag: int = 0

    def physical(self, address: int) -> int:
        """The physical address of one virtual one. Raises Untranslated outside of all windows."""
        for window in self.windows:
            if address | self.tag in window.virtual:
                return ((address | self.tag) - window.offset) % TOP
        raise Untranslated(address, "is not in the linear map")

    def translate(self, addresses: Words) -> tuple[Words, Flags]:
        """See ``Translation``."""
        addresses = addresses | np.uint64(self.tag)
        physical = np.zeros(addresses.shape, dtype=np.uint64)
        found = np.zeros(addresses.shape, dtype=np.bool_)
        for window in self.windows:
            here = (addresses - np.uint64(window.virtual.start) < np.uint64(window.virtual.size)) & ~found
            physical[here] = addresses[here] - np.uint64(window.offset % TOP)
            found |= here
        return physical, found


def direct_map(layout: KernelLayout, *, tag: int = 0) -> DirectMap:
    """The linear map, which the kernel translates without page tables."""
    linear = Window(layout.linear_window, (layout.linear_start - layout.phys_offset) % TOP)
    return DirectMap((linear,), tag)


class PageMap:
    """The runs of a page-table walk as a translation. ``mappings`` must not overlap."""

    def __init__(self, mappings: Iterable[HostMapping]) -> None:
        runs = sorted((run.range.start, run.range.size, run.physical) for run in mappings)
        self._start, self._size, self._physical = (
            np.array([run[column] for run in runs], dtype=np.uint64) for column in range(3)
        )

    def translate(self, addresses: Words) -> tuple[Words, Flags]:
        """See ``Translation``."""
        if len(self._start) == 0:
            return np.zeros(addresses.shape, dtype=np.uint64), np.zeros(addresses.shape, dtype=np.bool_)
        run = np.searchsorted(self._start, addresses, side="right") - 1
        known = run >= 0
        run = np.maximum(run, 0)
        within = addresses - self._start[run]
        return self._physical[run] + within, known & (within < self._size[run])
