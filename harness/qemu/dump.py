# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU would put into a dump of the guest's memory."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.errors import QemuError
from harness.qemu.machine import Machine
from harness.units import AddrRange

#: the headers come first; what follows is the guest's memory
_HEAD = 64 << 10


def dump_head(machine: Machine, wanted: AddrRange, *, deadline: Deadline) -> bytes:
    """The first 64 KiB of a dump (QMP dump-guest-memory) of the physical range ``wanted``, headers and all.

    Some of ``wanted`` must be there, or QEMU refuses. The rest of the dump is thrown away. Raises QmpRefused,
    QemuError, DeadlineExpired.
    """
    path = machine.workdir / "guest.dump"
    arguments = {"paging": False, "protocol": f"file:{path}", "begin": wanted.start, "length": wanted.size}
    try:
        machine.qmp.execute("dump-guest-memory", arguments, deadline=deadline)
        with path.open("rb") as dump:
            return dump.read(_HEAD)
    except OSError as error:
        raise QemuError(f"the dump {path} cannot be read: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)
