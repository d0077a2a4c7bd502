# SPDX-License-Identifier: GPL-2.0-or-later
"""The speed of the harness: starting a guest, hotplug cycles, snapshots, parallel runs."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.bench import BenchOptions
from harness.bench.cycle import Cycle, Stopwatch, require_pass
from harness.bench.figures import BenchResult, Fact, Figure, FigureSection, look_at_host
from harness.bench.measure import TOTAL, Laps, Spread, paired
from harness.check import Verdict
from harness.collect.hostside import kernel_sources, regions
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
from harness.scenarios.verbs.verb import Verb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb, ResizeVerb
from harness.scratch import private_directory
from harness.units import MIB, format_size

DIMM, MEM = "acpi-dimm", "virtio-mem"
#: each cycle restores the guest's state
CYCLES: dict[str, tuple[Verb, ...]] = {
    DIMM: (
        PlugDimmVerb("dimm0", 256 * MIB),
        OnlineVerb("dimm0"),
        OfflineVerb("dimm0"),
        UnplugVerb("dimm0"),
    ),
    MEM: (ResizeVerb("vmem0", 256 * MIB), ResizeVerb("vmem0", 0)),
}
#: number of scenarios, run one by one and in parallel
RUNS = 4
JOBS = (1, 2)
#: maximum rounds of cold boots, and of all scenarios, which are slow
MAX_STARTS = 5
MAX_RUNS = 3

_TITLES = {
    DIMM: "one pc-dimm cycle (add 256M, online, offline, remove), every step verified",
    MEM: "one virtio-mem resize cycle (0 to 256M and back), both steps verified",
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
        sections = [bench.starting(), *bench.cycles(abilities), bench.side_by_side(abilities)]
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
        targets=(),
        mismatches=(),
    )


def resolve_able(spec: GuestSpec, progress: Progress) -> tuple[Parts, list[str], list[str]]:
    """Parts, the requirements of CYCLES that they meet, and a line for each unmet one."""
    able = list(CYCLES)
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
        series = paired(sides, min(self.options.rounds, MAX_STARTS))
        figures = [Figure("cold", "cold boot to the first SSH answer", series["cold"]["answer"].wall, "s")]
        if saved is not None:
            restored = series["restore"]["answer"].wall
            figures.append(Figure("restore", "restore to the first SSH answer", restored, "s"))
            figures.append(Figure("ratio", "cold / restore", series["cold"]["answer"].wall.over(restored), "x"))
        return FigureSection("start", "starting a guest", {}, tuple(figures), (f"no restore: {lack}",) if lack else ())

    def _answer(self, starting: contextlib.AbstractContextManager[Connected], laps: Laps, deadline: Deadline) -> None:
        with contextlib.ExitStack() as stack, laps.part("answer"):
            stack.enter_context(starting).shell.must("true", deadline=deadline)

    def cycles(self, abilities: Sequence[str]) -> Iterator[FigureSection]:
        """Both cycles and the parts of a snapshot, on one guest."""
        with contextlib.ExitStack() as stack:
            folder = self._folder()
            guest = stack.enter_context(
                start_guest(self.spec, self.parts, folder, self.options.timeout, self.options.start)
            )
            watch = Stopwatch(guest.shell)
            options = RunOptions(timeout=self.options.timeout)
            session = Session(dataclasses.replace(guest, shell=watch), options, Recorder(folder))
            require_pass(session.check_boot())
            for ability in abilities:
                yield self._cycle(session, watch, ability)
            yield self._snapshot(session, watch)

    def _cycle(self, session: Session, watch: Stopwatch, ability: str) -> FigureSection:
        policy = "offline" if ability == DIMM else "online_movable"
        require_pass(session.act("policy", AutoOnlineVerb(policy).run))
        if ability == MEM:
            require_pass(session.act("plug", PlugVirtioMemVerb("vmem0", 512 * MIB).run))
        cycle = Cycle(session, watch, CYCLES[ability])
        cycle.once(counts=False)
        for number in range(self.options.rounds):
            self.task.update(note=f"{ability}: cycle {number + 1} of {self.options.rounds}")
            cycle.once()
        wall, guest = Spread(tuple(cycle.wall)), Spread(tuple(cycle.guest))
        figures = (
            Figure("cycle", "a cycle", wall, "s"),
            Figure("guest", "    the guest's share: actions in progress, commands running in it", guest, "s"),
            Figure("ratio", "a cycle / the guest's share", wall.over(guest), "x"),
            Figure("rate", "cycles", Spread(tuple(60 / seconds for seconds in wall.values)), "/min"),
        )
        return FigureSection(ability, _TITLES[ability], {}, figures)

    def _snapshot(self, session: Session, watch: Stopwatch) -> FigureSection:
        """A whole snapshot, and the part that the host reads from the guest's memory."""
        self.task.update(note="snapshots")

        def collect(laps: Laps) -> None:
            before = len(watch.spans)
            session.look()
            laps.wall["ssh"] = sum(end - start for start, end in watch.spans[before:])

        def walk(laps: Laps) -> None:
            guest, deadline = session.guest, session.deadline()
            devices = memory_devices(guest.machine, deadline=deadline)
            with PhysicalMemory(regions(guest.machine, devices, guest.machine.backend_fds(deadline))) as memory:
                kernel_sources(guest.kernel.copy(guest.machine, memory, deadline), memory)

        series = paired({"collect": collect, "walk": walk}, self.options.rounds)
        figures = (
            Figure.timed("collect", "collect the guest's state", series["collect"][TOTAL]),
            Figure("collect_guest", "    the command in the guest", series["collect"]["ssh"].wall),
            Figure.timed("walk", "page tables and sections, read on the host", series["walk"][TOTAL]),
        )
        return FigureSection("snapshot", "one snapshot", {}, figures)

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
