# SPDX-License-Identifier: GPL-2.0-or-later
"""Rounds of a soak: what grows a little each time is a leak, however little it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from harness.check import Finding
from harness.check.counters import kernel_page_table_pages
from harness.state import GuestState, NotObserved, SlabCache

_VMSTAT = ("nr_memmap", "nr_memmap_pages", "nr_memmap_boot", "nr_memmap_boot_pages")
#: the directory of a memory block in sysfs is made of these (fs/kernfs/dir.c)
_SLAB = "kernfs_node_cache"
#: the largest slab of a cache: slub_max_order, mm/slub.c (v6.12), of 4K pages; larger pages make it smaller
_LARGEST_SLAB = 32 << 10
#: rounds that only warm caches up
WARM_UP = 1


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter after one round: ``unit`` in words; ``slack`` is by how much it may be off without a leak."""

    value: int
    unit: str
    slack: int = 0


@dataclass(frozen=True, slots=True)
class Slope:
    """The line through a counter's values: ``each`` per round; ``limit`` is the steepest that mere slack can make."""

    name: str
    each: Fraction
    limit: Fraction
    unit: str

    @property
    def leaks(self) -> bool:
        """True if no slack explains it."""
        return abs(self.each) > self.limit


def counters(state: GuestState, page_size: int, cpus: int) -> dict[str, Counter]:
    """What MEM-2 balances, in bytes; what could not be read is left out."""
    found: dict[str, Counter] = {}
    if not isinstance(state.vmstat, NotObserved):
        for name in _VMSTAT:
            if name in state.vmstat:
                found[name] = Counter(state.vmstat[name] * page_size, "bytes")
        tables = kernel_page_table_pages(state, page_size)
        if tables is not None:
            found["nr_page_table_pages less VmPTE"] = Counter(tables * page_size, "bytes")
    if not isinstance(state.meminfo, NotObserved):
        found["MemTotal"] = Counter(state.meminfo["MemTotal"], "bytes")
    if not isinstance(state.backends, NotObserved):
        found["memory backends of QEMU"] = Counter(len(state.backends), "backends")
    if not isinstance(state.slabs, NotObserved):
        for slab in state.slabs:
            if slab.name == _SLAB:
                found[f"slab {_SLAB}"] = Counter(slab.active_objs * slab.objsize, "bytes", _slack(slab, cpus))
    return found


def _slack(slab: SlabCache, cpus: int) -> int:
    """Bytes of free objects that /proc/slabinfo counts as used: those that wait on the slabs of each CPU.

    get_slabinfo, set_cpu_partial, slub_set_cpu_partial (mm/slub.c, v6.12): one slab at work and as many partial ones as
    hold twice the wanted number of free objects.
    """
    size = slab.objsize
    wanted = next((count for least, count in ((4096, 6), (1024, 24), (256, 52)) if size >= least), 120)
    per_slab = max(1, _LARGEST_SLAB // size)
    return cpus * (2 * per_slab + 2 * wanted) * size


def slopes(rounds: Sequence[Mapping[str, Counter]]) -> tuple[Slope, ...]:
    """Fit a line (least squares) through each counter that every round after the first ones has."""
    kept = rounds[WARM_UP:]
    if len(kept) < 2:
        return ()
    names = [name for name in kept[0] if all(name in one for one in kept)]
    return tuple(_fit(name, [one[name] for one in kept]) for name in names)


def _fit(name: str, values: Sequence[Counter]) -> Slope:
    count = len(values)
    centred = [Fraction(2 * number - count + 1, 2) for number in range(count)]
    spread = sum((t * t for t in centred), Fraction(0))
    each = sum((t * value.value for t, value in zip(centred, values, strict=True)), Fraction(0)) / spread
    # Values that lie in a band are steepest where all of the second half is at its upper edge.
    steepest = sum((t for t in centred if t > 0), Fraction(0)) / spread
    slack = max(value.slack for value in values)
    return Slope(name, each, steepest * slack, values[0].unit)


def spell(slope: Slope) -> str:
    """``nr_memmap 0 bytes a round``; with slack ``slab x 0.4 bytes a round (below 12.5 it proves nothing)``."""
    text = f"{slope.name} {_number(slope.each)} {slope.unit} a round"
    return f"{text} (up to {_number(slope.limit)} may be caches of the CPUs)" if slope.limit else text


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}"


def leaks(found: Sequence[Slope], step: str) -> tuple[Finding, ...]:
    """A finding for each slope: it names the counter and what each round costs."""
    return tuple(
        Finding("MEM-2", slope.name, "slope 0", f"{_number(slope.each)} {slope.unit} a round", "least squares", step)
        for slope in found
        if slope.leaks
    )
