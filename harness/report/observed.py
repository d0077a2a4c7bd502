# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables and memory sections of a snapshot, for printing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.arch import ArchSpec
from harness.arch.markers import MarkerSet, marker_set
from harness.errors import InfraError, UsageError
from harness.report.notepage import dump_tables
from harness.report.ptdump_text import Dump, read_dump
from harness.report.section_table import SectionShape
from harness.report.text import clean, tell
from harness.state import GuestState, KernelFacts, NotObserved, Section
from harness.units import TOP, AddrRange

_RANGE = re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,16})-(?:0[xX])?([0-9a-fA-F]{1,16})")


@dataclass(frozen=True, slots=True)
class Observed:
    """One snapshot of a guest; ``label`` is its name for the user."""

    label: str
    arch: ArchSpec
    facts: KernelFacts
    state: GuestState


def dump_of(snapshot: Observed) -> Dump:
    """The page tables as the host walked them, or the guest's own dump if there is no walk.

    Limitations are reported on standard error. Raises InfraError if the tables were not observed at all.
    """
    state = snapshot.state
    places = _markers(snapshot)
    known = None if isinstance(places, NotObserved) else places
    walked = state.host_tables
    if not isinstance(walked, NotObserved) and known is not None:
        for reason in known.left_out:
            tell(f"{snapshot.label}: without {reason}")
        if walked.faults:
            tell(f"{snapshot.label}: faults found in these tables: {len(walked.faults)}; memhp check lists them")
        return dump_tables(walked, snapshot.arch, snapshot.facts.page_size, known)
    missing = walked if isinstance(walked, NotObserved) else places
    assert isinstance(missing, NotObserved)
    if isinstance(state.page_tables, NotObserved):
        raise InfraError(
            f"{snapshot.label}: page tables were not observed: from the host, {clean(missing.reason)}; "
            f"by the guest, {clean(state.page_tables.reason)}"
        )
    tell(f"{snapshot.label}: this is the guest's own dump, not the host's walk: {missing.reason}")
    return read_dump(state.raw["ptdump"].decode(errors="replace"), snapshot.arch, known)


def _markers(snapshot: Observed) -> MarkerSet | NotObserved:
    note = snapshot.facts.vmcoreinfo
    if isinstance(note, NotObserved):
        return note
    try:
        dump = snapshot.state.page_tables
        printed = None if isinstance(dump, NotObserved) else dump.markers
        return marker_set(snapshot.arch, note, snapshot.facts.config, printed)
    except KeyError as error:
        return NotObserved(f"markers unknown: no {error.args[0]} in the kernel's vmcoreinfo")
    except ValueError as error:
        return NotObserved(f"cannot parse the kernel's vmcoreinfo: {error}")


def sections_of(snapshot: Observed) -> tuple[Section, ...]:
    """Its memory sections; raises InfraError if they were not observed."""
    found = snapshot.state.sections
    if isinstance(found, NotObserved):
        raise InfraError(f"{snapshot.label}: sections were not observed: {clean(found.reason)}")
    return found


def shape_of(snapshot: Observed) -> SectionShape:
    """How large its sections are; raises InfraError for a page size that the architecture does not have."""
    mode = snapshot.arch.paging.get(snapshot.facts.page_size)
    if mode is None:
        what = f"invalid page size for {snapshot.arch.name}: {snapshot.facts.page_size} bytes"
        raise InfraError(f"{snapshot.label}: {what}")
    return SectionShape(mode.section_size, snapshot.arch.subsection_size)


def read_range(text: str) -> AddrRange:
    """The address range START-END, END exclusive; END 0 is the top of the address space, as the kernel prints it.

    Raises UsageError.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        hint = "hexadecimal addresses, END exclusive, such as 0xffff800080000000-0xffff8000c0000000"
        raise UsageError(f"{text[:80]!r} is not START-END", hint=hint)
    start, end = int(match[1], 16), int(match[2], 16) or TOP
    if end <= start:
        raise UsageError(f"{text} is an empty range", hint="START must be below END")
    return AddrRange(start, end)
