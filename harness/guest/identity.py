# SPDX-License-Identifier: GPL-2.0-or-later
"""The SSH keys of a run, for the client and for the guest: fresh for every run, kept in memory only."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

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
        point = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        secret = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return cls(
            public=public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
            openssh=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
            secret=secret,
            point=point,
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
