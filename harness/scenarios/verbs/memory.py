# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that use memory: touch and fill for a moment, hold and occupy until release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.check import TouchReport
from harness.config import arguments as arg
from harness.config.arguments import Args, Device, Held, NewHeld
from harness.deadline import Deadline
from harness.errors import UnsupportedError, UsageError
from harness.guest.use_memory import occupy_memory, pin_memory, release_memory, touch_memory
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Impossible, Plan, require_free, require_there
from harness.scenarios.verbs.verb import Line, Verb
from harness.state import NotObserved
from harness.units import MIB, AddrRange, align_down, align_up, format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchArgs(Args):
    """``device`` None: anywhere."""

    device: Device | None = None
    size: Annotated[int, arg.size()]


@dataclass(frozen=True, slots=True)
class FillArgs(Args):
    """``leave`` bytes stay free."""

    leave: Annotated[int, arg.size(bare=False)]


@dataclass(frozen=True, slots=True)
class HoldArgs(Args):
    """So many pages of a device."""

    id: NewHeld
    device: Annotated[str, arg.device(bare=False)]
    pages: Annotated[int, arg.count(1, 16)] = 1


@dataclass(frozen=True, slots=True)
class OccupyArgs(Args):
    """So many bytes of a device."""

    id: NewHeld
    device: Annotated[str, arg.device(bare=False)]
    size: Annotated[int, arg.size(bare=False)]


@dataclass(frozen=True, slots=True)
class ReleaseArgs(Args):
    """The id from hold or occupy."""

    id: Held


def _follow_touch(plan: Plan, args: TouchArgs, expect: str) -> None:
    if args.size > plan.spec.memory + sum(device.size for device in plan.devices.values()):
        raise Impossible("size", f"{format_size(args.size)} is more than the guest has")
    if args.device is not None:
        plan.require_blocks(args.device)


def _follow_hold(plan: Plan, args: HoldArgs | OccupyArgs, expect: str) -> None:
    require_free(args.id, plan.held, f"memory is already held as {args.id!r}", "release")
    plan.device("device", args.device)
    plan.held.add(args.id)


def _follow_release(plan: Plan, args: ReleaseArgs, expect: str) -> None:
    require_there(args.id, plan.held, f"no memory is held as {args.id!r}")
    plan.held.remove(args.id)


def _online(session: Session, id: str) -> list[int]:
    """The memory blocks of a device that are online; raises UsageError if there is none."""
    online = [index for index in session.model.blocks_of(id) if session.model.blocks[index].zone]
    if not online:
        raise UsageError(f"no memory of {id} is online", hint="online it first")
    return online


def _range(session: Session, online: list[int]) -> AddrRange:
    return AddrRange(session.model.block_range(online[0]).start, session.model.block_range(online[-1]).end)


def touch(session: Session, args: TouchArgs, deadline: Deadline) -> Outcome:
    """Allocate, write and read back memory; some of it must come from the device."""
    ranges: list[AddrRange] = []
    node: int | None = None
    if args.device is not None:
        online = _online(session, args.device)
        ranges = [_range(session, online)]
        # A process that runs on another node takes memory of that one first.
        node = session.model.blocks[online[0]].node
    # Hot-added memory is in the zones that are handed out first, so as much as all of it must reach each device.
    limit = session.model.expected().managed_bytes + args.size
    seen = touch_memory(session.guest.shell, args.size, ranges, deadline=deadline, limit=limit, node=node)
    used = tuple((where, seen.used.get(where, 0)) for where in ranges)
    outcome = Outcome(note=", ".join(f"{format_size(size)} of it in {where}" for where, size in used))
    outcome.touches.append(TouchReport(seen.pages, seen.mismatches, used))
    return outcome


def fill(session: Session, args: FillArgs, deadline: Deadline) -> Outcome:
    """Allocate what the last snapshot showed as free, all but some of it."""
    meminfo = session.state.meminfo
    if isinstance(meminfo, NotObserved):
        raise UnsupportedError("meminfo", f"the amount of free memory is unknown: {meminfo.reason}")
    size = align_down(meminfo["MemFree"] - args.leave, session.layout.page_size)
    if size <= 0:
        raise UsageError(f"the guest has {format_size(meminfo['MemFree'])} free, less than fill must leave")
    seen = touch_memory(session.guest.shell, size, (), deadline=deadline)
    outcome = Outcome(note=f"{size / MIB:.0f}M of {meminfo['MemFree'] / MIB:.0f}M free")
    outcome.touches.append(TouchReport(seen.pages, seen.mismatches, ()))
    return outcome


def hold(session: Session, args: HoldArgs, deadline: Deadline) -> Outcome:
    """Pin pages of a device in its first online block."""
    where = _range(session, _online(session, args.device)[:1])
    limit, shell = session.model.expected().managed_bytes, session.guest.shell
    pages = pin_memory(shell, args.id, args.pages, limit, where, deadline=deadline)
    session.held.add(args.id)
    return Outcome(note=f"{', '.join(f'{page:#x}' for page in pages)} of {where}")


def occupy(session: Session, args: OccupyArgs, deadline: Deadline) -> Outcome:
    """Keep movable memory of a device in use."""
    where, page = _range(session, _online(session, args.device)), session.layout.page_size
    limit = session.model.expected().managed_bytes + args.size
    count = align_up(args.size, page) // page
    occupy_memory(session.guest.shell, args.id, count, limit, where, deadline=deadline)
    session.held.add(args.id)
    return Outcome(note=f"{format_size(count * page)} of {where}")


def release(session: Session, args: ReleaseArgs, deadline: Deadline) -> Outcome:
    """Release held pages; their content must be intact."""
    pages, changed = release_memory(session.guest.shell, args.id, deadline=deadline)
    session.held.remove(args.id)
    outcome = Outcome(note=f"{pages} pages")
    outcome.touches.append(TouchReport(pages, changed, ()))
    return outcome


TOUCH = Verb(
    "touch",
    "allocate memory in the guest, write it, read it back; some of it must lie in the device",
    TouchArgs,
    touch,
    Line("touch <size> [device]"),
    _follow_touch,
    parallel=True,
)
FILL = Verb(
    "fill",
    "allocate all of the guest's free memory except this much, write it, read it back, and free it",
    FillArgs,
    fill,
    Line("fill <leave>"),
    parallel=True,
)
HOLD = Verb(
    "hold",
    "pin pages of a device, so that they cannot be migrated",
    HoldArgs,
    hold,
    Line("hold <device> [id]", fresh="held"),
    _follow_hold,
)
OCCUPY = Verb(
    "occupy",
    "keep this much of a device in use; the kernel may migrate it, and release verifies it",
    OccupyArgs,
    occupy,
    Line("occupy <size> <device> [id]", fresh="data"),
    _follow_hold,
)
RELEASE = Verb(
    "release",
    "release held or occupied pages, whose content must be intact",
    ReleaseArgs,
    release,
    Line("release <id>"),
    _follow_release,
    parallel=True,
)

VERBS = (TOUCH, FILL, HOLD, OCCUPY, RELEASE)
