# SPDX-License-Identifier: GPL-2.0-or-later
"""Use memory in the guest: write a pattern and read it back, or hold pages, pinned or movable, until released."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import GuestError, UsageError
from harness.guest.kernel_files import Content, read_files
from harness.guest.ssh import Shell
from harness.units import AddrRange, format_size

_TOUCH = "/usr/bin/touch-memory"
_HOLD = "/usr/bin/hold-memory"
_NO_SUCH_COMMAND = (126, 127)
_RANGE = re.compile(r"range ([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([0-9]{1,20})")
_COUNT = re.compile(r"(pages|mismatches) ([0-9]{1,20})")
_HELD = re.compile(r"held ([0-9]{1,12})\n((?:[0-9a-f]{1,16}\n)*)")
_RELEASED = re.compile(r"pages ([0-9]{1,12})\nmismatches ([0-9]{1,12})\n")


@dataclass(frozen=True, slots=True)
class TouchResult:
    """``pages`` written and read back, ``mismatches`` of them that came back changed, bytes ``used`` in each range."""

    pages: int
    mismatches: int
    used: Mapping[AddrRange, int]


def touch_memory(
    shell: Shell, size: int, ranges: Iterable[AddrRange], *, deadline: Deadline, limit: int = 0, node: int | None = None
) -> TouchResult:
    """Allocate ``size`` bytes, fill and read them back; count the bytes in each of ``ranges`` (physical).

    Continues to allocate, up to ``limit`` bytes, while a range has supplied no page; prefers ``node`` if given. Raises
    UsageError for a size below one byte, GuestError without the tool or if it failed (out of memory), DeadlineExpired.
    """
    if size <= 0:
        raise UsageError(f"cannot touch {size} bytes of memory")
    wanted = list(dict.fromkeys(ranges))
    words = [_TOUCH, *(() if node is None else ("-n", str(node))), str(size), str(max(size, limit))]
    command = " ".join([*words, *(f"{where.start:x}-{where.end:x}" for where in wanted)])
    done = shell.run(command, deadline=deadline)
    if done.status in _NO_SUCH_COMMAND:
        raise GuestError(f"the guest has no {_TOUCH}: {done.said()}", hint="use the guest root of memhp fetch")
    if done.status < 0:
        raise GuestError(f"touching {format_size(size)} was killed in the guest", hint="ask for less than is free")
    result = parse_touch(done.text)
    if result is None or set(result.used) != set(wanted):
        raise done.error(f"touching {format_size(size)} failed in the guest")
    return result


def parse_touch(text: str) -> TouchResult | None:
    """Read ``pages N``, ``mismatches N`` and ``range START-END BYTES`` (hexadecimal, end exclusive).

    Returns None unless both counts are there and every line is understood.
    """
    counts: dict[str, int] = {}
    used: dict[AddrRange, int] = {}
    for line in text.splitlines():
        count, where = _COUNT.fullmatch(line), _RANGE.fullmatch(line)
        if count is not None:
            counts[count[1]] = int(count[2])
        elif where is not None and int(where[1], 16) <= int(where[2], 16):
            used[AddrRange(int(where[1], 16), int(where[2], 16))] = int(where[3])
        else:
            return None
    if set(counts) != {"pages", "mismatches"}:
        return None
    return TouchResult(counts["pages"], counts["mismatches"], used)


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
    """Keep ``pages`` pages of ``where``, which the kernel may migrate, in use. Raises as ``pin_memory``."""
    _hold(shell, "movable", id, pages, limit, where, deadline)


def _hold(
    shell: Shell, kind: str, id: str, pages: int, limit: int, where: AddrRange, deadline: Deadline
) -> tuple[int, ...]:
    command = f"{_HOLD} {kind} {pages} {limit} {where.start:x} {where.end:x} {_fifo(id)}"
    done = shell.run(command, deadline=deadline)
    match = _HELD.fullmatch(done.text)
    if done.status != 0 or match is None or int(match[1]) != pages:
        raise done.error(f"holding {pages} pages of {where} failed in the guest")
    return tuple(int(line, 16) for line in match[2].split())


def release_memory(shell: Shell, id: str, *, deadline: Deadline) -> tuple[int, int]:
    """Release the pages held as ``id``; return how many there were and how many had changed meanwhile.

    Returns once the process has freed all of its memory. Raises GuestError, DeadlineExpired.
    """
    done = read_files(shell, [_fifo(id)], deadline=deadline).get(_fifo(id), Content(b""))
    text = done.error or done.data.decode(errors="replace")
    match = _RELEASED.fullmatch(text)
    if match is None:
        raise GuestError(f"the memory held as {id} was not released: {text.strip()[-500:]}")
    return int(match[1]), int(match[2])


def _fifo(id: str) -> str:
    return f"/run/memhp/hold-{id}"
