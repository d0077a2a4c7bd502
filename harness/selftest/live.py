# SPDX-License-Identifier: GPL-2.0-or-later
"""A paused guest whose memory is edited: addresses in it, and fresh snapshots of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TypeVar

from harness.arch.architecture import ArchSpec
from harness.arch.pagetable import ENTRY_SIZE
from harness.check import Evidence
from harness.check.witnesses import View
from harness.collect.hostside import PAUSE, KernelView, kernel_sources
from harness.collect.sources import Frame
from harness.kmem.edit import WORD, MemoryEditor
from harness.kmem.log_ring import LogCopy
from harness.kmem.lookup import KernelReader
from harness.kmem.mem_section import find_roots
from harness.kmem.physical_memory import PhysicalMemory
from harness.kmem.resource_tree import ResourceTree
from harness.kmem.structs import PageLayout, SparseLayout, UsagePlace
from harness.kmem.tablecount import CountLayout
from harness.selftest.bits import BITS, ArchBits, BitChange
from harness.selftest.entries import Place, is_leaf, leads_to_table, locate, with_physical
from harness.selftest.scene import Inapplicable, Scene, observed
from harness.state import HostMapping, HostTables, NotObserved
from harness.units import GIB, AddrRange, align_down, align_up, merge_ranges

T = TypeVar("T")

#: bytes of boot memory searched for unused pages at a time
_CHUNK = 1 << 20
#: number of unused pages to find: no corruption needs more
_SPARES = 4


class Live:
    """The paused guest of ``scene``. Corruptions use ``put`` and ``editor``; their caller undoes them.

    ``since`` is the number of the first message of its log, ``untouched`` the first snapshot. Raises Inapplicable if
    the host cannot read this kernel's page tables.
    """

    def __init__(
        self, scene: Scene, view: KernelView, memory: PhysicalMemory, editor: MemoryEditor, since: int | NotObserved
    ) -> None:
        self.scene = scene
        self.since = since
        self.memory = memory
        self.editor = editor
        self.tables = observed(view.tables)
        self.direct = view.direct
        self._view = view
        self._spares: list[int] = []
        self.untouched = self.look()

    def look(self, left_out: str = "") -> Evidence:
        """The scene with fresh host-side sources, and without the source ``left_out`` of the guest."""
        dmesg = Frame("dmesg", "ok", self.scene.evidence.observed.raw.get("dmesg", b""))
        found, _ = kernel_sources(self._view.read(self.memory, self.since), self.memory, dmesg)
        return self.scene.with_sources({name: data for name, data in found.items() if name != PAUSE}, left_out)

    # what there is -----------------------------------------------------------------------------------------------

    @property
    def arch(self) -> ArchSpec:
        return self.scene.evidence.layout.machine.arch

    @property
    def bits(self) -> ArchBits:
        """The corruptions of this architecture's entries."""
        return BITS[self.arch.name]

    @functools.cached_property
    def view(self) -> View:
        """The page tables at the time of the pause."""
        return observed(self.scene.evidence.views.walk).now

    @functools.cached_property
    def walked(self) -> HostTables:
        """The walk behind ``view``."""
        return observed(self.scene.evidence.observed.host_tables)

    # How this kernel keeps what is corrupted. Each raises Inapplicable if it is unknown.

    @property
    def sparse(self) -> SparseLayout:
        return observed(self._view.sparse)

    @property
    def usage(self) -> UsagePlace:
        return observed(self.sparse.usage)

    @property
    def page(self) -> PageLayout:
        return observed(self.sparse.page)

    @property
    def counting(self) -> CountLayout:
        return observed(self._view.counting)

    @property
    def resources(self) -> ResourceTree:
        return self.record("host_iomem", ResourceTree)

    def record(self, source: str, kind: type[T]) -> T:
        """Where the kernel keeps the record behind ``source``, of a ``kind``."""
        found = observed(self._view.records[source])
        assert isinstance(found, kind)
        return found

    def log(self) -> LogCopy:
        """The records of its log."""
        return observed(self._view.log).copy(self.reader(), observed(self.since))

    def reader(self) -> KernelReader:
        """Follows the kernel's pointers."""
        return KernelReader(self.memory, self.direct, self.tables)

    @property
    def nowhere(self) -> int:
        """A physical address that can never have memory."""
        return align_up(self.scene.evidence.layout.machine.device_window().end, GIB) + GIB

    def linear(self, physical: AddrRange) -> AddrRange:
        """The linear-map addresses of a physical range."""
        return self.view.kernel.linear(physical)

    def memmap(self, physical: AddrRange) -> AddrRange:
        """The virtual addresses of the struct pages of a physical range."""
        return self.view.kernel.memmap(physical)

    # page tables -------------------------------------------------------------------------------------------------

    def path(self, address: int) -> tuple[Place, ...]:
        """The entries on the current walk to a virtual address, from the root down."""
        return locate(self.editor.read_word, self.tables, address)

    def leaf(self, address: int) -> Place:
        """The mapping of a virtual address. Raises Inapplicable if there is none."""
        place = self.path(address)[-1]
        if not is_leaf(self.tables, place):
            raise Inapplicable(f"virtual {address:#x} is not mapped")
        return place

    def gap(self, address: int) -> Place:
        """The empty entry for a virtual address. Raises Inapplicable if it is mapped."""
        place = self.path(address)[-1]
        if place.entry:
            raise Inapplicable(f"virtual {address:#x} is mapped")
        return place

    def is_lowest(self, place: Place) -> bool:
        """True for an entry of the lowest level: a PTE."""
        return place.depth == len(self.tables.levels) - 1

    def put(self, place: Place, entry: int) -> str:
        """Overwrite an entry; return where. Raises Inapplicable if it already has that content."""
        if self.editor.read_word(place.address) == entry:
            raise Inapplicable(f"the {place} is already like that")
        self.editor.write_word(place.address, entry)
        return str(place)

    def physical(self, place: Place) -> int:
        """The physical address in an entry."""
        return self.tables.physical(place.entry)

    def leading_to(self, entry: int, physical: int) -> int:
        """``entry`` with another physical address."""
        return with_physical(self.tables, entry, physical)

    def table_entry(self, table: int) -> int:
        """An entry that points to a table, as this kernel writes it."""
        for place in self.path(self.view.kernel.linear(self.boot_memory()[0]).start):
            if leads_to_table(self.tables, place):
                return self.leading_to(place.entry, table)
        raise Inapplicable("the linear map has no tables but the root")

    def leaf_entry(self, model: Place, place: Place, physical: int) -> int:
        """A mapping like ``model``, but for the level of ``place`` and with another physical address.

        Without a contiguous hint. Raises Inapplicable if that level has no mappings.
        """
        if not place.level.leaves:
            raise Inapplicable(f"a {place.level.name} has no mappings")
        if self.is_lowest(model) == self.is_lowest(place):
            change = BitChange()
        else:
            change = self.bits.page if self.is_lowest(place) else self.bits.block
        entry = change.of(model.entry) & ~self.tables.contiguous
        return self.leading_to(entry, align_down(physical, place.level.entry_span))

    def new_table(self, entries: Sequence[int] = ()) -> int:
        """Fill an unused page with ``entries`` (the rest is empty); return its physical address."""
        page = self.spare()
        if entries:
            self.editor.write(page, b"".join(entry.to_bytes(ENTRY_SIZE, "little") for entry in entries))
        return page

    def begin(self) -> None:
        """Make all unused pages available again."""
        self._spares = []

    def spare(self) -> int:
        """The physical address of a page of boot memory that is all zero and that no invariant covers."""
        page = next((page for page in self._unused if page not in self._spares), None)
        if page is None:
            raise Inapplicable("there is no unused page of boot memory")
        self._spares.append(page)
        return page

    def boot_memory(self) -> tuple[AddrRange, ...]:
        """Physical ranges of boot memory that have a linear map."""
        nodes = self.scene.evidence.layout.machine.node_ranges()
        covered = self.view.covered()
        return merge_ranges(part for node in nodes for piece in covered if (part := node.intersect(piece)) is not None)

    @functools.cached_property
    def _unused(self) -> tuple[int, ...]:
        page_size = self.tables.page_size
        frames = (
            AddrRange.sized(leaf.physical, leaf.range.size)
            for leaf in self.view.vmemmap
            if isinstance(leaf, HostMapping)
        )
        tables = (AddrRange.sized(page.address, page_size) for page in self.walked.pages)
        taken = merge_ranges([*frames, *tables, *self._section_memory()])
        found: list[int] = []
        for page in self._zero_pages(page_size):
            if not any(part.start < page + page_size and page < part.end for part in taken):
                found.append(page)
            if len(found) == _SPARES:
                break
        return tuple(found)

    def _section_memory(self) -> Iterator[AddrRange]:
        """The memory of mem_section: much of it is zero, but it is read anyway."""
        sparse = self._view.sparse
        if isinstance(sparse, NotObserved):
            return
        array, start = sparse.array, self.direct.physical(sparse.array.address)
        yield AddrRange.sized(start, array.roots * (WORD if array.extreme else array.entry_size))
        for root in find_roots(self.memory, self.direct, array).tolist():
            entries = self.direct.physical(self.editor.read_word(start + root * WORD))
            yield AddrRange.sized(entries, array.per_root * array.entry_size)

    def _zero_pages(self, page_size: int) -> Iterator[int]:
        zeros = bytes(page_size)
        for part in reversed(self.boot_memory()):
            for chunk in reversed(list(part.chunks(_CHUNK))):
                data = self.memory.read(chunk.start, chunk.size)
                for offset in range(0, chunk.size - page_size + 1, page_size):
                    if data[offset : offset + page_size] == zeros:
                        yield chunk.start + offset

    # sections ----------------------------------------------------------------------------------------------------

    def section_entry(self, number: int) -> int:
        """The physical address of an entry of mem_section. Raises Inapplicable if its root is missing."""
        array = self.sparse.array
        start = self.direct.physical(array.address)
        if not array.extreme:
            return start + number * array.entry_size
        root, index = divmod(number, array.per_root)
        pointer = self.editor.read_word(start + root * WORD)
        if not pointer:
            raise Inapplicable(f"mem_section has no root for section {number}")
        return self.direct.physical(pointer) + index * array.entry_size

    def section_root(self, number: int) -> int:
        """The physical address of the root of a section's entry."""
        array = self.sparse.array
        if not array.extreme:
            raise Inapplicable("this kernel's mem_section has no roots (no CONFIG_SPARSEMEM_EXTREME)")
        return self.direct.physical(array.address) + number // array.per_root * WORD

    def struct_page(self, pfn: int) -> int:
        """The physical address of a page's flags. Raises Inapplicable if it has no struct page."""
        address = self.page.vmemmap + pfn * self.page.size + self.page.flags
        place = self.leaf(address)
        return self.physical(place) + address - place.range.start

    def flag(self, name: str) -> int:
        """The bit of a flag in section_mem_map."""
        if name not in self.sparse.flags:
            raise Inapplicable(f"this kernel's sections have no flag {name}")
        return 1 << self.sparse.flags.index(name)
