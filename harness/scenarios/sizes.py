# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that change what a virtio-mem device has plugged, and the wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.check import ResizeReport
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, QmpRefused, UsageError
from harness.guest.devices import RESIZE_QUEUE, wait_work
from harness.model.devices.virtio_mem import Resize, VirtioMem
from harness.model.zones import MOVABLE
from harness.qemu import memdev
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.units import format_size

Arguments = Mapping[str, Any]


def resize(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Change virtio-mem's requested-size; ``wait: false`` goes on while the guest is still at it."""
    outcome = Outcome()
    try:
        memdev.resize(session.guest.machine, args["id"], args["to"], deadline=deadline)
    except QmpRefused as refusal:
        outcome.refuse(refusal.desc, "qemu-refused")
        device = memdev.memory_device(session.guest.machine, args["id"], deadline=deadline)
        outcome.resizes.append(ResizeReport(args["id"], args["to"], device.size, refusal.desc))
        return outcome
    unmovable = _holds_kernel_memory(session, args["id"])
    session.apply(Resize(args["id"], args["to"]))
    if args.get("wait", True):
        await_size(session, args["id"], args["to"], outcome, deadline)
        if unmovable and outcome.resizes[-1].size > args["to"]:
            # Shrinking stops at what cannot be moved, and where that lies nobody outside the guest can know.
            size = format_size(outcome.resizes[-1].size)
            outcome.refuse(f"the guest keeps {size}: blocks of {args['id']} are online as kernel memory")
            outcome.pending = True
    else:
        outcome.pending = True
        outcome.note = "not waited for"
    return outcome


def _holds_kernel_memory(session: Session, id: str) -> bool:
    zones = {session.model.blocks[index].zone for index in session.model.blocks_of(id)}
    return bool(zones - {None, MOVABLE})


def settle(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Wait for a resize that was started without waiting."""
    outcome = Outcome()
    device = session.model.devices.get(args["id"])
    if not isinstance(device, VirtioMem):
        raise UsageError(f"{args['id']} is not a virtio-mem device")
    await_size(session, args["id"], device.requested, outcome, deadline)
    return outcome


def await_size(session: Session, id: str, requested: int, outcome: Outcome, deadline: Deadline) -> None:
    """Wait for what the model says the driver reaches; where it stops short, the report shows by how much."""
    device = session.model.devices[id]
    target = device.size if isinstance(device, VirtioMem) else requested
    try:
        memdev.wait_size(session.guest.machine, id, target, deadline=deadline.at_most(session.options.settle))
    except DeadlineExpired as late:
        outcome.note = str(late)
    try:
        wait_work(session.guest.shell, RESIZE_QUEUE, deadline=deadline.at_most(session.options.settle))
    except DeadlineExpired as late:
        outcome.note = outcome.note or str(late)
    size = memdev.memory_device(session.guest.machine, id, deadline=deadline).size
    outcome.note = outcome.note or f"{format_size(size)} plugged"
    outcome.resizes.append(ResizeReport(id, requested, size))
