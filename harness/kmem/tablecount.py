# SPDX-License-Identifier: GPL-2.0-or-later
"""NR_PAGETABLE compared with the existing tables, all read at the same moment in a paused guest.

A table page is counted if a constructor ran for it, and the constructor marks its struct page: its page type is
"table" until the destructor runs (pagetable_pte_ctor and its like, include/linux/mm.h; page_type since
v4.18, commit 6e292b9be7f4; NR_PAGETABLE goes with it in every version from 6.1 to 7.3). So each page shows
whether this kernel counts it, regardless of region, level and owner:

    NR_PAGETABLE == marked tables of init_mm + marked tables of every other mm

Kernels count different tables: PUD tables since v6.6 (55d2a0bd5ead), PGD and P4D tables since v6.14, PTE tables of the
kernel itself since v6.16. This module does not depend on that.

Each process keeps an account of its own, mm_struct.pgtables_bytes: its tables below the root (mm_inc_nr_ptes and its
like, include/linux/mm.h; /proc/PID/status shows it as VmPTE). It includes the tables that a huge page keeps in reserve
(pgtable_trans_huge_deposit), and for each process a table that several share, so it is compared only while none maps
huge pages.

No kernel exports the offset of mm in task_struct. It is found by evidence: init_task, init_mm and swapper_pg_dir are
symbols, and the pointers between them are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from harness.arch.pagetable import TableFormat
from harness.errors import InfraError
from harness.kmem import node_zones
from harness.kmem._copy import TableImage, physical
from harness.kmem.address import Untranslated
from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.kmem.physical_memory import Flags, OutsideMemory, PhysicalMemory, Words
from harness.kmem.vm_counters import cpu_offsets, node_item
from harness.state import NotObserved, TableCount

_NEEDED = ("init_task", "init_mm", "swapper_pg_dir", "vm_node_stat", "vmstat_text", "idle_threads", "__per_cpu_offset")
#: struct mm_struct exists for EFI's runtime services too (drivers/firmware/efi/efi.c)
_OTHERS = ("efi_mm",)
#: what ``count_layout`` looks for
SYMBOLS = (*_NEEDED, *node_zones.SYMBOLS, *_OTHERS)
_PAGETABLE = "nr_page_table_pages"
#: the names of the tables in a process's own account: it has neither the root nor a P4D
_ACCOUNTED = ("PUD", "PMD", "PTE")
_TASK_BYTES, _MM_BYTES = 8192, 2048
_COMM_BYTES = 16
_MAX_TASKS = 1 << 16
#: how many node counters must match before a place counts as pglist_data.vm_stat
_ALIKE = 24


@dataclass(frozen=True, slots=True)
class PageType:
    """A struct page is a table's if ``word >> shift & mask == value`` for the 32 bits at its byte ``offset``."""

    offset: int
    shift: int
    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class TaskLayout:
    """Bytes into task_struct of the list of all processes and of the mm (active_mm follows it), into mm_struct of pgd.

    ``first`` is the address of init_task.
    """

    first: int
    tasks: int
    mm: int
    pgd: int


@dataclass(frozen=True, slots=True)
class CountLayout:
    """The addresses that ``count_tables`` reads in one booted kernel.

    ``counter`` is the address of vm_node_stat[NR_PAGETABLE], ``item`` its number. ``stats`` are the addresses of each
    node's pointer to the CPUs' pending changes, ``cpus`` the per-CPU offsets, ``idle`` the addresses of the pointers to
    the CPUs' idle tasks, ``others`` those of mms without a task. ``account`` is bytes into mm_struct of pgtables_bytes,
    None if unknown. ``struct_page`` is bytes, ``vmemmap`` the address of the first one.
    """

    counter: int
    item: int
    stats: tuple[int, ...]
    cpus: tuple[int, ...]
    idle: tuple[int, ...]
    tasks: TaskLayout
    init_mm: int
    others: tuple[int, ...]
    account: int | None
    type: PageType
    vmemmap: int
    struct_page: int


class _NotTold(Exception):
    """Something that nobody tells; the text is the reason."""


def count_layout(
    reader: KernelReader,
    note: Mapping[str, str],
    symbols: Mapping[str, int] | NotObserved,
    tables: TableFormat,
    vmemmap: int,
    nodes: int,
    types: Btf | NotObserved,
) -> CountLayout | NotObserved:
    """Locate them in a paused guest; ``note`` is its vmcoreinfo, ``vmemmap`` the address of pfn 0's struct page.

    ``symbols`` are the addresses of SYMBOLS, ``nodes`` is the kernel's maximum number of nodes. Without ``types``, the
    processes' own account is not read. Returns NotObserved with the reason if anything else is missing. Raises
    ParseError for broken BTF.
    """
    try:
        if isinstance(symbols, NotObserved):
            raise _NotTold(symbols.reason)
        account = None if isinstance(types, NotObserved) else types.member("mm_struct", "pgtables_bytes")
        layout = _layout(reader, note, symbols, tables, vmemmap, nodes)
        return layout if account is None or account.size != 8 else replace(layout, account=account.offset)
    except _NotTold as untold:
        return NotObserved(f"the page tables cannot be counted: {untold}")
    except (Untranslated, OutsideMemory) as error:
        return NotObserved(f"the page tables cannot be counted: {error.message}")


def _layout(
    reader: KernelReader,
    note: Mapping[str, str],
    symbols: Mapping[str, int],
    tables: TableFormat,
    vmemmap: int,
    nodes: int,
) -> CountLayout:
    missing = [name for name in _NEEDED if name not in symbols]
    if missing:
        raise _NotTold(f"the kernel's symbols have no {', '.join(missing)} (CONFIG_KALLSYMS_ALL)")
    offsets = tuple(cpu_offsets(reader, symbols["__per_cpu_offset"]))
    item = node_item(reader, symbols["vmstat_text"], _PAGETABLE)
    if item is None:
        raise _NotTold(f"vmstat_text has no {_PAGETABLE}")
    pgdats = tuple(_pgdats(reader, symbols, nodes))
    stats = _stats(reader, symbols["vm_node_stat"], pgdats, _size(note, "SIZE(pglist_data)"))
    return CountLayout(
        counter=symbols["vm_node_stat"] + 8 * item,
        item=item,
        stats=tuple(pgdat + stats - 8 for pgdat in pgdats),
        cpus=offsets,
        idle=tuple((symbols["idle_threads"] + offset) % (1 << 64) for offset in offsets),
        tasks=_task_layout(reader, symbols, tables.levels[0].table_size),
        init_mm=symbols["init_mm"],
        others=tuple(symbols[name] for name in _OTHERS if name in symbols),
        account=None,
        type=_page_type(note),
        vmemmap=vmemmap,
        struct_page=_size(note, "SIZE(page)"),
    )


def _size(note: Mapping[str, str], key: str) -> int:
    text = note.get(key, "")
    if not text.isdecimal() or not 0 < int(text) < 1 << 20:
        raise _NotTold(f"vmcoreinfo has no {key}")
    return int(text)


def _page_type(note: Mapping[str, str]) -> PageType:
    """PageTable's test, include/linux/page-flags.h. The page type shares its word with _mapcount.

    Since v6.12 (commit 4ffca5a96678) the upper byte is the type; up to v6.10 a type is a bit that is clear below
    0xf0000000. vmcoreinfo has the type of free pages, which reveals the scheme.
    """
    offset = _size(note, "OFFSET(page._mapcount)")
    buddy = int(note.get("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "0")) & 0xFFFFFFFF
    if buddy == 0xF0 << 24:
        return PageType(offset, 24, 0xFF, 0xF2)
    if buddy == 0xFFFFFFFF ^ 0x80:
        return PageType(offset, 0, 0xF0000200, 0xF0000000)
    raise _NotTold(f"this kernel's page types are unknown (PAGE_BUDDY_MAPCOUNT_VALUE is {buddy:#x})")


def _pgdats(reader: KernelReader, symbols: Mapping[str, int], nodes: int) -> Iterator[int]:
    if "contig_page_data" in symbols:
        yield symbols["contig_page_data"]
        return
    if "node_data" not in symbols:
        raise _NotTold("the kernel's symbols have neither node_data nor contig_page_data")
    for number in range(nodes):
        at = reader.word(symbols["node_data"] + 8 * number)
        if at:
            yield at


def _stats(reader: KernelReader, total: int, pgdats: tuple[int, ...], size: int) -> int:
    """Bytes into pglist_data of vm_stat: the nodes' counters there add up to vm_node_stat."""
    if not pgdats:
        raise _NotTold("the kernel has no node")
    wanted = np.array(reader.words(total, _ALIKE), dtype=np.uint64)
    rows = np.array([reader.words(pgdat, size // 8) for pgdat in pgdats], dtype=np.uint64)
    sums = rows.sum(axis=0, dtype=np.uint64)
    hits = [at for at in range(1, len(sums) - _ALIKE + 1) if (sums[at : at + _ALIKE] == wanted).all()]
    if len(hits) != 1:
        raise _NotTold(f"{len(hits)} places in pglist_data hold the counters of vm_node_stat")
    return 8 * hits[0]


def _task_layout(reader: KernelReader, symbols: Mapping[str, int], align: int) -> TaskLayout:
    first = symbols["init_task"]
    words = reader.words(symbols["init_mm"], _MM_BYTES // 8)
    if symbols["swapper_pg_dir"] not in words:
        raise _NotTold("init_mm has no pointer to swapper_pg_dir")
    pgd = 8 * words.index(symbols["swapper_pg_dir"])
    task = reader.read(first, _TASK_BYTES)
    comm = task.find(b"swapper")
    if comm < 0:
        raise _NotTold("init_task has no name")
    lists = [(len(list(_nodes(reader, first, at, comm))), at) for at in range(0, comm - comm % 8, 8)]
    length, tasks = max(lists)
    if length < 2 or sum(count == length for count, _ in lists) > 1:
        raise _NotTold("init_task has no list that is unambiguously the list of all tasks")
    mm = _mm_place(reader, [node - tasks for node in _nodes(reader, first, tasks, comm)], comm, pgd, align)
    return TaskLayout(first, tasks, mm, pgd)


def _nodes(reader: KernelReader, first: int, at: int, comm: int) -> Iterator[int]:
    """The nodes of the list that begins ``at`` bytes into init_task; none if it is not a list of tasks."""
    found: dict[int, None] = {}
    last, node = first + at, reader.word(first + at)
    while node != first + at:
        if node in found or node % 8 or len(found) > _MAX_TASKS or not _is_task(reader, node, last, comm - at):
            return
        found[node] = None
        last, node = node, reader.word(node)
    yield from found


def _is_task(reader: KernelReader, node: int, last: int, name: int) -> bool:
    try:
        if reader.word(node + 8) != last:
            return False
        text, end, _ = reader.read(node + name, _COMM_BYTES).partition(b"\0")
    except (Untranslated, OutsideMemory):
        return False
    return bool(text and end) and text.isascii() and text.decode().isprintable()


def _mm_place(reader: KernelReader, tasks: list[int], comm: int, pgd: int, align: int) -> int:
    """The offset of mm in all ``tasks``: zero in a kernel thread; otherwise equal to active_mm, which follows it.

    The credentials are such a pair too, but every task has them, and they do not point to a root table (aligned to its
    size).
    """
    rows = [reader.words(task, comm // 8) for task in tasks]
    found = [
        8 * at
        for at in range(comm // 8 - 1)
        if any(row[at] for row in rows)
        and any(not row[at] for row in rows)
        and all(not row[at] or (row[at] == row[at + 1] and _has_pgd(reader, row[at] + pgd, align)) for row in rows)
    ]
    if len(found) != 1:
        raise _NotTold(f"{len(found)} members of task_struct could be mm")
    return found[0]


def _has_pgd(reader: KernelReader, place: int, align: int) -> bool:
    try:
        return reader.direct.physical(reader.word(place)) % align == 0
    except (Untranslated, OutsideMemory):
        return False


def count_tables(reader: KernelReader, layout: CountLayout, image: TableImage) -> tuple[frozenset[int], TableCount]:
    """The physical addresses of the tables in ``image`` that the kernel counts, and the count.

    The guest must have been paused since ``image`` was copied. Raises InfraError for a dangling pointer, as may happen
    while a process starts or exits.
    """
    own = np.concatenate([rows.addresses for rows in image.levels])
    marked = own[_marked(reader, layout, own, image.tables)]
    roots = dict(root_tables(reader, layout))
    processes = {mm: root for mm, root in roots.items() if mm not in layout.others}
    levels, huge = _tables_of(reader.memory, image.tables, processes.values())
    foreign, _ = _tables_of(reader.memory, image.tables, (roots[mm] for mm in layout.others if mm in roots))
    others = np.unique(np.concatenate([*levels, *foreign]))
    users = int(np.count_nonzero(_marked(reader, layout, np.setdiff1d(others, own), image.tables)))
    counter = reader.word(layout.counter)
    counter -= 1 << 64 if counter >> 63 else 0
    astray = None
    if layout.account is not None and not huge:
        below = zip(image.tables.levels[1:], levels[1:], strict=True)
        found = sum(len(tables) for level, tables in below if level.name in _ACCOUNTED)
        astray = sum(reader.word(mm + layout.account) for mm in processes) // image.tables.page_size - found
    total = counter + sum(_waiting(reader, layout))
    return frozenset(marked.tolist()), TableCount(total, len(marked), users, astray=astray)


def _waiting(reader: KernelReader, layout: CountLayout) -> Iterator[int]:
    """Each CPU's pending change of each node. A node gets new ones with its first memory (hotadd_init_pgdat)."""
    for place in dict.fromkeys(map(reader.word, layout.stats)):
        for offset in layout.cpus:
            at = (place + 1 + layout.item + offset) % (1 << 64)
            yield int.from_bytes(reader.read(at, 1), "little", signed=True)


def root_tables(reader: KernelReader, layout: CountLayout) -> Iterator[tuple[int, int]]:
    """Every mm but init_mm with its root table: of all processes, and of exited ones still held by an idle CPU.

    Raises InfraError for a list of processes without end, Untranslated and OutsideMemory.
    """
    tasks = layout.tasks
    mms = dict.fromkeys(layout.others)
    node = start = tasks.first + tasks.tasks
    for _ in range(_MAX_TASKS):
        mms[reader.word(node - tasks.tasks + tasks.mm)] = None
        node = reader.word(node)
        if node == start:
            break
    else:
        raise InfraError("the kernel's list of processes has no end")
    for place in layout.idle:
        mms[reader.word(reader.word(place) + tasks.mm + 8)] = None
    for mm in mms:
        root = reader.word(mm + tasks.pgd) if mm not in (0, layout.init_mm) else 0
        if root:
            yield mm, reader.physical(root)


def _tables_of(memory: PhysicalMemory, tables: TableFormat, roots: Iterable[int]) -> tuple[list[Words], bool]:
    """The tables of user mappings by level from ``roots`` on, each once: processes may share some.

    The second is true if anything but tables is mapped above the last level: huge pages.
    """
    level = tables.levels[0]
    at = np.unique(np.array(list(roots), dtype=np.uint64))
    at = at[memory.holds(at, level.table_size) & (at % np.uint64(level.table_size) == 0)]
    words = memory.gather(at, level.table_size)
    if tables.both_halves:
        # The other half belongs to init_mm.
        words = words[:, : level.entries // 2]
    found, huge = [at], False
    mask, value = (np.uint64(number) for number in tables.table)
    for _ in tables.levels[1:]:
        flat = words.reshape(-1)
        leads = flat & mask == value
        huge = huge or bool(np.any(flat[~leads]))
        at = np.unique(physical(tables, flat[leads]))
        at = at[memory.holds(at, tables.page_size)]
        words = memory.gather(at, tables.page_size)
        found.append(at)
    return found, huge


def _marked(reader: KernelReader, layout: CountLayout, addresses: Words, tables: TableFormat) -> Flags:
    """For each table, whether its struct page says that it is counted; one without a struct page is not."""
    pages = addresses // np.uint64(tables.page_size)
    at = np.uint64(layout.vmemmap) + pages * np.uint64(layout.struct_page) + np.uint64(layout.type.offset)
    words, there = (rows[:, 0] for rows in reader.gather(at & ~np.uint64(7), 1))
    words = words >> (at & np.uint64(7)) * np.uint64(8) & np.uint64(0xFFFFFFFF)
    kind = layout.type
    return np.asarray(there & (words >> np.uint64(kind.shift) & np.uint64(kind.mask) == np.uint64(kind.value)))
