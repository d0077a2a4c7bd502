# SPDX-License-Identifier: GPL-2.0-or-later
"""What can still be learnt of a guest that was lost: the host's last look, QEMU's report, and what its kernel says."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from harness.arch.kernel_layout import KernelLayout
from harness.check.starvation import period
from harness.collect.lost import look_at_lost
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, InfraError
from harness.guest.sysrq import show_tasks
from harness.scenarios.boot import BootedGuest
from harness.scenarios.changes import describe_lost
from harness.scenarios.record import Recorder
from harness.state import DmesgLine, GuestState, NotObserved

#: seconds for a kernel that panics to end, for the host's look at it, for QEMU's report, and for what the kernel prints
LOST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LastLook:
    """``lines`` are for people, the first is a summary; () if QEMU had ended.

    ``alarms`` are those in the kernel's log, written as on the console, and ``trace`` is all of it from the first of
    them on: a kernel that stands still may not have printed it. An alarm of a watchdog is none here, since only the
    console tells when it expired.
    """

    lines: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()


def take_last_look(
    guest: BootedGuest,
    recorder: Recorder,
    step: int,
    before: GuestState,
    layout: KernelLayout | None,
    *,
    booted: int,
    since: int | NotObserved,
) -> LastLook:
    """Look, and save all of it for ``step``; ``booted`` and ``since`` are as for ``look_at_lost``.

    Never raises: whatever the memory of a dead kernel does to this look, the step's own error counts.
    """
    try:
        if not guest.machine.qmp.alive:
            return LastLook()
        with contextlib.suppress(DeadlineExpired):
            # Other CPUs run until the kernel that panics has stopped them.
            guest.console.wait_dead(Deadline(LOST_SECONDS))
        raw = look_at_lost(guest.machine, guest.kernel, since=since, booted=booted, deadline=Deadline(LOST_SECONDS))
        lost = recorder.save_lost(step, raw, guest.facts)
        lines = describe_lost(before, lost, layout)
        recorder.note("\n".join((f"step {step}: {lines[0]}", *lines[1:])))
        log = () if isinstance(lost, NotObserved) or isinstance(lost.records.log, NotObserved) else lost.records.log
        return LastLook(lines, *_last_words(log, guest.facts.cmdline))
    except Exception as error:
        with contextlib.suppress(OSError):
            recorder.note("".join(traceback.format_exception(error)))
        return LastLook()


def examine_lost(guest: BootedGuest, recorder: Recorder) -> tuple[str, ...]:
    """Save what QEMU still knows about a lost guest; return what its kernel still says, as on the console."""
    machine, console = guest.machine, guest.console
    if not machine.qmp.alive:
        return ()
    recorder.save_monitor(machine.qmp.monitor_report(Deadline(LOST_SECONDS)))
    since = console.mark
    with contextlib.suppress(InfraError):
        show_tasks(console, machine.press_sysrq, deadline=Deadline(LOST_SECONDS))
    return tuple(line.text for line in console.lines(since))


def _last_words(log: Sequence[DmesgLine], cmdline: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``alarms`` and ``trace`` of a LastLook."""
    texts = [f"[{line.seconds:12.6f}] {line.text}" for line in log]
    alarms = [at for at, line in enumerate(log) if line.alarm and period(line.alarm, line.text, cmdline) is None]
    return tuple(texts[at] for at in alarms), tuple(texts[alarms[0] :]) if alarms else ()
