# SPDX-License-Identifier: GPL-2.0-or-later
"""Two readers of a guest's page tables to be timed: the host and the guest itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

import numpy as np

from harness.arch.kernel_layout import KernelLayout
from harness.bench.figures import Fact
from harness.bench.measure import Laps
from harness.check.witnesses import clip
from harness.collect.hostside import Glance, regions, table_format
from harness.collect.look import collect_state
from harness.deadline import Deadline
from harness.errors import GuestError, UnsupportedError
from harness.kmem.physical_memory import PhysicalMemory, Region
from harness.kmem.table_walk import TableImage, Walk, copy_tables, walk
from harness.model.boot_layout import boot_layout
from harness.parsers.ptdump import SOURCE, parse_ptdump
from harness.qemu import memdev
from harness.qemu.machine import Machine
from harness.scenarios.boot import BootedGuest
from harness.state import Mapping, MemoryDevice, NotObserved, PageTables
from harness.units import MIB, AddrRange, format_size, merge_ranges, subtract_ranges

#: maximum size of a dump, which has about 100 bytes per run
_DUMP_LIMIT = 256 * MIB
#: maximum number of stored mismatches: tables may differ everywhere
_MISMATCHES = 100


class Readers:
    """The guest, and the last result of each reader.

    ``no_dump`` says why the guest has no dump, empty if it has one. ``mismatches`` are the differences found by
    ``compare``. Raises UnsupportedError for a kernel whose page tables cannot be located.
    """

    def __init__(self, guest: BootedGuest, timeout: float) -> None:
        self.guest = guest
        self.timeout = timeout
        facts, arch = guest.facts, guest.machine.spec.arch
        tables = table_format(arch, facts)
        if isinstance(tables, NotObserved):
            raise _unknown(facts.release, tables.reason)
        look = collect_state(guest.shell, guest.machine, None, facts=facts, deadline=self._deadline(), sources=())
        layout = boot_layout(guest.shape, facts, look)
        kernel = layout.kernel
        if kernel is None:
            raise _unknown(facts.release, "its vmcoreinfo has no virtual layout")
        self.tables = tables
        self.kernel = kernel
        self.mismatches: list[str] = []
        self._windows = (self.kernel.linear_window, self.kernel.vmemmap_window)
        steady = layout.features.hides_pages is False
        self._ignored = frozenset[str]() if steady else arch.table_rules.validity_words
        self._places: Sequence[Region] = ()
        self._walked: Walk | None = None
        self._glance: Glance | None = None
        self._memory: PhysicalMemory | None = None
        self._spare: TableImage | None = None
        self._runs: Sequence[Mapping] = ()
        self._dumped: PageTables | None = None
        self._markers: list[tuple[int, str]] = []
        done = guest.shell.run(f"test -e {SOURCE}", deadline=self._deadline())
        self.no_dump = "" if done.status == 0 else "this kernel has no CONFIG_PTDUMP_DEBUGFS"
        if not self.no_dump:
            self.dump_again()

    @property
    def struct_page(self) -> int:
        """Bytes of a struct page."""
        return self.kernel.struct_page_size

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self.tables.page_size

    def look_again(self) -> None:
        """Locate the guest's memory again; raises GuestError unless all memory devices are mapped."""
        machine, deadline = self.guest.machine, self._deadline()
        devices = memdev.memory_devices(machine, deadline=deadline)
        self._places = regions(machine, devices, machine.backend_fds(devices, deadline))
        self.by_host(Laps())
        check_mapped(devices, self.kernel, [run.range for run in self._last_walk.mappings()])

    def by_host(self, laps: Laps) -> None:
        """All work of the host, from the files of the guest's memory to runs."""
        machine, deadline = self.guest.machine, self._deadline()
        mark = machine.qmp.seq
        with laps.part("map"):
            memory = PhysicalMemory(self._places)
        with memory:
            with laps.part("pause"), machine.paused(deadline), laps.part("copy"):
                image = copy_tables(memory, self.tables)
            with laps.part("walk"):
                walked = walk(image)
            with laps.part("coalesce"):
                runs = walked.coalesce(self._markers)
            with laps.part("map"):
                memory.close()
        laps.told("still", lambda: _standstill(machine, mark, deadline))
        self._walked, self._runs = walked, runs

    def by_look(self, laps: Laps) -> None:
        """What a look reads from the guest's memory, in one pause: page tables, sections, and the count of tables."""
        machine, deadline, kernel = self.guest.machine, self._deadline(), self.guest.kernel
        self._memory = memory = PhysicalMemory(self._places, self._memory)
        glance = kernel.look(memory, self._glance, self._spare)
        mark = machine.qmp.seq
        copy = kernel.copy(machine, memory, deadline, glance)
        self._glance = glance.after(copy)
        # As after a look at tables that did not change.
        self._spare = None if isinstance(copy, NotObserved) else copy.tables
        memory.close_but(tuple(machine.spec.boot_ram().values()))
        laps.told("still", lambda: _standstill(machine, mark, deadline))

    def by_guest(self, laps: Laps) -> None:
        """All work to get the guest's own dump, parsed."""
        with laps.part("ssh"):
            data = self.guest.shell.must(f"cat {SOURCE}", deadline=self._deadline(), limit=_DUMP_LIMIT)
        with laps.part("parse"):
            self._dumped = parse_ptdump(data.decode(errors="replace"), self.guest.machine.spec.arch)

    def dump_again(self) -> None:
        """Read the guest's dump again, if it has one."""
        if not self.no_dump:
            self.by_guest(Laps())
            assert self._dumped is not None
            self._markers = sorted((address, name) for name, address in self._dumped.markers.items())

    def compare(self) -> None:
        """Compare the last results of both, in linear map and vmemmap, which do not change on an idle guest."""
        if self._dumped is not None and len(self.mismatches) < _MISMATCHES:
            differing = differences(self._dumped.mappings, self._runs, self._windows, self._ignored)
            self.mismatches += [text for text in differing if text not in self.mismatches][:_MISMATCHES]

    def table_pages(self) -> int:
        """The number of tables in the last walk."""
        return sum(len(rows.addresses) for rows in self._last_walk.image.levels)

    def mapped_by_pages(self) -> float:
        """The fraction of the linear map that is mapped by single pages."""
        runs, window = self._last_walk.runs, self.kernel.linear_window
        inside = (runs.start >= np.uint64(window.start)) & (runs.start <= np.uint64(window.end - 1))
        single = inside & (runs.level == len(self.tables.levels) - 1)
        return int(runs.size[single].sum()) / max(1, int(runs.size[inside].sum()))

    def size_facts(self) -> dict[str, Fact]:
        """How much the last walk read."""
        last = self._last_walk
        facts: dict[str, Fact] = {}
        for number, level in enumerate(self.tables.levels):
            count = int(last.runs.size[last.runs.level == number].sum()) >> level.shift
            if count:
                facts[f"{level.leaf_name} leaves"] = count
        return facts | {"table pages": self.table_pages(), "table bytes": last.image.size, "runs": len(self._runs)}

    @property
    def _last_walk(self) -> Walk:
        assert self._walked is not None, "look_again comes first"
        return self._walked

    def _deadline(self) -> Deadline:
        return Deadline(self.timeout)


def _unknown(release: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        "vmcoreinfo",
        f"the host cannot find the page tables of {release}: {reason}",
        hint="the kernel needs CONFIG_VMCORE_INFO and CONFIG_PROC_KCORE",
    )


def check_mapped(devices: Iterable[MemoryDevice], kernel: KernelLayout, mapped: Iterable[AddrRange]) -> None:
    """Raise GuestError unless ``mapped`` contains the linear map of all memory devices."""
    ranges = tuple(mapped)
    for device in devices:
        missing = sum(piece.size for piece in subtract_ranges([kernel.linear(device.range)], ranges))
        if missing:
            raise GuestError(
                f"the guest has no linear map for {format_size(missing)} of {device.id} ({format_size(device.size)})",
                hint="see its kernel log; with little memory there is no room for struct pages",
            )


def _standstill(machine: Machine, since: int, deadline: Deadline) -> float:
    """Seconds from QEMU's event STOP to RESUME, without the time of the QMP commands."""

    def stamp(name: str) -> float:
        event = machine.qmp.wait_event(
            lambda event: event.name == name, since=since, deadline=deadline, awaited=f"QEMU's event {name}"
        )
        return event.timestamp

    return stamp("RESUME") - stamp("STOP")


def differences(
    dump: Iterable[Mapping], walk: Iterable[Mapping], windows: Sequence[AddrRange], ignored: Set[str] = frozenset()
) -> list[str]:
    """The differences between the guest's dump and the host's walk within ``windows`` of virtual addresses.

    Both are in address order. Levels and attribute words are compared, except those ``ignored``; regions are not.
    Adjacent equal runs count as one.
    """
    dumped, walked = (dict.fromkeys(_runs(leaves, windows, ignored)) for leaves in (dump, walk))
    only_dumped, only_walked = (
        [run for run in dumped if run not in walked],
        [run for run in walked if run not in dumped],
    )
    return [
        f"virtual {where}: guest's dump {_words(only_dumped, where)}, host's walk {_words(only_walked, where)}"
        for where in merge_ranges(run.range for run in [*only_dumped, *only_walked])
    ]


def _runs(mappings: Iterable[Mapping], windows: Sequence[AddrRange], ignored: Set[str]) -> Iterator[Mapping]:
    leaves = tuple(mappings)
    pending: Mapping | None = None
    for leaf in (leaf for window in windows for leaf in clip(leaves, window)):
        attrs = tuple(word for word in leaf.attrs if word not in ignored)
        start = leaf.range.start
        if pending is not None:
            if (pending.range.end, pending.level, pending.attrs) == (start, leaf.level, attrs):
                start = pending.range.start
            else:
                yield pending
        pending = Mapping(AddrRange(start, leaf.range.end), leaf.level, attrs, "")
    if pending is not None:
        yield pending


def _words(runs: Iterable[Mapping], where: AddrRange) -> str:
    return (
        "; ".join(f"{run.range} {run.level} {' '.join(run.attrs)}" for run in runs if run.range.overlaps(where))
        or "nothing"
    )
