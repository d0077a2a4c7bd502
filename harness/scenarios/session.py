# SPDX-License-Identifier: GPL-2.0-or-later
"""One booted guest with its model: act, take a snapshot, compare."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness.check import CheckResult, Verdict
from harness.check.bugs import NAME as BUGS
from harness.check.bugs import known_bugs
from harness.check.known import Watch, hung_in, watch_for
from harness.check.starvation import period
from harness.collect.look import collect_state
from harness.collect.looks import witnessed
from harness.collect.parse_cache import ParseCache
from harness.collect.sources import Frame
from harness.config.places import configs_dir
from harness.config.yaml import read_text
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, InfraError, MemhpError, ParseError
from harness.guest.drivers import RESIZE_QUEUE, wait_work
from harness.guest.loads import LoadCount, overlap, pause_loads, resume_loads
from harness.guest.memory_blocks import blocks_wait
from harness.guest.ssh import CommandResult
from harness.guest.waits import GuestWait
from harness.model.actions import Action, Reboot
from harness.model.booted import booted_model, plugged_devices
from harness.model.devices.virtio_mem import PlugVirtioMem
from harness.parsers.notes import note_lines, summed
from harness.qemu.memdev import wait_size
from harness.scenarios.boot import BootedGuest, meet_again
from harness.scenarios.changes import describe_changes, describe_death
from harness.scenarios.hangwatch import HangWatch
from harness.scenarios.lastlook import LastLook, examine_lost, take_last_look
from harness.scenarios.memorymap import memory_map
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import Recorder
from harness.scenarios.result import StepResult
from harness.scenarios.run_options import Look, RunOptions
from harness.scenarios.verdict import ExpectedBugs, Ruling, evaluate, look_of, step_result
from harness.state import GuestState, HostTables, HostTime, NotObserved, TableCount, Unknown

#: maximum number of console lines about a kernel's death
MAX_TRACE = 100
#: seconds for the console to print a line that the log has
_PRINT_SECONDS = 2.0

#: the ruling on a step, and the result of each invariant
_Judged = tuple[Ruling, tuple[CheckResult, ...]]


class Session:
    """A booted guest, the model that follows it, and the log of actions.

    ``act`` does one thing to the guest, waits for the guest to settle, takes one snapshot and runs every invariant
    on it. Nothing else in the harness changes the guest's memory.
    """

    def __init__(self, guest: BootedGuest, options: RunOptions, recorder: Recorder) -> None:
        self.guest = guest
        self.options = options
        self.recorder = recorder
        self.number = 0
        self.unseen = False
        self.faults = 0
        self.watch = self._known() if options.known_bugs else Watch()
        self._applying = threading.Lock()
        self._before_look: list[GuestWait] = []
        self._cache = ParseCache()
        self._log: Frame | None = None
        self.left_out: tuple[str, ...] = ()
        self.loads: dict[str, LoadCount] = {}
        self.load_kinds: dict[str, str] = {}
        self.held: set[str] = set()
        self.expect = "done"
        self.unknown: tuple[Unknown, ...] = ()
        self._timed = guest.console, 0
        self._booted = guest.machine.qmp, guest.machine.qmp.seq
        self._hang: HangWatch | None = None
        recorder.save_guest(guest.shape, guest.facts)
        self._note_unknown(guest.facts.unknown)
        self.state = self._first_look(guest.shape.cold, self.deadline(), recorder.step_dir(0))
        self.model = booted_model(guest.shape, guest.facts, self.state, guest.shape.cold)
        self.layout = self.model.layout
        self._boot_host = self._host_times(self.state, self.deadline())
        recorder.save_boot(self.state, self._boot_host)

    def _known(self) -> Watch:
        path = configs_dir() / BUGS
        self.recorder.save_bugs(read_text(path))
        return watch_for(known_bugs().values(), self.guest.facts)

    def deadline(self) -> Deadline:
        """A fresh deadline for one step."""
        return Deadline(self.options.timeout)

    def look(self, left_out: Sequence[str] = ()) -> GuestState:
        """Take a snapshot outside of the steps: nothing is checked, and no step compares with it.

        Without the sources ``left_out`` it is a fast look. The kernel log's lines since the last step are the next
        step's as well; the console's alarms are only that one's, and not observed here.
        """
        state = self._collect(self.deadline(), self.recorder.directory / "look", self.state, left_out, alarms=False)
        if "dmesg" in state.raw:
            self._log = Frame("dmesg", "lost" if state.dmesg_lost else "ok", state.raw["dmesg"])
        return state

    def apply(self, action: Action) -> None:
        """Pass an action that took effect to the model and the recorder; parallel steps do so one after the other."""
        with self._applying:
            self.model.apply(action)
            self.recorder.note_action(self.number, action)

    def before_look(self, wait: GuestWait) -> None:
        """Have the guest wait once more before this step's look, which shows what is missing if that is in vain."""
        self._before_look.append(wait)

    def reboot(self, deadline: Deadline) -> None:
        """Reset the machine, connect to the rebooted guest, and start a new model with the plugged devices.

        Raises UsageError for a device that the model cannot follow through a boot, and the errors of booting.
        """
        plugged = plugged_devices(self.model)
        mark = self.guest.console.mark
        self.guest.shell.close()
        self.guest.console.expect_reboot()
        self.guest.machine.qmp.execute("system_reset", deadline=deadline)
        self.guest = meet_again(self.guest, mark, deadline)
        self._note_unknown(self.guest.facts.unknown)
        self._booted = self.guest.machine.qmp, self.guest.machine.qmp.seq
        self._cache, self._log = ParseCache(), None
        self.state = self._first_look(plugged, deadline, self.recorder.boot_dir(self.number) / "state")
        self.recorder.save_reboot(self.number, self.guest.facts, self.state)
        self.recorder.note_action(self.number, Reboot())
        self.model = booted_model(self.guest.shape, self.guest.facts, self.state, plugged)
        self.layout = self.model.layout

    def _first_look(self, plugged: Sequence[Action], deadline: Deadline, directory: Path) -> GuestState:
        """A snapshot of the booted guest, once the drivers of its devices have finished."""
        for action in plugged:
            if isinstance(action, PlugVirtioMem):
                wait_size(self.guest.machine, action.id, action.requested, deadline=deadline)
                wait_work(self.guest.shell, RESIZE_QUEUE, deadline=deadline)
        state = self._collect(deadline, directory)
        self.left_out = witnessed(state)
        return state

    def check_boot(self) -> StepResult:
        """Step 0: every invariant on the freshly booted guest."""
        outcome, started = Outcome(host=self._boot_host), time.monotonic()
        judged = self._judge("boot", "done", outcome, self.state, self.state)
        return self._result("boot", judged, started, 0.0, self.state)

    def act(
        self,
        title: str,
        work: Callable[[Session, Deadline], Outcome],
        expect: str | None = "done",
        bugs: Sequence[str] = (),
        says: tuple[str, ...] = (),
        look: Look = "full",
    ) -> StepResult:
        """Do ``work``, settle, take a snapshot, check everything.

        ``expect`` is the ending that the scenario expects; another one makes the verdict REFUSED (the guest or QEMU
        refused) or FAIL (it complied when it must refuse). ``says`` are texts of the refusal that is meant. A broken
        invariant makes it FAIL in any case, unless it is exactly a known bug of the kernel; ``bugs`` are those that
        should show here. ``work`` can read the expectation from ``self.expect``. There is no snapshot after work that
        leaves the guest busy on purpose: the next step takes one. With None as ``expect``, any ending is accepted, for
        interactive use. Instead of a fast ``look``, a full one is taken after a refusal and where a known bug should
        show; unless the step passes, a fast one is followed by a full one. If the guest is lost, or the step turns out
        to be impossible, and the console shows trouble (an Oops, a panic), that is LOG-1 and FAIL; otherwise the error
        is raised. Trouble in the log of a lost guest, as the host reads it, counts as on the console.
        """
        self.number += 1
        self.expect = expect or "done"
        started = time.monotonic()
        try:
            return self._act(title, work, expect, tuple(bugs), says, look, started)
        except MemhpError as error:
            last = self._last_look(error)
            alarms = self.guest.console.new_alarms()
            # Before the console has what SysRq prints: only the alarm's own trace tells a known bug.
            trace = self.guest.console.lines(alarms[0].number - 1)[:MAX_TRACE] if alarms else ()
            stacks = () if self._hang is None else self._hang.stacks
            stacks += examine_lost(self.guest, self.recorder) if isinstance(error, InfraError) else ()
            if not alarms and not last.alarms and hung_in(self.watch.possible, title, stacks) is None:
                if not isinstance(error, InfraError):
                    raise
                raise self._explained(error, last) from error
            told, after = (tuple(line.text for line in lines) for lines in (alarms, trace))
            note = error.message
            if not alarms and last.alarms:
                told, after = last.alarms, last.trace[:MAX_TRACE]
                note += "; the console lacks what is in the kernel's log"
            host = self._host_times(None, self.deadline())
            outcome = Outcome(note=note, alarms=told, trace=after, stacks=stacks, host=host)
            known = ExpectedBugs(self.watch, tuple(bugs))
            changes = (*describe_death(after), *last.lines)
            return self._without_look(title, self.expect, outcome, started, known, changes)

    def _last_look(self, error: MemhpError) -> LastLook:
        """The host's look at the guest that was lost, if that is what ``error`` says."""
        if not isinstance(error, (DeadlineExpired, GuestError)):
            return LastLook()
        qmp, booted = self._booted
        return take_last_look(
            self.guest,
            self.recorder,
            self.number,
            self.state,
            self.layout.kernel,
            # The machine of a restored guest counts its events from the beginning.
            booted=booted if qmp is self.guest.machine.qmp else 0,
            since=_log_end(self.state),
        )

    def _explained(self, error: InfraError, last: LastLook) -> InfraError:
        """The same error, with QEMU's exit if that is the reason for it, or with what the host saw then."""
        if last.lines and self.guest.machine.qmp.alive:
            place = self.recorder.lost_dir(self.number).relative_to(self.recorder.directory)
            return InfraError(f"{error.message}; {last.lines[0]} ({place})", hint=error.hint)
        if self.guest.console.trouble() is None and self.guest.machine.qmp.alive:
            return error
        end = self.guest.machine.exit_report().partition("\n")[0]
        if end in error.message or self.guest.machine.alive:
            return error
        return InfraError(f"{end} ({error.message})", hint="see qemu.stderr and console.log in the bundle")

    def let_wait(self) -> None:
        """The step may wait in vain, until a signal ends it: that is no hang."""
        if self._hang is not None:
            self._hang.stop()

    def _hang_watch(self, title: str) -> HangWatch:
        machine, shell = self.guest.machine, self.guest.shell
        # What waits for the guest waits for an event, or for an answer.
        abandon = (machine.qmp.give_up, lambda why: shell.close())
        return HangWatch(self.watch.possible, title, self.guest.console, machine, abandon)

    def _act(
        self,
        title: str,
        work: Callable[[Session, Deadline], Outcome],
        expect: str | None,
        bugs: tuple[str, ...],
        says: tuple[str, ...],
        look: Look,
        started: float,
    ) -> StepResult:
        deadline = self.deadline()
        if self.loads:
            self.loads.update(resume_loads(self.guest.shell, deadline=deadline))
        self.guest.console.tell_hang(self.guest.machine.qmp.give_up)
        self._hang = self._hang_watch(title)
        self._before_look.clear()
        with self._hang:
            outcome = work(self, deadline)
        outcome.says = says
        expect = expect or outcome.ending
        if outcome.pending:
            self.unseen = True
            return self._without_look(title, expect, outcome, started, ExpectedBugs())
        waits = self._waits(outcome, deadline)
        if self.loads:
            # They work until the guest has settled.
            for wait in waits:
                wait.alone(self.guest.shell, deadline)
            waits = ()
            self._rest(outcome, deadline)
        guest_seconds = time.monotonic() - started
        before = self.state
        fast = look == "fast" and not bugs and (expect, outcome.ending) == ("done", "done")
        left_out = self.left_out if fast else ()
        try:
            after, judged = self._look_after(title, expect, outcome, before, bugs, left_out, waits, deadline)
        except ParseError:
            self.recorder.save_step(self.number, title, expect, outcome, None, bugs)
            raise
        self.state = after
        return self._result(title, judged, started, guest_seconds, after, before)

    def _look_after(
        self,
        title: str,
        expect: str,
        outcome: Outcome,
        before: GuestState,
        bugs: tuple[str, ...],
        left_out: Sequence[str],
        waits: Sequence[GuestWait],
        deadline: Deadline,
    ) -> tuple[GuestState, _Judged]:
        """Look after ``waits``, save, judge; a fast look, which has ``left_out`` something, may need a full one."""

        def collect(since: GuestState, left_out: Sequence[str] = (), waits: Sequence[GuestWait] = ()) -> GuestState:
            state = self._collect(deadline, self.recorder.step_dir(self.number), since, left_out, waits)
            outcome.host += self._host_times(state, deadline)
            return state

        def judge(state: GuestState, first: GuestState | None = None) -> _Judged:
            self.recorder.save_step(self.number, title, expect, outcome, state, bugs, first)
            return self._judge(title, expect, outcome, before, state, bugs, first)

        fast = collect(before, left_out, waits)
        judged = judge(fast)
        if not left_out or judged[0].verdict is Verdict.PASS:
            return fast, judged
        try:
            full = collect(fast)
        except InfraError as error:
            if judged[0].verdict is not Verdict.FAIL:
                raise
            # What was found stays found, on a guest that cannot be looked at any more.
            outcome.note = "; ".join(filter(None, (outcome.note, f"no full look was possible: {error.message}")))
            judged = judge(fast)
            self._last_look(error)
            return fast, judged
        return full, judge(full, fast)

    def _without_look(
        self,
        title: str,
        expect: str,
        outcome: Outcome,
        started: float,
        known: ExpectedBugs,
        changes: tuple[str, ...] = (),
    ) -> StepResult:
        """The result of a step without a snapshot."""
        self.recorder.save_step(self.number, title, expect, outcome, None, known.names)
        seconds = time.monotonic() - started
        ruling, checks = evaluate(self.model, title, expect, outcome, None, self.state, known, self.options.demand)
        return step_result(self.number, title, ruling, seconds, seconds, checks, changes)

    def _judge(
        self,
        title: str,
        expect: str,
        outcome: Outcome,
        before: GuestState,
        after: GuestState,
        bugs: tuple[str, ...] = (),
        first: GuestState | None = None,
    ) -> _Judged:
        known = ExpectedBugs(self.watch, bugs)
        return evaluate(self.model, title, expect, outcome, after, before, known, self.options.demand, first)

    def _result(
        self,
        title: str,
        judged: _Judged,
        started: float,
        guest_seconds: float,
        after: GuestState,
        before: GuestState | None = None,
    ) -> StepResult:
        ruling, checks = judged
        changes = () if before is None else describe_changes(before, after, self.layout.kernel)
        memory = memory_map(after, self.guest.shape.arch.ram_base, self.layout.block_size)
        seconds = time.monotonic() - started
        return step_result(
            self.number, title, ruling, seconds, guest_seconds, checks, changes, memory, look=look_of(after)
        )

    def _rest(self, outcome: Outcome, deadline: Deadline) -> None:
        """Pause all loads: their work is part of the step's note, and a dead load decides its verdict."""
        before = self.loads
        self.loads = {
            id: count for id, count in pause_loads(self.guest.shell, deadline=deadline).items() if id in before
        }
        work, idle = overlap(before, self.loads)
        outcome.inconclusive = "; ".join(filter(None, (outcome.inconclusive, idle)))
        outcome.note = f"{outcome.note}; {work}" if outcome.note else work

    def _waits(self, outcome: Outcome, deadline: Deadline) -> tuple[GuestWait, ...]:
        """What gives the guest time to finish, and to show the expected blocks; what is missing then are findings."""

        def note(late: str) -> None:
            outcome.note = "; ".join(filter(None, (outcome.note, late)))

        waits = [_told(wait, note) for wait in self._before_look]
        wanted = {block.index: block.state for block in self.model.expected().blocks}
        blocks = self.state.memory_blocks
        states = {} if isinstance(blocks, NotObserved) else {block.index: block.state for block in blocks}
        gone = states.keys() - wanted.keys()
        if self.unseen:
            # Blocks may have appeared since the last snapshot, and be about to disappear.
            window = self.layout.machine.device_window().align_outward(self.layout.block_size)
            whole = range(window.start // self.layout.block_size, window.end // self.layout.block_size)
            gone |= set(whole) - wanted.keys()
            self.unseen = False
        elif wanted == states or (outcome.settled and wanted.keys() == states.keys()):
            return tuple(waits)
        wait = blocks_wait(states=wanted, absent=gone, deadline=deadline.at_most(self.options.settle))
        return (*waits, _told(wait, lambda late: self.recorder.note(f"step {self.number}: {late}")))

    def _collect(
        self,
        deadline: Deadline,
        directory: Path,
        before: GuestState | None = None,
        left_out: Sequence[str] = (),
        waits: Sequence[GuestWait] = (),
        alarms: bool = True,
    ) -> GuestState:
        """A snapshot; text that cannot be parsed is saved in ``directory``, and unknown text is noted.

        ``before`` is the previous snapshot of this boot, if any; without the sources ``left_out`` it is a fast look.
        It is taken after ``waits``; without ``alarms``, the console's stay new.
        """
        guest = self.guest
        state = collect_state(
            guest.shell,
            guest.machine,
            guest.console if alarms else None,
            facts=guest.facts,
            deadline=deadline,
            kernel=guest.kernel,
            stray=_stray(before),
            since=_log_end(before),
            log=self._log,
            keep=lambda raw: self.recorder.save_unparsed(directory, raw),
            cache=self._cache,
            left_out=left_out,
            waits=waits,
        )
        self._log = None
        self._note_unknown(state.unknown)
        return state

    def _host_times(self, state: GuestState | None, deadline: Deadline) -> tuple[HostTime, ...]:
        """What the host gave QEMU before each report of a watchdog since the last call; ``state`` was seen after it."""
        console, times = self.guest.console, self.guest.machine.cpu_times
        # A restored guest has another console, which counts from the beginning.
        (timed, since), self._timed = self._timed, (console, console.mark)
        since = since if timed is console else 0
        for logged in () if state is None or isinstance(state.dmesg, NotObserved) else state.dmesg:
            if period(logged.alarm, logged.text, "") is not None:
                # The log has a line before the console, which shows when it was printed.
                with contextlib.suppress(InfraError):
                    console.wait_line(re.escape(logged.text), deadline.at_most(_PRINT_SECONDS), since=since)
        cmdline = self.guest.facts.cmdline
        reports = [
            (line, seconds)
            for line in console.alarms
            if line.number > since and (seconds := period(line.alarm, line.text, cmdline)) is not None
        ]
        if reports:
            # Not at every step: only so many samples are kept.
            times.take()
        return tuple(times.before(line.text, line.time, seconds) for line, seconds in reports)

    def _note_unknown(self, notes: Sequence[Unknown]) -> None:
        """Remember each unknown item once, and note new ones immediately."""
        known = len(self.unknown)
        self.unknown = summed([*self.unknown, *notes])
        for line in note_lines(self.unknown[known:]):
            self.recorder.note(line)


def _told(wait: GuestWait, tell: Callable[[str], None]) -> GuestWait:
    """The same wait, but ``tell`` is called if it is in vain."""

    def judge(done: CommandResult) -> None:
        try:
            wait.judge(done)
        except DeadlineExpired as late:
            tell(late.message)

    return replace(wait, judge=judge)


def _stray(state: GuestState | None) -> int:
    """The number of page tables that the kernel counts in excess of the existing ones in ``state``."""
    tables = None if state is None else state.host_tables
    count = tables.count if isinstance(tables, HostTables) else None
    return count.stray if isinstance(count, TableCount) else 0


def _log_end(state: GuestState | None) -> int | NotObserved:
    """The number of the kernel's first message after ``state``."""
    if state is None:
        return 0
    span = state.records.log_span
    return span if isinstance(span, NotObserved) else span[1]
