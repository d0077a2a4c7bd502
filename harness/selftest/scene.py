# SPDX-License-Identifier: GPL-2.0-or-later
"""One sound step of a guest as material for corruptions: its evidence, and the targets in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.check import CheckResult, Evidence, run_all
from harness.collect.look import parse_state
from harness.model.expected import ExpectedSection, LinearPiece
from harness.model.zones import MOVABLE
from harness.state import MemoryBlock, MemoryDevice, NotObserved
from harness.units import AddrRange, subtract_ranges

T = TypeVar("T")


class Inapplicable(Exception):
    """A corruption does not apply here; the text says what is missing."""


@dataclass(frozen=True)
class Scene:
    """The evidence of the step ``title``."""

    title: str
    evidence: Evidence

    @functools.cached_property
    def results(self) -> Mapping[str, CheckResult]:
        """The results of all invariants that apply to the unchanged step."""
        return check(self.evidence)

    @property
    def block_size(self) -> int:
        return self.evidence.layout.block_size

    def text(self, source: str) -> str:
        """A collected source. Raises Inapplicable if it is missing."""
        data = self.evidence.observed.raw.get(source)
        if data is None:
            raise Inapplicable(f"{source} was not observed")
        return data.decode(errors="replace")

    def with_sources(self, sources: Mapping[str, bytes], left_out: str = "") -> Evidence:
        """The same step with replaced ``sources`` and without the one ``left_out``, all of them parsed again."""
        raw = {name: data for name, data in {**self.evidence.observed.raw, **sources}.items() if name != left_out}
        return dataclasses.replace(self.evidence, observed=parse_state(raw, self.evidence.layout.facts))

    def with_reports(self, **reports: Any) -> Evidence:
        """The same step with other ``unplugs``, ``resizes`` or ``touches``."""
        return dataclasses.replace(self.evidence, **reports)

    # targets -----------------------------------------------------------------------------------------------------

    def block(self, state: str, *, hot: bool = True) -> MemoryBlock:
        """The last complete memory block in a ``state``: of boot memory, or of a DIMM or virtio-mem.

        Hot-added blocks are in ZONE_MOVABLE if online; those of DIMMs come first.
        """
        found = list(self._blocks(state, hot))
        if not found:
            raise Inapplicable(f"no memory block of {'hot-added' if hot else 'boot'} memory is {state}")
        return next((block for block in found if hot and self.owner(block).kind == "dimm"), found[0])

    def _blocks(self, state: str, hot: bool) -> Iterator[MemoryBlock]:
        whole = (1 << self.block_size // self.evidence.layout.machine.arch.subsection_size) - 1
        sections = {section.number: section for section in self.evidence.expected.sections}
        for block in reversed(self.evidence.expected.blocks):
            section = sections.get(block.index)
            if block.state != state or section is None or section.subsections != whole or hot is self.is_early(section):
                continue
            if hot and not self._is_plugged(block):
                continue
            if state == "online" and hot and block.valid_zones != (MOVABLE,):
                continue
            yield block

    def _is_plugged(self, block: MemoryBlock) -> bool:
        """True if a DIMM or virtio-mem has plugged the whole block; virtio-mem plugs from its start."""
        owner = self.owner(block)
        plugged = AddrRange.sized(owner.range.start, owner.size)
        return owner.kind in ("dimm", "virtio-mem") and plugged.covers(self.block_range(block))

    def is_early(self, section: ExpectedSection) -> bool:
        """True for a section of boot memory."""
        return "early" in section.flags

    def block_range(self, block: MemoryBlock) -> AddrRange:
        """The physical range of a memory block."""
        return AddrRange.sized(block.index * self.block_size, self.block_size)

    def owner(self, block: MemoryBlock) -> MemoryDevice:
        """The device of a block."""
        where = self.block_range(block)
        for device in self.evidence.expected.devices:
            if device.range.overlaps(where):
                return device
        raise Inapplicable(f"memory{block.index} belongs to no device")

    def online(self) -> AddrRange:
        """The physical range of an online, hot-added memory block."""
        return self.block_range(self.block("online"))

    def offline(self) -> AddrRange:
        """The physical range of an offline, hot-added memory block."""
        return self.block_range(self.block("offline"))

    def removed(self) -> AddrRange:
        """A physical range of whole memory blocks that were removed."""
        expected = self.evidence.expected
        for piece in subtract_ranges(expected.once, expected.hot):
            whole = piece.align_inward(self.block_size)
            if whole:
                return whole
        raise Inapplicable("nothing was removed")

    def device(self, kind: str) -> MemoryDevice:
        """The first device of a kind: dimm, virtio-mem, virtio-pmem."""
        for device in self.evidence.expected.devices:
            if device.kind == kind:
                return device
        raise Inapplicable(f"no {kind} is plugged")

    def self_hosted(self) -> tuple[LinearPiece, AddrRange]:
        """A range added by one call with its memmap on the device, and the place of the memmap."""
        for piece in self.evidence.expected.linear:
            if piece.altmap is not None:
                return piece, piece.altmap
        raise Inapplicable("no memmap lies on its own device")

    def partial_section(self) -> ExpectedSection:
        """A hot-added section with only some of its sub-sections."""
        layout = self.evidence.layout
        whole = (1 << layout.paging.section_size // layout.machine.arch.subsection_size) - 1
        for section in self.evidence.expected.sections:
            if not self.is_early(section) and section.subsections != whole:
                return section
        raise Inapplicable("every hot-added section is whole")


def check(evidence: Evidence) -> dict[str, CheckResult]:
    """The results of all invariants that apply."""
    return {result.invariant: result for result in run_all(evidence)}


def broken(results: Mapping[str, CheckResult]) -> frozenset[str]:
    """The broken invariants."""
    return frozenset(name for name, result in results.items() if result.status == "fail")


def observed(value: T | NotObserved) -> T:
    """``value`` unless it was not observed: then raises Inapplicable."""
    if isinstance(value, NotObserved):
        raise Inapplicable(value.reason)
    return value
