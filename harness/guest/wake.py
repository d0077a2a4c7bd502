# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a restored guest one of its own: keys, random numbers and the time of day, told over its console.

A guest without an identity falls asleep at the end of its boot (guest-scripts/sleeper.c). It can be saved then, and
holds no secret. Each guest that is restored from it is woken with one line.
"""

from __future__ import annotations

import os
import socket
import time

from harness.deadline import Deadline
from harness.errors import DeadlineExpired
from harness.guest.console import ASLEEP, Console
from harness.guest.identity import Identity

#: bytes of entropy that the guest gets, what its generator takes for a new key (drivers/char/random.c)
SEED_BYTES = 32


def wait_asleep(console: Console, deadline: Deadline, *, since: int = 0) -> None:
    """Return when the guest has said, after line ``since``, that it sleeps. Raises as ``Console.wait_line`` does."""
    console.wait_line(ASLEEP, deadline, since=since)


def wake_line(identity: Identity, seed: bytes, nanoseconds: int) -> bytes:
    """The line that wakes a guest: ``nanoseconds`` is the time since the epoch. Raises ValueError for a short seed."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    seconds, rest = divmod(nanoseconds, 10**9)
    words = ("memhp-wake", seconds, rest, seed.hex(), identity.host.dropbear.hex(), identity.client.public)
    return " ".join(map(str, words)).encode() + b"\n"


def wake(sock: socket.socket, identity: Identity, deadline: Deadline) -> None:
    """Wake the guest behind the console ``sock``; that it is ready its console tells. Raises DeadlineExpired."""
    line = memoryview(wake_line(identity, os.urandom(SEED_BYTES), time.time_ns()))
    # The reader of the same socket must not inherit a timeout, so there is none to set: a guest that reads nothing
    # fills a socket's buffer only after many times this length.
    if sock.send(line) != len(line):
        raise DeadlineExpired("the guest's console to take the line that wakes it", deadline.seconds)
