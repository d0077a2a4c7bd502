# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs scenarios, each on its own guest."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shlex
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.arch.modes import VA_BITS
from harness.bounded import write_file
from harness.check import CATALOGUE, Verdict
from harness.check.counters import SLAB
from harness.check.known import Watch
from harness.check.required import Demand, lacks_of
from harness.collect.looks import WITNESSES
from harness.config.guest import GuestSpec
from harness.errors import InfraError, MemhpError, UnsupportedError, UsageError
from harness.progress import Progress, default_progress
from harness.scenarios.boot import BootedGuest, Parts, Resolver
from harness.scenarios.file import Scenario
from harness.scenarios.memorybudget import MemoryBudget, cost, peak_memory
from harness.scenarios.outcome import Outcome
from harness.scenarios.pool import do_all
from harness.scenarios.record import DEFAULT_BUNDLES, VERDICT, Recorder, demand_to_json, open_bundle, write_json
from harness.scenarios.replay import guest_to_json
from harness.scenarios.reporter import Relay, Reporter
from harness.scenarios.requirements import require_config, require_paging, require_words
from harness.scenarios.result import FINE, RunResult, StepResult
from harness.scenarios.run_options import Look, RunOptions
from harness.scenarios.session import Session
from harness.scenarios.soak import (
    Round,
    allocation_sites,
    counters,
    slab_in_use,
    slopes,
    spell,
    steady_growth,
    unread,
    unread_sites,
)
from harness.scenarios.start import start_guest
from harness.scenarios.steps import AnyStep, Repeat, count_steps, require_options
from harness.scenarios.verdict import never_observed, titles, unfinished, worst
from harness.state import KernelFacts, NotObserved, SlabCache, Unknown

OnFailure = Callable[[Session, RunResult], None]


def run_scenarios(
    scenarios: Sequence[Scenario],
    guest: GuestSpec,
    options: RunOptions,
    reporter: Reporter,
    progress: Progress | None = None,
) -> list[RunResult]:
    """Run each scenario on a fresh ``guest``, see ``run_pairs``."""
    return run_pairs([(scenario, guest) for scenario in scenarios], options, reporter, progress)


def run_pairs(
    pairs: Sequence[tuple[Scenario, GuestSpec]],
    options: RunOptions,
    reporter: Reporter,
    progress: Progress | None = None,
    on_failure: OnFailure | None = None,
) -> list[RunResult]:
    """Run each scenario on a fresh guest, ``options.jobs`` of them at a time; every result is reported as it comes.

    The next guest is prepared meanwhile. ``on_failure`` is called with the session and the result of a run that does
    not pass, while its guest still runs. An unmet requirement skips a scenario; a failure of the harness or its
    environment ends only that scenario. Raises UsageError for an invalid request.
    """
    progress = progress or default_progress()
    relay = Relay(reporter, live=options.jobs == 1)
    resolver = Resolver(progress)
    runs = [
        _Run(scenario, own, options, relay.reporter(), resolver, on_failure)
        for scenario, own in [(scenario, scenario.apply_to(guest)) for scenario, guest in pairs]
    ]
    reporter.phase("preparing the parts")
    for run in runs:
        run.resolve()

    def done(number: int, result: RunResult) -> bool:
        runs[number].reporter.run_finished(result)
        return options.fail_fast and result.verdict not in FINE

    with MemoryBudget.of_host() as room:
        lack = room.lack([run.cost for run in runs], options.jobs)
        if lack is not None:
            progress.say(lack)
        reporter.phase("starting the first guest")
        return do_all(runs, at_work=options.jobs, room=room, done=done)


@dataclass(eq=False)
class _Run:
    """One scenario on one guest, from parts to verdict: a ``harness.scenarios.pool.Job``."""

    scenario: Scenario
    guest: GuestSpec
    options: RunOptions
    reporter: Reporter
    resolver: Resolver
    on_failure: OnFailure | None
    parts: Parts | UnsupportedError | InfraError | None = None
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    seconds: float = 0.0
    clock: float = 0.0
    boot_seconds: float = 0.0
    steps: list[StepResult] = field(default_factory=list)
    total: int = 0
    facts: dict[str, object] = field(default_factory=dict)
    unknown: tuple[Unknown, ...] = ()
    bundle: Path | None = None
    watch: Watch = field(default_factory=Watch)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _guest: BootedGuest | None = None
    _failure: UnsupportedError | InfraError | None = None

    @property
    def demand(self) -> Demand:
        """What must be observed."""
        return self.options.demand or Demand()

    @property
    def cost(self) -> int:
        """Maximum host memory of the guest in bytes."""
        return cost(self.guest, self.scenario.steps)

    def resolve(self) -> None:
        """Resolve the parts, or the reason why there will be no verdict."""
        self.parts = self.resolver.resolve(self.guest, self.scenario.needs)

    def prepare(self) -> None:
        """Start the guest; an error is kept for ``work``."""
        clock = time.monotonic()
        self.started = datetime.datetime.now(datetime.UTC)
        try:
            with self._described_failures():
                self._start_guest()
        except (UnsupportedError, InfraError) as error:
            self._failure = error
            self._stack.close()
        self.seconds = self.boot_seconds = time.monotonic() - clock

    def work(self) -> RunResult:
        """Do the steps and end the guest."""
        self.clock = time.monotonic()
        self.reporter.run_started(self.scenario.name, self.guest.name)
        try:
            if self._failure is not None:
                raise self._failure
            with self._described_failures(), self._stack:
                self._work()
        except UnsupportedError as lack:
            return self._cut_short(Verdict.SKIPPED, lack, lack.requirement)
        except (UsageError, InfraError) as error:
            # A request that turns out to be invalid only on a running guest does not affect the other runs.
            return self._cut_short(Verdict.INFRA, error)
        return self._judged()

    def _cut_short(self, verdict: Verdict, error: MemhpError, lacks: str = "") -> RunResult:
        """``error`` ended the run; the findings of its steps remain."""
        if any(step.verdict is Verdict.FAIL for step in self.steps):
            return self._judged()
        return self._finish(verdict, error.message, error.hint, lacks)

    def _judged(self) -> RunResult:
        verdict = worst(step.verdict for step in self.steps)
        unseen = self.demand.never(step.checks for step in self.steps)
        unproven = never_observed(unseen) if unseen else unfinished(self.steps)
        if unproven and worst((verdict, Verdict.INFRA)) is Verdict.INFRA:
            return self._finish(Verdict.INFRA, unproven, None)
        bad = next((step for step in self.steps if step.verdict is verdict and verdict is not Verdict.PASS), None)
        if bad is None:
            return self._finish(verdict, "", None)
        undone = f"; steps not done after it: {left}" if (left := self._left(verdict)) else ""
        return self._finish(verdict, f"step {bad.number} ({bad.title}): {_why(bad)}{undone}", None)

    def _left(self, verdict: Verdict) -> int:
        """How many steps were not done after a known bug."""
        return self.total + 1 - len(self.steps) if verdict is Verdict.KNOWN else 0

    def drop(self) -> None:
        """End the guest; its bundle is only kept if the user wants all of them."""
        try:
            with contextlib.suppress(InfraError, OSError):
                self._stack.close()
        finally:
            if self.bundle is not None and self.options.bundle_dir is None:
                self._remove_bundle(self.bundle)

    @contextlib.contextmanager
    def _described_failures(self) -> Iterator[None]:
        """Turn failures of the host (disk full, no memory) and internal errors into InfraErrors of this run."""
        try:
            yield
        except MemhpError:
            raise
        except Exception as error:
            self._note_traceback(error)
            if isinstance(error, OSError):
                raise InfraError(f"the host failed: {error}", hint="see notes.txt in the bundle") from error
            message = f"internal error of memhp: {type(error).__name__}: {error}"
            raise InfraError(message, hint="please report it, with notes.txt of the bundle") from error

    def _note_traceback(self, error: Exception) -> None:
        if self.bundle is not None:
            with contextlib.suppress(OSError):
                Recorder(self.bundle).note("".join(traceback.format_exception(error)))

    def _start_guest(self) -> None:
        assert self.parts is not None
        if not isinstance(self.parts, Parts):
            raise self.parts
        require_options(self.scenario.steps, self.parts.kernel.config)
        name = f"{self.scenario.name}-{self.guest.arch}"
        self.bundle = open_bundle(self.options.bundle_dir, name, self.started)
        Recorder(self.bundle).start(
            self.scenario.name,
            self.scenario.text,
            {
                "guest": self.guest.name,
                "started": self.started.isoformat(),
                "seed": self.options.seed,
                "rounds": self.options.rounds,
                "start": self.options.start,
                "look": self.options.look,
                "steps": count_steps(self.scenario.steps_on(self.guest.arch), self.options.rounds),
                **demand_to_json(self.demand),
                **guest_to_json(self.guest, self.parts),
            },
        )
        self._guest = self._stack.enter_context(
            start_guest(self.guest, self.parts, self.bundle, self.options.timeout, self.options.start, counted=True)
        )
        write_file(self.bundle / "argv.txt", shlex.join(self._guest.machine.argv) + "\n")

    def _work(self) -> None:
        assert isinstance(self.parts, Parts) and self._guest is not None and self.bundle is not None
        guest = self._guest
        require_config(self.scenario.needs, guest.facts.config, f"the kernel {guest.facts.release}")
        require_paging(self.scenario.needs, _va_bits(guest.facts))
        require_options(self.scenario.steps, guest.facts.config)
        self.facts = describe_guest(guest, self.parts)
        session = Session(guest, self.options, Recorder(self.bundle))
        self.watch = session.watch
        require_words(self.guest.cmdline, session.layout.baseline.dmesg, f"the kernel {guest.facts.release}")
        try:
            self._do_steps(session)
        except InfraError as error:
            self.unknown = session.unknown
            self._offer(session, error)
            raise
        self.unknown = session.unknown
        self.facts["peak_memory"] = peak_memory(guest.machine.pid)
        if any(step.verdict not in FINE for step in self.steps):
            self._offer(session, None)

    def _offer(self, session: Session, error: InfraError | None) -> None:
        """Offer a failed guest to ``on_failure``."""
        if self.on_failure is not None and session.guest.machine.alive:
            result = self._judged() if error is None else self._finish(Verdict.INFRA, error.message, error.hint)
            self.on_failure(session, result)

    def _do_steps(self, session: Session) -> None:
        steps = self.scenario.steps_on(self.guest.arch)
        self.total = count_steps(steps, self.options.rounds)
        self.reporter.step_started(0, self.total, "boot")
        boot = session.check_boot()
        guest = session.guest
        lacks = [*self._told_lacks(session), self._told_look(session)]
        notes = [boot.note or how_started(guest, self.boot_seconds), guest.unconfined, *lacks]
        if self._note_step(dataclasses.replace(boot, note="; ".join(filter(None, notes)))):
            self._play(session, steps)

    def _told_lacks(self, session: Session) -> list[str]:
        """What need not be observed of this kernel, as it cannot show it; kept as a fact too."""
        lacks, demand = lacks_of(session.layout), self.demand
        lacks |= dict.fromkeys(demand.allowed, "--allow-unobserved")
        lacks = {id: why for id, why in lacks.items() if id not in demand.require}
        self.facts |= {"required": [id for id in CATALOGUE if id not in lacks], "unobservable": lacks}
        by_reason: dict[str, list[str]] = {}
        for id, why in lacks.items():
            by_reason.setdefault(why, []).append(id)
        return [f"not to be seen here: {', '.join(ids)} ({why})" for why, ids in by_reason.items()]

    def _told_look(self, session: Session) -> str:
        """What the looks after the steps leave out, "" if that is nothing; kept as facts too."""
        self.facts["look"] = self.options.look
        if self.options.look == "full":
            return ""
        left = {name: WITNESSES[name][0] for name in session.left_out}
        self.facts["left_out"] = left
        return f"fast looks leave out {', '.join(f'{name} ({why})' for name, why in left.items()) or 'nothing'}"

    def _play(self, session: Session, steps: Sequence[AnyStep]) -> bool:
        """Do the steps in order; False if one stops the run."""
        return all(self._do(session, step) for step in steps)

    def _do(self, session: Session, step: AnyStep) -> bool:
        if isinstance(step, Repeat):
            return self._repeat(session, step)
        self.reporter.step_started(session.number + 1, self.total, step.title)
        look = self._look_after(session)
        return self._note_step(session.act(step.title, step.run, step.expect, step.bugs, step.says, look))

    def _look_after(self, session: Session) -> Look:
        """How to look after the next step: the last look is a full one."""
        return self.options.look if session.number + 1 < self.total else "full"

    def _repeat(self, session: Session, repeat: Repeat) -> bool:
        rounds: list[Round] = []
        sites: list[dict[str, int]] = []
        slab: SlabCache | NotObserved | None = None
        for _ in range(repeat.rounds(self.options.rounds)):
            if not self._play(session, repeat.steps):
                return False
            if repeat.soak:
                guest, deadline = session.guest, session.deadline()
                slab = slab_in_use(guest.shell, guest.facts, SLAB, before=slab, deadline=deadline)
                rounds.append(counters(session.state, slab, session.layout.page_size))
                sites.append(allocation_sites(guest.shell, deadline))
        return not repeat.soak or self._fit(session, rounds, sites)

    def _fit(self, session: Session, rounds: Sequence[Round], sites: Sequence[Mapping[str, int]]) -> bool:
        """The last step of a soak: no counter may have a slope, and each must have been read in every round.

        Likewise, no allocation site may hold more objects after each round.
        """
        growing, (never, sometimes) = (*slopes(rounds), *steady_growth(sites)), unread(rounds)
        sometimes += unread_sites(sites)
        note = "; ".join([*map(spell, growing), *(f"not observed: {line}" for line in never)])
        outcome = Outcome(note=note, slopes=growing, unread=(*never, *sometimes), inconclusive="; ".join(sometimes))
        title = f"slope over {len(rounds)} rounds"
        self.reporter.step_started(session.number + 1, self.total, title)
        look = self._look_after(session)
        return self._note_step(session.act(title, lambda session, deadline: outcome, look=look))

    def _note_step(self, result: StepResult) -> bool:
        self.steps.append(result)
        self.reporter.step_finished(result)
        return result.goes_on

    def _finish(self, verdict: Verdict, reason: str, hint: str | None, lacks: str = "") -> RunResult:
        result = RunResult(
            scenario=self.scenario.name,
            guest=self.guest.name,
            arch=self.guest.arch,
            verdict=verdict,
            reason=reason,
            hint=hint,
            seconds=self.seconds + time.monotonic() - self.clock,
            boot_seconds=self.boot_seconds,
            steps=tuple(self.steps),
            facts=self.facts,
            bundle=self.bundle,
            started=self.started.isoformat(),
            seed=self.options.seed,
            family=self.scenario.family,
            lacks=lacks,
            unknown=self.unknown,
            bugs=titles(self.watch, self.steps),
            left=self._left(verdict),
        )
        return self._close_bundle(result)

    def _close_bundle(self, result: RunResult) -> RunResult:
        """Keep the bundle of a run that needs attention; drop the others."""
        if self.bundle is None:
            return result
        if self.options.bundle_dir is None and result.verdict in FINE:
            self._remove_bundle(self.bundle)
            return dataclasses.replace(result, bundle=None)
        last = max((step.number for step in result.steps), default=0)
        ending = {"verdict": result.verdict.value, "reason": result.reason, "steps": last}
        with contextlib.suppress(OSError):
            write_json(self.bundle / VERDICT, ending)
        return result

    def _remove_bundle(self, bundle: Path) -> None:
        shutil.rmtree(bundle, ignore_errors=True)
        with contextlib.suppress(OSError):
            DEFAULT_BUNDLES.rmdir()


def how_started(guest: BootedGuest, seconds: float) -> str:
    """``restored in 0.4 s``, ``booted in 4.5 s: why``."""
    if guest.restored:
        return f"restored in {seconds:.1f} s"
    return f"booted in {seconds:.1f} s" + (f": {guest.why_booted}" if guest.why_booted else "")


def _why(step: StepResult) -> str:
    if step.verdict is Verdict.KNOWN:
        return f"known bug {', '.join(step.bugs)}"
    broken = [result.invariant for result in step.checks if result.status == "fail"]
    return f"{', '.join(broken)} broken" if broken else step.note or step.verdict.value


def _va_bits(facts: KernelFacts) -> int | None:
    if isinstance(facts.vmcoreinfo, NotObserved):
        return None
    with contextlib.suppress(KeyError, ValueError):
        return VA_BITS[facts.arch](facts.vmcoreinfo)
    return None


def describe_guest(guest: BootedGuest, parts: Parts) -> dict[str, object]:
    """The description of the guest in reports: JSON-able."""
    return {
        "kernel": guest.facts.release,
        "kernel_origin": parts.kernel.origin,
        "qemu": parts.qemu.version,
        "qemu_origin": parts.qemu.origin,
        "page_size": guest.facts.page_size,
        "va_bits": _va_bits(guest.facts),
        "memory_block_size": guest.facts.memory_block_size,
        "boot": guest.boot,
        "restored": guest.restored,
        "seccomp": guest.machine.spec.sandbox,
        "cmdline": guest.facts.cmdline,
        # A guest without CPU time stalls: the load of the host helps to explain an RCU stall.
        "host_load": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs",
        "argv": list(guest.machine.argv),
    }
