# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of virtio-pmem: plug it, and make it a namespace, device-dax or system RAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.config import arguments as arg
from harness.config.arguments import GRANULE, Args, Device, NewDevice, Patience, PowerOfTwo
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


@dataclass(frozen=True, slots=True)
class PmemArgs(Args):
    """A virtio-pmem device."""

    id: NewDevice
    size: Annotated[int, arg.size()]


@dataclass(frozen=True, slots=True)
class NamespaceArgs(Args):
    """``map`` says where its memmap lives; ``align`` is the size of its pages, None what a PMD entry maps."""

    id: Device
    mode: Annotated[str, arg.choice("raw", "devdax")]
    map: Annotated[str, arg.choice("mem", "dev", bare=False)] = "mem"
    align: PowerOfTwo | None = None


@dataclass(frozen=True, slots=True)
class KmemArgs(Args):
    """A device that is devdax."""

    id: Device


@dataclass(frozen=True, slots=True)
class DevdaxArgs(Args):
    """A device that the kmem driver has."""

    id: Device


@dataclass(frozen=True, slots=True)
class DaxStateArgs(Args):
    """``state`` is one of ``DAX_STATES``."""

    id: Device
    state: Annotated[str, arg.choice(*DAX_STATES)]
    patience: Patience | None = None


def require_mode(plan: Plan, verb: str, id: str, wanted: tuple[str, ...], before: str) -> PlannedDevice:
    """The virtio-pmem ``id`` is in one of the modes that ``verb`` takes it from; ``before`` would bring it there."""
    device = plan.pmem("id", id)
    if device.mode not in wanted:
        message = f"{id!r} is in {device.mode} mode here, {verb} takes it from {' or '.join(wanted)}"
        raise Impossible("id", message, f"the step before it would be {before}")
    return device


def _follow_plug(plan: Plan, args: PmemArgs, expect: str) -> None:
    plan.require_new(args.id)
    require_aligned("size", args.size, GRANULE)
    if expect != "qemu-refused":
        plan.add(args.id, PlannedDevice(VirtioPmemSpec, args.size), 0, "size")


def _follow_namespace(plan: Plan, args: NamespaceArgs, expect: str) -> None:
    plan.pmem("id", args.id)
    if expect == "done":
        require_mode(plan, "namespace", args.id, ("raw", "devdax"), "devdax").mode = args.mode


def _follow_kmem(plan: Plan, args: KmemArgs, expect: str) -> None:
    plan.pmem("id", args.id)
    if expect == "done":
        require_mode(plan, "kmem", args.id, ("devdax",), "namespace with mode: devdax").mode = "kmem"


def _follow_devdax(plan: Plan, args: DevdaxArgs, expect: str) -> None:
    plan.pmem("id", args.id)
    if expect == "done":
        require_mode(plan, "devdax", args.id, ("kmem",), "kmem").mode = "devdax"


def _follow_dax_state(plan: Plan, args: DaxStateArgs, expect: str) -> None:
    require_mode(plan, "dax-state", args.id, ("kmem",), "kmem")


def pmem_of(session: Session, id: str) -> Pmem:
    """The virtio-pmem device ``id``; raises UsageError."""
    device = session.model.devices.get(id)
    if not isinstance(device, Pmem):
        raise UsageError(f"{id} is not a virtio-pmem device")
    return device


def plug_pmem(session: Session, args: PmemArgs, deadline: Deadline) -> Outcome:
    """Hot-plug a virtio-pmem device; its raw namespace comes up by itself."""
    port = memdev.free_root_port(session.guest.machine, deadline=deadline)
    made = VirtioPmemSpec(args.id, args.size, port=port)
    done = memdev.plug(session.guest.machine, made, deadline=deadline)
    power_up(session, args.id, deadline)
    session.apply(PlugVirtioPmem(args.id, args.size, port))
    device = pmem_of(session, args.id)
    outcome = Outcome(note=done.detail)
    await_driver(session, "nd", f"namespace{device.region_index}.0", "nd_pmem", outcome, deadline)
    return outcome


def namespace(session: Session, args: NamespaceArgs, deadline: Deadline) -> Outcome:
    """Make the namespace raw or devdax."""
    device, shell = pmem_of(session, args.id), session.guest.shell
    name, align = f"namespace{device.region_index}.0", args.align or session.layout.paging.leaf_sizes["PMD"]
    if args.mode == "raw":
        done = namespaces.destroy(shell, name, deadline=deadline)
    else:
        done = namespaces.create_devdax(shell, name, map=args.map, align=align, deadline=deadline)
    return _outcome(session, done, SetPmemMode(args.id, args.mode, args.map, align))


def kmem(session: Session, args: KmemArgs, deadline: Deadline) -> Outcome:
    """Hand the devdax device to the kmem driver; nothing is onlined beyond the guest's policy."""
    device = pmem_of(session, args.id)
    done = namespaces.to_system_ram(session.guest.shell, device.dax_name, deadline=deadline)
    return _outcome(session, done, SetPmemMode(args.id, "kmem", device.map, device.align))


def devdax(session: Session, args: DevdaxArgs, deadline: Deadline) -> Outcome:
    """Take the device back from the kmem driver."""
    device = pmem_of(session, args.id)
    done = namespaces.to_devdax(session.guest.shell, device.dax_name, deadline=deadline)
    return _outcome(session, done, SetPmemMode(args.id, "devdax", device.map, device.align))


def dax_state(session: Session, args: DaxStateArgs, deadline: Deadline) -> Outcome:
    """Have the kmem driver remove its memory or add it again; all of a device's ranges or none."""
    shell, dax = session.guest.shell, pmem_of(session, args.id).dax_name
    done = namespaces.set_state(shell, dax, args.state, patience=args.patience, deadline=deadline)
    return _outcome(session, done, SetDaxState(args.id, args.state))


def _outcome(session: Session, done: namespaces.PmemOutcome, action: SetPmemMode | SetDaxState) -> Outcome:
    outcome = Outcome(note=done.text)
    if done.ok:
        session.apply(action)
    else:
        outcome.refuse(done.text)
        note_due(session, action.id, outcome)
    return outcome


PLUG_PMEM = Verb(
    "plug-pmem",
    "hot-plug a virtio-pmem device",
    PmemArgs,
    plug_pmem,
    Line("plug pmem <size> [id]", fresh="pmem"),
    _follow_plug,
    needs=("virtio-pmem",),
    parallel=True,
    room="takes",
)
NAMESPACE = Verb(
    "namespace",
    "put the namespace of a virtio-pmem device into a mode; map says where its memmap lives, align the size of its "
    "pages (by default what a PMD entry maps: 2M where pages are 4K)",
    NamespaceArgs,
    namespace,
    Line("pmem <id> <mode>"),
    _follow_namespace,
    parallel=True,
)
KMEM = Verb(
    "kmem",
    "bind a devdax device to the kmem driver; the memory comes online according to the policy",
    KmemArgs,
    kmem,
    Line("pmem <id> kmem"),
    _follow_kmem,
    needs=("dax-kmem",),
    parallel=True,
)
DAX_STATE = Verb(
    "dax-state",
    "write to the state of a dax device that the kmem driver has (since v7.3): unplugged removes its memory, which "
    "online types add again; what takes longer than patience, in seconds, is interrupted",
    DaxStateArgs,
    dax_state,
    Line("dax-state <id> <state>"),
    _follow_dax_state,
    needs=("dax-kmem",),
)
DEVDAX = Verb(
    "devdax",
    "unbind a device from the kmem driver",
    DevdaxArgs,
    devdax,
    Line("pmem <id> devdax", mode="kmem"),
    _follow_devdax,
    needs=("dax-kmem",),
    parallel=True,
)

VERBS = (PLUG_PMEM, NAMESPACE, KMEM, DAX_STATE, DEVDAX)
