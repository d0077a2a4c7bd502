# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads: programs that keep the guest's kernel busy in the background, in rounds, and pause on request.

Each round frees all that it takes. ``guest-scripts/load-keeper.c`` runs each load's workers and tracks their rounds;
``guest-scripts/load-worker.c`` implements most kinds of load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.arch.config_queries import Build
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, UnsupportedError, UsageError
from harness.guest.overlay import SCRIPTS
from harness.guest.ssh import CommandResult, Shell
from harness.state import NotObserved
from harness.units import KIB

_KEEPER = "/usr/bin/load-keeper"
_WORKER = "/usr/bin/load-worker"
_COMPACTION = f"/{SCRIPTS}/load-compaction"
_HUGETLB = f"/{SCRIPTS}/load-hugetlb"
_ONLINE = f"/{SCRIPTS}/load-online"
#: seconds before the deadline when the keeper stops waiting, so that its answer arrives in time
_REPORT_SECONDS = 2.0
_ANSWER_LIMIT = 64 * KIB
_CANNOT, _NAME_TAKEN = 3, 4
_NO_SUCH_COMMAND = (126, 127)
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_COUNT = re.compile(
    r"([A-Za-z][A-Za-z0-9_-]{0,31}) ([0-9]{1,18}) ([0-9]{1,18}) "
    r"(running|resting|busy|dead|gone|stopped|killed)(?: ([ -~]{1,200}))?"
)

#: type of a load's parameter: a plain number, or a number of bytes
Parameter = Literal["integer", "size"]


@dataclass(frozen=True, slots=True)
class LoadKind:
    """A kind of load: ``needs`` are kernel options without ``CONFIG_``; all ``parameters`` are optional.

    ``cpus`` is the number of concurrent workers (default 1, at most 16); ``node`` the node whose memory they prefer;
    ``size`` the amount per round, or the size of its pieces.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    program: str = _WORKER

    def lacking(self, config: Mapping[str, str]) -> tuple[str, ...]:
        """Those of ``needs`` that a kernel with this configuration (names without ``CONFIG_``) lacks."""
        missing = Build(config).lacking(self.needs)
        return () if isinstance(missing, NotObserved) else missing

    def require(self, config: Mapping[str, str]) -> None:
        """Raise UnsupportedError, naming what is missing, unless a kernel with this configuration can run the load."""
        lacking = [f"CONFIG_{option}" for option in self.lacking(config)]
        if lacking:
            raise UnsupportedError(
                self.name,
                f"the load {self.name} needs a kernel with {' and '.join(lacking)}",
                hint="the purpose-built kernel of memhp has what its loads need",
            )


_KINDS = (
    LoadKind(
        "ptdump",
        "reads the kernel's page tables from debugfs, from start to end",
        ("DEBUG_FS", "PTDUMP_DEBUGFS"),
        {"cpus": "integer"},
    ),
    LoadKind(
        "kcore",
        "reads a page in every step (1M) of the linear map's ranges in /proc/kcore, and the last one of each",
        ("PROC_KCORE",),
        {"cpus": "integer", "step": "size"},
    ),
    LoadKind(
        "kpageflags",
        "reads /proc/kpageflags and /proc/kpagecount from end to end",
        ("PROC_PAGE_MONITOR",),
        {"cpus": "integer"},
    ),
    LoadKind(
        "vmalloc",
        "has the kernel map and unmap areas (1) of a size (16M) with vmalloc, for the ring of a packet socket",
        ("PACKET",),
        {"areas": "integer", "cpus": "integer", "node": "integer", "size": "size"},
    ),
    LoadKind(
        "anon",
        "maps a size (64M) of anonymous memory, writes to every page, reads it back and unmaps it",
        ("ADVISE_SYSCALLS",),
        {"cpus": "integer", "node": "integer", "size": "size"},
    ),
    LoadKind(
        "memfd-secret",
        "maps a size (2M) of secret memory, whose pages leave the linear map meanwhile",
        ("SECRETMEM",),
        {"cpus": "integer", "node": "integer", "size": "size"},
    ),
    LoadKind(
        "bpf",
        "attaches BPF programs, which the kernel compiles into text, to sockets and detaches them",
        ("BPF_JIT",),
        {"node": "integer"},
    ),
    LoadKind(
        "hugetlb",
        "takes huge pages (count 16) of a size (the kernel's usual one) into the pool and gives them back",
        ("HUGETLBFS",),
        {"count": "integer", "node": "integer", "size": "size"},
        _HUGETLB,
    ),
    LoadKind("compaction", "compacts the memory of all nodes", ("COMPACTION",), {}, _COMPACTION),
    LoadKind(
        "online",
        "tells each memory block that was added since, and is online, to go online, which changes nothing",
        ("MEMORY_HOTPLUG",),
        {"cpus": "integer"},
        _ONLINE,
    ),
)
#: every kind of load, by name
LOADS: Mapping[str, LoadKind] = {kind.name: kind for kind in _KINDS}


@dataclass(frozen=True, slots=True)
class LoadCount:
    """What a load has done since it was started: ``rounds`` that succeeded, ``failures`` that did not.

    ``running`` is False if the load died by itself (all of it has ended then, and ``note`` says how); it is True for a
    load that is paused or was stopped. ``note`` is the guest's text of the last failure, "" if there was none.
    """

    rounds: int
    failures: int
    running: bool
    note: str = ""


def _check_id(id: str) -> None:
    if _ID.fullmatch(id) is None:
        raise UsageError(f"invalid name for a load: {id!r}", hint="a letter, then up to 31 letters, digits, _ and -")


def start_load(shell: Shell, id: str, kind: str, args: Mapping[str, int], *, deadline: Deadline) -> None:
    """Start a load and return once its first round has begun; ``id`` is a name of the caller's choice.

    Raises UsageError for an invalid name, kind or parameter, UnsupportedError if this guest's kernel cannot run the
    load (the message says why), GuestError, DeadlineExpired.
    """
    _check_id(id)
    found = LOADS.get(kind)
    if found is None:
        raise UsageError(f"unknown kind of load: {kind!r}", hint=f"one of {', '.join(sorted(LOADS))}")
    for name, value in args.items():
        if name not in found.parameters:
            raise UsageError(f"the load {kind} has no {name!r}", hint=f"it has {', '.join(sorted(found.parameters))}")
        if not 0 <= value < 1 << 63:
            raise UsageError(f"{name}: {value} is out of range for the load {kind}")
    workers = args.get("cpus", 1)
    if not 1 <= workers <= 16:
        raise UsageError(f"cpus: a load has 1 to 16 workers, not {workers}")
    values = " ".join(f"{name}={value}" for name, value in sorted(args.items()) if name != "cpus")
    done = _run(shell, f"start {_budget(deadline)} {id} {workers} {found.program} {kind} {values}".rstrip(), deadline)
    if done.status == _NAME_TAKEN:
        raise UsageError(f"the guest already has a load {id!r}", hint="choose another name, or stop it first")
    if done.status == _CANNOT:
        raise UnsupportedError(kind, f"this guest cannot run the load {kind}: {done.text.strip()[:200]}")
    _check(done)


def pause_loads(shell: Shell, *, deadline: Deadline) -> Mapping[str, LoadCount]:
    """Pause every load at the end of its round, and return the counts of all loads by name.

    A paused load has nothing allocated, mapped or open that it did not have when it was started. Raises
    DeadlineExpired, which names the loads whose round did not end (they pause when it does), GuestError.
    """
    return _ask(shell, "pause", deadline)


def resume_loads(shell: Shell, *, deadline: Deadline) -> Mapping[str, LoadCount]:
    """Resume every load; the counts are those at which they continue. Raises GuestError, DeadlineExpired."""
    return _ask(shell, "resume", deadline)


def stop_load(shell: Shell, id: str, *, deadline: Deadline) -> LoadCount:
    """Stop a load after its current rounds; its name is free again. Raises UsageError if there is no such load.

    Raises DeadlineExpired if a round did not end: its processes are killed if the kernel lets them die; GuestError.
    """
    _check_id(id)
    done = _run(shell, f"stop {_budget(deadline)} {id}", deadline)
    if done.status == _NAME_TAKEN:
        raise UsageError(f"the guest has no load {id!r}")
    counts = _counts(done, deadline)
    if set(counts) != {id}:
        raise GuestError(f"the guest was asked to stop the load {id}, but answered for {', '.join(counts) or 'none'}")
    return counts[id]


def _ask(shell: Shell, command: str, deadline: Deadline) -> Mapping[str, LoadCount]:
    return _counts(_run(shell, f"{command} {_budget(deadline)}", deadline), deadline, busy_is_late=command == "pause")


def _budget(deadline: Deadline) -> int:
    """Milliseconds that the keeper may wait."""
    return int(max(0.1, deadline.remaining() - _REPORT_SECONDS) * 1000)


def _run(shell: Shell, arguments: str, deadline: Deadline) -> CommandResult:
    done = shell.run(f"{_KEEPER} {arguments}", deadline=deadline, limit=_ANSWER_LIMIT)
    if done.status in _NO_SUCH_COMMAND:
        raise GuestError(f"the guest has no {_KEEPER}", hint="use the guest root of memhp fetch")
    return done


def overlap(before: Mapping[str, LoadCount], after: Mapping[str, LoadCount]) -> tuple[str, str]:
    """The work of each load between two counts, as text; and the reason if that makes the step inconclusive, else "".

    A round in progress at the second count has been awaited, so each working load has completed a round.
    """
    work, idle = [], []
    for id, start in sorted(before.items()):
        now = after.get(id)
        if now is None or not now.running:
            idle.append(f"the load {id} has died" + (f": {now.note}" if now is not None and now.note else ""))
            continue
        rounds, failures = now.rounds - start.rounds, now.failures - start.failures
        work.append(f"{id} {rounds} round{'' if rounds == 1 else 's'}" + (f" ({failures} failed)" if failures else ""))
        if not rounds:
            idle.append(f"no overlap: the load {id} did no round meanwhile" + (f" ({now.note})" if now.note else ""))
    return f"while it ran: {', '.join(work)}" if work else "", "; ".join(idle)


def _check(done: CommandResult) -> None:
    if done.status != 0:
        raise done.error("the guest's load-keeper failed")


def _counts(done: CommandResult, deadline: Deadline, *, busy_is_late: bool = True) -> Mapping[str, LoadCount]:
    _check(done)
    counts: dict[str, LoadCount] = {}
    late: list[str] = []
    for line in done.text.splitlines():
        match = _COUNT.fullmatch(line)
        if match is None or match[1] in counts:
            raise GuestError(f"the guest's load-keeper printed {line[:200]!r}")
        id, rounds, failures, state, note = match.groups(default="")
        if state == "gone":
            note = "its keeper is gone"
        counts[id] = LoadCount(int(rounds), int(failures), state not in ("dead", "gone"), note)
        if state == "killed" or (state == "busy" and busy_is_late):
            late.append(f"{id} after {rounds} rounds" + (f" ({note})" if note else ""))
    if late:
        raise DeadlineExpired(
            f"loads in the guest to end a round: {', '.join(sorted(line.split()[0] for line in late))}",
            deadline.seconds,
            last_seen=", ".join(sorted(late)),
            hint="is a task stuck in the kernel? the guest's console says so after 120 s (CONFIG_DETECT_HUNG_TASK)",
        )
    return counts
