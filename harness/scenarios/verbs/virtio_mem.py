# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of virtio-mem: plug it, change what it has plugged, wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.check import ResizeReport
from harness.config import arguments as arg
from harness.config.arguments import Args, Device
from harness.config.cold import VirtioMemArgs
from harness.deadline import Deadline
from harness.errors import QmpRefused, UsageError
from harness.model.devices.virtio_mem import PlugVirtioMem, Resize, VirtioMem
from harness.model.zones import MOVABLE
from harness.qemu import memdev
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.blocks import await_size
from harness.scenarios.verbs.plan import Impossible, Plan, PlannedDevice, require_aligned
from harness.scenarios.verbs.plugging import alignment, await_driver, backend, device_needs, power_up
from harness.scenarios.verbs.verb import Line, Verb
from harness.units import MIB, format_size


@dataclass(frozen=True, slots=True)
class ResizeArgs(Args):
    """``wait`` False continues while the guest is still resizing."""

    id: Device
    to: Annotated[int, arg.size(minimum=0)]
    wait: Annotated[bool, arg.boolean(lambda wait: "yes" if wait else "no")] = True


@dataclass(frozen=True, slots=True)
class SettleArgs(Args):
    """The device that was resized."""

    id: Device


def _require_requested(argument: str, device: PlannedDevice, requested: int, expect: str) -> None:
    if expect == "qemu-refused":
        return
    require_aligned(argument, requested, device.block)
    if requested > device.size:
        message = f"{format_size(requested)} is above the device's maximum of {format_size(device.size)}"
        raise Impossible(argument, message, "expect: qemu-refused, if that is the point")


def _follow_plug(plan: Plan, args: VirtioMemArgs, expect: str) -> None:
    plan.require_new(args.id)
    device = PlannedDevice(VirtioMemSpec, args.max, args.block, args.requested)
    require_aligned("max", args.max, args.block)
    _require_requested("requested", device, args.requested, expect)
    if expect != "qemu-refused":
        plan.add(args.id, device, args.node, "max")


def _follow_resize(plan: Plan, args: ResizeArgs, expect: str) -> None:
    device = plan.device("id", args.id, VirtioMemSpec)
    _require_requested("to", device, args.to, expect)
    if expect != "qemu-refused":
        device.requested = args.to


def _follow_settle(plan: Plan, args: SettleArgs, expect: str) -> None:
    plan.device("id", args.id, VirtioMemSpec)


def plug_virtio_mem(session: Session, args: VirtioMemArgs, deadline: Deadline) -> Outcome:
    """Hot-plug a virtio-mem device and wait for what it was asked to bring."""
    machine = session.guest.machine
    port = memdev.free_root_port(machine, deadline=deadline)
    device = VirtioMemSpec(
        args.id,
        args.max,
        backend=backend(args.backing),
        port=port,
        requested=args.requested,
        block_size=args.block,
        node=args.node,
    )
    done = memdev.plug(machine, device, deadline=deadline)
    power_up(session, args.id, deadline)
    block = memdev.memory_device(machine, args.id, deadline=deadline).block_size or 2 * MIB
    address = session.model.place(args.max, max(block, alignment(args.backing))).start
    session.apply(PlugVirtioMem(args.id, args.max, block, args.requested, args.node, port, address))
    outcome = Outcome(note=done.detail)
    await_driver(session, "virtio", session.model.expected().virtio_names[args.id], "virtio_mem", outcome, deadline)
    await_size(session, args.id, args.requested, outcome, deadline)
    return outcome


def resize(session: Session, args: ResizeArgs, deadline: Deadline) -> Outcome:
    """Change virtio-mem's requested-size."""
    outcome = Outcome()
    try:
        memdev.resize(session.guest.machine, args.id, args.to, deadline=deadline)
    except QmpRefused as refusal:
        outcome.refuse(refusal.desc, "qemu-refused")
        device = memdev.memory_device(session.guest.machine, args.id, deadline=deadline)
        outcome.resizes.append(ResizeReport(args.id, args.to, device.size, refusal.desc))
        return outcome
    unmovable = _holds_kernel_memory(session, args.id)
    session.apply(Resize(args.id, args.to))
    if args.wait:
        await_size(session, args.id, args.to, outcome, deadline)
        left = outcome.resizes[-1].size
        if unmovable and left > args.to:
            # Shrinking stops at unmovable pages, whose place is unknown outside of the guest.
            outcome.refuse(f"the guest keeps {format_size(left)}: blocks of {args.id} are online as kernel memory")
            outcome.pending = True
        elif left > args.to and (why := _why_kept(session, args.id)):
            outcome.refuse(f"the guest keeps {format_size(left)}: {why}")
    else:
        outcome.pending = True
        outcome.note = "not waited for"
    return outcome


def _why_kept(session: Session, id: str) -> str:
    kept = session.model.kept_blocks()
    stays = (
        f"memory{index} cannot go offline, {kept[index]}" for index in session.model.blocks_of(id) if index in kept
    )
    return next(stays, "")


def _holds_kernel_memory(session: Session, id: str) -> bool:
    zones = {session.model.blocks[index].zone for index in session.model.blocks_of(id)}
    return bool(zones - {None, MOVABLE})


def settle(session: Session, args: SettleArgs, deadline: Deadline) -> Outcome:
    """Wait for a resize that was started without waiting."""
    outcome = Outcome()
    device = session.model.devices.get(args.id)
    if not isinstance(device, VirtioMem):
        raise UsageError(f"{args.id} is not a virtio-mem device")
    await_size(session, args.id, device.requested, outcome, deadline)
    return outcome


PLUG_VIRTIO_MEM = Verb(
    VirtioMemArgs.verb,
    "hot-plug a virtio-mem device with a region of max bytes and a requested size",
    VirtioMemArgs,
    plug_virtio_mem,
    Line("plug vmem <max> [id]", fresh="vmem"),
    _follow_plug,
    needs=("virtio-mem",),
    more_needs=lambda args: device_needs(args.node, args.backing),
    parallel=True,
    room="takes",
)
RESIZE = Verb(
    "resize",
    "ask a virtio-mem device for another size; wait: false continues at once",
    ResizeArgs,
    resize,
    Line("resize <id> <to>"),
    _follow_resize,
    parallel=True,
    unwaited=lambda args: not args.wait,
)
SETTLE = Verb(
    "settle",
    "wait for a resize that was started with wait: false",
    SettleArgs,
    settle,
    Line("settle <id>"),
    _follow_settle,
)

VERBS = (PLUG_VIRTIO_MEM, RESIZE, SETTLE)
