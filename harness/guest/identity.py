# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a guest unique: the keys of a run, fresh and in memory only, and the order that wakes a restored guest.

A guest without an identity falls asleep at the end of its boot (guest-scripts/sleeper.c). It can be saved then, and
holds no secret. Each guest restored from that snapshot is woken over its console with one order: keys, random numbers
and the time of day.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from harness.deadline import Deadline
from harness.errors import DeadlineExpired

#: bytes of entropy sent to the guest: the key size of its random number generator (drivers/char/random.c)
SEED_BYTES = 32

_TYPE = "ssh-ed25519"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair.

    ``public`` is one line in the format of authorized_keys; ``openssh`` the private key as ssh(1) and paramiko read
    it. ``secret`` and ``point`` are the bare 32 bytes of the private and the public key (RFC 8032).
    """

    public: str
    openssh: str = field(repr=False)
    secret: bytes = field(repr=False)
    point: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> KeyPair:
        """Generate a new pair."""
        key = Ed25519PrivateKey.generate()
        public = key.public_key()
        return cls(
            public=public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
            openssh=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
            secret=key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()),
            point=public.public_bytes(Encoding.Raw, PublicFormat.Raw),
        )

    @property
    def dropbear(self) -> bytes:
        """The private key as dropbear(8) reads it."""
        return _string(_TYPE.encode()) + _string(self.secret + self.point)


@dataclass(frozen=True, slots=True)
class Identity:
    """The two pairs of one run: ``client`` logs in, ``host`` is the guest's host key, which the client pins."""

    client: KeyPair
    host: KeyPair

    @classmethod
    def fresh(cls) -> Identity:
        """Generate two new pairs."""
        return cls(client=KeyPair.fresh(), host=KeyPair.fresh())


def _string(data: bytes) -> bytes:
    # RFC 4251, 5: "string"; dropbear's own key files are made of them (buf_put_ed25519_priv_key).
    return struct.pack(">I", len(data)) + data


def wake_order(identity: Identity, seed: bytes, nanoseconds: int) -> bytes:
    """The order that wakes a guest (``struct order``); ``nanoseconds`` is the time since the epoch.

    It is kept short because every few bytes cost the guest an interrupt. Raises ValueError for a seed of wrong length.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    time_of_day = struct.pack("<QQ", *divmod(nanoseconds, 10**9))
    keys = identity.host.secret + identity.host.point + identity.client.point
    return b"memhp-wake" + time_of_day + seed + keys


def wake(sock: socket.socket, identity: Identity, deadline: Deadline) -> None:
    """Wake the guest behind the console ``sock``; its console reports when it is ready. Raises DeadlineExpired."""
    order = memoryview(wake_order(identity, os.urandom(SEED_BYTES), time.time_ns()))
    # No timeout: the reader of the same socket would get it too. Even if the guest reads nothing, the socket's
    # buffer holds many times this length.
    if sock.send(order) != len(order):
        raise DeadlineExpired("the guest's console to accept the order that wakes it", deadline.seconds)
