# SPDX-License-Identifier: GPL-2.0-or-later
"""The headers of a QEMU dump of the guest's memory."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.errors import QemuError
from harness.qemu.machine import Machine
from harness.units import AddrRange

#: bytes read: the headers come first, the guest's memory follows
_HEAD = 64 << 10


def dump_head(machine: Machine, wanted: AddrRange, *, deadline: Deadline) -> bytes:
    """The first 64 KiB of a dump (QMP dump-guest-memory) of the physical range ``wanted``, including its headers.

    QEMU refuses unless the machine has memory in ``wanted``. The rest of the dump is discarded. Raises QmpRefused,
    QemuError, DeadlineExpired.
    """
    path = machine.workdir / "guest.dump"
    arguments = {"paging": False, "protocol": f"file:{path}", "begin": wanted.start, "length": wanted.size}
    try:
        machine.qmp.execute("dump-guest-memory", arguments, deadline=deadline)
        with path.open("rb") as dump:
            return dump.read(_HEAD)
    except OSError as error:
        raise QemuError(f"cannot read the dump {path}: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)
