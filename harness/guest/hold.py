# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of a physical range that a process in the guest holds, pinned or movable, until they are released."""

from __future__ import annotations

import re

from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.ssh import Shell
from harness.units import AddrRange

_TOOL = "/usr/bin/hold-memory"
_HELD = re.compile(r"held ([0-9]{1,12})\n((?:[0-9a-f]{1,16}\n)*)")
_RELEASED = re.compile(r"pages ([0-9]{1,12})\nmismatches ([0-9]{1,12})\n")


def pin_memory(
    shell: Shell, id: str, pages: int, limit: int, where: AddrRange, *, deadline: Deadline
) -> tuple[int, ...]:
    """Pin ``pages`` pages of ``where`` and return their physical addresses; ``id`` is for ``release_memory``.

    The process allocates up to ``limit`` bytes to get pages there, and makes a pipe hold references to them (vmsplice):
    they stay movable memory, but cannot be migrated. Raises GuestError, DeadlineExpired.
    """
    addresses = _hold(shell, "pinned", id, pages, limit, where, deadline)
    if len(addresses) != pages:
        raise GuestError(f"asked for {pages} pinned pages, the guest answered for {len(addresses)}")
    return addresses


def occupy_memory(shell: Shell, id: str, pages: int, limit: int, where: AddrRange, *, deadline: Deadline) -> None:
    """Keep ``pages`` pages of ``where`` in use until ``release_memory``, which takes the same ``id``.

    The process allocates up to ``limit`` bytes to get pages there; the kernel may migrate them. Raises GuestError,
    DeadlineExpired.
    """
    _hold(shell, "movable", id, pages, limit, where, deadline)


def _hold(
    shell: Shell, kind: str, id: str, pages: int, limit: int, where: AddrRange, deadline: Deadline
) -> tuple[int, ...]:
    command = f"{_TOOL} {kind} {pages} {limit} {where.start:x} {where.end:x} {_fifo(id)}"
    done = shell.run(command, deadline=deadline)
    found = _HELD.fullmatch(done.stdout.decode(errors="replace"))
    if done.status != 0 or found is None or int(found[1]) != pages:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise GuestError(f"holding {pages} pages of {where} failed in the guest (status {done.status}): {said}")
    return tuple(int(line, 16) for line in found[2].split())


def release_memory(shell: Shell, id: str, *, deadline: Deadline) -> tuple[int, int]:
    """Release the pages held as ``id``; return how many there were and how many had changed meanwhile.

    Returns once the process has freed all of its memory. Raises GuestError, DeadlineExpired.
    """
    done = shell.run(f"cat {_fifo(id)}", deadline=deadline)
    found = _RELEASED.fullmatch(done.stdout.decode(errors="replace"))
    if done.status != 0 or found is None:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        raise GuestError(f"the memory held as {id} was not released (status {done.status}): {said}")
    return int(found[1]), int(found[2])


def _fifo(id: str) -> str:
    return f"/run/memhp/hold-{id}"
