# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenario after scenario, each on a guest of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.config.scenario import LEAST_ROUNDS, Scenario, Step
from harness.deadline import Deadline
from harness.errors import InfraError, UnsupportedError
from harness.guest.loads import LOADS
from harness.progress import Progress, default_progress
from harness.scenarios.abilities import require_config
from harness.scenarios.boot import BootedGuest, Parts, boot_guest, resolve
from harness.scenarios.options import RunOptions
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import Recorder, write_json
from harness.scenarios.replay import guest_to_json
from harness.scenarios.reporter import Reporter
from harness.scenarios.result import RunResult, StepResult
from harness.scenarios.session import Session
from harness.scenarios.soak import Counter, counters, slopes, spell
from harness.scenarios.steps import VERBS
from harness.scenarios.together import side_by_side
from harness.scenarios.verdict import worst

#: where bundles go when nobody says where
DEFAULT_BUNDLES = Path("memhp-runs")


def run_scenarios(
    scenarios: Sequence[Scenario],
    guest: GuestSpec,
    options: RunOptions,
    reporter: Reporter,
    progress: Progress | None = None,
) -> list[RunResult]:
    """Run each scenario on a freshly booted ``guest``; every result is reported as it comes.

    A missing ability skips a scenario; a failure of the harness's own world ends only that scenario. Raises UsageError
    for what is wrong with the request itself.
    """
    results: list[RunResult] = []
    guests = [scenario.apply_to(guest) for scenario in scenarios]
    for scenario, own in zip(scenarios, guests, strict=True):
        result = _Run(scenario, own, options, reporter, progress or default_progress()).execute()
        reporter.run_finished(result)
        results.append(result)
        if options.fail_fast and result.verdict not in (Verdict.PASS, Verdict.SKIPPED):
            break
    return results


def count_steps(steps: Sequence[Step], rounds: int | None = None) -> int:
    """How many steps there are to do: every ``repeat`` unrolled, one more at the end of each soak.

    ``rounds`` is how often those of a soak are repeated, None as its scenario says.
    """
    total = 0
    for step in steps:
        if step.verb == "repeat":
            total += times_of(step, rounds) * count_steps(step.args["steps"], rounds) + bool(step.args["soak"])
        else:
            total += 1
    return total


def times_of(repeat: Step, rounds: int | None) -> int:
    """How often the steps of ``repeat`` are done; ``rounds`` is for soaks alone."""
    if repeat.args["soak"] and rounds is not None:
        return max(rounds, LEAST_ROUNDS)
    return int(repeat.args["times"])


def require_loads(steps: Sequence[Step], config: Mapping[str, str] | None) -> None:
    """Raise UnsupportedError if a kernel of this configuration cannot do one of the loads; an unknown one passes."""
    for step in steps:
        if "steps" in step.args:
            require_loads(step.args["steps"], config)
        elif step.verb == "load" and config is not None:
            LOADS[step.args["kind"]].require(config)


class _Run:
    """One scenario on one guest, from parts to verdict."""

    def __init__(
        self, scenario: Scenario, guest: GuestSpec, options: RunOptions, reporter: Reporter, progress: Progress
    ) -> None:
        self.scenario = scenario
        self.guest = guest
        self.options = options
        self.reporter = reporter
        self.progress = progress
        self.started = datetime.datetime.now(datetime.UTC)
        self.clock = time.monotonic()
        self.boot_seconds = 0.0
        self.steps: list[StepResult] = []
        self.total = 0
        self.facts: dict[str, object] = {}
        self.bundle: Path | None = None

    def execute(self) -> RunResult:
        self.reporter.run_started(self.scenario.name, self.guest.name)
        try:
            self.reporter.phase("preparing the parts")
            parts = resolve(self.guest, self.scenario.needs, self.progress)
            require_loads(self.scenario.steps, parts.kernel.config)
            self.bundle = self._open_bundle()
            with self._described_failures():
                self._run_guest(parts, Recorder(self.bundle))
        except UnsupportedError as lack:
            return self._finish(Verdict.SKIPPED, lack.message, lack.hint)
        except InfraError as error:
            return self._finish(Verdict.INFRA, error.message, error.hint)
        return self._judged()

    def _judged(self) -> RunResult:
        verdict = worst(step.verdict for step in self.steps)
        bad = next((step for step in self.steps if step.verdict is verdict and verdict is not Verdict.PASS), None)
        return self._finish(verdict, "" if bad is None else f"step {bad.number} ({bad.title}): {_why(bad)}", None)

    def _open_bundle(self) -> Path:
        stamp = self.started.strftime("%Y%m%d-%H%M%S-%f")
        root = self.options.bundle_dir or DEFAULT_BUNDLES
        path = root / f"{stamp}-{self.scenario.name}-{self.guest.arch}"
        try:
            path.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise InfraError(f"cannot write the bundle {path}: {error.strerror}", hint="see --bundle-dir") from None
        return path

    @contextlib.contextmanager
    def _described_failures(self) -> Iterator[None]:
        """An OSError of the harness's own world (disk full, no memory) is a verdict too, never a traceback."""
        try:
            yield
        except OSError as error:
            raise InfraError(f"the host failed: {error}", hint="see notes.txt in the bundle") from error

    def _run_guest(self, parts: Parts, recorder: Recorder) -> None:
        recorder.start(
            self.scenario.name,
            self.scenario.text,
            {
                "guest": self.guest.name,
                "started": self.started.isoformat(),
                "seed": self.options.seed,
                "rounds": self.options.rounds,
                **guest_to_json(self.guest, parts),
            },
        )
        self.reporter.phase("booting")
        booting = time.monotonic()
        with boot_guest(self.guest, parts, recorder.directory, self.options.timeout) as guest:
            (recorder.directory / "argv.txt").write_text(shlex.join(guest.machine.argv) + "\n")
            require_config(self.scenario.needs, guest.facts.config, f"the kernel {guest.facts.release}")
            require_loads(self.scenario.steps, guest.facts.config)
            self.boot_seconds = time.monotonic() - booting
            self.facts = describe_guest(guest, parts)
            session = Session(guest, self.options, recorder)
            try:
                self._do_steps(session)
            except InfraError as error:
                self._offer(session, error)
                raise
            if any(step.verdict is not Verdict.PASS for step in self.steps):
                self._offer(session, None)

    def _offer(self, session: Session, error: InfraError | None) -> None:
        """A guest that failed may be wanted as it is."""
        if self.options.on_failure is not None and session.guest.machine.alive:
            result = self._judged() if error is None else self._finish(Verdict.INFRA, error.message, error.hint)
            self.options.on_failure(session, result)

    def _do_steps(self, session: Session) -> None:
        steps = self.scenario.steps_on(self.guest.arch)
        self.total = count_steps(steps, self.options.rounds)
        self.reporter.step_started(0, self.total, "boot")
        if self._note_step(session.check_boot()):
            self._play(session, steps)

    def _play(self, session: Session, steps: Sequence[Step]) -> bool:
        """Do the steps, one after the other, up to the first that does not pass: then False."""
        return all(self._repeat(session, step) if step.verb == "repeat" else self._do(session, step) for step in steps)

    def _do(self, session: Session, step: Step) -> bool:
        self.reporter.step_started(session.number + 1, self.total, step.title)
        return self._note_step(session.act(step.title, work_of(step), step.expect, step.breaks))

    def _repeat(self, session: Session, repeat: Step) -> bool:
        seen: list[dict[str, Counter]] = []
        for _ in range(times_of(repeat, self.options.rounds)):
            if not self._play(session, repeat.args["steps"]):
                return False
            if repeat.args["soak"]:
                seen.append(counters(session.state, session.layout.page_size, self.guest.cpus))
        return not repeat.args["soak"] or self._fit(session, seen)

    def _fit(self, session: Session, seen: Sequence[Mapping[str, Counter]]) -> bool:
        """The last step of a soak: is there a slope in any counter?"""
        found = slopes(seen)
        outcome = Outcome(note="; ".join(map(spell, found)), slopes=found)
        title = f"slope over {len(seen)} rounds"
        self.reporter.step_started(session.number + 1, self.total, title)
        return self._note_step(session.act(title, lambda session, deadline: outcome))

    def _note_step(self, result: StepResult) -> bool:
        self.steps.append(result)
        self.reporter.step_finished(result)
        return result.verdict is Verdict.PASS

    def _finish(self, verdict: Verdict, reason: str, hint: str | None) -> RunResult:
        result = RunResult(
            scenario=self.scenario.name,
            guest=self.guest.name,
            arch=self.guest.arch,
            verdict=verdict,
            reason=reason,
            hint=hint,
            seconds=time.monotonic() - self.clock,
            boot_seconds=self.boot_seconds,
            steps=tuple(self.steps),
            facts=self.facts,
            bundle=self.bundle,
            started=self.started.isoformat(),
            seed=self.options.seed,
        )
        return self._close_bundle(result)

    def _close_bundle(self, result: RunResult) -> RunResult:
        """Keep the bundle of a run that somebody will want to look at; drop the others."""
        if self.bundle is None:
            return result
        if self.options.bundle_dir is None and result.verdict in (Verdict.PASS, Verdict.SKIPPED):
            shutil.rmtree(self.bundle)
            with contextlib.suppress(OSError):
                DEFAULT_BUNDLES.rmdir()
            return dataclasses.replace(result, bundle=None)
        with contextlib.suppress(OSError):
            write_json(self.bundle / "verdict.json", {"verdict": result.verdict.value, "reason": result.reason})
        return result


def work_of(step: Step) -> Callable[[Session, Deadline], Outcome]:
    """What ``Session.act`` has to do for ``step``, which is no ``repeat``."""
    if step.verb == "parallel":
        return side_by_side([(inner.title, work_of(inner)) for inner in step.args["steps"]])
    verb = VERBS[step.verb]

    def work(session: Session, deadline: Deadline) -> Outcome:
        return verb(session, step.args, deadline)

    return work


def _why(step: StepResult) -> str:
    broken = [result.invariant for result in step.checks if result.status == "fail"]
    return f"{', '.join(broken)} broken" if broken else step.note or step.verdict.value


def describe_guest(guest: BootedGuest, parts: Parts) -> dict[str, object]:
    """What a report says of the guest: JSON-able."""
    return {
        "kernel": guest.facts.release,
        "kernel_origin": parts.kernel.origin,
        "qemu": parts.qemu.version,
        "qemu_origin": parts.qemu.origin,
        "page_size": guest.facts.page_size,
        "memory_block_size": guest.facts.memory_block_size,
        "boot": guest.boot,
        "cmdline": guest.facts.cmdline,
        "argv": list(guest.machine.argv),
    }
