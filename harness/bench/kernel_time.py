# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel itself takes for memory hotplug: each operation alone, without waiting for more than its end.

From the command of QMP to the event that ends it, by QEMU's clock, which the guest's follows; or a write to sysfs, by
the guest's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.deadline import Deadline
from harness.errors import InfraError
from harness.guest.memory_blocks import Target, set_blocks
from harness.qemu import memdev
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.qmp import QmpEvent
from harness.scenarios.boot import BootedGuest

#: ACPI_OST_SC_INSERT_IN_PROGRESS (include/linux/acpi.h)
_IN_PROGRESS = 0x80

#: does one operation with the device of that id, and returns its seconds; raises InfraError if it is refused
Alone = Callable[[BootedGuest, str, Deadline], float]


def add(size: int) -> Alone:
    """Plug a pc-dimm; ACPI's _OST ends it."""

    def alone(guest: BootedGuest, device: str, deadline: Deadline) -> float:
        machine, spec = guest.machine, DimmSpec(device, size)
        # The memory itself comes from the host.
        machine.add_backend(spec.object_add(), deadline)
        since, start = machine.qmp.seq, time.time()
        machine.qmp.execute("device_add", spec.device_add(), deadline=deadline)
        answer = machine.qmp.wait_event(
            lambda event: event.name == "ACPI_DEVICE_OST" and _status(event) != _IN_PROGRESS,
            since=since,
            deadline=deadline,
            awaited=f"the guest's _OST answer to the plug of {device}",
        )
        if _status(answer) != 0:
            raise InfraError(f"a timed operation failed: add: {answer}")
        return answer.timestamp - start

    return alone


def _status(event: QmpEvent) -> object:
    return event.data.get("info", {}).get("status")


def remove(guest: BootedGuest, device: str, deadline: Deadline) -> float:
    """Unplug a pc-dimm; the guest's last _OST ends it."""
    start = time.time()
    done = memdev.unplug(guest.machine, device, deadline=deadline)
    if done.kind != "deleted":
        raise InfraError(f"a timed operation failed: remove: {done.detail}")
    return done.events[-1].timestamp - start


def set_all(to: Target, block_size: int) -> Alone:
    """Write ``to`` to the state of every memory block of a device."""

    def alone(guest: BootedGuest, device: str, deadline: Deadline) -> float:
        place = memdev.memory_device(guest.machine, device, deadline=deadline).range
        blocks = range(place.start // block_size, place.end // block_size)
        total = 0.0
        for outcome in set_blocks(guest.shell, blocks, to, deadline=deadline):
            if not outcome.ok:
                raise InfraError(f"a timed operation failed: memory{outcome.index} {to}: {outcome.error}")
            if outcome.seconds is None:
                hint = "use the guest root of memhp fetch"
                raise InfraError("this guest root has no agent, which times writes to sysfs", hint=hint)
            total += outcome.seconds
        return total

    return alone


def resize(size: int) -> Alone:
    """Resize a virtio-mem device; QEMU's events of it come once a second at most, so its size is asked all the time."""

    def alone(guest: BootedGuest, device: str, deadline: Deadline) -> float:
        start = time.monotonic()
        memdev.resize(guest.machine, device, size, deadline=deadline)
        while memdev.memory_device(guest.machine, device, deadline=deadline).size != size:
            deadline.check(f"virtio-mem {device} to be resized")
        return time.monotonic() - start

    return alone
