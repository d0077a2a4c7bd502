# SPDX-License-Identifier: GPL-2.0-or-later
"""The line that wakes a restored guest, and the guest's own reading of it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError
from harness.guest.console import Console
from harness.guest.identity import Identity
from harness.guest.overlay import overlay
from harness.guest.wake import SEED_BYTES, wait_asleep, wake, wake_line

SCRIPTS = Path(__file__).parents[2] / "guest-scripts"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def test_the_line_has_time_seed_and_keys() -> None:
    identity = Identity.fresh()
    line = wake_line(identity, bytes(range(SEED_BYTES)), 1_700_000_000_000_000_042)
    word, seconds, rest, seed, host, client = line.decode().rstrip("\n").split(" ", 5)
    assert (word, seconds, rest) == ("memhp-wake", "1700000000", "42")
    assert bytes.fromhex(seed) == bytes(range(SEED_BYTES))
    assert bytes.fromhex(host) == identity.host.dropbear
    assert client == identity.client.public
    assert line.count(b"\n") == 1 and len(line) < 2048


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="a seed has 32 bytes, not 3"):
        wake_line(Identity.fresh(), b"abc", 0)


def test_every_guest_is_told_something_else() -> None:
    here, there = socket.socketpair()
    with here, there:
        for _ in range(2):
            wake(here, Identity.fresh(), Deadline(5))
        first, second, rest = there.recv(1 << 16).split(b"\n")
    assert rest == b""
    assert not set(first.split()[2:5]) & set(second.split()[2:5])


def test_a_guest_that_falls_asleep_says_so() -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, None, lambda line: None) as console:
        there.sendall(b"[    2.0] memhp: asleep\r\n")
        wait_asleep(console, Deadline(5))
        there.sendall(b"[    2.1] memhp: failed: sleep: the guest does not come to rest\r\n")
        with pytest.raises(GuestError, match="does not come to rest"):
            console.wait_ready(Deadline(5))


def test_a_guest_that_does_not_fall_asleep_is_not_waited_for_for_ever() -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, None, lambda line: None) as console:
        there.sendall(b"memhp: ready\r\n")
        with pytest.raises(DeadlineExpired, match="last seen: memhp: ready"):
            wait_asleep(console, Deadline(0.05))


def test_what_is_put_to_rest_has_no_keys() -> None:
    identity = Identity.fresh()
    assert b"host_key" in overlay(identity, SCRIPTS)
    asleep = overlay(None, SCRIPTS)
    assert asleep == overlay(None, SCRIPTS)
    assert b"etc/dropbear/host_key\0" not in asleep and b"authorized_keys\0" not in asleep


@needs_cc
def test_the_sleeper_compiles_without_a_warning_and_says_how_it_is_called(tmp_path: Path) -> None:
    program = tmp_path / "sleeper"
    source = str(SCRIPTS / "sleeper.c")
    subprocess.run(["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), source], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "usage: sleeper HOST_KEY AUTHORIZED_KEYS PID_FILE\n")
