# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest at a prompt: runs steps, shows their changes, and records them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.bounded import write_file
from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.deadline import Deadline
from harness.errors import ConfigError, UsageError
from harness.guest.loads import LoadCount
from harness.model.devices.pmem import Pmem
from harness.model.memory_model import MemoryModel
from harness.qemu.devices.device import KINDS
from harness.qemu.machine_spec import MachineSpec
from harness.report.observed import Observed
from harness.report.terminal_report import finding_lines
from harness.report.text import WORDS, clean, invariants_line, seconds
from harness.scenarios.boot import BootedGuest
from harness.scenarios.file import parse_step
from harness.scenarios.outcome import Outcome
from harness.scenarios.requirements import require_arch, require_boot, require_config, require_host
from harness.scenarios.result import StepResult
from harness.scenarios.session import Session
from harness.scenarios.steps import Parallel, Repeat, Step, needs_of_steps, require_options
from harness.scenarios.verbs.plan import Plan, PlannedDevice
from harness.scenarios.verbs.verb import Known
from harness.shell import guest_views
from harness.shell.saved import Story, expects
from harness.state import GuestState

_SOURCE = Path("line")


@dataclass(frozen=True, slots=True)
class Mark:
    """A named state to compare with."""

    name: str
    state: GuestState


@dataclass(frozen=True)
class SavedGuest:
    """What ``snapshot`` saves: the file that QEMU wrote, and the harness's state of the guest.

    ``spec`` starts a machine that can load ``file``.
    """

    file: Path
    guest: BootedGuest
    model: MemoryModel
    state: GuestState
    loads: dict[str, LoadCount]
    load_kinds: dict[str, str]
    held: set[str]
    number: int
    story: tuple[int, int, int]
    spec: MachineSpec


class Leave(Exception):
    """The user ends the session; ``keep`` leaves the guest to its keeper."""

    def __init__(self, keep: bool = False) -> None:
        super().__init__(keep)
        self.keep = keep


def plan_of(session: Session, spec: GuestSpec) -> Plan:
    """The plan that later steps are validated against: the guest's current devices, loads and held pages."""
    plan = Plan(spec, loads={id: session.load_kinds[id] for id in session.loads}, held=set(session.held))
    for device in session.model.devices.values():
        known, planned = device.qmp(), PlannedDevice(KINDS[device.kind], device.range.size)
        plan.devices[device.id] = planned
        planned.slot, planned.requested = known.slot, known.requested_size or 0
        planned.block = known.block_size or planned.block
        planned.mode = device.mode if isinstance(device, Pmem) else planned.mode
    return plan


class Explorer:
    """Runs lines on ``session`` and shows everything on ``console``.

    ``worst`` is the worst verdict so far; a step that the guest refused counts as passed, since it is shown and saved
    as refused. ``saved`` and ``folder`` belong to ``harness.shell.snapshots``. ``resources`` are closed at the end.
    ``record`` is the bundle's file of the steps. ``interactive``: a person at a terminal, as some commands require.
    """

    def __init__(
        self,
        session: Session,
        spec: GuestSpec,
        console: Console,
        *,
        interactive: bool,
        record: str = "scenario.yaml",
    ) -> None:
        self.session = session
        self.spec = spec
        self.console = console
        self.interactive = interactive
        self.attached = record != "scenario.yaml"
        self.resources = contextlib.ExitStack()
        self.saved: dict[str, SavedGuest] = {}
        self.folder: Path | None = None
        self.restores = 0
        self._file = record
        self.worst = Verdict.PASS
        self.story = Story(spec, session.guest.facts.release)
        self.plan = plan_of(session, spec)
        self.kept = [Mark("the boot", session.state)]

    @property
    def block_size(self) -> int:
        """Bytes in a memory block of this guest."""
        return self.session.layout.block_size

    def known(self) -> Known:
        """The ids that a line can refer to now."""
        devices = self.session.model.devices
        modes = {id: device.mode if isinstance(device, Pmem) else "" for id, device in devices.items()}
        return Known(modes, tuple(self.session.loads), tuple(self.session.held))

    def examine_boot(self) -> None:
        """Check the freshly booted guest."""
        self._tell_step(self.session.check_boot())

    def step(self, text: str) -> None:
        """Run the step ``text``, written as in a scenario file; raises UsageError for an invalid request."""
        step = self._read(text)
        wanted = step.expect if expects(text, step) else None
        trial = copy.deepcopy(self.plan)
        step.follow(trial)
        ended = Outcome()

        def watched(session: Session, deadline: Deadline) -> Outcome:
            nonlocal ended
            ended = step.run(session, deadline)
            return ended

        result = self.session.act(step.title, watched, wanted, step.bugs, step.says)
        actual = ended.ending
        step.follow(self.plan, actual)
        self.story.add(text, step, ended)
        self._tell_step(result, actual)

    def _read(self, text: str) -> Step | Parallel:
        try:
            step = parse_step(text, _SOURCE).on(self.spec.arch)
        except ConfigError as error:
            raise UsageError(error.message.partition(": ")[2] or error.message, hint=error.hint) from None
        if isinstance(step, Repeat):
            raise UsageError(
                "repeat is not available at the prompt", hint="save the steps, and add the repeat to the file"
            )
        self._require(step)
        return step

    def _require(self, step: Step | Parallel) -> None:
        """Refuse what this guest does not support before trying anything."""
        facts, needs = self.session.guest.facts, needs_of_steps([step])
        require_arch(needs, self.spec.arch)
        require_host(needs)
        require_boot(needs, self.spec.boot)
        require_config(needs, facts.config, f"the kernel {facts.release}")
        require_options([step], facts.config)

    def look(self, title: str, work: Callable[[Session, Deadline], Outcome] | None = None) -> StepResult:
        """Run ``work``, which no scenario can express, or nothing, then check; shown like a step."""
        result = self.session.act(title, work or (lambda session, deadline: Outcome()), None)
        self._tell_step(result)
        return result

    def _tell_step(self, result: StepResult, ending: str = "done") -> None:
        if result.verdict not in (Verdict.PASS, Verdict.KNOWN) and self.worst is not Verdict.FAIL:
            self.worst = result.verdict
        style = {Verdict.PASS: "green", Verdict.FAIL: "bold red"}.get(result.verdict, "yellow")
        word = ending if result.verdict is Verdict.PASS and ending != "done" else WORDS[result.verdict]
        about = f"  {clean(result.title)}  {seconds(result.seconds)}, {invariants_line(result.checks)}"
        self.say(Text.assemble((word, "yellow" if word == ending else style), about))
        if result.note:
            self.say(Text(f"  {clean(result.note)}", style="dim" if ending == "done" else "yellow"))
        for change in result.changes:
            self.say(Text("  ").append_text(guest_views.change_line(change, self.block_size)))
        for check in result.checks:
            if check.status == "fail":
                self.say(*finding_lines(check))

    def say(self, *lines: Text | str) -> None:
        """Show lines; text from a guest must already be cleaned."""
        for line in lines:
            self.console.print(line)

    def say_text(self, text: str) -> None:
        """Show text from a guest or from QEMU, cleaned."""
        self.say(*(Text(clean(line)) for line in text.splitlines()))

    def record(self) -> None:
        """Write the steps so far into the bundle's scenario, so that it is complete even after a crash."""
        write_file(self.session.recorder.directory / self._file, self.story.text("shell"))

    def snapshot_of_now(self) -> Observed:
        """The latest snapshot, for printing tables."""
        session = self.session
        return Observed("now", session.layout.machine.arch, session.guest.facts, session.state)
