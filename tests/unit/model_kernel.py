# SPDX-License-Identifier: GPL-2.0-or-later
"""A miniature kernel that maps memory entry by entry, like mm/ and arch/*/mm (v6.12), to test model and checks.

It shares no code with the model: tables are dictionaries, sections are sets of sub-sections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from model_guest import Kind

from harness.arch import ARM64, PagingMode
from harness.arch.pagetable import TableLevel
from harness.model.boot_layout import BootLayout
from harness.model.expected import ExpectedState, LinearPiece
from harness.model.leaves import LeafRun
from harness.state import GuestState, HostMapping, HostTables, Mapping, NotObserved, PageTables, Section, TablePage
from harness.units import MIB, AddrRange, align_down, align_up

TOP = 1 << 64
_LINEAR = {"arm64": "RW NX SHD AF CON BLK UXN MEM/NORMAL-TAGGED", "riscv64": "D A G W R V"}
_PLAIN = {"arm64": "RW NX SHD AF CON BLK UXN MEM/NORMAL", "riscv64": "D A G W R V"}


def kernel_walk(piece: AddrRange, paging: PagingMode, offset: int) -> list[LeafRun]:
    """alloc_init_pud/cont_pmd/pmd/cont_pte, recursively: at each level, try a leaf first, then a table."""
    out: list[tuple[AddrRange, str, bool]] = []
    levels = sorted(paging.leaf_sizes.items(), key=lambda item: -item[1])

    def aligned(at: int, stop: int, size: int) -> bool:
        return at % size == 0 and stop % size == 0 and (at - offset) % size == 0

    def level(part: AddrRange, depth: int) -> None:
        name, size = levels[depth]
        group = paging.contiguous_sizes.get(name)
        if group is None:
            for leaf in part.chunks(size):
                step(leaf, depth, False)
            return
        for chunk in part.chunks(group):
            fits = aligned(chunk.start, chunk.end, group)
            for leaf in chunk.chunks(size):
                step(leaf, depth, fits)

    def step(leaf: AddrRange, depth: int, contiguous: bool) -> None:
        name, size = levels[depth]
        if aligned(leaf.start, leaf.end, size):
            out.append((leaf, name, contiguous))
        else:
            level(leaf, depth + 1)

    level(piece, 0)
    joined: list[LeafRun] = []
    for where, name, contiguous in out:
        if joined and (joined[-1].level, joined[-1].contiguous) == (name, contiguous):
            where = AddrRange(joined.pop().range.start, where.end)
        joined.append(LeafRun(where, name, contiguous))
    return joined


@dataclass
class Leaf:
    physical: int
    attrs: tuple[str, ...]


@dataclass
class Table:
    """``depth`` below the root; the first entry is at virtual ``start``."""

    depth: int
    start: int
    address: int
    entries: dict[int, Table | Leaf] = field(default_factory=dict)


class Tables:
    """init_mm."""

    def __init__(self, levels: tuple[TableLevel, ...], root: AddrRange, memory: Iterator[int]) -> None:
        self.levels = levels
        self.memory = memory
        self.root = Table(0, root.start, next(memory))
        self.whole = root

    def depth_of(self, size: int) -> int:
        return next(depth for depth, level in enumerate(self.levels) if level.entry_span == size)

    def index(self, table: Table, address: int) -> int:
        level = self.levels[table.depth]
        return address // level.entry_span % level.entries

    def chunks(self, table: Table, part: AddrRange) -> Iterator[tuple[int, AddrRange]]:
        for chunk in part.chunks(self.levels[table.depth].entry_span):
            yield self.index(table, chunk.start), chunk

    def below(self, table: Table, address: int) -> Table:
        """The table that an entry points to, created if it is missing."""
        index = self.index(table, address)
        child = table.entries.get(index)
        if child is None:
            span = self.levels[table.depth].entry_span
            child = table.entries[index] = Table(table.depth + 1, align_down(address, span), next(self.memory))
        assert isinstance(child, Table)
        return child

    def slot(self, virtual: int, size: int) -> tuple[Table, int]:
        table, depth = self.root, self.depth_of(size)
        while table.depth < depth:
            table = self.below(table, virtual)
        return table, self.index(table, virtual)

    def map(self, virtual: int, size: int, leaf: Leaf) -> None:
        table, index = self.slot(virtual, size)
        assert index not in table.entries
        table.entries[index] = leaf

    def tables(self) -> Iterator[Table]:
        todo = [self.root]
        while todo:
            table = todo.pop()
            yield table
            todo += [child for child in table.entries.values() if isinstance(child, Table)]

    def span(self, table: Table) -> AddrRange:
        if table is self.root:
            return self.whole
        return AddrRange.sized(table.start, self.levels[table.depth].table_span)

    def leaves(self) -> Iterator[HostMapping]:
        def go(table: Table) -> Iterator[HostMapping]:
            level = self.levels[table.depth]
            for index, entry in sorted(table.entries.items()):
                if isinstance(entry, Table):
                    yield from go(entry)
                    continue
                place = AddrRange.sized(table.start + index * level.entry_span, level.entry_span)
                yield HostMapping(place, entry.physical, level.leaf_name, entry.attrs)

        yield from go(self.root)

    # arch/arm64/mm/mmu.c -----------------------------------------------------------------------------------------

    def arm64_remove(self, part: AddrRange, floor: int, ceiling: int) -> None:
        """unmap_hotplug_range, free_empty_tables."""
        self._arm64_unmap(self.root, part)
        self._arm64_free(self.root, part, floor, ceiling)

    def _arm64_unmap(self, table: Table, part: AddrRange) -> None:
        for index, chunk in self.chunks(table, part):
            entry = table.entries.get(index)
            if isinstance(entry, Leaf):
                del table.entries[index]
            elif entry is not None:
                self._arm64_unmap(entry, chunk)

    def _arm64_free(self, table: Table, part: AddrRange, floor: int, ceiling: int) -> None:
        span = self.levels[table.depth].entry_span
        for index, chunk in self.chunks(table, part):
            child = table.entries.get(index)
            if not isinstance(child, Table):
                continue
            self._arm64_free(child, chunk, floor, ceiling)
            start, limit = align_down(chunk.start, span), align_down(ceiling, span)
            if start < floor or not limit or chunk.end > limit or child.entries:
                continue
            del table.entries[index]

    # arch/riscv/mm/init.c ----------------------------------------------------------------------------------------

    def riscv_preallocate(self, window: AddrRange) -> None:
        """preallocate_pgd_pages_range."""
        at = window.start
        while at < window.end:
            self.below(self.root, at)
            at = align_up(at + 1, self.levels[0].entry_span)

    def riscv_remove(self, part: AddrRange) -> None:
        """remove_pgd_mapping: tables below the root are never freed."""
        self._riscv_remove(self.root, part)

    def _riscv_remove(self, table: Table, part: AddrRange) -> None:
        for index, chunk in self.chunks(table, part):
            entry = table.entries.get(index)
            if isinstance(entry, Leaf):
                del table.entries[index]
            elif entry is not None:
                self._riscv_remove(entry, chunk)
                if table is not self.root and not entry.entries:
                    del table.entries[index]


class Altmap:
    """struct vmem_altmap, in bytes."""

    def __init__(self, place: AddrRange) -> None:
        self.next = place.start
        self.end = place.end

    def take(self, size: int) -> int:
        at = align_up(self.next, size)
        assert at + size <= self.end
        self.next = at + size
        return at


class Kernel:
    """Linear map, vmemmap and mem_section of one guest; ``follow`` applies an expected state."""

    def __init__(self, kind: Kind, layout: BootLayout, spare: int = 0) -> None:
        assert layout.kernel is not None
        self.kind, self.layout, self.kernel = kind, layout, layout.kernel
        arm = kind.arch is ARM64
        levels = kind.arch.table_format(dict(layout.facts.vmcoreinfo), layout.page_size).levels  # type: ignore[arg-type]
        ram = layout.machine.node_ranges()[0]
        root = AddrRange(TOP - levels[0].table_span if arm else 0, TOP)
        self.pool = iter(range(ram.start + 512 * MIB + spare, ram.end, layout.page_size))
        self.free = ram.start + 64 * MIB
        self.tables = Tables(levels, root, self.pool)
        self.pieces: list[LinearPiece] = []
        self.folds: dict[tuple[int, int], int] = {}
        self.sections: dict[int, tuple[set[int], set[str]]] = {}
        self.windows = (self.kernel.linear_window, self.kernel.vmemmap_window)
        self._map_linear(ram, _LINEAR)
        for part in ram.chunks(layout.paging.section_size):
            # sparse_init_nid: the memmap of an early section is whole
            self._populate(part.align_outward(layout.paging.section_size), None, 0)
            self._sparse_add(part)
            self.sections[part.start // layout.paging.section_size][1].update(("early", "online"))
        if not arm:
            for window in self.windows:
                self.tables.riscv_preallocate(window)

    def _attrs(self, words: dict[str, str], leaf: bool, contiguous: bool) -> tuple[str, ...]:
        hidden = {word for word, shown in (("CON", contiguous), ("BLK", leaf)) if not shown}
        return tuple(word for word in words[self.kind.arch.name].split() if word not in hidden)

    def _map_linear(self, piece: AddrRange, words: dict[str, str]) -> None:
        kernel, paging = self.kernel, self.layout.paging
        sizes = {name: size for name, size in paging.leaf_sizes.items() if name in kernel.leaf_levels}
        offset = kernel.linear_start - kernel.phys_offset
        for run in kernel_walk(kernel.linear(piece), dataclasses.replace(paging, leaf_sizes=sizes), offset):
            attrs = self._attrs(words, run.level != "PTE", run.contiguous)
            for leaf in run.range.chunks(sizes[run.level]):
                self.tables.map(leaf.start, leaf.size, Leaf(leaf.start - offset, attrs))

    def _buddy(self, size: int) -> int:
        self.free = align_up(self.free, size) + size
        return self.free - size

    def _memmap(self, part: AddrRange) -> AddrRange:
        """The exact range of the struct pages of ``part``."""
        first, last = part.start // self.layout.page_size, part.end // self.layout.page_size
        return AddrRange(self.kernel.vmemmap + first * 64, self.kernel.vmemmap + last * 64)

    def _populate(self, part: AddrRange, altmap: Altmap | None, folded: int, begin: int = 0) -> None:
        """vmemmap_populate for at most one section; vmemmap_populate_compound_pages from ``begin`` on if ``folded``."""
        memmap, page, pmd = self._memmap(part), self.layout.page_size, self.layout.paging.leaf_sizes["PMD"]
        take = altmap.take if altmap else self._buddy
        plain = self._attrs(_PLAIN, False, False)
        huge = self.kind.arch is not ARM64 or (part.size == self.layout.paging.section_size and page == 4096)
        if folded:
            for one in memmap.chunks(page):
                compound, rest = divmod(one.start - begin, folded)
                key = compound, min(1, rest // page)
                if key not in self.folds:
                    self.folds[key] = take(page)
                self.tables.map(one.start, page, Leaf(self.folds[key], plain))
        elif huge:
            for chunk in memmap.chunks(pmd):
                table, index = self.tables.slot(align_down(chunk.start, pmd), pmd)
                if index not in table.entries:
                    table.entries[index] = Leaf(take(pmd), self._attrs(_PLAIN, True, False))
        else:
            for chunk in memmap.chunks(page):
                table, index = self.tables.slot(align_down(chunk.start, page), page)
                if index not in table.entries:
                    table.entries[index] = Leaf(take(page), plain)

    def _sparse_add(self, part: AddrRange) -> None:
        section = self.layout.paging.section_size
        bits, flags = self.sections.setdefault(part.start // section, (set(), set()))
        bits.update(range(part.start % section // (2 * MIB), (part.start % section + part.size) // (2 * MIB)))
        flags.update(("present", "has-mem-map"))

    def _unmap(self, part: AddrRange, window: AddrRange) -> None:
        if self.kind.arch is ARM64:
            self.tables.arm64_remove(part, window.start, window.end)
        else:
            self.tables.riscv_remove(part)

    def add(self, piece: LinearPiece) -> None:
        """arch_add_memory, move_pfn_range_to_zone."""
        section = self.layout.paging.section_size
        self._map_linear(piece.range, _PLAIN if piece.pages == "device" else _LINEAR)
        altmap = Altmap(piece.altmap) if piece.altmap else None
        self.folds.clear()
        for part in piece.range.chunks(section):
            self._populate(part, altmap, piece.folded, self._memmap(piece.range).start)
            self._sparse_add(part)
        for edge in (piece.range.start, piece.range.end) if piece.pages == "device" else ():
            if edge % section:
                self.sections[edge // section][1].add("zone-device")
        self.pieces.append(piece)

    def remove(self, piece: LinearPiece) -> None:
        """arch_remove_memory."""
        section = self.layout.paging.section_size
        for part in piece.range.chunks(section):
            number = part.start // section
            bits = self.sections[number][0]
            bits.difference_update(
                range(part.start % section // (2 * MIB), (part.start % section + part.size) // (2 * MIB))
            )
            if not bits:
                del self.sections[number]
            self._unmap(self._memmap(part), self.kernel.vmemmap_window)
        self._unmap(self.kernel.linear(piece.range), self.kernel.linear_window)
        self.pieces.remove(piece)

    def follow(self, expected: ExpectedState) -> None:
        """Remove, add and online memory to match the state."""
        for piece in [piece for piece in self.pieces if piece not in expected.linear]:
            self.remove(piece)
        for piece in [piece for piece in expected.linear if piece not in self.pieces]:
            self.add(piece)
        for block in expected.blocks:
            flags = self.sections[block.index][1]
            (flags.add if block.state == "online" else flags.discard)("online")

    def host_tables(self) -> HostTables:
        mappings: list[HostMapping] = []
        for leaf in self.tables.leaves():
            last = mappings[-1] if mappings else None
            if (
                last is not None
                and (last.level, last.attrs, last.range.end) == (leaf.level, leaf.attrs, leaf.range.start)
                and last.physical + last.range.size == leaf.physical
            ):
                leaf = HostMapping(
                    AddrRange(mappings.pop().range.start, leaf.range.end), last.physical, leaf.level, leaf.attrs
                )
            mappings.append(leaf)
        pages = [
            TablePage(table.address, self.tables.levels[table.depth].name, self.tables.span(table), len(table.entries))
            for table in self.tables.tables()
        ]
        pages.sort(key=lambda page: (page.range.start, -page.range.size))
        return HostTables(tuple(mappings), tuple(pages), ())

    def page_tables(self) -> PageTables:
        """The page tables as the guest's own dump shows them."""
        out: list[Mapping] = []
        for leaf in self.host_tables().mappings:
            region = "Linear" if self.kernel.linear_window.covers(leaf.range) else "vmemmap"
            last = out[-1] if out else None
            fresh = Mapping(leaf.range, leaf.level, leaf.attrs, region)
            if (
                last is not None
                and last.range.end == leaf.range.start
                and last == dataclasses.replace(fresh, range=last.range)
            ):
                out[-1] = dataclasses.replace(fresh, range=AddrRange(last.range.start, leaf.range.end))
            else:
                out.append(fresh)
        return PageTables({}, tuple(out))

    def section_states(self) -> tuple[Section, ...]:
        found = []
        for number, (bits, flags) in sorted(self.sections.items()):
            bitmap = sum(1 << bit for bit in bits)
            found.append(Section(number, tuple(sorted(flags)), self.kernel.vmemmap, 0x1000 + number * 64, bitmap))
        return tuple(found)

    def state(self, base: GuestState) -> GuestState:
        """``base`` with the host's and the guest dump's observations, and the kernel's count of memmap pages."""
        assert not isinstance(base.vmstat, NotObserved)
        return dataclasses.replace(
            base,
            host_tables=self.host_tables(),
            page_tables=self.page_tables(),
            sections=self.section_states(),
            vmstat={**base.vmstat, "nr_memmap_pages": sum(map(self._memmap_pages, self.pieces))},
        )

    def _memmap_pages(self, piece: LinearPiece) -> int:
        size = self._memmap(piece.range).size
        return size // piece.folded * 2 if piece.folded else size // self.layout.page_size
