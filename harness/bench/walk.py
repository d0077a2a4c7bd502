# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's walk of a guest's page tables: against the guest's own ptdump over SSH, and as memory grows."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.bench import BenchOptions
from harness.bench.host import look_at_host
from harness.bench.measure import TOTAL, WARM_UPS, Series, Spread, fit_line, paired
from harness.bench.readers import Readers
from harness.bench.result import BenchResult, Fact, Figure, Section, Target
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import GuestError, UnsupportedError
from harness.guest.blocks import set_auto_online
from harness.progress import Progress, Task
from harness.qemu import memdev
from harness.scenarios.abilities import require_boot, require_config
from harness.scenarios.boot import BootedGuest, Parts, boot_guest, resolve
from harness.units import GIB, format_size

#: boot memory unless the user wants another size: what the targets are meant for
MEMORY = 5 * GIB
#: bytes hot-added altogether when the walk is timed again
GROWTH = (4 * GIB, 16 * GIB, 64 * GIB)

#: seconds, and how many times faster, on a guest of MEMORY that is mapped by single pages
MAX_WALK, MAX_PAUSE, MIN_RATIO = 0.025, 0.015, 30.0
#: seconds with the last of GROWTH added
MAX_GROWN = 0.350

_NEEDS = ("acpi-dimm",)
#: of boot memory, what page tables and struct pages of hot-added memory may take
_SPARE = 0.5
_ENTRY = 8
#: a linear map with less than this in single pages is too easy for the targets
_BY_PAGES = 0.9
#: how many times more tables there must be before a line through the points means anything
_GREW = 2


def default_guest(spec: GuestSpec, growth: Sequence[int] = GROWTH) -> GuestSpec:
    """``spec`` with MEMORY, and with room and slots for ``growth``, wherever the user has not said otherwise."""
    memory = spec.memory if spec.explicit & {"memory", "nodes"} else MEMORY
    wishes = {"memory": memory}
    if spec.slots or "slots" not in spec.explicit:
        wishes |= {"maxmem": memory + max(growth, default=GIB), "slots": max(len(growth), spec.slots)}
    return spec.with_fields({name: wish for name, wish in wishes.items() if name not in spec.explicit}, explicit=False)


def run(spec: GuestSpec, options: BenchOptions, progress: Progress, growth: Sequence[int] = GROWTH) -> BenchResult:
    """Measure on one freshly booted guest: with its boot memory, then with ``growth`` bytes hot-added in all.

    Raises UnsupportedError for a kernel that does not tell where its tables are, GuestError if it does not take memory
    that is plugged, and what booting a guest raises.
    """
    host = look_at_host()
    spec = default_guest(spec, growth)
    try:
        parts, lack = resolve(spec, _NEEDS, progress), None
    except UnsupportedError as error:
        parts, lack = resolve(spec, (), progress), error.message
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memhp-bench-")))
        with progress.task(f"booting {spec.name} with {format_size(spec.memory)}"):
            guest = stack.enter_context(boot_guest(spec, parts, scratch, options.timeout))
        lack = lack or lack_of(guest)
        readers = Readers(guest, options.timeout)
        readers.look_again()
        sizes: tuple[int, ...] = ()
        notes = [f"not measured: {lack}"]
        if not lack:
            sizes, notes = affordable(growth, spec, guest.facts.page_size, readers.struct_page)
        turns = len(sizes) + 2 if sizes else 1
        with progress.task("measuring", total=turns * (WARM_UPS + options.rounds)) as task:
            bench = _Bench(readers, options, task)
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


def lack_of(guest: BootedGuest) -> str | None:
    """Why no DIMM can be hot-added to a booted guest, None if one can."""
    try:
        require_boot(_NEEDS, guest.boot)
        require_config(_NEEDS, guest.facts.config, f"the kernel {guest.facts.release}")
    except UnsupportedError as error:
        return error.message
    return None


def affordable(
    growth: Sequence[int], spec: GuestSpec, page_size: int, struct_page: int
) -> tuple[tuple[int, ...], list[str]]:
    """The sizes of ``growth`` that a guest has room, slots and memory for, in order, and why not the others.

    Each page of hot-added memory takes a struct page of ``struct_page`` bytes and a page-table entry of the boot
    memory.
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


def guest_facts(spec: GuestSpec, guest: BootedGuest, parts: Parts) -> dict[str, Fact]:
    """What was measured on."""
    return {
        "arch": spec.arch,
        "kernel": guest.facts.release,
        "QEMU": parts.qemu.version,
        "memory": format_size(spec.memory),
        "CPUs": spec.cpus,
        "page size": guest.facts.page_size,
    }


class _Bench:
    """The measurements on one guest, one after the other."""

    def __init__(self, readers: Readers, options: BenchOptions, task: Task) -> None:
        self.readers = readers
        self.options = options
        self.task = task
        self.series: Mapping[str, Series] = {}
        self.ratio: Spread | None = None
        self.by_pages = 0.0
        self.grown: dict[int, Spread] = {}

    def against_the_guest(self) -> Section:
        """Both readers in turns, and their results compared after every round."""
        readers = self.readers
        self.task.update(note="host against guest")
        sides = {"host": readers.by_host} | ({} if readers.no_dump else {"guest": readers.by_guest})
        self.series = paired(sides, self.options.rounds, after_round=self._compare)
        self.by_pages = readers.mapped_by_pages()
        figures = [
            Figure.timed(f"host_{part}", label, self.series["host"][part])
            for part, label in (
                ("map", "host: open and map the guest's memory"),
                ("pause", "host: pause, from stop sent to cont answered"),
                ("still", "    vCPUs stood still, by QEMU's clock"),
                ("copy", "    copy of the tables"),
                ("walk", "host: walk"),
                ("coalesce", "host: coalesce into runs like ptdump's"),
                (TOTAL, "host: all of it"),
            )
        ]
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
        return Section(
            "paired", "page tables: host against guest, in turns", readers.size_facts(), tuple(figures), notes
        )

    def as_it_grows(self, sizes: Sequence[int], notes: Sequence[str]) -> Section:
        """The host alone, with more and more memory; the guest's dump once for each size, to compare with."""
        facts: dict[str, Fact] = {}
        whole: list[Figure] = []
        each: list[Figure] = []
        points: list[tuple[float, float]] = []
        present = 0
        for size in (0, *sizes) if sizes else ():
            label = f"+{format_size(size)}"
            if size:
                self.task.update(note=f"{label} hot-added")
                self._add(f"bench{format_size(size)}", size - present)
                present = size
            timing = paired({"host": self.readers.by_host}, self.options.rounds, after_round=self.task.advance)
            total, pages = timing["host"][TOTAL], self.readers.table_pages()
            self.grown[size] = total.wall
            points.append((pages, total.wall.median))
            facts[f"table pages {label}"] = pages
            whole.append(Figure.timed(f"{TOTAL}_{size}", f"{label}: all of it", total))
            per_page = Spread(tuple(value / pages for value in total.wall.values))
            each.append(Figure(f"per_page_{size}", f"{label}: each table page", per_page, unit="us"))
            if size:
                self.readers.dump_again()
                self.readers.compare()
        title = "page tables: host alone, as sparse memory is hot-added"
        return Section("growth", title, facts | line_facts(points), (*whole, *each), tuple(notes))

    def targets(self, memory: int) -> tuple[Target, ...]:
        """What was hoped for on an arm64 guest with 4K pages and rodata=full, its default."""
        easy = "" if self.by_pages >= _BY_PAGES else f"{self.by_pages:.0%} of the linear map is mapped by single pages"
        other = f"the guest has {format_size(memory)}" if memory != MEMORY else easy
        host = self.series["host"]
        most = GROWTH[-1]
        ratio = other or self.readers.no_dump
        grown = "not measured" if most not in self.grown else easy
        name = format_size(MEMORY)
        return (
            Target(
                "walk", f"walk and coalesce {name}", MAX_WALK, "ms", None if other else host[TOTAL].wall.median, other
            ),
            Target("pause", f"pause {name}", MAX_PAUSE, "ms", None if other else host["pause"].wall.median, other),
            Target(
                "ratio",
                f"faster than the guest's dump {name}",
                MIN_RATIO,
                "x",
                None if ratio or self.ratio is None else self.ratio.median,
                ratio,
                floor=True,
            ),
            Target(
                "grown",
                f"walk and coalesce +{format_size(most)}",
                MAX_GROWN,
                "ms",
                None if grown else self.grown[most].median,
                grown,
            ),
        )

    def _compare(self) -> None:
        self.readers.compare()
        self.task.advance()

    def _add(self, device: str, size: int) -> None:
        guest = self.readers.guest
        if not self.grown.keys() - {0}:
            # Onlining would write to every struct page and hand out the memory: none of it is to be touched.
            set_auto_online(guest.shell, "offline", deadline=Deadline(self.options.timeout))
        done = memdev.plug_dimm(guest.machine, device, size, deadline=Deadline(self.options.timeout))
        if done.kind != "done":
            raise GuestError(f"the guest does not take {format_size(size)} more memory: {done.detail}")
        self.readers.look_again()


def line_facts(points: Sequence[tuple[float, float]]) -> dict[str, Fact]:
    """How far from linear the medians (x: table pages, y: seconds) are; nothing where tables hardly grew."""
    pages = [x for x, _ in points]
    if len(points) < 3 or max(pages) < _GREW * min(pages):
        return {}
    line = fit_line(points)
    return {
        "linear: fixed ms": round(line.fixed * 1e3, 3),
        "us a page": round(line.slope * 1e6, 3),
        "largest deviation %": round(line.worst * 100, 1),
    }
