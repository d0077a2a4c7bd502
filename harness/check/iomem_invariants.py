# SPDX-License-Identifier: GPL-2.0-or-later
"""IOM-*: /proc/iomem against the boot's tree plus what was plugged, and crash dumps against /proc/iomem.

Where the text was not read, they judge the tree that the host read; XCK-2 proves that the two are equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.check.evidence import Evidence
from harness.check.registry import Broken, invariant, observed
from harness.model.expected import IomemAddition
from harness.state import IomemEntry
from harness.units import AddrRange, intersect_ranges, merge_ranges, subtract_ranges

SOURCE = "/proc/iomem"
TREE = "the resource tree in guest memory"
_BUS = re.compile(r"PCI Bus (?P<bus>[0-9a-f]{4}:[0-9a-f]{2})")

#: an entry with the names and ranges of everything above it, outermost first
Path = tuple[tuple[AddrRange, str], ...]


@dataclass(frozen=True)
class _Difference:
    """``added`` are missing entries that were plugged, ``gone`` those of boot."""

    added: tuple[Path, ...]
    gone: tuple[Path, ...]
    extra: tuple[Path, ...]
    buses: frozenset[str]


def paths(entries: Sequence[IomemEntry], above: Path = ()) -> Iterator[Path]:
    """Every entry of the tree with its ancestors, in the file's order."""
    for entry in entries:
        here = (*above, (entry.range, entry.name))
        yield here
        yield from paths(entry.children, here)


def with_additions(entries: Sequence[IomemEntry], additions: Sequence[IomemAddition]) -> tuple[IomemEntry, ...]:
    """The tree with the additions nested where the kernel's resource tree puts them."""
    tree = list(entries)
    for addition in additions:
        tree = _insert(tree, IomemEntry(addition.range, addition.name))
    return tuple(tree)


def _insert(level: list[IomemEntry], new: IomemEntry) -> list[IomemEntry]:
    for at, entry in enumerate(level):
        if entry.range.covers(new.range):
            children = tuple(_insert(list(entry.children), new))
            return [*level[:at], IomemEntry(entry.range, entry.name, children), *level[at + 1 :]]
    return sorted([*level, new], key=lambda entry: entry.range)


def show(path: Path) -> str:
    """One line as the file prints it, with its indentation."""
    where, name = path[-1]
    return f"{'  ' * (len(path) - 1)}{where} : {name}"


def _is_hotplugged_bar(path: Path, known: set[Path]) -> str | None:
    """The bus of a BAR (or what its driver claims in it) that appeared below a bridge that was there at boot."""
    for depth in range(len(path) - 1):
        bus = _BUS.fullmatch(path[depth][1])
        if bus is None or bus["bus"].endswith(":00") or path[: depth + 1] not in known:
            continue
        if path[depth + 1][1] == f"{bus['bus']}:00.0":
            return bus["bus"]
    return None


def _difference(evidence: Evidence) -> _Difference:
    baseline = observed(evidence.layout.baseline.resources)
    seen, wanted = observed(evidence.observed.resources), with_additions(baseline, evidence.expected.iomem)
    if seen == wanted:
        return _Difference((), (), (), frozenset())
    there, due, boot = Counter(paths(seen)), Counter(paths(wanted)), set(paths(baseline))
    extra, buses = [], set()
    for path in (there - due).elements():
        bus = _is_hotplugged_bar(path, boot)
        if bus is None:
            extra.append(path)
        else:
            buses.add(bus)
    missing = tuple((due - there).elements())
    added, gone = (tuple(path for path in missing if (path in boot) is old) for old in (False, True))
    return _Difference(added, gone, tuple(extra), frozenset(buses))


@invariant(
    "IOM-1",
    "every plugged range stands in /proc/iomem with its exact name and nesting",
    source="register_memory_resource, mm/memory_hotplug.c; virtio_mem_create_resource; pmem_attach_disk (v6.12)",
    motive="e686c32590f4: dax/kmem: Fix leak of memory-hotplug resources",
)
def iom_1(evidence: Evidence) -> Iterator[Broken]:
    found = _difference(evidence)
    for path in found.added:
        rivals = [show(other) for other in found.extra if other[-1][0].overlaps(path[-1][0])]
        yield Broken(str(path[-1][0]), show(path), "; ".join(rivals) or "no such line", SOURCE)


@invariant(
    "IOM-2",
    "entries that were not plugged never change; after a removal the tree equals the tree before the add",
    source="remove_memory_block_devices, release_mem_region_adjustable (kernel/resource.c, v6.12)",
    motive="b4afe4183ec7: resource: fix region_intersects() vs add_memory_driver_managed()",
)
def iom_2(evidence: Evidence) -> Iterator[Broken]:
    found = _difference(evidence)
    wrong_names = [path[-1][0] for path in found.added]
    for path in found.gone:
        yield Broken(str(path[-1][0]), show(path), "line is gone", SOURCE)
    for path in found.extra:
        if not any(path[-1][0].overlaps(where) for where in wrong_names):
            yield Broken(str(path[-1][0]), "no such line", show(path), SOURCE)
    if len(found.buses) != len(evidence.expected.pci):
        ids = ", ".join(sorted(item.owner for item in evidence.expected.pci)) or "none"
        buses = ", ".join(sorted(found.buses)) or "none"
        yield Broken("PCI bridges", f"BARs of {len(evidence.expected.pci)} devices ({ids})", f"buses {buses}", SOURCE)


@invariant(
    "IOM-3",
    "siblings do not overlap, children lie inside their parents, and every line is one that the kernel can print",
    source="__request_resource, kernel/resource.c (v6.12)",
    motive="b4afe4183ec7: resource: fix region_intersects() vs add_memory_driver_managed()",
    reads=(SOURCE,),
)
def iom_3(evidence: Evidence) -> Iterator[Broken]:
    return _misplaced(observed(evidence.observed.resources), None)


def _misplaced(level: Sequence[IomemEntry], parent: IomemEntry | None) -> Iterator[Broken]:
    last: IomemEntry | None = None
    for entry in level:
        here = f"{entry.range} : {entry.name}"
        if parent is not None and not parent.range.covers(entry.range):
            yield Broken(str(entry.range), f"inside {parent.range} : {parent.name}", here, SOURCE)
        if last is not None and entry.range.start < last.range.end:
            yield Broken(str(entry.range), f"behind {last.range} : {last.name}", here, SOURCE)
        last = entry
        yield from _misplaced(entry.children, entry)


@invariant(
    "IOM-4",
    "the segments of crash dumps (/proc/kcore, QEMU's dump-guest-memory) are exactly the System RAM of /proc/iomem",
    source="walk_system_ram_range (kernel/resource.c), kcore_ram_list (fs/proc/kcore.c), v6.12; dump/dump.c (QEMU 10)",
    motive="a dump of removed memory faults, one without added memory lacks what a crash is about",
    when=lambda evidence: evidence.dumps,
)
def iom_4(evidence: Evidence) -> Iterator[Broken]:
    ram = merge_ranges(_ram(observed(evidence.observed.resources)))
    for dump in evidence.dumps:
        wanted, seen = intersect_ranges([dump.scope], ram), merge_ranges(dump.ranges)
        for part in subtract_ranges(wanted, seen):
            yield Broken(f"PT_LOAD of {part}", "in the dump", "missing", dump.source)
        for part in subtract_ranges(seen, wanted):
            yield Broken(f"PT_LOAD of {part}", "not in the dump", "there", dump.source)


def _ram(entries: Sequence[IomemEntry]) -> Iterator[AddrRange]:
    """What walk_system_ram_range (kernel/resource.c, v6.12) walks: System RAM of whatever driver, at any depth."""
    for entry in entries:
        if entry.name.startswith("System RAM"):
            yield entry.range
        else:
            yield from _ram(entry.children)
