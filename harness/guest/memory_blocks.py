# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory blocks (drivers/base/memory.c): set them online or offline, and wait for their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestError, UsageError
from harness.guest.kernel_files import parse_written, write_files
from harness.guest.overlay import SCRIPTS
from harness.guest.ssh import Command, CommandResult, Shell
from harness.guest.waits import GuestWait

Target = Literal["online", "online_kernel", "online_movable", "offline"]

_SYSFS = "/sys/devices/system/memory"
#: seconds before the deadline when the guest stops waiting, so that its report arrives in time
_REPORT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class BlockOutcome:
    """Result of a write to one block's state: ``error`` is None, or the errno's name, such as EBUSY.

    ``seconds`` is how long the kernel took for it, by the guest's clock; None in a guest root without the agent.
    """

    index: int
    ok: bool
    error: str | None = None
    seconds: float | None = None


def set_blocks(
    shell: Shell, indexes: Iterable[int], to: Target | str, *, deadline: Deadline, patience: int | None = None
) -> tuple[BlockOutcome, ...]:
    """Write ``to`` to the state of each block, in the order given, in one round trip.

    With ``patience``, a signal interrupts a write that takes that many seconds (EINTR). A refusal by the kernel is an
    outcome, not an error. Raises UsageError for an unknown state, GuestError, DeadlineExpired.
    """
    check_target(to)
    wanted = list(indexes)
    if not wanted:
        return ()
    request = f"set {to}" + ("" if patience is None else f" {patience}")
    outcomes = tuple(_outcome(line) for line in _ask(shell, request, wanted, deadline))
    if [outcome.index for outcome in outcomes] != wanted:
        raise GuestError(f"asked for {len(wanted)} memory blocks, the guest answered for {len(outcomes)}")
    return outcomes


def valid_zones(shell: Shell, indexes: Iterable[int], *, deadline: Deadline) -> dict[int, tuple[str, ...]]:
    """Each block's valid_zones: its zone, or those open to an offline one. Raises GuestError, DeadlineExpired."""
    wanted = list(indexes)
    if not wanted:
        return {}
    lines = [line.split(" ") for line in _ask(shell, "zones", wanted, deadline)]
    if [words[0] for words in lines] != [str(index) for index in wanted]:
        raise GuestError(f"asked for the zones of {len(wanted)} memory blocks, the guest answered for {len(lines)}")
    return {int(words[0]): tuple(word for word in words[1:] if word) for words in lines}


def set_auto_online(shell: Shell, policy: Target | str, *, deadline: Deadline) -> None:
    """Set auto_online_blocks, the policy for new memory. Raises UsageError, GuestError, DeadlineExpired."""
    check_target(policy)
    [done] = write_files(shell, [(f"{_SYSFS}/auto_online_blocks", policy)], deadline=deadline)
    if done.error is not None:
        raise GuestError(f"the guest rejects {policy} for auto_online_blocks: {done.error}")


def wait_blocks(
    shell: Shell,
    *,
    present: Iterable[int] = (),
    absent: Iterable[int] = (),
    states: Mapping[int, str] | None = None,
    deadline: Deadline,
) -> None:
    """Return once the blocks are as ``blocks_wait`` says. Raises DeadlineExpired, GuestError."""
    blocks_wait(present=present, absent=absent, states=states, deadline=deadline).alone(shell, deadline)


def blocks_wait(
    *,
    present: Iterable[int] = (),
    absent: Iterable[int] = (),
    states: Mapping[int, str] | None = None,
    deadline: Deadline,
) -> GuestWait:
    """The wait until the blocks of ``present`` exist, those of ``absent`` do not, and ``states`` hold.

    Its DeadlineExpired names the blocks that differ.
    """
    wanted = [f"{index} present" for index in present]
    wanted += [f"{index} absent" for index in absent]
    wanted += [f"{index} {state}" for index, state in (states or {}).items()]
    budget = max(0.0, deadline.remaining() - _REPORT_SECONDS)

    def judge(done: CommandResult) -> None:
        late = [line.split(" ", 2) for line in _lines(done)]
        if late:
            raise DeadlineExpired(
                f"memory blocks in the guest: {_some([f'memory{entry[0]} {entry[1]}' for entry in late])}",
                deadline.seconds,
                last_seen=_some([f"memory{entry[0]} {' '.join(entry[2:]) or 'unreadable'}" for entry in late]),
            )

    return GuestWait(_request(f"wait {int(budget * 100)}", wanted), judge)


def check_target(word: str) -> None:
    """Raise UsageError unless ``word`` can be written to a block's state or to auto_online_blocks."""
    if word not in get_args(Target):
        raise UsageError(f"{word!r} is not a state for a memory block", hint=f"one of {', '.join(get_args(Target))}")


def _outcome(line: str) -> BlockOutcome:
    number, _, rest = line.partition(" ")
    done = parse_written(rest)
    if not number.isdecimal() or done is None:
        raise GuestError(f"the guest's blocks script printed {line[:200]!r}")
    return BlockOutcome(int(number), done.error is None, done.error, done.seconds)


def _ask(shell: Shell, request: str, lines: Iterable[int | str], deadline: Deadline) -> list[str]:
    command, stdin = _request(request, lines)
    return _lines(shell.run(command, stdin=stdin, deadline=deadline))


def _request(request: str, lines: Iterable[int | str]) -> Command:
    return f"/{SCRIPTS}/blocks {request}", "".join(f"{line}\n" for line in lines).encode()


def _lines(done: CommandResult) -> list[str]:
    if done.status != 0:
        raise done.error("the guest's blocks script failed", hint="does this kernel have CONFIG_MEMORY_HOTPLUG?")
    return done.text.splitlines()


def _some(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
