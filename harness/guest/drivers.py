# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices in the guest's kernel: wait until a driver is bound or has finished its work, switch a PCI slot."""

from __future__ import annotations

import re
from math import floor

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, UsageError
from harness.guest.overlay import SCRIPTS
from harness.guest.ssh import CommandResult, Shell
from harness.guest.waits import GuestWait

#: The workqueue on which virtio-mem handles a change of its size (virtio_mem_run_wq, drivers/virtio/virtio_mem.c, since
#: v5.8). QEMU plugs memory before the driver hands it to the kernel; for a memory block that is already online, only
#: the end of this work shows that it has done so (virtio_mem_sbm_plug_any_sb).
RESIZE_QUEUE = "events_freezable"

_WORD = re.compile(r"[A-Za-z0-9_.:-]+")
#: seconds before the deadline when the guest stops waiting, so that its report arrives in time
_REPORT_SECONDS = 0.5


def wait_driver(shell: Shell, bus: str, device: str, driver: str, *, deadline: Deadline) -> None:
    """Return once ``device`` of /sys/bus/``bus`` is bound to ``driver``.

    Raises UsageError for invalid names, DeadlineExpired (at whole seconds), GuestError.
    """
    names, awaited = (bus, device, driver), f"{driver} to bind to {device} in the guest"
    _wait("wait-driver", "bus, device or driver", names, awaited, deadline).alone(shell, deadline)


def wait_work(shell: Shell, queue: str, *, deadline: Deadline) -> None:
    """Return once it is as ``work_wait`` says. Raises UsageError, DeadlineExpired, GuestError."""
    work_wait(queue, deadline=deadline).alone(shell, deadline)


def work_wait(queue: str, *, deadline: Deadline) -> GuestWait:
    """The wait, for whole seconds, until no kernel worker of the guest executes work of ``queue``.

    Work that has not started is not awaited. Raises UsageError for an invalid name.
    """
    return _wait("wait-work", "workqueue", (queue,), f"the guest's workqueue {queue} to finish its work", deadline)


def _wait(script: str, kind: str, words: tuple[str, ...], awaited: str, deadline: Deadline) -> GuestWait:
    for word in words:
        if _WORD.fullmatch(word) is None:
            raise UsageError(f"invalid name of a {kind}: {word!r}")
    seconds = floor(max(0.0, deadline.remaining() - _REPORT_SECONDS))

    def judge(done: CommandResult) -> None:
        if done.status == 1:
            raise DeadlineExpired(awaited, deadline.seconds, last_seen=" ".join(done.text.split()))
        if done.status != 0:
            raise done.error(f"the guest's {script} script failed")

    return GuestWait((f"/{SCRIPTS}/{script} {' '.join(words)} {seconds}", b""), judge)


def switch_slot(shell: Shell, slot: int, on: bool, *, deadline: Deadline) -> None:
    """Power a hot-plug slot on or off, through pciehp or, in a kernel without it, through the port's registers.

    Raises GuestError if the guest has no such slot or refuses, DeadlineExpired.
    """
    done = shell.run(f"/{SCRIPTS}/slot {slot} {'on' if on else 'off'}", deadline=deadline)
    if done.status != 0:
        raise done.error("the guest's slot script failed")
