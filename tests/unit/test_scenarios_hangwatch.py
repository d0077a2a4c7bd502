# SPDX-License-Identifier: GPL-2.0-or-later
"""A step that hangs in a known bug is noticed long before its deadline; one that is only slow goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.check.bugs import known_bugs
from harness.errors import QemuError
from harness.guest.console import Console
from harness.qemu.machine import Machine
from harness.scenarios.hangwatch import HangWatch
from harness.state import HostTime, ThreadTime

BUGS = tuple(known_bugs().values())
#: Linux 7.3.4 on arm64, shortened; the free pages of each look
LOOKS = {
    "7": ["sysrq: Changing Loglevel", "sysrq: Loglevel set to 7"],
    "w": ["sysrq: Show Blocked State"],
    "l": ["sysrq: Show backtrace of all active CPUs", "CPU: 0 PID: 9 Comm: kworker/0:1", " FUNCTION+0x4d0/0xa5c"],
    "m": ["sysrq: Show Memory", "Mem-Info:", " free:FREE free_pcp:1080 free_cma:0", "Node 0 DMA free:8kB"],
    "h": ["sysrq: HELP : loglevel(0-9) reboot(b)"],
}


class Guest:
    """A guest that prints what SysRq wants: ``free`` pages at each look, the last number for ever."""

    def __init__(self, function: str, free: Sequence[int], ran: float) -> None:
        self.function, self.free, self.ran = function, free, ran
        self.looks, self.pressed = 0, threading.Event()
        self.ours, self.sock = socket.socketpair()
        self.cpu_times = SimpleNamespace(take=lambda: None, before=self.before)

    def before(self, text: str, until: float, seconds: int) -> HostTime:
        threads = ThreadTime("main", 99.0, 0.0, 0.0), ThreadTime("CPU 0", self.ran, 0.0, 0.0)
        return HostTime(text, seconds, float(seconds), threads)

    def press_sysrq(self, key: str, deadline: object) -> None:
        free = self.free[min(self.looks, len(self.free) - 1)]
        for line in LOOKS[key]:
            text = line.replace("FUNCTION", self.function).replace("FREE", str(free))
            self.ours.sendall(f"[   12.345678] {text}\n".encode())
        self.looks += key == "h"
        if self.looks == 4:
            self.pressed.set()


@pytest.fixture
def watched() -> Iterator[Callable[..., HangWatch]]:
    consoles = []

    def watch(guest: Guest, title: str, *abandon: Callable[[str], None]) -> HangWatch:
        console = Console(guest.sock, lambda text: None)
        consoles.append((console, guest))
        return HangWatch(BUGS, title, console, cast(Machine, guest), abandon, first=0.01, again=0.01)

    yield watch
    for console, guest in consoles:
        console.close()
        guest.ours.close()
        guest.sock.close()


@pytest.mark.parametrize("free", [[1000, 1000], [5000, 1000, 1010]], ids=["at once", "after it moved"])
def test_a_step_that_hangs_in_a_known_bug_is_given_up(free: list[int], watched: Any) -> None:
    told: list[str] = []
    waited = threading.Event()

    def give_up(why: str) -> None:
        told.append(why)
        waited.set()

    watch = watched(Guest("offline_pages", free, 6.0), "unplug pinned (refused)", give_up, told.append)
    with watch:
        assert waited.wait(60)
    assert told == ["it has been in offline_pages for 0 s, and nothing moves"]
    assert sum(" offline_pages+0x4d0/0xa5c" in line for line in watch.stacks) == 2


def test_who_waits_for_an_answer_is_given_up_after_who_waits_for_an_event(watched: Any) -> None:
    told: list[str] = []
    waited = threading.Event()
    guest = Guest("offline_pages", [1000], 6.0)
    with watched(guest, "offline pinned", told.append, lambda why: waited.set()):
        assert waited.wait(60)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("function", "free", "ran"),
    [
        ("offline_pages", range(1 << 40, 0, -1000), 6.0),
        ("online_pages", [1000], 6.0),
        ("offline_pages", [1000], 3.9),
    ],
    ids=["pages move", "another function", "the host lets no CPU run"],
)
def test_a_slow_step_goes_on(function: str, free: Sequence[int], ran: float, watched: Any) -> None:
    told: list[str] = []
    guest = Guest(function, free, ran)
    watch = watched(guest, "unplug pinned", told.append)
    with watch:
        assert guest.pressed.wait(60)
    assert (told, watch.stacks) == ([], ())


def test_a_step_that_a_signal_will_end_goes_on(watched: Any) -> None:
    told: list[str] = []
    guest = Guest("offline_pages", [1000], 6.0)
    watch = watched(guest, "offline pinned", told.append)
    watch.stop()
    with watch:
        watch._thread.join(60)
    assert (guest.looks, told, watch.stacks) == (0, [], ())


def test_a_kernel_that_does_not_answer_sysrq_is_left_alone(watched: Any) -> None:
    class Deaf(Guest):
        def press_sysrq(self, key: str, deadline: object) -> None:
            raise QemuError("QEMU's serial console is closed")

    guest = Deaf("offline_pages", [1000], 6.0)
    with watched(guest, "offline pinned") as watch:
        watch._thread.join(60)
        assert not watch._thread.is_alive()
    assert watch.stacks == ()


def test_a_step_in_which_no_known_bug_hangs_is_left_alone(watched: Any) -> None:
    guest = Guest("offline_pages", [1000], 6.0)
    with watched(guest, "online pinned") as watch:
        assert not watch._thread.is_alive()
    assert guest.looks == 0
