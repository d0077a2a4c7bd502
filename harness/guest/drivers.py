# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices of the guest's kernel: wait until a driver has taken one or has done its work, switch a PCI slot."""

from __future__ import annotations

import re
from math import floor

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, UsageError
from harness.guest.overlay import SCRIPTS
from harness.guest.ssh import Shell

#: The workqueue of all that virtio-mem does for a change of its size (virtio_mem_run_wq, drivers/virtio/virtio_mem.c,
#: since v5.8). QEMU has plugged what the driver asks for before the driver hands it to the kernel: in a memory block
#: that is online already, only the end of its work tells when it has (virtio_mem_sbm_plug_any_sb).
RESIZE_QUEUE = "events_freezable"

_WORD = re.compile(r"[A-Za-z0-9_.:-]+")
#: the guest stops waiting this much before the deadline, so that its report still arrives in time
_REPORT_SECONDS = 0.5


def wait_driver(shell: Shell, bus: str, device: str, driver: str, *, deadline: Deadline) -> None:
    """Return when ``device`` of /sys/bus/``bus`` is bound to ``driver``.

    Raises UsageError for names that cannot be, DeadlineExpired (at whole seconds), GuestError.
    """
    for word in (bus, device, driver):
        if _WORD.fullmatch(word) is None:
            raise UsageError(f"{word!r} is no name of a bus, a device or a driver")
    seconds = floor(max(0.0, deadline.remaining() - _REPORT_SECONDS))
    done = shell.run(f"/{SCRIPTS}/wait-driver {bus} {device} {driver} {seconds}", deadline=deadline)
    if done.status == 1:
        seen = done.stdout.decode(errors="replace").strip()
        raise DeadlineExpired(f"{driver} to take {device} in the guest", deadline.seconds, last_seen=seen)
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise GuestError(f"the guest's wait-driver script failed (status {done.status}): {said}")


def wait_work(shell: Shell, queue: str, *, deadline: Deadline) -> None:
    """Return when no worker of the guest's kernel is at work for the workqueue ``queue``.

    What is queued and has not begun is not waited for.

    Raises UsageError for a name that cannot be, DeadlineExpired (at whole seconds), GuestError.
    """
    if _WORD.fullmatch(queue) is None:
        raise UsageError(f"{queue!r} is no name of a workqueue")
    seconds = floor(max(0.0, deadline.remaining() - _REPORT_SECONDS))
    done = shell.run(f"/{SCRIPTS}/wait-work {queue} {seconds}", deadline=deadline)
    if done.status == 1:
        seen = done.stdout.decode(errors="replace").split()
        raise DeadlineExpired(f"the guest's work of {queue} to end", deadline.seconds, last_seen=" ".join(seen))
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise GuestError(f"the guest's wait-work script failed (status {done.status}): {said}")


def switch_slot(shell: Shell, slot: int, on: bool, *, deadline: Deadline) -> None:
    """Power a hot-plug slot on or off: through pciehp, and where the kernel has none through the port's registers.

    Raises GuestError if the guest has no such slot or would not, DeadlineExpired.
    """
    done = shell.run(f"/{SCRIPTS}/slot {slot} {'on' if on else 'off'}", deadline=deadline)
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise GuestError(f"the guest's slot script failed (status {done.status}): {said}")
