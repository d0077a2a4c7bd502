# SPDX-License-Identifier: GPL-2.0-or-later
"""Each report of a watchdog on the console gets the figures of its own time, once."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import model_guest
import pytest

from harness.deadline import Deadline
from harness.guest.console import Console
from harness.parsers.dmesg import alarming, parse_dmesg
from harness.scenarios.session import Session
from harness.state import HostTime

STALL = "rcu: INFO: rcu_sched self-detected stall on CPU"
SOFT = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:61]"
CMDLINE = "rcupdate.rcu_cpu_stall_timeout=60"


class Times:
    """In place of CpuTimes: remembers what it was asked."""

    def __init__(self) -> None:
        self.taken = 0
        self.asked: list[tuple[float, bool]] = []

    def take(self) -> None:
        self.taken += 1

    def before(self, text: str, until: float, seconds: int) -> HostTime:
        self.asked.append((until, bool(self.taken)))
        return HostTime(text, seconds)


@pytest.fixture
def world() -> Iterator[tuple[Session, Console, socket.socket]]:
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs), ours, Console(ours, alarming, up=True) as console:
        session = Session.__new__(Session)
        session._timed = console, 0
        machine: Any = SimpleNamespace(cpu_times=Times())
        facts: Any = SimpleNamespace(cmdline=CMDLINE)
        guest: Any = SimpleNamespace(console=console, machine=machine, facts=facts)
        session.guest = guest
        yield session, console, theirs


def test_every_report_since_the_last_look_is_measured_when_it_was_printed(
    world: tuple[Session, Console, socket.socket],
) -> None:
    session, console, theirs = world
    theirs.sendall(f"[   70.000000] {STALL}\nall is well\n[   80.000000] {SOFT}\n[   81.000000] BUG: x\n".encode())
    console.wait_line("BUG: x", Deadline(20))
    found = session._host_times(None, Deadline(20))
    assert [(one.text, one.seconds) for one in found] == [
        (f"[   70.000000] {STALL}", 60),
        (f"[   80.000000] {SOFT}", 22),
    ]
    times: Any = session.guest.machine.cpu_times
    assert times.asked == [(line.time, True) for line in console.alarms[:2]]
    # Only so many samples are kept: those of many fast steps would push out what came before.
    assert session._host_times(None, Deadline(20)) == () and times.taken == 1


def test_a_report_that_the_console_prints_after_the_look_is_awaited(
    world: tuple[Session, Console, socket.socket],
) -> None:
    session, _, theirs = world
    state = dataclasses.replace(model_guest.boot_state(), dmesg=parse_dmesg(f"<3>[   70.000000] {STALL}\n"))
    late = threading.Timer(0.3, theirs.sendall, (f"[   70.000000] {STALL}\n".encode(),))
    late.start()
    found = session._host_times(state, Deadline(20))
    late.join()
    assert [one.seconds for one in found] == [60]


def test_the_reports_of_a_restored_guest_are_measured_as_well(world: tuple[Session, Console, socket.socket]) -> None:
    """Its console is another one, whose lines are counted from the beginning."""
    session, console, theirs = world
    theirs.sendall(b"one\ntwo\n")
    console.wait_line("two", Deadline(20))
    assert session._host_times(None, Deadline(20)) == ()
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs), ours, Console(ours, alarming, up=True) as restored:
        guest: Any = session.guest
        guest.console = restored
        theirs.sendall(f"[   70.000000] {STALL}\n".encode())
        restored.wait_line("stall", Deadline(20))
        assert [one.seconds for one in session._host_times(None, Deadline(20))] == [60]
