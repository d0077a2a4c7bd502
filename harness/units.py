# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes in bytes and half-open address ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
#: the end of the address space
TOP = 1 << 64

_SUFFIX = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """The bytes that ``text`` names, such as 512M, 1GiB, 0x8000000 or 4096; raises ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size (examples: 512M, 1G, 0x8000000)")
    size = int(match[1], 0 if match[1][:2] in ("0x", "0X") else 10) * _SUFFIX[match[2].upper()]
    if size > TOP:
        raise ValueError(f"{text!r} is larger than {format_size(TOP)}")
    return size


def format_size(size: int) -> str:
    """Return the shortest exact spelling of ``size`` bytes with a binary suffix: ``1G``, ``1536M``, ``4097``."""
    for suffix, unit in (("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def align_down(value: int, alignment: int) -> int:
    """Round ``value`` down to a multiple of ``alignment``."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Round ``value`` up to a multiple of ``alignment``."""
    return value + -value % alignment


@dataclass(frozen=True, slots=True, order=True)
class AddrRange:
    """Half-open range ``[start, end)`` of byte addresses; printed the kernel's way, end inclusive."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"range runs backwards: {self.start:#x}..{self.end:#x}")

    @classmethod
    def sized(cls, start: int, size: int) -> AddrRange:
        """The range of ``size`` bytes at ``start``."""
        return cls(start, start + size)

    @property
    def size(self) -> int:
        return self.end - self.start

    def __bool__(self) -> bool:
        return self.end > self.start

    def __str__(self) -> str:
        if not self:
            return f"{self.start:x}-(empty)"
        return f"{self.start:08x}-{self.end - 1:08x}"

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def covers(self, other: AddrRange) -> bool:
        """True if ``other`` lies wholly inside."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: AddrRange) -> bool:
        """True if the two share at least one byte."""
        return self.start < other.end and other.start < self.end

    def intersect(self, other: AddrRange) -> AddrRange | None:
        """The shared part, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return AddrRange(start, end) if start < end else None

    def shift(self, offset: int) -> AddrRange:
        """The same range, moved by ``offset`` bytes."""
        return AddrRange(self.start + offset, self.end + offset)

    def is_aligned(self, alignment: int) -> bool:
        """True if both ends are multiples of ``alignment``."""
        return self.start % alignment == 0 and self.end % alignment == 0

    def align_inward(self, alignment: int) -> AddrRange:
        """The largest aligned range inside (empty if there is none)."""
        start = align_up(self.start, alignment)
        return AddrRange(start, max(start, align_down(self.end, alignment)))

    def align_outward(self, alignment: int) -> AddrRange:
        """The smallest aligned range around it."""
        return AddrRange(align_down(self.start, alignment), align_up(self.end, alignment))

    def chunks(self, size: int) -> Iterator[AddrRange]:
        """Cut into pieces at multiples of ``size``."""
        at = self.start
        while at < self.end:
            stop = min(self.end, align_down(at, size) + size)
            yield AddrRange(at, stop)
            at = stop


# Comparing ranges takes ten times as long.
_START = attrgetter("start")


def merge_ranges(ranges: Iterable[AddrRange]) -> tuple[AddrRange, ...]:
    """Sort and join touching or overlapping ranges; empty ones vanish."""
    out: list[AddrRange] = []
    for item in sorted((item for item in ranges if item.start < item.end), key=_START):
        if out and item.start <= out[-1].end:
            out[-1] = AddrRange(out[-1].start, max(out[-1].end, item.end))
        else:
            out.append(item)
    return tuple(out)


def subtract_ranges(ranges: Iterable[AddrRange], holes: Iterable[AddrRange]) -> tuple[AddrRange, ...]:
    """The part of ``ranges`` that no hole covers, merged and sorted."""
    cuts = merge_ranges(holes)
    out: list[AddrRange] = []
    for item in merge_ranges(ranges):
        at = item.start
        for hole in cuts:
            if hole.end <= at:
                continue
            if hole.start >= item.end:
                break
            if hole.start > at:
                out.append(AddrRange(at, hole.start))
            at = max(at, hole.end)
        if at < item.end:
            out.append(AddrRange(at, item.end))
    return tuple(out)


def intersect_ranges(left: Iterable[AddrRange], right: Iterable[AddrRange]) -> tuple[AddrRange, ...]:
    """The part that both sets share, merged and sorted."""
    others = merge_ranges(right)
    return merge_ranges(
        shared for item in merge_ranges(left) for other in others if (shared := item.intersect(other)) is not None
    )
