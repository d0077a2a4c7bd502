# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that bring memory blocks online and offline, and what happens to those that are added."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from harness.check import OfflineReport, ResizeReport
from harness.config import arguments as arg
from harness.config.arguments import Argument, Device, Patience
from harness.config.yaml import Value
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, UsageError
from harness.guest import memory_blocks
from harness.guest.drivers import RESIZE_QUEUE, wait_work, work_wait
from harness.model.actions import ONLINE_TYPES, SetAutoOnline, SetBlock
from harness.model.devices.device import VirtioDevice
from harness.qemu import memdev
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Impossible, Plan
from harness.scenarios.verbs.verb import Known, Line, Verb, Word
from harness.units import AddrRange, format_size

#: auto_online_blocks (drivers/base/memory.c, online_type_to_str)
POLICIES = ("offline", *ONLINE_TYPES)
#: sysfs words for the types a scenario asks for
ONLINE_WORD = {"kernel": "online_kernel", "movable": "online_movable", "default": "online"}
#: memory blocks that one line may name
MAX_BLOCKS = 65536

_NUMBERS = re.compile(r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*")


def _read_blocks(value: Value) -> tuple[int, ...]:
    found = tuple(item.integer(minimum=0, maximum=1 << 32) for item in value.items())
    if not found:
        value.fail("an empty list of memory blocks", hint="name at least one")
    if len(set(found)) != len(found):
        value.fail("duplicate memory block")
    return found


def _spell_blocks(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _read_what(word: str, known: Known) -> Mapping[str, str]:
    if word == "boot":
        return {"boot": "true"}
    if word in known.devices or not _NUMBERS.fullmatch(word):
        return {"device": word}
    numbers: list[int] = []
    for piece in word.split(","):
        first, _, last = piece.partition("-")
        start, end = int(first), int(last or first)
        if end < start or end - start >= MAX_BLOCKS - len(numbers):
            raise UsageError(
                f"{piece} is not a range of memory blocks", hint=f"for example 32-39, at most {MAX_BLOCKS}"
            )
        numbers += range(start, end + 1)
    return {"blocks": f"[{', '.join(map(str, numbers))}]"}


#: how a line says which blocks are meant
_WHAT = {"what": Word("ID|boot|32-39,42", ("device", "boot", "blocks"), _read_what, ("boot",))}


@dataclass(frozen=True, slots=True)
class _BlocksVerb(Verb):
    """Memory blocks: those of ``device`` or of boot memory, the ``first`` or ``last`` so many of them, or by number."""

    parallel = True
    can_fail = True

    device: Device | None = None
    boot: Annotated[bool, Argument(Value.boolean, lambda boot: "boot memory", bare=True)] = False
    blocks: Annotated[tuple[int, ...] | None, Argument(_read_blocks, _spell_blocks, "LIST")] = None
    first: Annotated[int | None, arg.count(1)] = None
    last: Annotated[int | None, arg.count(1)] = None

    def follow(self, plan: Plan, expect: str = "done") -> None:
        if [self.device is not None, self.blocks is not None, self.boot].count(True) != 1:
            message = "takes either a device or blocks or boot memory"
            raise Impossible(None, message, "device: dimm0, or blocks: [32, 33], or boot: true")
        for name, number in (("first", self.first), ("last", self.last)):
            if number is not None and self.blocks is not None:
                raise Impossible(name, "it counts the blocks of a device, but no device is named")
        if self.first is not None and self.last is not None:
            raise Impossible("last", "takes either first or last")
        if self.device is not None:
            plan.require_blocks(self.device)

    def chosen(self, session: Session) -> tuple[int, ...]:
        """The numbers of the blocks, lowest first where they are not given."""
        if self.blocks is not None:
            return self.blocks
        owned = session.model.boot_blocks() if self.device is None else session.model.blocks_of(self.device)
        if self.first is not None:
            return owned[: self.first]
        return owned[-self.last :] if self.last is not None else owned


@dataclass(frozen=True, slots=True)
class OnlineVerb(_BlocksVerb):
    """Bring memory blocks online, one after the other; ``type`` is one of ``ONLINE_WORD``."""

    name = "online"
    summary = "bring memory blocks online: all of a device or of boot memory, its first or last ones, or by number"
    line = Line("online <what> [type]", _WHAT)

    type: Annotated[str, arg.choice(*ONLINE_WORD)] = "movable"

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        return _set_blocks(session, self.chosen(session), ONLINE_WORD[self.type], deadline)


@dataclass(frozen=True, slots=True)
class OfflineVerb(_BlocksVerb):
    """Take memory blocks offline, one after the other.

    A busy block is tried ``attempts`` times; one that takes longer than ``patience`` seconds is given up.
    """

    name = "offline"
    summary = (
        "take memory blocks offline: all of a device or of boot memory, its first or last ones, or by number; "
        "a busy one (EBUSY) is tried this many times, one that takes longer than patience, in seconds, is given up"
    )
    line = Line("offline <what>", _WHAT)

    attempts: Annotated[int, arg.count(1)] = 1
    patience: Patience | None = None

    def follow(self, plan: Plan, expect: str = "done") -> None:
        _BlocksVerb.follow(self, plan, expect)
        for id, kind in plan.loads.items():
            if kind == "online":
                raise Impossible(None, f"the load {id!r} might bring a block online again", "unload it first")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        chosen = self.chosen(session)
        return _set_blocks(session, chosen, "offline", deadline, attempts=self.attempts, patience=self.patience)


@dataclass(frozen=True, slots=True)
class AutoOnlineVerb(Verb):
    """Set the policy for memory that is added from now on, one of ``POLICIES``."""

    name = "auto-online"
    summary = "set the policy for added memory"
    line = Line("auto-online <policy>")

    policy: Annotated[str, arg.choice(*POLICIES)]

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        memory_blocks.set_auto_online(session.guest.shell, self.policy, deadline=deadline)
        session.apply(SetAutoOnline(self.policy))
        return Outcome()


def _set_blocks(
    session: Session,
    chosen: tuple[int, ...],
    word: str,
    deadline: Deadline,
    *,
    attempts: int = 1,
    patience: int | None = None,
) -> Outcome:
    shell, busy, sizes = session.guest.shell, 0, _sizes(session)
    outcome = Outcome(note=f"{len(chosen)} memory blocks", settled=True)
    if patience is not None:
        session.let_wait()
    for last in reversed(range(attempts)):
        again = []
        for done in memory_blocks.set_blocks(shell, chosen, word, deadline=deadline, patience=patience):
            known = session.model.blocks.get(done.index)
            if word == "offline" and known is not None and known.zone is not None:
                outcome.offlines.append(OfflineReport(done.index, done.error))
            if done.ok:
                session.apply(SetBlock(done.index, word))
            elif done.error == "EBUSY" and last:
                again.append(done.index)
            else:
                ending = "failed" if session.expect == "failed" else "refused"
                size = session.layout.block_size
                place = AddrRange.sized(done.index * size, size)
                outcome.refuse(f"memory{done.index} did not go {word}: {done.error}", ending, place=place)
        chosen, busy = tuple(again), busy + len(again)
    if outcome.ending == "refused" and word == "offline":
        outcome.due = due_refusal(session, [report.index for report in outcome.offlines if report.error is not None])
    if busy and outcome.ending == "done":
        outcome.note += f", {busy} times one was busy"
    _await_growth(session, sizes, outcome, deadline)
    return outcome


def due_refusal(session: Session, indexes: Iterable[int]) -> str:
    """Why each of these online memory blocks must stay online, "" if one of them could go."""
    blocks, kept = session.model.blocks, session.model.kept_blocks()
    reasons = [kept.get(index, "") for index in indexes if index in blocks and blocks[index].zone is not None]
    return reasons[0] if reasons and all(reasons) else ""


def _sizes(session: Session) -> dict[str, int]:
    known = [device.qmp() for device in session.model.devices.values()]
    return {device.id: device.size for device in known if device.requested_size is not None}


def _await_growth(session: Session, before: Mapping[str, int], outcome: Outcome, deadline: Deadline) -> None:
    """Wait for what a device adds because less of it is offline now."""
    for id, size in _sizes(session).items():
        if size != before[id]:
            grown = Outcome()
            await_size(session, id, size, grown, deadline)
            outcome.note += f", {grown.note} of {id}"


def await_size(session: Session, id: str, requested: int, outcome: Outcome, deadline: Deadline) -> None:
    """Wait for what the model says a virtio-mem driver reaches; where it stops short, the report shows by how much."""
    machine, size, settle = session.guest.machine, session.model.devices[id].qmp().size, session.options.settle
    try:
        memdev.wait_size(machine, id, size, deadline=deadline.at_most(settle))
        outcome.note = f"{format_size(size)} plugged"
        session.before_look(work_wait(RESIZE_QUEUE, deadline=deadline.at_most(settle)))
    except DeadlineExpired as late:
        outcome.note = str(late)
        with contextlib.suppress(DeadlineExpired):
            wait_work(session.guest.shell, RESIZE_QUEUE, deadline=deadline.at_most(settle))
        size = memdev.memory_device(machine, id, deadline=deadline).size
    outcome.resizes.append(ResizeReport(id, requested, size))


def follow_reonlined_blocks(session: Session, id: str, deadline: Deadline) -> None:
    """Follow the kernel where it brings back what it had taken offline before a block would not go.

    acpi_scan_try_to_offline (drivers/acpi/scan.c, v6.12) has all of them online again, each in the zone that is the
    default by then. Which of them were offline meanwhile only their new zone tells.
    """
    known = session.model.blocks
    online = [index for index in session.model.blocks_of(id) if known[index].zone is not None]
    if isinstance(session.model.devices.get(id), VirtioDevice):
        return
    zones = memory_blocks.valid_zones(session.guest.shell, online, deadline=deadline)
    moved = [index for index in online if len(zones[index]) == 1 and zones[index] != (known[index].zone,)]
    for word in ("offline", "online"):
        for index in moved:
            session.apply(SetBlock(index, word))
