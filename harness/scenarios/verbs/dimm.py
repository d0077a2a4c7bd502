# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb that plugs a pc-dimm."""

from __future__ import annotations

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


def _follow(plan: Plan, args: DimmArgs, expect: str) -> None:
    plan.require_new(args.id)
    # A size that must be refused need not be a multiple of a memory block.
    unit = SECTION if expect == "done" else GRANULE
    require_aligned("size", args.size, unit)
    if isinstance(args.address, int):
        require_aligned("address", args.address, unit)
    if expect != "qemu-refused":
        plan.add(args.id, PlannedDevice(DimmSpec, args.size, slot=args.slot), args.node, "size")


def plug_dimm(session: Session, args: DimmArgs, deadline: Deadline) -> Outcome:
    """Hot-add a pc-dimm; the kernel accepts only multiples of a memory block."""
    outcome, address = Outcome(), args.address
    if isinstance(address, str):
        address = align_down(session.layout.machine.device_window().end - args.size, session.layout.block_size)
    try:
        device = DimmSpec(args.id, args.size, address, backend(args.backing), args.node, args.slot)
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
        address = session.model.place(args.size, alignment(args.backing)).start
    why_not = _not_addable(session, AddrRange.sized(address, args.size))
    added = why_not is None and session.expect != "failed"
    session.apply(PlugDimm(args.id, args.size, args.node, args.slot, address, added))
    if session.expect == "failed":
        # The checks see whether it failed: an _OST of success proves nothing (acpi_memory_device_add, v6.12).
        outcome.refuse(outcome.note if why_not is None else f"the kernel cannot add {why_not}", "failed")
    elif why_not is not None:
        outcome.refuse(f"the kernel cannot add {why_not}")
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


PLUG_DIMM = Verb(
    DimmArgs.verb,
    "hot-add a pc-dimm",
    DimmArgs,
    plug_dimm,
    Line("plug dimm <size> [id]", fresh="dimm"),
    _follow,
    needs=("acpi-dimm",),
    more_needs=lambda args: device_needs(args.node, args.backing),
    parallel=True,
    room="takes",
    placed=lambda args: args.address is not None and args.slot is not None,
    place_hint="give the DIMM an address and a slot",
    can_fail=True,
)

VERBS = (PLUG_DIMM,)
