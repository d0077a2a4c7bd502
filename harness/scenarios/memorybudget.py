# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's memory for guests, and how many of them may run at a time."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.config.guest import GuestSpec
from harness.scenarios.memorypromises import Promises
from harness.scenarios.steps import AnyStep, flat
from harness.scenarios.verbs.memory import FillVerb, TouchVerb
from harness.units import GIB, MIB

#: host memory of a guest besides its own: QEMU, translated code, firmware, the harness
OVERHEAD = 512 * MIB
#: the fraction of available memory that guests may take
SHARE = 0.8

#: limits, usage, and the line of memory.stat with page cache that can be dropped, in cgroup v2 (a limit may be ``max``)
#: and v1 (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst)
_V2 = (("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def parse_bytes(name: str, text: str) -> int | None:
    """The line ``name`` of /proc/meminfo or /proc/PID/status, in bytes; None if there is none."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) << 10


def peak_memory(pid: int | str) -> int | None:
    """A process's (``self``: this one's) peak memory in bytes, including shared memory; None if it is gone."""
    try:
        return parse_bytes("VmHWM", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes available on this machine, or less if a cgroup of this process, or one above it, has less; None if unknown.

    ``root`` is where /proc and the cgroups are.
    """
    found = []
    with contextlib.suppress(OSError):
        found.append(parse_bytes("MemAvailable", (root / "proc/meminfo").read_text()))
    with contextlib.suppress(OSError, ValueError):
        for folder, (limits, usage, cache) in _cgroups(root):
            found += [_left(folder, limit, usage, cache) for limit in limits]
    return min((bytes for bytes in found if bytes is not None), default=None)


def _left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    """What a cgroup may still take; None if it has no such limit."""
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        stat = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(0, most - used + (0 if stat is None else int(stat[1])))


def _cgroups(root: Path) -> Iterator[tuple[Path, tuple[tuple[str, ...], str, str]]]:
    """Each folder of a cgroup with our memory, from our own up to the top of what is mounted, and its files' names."""
    paths = {}
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers or "cgroup2"] = path
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        # proc_pid_mountinfo(5): root and place of the mount, then after a hyphen its type and options.
        (_, _, _, top, place, *_), (kind, _, options) = line.split(), line.partition(" - ")[2].split(maxsplit=2)
        v1 = kind == "cgroup" and "memory" in options.split(",")
        mine = next((paths[name] for name in paths if v1 and "memory" in name.split(",")), None)
        mine = paths.get(kind) if kind == "cgroup2" else mine
        if mine is None:
            continue
        below = Path(mine).relative_to(top) if Path(mine).is_relative_to(top) and ".." not in mine else Path()
        mounted = root / place.lstrip("/")
        for folder in (mounted / below, *(mounted / above for above in below.parents)):
            yield folder, _V1 if v1 else _V2


def cost(guest: GuestSpec, steps: Sequence[AnyStep] = ()) -> int:
    """Maximum host memory of a guest in bytes: its own, the memory that ``steps`` write, and QEMU's."""
    done = [*guest.devices, *(step.args for step in flat(steps))]
    touched = sum(args.size for args in done if isinstance(args, TouchVerb))
    if any(isinstance(args, FillVerb) for args in done):
        touched += sum(args.capacity for args in done)
    return guest.memory + OVERHEAD + touched


class MemoryBudget:
    """Counts the memory reserved for running guests, ours and other processes'; thread-safe.

    ``total`` bytes None: no limit. What others have promised to their guests counts in full.
    """

    def __init__(self, total: int | None, promises: Promises | None = None) -> None:
        self.total = total
        self._promises = promises
        self._taken: list[int] = []
        self._lock = threading.Lock()

    @classmethod
    @contextlib.contextmanager
    def of_host(cls) -> Iterator[MemoryBudget]:
        """A fraction of the memory available now; other processes see what is reserved until the block is left."""
        available, promises = available_memory(), Promises.of_host()
        try:
            covered = promises is not None and promises.covered
            total = None if available is None or covered else int(available * SHARE)
            yield cls(total, None if covered else promises)
        finally:
            if promises is not None:
                promises.close()

    @contextlib.contextmanager
    def _others(self) -> Iterator[int]:
        """The bytes that others have promised, while they promise nothing more."""
        with contextlib.nullcontext(0) if self._promises is None else self._promises.others() as size:
            yield size

    def lack(self, costs: Sequence[int], at_once: int) -> str | None:
        """Say how many of ``at_once`` guests with these ``costs`` fit; None if all do."""
        most = max(costs, default=0)
        if self.total is None or not most:
            return None
        with self._others() as others:
            room = max(0, self.total - others)
        if most * min(at_once, len(costs)) <= room:
            return None
        fit = max(1, room // most)
        theirs = f" besides {_gib(others)} that other memhp processes may use" if others else ""
        return (
            f"memory for {fit} guest{'' if fit == 1 else 's'} at a time, not for {at_once}: "
            f"{_gib(room)} available{theirs}, a guest may take {_gib(most)}"
        )

    def enter(self, size: int) -> bool:
        """Reserve ``size`` bytes; False if they are not available. The first guest of a process always gets them."""
        with self._lock, self._others() as others:
            taken = sum(self._taken)
            if self._taken and self.total is not None and others + taken + size > self.total:
                return False
            self._taken.append(size)
            self._promise()
            return True

    def leave(self, size: int) -> None:
        """Give ``size`` bytes back."""
        with self._lock:
            self._taken.remove(size)
            self._promise()

    def _promise(self) -> None:
        if self._promises is not None:
            self._promises.promise(sum(self._taken))


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}G"
