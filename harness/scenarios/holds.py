# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that keep pages in use: what keeps them is no load, it does nothing but be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.check import TouchReport
from harness.deadline import Deadline
from harness.errors import UsageError
from harness.guest.hold import occupy_memory, pin_memory, release_memory
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.units import AddrRange, align_up, format_size


def hold(session: Session, args: Mapping[str, Any], deadline: Deadline) -> Outcome:
    """Have pages of a device pinned; they are in the first of its blocks that is online."""
    where = _online(session, args["device"], 1)
    limit, shell = session.model.expected().managed_bytes, session.guest.shell
    pages = pin_memory(shell, args["id"], args["pages"], limit, where, deadline=deadline)
    session.held.add(args["id"])
    return Outcome(note=f"{', '.join(f'{page:#x}' for page in pages)} of {where}")


def occupy(session: Session, args: Mapping[str, Any], deadline: Deadline) -> Outcome:
    """Have so much of a device in use that can be moved."""
    where, page = _online(session, args["device"], None), session.layout.page_size
    limit = session.model.expected().managed_bytes + args["size"]
    count = align_up(args["size"], page) // page
    occupy_memory(session.guest.shell, args["id"], count, limit, where, deadline=deadline)
    session.held.add(args["id"])
    return Outcome(note=f"{format_size(count * page)} of {where}")


def _online(session: Session, id: str, first: int | None) -> AddrRange:
    online = [index for index in session.model.blocks_of(id) if session.model.blocks[index].zone][:first]
    if not online:
        raise UsageError(f"nothing of {id} is online", hint="online it before its pages are held")
    return AddrRange(session.model.block_range(online[0]).start, session.model.block_range(online[-1]).end)


def release(session: Session, args: Mapping[str, Any], deadline: Deadline) -> Outcome:
    """Let go of held pages; what was written there before must be there still."""
    pages, changed = release_memory(session.guest.shell, args["id"], deadline=deadline)
    session.held.remove(args["id"])
    outcome = Outcome(note=f"{pages} pages")
    outcome.touches.append(TouchReport(pages, changed, ()))
    return outcome
