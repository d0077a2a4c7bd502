# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's page tables from two witnesses: the guest's own dump, and the host's walk of its memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.arch.kernel_layout import KernelLayout
from harness.model.boot_layout import BootLayout
from harness.model.expected import ExpectedState, LinearPiece
from harness.model.leaves import LeafRun, join_runs
from harness.state import GuestState, HostMapping, Mapping, NotObserved
from harness.units import AddrRange, merge_ranges, subtract_ranges

PTDUMP = "/sys/kernel/debug/kernel_page_tables"
WALK = "host walk"

#: a run of equal leaves, with or without its physical address
Leaf = Mapping | HostMapping
Attributes = tuple[str, ...]


class View:
    """One witness at one time: all ``leaves``, and those of the ``linear`` map and ``vmemmap`` among them."""

    def __init__(self, source: str, layout: BootLayout, kernel: KernelLayout, leaves: Iterable[Leaf]) -> None:
        self.source = source
        self.kernel = kernel
        self.leaves = tuple(leaves)
        self.linear = tuple(clip(self.leaves, kernel.linear_window))
        self.vmemmap = tuple(clip(self.leaves, kernel.vmemmap_window))
        self._shape_words = layout.machine.arch.shape_words

    def physical(self, leaf: Leaf) -> AddrRange:
        """The physical range that a leaf of the linear map must lead to."""
        return self.kernel.physical(leaf.range)

    def permissions(self, leaf: Leaf) -> Attributes:
        """Its attributes without those of its shape."""
        return tuple(word for word in leaf.attrs if word not in self._shape_words)

    def covered(self) -> tuple[AddrRange, ...]:
        """The physical ranges for which there is a linear map."""
        return merge_ranges(self.physical(leaf) for leaf in self.linear)

    def runs(self, inside: AddrRange) -> Iterator[tuple[AddrRange, Leaf]]:
        """The leaves of the linear map clipped to a physical range."""
        for leaf in self.linear:
            part = self.physical(leaf).intersect(inside)
            if part is not None:
                yield part, leaf

    def shapes(self, inside: AddrRange) -> tuple[LeafRun, ...]:
        """Level and contiguous hint of the linear map of a physical range, joined where equal."""
        return join_runs(LeafRun(part, leaf.level, "CON" in leaf.attrs) for part, leaf in self.runs(inside))


@dataclass(frozen=True, slots=True)
class Pair:
    """One witness, now and in the fresh boot."""

    now: View
    boot: View

    @property
    def source(self) -> str:
        return self.now.source


@dataclass(frozen=True, slots=True)
class Views:
    """The available witnesses, and by source why the others are missing."""

    pairs: tuple[Pair, ...]
    missing: dict[str, str]

    @property
    def walk(self) -> Pair | NotObserved:
        """The host's walk."""
        return next((pair for pair in self.pairs if pair.source == WALK), NotObserved(self.missing.get(WALK, "")))

    def note(self) -> str:
        """One line if there is only one witness, else empty."""
        if len(self.pairs) != 1:
            return ""
        alone = "host walk" if self.pairs[0].source == WALK else "the guest's own dump"
        return f"{alone} alone: {'; '.join(self.missing.values())}"

    def unobserved(self) -> NotObserved:
        """Why there is no witness."""
        return NotObserved("; ".join(dict.fromkeys(self.missing.values())))


def views_of(layout: BootLayout, observed: GuestState) -> Views:
    """Both witnesses of one step."""
    kernel = layout.kernel
    if kernel is None:
        reason = "the kernel's virtual layout is unknown: vmcoreinfo could not be read"
        return Views((), {PTDUMP: reason, WALK: reason})
    pairs: list[Pair] = []
    missing: dict[str, str] = {}
    for source in (PTDUMP, WALK):
        now, boot = (_leaves(state, source) for state in (observed, layout.baseline))
        if isinstance(now, NotObserved) or isinstance(boot, NotObserved):
            missing[source] = next(part.reason for part in (now, boot) if isinstance(part, NotObserved))
        else:
            pairs.append(Pair(View(source, layout, kernel, now), View(source, layout, kernel, boot)))
    return Views(tuple(pairs), missing)


def _leaves(state: GuestState, source: str) -> tuple[Leaf, ...] | NotObserved:
    tables = state.page_tables if source == PTDUMP else state.host_tables
    return tables if isinstance(tables, NotObserved) else tables.mappings


def walked(leaves: Iterable[Leaf]) -> list[HostMapping]:
    """Those of ``leaves`` with a physical address: all that the host walked."""
    return [leaf for leaf in leaves if isinstance(leaf, HostMapping)]


def clip(leaves: Iterable[Leaf], window: AddrRange) -> Iterator[Leaf]:
    """The leaves in a range of virtual addresses, cut at its ends."""
    for leaf in leaves:
        part = leaf.range.intersect(window)
        if part is None:
            continue
        if part == leaf.range:
            yield leaf
        elif isinstance(leaf, HostMapping):
            yield HostMapping(part, leaf.physical + part.start - leaf.range.start, leaf.level, leaf.attrs)
        else:
            yield Mapping(part, leaf.level, leaf.attrs, leaf.region)


def memmap_of(piece: LinearPiece, kernel: KernelLayout) -> AddrRange:
    """The range mapped for the struct pages of one call; folded ones are mapped by single pages."""
    if not piece.folded:
        return kernel.memmap(piece.range)
    return kernel.struct_pages(piece.range).align_outward(kernel.page_size)


def wanted_memmap(expected: ExpectedState, kernel: KernelLayout) -> tuple[AddrRange, ...]:
    """The virtual ranges at which there must be struct pages now."""
    boot = subtract_ranges(expected.memmap, expected.hot)
    return merge_ranges([*map(kernel.memmap, boot), *(memmap_of(piece, kernel) for piece in expected.linear)])


def overlaps(
    left: Sequence[HostMapping], right: Sequence[HostMapping]
) -> Iterator[tuple[AddrRange, HostMapping, HostMapping]]:
    """The virtual ranges that two lists of leaves, each in address order, both map."""
    at = 0
    for leaf in left:
        while at < len(right) and right[at].range.end <= leaf.range.start:
            at += 1
        for other in right[at:]:
            shared = leaf.range.intersect(other.range)
            if shared is None:
                break
            yield shared, leaf, other


def translate(leaf: HostMapping, virtual: AddrRange) -> AddrRange:
    """The physical range behind a part of a leaf."""
    return virtual.shift(leaf.physical - leaf.range.start)
