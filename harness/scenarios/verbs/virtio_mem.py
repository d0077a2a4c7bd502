# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of virtio-mem: plug it, change what it has plugged, wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.check import ResizeReport
from harness.config import arguments as arg
from harness.config.arguments import Device
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


def _require_requested(argument: str, device: PlannedDevice, requested: int, expect: str) -> None:
    if expect == "qemu-refused":
        return
    require_aligned(argument, requested, device.block)
    if requested > device.size:
        message = f"{format_size(requested)} is above the device's maximum of {format_size(device.size)}"
        raise Impossible(argument, message, "expect: qemu-refused, if that is the point")


@dataclass(frozen=True, slots=True)
class PlugVirtioMemVerb(VirtioMemArgs, Verb):
    """Hot-plug a virtio-mem device and wait for what it was asked to bring."""

    name = VirtioMemArgs.verb
    summary = "hot-plug a virtio-mem device with a region of max bytes and a requested size"
    line = Line("plug vmem <max> [id]", fresh="vmem")
    needs = ("virtio-mem",)
    parallel = True
    room = "takes"

    def requirements(self) -> tuple[str, ...]:
        return (*self.needs, *device_needs(self.node, self.backing))

    def follow(self, plan: Plan, expect: str = "done") -> None:
        plan.require_new(self.id)
        device = PlannedDevice(VirtioMemSpec, self.max, self.block, self.requested)
        require_aligned("max", self.max, self.block)
        _require_requested("requested", device, self.requested, expect)
        if expect != "qemu-refused":
            plan.add(self.id, device, self.node, "max")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        machine = session.guest.machine
        port = memdev.free_root_port(machine, deadline=deadline)
        device = VirtioMemSpec(
            self.id,
            self.max,
            backend=backend(self.backing),
            port=port,
            requested=self.requested,
            block_size=self.block,
            node=self.node,
        )
        done = memdev.plug(machine, device, deadline=deadline)
        power_up(session, self.id, deadline)
        block = memdev.memory_device(machine, self.id, deadline=deadline).block_size or 2 * MIB
        address = session.model.place(self.max, max(block, alignment(self.backing))).start
        session.apply(PlugVirtioMem(self.id, self.max, block, self.requested, self.node, port, address))
        outcome = Outcome(note=done.detail)
        await_driver(session, "virtio", session.model.expected().virtio_names[self.id], "virtio_mem", outcome, deadline)
        await_size(session, self.id, self.requested, outcome, deadline)
        return outcome


@dataclass(frozen=True, slots=True)
class ResizeVerb(Verb):
    """Change virtio-mem's requested-size; ``wait`` False continues while the guest is still resizing."""

    name = "resize"
    summary = "ask a virtio-mem device for another size; wait: false continues at once"
    line = Line("resize <id> <to>")
    parallel = True

    id: Device
    to: Annotated[int, arg.size(minimum=0)]
    wait: Annotated[bool, arg.boolean(lambda wait: "yes" if wait else "no")] = True

    @property
    def unwaited(self) -> bool:
        return not self.wait

    def follow(self, plan: Plan, expect: str = "done") -> None:
        device = plan.device("id", self.id, VirtioMemSpec)
        _require_requested("to", device, self.to, expect)
        if expect != "qemu-refused":
            device.requested = self.to

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        outcome = Outcome()
        try:
            memdev.resize(session.guest.machine, self.id, self.to, deadline=deadline)
        except QmpRefused as refusal:
            outcome.refuse(refusal.desc, "qemu-refused")
            device = memdev.memory_device(session.guest.machine, self.id, deadline=deadline)
            outcome.resizes.append(ResizeReport(self.id, self.to, device.size, refusal.desc))
            return outcome
        unmovable = _holds_kernel_memory(session, self.id)
        session.apply(Resize(self.id, self.to))
        if not self.wait:
            outcome.pending = True
            outcome.note = "not waited for"
            return outcome
        await_size(session, self.id, self.to, outcome, deadline)
        left = outcome.resizes[-1].size
        if unmovable and left > self.to:
            # Shrinking stops at unmovable pages, whose place is unknown outside of the guest.
            outcome.refuse(f"the guest keeps {format_size(left)}: blocks of {self.id} are online as kernel memory")
            outcome.pending = True
        elif left > self.to and (why := _why_kept(session, self.id)):
            outcome.refuse(f"the guest keeps {format_size(left)}: {why}")
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


@dataclass(frozen=True, slots=True)
class SettleVerb(Verb):
    """Wait for a resize that was started without waiting."""

    name = "settle"
    summary = "wait for a resize that was started with wait: false"
    line = Line("settle <id>")

    id: Device

    def follow(self, plan: Plan, expect: str = "done") -> None:
        plan.device("id", self.id, VirtioMemSpec)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        outcome = Outcome()
        device = session.model.devices.get(self.id)
        if not isinstance(device, VirtioMem):
            raise UsageError(f"{self.id} is not a virtio-mem device")
        await_size(session, self.id, device.requested, outcome, deadline)
        return outcome
