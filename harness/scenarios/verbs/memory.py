# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that use memory: touch and fill for a moment, hold and occupy until release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.check import TouchReport
from harness.config import arguments as arg
from harness.config.arguments import Device, Held, NewHeld
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
class TouchVerb(Verb):
    """Allocate, write and read back memory; some of it must come from ``device`` (None: anywhere)."""

    name = "touch"
    summary = "allocate memory in the guest, write it, read it back; some of it must lie in the device"
    line = Line("touch <size> [device]")
    parallel = True

    device: Device | None = None
    size: Annotated[int, arg.size()]

    def follow(self, plan: Plan, expect: str = "done") -> None:
        if self.size > plan.spec.memory + sum(device.size for device in plan.devices.values()):
            raise Impossible("size", f"{format_size(self.size)} is more than the guest has")
        if self.device is not None:
            plan.require_blocks(self.device)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        ranges: list[AddrRange] = []
        node: int | None = None
        if self.device is not None:
            online = _online(session, self.device)
            ranges = [_range(session, online)]
            # A process that runs on another node takes memory of that one first.
            node = session.model.blocks[online[0]].node
        # Hot-added memory is in the zones that are handed out first, so as much as all of it must reach each device.
        limit = session.model.expected().managed_bytes + self.size
        touched = touch_memory(session.guest.shell, self.size, ranges, deadline=deadline, limit=limit, node=node)
        used = tuple((where, touched.used.get(where, 0)) for where in ranges)
        outcome = Outcome(note=", ".join(f"{format_size(size)} of it in {where}" for where, size in used))
        outcome.touches.append(TouchReport(touched.pages, touched.mismatches, used))
        return outcome


@dataclass(frozen=True, slots=True)
class FillVerb(Verb):
    """Allocate what the last snapshot showed as free; ``leave`` bytes stay free."""

    name = "fill"
    summary = "allocate all of the guest's free memory except this much, write it, read it back, and free it"
    line = Line("fill <leave>")
    parallel = True

    leave: Annotated[int, arg.size(bare=False)]

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        meminfo = session.state.meminfo
        if isinstance(meminfo, NotObserved):
            raise UnsupportedError("meminfo", f"the amount of free memory is unknown: {meminfo.reason}")
        size = align_down(meminfo["MemFree"] - self.leave, session.layout.page_size)
        if size <= 0:
            raise UsageError(f"the guest has {format_size(meminfo['MemFree'])} free, less than fill must leave")
        touched = touch_memory(session.guest.shell, size, (), deadline=deadline)
        outcome = Outcome(note=f"{size / MIB:.0f}M of {meminfo['MemFree'] / MIB:.0f}M free")
        outcome.touches.append(TouchReport(touched.pages, touched.mismatches, ()))
        return outcome


@dataclass(frozen=True, slots=True)
class _KeepVerb(Verb):
    """Keeps memory of a device in use until release."""

    id: NewHeld
    device: Annotated[str, arg.device(bare=False)]

    def follow(self, plan: Plan, expect: str = "done") -> None:
        require_free(self.id, plan.held, f"memory is already held as {self.id!r}", "release")
        plan.device("device", self.device)
        plan.held.add(self.id)


@dataclass(frozen=True, slots=True)
class HoldVerb(_KeepVerb):
    """Pin so many pages of a device in its first online block."""

    name = "hold"
    summary = "pin pages of a device, so that they cannot be migrated"
    line = Line("hold <device> [id]", fresh="held")

    pages: Annotated[int, arg.count(1, 16)] = 1

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        where = _range(session, _online(session, self.device)[:1])
        limit, shell = session.model.expected().managed_bytes, session.guest.shell
        pages = pin_memory(shell, self.id, self.pages, limit, where, deadline=deadline)
        session.held.add(self.id)
        return Outcome(note=f"{', '.join(f'{page:#x}' for page in pages)} of {where}")


@dataclass(frozen=True, slots=True)
class OccupyVerb(_KeepVerb):
    """Keep so many bytes of movable memory of a device in use."""

    name = "occupy"
    summary = "keep this much of a device in use; the kernel may migrate it, and release verifies it"
    line = Line("occupy <size> <device> [id]", fresh="data")

    size: Annotated[int, arg.size(bare=False)]

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        where, page = _range(session, _online(session, self.device)), session.layout.page_size
        limit = session.model.expected().managed_bytes + self.size
        count = align_up(self.size, page) // page
        occupy_memory(session.guest.shell, self.id, count, limit, where, deadline=deadline)
        session.held.add(self.id)
        return Outcome(note=f"{format_size(count * page)} of {where}")


@dataclass(frozen=True, slots=True)
class ReleaseVerb(Verb):
    """Release the pages of hold or occupy; their content must be intact."""

    name = "release"
    summary = "release held or occupied pages, whose content must be intact"
    line = Line("release <id>")
    parallel = True

    id: Held

    def follow(self, plan: Plan, expect: str = "done") -> None:
        require_there(self.id, plan.held, f"no memory is held as {self.id!r}")
        plan.held.remove(self.id)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        pages, changed = release_memory(session.guest.shell, self.id, deadline=deadline)
        session.held.remove(self.id)
        outcome = Outcome(note=f"{pages} pages")
        outcome.touches.append(TouchReport(pages, changed, ()))
        return outcome


def _online(session: Session, id: str) -> list[int]:
    """The memory blocks of a device that are online; raises UsageError if there is none."""
    online = [index for index in session.model.blocks_of(id) if session.model.blocks[index].zone]
    if not online:
        raise UsageError(f"no memory of {id} is online", hint="online it first")
    return online


def _range(session: Session, online: list[int]) -> AddrRange:
    return AddrRange(session.model.block_range(online[0]).start, session.model.block_range(online[-1]).end)
