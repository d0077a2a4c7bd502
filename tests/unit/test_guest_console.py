# SPDX-License-Identifier: GPL-2.0-or-later
"""The console, with a real socket pair."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest.console import MAX_ALARMS, MAX_LINE, MAX_LINES, Console
from harness.parsers.dmesg import alarming


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@pytest.fixture
def guest(wire: tuple[socket.socket, socket.socket]) -> socket.socket:
    return wire[1]


@pytest.fixture
def console(wire: tuple[socket.socket, socket.socket]) -> Iterator[Console]:
    with Console(wire[0], alarming) as console:
        yield console


def test_lines_are_clean(console: Console, guest: socket.socket) -> None:
    raw = b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading\r\n[    0.1] one\r\ntwo \xff\r\nlast\r\n"
    guest.sendall(raw[:5])
    guest.sendall(raw[5:])
    line = console.wait_line("^last$", Deadline(60))
    assert [entry.text for entry in console.lines()] == ["BdsDxe: loading", "[    0.1] one", "two \ufffd", "last"]
    assert line.number == 4 and console.mark == 4 and console.tail(2) == "two \ufffd\nlast"


def test_wait_line_wakes_up_and_looks_only_at_new_lines(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"hello 1\n")
    assert console.wait_line("hello", Deadline(60)).text == "hello 1"
    mark = console.mark
    timer = threading.Timer(0.1, guest.sendall, (b"hello 2\n",))
    timer.start()
    assert console.wait_line("hello", Deadline(60), since=mark).text == "hello 2"


def test_wait_line_names_what_it_waited_for(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"something else\n")
    console.wait_line("else", Deadline(60))
    with pytest.raises(DeadlineExpired, match=r"'never' on the guest's console; last seen: something else"):
        console.wait_line("never", Deadline(0.1))


@pytest.mark.parametrize(
    ("line", "alarm"),
    [
        (b"[   12.345678] WARNING: CPU: 0 PID: 1 at mm/memory.c:1 f+0x0/0x1", "WARN"),
        (b"[   12.345678] Internal error: Oops: 0000000096000004 [#1] SMP", "Oops"),
        (b"[   12.345678] Oops [#1]", "Oops"),
        (b"[   12.345678] BUG: Bad page state in process sh  pfn:80000", "bad page"),
    ],
)
def test_alarms(console: Console, guest: socket.socket, line: bytes, alarm: str) -> None:
    guest.sendall(b"[   1.0] innocent\n" + line + b"\nend\n")
    console.wait_line("^end$", Deadline(60))
    assert [(entry.alarm, entry.text) for entry in console.alarms] == [(alarm, line.decode())]
    assert [entry.number for entry in console.alarms] == [2]
    assert len(console.new_alarms()) == 1 and console.new_alarms() == ()
    assert console.trouble() is None


def test_a_kernel_is_dead_once_it_has_said_all(console: Console, guest: socket.socket) -> None:
    console.wait_dead(Deadline(60))
    guest.sendall(b"[ 1.0] Kernel panic - not syncing: no\n[ 1.1] Call trace:\n")
    with pytest.raises(GuestError):
        console.wait_line("never", Deadline(60))
    with pytest.raises(DeadlineExpired, match="waiting for the end of the kernel's panic"):
        console.wait_dead(Deadline(0.01))
    timer = threading.Timer(0.1, guest.sendall, (b"[ 1.2] ---[ end Kernel panic - not syncing: no ]---\n",))
    timer.start()
    console.wait_dead(Deadline(60))
    assert console.tail(1).endswith("]---")
    timer.join()


def test_the_end_of_the_console_is_the_end_of_a_panic(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"[ 1.0] Kernel panic - not syncing: no\n")
    guest.close()
    console.wait_dead(Deadline(60))


def test_a_panic_ends_every_wait(console: Console, guest: socket.socket) -> None:
    timer = threading.Timer(0.1, guest.sendall, (b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n",))
    timer.start()
    with pytest.raises(GuestError, match=r"the guest panicked: .*Attempted to kill init!"):
        console.wait_line("never", Deadline(60))
    assert console.alarms[-1].text.endswith("kill init!")
    assert select.select([console.trouble_fd()], [], [], 5)[0]


def test_a_kernel_that_stands_still_is_told_at_once(console: Console, guest: socket.socket) -> None:
    told: list[str] = []
    console.tell_hang(told.append)
    hung = "[   50.1] INFO: task kworker/u8:1:24 blocked for more than 20 seconds."
    panic = "[   50.2] Kernel panic - not syncing: Oops: Fatal exception"
    harmless = "[   50.0] WARNING: CPU: 0 PID: 1 at mm/memory.c:1 f+0x0/0x1"
    guest.sendall(f"{harmless}\n{hung}\n{panic}\n".encode())
    guest.close()
    with pytest.raises(GuestError):
        console.wait_line("never", Deadline(10))
    console.close()
    assert told == [hung, panic]


def test_an_init_that_gives_up(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"[ 1.0] memhp: failed: network: no interface \n")
    with pytest.raises(GuestError, match=r"the guest's /init gave up: network: no interface$"):
        console.wait_ready(Deadline(60))


def test_the_end(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"half a line")
    guest.close()
    with pytest.raises(GuestError, match="the guest's console ended: QEMU closed it"):
        console.wait_line("never", Deadline(60))
    assert console.wait_line("half", Deadline(1)).text == "half a line"


def test_memory_is_bounded(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"x" * (3 * MAX_LINE) + b"\n" + b"BUG: x\n" * (MAX_LINES + 10) + b"end\n")
    console.wait_line("^end$", Deadline(60))
    assert len(console.lines()) == MAX_LINES and len(console.alarms) == MAX_ALARMS
    assert all(len(line.text) <= MAX_LINE for line in console.lines())


def test_close_leaves_the_socket_alone(wire: tuple[socket.socket, socket.socket]) -> None:
    console = Console(wire[0], alarming)
    console.close()
    console.close()
    wire[1].sendall(b"x")
    assert wire[0].recv(1) == b"x"
    with pytest.raises(GuestError, match="the harness stopped reading"):
        console.wait_line("never", Deadline(1))


def test_a_second_ready_is_a_reboot(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"memhp: ready\n[    0.0] Booting\n")
    console.wait_line("Booting", Deadline(60))
    assert console.boots == 1
    console.expect_reboot()
    guest.sendall(b"[    1.0] memhp: ready\r\nend\n")
    console.wait_line("^end$", Deadline(60))
    assert console.boots == 2 and console.trouble() is None
    guest.sendall(b"[    2.0] memhp: ready\r\n")
    assert select.select([console.trouble_fd()], [], [], 10)[0]
    with pytest.raises(GuestError, match="the guest rebooted"):
        console.wait_line("never", Deadline(60))


def test_a_kernel_that_begins_again_is_a_reboot(console: Console, guest: socket.socket) -> None:
    """Such a guest's network can close our connection before its /init prints anything."""
    banner = b"[    0.000000] Linux version 6.12.117 (memhp@memhp) #1 SMP\r\n"
    guest.sendall(banner + banner + b"[    1.0] memhp: ready\r\nfirst\n")
    console.wait_line("^first$", Deadline(60))
    assert console.boots == 1 and console.trouble() is None
    console.expect_reboot()
    guest.sendall(banner + b"[    1.0] memhp: ready\r\nsecond\n")
    console.wait_line("^second$", Deadline(60))
    assert console.boots == 2 and console.trouble() is None
    guest.sendall(banner.replace(b"]", b"][    T0]", 1))
    assert select.select([console.trouble_fd()], [], [], 10)[0]
    with pytest.raises(GuestError, match="the guest rebooted"):
        console.wait_line("never", Deadline(60))


def test_who_is_woken_has_not_booted_again(console: Console, guest: socket.socket) -> None:
    guest.sendall(b"memhp: ready\n")
    console.wait_ready(Deadline(60))
    console.expect_reboot()
    guest.sendall(b"[    1.0] memhp: asleep\r\n[    1.1] memhp: ready\r\nend\n")
    console.wait_line("^end$", Deadline(60))
    assert console.boots == 2 and console.trouble() is None
    guest.sendall(b"[    2.0] memhp: asleep\r\n")
    with pytest.raises(GuestError, match="the guest rebooted"):
        console.wait_line("never", Deadline(60))


def test_a_guest_that_is_up_already_has_no_boot_to_come(wire: tuple[socket.socket, socket.socket]) -> None:
    with Console(wire[0], alarming, up=True) as console:
        wire[1].sendall(b"[    2.0] memhp: ready\r\n")
        with pytest.raises(GuestError, match="the guest rebooted"):
            console.wait_line("never", Deadline(60))


def test_a_flood_is_not_read_for_ever(console: Console, guest: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.guest.console.MAX_LOG", 1 << 20)
    for _ in range(17):
        guest.sendall(b"x" * 65535 + b"\n")
    with pytest.raises(GuestError, match="the guest printed more than 1 MiB"):
        console.wait_line("never", Deadline(60))


@pytest.mark.parametrize(
    "why", ["System is deadlocked on memory", "Out of memory: system-wide panic_on_oom is enabled"]
)
def test_a_guest_without_memory_says_nothing_of_its_kernel(why: str, console: Console, guest: socket.socket) -> None:
    text = f"Kernel panic - not syncing: {why}"
    guest.sendall(f"[   9.0] {text}\n[   9.1] ---[ end {text} ]---\n".encode())
    with pytest.raises(GuestError, match="the guest panicked"):
        console.wait_line("never", Deadline(60))
    assert console.alarms == ()
