# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that hold pages where they are: what holds them is no load, it does nothing but be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.check import TouchReport
from harness.deadline import Deadline
from harness.errors import UsageError
from harness.guest.hold import hold_memory, release_memory
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.units import AddrRange


def hold(session: Session, args: Mapping[str, Any], deadline: Deadline) -> Outcome:
    """Have pages of a device held; they are in the first of its blocks that is online."""
    online = [index for index in session.model.blocks_of(args["device"]) if session.model.blocks[index].zone]
    if not online:
        raise UsageError(f"nothing of {args['device']} is online", hint="online it before its pages are held")
    where: AddrRange = session.model.block_range(online[0])
    limit, shell = session.model.expected().managed_bytes, session.guest.shell
    pages = hold_memory(shell, args["id"], args["pages"], limit, where, deadline=deadline)
    session.held[args["id"]] = len(pages)
    return Outcome(note=f"{', '.join(f'{page:#x}' for page in pages)} of memory{online[0]}")


def release(session: Session, args: Mapping[str, Any], deadline: Deadline) -> Outcome:
    """Let go of held pages; what was written there before must be there still."""
    changed = release_memory(session.guest.shell, args["id"], deadline=deadline)
    pages = session.held.pop(args["id"])
    outcome = Outcome(note=f"{pages} pages")
    outcome.touches.append(TouchReport(pages, changed, ()))
    return outcome
