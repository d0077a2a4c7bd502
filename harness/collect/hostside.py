# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host reads of a guest's kernel without its help: page tables, sections and records, from guest memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.arch import ArchSpec
from harness.arch.features import features_of
from harness.arch.pagetable import TableFormat
from harness.collect.beside import find_all_symbols, find_types
from harness.collect.decoded_tables import DecodedTables
from harness.collect.kernel_log import LOG_SOURCES, log_sources
from harness.collect.records import (
    RECORD_SOURCES,
    SYMBOLS,
    Copies,
    Records,
    copy_records,
    find_records,
    record_sources,
)
from harness.collect.sources import Frame
from harness.deadline import Deadline
from harness.errors import GuestError, InfraError
from harness.kmem import tablecount
from harness.kmem.address import DirectMap, PageMap, direct_map
from harness.kmem.btf import Btf, find_btf
from harness.kmem.log_ring import LogCopy, LogRing, log_ring
from harness.kmem.lookup import KernelReader
from harness.kmem.mem_section import Indices, SectionImage, copy_sections, decode_sections, find_roots
from harness.kmem.pages import read_struct_pages
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.kmem.structs import BootedMemory, SparseLayout, sparse_layout
from harness.kmem.table_walk import TableImage, copy_tables
from harness.kmem.tablecount import CountLayout, count_layout, count_tables
from harness.parsers.hosttables import SECTIONS, TABLES, format_pages, format_sections
from harness.qemu.machine import Machine
from harness.qemu.memdev import memory_devices
from harness.state import HostTables, KernelFacts, MemoryDevice, NotObserved, Section, StructPage, TableCount
from harness.units import AddrRange

PAUSE = "pause"
#: raw sources read from the guest's memory
KERNEL_SOURCES = (TABLES, SECTIONS, *RECORD_SOURCES, *LOG_SOURCES, PAUSE)
#: equal results in a row that end the reads of the page tables when the count does not match, and most reads
_SAME, _MOST_READS = 4, 20
#: pages outside of the linear map that a look finds again without a walk for each; only a broken kernel has more
_MOST_LIKELY = 1 << 10
#: seconds between the first two reads, doubled each time up to the second value: a guest may be starved of CPU
_BETWEEN, _LONGEST = 0.05, 0.8


def regions(machine: Machine, devices: Iterable[MemoryDevice], fds: Mapping[str, Path]) -> list[Region]:
    """The guest's physical memory: boot RAM, then each plugged device, with the file that backs it."""
    places = machine.spec.boot_ram() | {
        device.backend: AddrRange.sized(device.range.start, device.max_size) for device in devices
    }
    return [Region(place, fds[backend]) for backend, place in places.items() if backend in fds]


def current_regions(machine: Machine, deadline: Deadline) -> list[Region]:
    """The same with the devices that are plugged now. Raises QemuError, DeadlineExpired."""
    devices = memory_devices(machine, deadline=deadline)
    return regions(machine, devices, machine.backend_fds(devices, deadline))


def has_settled(strays: Sequence[int | None], before: int) -> bool:
    """Whether the last of several counts is final; ``before`` is the mismatch of the previous snapshot's count."""
    return strays[-1] == before or (len(strays) >= _SAME and len(set(strays[-_SAME:])) == 1)


def table_format(arch: ArchSpec, facts: KernelFacts) -> TableFormat | NotObserved:
    """Where and in which format this boot keeps its page tables; NotObserved if the kernel does not say."""
    if isinstance(facts.vmcoreinfo, NotObserved):
        return facts.vmcoreinfo
    try:
        return arch.table_format(facts.vmcoreinfo, facts.page_size)
    except KeyError as missing:
        return NotObserved(f"the kernel's vmcoreinfo has no {missing.args[0]}")
    except ValueError as wrong:
        return NotObserved(f"the kernel's vmcoreinfo is not understood: {wrong}")


@dataclass(frozen=True, slots=True)
class KernelCopy:
    """Copies of the kernel's own structures, made while the guest was paused for ``pause`` seconds.

    ``pages`` are those outside of the linear map that they lie in.
    """

    tables: TableImage
    sections: SectionImage | NotObserved
    pause: float
    counted: tuple[frozenset[int], TableCount] | NotObserved
    records: Copies
    log: LogCopy | NotObserved
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Glance:
    """What a look at the running guest found, so that a copy just after it is quick.

    The ``roots`` of mem_section, its ``records``, the ``pages`` outside of the linear map that hold what is read, and
    page tables to be overwritten.
    """

    roots: Indices | NotObserved
    records: Copies
    pages: tuple[int, ...]
    tables: TableImage | None

    def after(self, copy: KernelCopy | NotObserved) -> Glance:
        """The same with what a copy found meanwhile, for a look to come."""
        if isinstance(copy, NotObserved):
            return self
        return Glance(self.roots, copy.records, copy.pages[:_MOST_LIKELY], None)


@dataclass(frozen=True, slots=True)
class KernelView:
    """Where one booted kernel keeps what the host reads: page tables, mem_section, and its own records."""

    tables: TableFormat | NotObserved
    sparse: SparseLayout | NotObserved
    direct: DirectMap
    counting: CountLayout | NotObserved
    records: Records
    log: LogRing | NotObserved

    @classmethod
    def open(cls, machine: Machine, facts: KernelFacts, deadline: Deadline) -> KernelView:
        """Derive the view from vmcoreinfo, the kernel's configuration, its memory, its image and what lies beside that.

        What cannot be derived is NotObserved with the reason. Raises QemuError, DeadlineExpired.
        """
        tables = table_format(machine.spec.arch, facts)
        if isinstance(tables, NotObserved):
            return cls._blind(tables, tables)
        assert not isinstance(facts.vmcoreinfo, NotObserved)
        features = features_of(facts)
        shadow = None if isinstance(features.shadow, NotObserved) else features.shadow
        try:
            kernel = machine.spec.arch.kernel_layout(facts.vmcoreinfo, shadow)
        except (KeyError, ValueError) as error:
            return cls._blind(tables, NotObserved(f"the kernel's vmcoreinfo is not understood: {error}"))
        # All kernel addresses have these bits set, so tagged pointers can be decoded even if the tag bits are unknown.
        tag = features.pointer_tag if isinstance(features.pointer_tag, int) else 0xFF << 56
        direct = direct_map(kernel, tag=tag)
        blob = find_btf(machine.spec.kernel.read_bytes())
        btf = None if blob is None else Btf(blob)
        types = find_types(machine.spec, btf, facts.vmcoreinfo)
        places = current_regions(machine, deadline)
        try:
            with PhysicalMemory(places) as memory, machine.paused(deadline):
                reader, nodes = KernelReader(memory, direct, tables), 1
                names = (*tablecount.SYMBOLS, *SYMBOLS)
                symbols = find_all_symbols(machine.spec, reader, facts.vmcoreinfo, names)
                sparse = sparse_layout(
                    facts.vmcoreinfo,
                    kernel,
                    subsection_size=machine.spec.arch.subsection_size,
                    build=features.build,
                    btf=btf,
                    evidence=BootedMemory(memory, direct, tuple(machine.spec.boot_ram().values())),
                )
                page = sparse if isinstance(sparse, NotObserved) else sparse.page
                if not isinstance(page, NotObserved):
                    nodes = 1 << page.node.width
                counting = count_layout(reader, facts.vmcoreinfo, symbols, tables, kernel.vmemmap, nodes, types)
                records = find_records(reader, facts.vmcoreinfo, symbols, types)
                log = log_ring(reader, facts.vmcoreinfo)
        except InfraError as error:
            return cls._blind(tables, NotObserved(error.message))
        return cls(tables, sparse, direct, counting, records, log)

    @classmethod
    def _blind(cls, tables: TableFormat | NotObserved, reason: NotObserved) -> KernelView:
        return cls(tables, reason, DirectMap(()), reason, dict.fromkeys(RECORD_SOURCES, reason), reason)

    def look(self, memory: PhysicalMemory, last: Glance | None = None, spare: TableImage | None = None) -> Glance:
        """Copy once while the guest may run, which maps the pages, so that the later pause is shorter.

        After an earlier look, ``last``, that is needless: most of what it found is still there. ``spare`` is a copy of
        page tables to be overwritten.
        """
        if last is not None:
            return replace(last, roots=self._find_roots(memory), tables=spare)
        copies: Copies = {}
        pages: tuple[int, ...] = ()
        tables: TableImage | None = None
        if not isinstance(self.tables, NotObserved):
            # A table that is freed meanwhile may point anywhere.
            with contextlib.suppress(InfraError):
                tables = copy_tables(memory, self.tables)
            reader = KernelReader(memory, self.direct, self.tables)
            copies = copy_records(self.records, reader, {})
            pages = reader.walked
        return Glance(self._find_roots(memory), copies, pages, tables)

    def copy(
        self,
        machine: Machine,
        memory: PhysicalMemory,
        deadline: Deadline,
        glance: Glance | None = None,
        *,
        stray: int = 0,
        since: int | NotObserved = 0,
    ) -> KernelCopy | NotObserved:
        """Pause the guest, copy, resume it; ``glance`` comes from a ``look`` just before.

        ``since`` is the number of the first message of the kernel's log that is wanted.

        Repeat while tables are in transit: allocated but not yet in use, or unlinked by an exiting process but not yet
        freed (RCU). Stop when the surplus of the kernel's count over the tables found equals that of the previous
        snapshot, ``stray``, or has been the same for ``_SAME`` reads. A surplus of zero proves nothing if it was not
        zero before, because the tables of an exiting process can compensate. Raises QemuError, DeadlineExpired.
        """
        strays: list[int | None] = []
        idle, between = threading.Event(), _BETWEEN
        while True:
            glance = self.look(memory) if glance is None else glance
            with machine.paused(deadline):
                copy = self._read(memory, glance, since)
            if isinstance(copy, NotObserved) or isinstance(self.counting, NotObserved):
                return copy
            strays.append(None if isinstance(copy.counted, NotObserved) else copy.counted[1].stray)
            if has_settled(strays, stray) or len(strays) == _MOST_READS or deadline.remaining() < 1:
                if isinstance(copy.counted, NotObserved):
                    return copy
                marked, count = copy.counted
                return replace(copy, counted=(marked, replace(count, reads=len(strays))))
            idle.wait(between)
            between, glance = min(2 * between, _LONGEST), None

    def read(self, memory: PhysicalMemory, since: int | NotObserved = 0) -> KernelCopy | NotObserved:
        """Copy from a guest that is already paused; ``since`` is as for ``copy``."""
        return self._read(memory, Glance(self._find_roots(memory), {}, (), None), since)

    def _read(self, memory: PhysicalMemory, glance: Glance, since: int | NotObserved) -> KernelCopy | NotObserved:
        if isinstance(self.tables, NotObserved):
            return self.tables
        started = time.monotonic()
        tables = copy_tables(memory, self.tables, glance.tables)
        roots = glance.roots
        sections = roots if isinstance(roots, NotObserved) else self._copy_sections(memory, roots)
        reader = KernelReader(memory, self.direct, self.tables, glance.pages)
        counted = self._count(reader, tables)
        records = copy_records(self.records, reader, glance.records)
        log = self._copy_log(reader, since)
        return KernelCopy(tables, sections, time.monotonic() - started, counted, records, log, reader.walked)

    def _copy_log(self, reader: KernelReader, since: int | NotObserved) -> LogCopy | NotObserved:
        for needed in (self.log, since):
            if isinstance(needed, NotObserved):
                return needed
        assert isinstance(self.log, LogRing) and isinstance(since, int)
        try:
            return self.log.copy(reader, since)
        except InfraError as error:
            return NotObserved(error.message)

    def _count(self, reader: KernelReader, image: TableImage) -> tuple[frozenset[int], TableCount] | NotObserved:
        if isinstance(self.counting, NotObserved):
            return self.counting
        try:
            return count_tables(reader, self.counting, image)
        except InfraError as error:
            return NotObserved(f"the page tables could not be counted: {error.message}")

    def _find_roots(self, memory: PhysicalMemory) -> Indices | NotObserved:
        if isinstance(self.sparse, NotObserved):
            return self.sparse
        try:
            return find_roots(memory, self.direct, self.sparse.array)
        except InfraError as error:
            return NotObserved(error.message)

    def _copy_sections(self, memory: PhysicalMemory, roots: Indices) -> SectionImage | NotObserved:
        assert not isinstance(self.sparse, NotObserved)
        try:
            return copy_sections(memory, self.direct, self.sparse, roots)
        except InfraError as error:
            return NotObserved(error.message)


def kernel_sources(
    copy: KernelCopy | NotObserved,
    memory: PhysicalMemory,
    dmesg: Frame | None = None,
    decoded: DecodedTables | None = None,
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Decode a copy into the raw sources of a snapshot, and give the reasons for those that it lacks.

    ``dmesg`` is the guest's own log, if it was read, ``decoded`` the page tables of the same guest's last snapshot.
    The struct pages, one per section, are read from ``memory``: that takes too long to keep the guest paused meanwhile.
    """
    if isinstance(copy, NotObserved):
        return {}, dict.fromkeys(KERNEL_SOURCES, copy.reason)
    try:
        tables, text = (decoded or DecodedTables()).decode(copy.tables, copy.counted)
    except GuestError as error:
        return {}, dict.fromkeys(KERNEL_SOURCES, error.message)
    found, missing = record_sources(copy.records)
    log, incomplete = log_sources(copy.log, dmesg)
    missing |= incomplete
    found |= log | {TABLES: text.encode(), PAUSE: f"{copy.pause:.6f}\n".encode()}
    if isinstance(copy.sections, NotObserved):
        return found, missing | {SECTIONS: copy.sections.reason}
    sections = decode_sections(copy.sections)
    pages = _struct_pages(copy.sections.layout, copy.tables.tables.page_size, sections.sections, tables, memory)
    found[SECTIONS] = (format_sections(sections.sections, sections.faults) + format_pages(pages)).encode()
    return found, missing


def _struct_pages(
    layout: SparseLayout, page_size: int, sections: Iterable[Section], tables: HostTables, memory: PhysicalMemory
) -> dict[int, StructPage | NotObserved] | NotObserved:
    """The last struct page of each section; the first ones may describe a memmap in the section itself."""
    if isinstance(layout.page, NotObserved):
        return layout.page
    pages = layout.section_size // page_size
    pfns = [(section.number + 1) * pages - 1 for section in sections if "has-mem-map" in section.flags]
    return dict(zip(pfns, read_struct_pages(memory, layout.page, PageMap(tables.mappings), pfns), strict=True))
