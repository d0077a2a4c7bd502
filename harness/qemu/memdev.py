# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices over QMP: plug, unplug, resize, query.

If QEMU refuses (a size that does not fit, a duplicate id), QmpRefused is raised and nothing has changed. If the guest
refuses, that is an outcome. A missing answer raises DeadlineExpired.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, QemuError, QmpRefused, UsageError
from harness.qemu.devices.device import DeviceSpec, PciDeviceSpec, backend_id, parse_memory_devices
from harness.qemu.machine import Machine
from harness.qemu.machine_spec import root_port_slot
from harness.qemu.qmp import QmpEvent
from harness.state import MemoryDevice
from harness.units import format_size

#: seconds to wait for the guest's last _OST, which the same function sends right after the eject (acpi_device_hotplug)
_FINAL_OST_SECONDS = 5.0
#: seconds to rely on size-change events alone: a sixteenth of what was waited, from the first to the second value
_SIZE_SECONDS = 0.002, 0.05

# ACPI 6.5, 6.3.5 "_OST": source events, then status codes; include/linux/acpi.h names them ACPI_OST_*.
_PLUG_SOURCES = frozenset({0x0, 0x1, 0x200})
_EJECT_SOURCES = frozenset({0x3, 0x103})
_SUCCESS = 0x0
_INSERT_IN_PROGRESS = 0x80
_EJECT_IN_PROGRESS = 0x84
_COMMON_STATUS = {0x1: "non-specific failure", 0x2: "unrecognized notify code"}
_INSERT_STATUS = {**_COMMON_STATUS, 0x81: "device driver load failure", 0x82: "device insertion not supported"}
_EJECT_STATUS = {
    **_COMMON_STATUS,
    0x80: "device ejection not supported",
    0x81: "device in use by an application",
    0x82: "device busy",
    0x83: "ejection dependency is busy or not supported",
}


@dataclass(frozen=True, slots=True)
class HotplugOutcome:
    """How a plug or an unplug ended; ``events`` are all events from the request to the verdict.

    ``done``: the guest confirmed the plug (a guest that fails to add the memory of a DIMM may still do so).
    ``accepted``: QEMU has done its part of the plug, and with this kind of device or boot the guest cannot answer; look
    inside the guest. ``deleted``: device and backend are gone. ``refused``: the guest reported a failure, given in
    ``detail``; QEMU keeps the device plugged.
    """

    id: str
    kind: Literal["done", "accepted", "deleted", "refused"]
    events: tuple[QmpEvent, ...]
    detail: str


def plug(
    machine: Machine, device: DeviceSpec, *, deadline: Deadline, await_guest: bool | None = None
) -> HotplugOutcome:
    """Plug ``device``; if ACPI announces it to the guest, wait for the guest's ``_OST`` answer.

    With ``await_guest`` None, wait if the machine has ACPI and its CPUs run: otherwise there is no answer. For a PCI
    device the guest does not answer: for virtio-mem, wait for its size with ``wait_size``. Raises UsageError (id, size,
    no free root port), QmpRefused (nothing changed), DeadlineExpired if the guest does not answer.
    """
    if isinstance(device, PciDeviceSpec):
        device = dataclasses.replace(device, port=device.port or free_root_port(machine, deadline=deadline))
        mark = _add(machine, device, deadline)
        return HotplugOutcome(device.id, "accepted", machine.qmp.events(mark), f"plugged into {device.port}")
    if await_guest is None:
        status = machine.qmp.execute("query-status", deadline=deadline)
        await_guest = machine.spec.boot == "acpi" and bool(status["running"])
    mark = _add(machine, device, deadline)
    if not await_guest:
        return HotplugOutcome(device.id, "accepted", machine.qmp.events(mark), "the guest was not asked")
    return _await_plugged(machine, device.id, mark, deadline)


def _await_plugged(machine: Machine, device: str, mark: int, deadline: Deadline) -> HotplugOutcome:
    def verdict(event: QmpEvent) -> tuple[int, QmpEvent] | None:
        ost = _ost(event, _PLUG_SOURCES, device=device)
        return None if ost in (None, _INSERT_IN_PROGRESS) else (ost or 0, event)

    try:
        ost, last = machine.qmp.wait_for(
            verdict, since=mark, deadline=deadline, awaited=f"the guest's _OST answer to the plug of {device}"
        )
    except DeadlineExpired as error:
        error.hint = "a kernel without CONFIG_ACPI_HOTPLUG_MEMORY never answers"
        raise
    events = machine.qmp.events(mark)[: last.seq - mark]
    return HotplugOutcome(device, "refused" if ost else "done", events, describe_ost(ost, _INSERT_STATUS))


def unplug(machine: Machine, device: str, *, deadline: Deadline) -> HotplugOutcome:
    """Ask the guest to release ``device``, wait for the outcome, and delete its backend once the device is gone.

    The verdict is the first of DEVICE_DELETED, MEM_UNPLUG_ERROR, DEVICE_UNPLUG_GUEST_ERROR and a failing ACPI ``_OST``.
    After a DIMM is gone, also wait for the guest's last ``_OST`` (status 0), which ends its hotplug work. For a PCI
    device the guest's pciehp driver waits five seconds, in which an operator could press the attention button again
    (drivers/pci/hotplug/pciehp_ctrl.c), and needs one more to power the slot off; ``await_ejected`` is faster. Raises
    QmpRefused if QEMU itself refuses (unknown id, virtio-mem not empty, virtio-pmem always), DeadlineExpired if there
    is no verdict.
    """
    known = {found.id: found for found in memory_devices(machine, deadline=deadline)}.get(device)
    slot, backend = (None, backend_id(device)) if known is None else (known.slot, known.backend)
    mark = machine.qmp.seq
    machine.qmp.execute("device_del", {"id": device}, deadline=deadline)

    def verdict(event: QmpEvent) -> tuple[str, QmpEvent] | None:
        if event.data.get("device") == device:
            if event.name == "DEVICE_DELETED":
                return "", event
            if event.name in ("MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR"):
                return str(event.data.get("msg", event.name)), event
        ost = _ost(event, _EJECT_SOURCES, device=device)
        if ost in (None, _SUCCESS, _EJECT_IN_PROGRESS):
            return None
        return describe_ost(ost or 0, _EJECT_STATUS), event

    refusal, last = machine.qmp.wait_for(
        verdict, since=mark, deadline=deadline, awaited=f"the end of the unplug of {device}"
    )
    if refusal:
        return HotplugOutcome(device, "refused", machine.qmp.events(mark)[: last.seq - mark], refusal)
    machine.drop_backend(backend, deadline)
    detail = "DEVICE_DELETED"
    answers = (_ost(event, _EJECT_SOURCES, device=device) for event in machine.qmp.events(mark))
    if slot is not None and any(answer is not None for answer in answers):
        final = _await_final_ost(machine, slot, last.seq, deadline)
        detail += f", final {final}" if final else f", no final _OST within {_FINAL_OST_SECONDS:g} s"
    return HotplugOutcome(device, "deleted", machine.qmp.events(mark), detail)


def await_ejected(machine: Machine, device: str, *, since: int, deadline: Deadline) -> HotplugOutcome:
    """Wait until the guest itself has ejected a PCI device, and delete its backend.

    The guest does so by writing 0 to ``/sys/bus/pci/slots/N/power``, N from ``pci_slot``. This takes a second, without
    the wait for an operator, and is the only way to remove a virtio-pmem, whose device_del QEMU refuses
    (virtio_md_pci_unplug_request in hw/virtio/virtio-md-pci.c). ``since`` is ``machine.qmp.seq`` from before the write.
    Raises DeadlineExpired if the device stays.
    """
    last = machine.qmp.wait_event(
        lambda event: event.name == "DEVICE_DELETED" and event.data.get("device") == device,
        since=since,
        deadline=deadline,
        awaited=f"the guest to eject {device}",
    )
    machine.drop_backend(backend_id(device), deadline)
    return HotplugOutcome(device, "deleted", machine.qmp.events(since)[: last.seq - since], "ejected by the guest")


def pci_slot(machine: Machine, device: str, *, deadline: Deadline) -> int:
    """Number of the slot of ``device``, as the guest names it in /sys/bus/pci/slots; raises QemuError."""
    arguments = {"path": f"/machine/peripheral/{device}", "property": "parent_bus"}
    try:
        bus = machine.qmp.execute("qom-get", arguments, deadline=deadline)
    except QmpRefused as error:
        raise QemuError(f"QEMU has no device {device!r}") from error
    match = re.fullmatch(r".*/rp(\d+)", str(bus))
    if match is None:
        raise QemuError(f"{device} is on {bus}, not in a root port")
    return root_port_slot(int(match[1]))


def resize(machine: Machine, device: str, requested: int, *, deadline: Deadline) -> None:
    """Ask virtio-mem ``device`` for ``requested`` bytes, which the guest follows (``wait_size``). Raises QmpRefused."""
    arguments = {"path": f"/machine/peripheral/{device}", "property": "requested-size", "value": requested}
    machine.qmp.execute("qom-set", arguments, deadline=deadline)


def wait_size(machine: Machine, device: str, size: int, *, deadline: Deadline) -> tuple[QmpEvent, ...]:
    """Wait until virtio-mem ``device`` has exactly ``size`` bytes plugged; return the events seen meanwhile.

    QEMU rate-limits MEMORY_DEVICE_SIZE_CHANGE to one per second (monitor/monitor.c), so the size is queried first, at
    each event, and in between as ``size_pause`` says. Raises DeadlineExpired with the size last seen.
    """
    start, began = (mark := machine.qmp.seq), time.monotonic()
    awaited = f"virtio-mem {device} to have {format_size(size)} plugged"
    now: int | None = None
    while True:
        with contextlib.suppress(DeadlineExpired):
            now = memory_device(machine, device, deadline=deadline).size
        if now == size:
            return machine.qmp.events(start)
        deadline.check(awaited, None if now is None else f"{format_size(now)} plugged")
        with contextlib.suppress(DeadlineExpired):
            mark = machine.qmp.wait_event(
                lambda event: event.name == "MEMORY_DEVICE_SIZE_CHANGE" and event.data.get("id") == device,
                since=mark,
                deadline=deadline.at_most(size_pause(time.monotonic() - began)),
                awaited=awaited,
            ).seq


def size_pause(waited: float) -> float:
    """Seconds until the size is queried again after ``waited`` seconds: little is added to a short wait."""
    least, most = _SIZE_SECONDS
    return min(most, max(least, waited / 16))


def memory_devices(machine: Machine, *, deadline: Deadline) -> tuple[MemoryDevice, ...]:
    """The devices that QMP's query-memory-devices reports, in address order; raises QemuError for an unknown kind."""
    return parse_memory_devices(machine.qmp.execute("query-memory-devices", deadline=deadline))


def memory_device(machine: Machine, device: str, *, deadline: Deadline) -> MemoryDevice:
    """The memory device ``device``; raises QemuError if there is none."""
    for found in memory_devices(machine, deadline=deadline):
        if found.id == device:
            return found
    raise QemuError(f"QEMU has no memory device {device!r}")


def free_root_port(machine: Machine, *, deadline: Deadline) -> str:
    """Id of the first empty root port; raises UsageError if all are in use.

    Queries QEMU's object tree, not the guest's PCI configuration, so it is right before the guest has scanned the bus.
    """
    for number in range(machine.spec.root_ports):
        port = f"rp{number}"
        children = machine.qmp.execute("qom-list", {"path": f"/machine/peripheral/{port}/{port}"}, deadline=deadline)
        if not any(child["name"].startswith("child[") for child in children):
            return port
    raise UsageError(f"all {machine.spec.root_ports} root ports are in use", hint="give the machine more root ports")


def describe_ost(status: int, names: Mapping[int, str]) -> str:
    """Describe an ``_OST`` status in the words of the ACPI specification."""
    if status == _SUCCESS:
        return "_OST status 0"
    return f"_OST status {status}: {names.get(status, 'a status the ACPI specification does not name')}"


def _add(machine: Machine, device: DeviceSpec, deadline: Deadline) -> int:
    """Add backend and device, or neither; return the number of the last event before the device was added."""
    device.check()
    machine.add_backend(device.object_add(), deadline)
    mark = machine.qmp.seq
    try:
        machine.qmp.execute("device_add", device.device_add(), deadline=deadline)
    except QmpRefused:
        machine.drop_backend(backend_id(device.id), deadline)
        raise
    return mark


def _ost(event: QmpEvent, sources: frozenset[int], *, device: str = "", slot: int | None = None) -> int | None:
    """The status of an ``_OST`` event of ``device``, or of ``slot``, that answers one of ``sources``."""
    info = event.data.get("info", {})
    if event.name != "ACPI_DEVICE_OST" or info.get("source") not in sources:
        return None
    meant = info.get("device") == device if slot is None else info.get("slot") == str(slot)
    return int(info["status"]) if meant else None


def _await_final_ost(machine: Machine, slot: int, since: int, deadline: Deadline) -> str | None:
    # The device is gone, so QEMU knows only the slot.
    def final(event: QmpEvent) -> str | None:
        status = _ost(event, _EJECT_SOURCES, slot=slot)
        return None if status is None else describe_ost(status, _EJECT_STATUS)

    with contextlib.suppress(DeadlineExpired):
        return machine.qmp.wait_for(
            final, since=since, deadline=deadline.at_most(_FINAL_OST_SECONDS), awaited="the guest's last _OST"
        )
    return None
