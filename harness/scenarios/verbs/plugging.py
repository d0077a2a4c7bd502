# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared parts of the verbs that plug and unplug devices; and unplug itself, which works on all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.check import UnplugReport
from harness.config import arguments as arg
from harness.config.arguments import Device
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, QmpRefused, UsageError
from harness.guest.drivers import switch_slot, wait_driver
from harness.model.actions import Unplug
from harness.model.devices.device import BACKEND_ALIGNMENT
from harness.qemu import memdev
from harness.qemu.devices.device import KINDS, BackendOptions, DeviceSpec, PciDeviceSpec
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.blocks import follow_reonlined_blocks
from harness.scenarios.verbs.plan import Impossible, Plan
from harness.scenarios.verbs.verb import Line, Verb
from harness.units import GIB, MIB, format_size

#: the pages that the memory of a device is made of; QEMU asks for transparent huge pages by itself
_PAGES = {f"hugetlb-{format_size(size)}": size for size in (2 * MIB, GIB)}


def backend(backing: str | None) -> BackendOptions:
    """The options of a memory backend for ``backing``, one of ``config.cold.BACKINGS``."""
    size = _PAGES.get(backing or "")
    return () if size is None else (("hugetlb", True), ("hugetlbsize", size))


def alignment(backing: str | None) -> int:
    """What QEMU aligns a device's address to: no less than the pages its memory is made of."""
    return _PAGES.get(backing or "", BACKEND_ALIGNMENT)


def device_needs(node: int, backing: str | None) -> tuple[str, ...]:
    """The requirements of a device on ``node``, made of ``backing``. Node 0 is where memory goes by itself."""
    return (*(("acpi-node",) if node else ()), *((f"host-{backing}",) if backing else ()))


def power_up(session: Session, id: str, deadline: Deadline) -> None:
    """Rescan the bus if the kernel is known to lack pciehp: otherwise the device would not be found."""
    if session.model.layout.features.pciehp is False:
        slot = memdev.pci_slot(session.guest.machine, id, deadline=deadline)
        switch_slot(session.guest.shell, slot, True, deadline=deadline)


def await_driver(session: Session, bus: str, device: str, driver: str, outcome: Outcome, deadline: Deadline) -> None:
    """Wait for a driver to bind; where it never does, the checks show what is missing for it."""
    try:
        wait_driver(session.guest.shell, bus, device, driver, deadline=deadline.at_most(session.options.settle))
    except DeadlineExpired as late:
        outcome.note = str(late)


def note_due(session: Session, id: str, outcome: Outcome) -> None:
    """A device stays as long as one of its online memory blocks cannot go offline."""
    kept = session.model.kept_blocks()
    held = [index for index in session.model.blocks_of(id) if index in kept and session.model.blocks[index].zone]
    if held:
        outcome.due = f"memory{held[0]} stays online, as {kept[held[0]]}"


@dataclass(frozen=True, slots=True)
class UnplugVerb(Verb):
    """Ask the guest to release a device, and wait for the outcome.

    ``by`` None: qemu, but guest for what QEMU does not unplug.
    """

    name = "unplug"
    summary = "hot-remove a device; by qemu asks with device_del, by guest powers its PCI slot off (all a pmem allows)"
    line = Line("unplug <id>")
    parallel = True
    room = "frees"

    id: Device
    by: Annotated[str | None, arg.choice("qemu", "guest")] = None

    def follow(self, plan: Plan, expect: str = "done") -> None:
        device = plan.device("id", self.id)
        if expect != "done":
            return
        if device.kind.unplugs == "nobody":
            raise Impossible("id", f"nobody can unplug a {device.kind.name}", "leave it, or expect: qemu-refused")
        if device.requested:
            message = f"QEMU keeps {self.id!r} as long as {format_size(device.requested)} of it are requested"
            raise Impossible("id", message, "resize it to 0 first, or expect: qemu-refused")
        del plan.devices[self.id]

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        outcome, device = Outcome(), session.model.devices.get(self.id)
        kind = DeviceSpec if device is None else KINDS[device.kind]
        if self.by == "guest" and device is not None and not issubclass(kind, PciDeviceSpec):
            raise UsageError(f"{self.id} is a {kind.name}: it has no PCI slot to power off", hint="remove `by`")
        try:
            if self.by == "guest" or (self.by is None and kind.unplugs == "guest"):
                done = _eject(session, self.id, deadline)
            else:
                done = memdev.unplug(session.guest.machine, self.id, deadline=deadline)
        except QmpRefused as refusal:
            outcome.refuse(refusal.desc, "qemu-refused")
            return outcome
        refused = done.kind == "refused"
        outcome.note = done.detail
        outcome.unplugs.append(UnplugReport(self.id, unplug_endings(self.id, done), refused))
        if refused:
            outcome.refuse(f"the guest keeps {self.id}: {done.detail}")
            note_due(session, self.id, outcome)
            follow_reonlined_blocks(session, self.id, deadline)
        else:
            session.apply(Unplug(self.id))
        return outcome


def _eject(session: Session, id: str, deadline: Deadline) -> memdev.HotplugOutcome:
    """Have the guest power the slot off."""
    machine = session.guest.machine
    mark, slot = machine.qmp.seq, memdev.pci_slot(machine, id, deadline=deadline)
    switch_slot(session.guest.shell, slot, False, deadline=deadline)
    return memdev.await_ejected(machine, id, since=mark, deadline=deadline)


def unplug_endings(id: str, done: memdev.HotplugOutcome) -> tuple[str, ...]:
    """The terminal events of an unplug, in order: what QMP-2 counts."""
    names = [
        event.name
        for event in done.events
        if event.name in ("DEVICE_DELETED", "MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR")
        and event.data.get("device") == id
    ]
    if done.kind == "refused" and not names:
        names.append("ACPI_OST_REFUSED")
    return tuple(names)
