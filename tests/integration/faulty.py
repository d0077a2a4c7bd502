# SPDX-License-Identifier: GPL-2.0-or-later
"""memhp with one injected fault: ``python faulty.py FAULT MEMHP-ARGUMENT…``.

The verb ``check`` of a scenario injects the fault; everything else is memhp unchanged.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from agents import kill_agent, kill_agent_at_work

from harness.cli import main
from harness.deadline import Deadline
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.reboot import CheckVerb


def qemu_killed(session: Session) -> None:
    os.kill(session.guest.machine.pid, signal.SIGKILL)


def qemu_frozen(session: Session) -> None:
    os.kill(session.guest.machine.pid, signal.SIGSTOP)


def _transport(session: Session) -> tuple[Any, Any]:
    qmp: Any = session.guest.machine.qmp
    return qmp._loop, qmp._client._writer.transport


def qmp_closed(session: Session) -> None:
    loop, transport = _transport(session)
    loop.call_soon_threadsafe(transport.abort)


def qmp_stalled(session: Session) -> None:
    loop, transport = _transport(session)
    loop.call_soon_threadsafe(transport.pause_reading)


def in_guest(command: str) -> Callable[[Session], None]:
    def run(session: Session) -> None:
        session.guest.shell.run(command, deadline=session.deadline())

    return run


def guest_hangs(session: Session) -> None:
    session.guest.machine.qmp.execute("stop", deadline=session.deadline())


def network_stalls(session: Session) -> None:
    session.guest.machine.qmp.execute("set_link", {"name": "nic0", "up": False}, deadline=session.deadline())


def garbage(session: Session) -> None:
    session.guest.shell.run(GARBAGE, deadline=session.deadline())
    kill_agent(session.guest.shell, session.deadline())


def clock_jumps(session: Session) -> None:
    real, jump = time.time, [86_400.0, -86_400.0]
    time.time = lambda: real() + jump[int(real()) % 2]
    real_ns = time.time_ns
    time.time_ns = lambda: real_ns() + int(jump[int(real()) % 2] * 1e9)


#: replaces the agent, and the script it stands in for, by a script that prints 100 MB of zeros
GARBAGE = (
    "for c in /usr/bin/agent /usr/lib/memhp/collect; do "
    "rm $c; printf '#!/bin/sh\\nexec head -c 100000000 /dev/zero\\n' >$c; chmod 755 $c; done"
)
#: fills all memory with a file, which the OOM killer cannot free
FULL = "mount -o remount,size=200% /tmp; dd if=/dev/zero of=/tmp/all bs=1M count=4096"
FLOOD = "(tr '\\0' x </dev/zero >/dev/console 2>&1 &)"

FAULTS: Mapping[str, Callable[[Session], None]] = {
    "qemu-killed": qemu_killed,
    "qemu-frozen": qemu_frozen,
    "qmp-closed": qmp_closed,
    "qmp-stalled": qmp_stalled,
    "panic": in_guest("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"),
    "hang": guest_hangs,
    "oom-kill": in_guest("tail /dev/zero"),
    "oom-deadlock": in_guest(FULL),
    "dropbear-killed": in_guest("killall dropbear"),
    "reboot": in_guest("reboot -f"),
    "network-stalled": network_stalls,
    "clock-jump": clock_jumps,
    "console-flood": in_guest(FLOOD),
    "garbage": garbage,
    "agent-killed": lambda session: kill_agent(session.guest.shell, session.deadline()),
    "agent-ended": lambda session: kill_agent_at_work(session.guest.shell, session.deadline()),
    "agent-stalled": in_guest("killall -STOP agent"),
    "none": lambda session: None,
}


#: faults that a run must survive, or that take time to transfer 100 MB
PATIENT = ("none", "clock-jump", "console-flood", "oom-kill", "garbage", "agent-killed")
STEP_SECONDS = 20.0
#: faults after which no answer comes, however long the wait
SILENT = ("qemu-frozen", "qmp-stalled", "hang", "network-stalled", "agent-stalled")
SILENT_SECONDS = 8.0


def _inject(fault: str) -> None:
    def check(args: CheckVerb, session: Session, deadline: Deadline) -> Outcome:
        FAULTS[fault](session)
        if fault not in PATIENT:
            # The boot may take long on a busy machine, but no wait for an answer that never comes may exceed this.
            seconds = SILENT_SECONDS if fault in SILENT else STEP_SECONDS
            deadline._end = min(deadline._end, time.monotonic() + seconds)
        return Outcome()

    CheckVerb.run = check  # type: ignore[method-assign]


if __name__ == "__main__":
    _inject(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
