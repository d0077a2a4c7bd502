# SPDX-License-Identifier: GPL-2.0-or-later
"""Use memory in the guest: allocate it, write a pattern, read it back, and report where the pages were."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import GuestError, UsageError
from harness.guest.ssh import Shell
from harness.units import AddrRange, format_size

_TOOL = "/usr/bin/touch-memory"
_NO_SUCH_COMMAND = (126, 127)
_RANGE = re.compile(r"range ([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([0-9]{1,20})")
_COUNT = re.compile(r"(pages|mismatches) ([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class TouchResult:
    """``pages`` written and read back, ``mismatches`` of them that came back changed, bytes ``used`` in each range."""

    pages: int
    mismatches: int
    used: Mapping[AddrRange, int]


def touch_memory(
    shell: Shell,
    size: int,
    ranges: Iterable[AddrRange],
    *,
    deadline: Deadline,
    limit: int = 0,
    node: int | None = None,
) -> TouchResult:
    """Allocate ``size`` bytes, fill and read them back; count the bytes in each of ``ranges`` (physical).

    Continues to allocate, up to ``limit`` bytes, while a range has supplied no page; prefers ``node`` if given.

    Raises UsageError for a size below one byte, GuestError if the tool is missing or failed (out of memory, killed),
    DeadlineExpired.
    """
    if size <= 0:
        raise UsageError(f"cannot touch {size} bytes of memory")
    wanted = list(dict.fromkeys(ranges))
    words = [_TOOL, *(() if node is None else ("-n", str(node))), str(size), str(max(size, limit))]
    command = " ".join([*words, *(f"{where.start:x}-{where.end:x}" for where in wanted)])
    done = shell.run(command, deadline=deadline)
    said = done.stderr.decode(errors="replace").strip()[-500:]
    if done.status in _NO_SUCH_COMMAND:
        raise GuestError(f"the guest has no {_TOOL}: {said}", hint="use the guest root of memhp fetch")
    if done.status < 0:
        raise GuestError(f"touching {format_size(size)} was killed in the guest", hint="ask for less than is free")
    result = parse_touch(done.stdout.decode(errors="replace"))
    if result is None or set(result.used) != set(wanted):
        raise GuestError(f"touching {format_size(size)} failed in the guest (status {done.status}): {said}")
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
