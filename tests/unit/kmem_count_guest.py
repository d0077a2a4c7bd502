# SPDX-License-Identifier: GPL-2.0-or-later
"""A made-up kernel with everything that the count of page tables reads: symbols, processes, struct pages, tables."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from test_kmem_btf import Writer

from harness.arch import arch_named
from harness.arch.pagetable import TableFormat
from harness.kmem._copy import copy_tables
from harness.kmem.address import DirectMap, Window
from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader, find_symbols
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.kmem.tablecount import SYMBOLS, CountLayout, count_layout, count_tables
from harness.state import NotObserved, TableCount
from harness.units import MIB, AddrRange

BASE, SIZE, PAGE, BLOCK = 0x8000_0000, 64 * MIB, 4096, 2 * MIB
LINEAR = 0xFFFF_FF80_0000_0000
IMAGE = 0xFFFF_FFC0_0800_0000
VMEMMAP = 0xFFFF_FFFE_0000_0000
IMAGE_AT, MEMMAP_AT = BASE + 2 * BLOCK, BASE + 3 * BLOCK
STRUCT_PAGE, TYPE = 64, 48
#: offsets that the kernel does not export, as they are in this kernel
TASKS, MM, CRED, COMM, PGD_OF_MM, PGDAT_SIZE, STATS = 0x100, 0x180, 0x1C0, 0x200, 0x48, 1024, 0x200
ACCOUNT = 0x60
ITEMS = 40
PAGETABLE = 31
_FREE, _TABLE = 0xFFFFFFFF, 0xF2FFFFFF
_FREE_61, _TABLE_61 = 0xFFFFFFFF, 0xFFFFFDFF
_LEAF, _POINTER = 0xF01, 3
#: a symbol whose length takes two bytes
LONG = "x" * 300


class CountGuest:
    """``marked`` tables are counted; ``modern`` kernels have a page's type in the upper byte (v6.12)."""

    def __init__(self, path: Path, *, modern: bool = True, relative: bool = True, without: Sequence[str] = ()) -> None:
        self.path, self.modern = path, modern
        with path.open("wb") as file:
            file.truncate(SIZE)
        self._next, self._image = BASE + 8 * BLOCK, IMAGE
        self.root = self.page()
        self.tables: dict[tuple[int, int], int] = {}
        self.map_block(IMAGE, IMAGE_AT)
        self.map_block(VMEMMAP + (BASE // PAGE * STRUCT_PAGE) // BLOCK * BLOCK, MEMMAP_AT)
        self.write_physical(
            MEMMAP_AT, struct.pack("<Q", 0xFFFFFFFF).rjust(TYPE + 8, b"\0").ljust(STRUCT_PAGE, b"\0") * (SIZE // PAGE)
        )
        self.symbols = {name: self.image(size) for name, size in self._variables().items() if name not in without}
        self.counters = [1000 + 17 * number for number in range(ITEMS)]
        self.counters[PAGETABLE] = 0
        self.others: list[int] = []
        self.types: Btf | NotObserved = NotObserved("the kernel has no BTF")
        self._fill()
        self.note = self.make_note(relative)

    # memory ------------------------------------------------------------------------------------------------------

    def page(self) -> int:
        self._next += PAGE
        return self._next - PAGE

    def image(self, size: int) -> int:
        self._image += -self._image % 64 + size
        return self._image - size

    def write(self, address: int, data: bytes) -> None:
        """Write at a kernel address, in the image or the linear map."""
        physical = address - IMAGE + IMAGE_AT if address >= IMAGE else address - LINEAR + BASE
        self.write_physical(physical, data)

    def write_physical(self, physical: int, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY)
        os.pwrite(fd, data, physical - BASE)
        os.close(fd)

    def put(self, address: int, *words: int) -> None:
        self.write(address, struct.pack(f"<{len(words)}Q", *(word % (1 << 64) for word in words)))

    def mark(self, table: int, counted: bool) -> None:
        kind = (_TABLE if counted else _FREE) if self.modern else (_TABLE_61 if counted else _FREE_61)
        where = MEMMAP_AT + (table // PAGE * STRUCT_PAGE + VMEMMAP) % BLOCK + TYPE
        self.write_physical(where, struct.pack("<I", kind))

    def map_block(self, virtual: int, physical: int) -> None:
        """Map 2 MiB with one PMD entry; creates missing tables."""
        top = virtual >> 30 & 511
        if (top, 0) not in self.tables:
            self.tables[top, 0] = self.page()
            self.write_physical(self.root + 8 * top, struct.pack("<Q", self.tables[top, 0] | _POINTER))
        self.write_physical(self.tables[top, 0] + 8 * (virtual >> 21 & 511), struct.pack("<Q", physical | _LEAF))

    # the kernel --------------------------------------------------------------------------------------------------

    def _variables(self) -> dict[str, int]:
        return {
            "init_task": COMM + 64,
            "init_mm": 2048,
            "efi_mm": 2048,
            "vm_node_stat": 8 * ITEMS,
            "vmstat_text": 8 * 128,
            "idle_threads": 8,
            "boot_nodestats": 64,
            "__per_cpu_offset": 8 * 8,
            "node_data": 8 * 4,
        }

    def _fill(self) -> None:
        at = self.symbols
        self.symbols["swapper_pg_dir"] = IMAGE + BLOCK - PAGE
        names = ["nr_free_pages", "nr_inactive_anon", *(f"nr_{number}" for number in range(1, ITEMS))]
        names[1 + PAGETABLE] = "nr_page_table_pages"
        for number, name in enumerate(names):
            text = self.image(len(name) + 1)
            self.write(text, name.encode() + b"\0")
            if "vmstat_text" in at:
                self.put(at["vmstat_text"] + 8 * number, text)
        self.put(at["init_mm"] + PGD_OF_MM, at["swapper_pg_dir"])
        self.areas = [self.linear(self.page()) for _ in range(2)]
        self.offsets = [area - at["idle_threads"] for area in self.areas]
        self.put(at["__per_cpu_offset"], *self.offsets)
        self.pgdats = [self.linear(self.page()) for _ in range(2)]
        self.put(at["node_data"], *self.pgdats)
        self.tasks = [at["init_task"]]
        self.write(at["init_task"] + COMM, b"swapper/0\0")
        for offset in self.offsets:
            self.put(at["idle_threads"] + offset, at["init_task"])
        self.put(at["init_task"] + MM, 0, at["init_mm"])
        self.add_task("kthreadd", 0)
        self.count(0)

    def linear(self, physical: int) -> int:
        return physical - BASE + LINEAR

    def add_task(self, name: str, mm: int) -> int:
        task = self.linear(self.page())
        self.write(task + COMM, name.encode() + b"\0")
        cred = self.linear(self.page())
        self.put(task + CRED, cred, cred)
        self.put(task + MM, mm, mm)
        self.tasks.append(task)
        nodes = [one + TASKS for one in self.tasks]
        for number, node in enumerate(nodes):
            self.put(node, nodes[(number + 1) % len(nodes)], nodes[number - 1])
        return task

    def add_mm(self, marks: Sequence[bool], *, at: int | None = None) -> int:
        """Add an mm with a root table, a PMD and a PTE table, each marked or not; return its address."""
        mm = self.linear(self.page()) if at is None else at
        pages = [self.page() for _ in range(3)]
        self.others += [page for page, mark in zip(pages, marks, strict=True) if mark]
        for page, below, mark in zip(pages, (*pages[1:], 0), marks, strict=True):
            self.mark(page, mark)
            if below:
                self.write_physical(page + 8 * 5, struct.pack("<Q", below | _POINTER))
        self.put(mm + PGD_OF_MM, self.linear(pages[0]))
        return mm

    def account(self, mm: int, size: int) -> None:
        """Set the account of an mm, which the kernel's types then have."""
        self.put(mm + ACCOUNT, size)
        types = Writer()
        types.struct("mm_struct", 2048, ("pgtables_bytes", types.int(), 8 * ACCOUNT))
        self.types = Btf(types.blob())

    def map_huge(self, mm: int, entry: int = _LEAF) -> None:
        """Put an entry that leads to no table into the first table below the root of an mm."""
        fd = os.open(self.path, os.O_RDWR)
        root = int.from_bytes(os.pread(fd, 8, mm - LINEAR + PGD_OF_MM), "little") - LINEAR + BASE
        below = int.from_bytes(os.pread(fd, 8, root - BASE + 8 * 5), "little") & ~(PAGE - 1)
        os.close(fd)
        self.write_physical(below + 8 * 9, struct.pack("<Q", entry))

    def hold(self, cpu: int, mm: int) -> None:
        """Make an idle CPU use the mm of an exited process."""
        idle = self.linear(self.page())
        self.put(idle + MM, 0, mm)
        self.put(self.symbols["idle_threads"] + self.offsets[cpu], idle)

    def count(self, total: int, waiting: Sequence[int] = (0, 0)) -> None:
        """Set NR_PAGETABLE; ``waiting`` is the per-CPU difference of each CPU for the second node."""
        self.counters[PAGETABLE] = total
        if "vm_node_stat" in self.symbols:
            self.put(self.symbols["vm_node_stat"], *self.counters)
        stats = self.symbols["boot_nodestats"]
        for number, pgdat in enumerate(self.pgdats):
            mine = [value - value // 3 if number == 0 else value // 3 for value in self.counters]
            self.put(pgdat + STATS - 8, stats + 4096 // 2 * number)
            self.put(pgdat + STATS, *mine)
        for offset, value in zip(self.offsets, waiting, strict=True):
            self.write(stats + offset + 2048 + 1 + PAGETABLE, struct.pack("b", value))

    def renew_stats(self, node: int, waiting: Sequence[int]) -> None:
        """Give a node per-CPU counters of its own, as with its first memory (hotadd_init_pgdat)."""
        place = self.symbols["boot_nodestats"] + 3072
        self.put(self.pgdats[node] + STATS - 8, place)
        for offset, value in zip(self.offsets, waiting, strict=True):
            self.write(place + offset + 1 + PAGETABLE, struct.pack("b", value))

    def make_note(self, relative: bool = True) -> dict[str, str]:
        """Write the table of symbols; return vmcoreinfo."""
        names = [LONG, *self.symbols]
        packed = b"".join(_packed("d" + name) for name in names)
        places = {"names": self.image(len(packed) + 1 + MIB // 4)}
        self.write(places["names"], packed)
        places["num_syms"] = self.image(8)
        self.write(places["num_syms"], struct.pack("<I", len(names)))
        table = b"".join(bytes([number]) + b"\0" if number else b"\0" for number in range(256))
        places["token_table"] = self.image(4096)
        self.write(places["token_table"], table)
        places["token_index"] = self.image(512)
        starts = [0, *(1 + 2 * number for number in range(255))]
        self.write(places["token_index"], struct.pack("<256H", *starts))
        places["offsets"] = self.image(4 * len(names))
        values = [IMAGE, *self.symbols.values()]
        rows = [value - (IMAGE if relative else places["offsets"] + 4 * at) for at, value in enumerate(values)]
        self.write(places["offsets"], struct.pack(f"<{len(rows)}i", *rows))
        note = {f"SYMBOL(kallsyms_{key})": f"{value:x}" for key, value in places.items()}
        if relative:
            base = self.image(8)
            self.put(base, IMAGE)
            note["SYMBOL(kallsyms_relative_base)"] = f"{base:x}"
        buddy = -(1 << 28) if self.modern else ~0x80
        return note | {
            "SIZE(pglist_data)": str(PGDAT_SIZE),
            "SIZE(page)": str(STRUCT_PAGE),
            "OFFSET(page._mapcount)": str(TYPE),
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": str(buddy),
        }

    # reading it --------------------------------------------------------------------------------------------------

    def format(self) -> TableFormat:
        note = {
            "OSRELEASE": "7.3.4",
            "NUMBER(VA_BITS)": "39",
            "NUMBER(MAX_PHYSMEM_BITS)": "48",
            "NUMBER(VMEMMAP_END)": "0xffffffffc0000000",
            "SYMBOL(swapper_pg_dir)": f"{self.root + (1 << 40):x}",
            "NUMBER(kimage_voffset)": f"{1 << 40:#x}",
        }
        return arch_named("arm64").table_format(note, PAGE)

    @contextlib.contextmanager
    def reader(self) -> Iterator[KernelReader]:
        """Reads its memory."""
        direct = DirectMap((Window(AddrRange.sized(LINEAR, SIZE), LINEAR - BASE),))
        with PhysicalMemory([Region(AddrRange.sized(BASE, SIZE), self.path)]) as memory:
            yield KernelReader(memory, direct, self.format())

    def look(self, meanwhile: Callable[[], None] = lambda: None) -> tuple[frozenset[int], TableCount] | NotObserved:
        """Probe and count; ``meanwhile`` is called in between."""
        with self.reader() as reader:
            symbols = find_symbols(reader, self.note, SYMBOLS)
            layout = count_layout(reader, self.note, symbols, self.format(), VMEMMAP, 4, self.types)
            if isinstance(layout, NotObserved):
                return layout
            assert isinstance(layout, CountLayout)
            meanwhile()
            return count_tables(reader, layout, copy_tables(reader.memory, self.format()))


def _packed(name: str) -> bytes:
    length = len(name)
    head = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
    return head + name.encode()
