# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's counters of pages, exact: the totals and what each CPU has not added to them yet (mm/vmstat.c)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from harness.kmem.btf import Btf
from harness.kmem.lookup import KernelReader
from harness.kmem.node_zones import NodeZones
from harness.state import NotObserved
from harness.units import KIB

_NEEDED = ("vm_zone_stat", "vm_node_stat", "vmstat_text", "__per_cpu_offset")
_TOTAL = "_totalram_pages"
#: counters that are variables of their own since v6.12 (commit 9d8573111024), if the kernel has them
_SINGLE = ("nr_memmap_pages", "nr_memmap_boot_pages")
SYMBOLS = (*_NEEDED, _TOTAL, *_SINGLE)
#: entries of vmstat_text; 7.3 has about 200
_MAX_TEXTS = 1024
_NAME_BYTES = 64
_MAX_CPUS = 4096
#: upper limit for the distance between the copies of different CPUs
_FAR = 1 << 44
_FIRST_OF_ZONE, _FIRST_OF_NODE = "nr_free_pages", "nr_inactive_anon"
#: counters of zones and of nodes: the totals, the owner's pointer to a CPU's differences, these, and the first name
_KINDS = (
    ("vm_zone_stat", "zone", "per_cpu_zonestats", "per_cpu_zonestat", "vm_stat_diff", _FIRST_OF_ZONE),
    ("vm_node_stat", "pglist_data", "per_cpu_nodestats", "per_cpu_nodestat", "vm_node_stat_diff", _FIRST_OF_NODE),
)
#: printed in huge pages, with CONFIG_TRANSPARENT_HUGEPAGE (vmstat_item_print_in_thp)
_IN_HUGE_PAGES = frozenset(
    {
        "nr_anon_transparent_hugepages",
        "nr_file_hugepages",
        "nr_shmem_hugepages",
        "nr_shmem_pmdmapped",
        "nr_file_pmdmapped",
    }
)


def cpu_offsets(reader: KernelReader, array: int) -> Iterator[int]:
    """The offsets of the possible CPUs' per-CPU areas; the rest of the array is empty (setup_per_cpu_areas)."""
    first = reader.word(array)
    for number in range(_MAX_CPUS):
        offset = reader.word(array + 8 * number)
        # If every element of the array is used, other data follows.
        if offset == 0 or abs(offset - first) > _FAR:
            return
        yield offset


def _names(reader: KernelReader, texts: int, first: str) -> Iterator[str]:
    """The names of vmstat_text from ``first`` on, to be ended by the caller; none if there is no such name."""
    begun = False
    for number in range(_MAX_TEXTS):
        at = reader.word(texts + 8 * number)
        name = reader.read(at, _NAME_BYTES).partition(b"\0")[0].decode("ascii", "replace") if at else ""
        begun = begun or name == first
        if begun:
            yield name


def node_item(reader: KernelReader, texts: int, name: str) -> int | None:
    """The number of a node's counter; None if vmstat_text does not have it."""
    names = _names(reader, texts, _FIRST_OF_NODE)
    return next((number for number, text in enumerate(names) if text == name), None)


@dataclass(frozen=True, slots=True)
class CountersCopy:
    """Counters by name."""

    values: Mapping[str, int]

    def text(self) -> bytes:
        """Lines of /proc/vmstat."""
        return "".join(f"{name} {value}\n" for name, value in self.values.items()).encode()


@dataclass(frozen=True, slots=True)
class OwnedCounters:
    """The counters of zones or of nodes: their ``names``, the address of the ``total``, each CPU's differences.

    ``stats`` is bytes into a zone or node of its pointer to a CPU's differences, which begin ``diffs`` bytes behind.
    """

    names: tuple[str, ...]
    total: int
    stats: int
    diffs: int

    def read(self, reader: KernelReader, owners: Iterable[int], cpus: tuple[int, ...]) -> dict[str, int]:
        """The counters of a paused guest by name, negative ones as 0 (global_zone_page_state). Raises InfraError."""
        count = len(self.names)
        total = np.array(reader.words(self.total, count), dtype=np.uint64).view(np.int64)
        # Zones without memory share those that were used during boot.
        for place in dict.fromkeys(reader.word(owner + self.stats) for owner in owners):
            for offset in cpus:
                waiting = reader.read((place + self.diffs + offset) % (1 << 64), count)
                total = total + np.frombuffer(waiting, dtype=np.int8)
        return dict(zip(self.names, np.maximum(total, 0).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class VmCounters:
    """Where one booted kernel keeps its counters; ``singles`` are addresses by name, ``cpus`` per-CPU offsets."""

    zones: NodeZones
    of_zones: OwnedCounters
    of_nodes: OwnedCounters
    singles: Mapping[str, int]
    cpus: tuple[int, ...]

    def copy(self, reader: KernelReader, before: object = None) -> CountersCopy:
        """The counters of a paused guest that count pages of zones, of nodes and of memmap. Raises InfraError."""
        found = self.of_zones.read(reader, (at for _, _, at in self.zones.addresses(reader)), self.cpus)
        found |= self.of_nodes.read(reader, (at for _, at in self.zones.nodes.addresses(reader)), self.cpus)
        found |= {name: reader.word(at) for name, at in self.singles.items()}
        return CountersCopy({name: value for name, value in found.items() if name not in _IN_HUGE_PAGES})


def vm_counters(
    reader: KernelReader, symbols: Mapping[str, int], types: Btf, zones: NodeZones | NotObserved
) -> VmCounters | NotObserved:
    """Find the counters in a paused guest. Raises InfraError, ParseError for broken BTF."""
    missing = [name for name in _NEEDED if name not in symbols]
    if missing:
        return NotObserved(f"the kernel's symbols have no {', '.join(missing)} (CONFIG_KALLSYMS_ALL)")
    if isinstance(zones, NotObserved):
        return zones
    found: list[OwnedCounters] = []
    for total, owner, pointer, record, diffs, first in _KINDS:
        stats, waiting = types.member(owner, pointer), types.member(record, diffs)
        if stats is None or waiting is None or waiting.dimensions != (waiting.size,):
            return NotObserved(f"the layout of struct {record} is unknown")
        names = tuple(itertools.islice(_names(reader, symbols["vmstat_text"], first), waiting.size))
        if len(set(names)) != waiting.size or not all(names):
            return NotObserved(f"vmstat_text has no {waiting.size} names from {first} on")
        found.append(OwnedCounters(names, symbols[total], stats.offset, waiting.offset))
    of_zones, of_nodes = found
    singles = {name: symbols[name] for name in _SINGLE if name in symbols}
    return VmCounters(zones, of_zones, of_nodes, singles, tuple(cpu_offsets(reader, symbols["__per_cpu_offset"])))


@dataclass(frozen=True, slots=True)
class TotalCopy:
    """The pages of the page allocator, in KiB."""

    kib: int

    def text(self) -> bytes:
        """The first line of /proc/meminfo."""
        return f"MemTotal: {self.kib} kB\n".encode()


@dataclass(frozen=True, slots=True)
class TotalMemory:
    """The address of the counter of the page allocator's pages."""

    address: int
    page_size: int

    def copy(self, reader: KernelReader, before: object = None) -> TotalCopy:
        """Read it from a paused guest. Raises InfraError."""
        return TotalCopy(reader.word(self.address) * self.page_size // KIB)


def total_memory(note: Mapping[str, str], symbols: Mapping[str, int]) -> TotalMemory | NotObserved:
    """Find the counter behind MemTotal (fs/proc/meminfo.c); ``note`` is vmcoreinfo."""
    if _TOTAL not in symbols:
        return NotObserved(f"the kernel's symbols have no {_TOTAL} (CONFIG_KALLSYMS_ALL)")
    if not note.get("PAGESIZE", "").isdecimal():
        return NotObserved("vmcoreinfo has no PAGESIZE")
    return TotalMemory(symbols[_TOTAL], int(note["PAGESIZE"]))
