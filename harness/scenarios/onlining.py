# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that bring memory blocks online and offline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.check import OfflineReport
from harness.deadline import Deadline
from harness.guest import blocks
from harness.model.actions import SetBlock
from harness.model.devices.dimm import Dimm
from harness.model.devices.virtio_mem import VirtioMem
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.sizes import await_size

Arguments = Mapping[str, Any]

#: sysfs words for the types a scenario asks for
ONLINE_WORD = {"kernel": "online_kernel", "movable": "online_movable", "default": "online"}


def online(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Bring memory blocks online, one after the other, lowest first."""
    return _set_blocks(session, args, ONLINE_WORD[args.get("type", "movable")], deadline)


def offline(session: Session, args: Arguments, deadline: Deadline) -> Outcome:
    """Take memory blocks offline, one after the other, lowest first."""
    return _set_blocks(session, args, "offline", deadline)


def _chosen_blocks(session: Session, args: Arguments) -> tuple[int, ...]:
    if args.get("blocks") is not None:
        return tuple(args["blocks"])
    owned = session.model.boot_blocks() if args.get("boot") else session.model.blocks_of(args["device"])
    first, last = args.get("first"), args.get("last")
    if first is not None:
        return owned[:first]
    return owned[-last:] if last is not None else owned


def _set_blocks(session: Session, args: Arguments, word: str, deadline: Deadline) -> Outcome:
    shell, chosen, busy, sizes = session.guest.shell, _chosen_blocks(session, args), 0, _sizes(session)
    outcome = Outcome(note=f"{len(chosen)} memory blocks")
    for last in reversed(range(args.get("attempts", 1))):
        again = []
        for done in blocks.set_blocks(shell, chosen, word, deadline=deadline, patience=args.get("patience")):
            known = session.model.blocks.get(done.index)
            if word == "offline" and known is not None and known.zone is not None:
                outcome.offlines.append(OfflineReport(done.index, done.error))
            if done.ok:
                session.apply(SetBlock(done.index, word))
            elif done.error == "EBUSY" and last:
                again.append(done.index)
            else:
                ending = "failed" if session.expect == "failed" else "refused"
                outcome.refuse(f"memory{done.index} would not go {word}: {done.error}", ending)
        chosen, busy = tuple(again), busy + len(again)
    if outcome.ending == "refused" and word == "offline":
        outcome.due = due_refusal(session, [report.index for report in outcome.offlines if report.error is not None])
    if busy and outcome.ending == "done":
        outcome.note += f", {busy} times one was busy"
    _await_growth(session, sizes, outcome, deadline)
    return outcome


def due_refusal(session: Session, indexes: Iterable[int]) -> str:
    """Why each of these online memory blocks must stay online, "" if one of them could go."""
    blocks, told = session.model.blocks, session.model.kept_blocks()
    reasons = [told.get(index, "") for index in indexes if index in blocks and blocks[index].zone is not None]
    return reasons[0] if reasons and all(reasons) else ""


def _sizes(session: Session) -> dict[str, int]:
    return {id: device.size for id, device in session.model.devices.items() if isinstance(device, VirtioMem)}


def _await_growth(session: Session, before: Mapping[str, int], outcome: Outcome, deadline: Deadline) -> None:
    """Wait for what a virtio-mem device adds because less of it is offline now."""
    for id, size in _sizes(session).items():
        if size != before[id]:
            grown = Outcome()
            await_size(session, id, size, grown, deadline)
            outcome.note += f", {grown.note} of {id}"


def follow_reonlined_blocks(session: Session, id: str, deadline: Deadline) -> None:
    """Follow the kernel where it brings back what it had taken offline before a block would not go.

    acpi_scan_try_to_offline (drivers/acpi/scan.c, v6.12) has all of them online again, each in the zone that is the
    default by then. Which of them were offline meanwhile only their new zone tells.
    """
    known = session.model.blocks
    online = [index for index in session.model.blocks_of(id) if known[index].zone is not None]
    if not isinstance(session.model.devices.get(id), Dimm):
        return
    zones = blocks.valid_zones(session.guest.shell, online, deadline=deadline)
    moved = [index for index in online if len(zones[index]) == 1 and zones[index] != (known[index].zone,)]
    for word in ("offline", "online"):
        for index in moved:
            session.apply(SetBlock(index, word))
