# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks whether a step that takes long hangs in a known bug, so that nobody waits for the step's deadline.

No watchdog of the kernel reports a task that loops for ever and lets others run. A step counts as hung once two looks
(SysRq) show the bug's function, a CPU of the guest ran for some seconds in between, and the guest has as many free
pages as before: a memory block that went offline, and pages that were moved, change that number. Anything else goes on.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from harness.check.bugs import KnownBug
from harness.check.known import bare, hanging, hung_in
from harness.deadline import Deadline
from harness.errors import InfraError
from harness.guest.console import Console
from harness.guest.sysrq import show_tasks
from harness.qemu.machine import Machine

#: seconds before the first look, and to the next one; a look that shows nothing doubles the time to the next
FIRST, NEXT = 12.0, 8.0
#: seconds that a CPU of the guest must have run between two looks
_RAN = 4.0
#: pages that come and go with the rest of the system
_NOISE = 64
#: seconds for a look, and for whoever waits to notice that the step is over
_LOOK, _NOTICE = 15.0, 2.0
#: show_mem's (mm/show_mem.c); pages on the free lists, without those of isolated pageblocks
_FREE = re.compile(r" *free:([0-9]{1,15})\b.*")


@dataclass(frozen=True, slots=True)
class _Look:
    time: float
    lines: tuple[str, ...]
    bug: KnownBug
    free: int


class HangWatch:
    """Watches the work in its block. ``stacks`` is what the kernel of a guest that hangs printed, else ().

    ``abandon`` are called with the reason, one after the other, until the work ends.
    """

    def __init__(
        self,
        bugs: Sequence[KnownBug],
        title: str,
        console: Console,
        machine: Machine,
        abandon: Sequence[Callable[[str], None]],
        *,
        first: float = FIRST,
        again: float = NEXT,
    ) -> None:
        self._bugs, self._title = tuple(hanging(bugs, title)), title
        self._console, self._machine, self._abandon = console, machine, abandon
        self._first, self._next = first, again
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memhp-hang-watch", daemon=True)
        self.stacks: tuple[str, ...] = ()

    def __enter__(self) -> HangWatch:
        if self._bugs:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._bugs:
            self._thread.join()

    def stop(self) -> None:
        """Look no more: what the step waits for need not come, and a signal ends it."""
        self._over.set()

    def _watch(self) -> None:
        seen, pause = None, self._first
        while not self._over.wait(pause):
            look = self._look()
            if seen is None or look is None or look.bug is not seen.bug or abs(look.free - seen.free) > _NOISE:
                seen, pause = look, self._next if look is not None else 2 * pause
            elif self._ran(seen.time, look.time) >= _RAN:
                self._end(seen, look)
                return

    def _look(self) -> _Look | None:
        """None if the stacks show none of the bugs."""
        since = self._console.mark
        try:
            show_tasks(self._console, self._machine.press_sysrq, deadline=Deadline(_LOOK))
        except InfraError:
            # It will not react the next time either.
            self.stop()
            return None
        self._machine.cpu_times.take()
        lines = tuple(line.text for line in self._console.lines(since))
        bug = hung_in(self._bugs, self._title, lines)
        free = next((int(found[1]) for line in lines if (found := _FREE.fullmatch(bare(line)))), None)
        return None if bug is None or free is None else _Look(time.monotonic(), lines, bug, free)

    def _ran(self, since: float, until: float) -> float:
        """The seconds that the busiest CPU of the guest ran, at least."""
        found = self._machine.cpu_times.before("", until, int(until - since) + 1)
        return max((thread.ran for thread in found.threads if thread.name != "main"), default=0.0)

    def _end(self, seen: _Look, look: _Look) -> None:
        self.stacks = (*seen.lines, *look.lines)
        assert look.bug.ends is not None
        why = f"it has been in {look.bug.ends.function} for {look.time - seen.time:.0f} s, and nothing moves"
        for abandon in self._abandon:
            abandon(why)
            if self._over.wait(_NOTICE):
                return
