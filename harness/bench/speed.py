# SPDX-License-Identifier: GPL-2.0-or-later
"""The speed of the harness: starting a guest, hotplug cycles, looks, parallel runs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.bench import BenchOptions, kernel_time
from harness.bench.cycle import Cycle, Operation, fresh_ids, require_pass
from harness.bench.figures import BenchResult, Fact, Figure, FigureSection, Target, look_at_host
from harness.bench.measure import TOTAL, Laps, Spread, paired
from harness.bench.yardstick import Yardstick
from harness.check import Verdict
from harness.collect.hostside import Glance, current_regions, kernel_sources
from harness.collect.look import collect_state
from harness.collect.sources import STATE_SOURCES
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import InfraError, UnsupportedError
from harness.kmem.physical_memory import PhysicalMemory
from harness.progress import Progress, SilentProgress, Task
from harness.qemu.memdev import memory_devices
from harness.scenarios.boot import Connected, Parts, boot_connected, resolve
from harness.scenarios.file import Scenario, read_scenario
from harness.scenarios.memorybudget import peak_memory
from harness.scenarios.record import Recorder
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.scenarios.session import Session
from harness.scenarios.start import start_guest
from harness.scenarios.template import restore_connected, restored_spec, template
from harness.scenarios.verbs.blocks import AutoOnlineVerb, OfflineVerb, OnlineVerb
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.plugging import UnplugVerb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb, ResizeVerb
from harness.scratch import private_directory
from harness.state import NotObserved
from harness.units import MIB, format_size

DIMM, MEM = "acpi-dimm", "virtio-mem"
VMEM = "vmem0"
SIZE = 256 * MIB
#: how many times faster than the yardstick looks have to be
MIN_RATIOS: Mapping[str, float] = {"full": 2.0, "fast": 12.0}
#: number of scenarios, run one by one and in parallel
RUNS = 4
JOBS = (1, 2)
#: maximum rounds of cold boots, and of all scenarios, which are slow
MAX_STARTS = 5
MAX_RUNS = 3

LIST = ", "
_TITLES = {
    DIMM: "a pc-dimm of 256M: added, brought online, taken offline, removed",
    MEM: "virtio-mem, resized from 0 to 256M and back",
}
_SCENARIO = """name: bench
needs: [{ability}]
steps:
  - auto-online: {{policy: online_movable}}
"""
_STEPS = {
    DIMM: "  - plug-dimm: {id: dimm0, size: 256M}\n  - unplug: {id: dimm0}\n",
    MEM: "  - plug-virtio-mem: {id: v0, max: 512M}\n  - resize: {id: v0, to: 256M}\n  - resize: {id: v0, to: 0}\n",
}


def operations(ability: str, block_size: int) -> tuple[Operation, ...]:
    """The operations of a cycle."""
    if ability == MEM:
        return (
            Operation("grow", "resize to 256M", lambda id: ResizeVerb(id, SIZE), kernel_time.resize(SIZE)),
            Operation("shrink", "resize to 0", lambda id: ResizeVerb(id, 0), kernel_time.resize(0)),
        )
    online, offline = (kernel_time.set_all(word, block_size) for word in ("online_movable", "offline"))
    return (
        Operation("add", "add", lambda id: PlugDimmVerb(id, SIZE), kernel_time.add(SIZE)),
        Operation("online", "online", OnlineVerb, online),
        Operation("offline", "offline", OfflineVerb, offline),
        Operation("remove", "remove", UnplugVerb, kernel_time.remove),
    )


def run(spec: GuestSpec, options: BenchOptions, progress: Progress) -> BenchResult:
    """Measure everything on guests of ``spec``.

    A note names what kernel and QEMU do not support. Raises InfraError if a timed step does not pass, and what
    starting a guest raises.
    """
    host = look_at_host()
    parts, abilities, lacks = resolve_able(spec, progress)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(private_directory())
        task = stack.enter_context(progress.task(f"measuring {spec.name}"))
        bench = _SpeedBench(spec, parts, options, scratch, task)
        sections = [bench.starting(), *bench.on_one_guest(abilities), bench.side_by_side(abilities)]
    if lacks:
        sections[0] = dataclasses.replace(sections[0], notes=(*sections[0].notes, *lacks))
    return BenchResult(
        benchmark="speed",
        rounds=options.rounds,
        host=host,
        guest={
            "arch": spec.arch,
            "kernel": parts.kernel.release or parts.kernel.origin,
            "QEMU": parts.qemu.version,
            "memory": format_size(spec.memory),
            "CPUs": spec.cpus,
        },
        sections=tuple(sections),
        targets=tuple(bench.targets),
        mismatches=(),
    )


def resolve_able(spec: GuestSpec, progress: Progress) -> tuple[Parts, list[str], list[str]]:
    """Parts, the requirements of the cycles that they meet, and a line for each unmet one."""
    able = [DIMM, MEM]
    lacks: list[str] = []
    while True:
        try:
            return resolve(spec, tuple(able), progress), able, lacks
        except UnsupportedError as lack:
            gone = [name for name in able if name == lack.requirement] or able[:1]
            if not gone:
                raise
            able = [name for name in able if name not in gone]
            lacks.append(f"not measured: {lack.message}")


class _SpeedBench:
    """All measurements."""

    def __init__(self, spec: GuestSpec, parts: Parts, options: BenchOptions, scratch: Path, task: Task) -> None:
        self.spec = spec
        self.parts = parts
        self.options = options
        self.scratch = scratch
        self.task = task
        self.targets: list[Target] = []
        self._folders = 0

    def starting(self) -> FigureSection:
        """Cold boot and restore, alternately, up to the first answer over SSH."""
        self.task.update(note="cold boots and restored guests, alternately")
        try:
            saved: Path | None = template(self.spec, self.parts, self.options.timeout, SilentProgress())
            lack = ""
        except (UnsupportedError, InfraError) as error:
            saved, lack = None, error.message

        def cold(laps: Laps) -> None:
            deadline = Deadline(self.options.timeout)
            self._answer(boot_connected(self.spec, self.parts, self._folder(), deadline), laps, deadline)

        def restore(laps: Laps) -> None:
            assert saved is not None
            deadline = Deadline(self.options.timeout)
            machine = restored_spec(self.spec, self.parts, saved)
            self._answer(restore_connected(machine, saved, self._folder(), deadline), laps, deadline)

        sides = {"cold": cold} | ({} if saved is None else {"restore": restore})
        # The saved guest that was just made, or read, has warmed everything up.
        series = paired(sides, min(self.options.rounds, MAX_STARTS), warm_ups=0)
        figures = [Figure("cold", "cold boot to the first SSH answer", series["cold"]["answer"].wall, "s")]
        if saved is not None:
            restored = series["restore"]["answer"].wall
            figures.append(Figure("restore", "restore to the first SSH answer", restored, "s"))
            figures.append(Figure("ratio", "cold / restore", series["cold"]["answer"].wall.over(restored), "x"))
        return FigureSection("start", "starting a guest", {}, tuple(figures), (f"no restore: {lack}",) if lack else ())

    def _answer(self, starting: contextlib.AbstractContextManager[Connected], laps: Laps, deadline: Deadline) -> None:
        with contextlib.ExitStack() as stack, laps.part("answer"):
            stack.enter_context(starting).shell.must("true", deadline=deadline)

    def on_one_guest(self, abilities: Sequence[str]) -> Iterator[FigureSection]:
        """The cycles, and both looks."""
        with contextlib.ExitStack() as stack:
            folder = self._folder()
            guest = stack.enter_context(
                start_guest(self.spec, self.parts, folder, self.options.timeout, self.options.start)
            )
            session = Session(guest, RunOptions(timeout=self.options.timeout), Recorder(folder))
            require_pass(session.check_boot())
            for ability in abilities:
                yield self._cycle(session, ability)
            yield self._looks(session)

    def _cycle(self, session: Session, ability: str) -> FigureSection:
        policy = "offline" if ability == DIMM else "online_movable"
        require_pass(session.act("policy", AutoOnlineVerb(policy).run))
        if ability == MEM:
            require_pass(session.act("plug", PlugVirtioMemVerb(VMEM, 512 * MIB).run))
        # QEMU frees the memory of a removed DIMM late, and so its id.
        ids = fresh_ids("dimm") if ability == DIMM else itertools.repeat(VMEM)
        cycle = Cycle(session, operations(ability, session.layout.block_size), ids)
        cycle.once(0, counts=False)
        for number in range(self.options.rounds):
            self.task.update(note=f"{ability}: cycle {number + 1} of {self.options.rounds}")
            cycle.once(number)
        self.targets += cycle.targets()
        return FigureSection(ability, _TITLES[ability], {}, tuple(cycle.figures()))

    def _looks(self, session: Session) -> FigureSection:
        """Both looks and the yardstick, alternately; then what a look consists of."""
        self.task.update(note="looks")
        guest = session.guest
        yardstick = Yardstick(guest.shell, session.deadline())

        def look(left_out: Sequence[str]) -> Callable[[Laps], None]:
            def side(laps: Laps) -> None:
                pause = session.look(left_out).pause
                laps.wall["pause"] = 0.0 if isinstance(pause, NotObserved) else pause

            return side

        sides = {"yardstick": lambda laps: yardstick.collect(session.deadline()), "full": look(())}
        series = paired(sides | {"fast": look(session.left_out)}, self.options.rounds)
        wall = {name: parts[TOTAL].wall for name, parts in series.items()}
        ratios = {name: wall["yardstick"].over(wall[name]) for name in MIN_RATIOS}
        self.targets += (
            Target(
                f"look_{name}", f"a {name} look, faster than the yardstick", least, "x", ratios[name].median, "", True
            )
            for name, least in MIN_RATIOS.items()
        )
        figures = (
            Figure.timed(
                "yardstick", "the yardstick: the text collector of commit bcfe9e6", series["yardstick"][TOTAL]
            ),
            Figure.timed("full", "a full look", series["full"][TOTAL]),
            Figure.timed("fast", "a fast look", series["fast"][TOTAL]),
            Figure("pause", "    the guest is paused", series["fast"]["pause"].wall),
            *(Figure(f"{name}_ratio", f"the yardstick / a {name} look", ratios[name], "x") for name in MIN_RATIOS),
            *self._sources(session),
        )
        return FigureSection(
            "looks", "looks at the guest", {"left out by fast looks": LIST.join(session.left_out)}, figures
        )

    def _sources(self, session: Session) -> Iterator[Figure]:
        """Each source by itself: text of the guest with its round trip, QEMU's reports, and the guest's memory."""
        guest = session.guest

        def text(name: str) -> Callable[[Laps], None]:
            def side(laps: Laps) -> None:
                collect_state(guest.shell, None, None, facts=guest.facts, deadline=session.deadline(), sources=(name,))

            return side

        def reports(laps: Laps) -> None:
            memory_devices(guest.machine, deadline=session.deadline())

        last: Glance | None = None

        def memory(laps: Laps) -> None:
            nonlocal last
            deadline = session.deadline()
            with PhysicalMemory(current_regions(guest.machine, deadline)) as mapped:
                last = guest.kernel.look(mapped, last)
                copy = guest.kernel.copy(guest.machine, mapped, deadline, last)
                last = last.after(copy)
                kernel_sources(copy, mapped)

        names = [name for name in STATE_SOURCES if name not in ("boot_id", "uptime")]
        sides = {"source_uptime": text("uptime"), **{f"source_{name}": text(name) for name in names}}
        series = paired(sides | {"source_qmp": reports, "source_memory": memory}, self.options.rounds, warm_ups=0)
        labels = {
            "source_uptime": "the guest's answer alone, with boot_id and uptime",
            "source_ptdump": "    with ptdump: no full look can be faster",
            "source_qmp": "QEMU's reports",
            "source_memory": "the guest's memory, read and decoded by the host",
        }
        for name, parts in series.items():
            label = labels.get(name, f"    with {name.removeprefix('source_')}")
            yield Figure.timed(name, label, parts[TOTAL])

    def side_by_side(self, abilities: Sequence[str]) -> FigureSection:
        """The same scenarios, one by one and in parallel."""
        scenario = self._scenario(abilities)
        rates: dict[int, list[float]] = {jobs: [] for jobs in JOBS}
        peaks: list[float] = []
        for number in range(min(self.options.rounds, MAX_RUNS)):
            for jobs in JOBS if number % 2 == 0 else reversed(JOBS):
                self.task.update(note=f"{RUNS} scenarios, {jobs} at a time")
                clock = time.monotonic()
                results = self._run([scenario] * RUNS, jobs)
                rates[jobs].append(RUNS * 60 / (time.monotonic() - clock))
                peaks += [float(peak) for result in results if isinstance(peak := result.facts["peak_memory"], int)]
        figures = [
            Figure(f"rate_{jobs}", f"scenarios of {len(scenario.steps)} steps, -j{jobs}", Spread(tuple(rate)), "/min")
            for jobs, rate in rates.items()
        ]
        if peaks:
            figures.append(Figure("peak", "peak memory of a QEMU", Spread(tuple(peaks)), "MiB"))
        facts: dict[str, Fact] = {"harness's own peak MiB": (peak_memory("self") or 0) // MIB}
        return FigureSection("runs", "parallel runs", facts, tuple(figures))

    def _scenario(self, abilities: Sequence[str]) -> Scenario:
        path = self.scratch / "bench.yaml"
        text = _SCENARIO.format(ability=", ".join(abilities))
        path.write_text(text + "".join(_STEPS[ability] for ability in abilities))
        return read_scenario(path)

    def _run(self, scenarios: Sequence[Scenario], jobs: int) -> list[RunResult]:
        options = RunOptions(self._folder(), timeout=self.options.timeout, start=self.options.start, jobs=jobs)
        results = run_scenarios(scenarios, self.spec, options, SilentReporter(), SilentProgress())
        for result in results:
            if result.verdict is not Verdict.PASS:
                raise InfraError(f"a timed run failed: {result.reason}", hint=result.hint)
        return results

    def _folder(self) -> Path:
        self._folders += 1
        folder = self.scratch / str(self._folders)
        folder.mkdir(mode=0o700)
        return folder
