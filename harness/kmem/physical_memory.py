# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's physical memory as one sparse address space, mapped read-only on the host."""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import InfraError
from harness.units import AddrRange, align_down, align_up

#: little-endian on any host: both guests are
Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]


class OutsideMemory(InfraError):
    """A physical address at which the guest has no memory (or none that the host can see)."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(f"the guest has no memory at physical {AddrRange.sized(address, size)}")
        self.address = address


@dataclass(frozen=True, slots=True)
class Region:
    """Guest-physical ``range`` whose first byte is byte ``offset`` of the file at ``path`` (a memfd of QEMU's)."""

    range: AddrRange
    path: Path
    offset: int = 0


class PhysicalMemory:
    """Reads a guest's memory by physical address, out of the files that back it.

    The files are opened and mapped once; the guest's later writes are visible. Nothing is ever written. ``close``
    releases the files: until then an unplugged backend keeps its host memory. Of ``last``, which is closed, it takes
    over what is still the same: the pages that were read there need not be found again. Raises InfraError if a file
    cannot be opened, is shorter than its region, or regions overlap.
    """

    def __init__(self, regions: Iterable[Region], last: PhysicalMemory | None = None) -> None:
        ordered = sorted(regions, key=lambda region: region.range)
        for lower, upper in itertools.pairwise(ordered):
            if lower.range.overlaps(upper.range):
                raise InfraError(f"two regions of guest memory overlap: {lower.range} and {upper.range}")
        self._mapped: list[_Mapped] = []
        try:
            for region in ordered:
                if region.range:
                    known = None if last is None else last._take(region)
                    self._mapped.append(known or _Mapped(region))
        except BaseException:
            self.close()
            raise
        finally:
            if last is not None:
                last.close()

    @property
    def ranges(self) -> tuple[AddrRange, ...]:
        """The readable physical ranges in address order."""
        return tuple(mapped.range for mapped in self._mapped)

    def read(self, address: int, size: int) -> bytes:
        """The ``size`` bytes at ``address``, which may span adjacent regions. Raises OutsideMemory."""
        parts = []
        at, end = address, address + size
        while at < end:
            mapped = self._region(at)
            if mapped is None:
                raise OutsideMemory(at, end - at)
            if mapped.end >= end and at == address:
                return mapped.read(at, size)
            stop = min(end, mapped.end)
            parts.append(mapped.read(at, stop - at))
            at = stop
        return b"".join(parts)

    def word(self, address: int) -> int:
        """The 64-bit word at ``address``, a multiple of 8: one at a time, nothing is quicker. Raises OutsideMemory."""
        mapped = self._region(address)
        if mapped is None:
            raise OutsideMemory(address, 8)
        return mapped.word(address)

    def holds(self, addresses: Words, size: int) -> Flags:
        """For each of ``addresses``, whether all ``size`` bytes there lie in one region."""
        found = np.zeros(addresses.shape, dtype=np.bool_)
        for mapped in self._mapped:
            found |= mapped.holds(addresses, size)
        return found

    def gather(self, addresses: Words, size: int, into: Words | None = None) -> Words:
        """Copy the ``size`` bytes at each address: an array of shape ``(len(addresses), size // 8)``.

        ``size`` is a power of two from 8 on, and every address a multiple of it. ``into`` is an array to be overwritten
        if it has that shape: new pages of the host cost more than the copy. Raises OutsideMemory for the first that is
        not wholly in one region, ValueError for one that is not aligned.
        """
        if size < 8 or size & (size - 1):
            raise ValueError(f"{size} is not a power of two from 8 on")
        if np.any(addresses & np.uint64(size - 1)):
            raise ValueError(f"not every address is a multiple of {size}")
        shape = len(addresses), size // 8
        out = np.empty(shape, dtype="<u8") if into is None or into.shape != shape else into
        left = np.ones(len(addresses), dtype=np.bool_)
        for mapped in self._mapped:
            here = mapped.holds(addresses, size)
            if here.all():
                return mapped.gather(addresses, size, out)
            if here.any():
                out[here] = mapped.gather(addresses[here], size)
                left &= ~here
        if left.any():
            raise OutsideMemory(int(addresses[left][0]), size)
        return out

    def gather_rows(self, addresses: Words, count: int) -> Words:
        """``count`` 64-bit words from each of ``addresses`` on (multiples of 8), one row each. Raises OutsideMemory."""
        cells = addresses[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(8)
        return self.gather(cells.ravel(), 8).reshape(-1, count)

    def close_but(self, kept: Collection[AddrRange]) -> None:
        """Release the files of all regions but the ``kept`` ones."""
        for mapped in self._mapped:
            if mapped.range not in kept:
                mapped.close()
        self._mapped = [mapped for mapped in self._mapped if mapped.range in kept]

    def _take(self, region: Region) -> _Mapped | None:
        for mapped in self._mapped:
            if mapped.region == region and mapped.is_current():
                self._mapped.remove(mapped)
                return mapped
        return None

    def _region(self, address: int) -> _Mapped | None:
        for mapped in self._mapped:
            if mapped.start <= address < mapped.end:
                return mapped
        return None

    def close(self) -> None:
        """Release all files; reading afterwards raises OutsideMemory."""
        while self._mapped:
            self._mapped.pop().close()

    def __enter__(self) -> PhysicalMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Mapped:
    """One region, mapped: ``words`` is its content as 64-bit words, from ``base`` on."""

    def __init__(self, region: Region) -> None:
        self.region, self.range = region, region.range
        self.start, self.end = region.range.start, region.range.end
        try:
            self.fd = os.open(region.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InfraError(
                f"cannot read the guest's memory {region.range} from {region.path}: {error.strerror}"
            ) from None
        self.offset = region.offset
        try:
            if os.fstat(self.fd).st_size < region.offset + region.range.size:
                raise InfraError(f"{region.path} is too short for the guest's memory {region.range}")
            start = align_down(region.offset, mmap.ALLOCATIONGRANULARITY)
            length = align_up(region.offset + region.range.size - start, 8)
            self.map = mmap.mmap(self.fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
        except OSError as error:
            os.close(self.fd)
            raise InfraError(f"cannot map the guest's memory {region.range}: {error.strerror}") from None
        except BaseException:
            os.close(self.fd)
            raise
        self.words = np.frombuffer(self.map, dtype="<u8")[(region.offset - start) // 8 :]
        # Also for one that nobody closes.
        self._close_file = weakref.finalize(self, os.close, self.fd)

    def is_current(self) -> bool:
        """Whether the region's path still leads to the mapped file."""
        try:
            return os.path.samestat(os.fstat(self.fd), self.region.path.stat())
        except OSError:
            return False

    def read(self, address: int, size: int) -> bytes:
        # Not through the mapping: touching a hole there would make the host allocate it.
        data = os.pread(self.fd, size, self.offset + address - self.range.start)
        if len(data) != size:
            raise OutsideMemory(address, size)
        return data

    def word(self, address: int) -> int:
        return int(self.words[address - self.start >> 3])

    def holds(self, addresses: Words, size: int) -> Flags:
        if size > self.range.size:
            return np.zeros(addresses.shape, dtype=np.bool_)
        low, high = np.uint64(self.range.start), np.uint64(self.range.end - size)
        return np.asarray((addresses >= low) & (addresses <= high))

    def gather(self, addresses: Words, size: int, out: Words | None = None) -> Words:
        count = size // 8
        first = (addresses - np.uint64(self.range.start)) // np.uint64(8)
        # All indices are in bounds; in other modes, NumPy copies to a buffer first.
        if self.range.start % size == 0:
            rows = self.words[: len(self.words) // count * count].reshape(-1, count)
            return rows.take((first // np.uint64(count)).astype(np.intp), axis=0, out=out, mode="clip")
        return self.words.take(first.astype(np.intp)[:, None] + np.arange(count), out=out, mode="clip")

    def close(self) -> None:
        # The array refers to the mapping: drop it first.
        del self.words
        self.map.close()
        self._close_file()
