# SPDX-License-Identifier: GPL-2.0-or-later
"""The shared vocabulary: what a guest's memory looks like, as frozen values.

Parsers and collectors produce these, the model predicts them, checks compare them. All addresses are bytes,
all ranges half-open (``AddrRange``), all page counts in the guest's own pages.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from typing import TypeVar

from harness.units import AddrRange

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NotObserved:
    """Stands for a value that could not be observed; ``reason`` says why. Never a pass."""

    reason: str


#: the reason why a fast look did not observe what the guest's text shows, and the host as well
LEFT_OUT = "left to the full looks (--look=fast)"


@dataclass(frozen=True, slots=True)
class Unknown:
    """Guest text that memhp does not know and nothing needs: ``count`` pieces of one ``kind`` in ``source``.

    ``kind`` is a word such as line, name or column; ``example`` is the first of them, printable and short.
    """

    source: str
    kind: str
    example: str
    count: int


@dataclass(frozen=True, slots=True)
class Garbled:
    """Line ``line`` (1-based) of ``source``, which no correct kernel prints: ``text`` is printable and short."""

    source: str
    line: int
    text: str
    why: str


@dataclass(frozen=True, slots=True)
class IomemEntry:
    """One line of /proc/iomem with the lines nested below it (kernel/resource.c, r_show)."""

    range: AddrRange
    name: str
    children: tuple[IomemEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryBlock:
    """One /sys/devices/system/memory/memoryN directory (drivers/base/memory.c).

    ``index`` is N; ``phys_index`` the file's content; ``nodes`` the numbers of its node* links.
    ``removable`` and ``valid_zones`` are None where the kernel has no such file.
    """

    index: int
    phys_index: int
    state: str
    removable: bool | None
    valid_zones: tuple[str, ...] | None
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A run of equal leaf entries of the kernel's page tables, as ptdump prints it.

    ``level`` is the kernel's name of the table that holds the leaf: PGD, P4D, PUD, PMD or PTE. ``attrs`` are the
    attribute words in the order ptdump prints them, without absent ones (blank columns); CON (arm64 contiguous hint) is
    one of them. ``region`` is the name of the marker above the run. Unmapped runs are not represented.
    """

    range: AddrRange
    level: str
    attrs: tuple[str, ...]
    region: str


@dataclass(frozen=True, slots=True)
class PageTables:
    """A dump of init_mm: ``markers`` maps a marker's text to its address, ``mappings`` are in address order."""

    markers: MappingABC[str, int]
    mappings: tuple[Mapping, ...]


@dataclass(frozen=True, slots=True)
class HostMapping:
    """A run of leaf entries in the page tables: adjacent both in virtual and in physical addresses.

    ``range`` is virtual, ``physical`` the address behind its first byte. ``level`` and ``attrs`` are as in ``Mapping``,
    so that the two can be compared word by word.
    """

    range: AddrRange
    physical: int
    level: str
    attrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TablePage:
    """One page-table page of init_mm.

    ``address`` is physical; ``level`` the kernel's name of the table (its entries are of that level); ``range`` the
    virtual addresses that its entries span; ``entries`` how many of them are not empty. ``counted`` says whether it
    is included in nr_page_table_pages, None if not checked.
    """

    address: int
    level: str
    range: AddrRange
    entries: int
    counted: bool | None = None


@dataclass(frozen=True, slots=True)
class TableCount:
    """nr_page_table_pages and the tables that it counts, in pages, all taken during one pause of the guest.

    ``counter`` is exact, including pending per-CPU changes; ``kernel`` are tables of init_mm, ``users`` those of every
    other mm. ``reads`` is how often it was read until the two agreed or were stable. ``astray`` is by how many tables
    the processes' own accounts (pgtables_bytes) exceed their tables, None if it is unknown or they map huge pages.
    """

    counter: int
    kernel: int
    users: int
    reads: int = 1
    astray: int | None = None

    @property
    def stray(self) -> int:
        """How many more tables are counted than exist; negative if fewer."""
        return self.counter - self.kernel - self.users


@dataclass(frozen=True, slots=True)
class TableFault:
    """An entry that must not be in a page table: entry ``index`` of the table at physical ``table``.

    ``range`` is the virtual range it stands for, ``entry`` its content, ``reason`` what is wrong with it.
    """

    table: int
    index: int
    entry: int
    range: AddrRange
    reason: str


@dataclass(frozen=True, slots=True)
class HostTables:
    """All of init_mm's page tables, walked by the host, in virtual order; ``count`` is of the same moment."""

    mappings: tuple[HostMapping, ...]
    pages: tuple[TablePage, ...]
    faults: tuple[TableFault, ...]
    count: TableCount | NotObserved = NotObserved("the page tables were not counted")


@dataclass(frozen=True, slots=True)
class Section:
    """One used entry of mem_section (struct mem_section, include/linux/mmzone.h).

    ``number`` is its pfn divided by the pages of a section. ``flags`` are lower-case names of SECTION_* bits: present,
    has-mem-map, online, early, zone-device, and bit-N for one without a name. ``mem_map`` is the virtual address that
    the entry gives to pfn 0's struct page (it equals vmemmap on every sound kernel), ``usage`` that of its
    struct mem_section_usage (0 if none). ``subsections`` has bit N set if sub-section N is present; None without usage.
    """

    number: int
    flags: tuple[str, ...]
    mem_map: int
    usage: int
    subsections: int | None


@dataclass(frozen=True, slots=True)
class SectionFault:
    """``count`` sections from number ``first`` on that could not be read; ``address`` is virtual, that at fault."""

    first: int
    count: int
    address: int
    reason: str


@dataclass(frozen=True, slots=True)
class StructPage:
    """One struct page: ``flags`` as stored, and the fields in its upper bits (include/linux/page-flags-layout.h)."""

    pfn: int
    flags: int
    refcount: int
    node: int
    zone: str


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone of one node from /proc/zoneinfo; pages. ``start_pfn`` is None for an unpopulated zone.

    Note that zoneinfo omits per-zone details of a zone with no present pages but always prints the counts.
    """

    node: int
    name: str
    spanned: int
    present: int
    managed: int
    start_pfn: int | None


@dataclass(frozen=True, slots=True)
class DmesgLine:
    """One kernel log line: ``seconds`` since boot, ``level`` 0..7 (None if the source lacks it).

    ``alarm`` names the kind of trouble the line reports (WARN, Oops, …), None for a harmless line.
    """

    seconds: float
    level: int | None
    text: str
    alarm: str | None = None


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """Seconds in which a thread of QEMU (``main``, ``CPU 0``) ran, waited for a CPU of the host, or was stopped."""

    name: str
    ran: float
    waited: float
    stopped: float


@dataclass(frozen=True, slots=True)
class HostTime:
    """What the host gave QEMU in the ``seconds`` before the console's line ``text``, a watchdog's report.

    ``observed`` is how many of them were measured, ``steal`` the seconds that a hypervisor took from each of the host's
    CPUs.
    """

    text: str
    seconds: int
    observed: float = 0.0
    threads: tuple[ThreadTime, ...] = ()
    steal: float = 0.0


@dataclass(frozen=True, slots=True)
class SlabCache:
    """One line of /proc/slabinfo: objects in use, objects in all, size in bytes."""

    name: str
    active_objs: int
    num_objs: int
    objsize: int


@dataclass(frozen=True, slots=True)
class MemoryDevice:
    """One entry of QMP's query-memory-devices, flattened.

    ``kind`` is its type there; ``size`` the currently plugged size, ``max_size`` the whole region. ``requested_size``
    and ``block_size`` are of a device that grows and shrinks, None for others; ``slot`` is of DIMMs, ``node`` None
    where QEMU knows none.
    """

    id: str
    kind: str
    range: AddrRange
    size: int
    max_size: int
    requested_size: int | None
    block_size: int | None
    node: int | None
    slot: int | None
    backend: str


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The facts about one booted kernel, read once per boot; none of them change while it runs.

    ``config`` maps option names without CONFIG_ to y, m, a number or a string; None if the kernel does not provide it.
    ``vmcoreinfo`` is the kernel's own key=value note (kernel/vmcore_info.c), NotObserved where it could not be read.
    ``parameters`` maps ``module.parameter`` to its text for the modules that matter to memory hotplug, ``files`` maps
    the paths of files that show the kernel's behaviour to their first lines. ``image`` maps each text or structure
    member that was searched in the kernel's image or its BTF to whether it is there; members are omitted without BTF.
    ``unknown`` is text of these sources that memhp does not know and does not need.
    """

    arch: str
    release: str
    cmdline: str
    page_size: int
    memory_block_size: int
    config: MappingABC[str, str] | None
    vmcoreinfo: MappingABC[str, str] | NotObserved
    parameters: MappingABC[str, str]
    files: MappingABC[str, str] = field(default_factory=dict)
    image: MappingABC[str, bool] | NotObserved = NotObserved("the kernel's image was not searched")
    unknown: tuple[Unknown, ...] = ()


@dataclass(frozen=True, slots=True)
class DaxDevice:
    """One /sys/bus/dax/devices entry; ``driver`` is device_dax, kmem or None; ``state`` is None if there is none."""

    name: str
    range: AddrRange
    align: int
    target_node: int
    driver: str | None
    state: str | None = None


#: why no snapshot without them has the kernel's own records
_UNREAD = NotObserved("the guest's memory was not read")


@dataclass(frozen=True, slots=True)
class KernelRecords:
    """What the host read of the kernel's own records in guest memory, while the guest was paused.

    Each is what the text of the same name tells: the resource tree is that of /proc/iomem. ``blocks`` have neither
    ``removable`` nor an offline block's ``valid_zones``; ``vmstat`` are counters of zones, nodes and memmap, exact;
    ``meminfo`` is MemTotal alone. ``log`` are the lines of the messages that ``dmesg`` should have, from the first
    number of ``log_span`` up to, not including, the second, with which the next snapshot's begin; ``log_lost`` says why
    some of them are missing.
    """

    iomem: tuple[IomemEntry, ...] | NotObserved = _UNREAD
    blocks: tuple[MemoryBlock, ...] | NotObserved = _UNREAD
    zones: tuple[Zone, ...] | NotObserved = _UNREAD
    vmstat: MappingABC[str, int] | NotObserved = _UNREAD
    meminfo: MappingABC[str, int] | NotObserved = _UNREAD
    log: tuple[DmesgLine, ...] | NotObserved = _UNREAD
    log_span: tuple[int, int] | NotObserved = _UNREAD
    log_lost: str = ""


@dataclass(frozen=True)
class GuestState:
    """One snapshot: everything observed of the guest between two actions.

    ``raw`` keeps the bytes of every source by name, so that a saved snapshot can be parsed and checked again. A source
    that could not be read is NotObserved with its reason. ``boot_id`` identifies the boot; ``uptime`` is seconds.
    ``dmesg`` are the lines since the previous snapshot, ``dmesg_lost`` says why some of them are missing; ``console``
    are the alarming lines of the serial console since then. ``meminfo`` is bytes; ``backends`` maps the id of each
    memory backend that QEMU holds to the bytes of host memory in it. ``host_tables`` and ``sections`` (in the order of
    their numbers), with the ``section_faults`` met on the way, were read from the guest's memory on the host while the
    guest was paused for ``pause`` seconds; ``struct_pages`` (by pfn, the last of each section) a moment later.
    ``records`` are of that pause, too.
    ``unknown`` counts text of the sources that memhp does not know; ``garbled`` are lines that no correct kernel
    prints. ``left_out`` are the sources that a fast look did not read since the host can do without.
    """

    raw: MappingABC[str, bytes] = field(repr=False)
    boot_id: str
    uptime: float
    iomem: tuple[IomemEntry, ...] | NotObserved
    blocks: tuple[MemoryBlock, ...] | NotObserved
    auto_online: str | NotObserved
    zones: tuple[Zone, ...] | NotObserved
    meminfo: MappingABC[str, int] | NotObserved
    vmstat: MappingABC[str, int] | NotObserved
    slabs: tuple[SlabCache, ...] | NotObserved
    page_tables: PageTables | NotObserved
    dax: tuple[DaxDevice, ...] | NotObserved
    dmesg: tuple[DmesgLine, ...] | NotObserved
    devices: tuple[MemoryDevice, ...] | NotObserved
    backends: MappingABC[str, int] | NotObserved
    console: tuple[str, ...] | NotObserved
    host_tables: HostTables | NotObserved
    sections: tuple[Section, ...] | NotObserved
    section_faults: tuple[SectionFault, ...] | NotObserved
    struct_pages: MappingABC[int, StructPage | NotObserved] | NotObserved
    pause: float | NotObserved
    unknown: tuple[Unknown, ...] = ()
    garbled: tuple[Garbled, ...] = ()
    dmesg_lost: str = ""
    records: KernelRecords = KernelRecords()
    left_out: tuple[str, ...] = ()

    @property
    def resources(self) -> tuple[IomemEntry, ...] | NotObserved:
        """The resource tree, by ``iomem``, or by ``records`` where the text was not read; the next ones are alike."""
        return _either(self.iomem, self.records.iomem)

    @property
    def memory_blocks(self) -> tuple[MemoryBlock, ...] | NotObserved:
        """The memory blocks."""
        return _either(self.blocks, self.records.blocks)

    @property
    def memory_zones(self) -> tuple[Zone, ...] | NotObserved:
        """The zones of all nodes."""
        return _either(self.zones, self.records.zones)

    @property
    def counters(self) -> MappingABC[str, int] | NotObserved:
        """Counters by their names in /proc/vmstat."""
        return _either(self.vmstat, self.records.vmstat)

    @property
    def totals(self) -> MappingABC[str, int] | NotObserved:
        """Bytes by their names in /proc/meminfo, MemTotal at least."""
        return _either(self.meminfo, self.records.meminfo)

    @property
    def log(self) -> tuple[DmesgLine, ...] | NotObserved:
        """The new lines of the kernel's log."""
        return _either(self.dmesg, self.records.log)


def _either(text: _T | NotObserved, record: _T | NotObserved) -> _T | NotObserved:
    """Where a fast look left the text to the record, why the record was not read counts: it excuses nothing."""
    unread = isinstance(text, NotObserved) and (text.reason == LEFT_OUT or not isinstance(record, NotObserved))
    return record if unread else text
