# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of persistent memory: plug it, and make it a namespace, device-dax or system RAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.config import arguments as arg
from harness.config.arguments import GRANULE, Device, NewDevice, Patience, PowerOfTwo
from harness.deadline import Deadline
from harness.errors import UsageError
from harness.guest import namespaces
from harness.model.devices.pmem import Pmem, SetDaxState, SetPmemMode
from harness.model.devices.virtio_pmem import PlugVirtioPmem
from harness.qemu import memdev
from harness.qemu.devices.virtio_pmem import VirtioPmemSpec
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.blocks import POLICIES
from harness.scenarios.verbs.plan import Impossible, Plan, PlannedDevice, require_aligned
from harness.scenarios.verbs.plugging import await_driver, note_due, power_up
from harness.scenarios.verbs.verb import Line, Verb

#: what can be written to daxX.Y/state (dax_kmem_parse_state, drivers/dax/kmem.c, v7.3); the kernel refuses ``offline``
DAX_STATES = ("unplugged", *POLICIES)


def require_mode(plan: Plan, verb: str, id: str, wanted: tuple[str, ...], before: str) -> PlannedDevice:
    """The pmem ``id`` is in one of the modes that ``verb`` takes it from; ``before`` would bring it there."""
    device = plan.pmem("id", id)
    if device.mode not in wanted:
        message = f"{id!r} is in {device.mode} mode here, {verb} takes it from {' or '.join(wanted)}"
        raise Impossible("id", message, f"the step before it would be {before}")
    return device


def _change_mode(plan: Plan, verb: Verb, id: str, wanted: tuple[str, ...], before: str, mode: str, expect: str) -> None:
    """As ``require_mode``, for a verb that brings the device into ``mode``."""
    plan.pmem("id", id)
    if expect == "done":
        require_mode(plan, verb.name, id, wanted, before).mode = mode


def pmem_of(session: Session, id: str) -> Pmem:
    """The persistent memory ``id``; raises UsageError."""
    device = session.model.devices.get(id)
    if not isinstance(device, Pmem):
        raise UsageError(f"{id} is not persistent memory")
    return device


def _outcome(session: Session, done: namespaces.PmemOutcome, action: SetPmemMode | SetDaxState) -> Outcome:
    outcome = Outcome(note=done.text)
    if done.ok:
        session.apply(action)
    else:
        outcome.refuse(done.text)
        note_due(session, action.id, outcome)
    return outcome


@dataclass(frozen=True, slots=True)
class PlugPmemVerb(Verb):
    """Hot-plug a virtio-pmem device; its raw namespace comes up by itself."""

    name = "plug-pmem"
    summary = "hot-plug a virtio-pmem device"
    line = Line("plug pmem <size> [id]", fresh="pmem")
    needs = ("virtio-pmem",)
    parallel = True
    room = "takes"

    id: NewDevice
    size: Annotated[int, arg.size()]

    @property
    def capacity(self) -> int:
        return self.size

    def follow(self, plan: Plan, expect: str = "done") -> None:
        plan.require_new(self.id)
        require_aligned("size", self.size, GRANULE)
        if expect != "qemu-refused":
            plan.add(self.id, PlannedDevice(VirtioPmemSpec, self.size), 0, "size")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        port = memdev.free_root_port(session.guest.machine, deadline=deadline)
        made = VirtioPmemSpec(self.id, self.size, port=port)
        done = memdev.plug(session.guest.machine, made, deadline=deadline)
        power_up(session, self.id, deadline)
        session.apply(PlugVirtioPmem(self.id, self.size, port))
        device = pmem_of(session, self.id)
        outcome = Outcome(note=done.detail)
        await_driver(session, "nd", f"namespace{device.region_index}.0", "nd_pmem", outcome, deadline)
        return outcome


@dataclass(frozen=True, slots=True)
class NamespaceVerb(Verb):
    """Make the namespace raw or devdax.

    ``map`` says where its memmap lives; ``align`` is the size of its pages, None what a PMD entry maps.
    """

    name = "namespace"
    summary = (
        "put the namespace of persistent memory into a mode; map says where its memmap lives, align the size of its "
        "pages (by default what a PMD entry maps: 2M where pages are 4K)"
    )
    line = Line("pmem <id> <mode>")
    parallel = True

    id: Device
    mode: Annotated[str, arg.choice("raw", "devdax")]
    map: Annotated[str, arg.choice("mem", "dev", bare=False)] = "mem"
    align: PowerOfTwo | None = None

    def follow(self, plan: Plan, expect: str = "done") -> None:
        _change_mode(plan, self, self.id, ("raw", "devdax"), "devdax", self.mode, expect)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        device, shell = pmem_of(session, self.id), session.guest.shell
        name, align = f"namespace{device.region_index}.0", self.align or session.layout.paging.leaf_sizes["PMD"]
        if self.mode == "raw":
            done = namespaces.destroy(shell, name, deadline=deadline)
        else:
            done = namespaces.create_devdax(shell, name, map=self.map, align=align, deadline=deadline)
        return _outcome(session, done, SetPmemMode(self.id, self.mode, self.map, align))


@dataclass(frozen=True, slots=True)
class KmemVerb(Verb):
    """Hand the devdax device to the kmem driver; nothing is onlined beyond the guest's policy."""

    name = "kmem"
    summary = "bind a devdax device to the kmem driver; the memory comes online according to the policy"
    line = Line("pmem <id> kmem")
    needs = ("dax-kmem",)
    parallel = True

    id: Device

    def follow(self, plan: Plan, expect: str = "done") -> None:
        _change_mode(plan, self, self.id, ("devdax",), "namespace with mode: devdax", "kmem", expect)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        device = pmem_of(session, self.id)
        done = namespaces.to_system_ram(session.guest.shell, device.dax_name, deadline=deadline)
        return _outcome(session, done, SetPmemMode(self.id, "kmem", device.map, device.align))


@dataclass(frozen=True, slots=True)
class DaxStateVerb(Verb):
    """Have the kmem driver remove its memory or add it again; all of a device's ranges or none."""

    name = "dax-state"
    summary = (
        "write to the state of a dax device that the kmem driver has (since v7.3): unplugged removes its memory, which "
        "online types add again; what takes longer than patience, in seconds, is interrupted"
    )
    line = Line("dax-state <id> <state>")
    needs = ("dax-kmem",)

    id: Device
    state: Annotated[str, arg.choice(*DAX_STATES)]
    patience: Patience | None = None

    def follow(self, plan: Plan, expect: str = "done") -> None:
        require_mode(plan, self.name, self.id, ("kmem",), "kmem")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        shell, dax = session.guest.shell, pmem_of(session, self.id).dax_name
        if self.patience is not None:
            session.let_wait()
        done = namespaces.set_state(shell, dax, self.state, patience=self.patience, deadline=deadline)
        return _outcome(session, done, SetDaxState(self.id, self.state))


@dataclass(frozen=True, slots=True)
class DevdaxVerb(Verb):
    """Take the device back from the kmem driver."""

    name = "devdax"
    summary = "unbind a device from the kmem driver"
    line = Line("pmem <id> devdax", mode="kmem")
    needs = ("dax-kmem",)
    parallel = True

    id: Device

    def follow(self, plan: Plan, expect: str = "done") -> None:
        _change_mode(plan, self, self.id, ("kmem",), "kmem", "devdax", expect)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        device = pmem_of(session, self.id)
        done = namespaces.to_devdax(session.guest.shell, device.dax_name, deadline=deadline)
        return _outcome(session, done, SetPmemMode(self.id, "devdax", device.map, device.align))
