# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a restored guest one of its own: keys, random numbers and the time of day, told over its console.

A guest without an identity falls asleep at the end of its boot (guest-scripts/sleeper.c). It can be saved then, and
holds no secret. Each guest that is restored from it is woken with one order.
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

#: bytes of entropy that the guest gets, what its generator takes for a new key (drivers/char/random.c)
SEED_BYTES = 32


def wait_asleep(console: Console, deadline: Deadline, *, since: int = 0) -> None:
    """Return when the guest has said, after line ``since``, that it sleeps. Raises as ``Console.wait_line`` does."""
    console.wait_line(ASLEEP, deadline, since=since)


def wake_order(identity: Identity, seed: bytes, nanoseconds: int) -> bytes:
    """What wakes a guest, see ``struct order``: ``nanoseconds`` is the time since the epoch.

    As few bytes as can be, for each few of them interrupt the guest. Raises ValueError for a short seed.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    time_of_day = struct.pack("<QQ", *divmod(nanoseconds, 10**9))
    return b"".join(
        (b"memhp-wake", time_of_day, seed, identity.host.secret, identity.host.point, identity.client.point)
    )


def wake(sock: socket.socket, identity: Identity, deadline: Deadline) -> None:
    """Wake the guest behind the console ``sock``; that it is ready its console tells. Raises DeadlineExpired."""
    order = memoryview(wake_order(identity, os.urandom(SEED_BYTES), time.time_ns()))
    # The reader of the same socket must not inherit a timeout, so there is none to set: a guest that reads nothing
    # fills a socket's buffer only after many times this length.
    if sock.send(order) != len(order):
        raise DeadlineExpired("the guest's console to take the order that wakes it", deadline.seconds)
