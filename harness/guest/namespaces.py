# SPDX-License-Identifier: GPL-2.0-or-later
"""Persistent memory in the guest: namespaces, device dax, and dax as system RAM (drivers/nvdimm, drivers/dax).

Each operation writes to sysfs in one round trip: tens of milliseconds in an emulated guest, where ndctl and daxctl take
hundreds, and no tool is needed in the guest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.deadline import Deadline
from harness.errors import GuestError, UnsupportedError, UsageError
from harness.guest.overlay import SCRIPTS
from harness.guest.ssh import Shell
from harness.units import MIB

#: where the memmap of the persistent memory is stored: in RAM, or on the device (ndctl's --map)
Map = Literal["mem", "dev"]

_MODES = {"mem": "ram", "dev": "pmem"}
_NAME = re.compile(r"(namespace|dax)[0-9]{1,9}\.[0-9]{1,9}")
_REFUSED, _CANNOT, _NOTHING, _NO_STATE = 3, 4, 5, 6


@dataclass(frozen=True, slots=True)
class PmemOutcome:
    """``ok`` with the name of the new device, or the kernel's refusal; both in ``text``.

    ``left`` is how many more allocations it would have taken for the one that should fail: 0 if that failed.
    """

    ok: bool
    text: str
    left: int = 0


def create_devdax(
    shell: Shell, namespace: str, *, map: Map | str = "mem", align: int = 2 * MIB, deadline: Deadline
) -> PmemOutcome:
    """Turn ``namespace``, in any mode but not in use as system RAM, into a device dax; ``align`` is bytes.

    The device is named after the namespace: namespace0.0 gives dax0.0. Raises UsageError for an unknown ``map``,
    GuestError if the kernel has no such driver or namespace, DeadlineExpired.
    """
    if map not in _MODES:
        raise UsageError(f"invalid memmap location: {map!r}", hint="mem (in RAM) or dev (on the device)")
    return _run(shell, f"devdax {_checked(namespace)} {_MODES[map]} {align}", deadline)


def destroy(shell: Shell, namespace: str, *, deadline: Deadline) -> PmemOutcome:
    """Make ``namespace`` raw again, as it was when plugged. Raises as ``create_devdax``."""
    return _run(shell, f"raw {_checked(namespace)}", deadline)


#: kind of failing allocation: its directory in debugfs (mm/fail_page_alloc.c, mm/failslab.c; v6.12)
_FAULTS = {"slab": "failslab", "pages": "fail_page_alloc"}


def to_system_ram(
    shell: Shell, dax: str, *, fail: int | None = None, of: str = "slab", own: bool = False, deadline: Deadline
) -> PmemOutcome:
    """Bind device dax ``dax`` to the kmem driver; auto_online_blocks decides whether its blocks come online.

    ``fail`` makes the N-th allocation (from 1) that the kernel does on the way fail, counting slab objects or whole
    pages (``of``); with it, ``own`` puts the struct pages of the memory into the memory itself (memmap_on_memory_store,
    drivers/dax/bus.c, since v6.8). Raises as ``create_devdax``.
    """
    failing = "" if fail is None else f" {fail} {_FAULTS[of]} {int(own)}"
    return _run(shell, f"kmem {_checked(dax)}{failing}", deadline)


def set_state(shell: Shell, dax: str, state: str, *, patience: int | None = None, deadline: Deadline) -> PmemOutcome:
    """Write ``state`` to the state of a kmem dax device; a signal interrupts the write after ``patience`` seconds.

    Raises UnsupportedError without that file (state_store, drivers/dax/kmem.c, since v7.3), and as ``create_devdax``.
    """
    return _run(shell, f"state {_checked(dax)} {state}" + ("" if patience is None else f" {patience}"), deadline)


def to_devdax(shell: Shell, dax: str, *, deadline: Deadline) -> PmemOutcome:
    """Unbind ``dax`` from the kmem driver; refused unless all its blocks are offline. Raises as ``create_devdax``."""
    return _run(shell, f"unkmem {_checked(dax)}", deadline)


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} is neither a namespace nor a dax device", hint="namespace0.0 or dax0.0")
    return name


def _run(shell: Shell, arguments: str, deadline: Deadline) -> PmemOutcome:
    done = shell.run(f"/{SCRIPTS}/pmem {arguments}", deadline=deadline)
    text, _, left = done.text.strip().partition("\nleft ")
    if done.status in (0, _REFUSED):
        return PmemOutcome(done.status == 0, text, int(left) if left.isdecimal() else 0)
    if done.status == _CANNOT:
        raise GuestError(
            f"the guest's kernel has {text}",
            hint="it takes CONFIG_DEV_DAX_PMEM, CONFIG_DEV_DAX_KMEM and the device's driver (CONFIG_VIRTIO_PMEM)",
        )
    if done.status == _NO_STATE:
        raise UnsupportedError("dax-state", f"this kernel has no {text}", hint="drivers/dax/kmem.c has it since v7.3")
    if done.status == _NOTHING:
        raise GuestError(
            f"the guest has {text}", hint="is the device plugged, and its driver (CONFIG_VIRTIO_PMEM) set?"
        )
    failure = f"the guest's pmem script failed ({arguments}, status {done.status}): {text} {done.said()}"
    raise GuestError(failure.rstrip())
