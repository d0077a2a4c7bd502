# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's walk of a guest's page tables, compared with the guest's ptdump over SSH, and as memory grows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.bench import BenchOptions
from harness.bench.figures import BenchResult, Fact, Figure, FigureSection, Target, look_at_host
from harness.bench.measure import TOTAL, WARM_UPS, Series, Spread, Timing, fit_line, paired
from harness.bench.readers import Readers
from harness.config.guest import GuestSpec, problems
from harness.deadline import Deadline
from harness.errors import GuestError, UnsupportedError, UsageError
from harness.guest.memory_blocks import set_auto_online
from harness.progress import Progress, Task
from harness.qemu import memdev
from harness.qemu.devices.dimm import DimmSpec
from harness.scenarios.boot import BootedGuest, Parts, resolve
from harness.scenarios.requirements import require_boot, require_config
from harness.scenarios.start import start_guest
from harness.scratch import private_directory
from harness.units import GIB, KIB, format_size

#: default boot memory, for which the targets are meant
MEMORY = 5 * GIB
#: total hot-added bytes at each repetition
GROWTH = (4 * GIB, 16 * GIB, 64 * GIB)

#: seconds, and speed-up, on a guest with MEMORY that is mapped by single pages
MAX_WALK, MAX_PAUSE, MIN_RATIO = 0.025, 0.008, 30.0
#: seconds with the last of GROWTH added
MAX_GROWN = 0.350

_NEEDS = ("acpi-dimm",)
#: minimum fraction of single pages in the linear map: with fewer, or larger ones, the targets are too easy
_BY_PAGES = 0.9
_PAGE = 4 * KIB
#: progress of adding memory, and of the guest's dump of it, in rounds
_SLOW = 5


def default_guest(spec: GuestSpec, growth: Sequence[int] = GROWTH) -> GuestSpec:
    """``spec`` with MEMORY, and with room and slots for ``growth``, unless the user set these.

    Raises UsageError if that conflicts with the user's settings.
    """
    memory = spec.memory if spec.explicit & {"memory", "nodes"} else MEMORY
    wishes = {"memory": memory}
    if spec.slots or "slots" not in spec.explicit:
        wishes |= {"maxmem": memory + max(growth, default=GIB), "slots": max(len(growth), spec.slots)}
    spec = spec.with_fields({name: wish for name, wish in wishes.items() if name not in spec.explicit}, explicit=False)
    for problem in problems(spec):
        raise UsageError(problem.message, hint=problem.hint)
    return spec


def run(spec: GuestSpec, options: BenchOptions, progress: Progress, growth: Sequence[int] = GROWTH) -> BenchResult:
    """Measure on one freshly booted guest: with its boot memory, then with ``growth`` bytes hot-added in total.

    Raises UnsupportedError for a kernel whose page tables cannot be located, GuestError if it does not accept plugged
    memory, and what booting a guest raises.
    """
    host = look_at_host()
    spec = default_guest(spec, growth)
    try:
        parts, lack = resolve(spec, _NEEDS, progress), None
    except UnsupportedError as error:
        parts, lack = resolve(spec, (), progress), error.message
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(private_directory())
        with progress.task(f"starting {spec.name} with {format_size(spec.memory)}"):
            guest = stack.enter_context(start_guest(spec, parts, scratch, options.timeout, options.start))
        lack = lack or lack_of(guest)
        readers = Readers(guest, options.timeout)
        readers.look_again()
        sizes: tuple[int, ...] = ()
        notes = [f"not measured: {lack}"]
        if not lack:
            sizes, notes = affordable(growth, spec, readers.page_size, readers.struct_page)
        with progress.task("measuring", total=steps(len(sizes), options.rounds)) as task:
            bench = _WalkBench(readers, options, task)
            paired_section = bench.against_the_guest()
            grown_section = bench.as_it_grows(sizes, notes)
        return BenchResult(
            benchmark="walk",
            rounds=options.rounds,
            host=host,
            guest=guest_facts(spec, guest, parts),
            sections=(paired_section, grown_section),
            targets=bench.targets(spec.memory),
            mismatches=None if readers.no_dump else tuple(readers.mismatches),
            reason=readers.no_dump,
        )


def steps(sizes: int, rounds: int) -> int:
    """The length of the progress bar of a measurement."""
    turns = 1 + (1 + sizes if sizes else 0)
    return turns * (WARM_UPS + rounds) + 2 * _SLOW * sizes


def lack_of(guest: BootedGuest) -> str | None:
    """Why no DIMM can be hot-added to a booted guest, None if one can."""
    try:
        require_boot(_NEEDS, guest.boot)
        require_config(_NEEDS, guest.facts.config, f"the kernel {guest.facts.release}")
    except UnsupportedError as error:
        return error.message
    return None


def guest_facts(spec: GuestSpec, guest: BootedGuest, parts: Parts) -> dict[str, Fact]:
    """The guest of the measurement."""
    return {
        "arch": spec.arch,
        "kernel": guest.facts.release,
        "QEMU": parts.qemu.version,
        "memory": format_size(spec.memory),
        "CPUs": spec.cpus,
        "page size": guest.facts.page_size,
    }


def _target(
    name: str, label: str, limit: float, unit: str, measured: Spread | None, reason: str, floor: bool = False
) -> Target:
    """A target for the median of ``measured``, which is not judged if there is a ``reason``."""
    return Target(name, label, limit, unit, None if reason or measured is None else measured.median, reason, floor)


class _WalkBench:
    """All measurements on one guest."""

    def __init__(self, readers: Readers, options: BenchOptions, task: Task) -> None:
        self.readers = readers
        self.options = options
        self.task = task
        self.series: Mapping[str, Series] = {}
        self.ratio: Spread | None = None
        self.by_pages = 0.0
        self.grown: dict[int, Spread] = {}

    def against_the_guest(self) -> FigureSection:
        """Time both readers alternately, and compare their results after every round."""
        readers = self.readers
        self.task.update(note="host against guest")
        sides = {"host": readers.by_host, "look": readers.by_look} | (
            {} if readers.no_dump else {"guest": readers.by_guest}
        )
        self.series = paired(sides, self.options.rounds, after_round=self._compare)
        self.by_pages = readers.mapped_by_pages()
        figures = [
            Figure.timed(f"host_{part}", label, self.series["host"][part])
            for part, label in (
                ("map", "host: map the guest's memory, and unmap it"),
                ("pause", "host: pause, from stop sent to cont answered"),
                ("still", "    vCPUs stood still, by QEMU's clock"),
                ("copy", "    copy of the tables"),
                ("walk", "host: walk"),
                ("coalesce", "host: coalesce into runs like ptdump's"),
                (TOTAL, "host: all of it"),
            )
        ]
        still = self.series["look"]["still"]
        figures.append(Figure.timed("look_still", "a look: vCPUs stood still, by QEMU's clock", still))
        if "guest" in self.series:
            guest = self.series["guest"]
            figures += [
                Figure.timed("guest_ssh", "guest: dump over SSH", guest["ssh"]),
                Figure.timed("guest_parse", "guest: parse", guest["parse"]),
                Figure.timed(f"guest_{TOTAL}", "guest: all of it", guest[TOTAL]),
            ]
            self.ratio = guest["ssh"].wall.over(self.series["host"][TOTAL].wall)
            figures.append(Figure("ratio", "dump over SSH / all of the host's", self.ratio, unit="x"))
        notes = (f"the guest's own dump not measured: {readers.no_dump}",) if readers.no_dump else ()
        return FigureSection(
            "paired", "page tables: host against guest, alternately", readers.size_facts(), tuple(figures), notes
        )

    def as_it_grows(self, sizes: Sequence[int], notes: Sequence[str]) -> FigureSection:
        """Time the host with more and more memory; the guest's dump is read once per size, for comparison."""
        points: list[Point] = []
        present = 0
        for size in (0, *sizes) if sizes else ():
            if size:
                self.task.update(note=f"+{format_size(size)} hot-added")
                self._add(f"bench{format_size(size)}", size - present)
                self.task.advance(_SLOW)
                present = size
            timing = paired({"host": self.readers.by_host}, self.options.rounds, after_round=self.task.advance)
            points.append(Point(size, self.readers.table_pages(), timing["host"][TOTAL]))
            if size:
                self.readers.dump_again()
                self.readers.compare()
                self.task.advance(_SLOW)
        self.grown = {point.size: point.timing.wall for point in points}
        facts: dict[str, Fact] = {f"table pages {point}": point.pages for point in points}
        figures = [Figure.timed(f"{TOTAL}_{point.size}", f"{point}: all of it", point.timing) for point in points]
        figures += [Figure(f"per_page_{point.size}", f"{point}: each table page", point.each, "us") for point in points]
        title = "page tables: host alone, as sparse memory is hot-added"
        return FigureSection("growth", title, facts | line_facts(points), tuple(figures), tuple(notes))

    def targets(self, memory: int) -> tuple[Target, ...]:
        """The targets, meant for an arm64 guest with 4K pages and rodata=full, its default."""
        easy = ""
        if self.by_pages < _BY_PAGES:
            easy = f"{self.by_pages:.0%} of the linear map is mapped by single pages"
        elif self.readers.page_size != _PAGE:
            easy = f"the guest's pages are {format_size(self.readers.page_size)}"
        other = f"the guest has {format_size(memory)}" if memory != MEMORY else easy
        host = self.series["host"]
        most = GROWTH[-1]
        ratio = other or self.readers.no_dump
        grown = "not measured" if most not in self.grown else easy
        name = format_size(MEMORY)
        faster, larger = f"faster than the guest's dump {name}", f"walk and coalesce +{format_size(most)}"
        return (
            _target("walk", f"walk and coalesce {name}", MAX_WALK, "ms", host[TOTAL].wall, other),
            _target("pause", f"pause for a look {name}", MAX_PAUSE, "ms", self.series["look"]["still"].wall, other),
            _target("ratio", faster, MIN_RATIO, "x", self.ratio, ratio, floor=True),
            _target("grown", larger, MAX_GROWN, "ms", self.grown.get(most), grown),
        )

    def _compare(self) -> None:
        self.readers.compare()
        self.task.advance()

    def _add(self, device: str, size: int) -> None:
        guest = self.readers.guest
        # Onlining would write to every struct page, and the guest would use the memory.
        set_auto_online(guest.shell, "offline", deadline=Deadline(self.options.timeout))
        done = memdev.plug(guest.machine, DimmSpec(device, size), deadline=Deadline(self.options.timeout))
        if done.kind != "done":
            raise GuestError(f"the guest does not accept {format_size(size)} more memory: {done.detail}")
        self.readers.look_again()


#: fraction of boot memory that page tables and struct pages of hot-added memory may take
_SPARE = 0.5
_ENTRY = 8
#: minimum growth factor of the number of tables for a meaningful fit
_GREW = 2


@dataclass(frozen=True, slots=True)
class Point:
    """The host's whole work with ``size`` hot-added bytes, which resulted in ``pages`` table pages."""

    size: int
    pages: int
    timing: Timing

    @property
    def each(self) -> Spread:
        """Seconds per table page."""
        return Spread(tuple(value / self.pages for value in self.timing.wall.values))

    def __str__(self) -> str:
        return f"+{format_size(self.size)}"


def affordable(
    growth: Sequence[int], spec: GuestSpec, page_size: int, struct_page: int
) -> tuple[tuple[int, ...], list[str]]:
    """The sizes of ``growth`` for which a guest has room, slots and memory, in order, and why not the others.

    Each page of hot-added memory takes a struct page of ``struct_page`` bytes and a page-table entry from boot memory.
    """
    sizes: list[int] = []
    notes = []
    for size in sorted(growth):
        takes = size // page_size * (struct_page + _ENTRY)
        if takes > _SPARE * spec.memory:
            why = f"its struct pages and tables take {format_size(takes)} of {format_size(spec.memory)} boot memory"
        elif size > spec.room:
            why = f"the guest has room for {format_size(spec.room)}"
        elif len(sizes) == spec.slots:
            why = f"the guest has {spec.slots} slots"
        else:
            sizes.append(size)
            continue
        notes.append(f"+{format_size(size)} not measured: {why}")
    return tuple(sizes), notes


def line_facts(points: Sequence[Point]) -> dict[str, Fact]:
    """A linear fit of the medians by table pages; empty if tables hardly grew."""
    pages = [point.pages for point in points]
    if len(points) < 3 or max(pages) < _GREW * min(pages):
        return {}
    line = fit_line([(point.pages, point.timing.wall.median) for point in points])
    facts: dict[str, Fact] = {
        "linear: fixed ms": round(line.fixed * 1e3, 3),
        "us a page": round(line.slope * 1e6, 3),
        "largest deviation %": round(line.worst * 100, 1),
    }
    # More reliable on a busy host: CPU time does not include waiting.
    cpu = [(point.pages, point.timing.cpu.median) for point in points if point.timing.cpu is not None]
    if len(cpu) == len(points):
        facts["by CPU time %"] = round(fit_line(cpu).worst * 100, 1)
    return facts
