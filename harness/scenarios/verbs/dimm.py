# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb that plugs a pc-dimm."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.arguments import GRANULE
from harness.config.cold import DimmArgs
from harness.config.guest import SECTION
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, QmpRefused
from harness.model.devices.dimm import PlugDimm
from harness.qemu import memdev
from harness.qemu.devices.dimm import DimmSpec
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Plan, PlannedDevice, require_aligned
from harness.scenarios.verbs.plugging import alignment, backend, device_needs
from harness.scenarios.verbs.verb import Line, Verb
from harness.units import AddrRange, align_down


@dataclass(frozen=True, slots=True)
class PlugDimmVerb(DimmArgs, Verb):
    """Hot-add a pc-dimm; the kernel accepts only multiples of a memory block."""

    name = DimmArgs.verb
    summary = "hot-add a pc-dimm"
    line = Line("plug dimm <size> [id]", fresh="dimm")
    needs = ("acpi-dimm",)
    parallel = True
    room = "takes"
    place_hint = "give the DIMM an address and a slot"
    can_fail = True

    def requirements(self) -> tuple[str, ...]:
        return (*self.needs, *device_needs(self.node, self.backing))

    @property
    def placed(self) -> bool:
        return self.address is not None and self.slot is not None

    def follow(self, plan: Plan, expect: str = "done") -> None:
        plan.require_new(self.id)
        # A size that must be refused need not be a multiple of a memory block.
        unit = SECTION if expect == "done" else GRANULE
        require_aligned("size", self.size, unit)
        if isinstance(self.address, int):
            require_aligned("address", self.address, unit)
        if expect != "qemu-refused":
            plan.add(self.id, PlannedDevice(DimmSpec, self.size, slot=self.slot), self.node, "size")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        outcome, address = Outcome(), self.address
        if isinstance(address, str):
            address = align_down(session.layout.machine.device_window().end - self.size, session.layout.block_size)
        try:
            device = DimmSpec(self.id, self.size, address, backend(self.backing), self.node, self.slot)
            done = memdev.plug(session.guest.machine, device, deadline=deadline.at_most(session.options.settle))
            outcome.note = done.detail
            if done.kind == "refused":
                outcome.refuse(done.detail)
        except QmpRefused as refusal:
            outcome.refuse(refusal.desc, "qemu-refused")
            return outcome
        except DeadlineExpired as late:
            outcome.note = str(late)
        if address is None:
            address = session.model.place(self.size, alignment(self.backing)).start
        place = AddrRange.sized(address, self.size)
        why_not = _not_addable(session, place)
        added = why_not is None and session.expect != "failed"
        session.apply(PlugDimm(self.id, self.size, self.node, self.slot, address, added))
        if session.expect == "failed":
            # The checks see whether it failed: an _OST of success proves nothing (acpi_memory_device_add, v6.12).
            note = outcome.note if why_not is None else f"the kernel cannot add {why_not}"
            outcome.refuse(note, "failed", said="", place=place)
        elif why_not is not None:
            outcome.refuse(f"the kernel cannot add {why_not}", place=place)
        return outcome


def _not_addable(session: Session, place: AddrRange) -> str | None:
    """Why the kernel must refuse a DIMM (check_hotplug_memory_range, mhp_range_allowed, v6.12), or None."""
    if session.guest.boot != "acpi":
        return "a DIMM without ACPI"
    if not place.is_aligned(session.layout.block_size):
        return "a range that is not a multiple of a memory block"
    kernel = session.layout.kernel
    if kernel is not None and not kernel.linear_window.covers(kernel.linear(place)):
        return f"{place}: it lies outside of the linear map ({kernel.physical(kernel.linear_window)})"
    return None
