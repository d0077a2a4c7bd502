# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a restored guest unique: keys, random numbers and the time of day, sent over its console.

A guest without an identity falls asleep at the end of its boot (guest-scripts/sleeper.c). It can be saved then, and
holds no secret. Each guest restored from that snapshot is woken with one order.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from harness.deadline import Deadline
from harness.errors import DeadlineExpired
from harness.guest.console import ASLEEP, Console
from harness.guest.identity import Identity

#: bytes of entropy sent to the guest: the key size of its random number generator (drivers/char/random.c)
SEED_BYTES = 32


def wait_asleep(console: Console, deadline: Deadline, *, since: int = 0) -> None:
    """Return once the guest reports, after line ``since``, that it sleeps. Raises as ``Console.wait_line`` does."""
    console.wait_line(ASLEEP, deadline, since=since)


def wake_order(identity: Identity, seed: bytes, nanoseconds: int) -> bytes:
    """The order that wakes a guest (``struct order``); ``nanoseconds`` is the time since the epoch.

    It is kept short because every few bytes cost the guest an interrupt. Raises ValueError for a seed of wrong length.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    time_of_day = struct.pack("<QQ", *divmod(nanoseconds, 10**9))
    return b"".join(
        (b"memhp-wake", time_of_day, seed, identity.host.secret, identity.host.point, identity.client.point)
    )


def wake(sock: socket.socket, identity: Identity, deadline: Deadline) -> None:
    """Wake the guest behind the console ``sock``; its console reports when it is ready. Raises DeadlineExpired."""
    order = memoryview(wake_order(identity, os.urandom(SEED_BYTES), time.time_ns()))
    # No timeout: the reader of the same socket would get it too. Even if the guest reads nothing, the socket's
    # buffer holds many times this length.
    if sock.send(order) != len(order):
        raise DeadlineExpired("the guest's console to accept the order that wakes it", deadline.seconds)
