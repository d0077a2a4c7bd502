# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's serial console, read continuously so that a panic is noticed as soon as it is printed."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import GuestError

#: limits: lines and alarms kept, characters per line, bytes in all (reading stops there)
MAX_LINES = 20_000
MAX_ALARMS = 1_000
MAX_LINE = 4_096
MAX_LOG = 256 << 20

#: what guest-scripts/init prints when SSH is listening
READY = r"\bmemhp: ready$"
#: what a guest without keys prints once it is idle and waits for the order that wakes it
ASLEEP = r"\bmemhp: asleep$"

_READY = re.compile(READY)
_ASLEEP = re.compile(ASLEEP)
# The first line of linux_banner (init/version-timestamp.c), which the kernel prints before its clock runs
_BANNER = re.compile(r"\[ +0\.000000\](?:\[ *[TC][0-9]+\])? Linux version ")
_PANIC = re.compile(r"\bKernel panic - not syncing")
#: its last line (panic, kernel/panic.c, v6.12)
_PANIC_END = re.compile(r"\bend Kernel panic - not syncing")
_FAILED = re.compile(r"\bmemhp: failed: (.*)")
# ECMA-48: CSI … final byte, OSC … BEL or ST, and the two-byte escapes; then all other unprintable characters.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_=>]|\x1b[()][0-9A-B]")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """One line: ``number`` counts from 1, ``time`` is monotonic seconds, ``alarm`` the class of trouble, or None."""

    number: int
    time: float
    text: str
    alarm: str | None = None


class Console:
    """Reads a console until it ends or ``close`` is called; a context manager.

    ``sock`` stays the caller's. ``alarming`` returns the class of trouble that a line reports, None for a harmless line
    (``harness.parsers.dmesg.alarming``). ``boots`` is how often /init has finished and the guest was ready or asleep:
    more than once after a reboot.
    """

    def __init__(self, sock: socket.socket, alarming: Callable[[str], str | None], *, up: bool = False) -> None:
        self._sock = sock
        self._alarming = alarming
        self._lines: deque[ConsoleLine] = deque(maxlen=MAX_LINES)
        self._alarms: deque[ConsoleLine] = deque(maxlen=MAX_ALARMS)
        self._count = 0
        self._partial = bytearray()
        self._panic: ConsoleLine | None = None
        self._dead = False
        self._failure: str | None = None
        self._reported = 0
        self._on_hang: Callable[[str], None] = lambda why: None
        self.boots, self._expected_boots = 0, 0 if up else 1
        self._asleep, self._booting = False, False
        self._read_bytes = 0
        self._end: str | None = None
        self._changed = threading.Condition()
        self._trouble = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._read, name="guest-console", daemon=True)
        self._thread.start()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def mark(self) -> int:
        """The number of the newest line, for ``since`` of the other methods."""
        with self._changed:
            return self._count

    @property
    def alarms(self) -> tuple[ConsoleLine, ...]:
        """The alarming lines so far (the last thousand)."""
        with self._changed:
            return tuple(self._alarms)

    def tell_hang(self, listener: Callable[[str], None]) -> None:
        """Call ``listener``, from the thread that reads, with each line by which the kernel says that it stands still.

        That is a panic, or a task that was blocked for too long. It replaces the previous listener.
        """
        self._on_hang = listener

    def expect_reboot(self) -> None:
        """Expect one more boot: do not report it as trouble."""
        with self._changed:
            self._expected_boots += 1

    def new_alarms(self) -> tuple[ConsoleLine, ...]:
        """The alarming lines since the last call."""
        with self._changed:
            reported, self._reported = self._reported, self._count
            return tuple(line for line in self._alarms if line.number > reported)

    def mark_new(self, alarms: Sequence[ConsoleLine]) -> None:
        """Mark ``alarms``, the last ones returned, as new again: the caller could not use them."""
        if alarms:
            with self._changed:
                self._reported = min(self._reported, alarms[0].number - 1)

    def lines(self, since: int = 0) -> tuple[ConsoleLine, ...]:
        """The lines after number ``since`` that are still kept (the last twenty thousand)."""
        with self._changed:
            return tuple(line for line in self._lines if line.number > since)

    def tail(self, count: int = 20) -> str:
        """The last ``count`` lines, for an error message."""
        with self._changed:
            return "\n".join(line.text for line in list(self._lines)[-count:])

    def trouble_fd(self) -> int:
        """A descriptor to poll: readable once ``trouble`` returns an error."""
        return self._trouble

    def trouble(self) -> GuestError | None:
        """Why the guest is lost, as an error to raise: panic, reboot, its /init gave up, the console ended; or None."""
        with self._changed:
            if self._panic is not None:
                return GuestError(f"the guest panicked: {self._panic.text}")
            if self._failure is not None:
                return GuestError(f"the guest's /init gave up: {self._failure}")
            if self._rebooted():
                return GuestError("the guest rebooted")
            if self._end is not None:
                return GuestError(f"the guest's console ended: {self._end}", hint="did QEMU die? see its log")
            return None

    def wait_line(self, pattern: str, deadline: Deadline, *, since: int = 0) -> ConsoleLine:
        """Return the first line after number ``since`` that matches the regular expression ``pattern`` anywhere.

        Raises GuestError as soon as the guest panics, its /init gives up or the console ends first; DeadlineExpired.
        """
        wanted = re.compile(pattern)
        checked = since

        def probe() -> tuple[ConsoleLine | None, GuestError | None] | None:
            nonlocal checked
            for line in self._lines:
                if line.number > checked and wanted.search(line.text):
                    return line, None
            checked = max(checked, self._count)
            trouble = self.trouble()
            return None if trouble is None else (None, trouble)

        def last() -> str | None:
            return self._lines[-1].text if self._lines else None

        line, trouble = deadline.wait(self._changed, probe, f"{pattern!r} on the guest's console", last)
        if trouble is not None:
            raise trouble
        assert line is not None
        return line

    def wait_ready(self, deadline: Deadline) -> None:
        """Return once the guest's /init reports that SSH is listening. Raises as ``wait_line`` does."""
        self.wait_line(READY, deadline)

    def wait_dead(self, deadline: Deadline) -> None:
        """Return once a kernel that panics has said all; at once if it does not panic. Raises DeadlineExpired."""

        def probe() -> bool | None:
            return True if self._panic is None or self._dead or self._end is not None else None

        deadline.wait(self._changed, probe, "the end of the kernel's panic")

    def close(self) -> None:
        """Stop reading. The lines read so far stay available; the socket stays open."""
        if self._thread.is_alive():
            os.eventfd_write(self._stop, 1)
            self._thread.join()
        for fd in (self._trouble, self._stop):
            if fd >= 0:
                os.close(fd)
        self._trouble = self._stop = -1

    def _rebooted(self) -> bool:
        return self.boots + self._booting > self._expected_boots

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        end = "QEMU closed it"
        with contextlib.suppress(OSError):
            while True:
                ready = dict(poll.poll())
                if self._stop in ready:
                    end = "the harness stopped reading"
                    break
                data = self._sock.recv(1 << 16)
                if not data:
                    break
                self._take(data)
                self._read_bytes += len(data)
                if self._read_bytes > MAX_LOG:
                    # No one reads the socket any more, so QEMU's log of the console stops growing as well.
                    end = f"the guest printed more than {MAX_LOG >> 20} MiB"
                    break
        with self._changed:
            if self._partial:
                self._add(bytes(self._partial))
                self._partial.clear()
            self._end = end
            self._changed.notify_all()
        os.eventfd_write(self._trouble, 1)

    def _take(self, data: bytes) -> None:
        with self._changed:
            self._partial += data
            *whole, rest = self._partial.split(b"\n")
            while len(rest) > MAX_LINE:
                whole.append(rest[:MAX_LINE])
                rest = rest[MAX_LINE:]
            self._partial = bytearray(rest)
            added = [self._add(bytes(line)) for line in whole]
            if whole:
                self._changed.notify_all()
        for line in added:
            if line.alarm == "hung task" or line is self._panic:
                self._on_hang(line.text)

    def _add(self, raw: bytes) -> ConsoleLine:
        text = _UNPRINTABLE.sub("", _ESCAPES.sub("", raw[:MAX_LINE].decode("utf-8", "replace")))
        self._count += 1
        line = ConsoleLine(self._count, time.monotonic(), text, self._alarming(text))
        self._lines.append(line)
        if line.alarm is not None:
            self._alarms.append(line)
        asleep, ready = _ASLEEP.search(text) is not None, _READY.search(text) is not None
        # A guest that becomes ready after it slept has not booted in between.
        if asleep or (ready and not self._asleep):
            self.boots, self._booting = self.boots + 1, False
        # Two consoles can print the same banner twice, before /init prints anything.
        elif self.boots == self._expected_boots and _BANNER.search(text):
            self._booting = True
        if asleep or ready:
            self._asleep = asleep
        if self._panic is None and _PANIC.search(text):
            self._panic = line
        elif self._failure is None and (failed := _FAILED.search(text)) is not None:
            self._failure = failed[1].strip()
        self._dead = self._dead or (self._panic is not None and _PANIC_END.search(text) is not None)
        if self._panic is not None or self._failure is not None or self._rebooted():
            os.eventfd_write(self._trouble, 1)
        return line
