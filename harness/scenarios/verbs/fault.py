# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that make the kernel's own steps fail."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Annotated

from harness.config import arguments as arg
from harness.config.arguments import Device
from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest import namespaces
from harness.guest.kernel_files import write_files
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Plan
from harness.scenarios.verbs.pmem import pmem_of, require_mode
from harness.scenarios.verbs.verb import Line, Verb

#: the control files of CONFIG_MEMORY_NOTIFIER_ERROR_INJECT
_NOTIFIERS = "/sys/kernel/debug/notifier-error-inject/memory/actions"
_EVENTS = ("going-online", "going-offline")


@dataclass(frozen=True, slots=True)
class KmemFaultVerb(Verb):
    """Fail one allocation of an add, ``step`` later each time; the state before and after is the same.

    An add that makes fewer allocations proves nothing: such a step is inconclusive.
    """

    name = "kmem-fault"
    summary = (
        "bind a devdax device to the kmem driver while one of the kernel's allocations fails, a later one each "
        "time, and unbind it again if that succeeds; memmap: own makes the memory hold its own struct pages"
    )
    line = Line("kmem-fault <id>")
    needs = ("dax-kmem", "fault-injection")
    can_fail = True
    knows_why = True

    id: Device
    step: Annotated[int, arg.count(1)] = 1
    of: Annotated[str, arg.choice("slab", "pages")] = "slab"
    memmap: Annotated[str | None, arg.choice("own")] = None

    def follow(self, plan: Plan, expect: str = "done") -> None:
        require_mode(plan, self.name, self.id, ("devdax",), "namespace with mode: devdax")

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        name, outcome = pmem_of(session, self.id).dax_name, Outcome()
        session.faults += self.step
        done = namespaces.to_system_ram(
            session.guest.shell,
            name,
            fail=session.faults,
            of=self.of,
            own=self.memmap == "own",
            deadline=deadline,
        )
        said = f"allocation {session.faults}: {'the add succeeded anyway' if done.ok else done.text}"
        if done.ok:
            back = namespaces.to_devdax(session.guest.shell, name, deadline=deadline)
            if not back.ok:
                outcome.refuse(f"{said}, and {name} could not be unbound: {back.text}")
                return outcome
            if done.left:
                outcome.inconclusive = f"no allocation failed: the add makes {session.faults - done.left} of them"
                return outcome
        # A refusal that no failed allocation explains is the kernel's own.
        outcome.refuse(said, "refused" if done.left else "failed")
        return outcome


@dataclass(frozen=True, slots=True)
class FailNotifierVerb(Verb):
    """Set which memory notifier fails from now on (lib/notifier-error-inject.c, v6.12)."""

    name = "fail-notifier"
    summary = (
        "make the kernel's memory notifiers fail (CONFIG_MEMORY_NOTIFIER_ERROR_INJECT) at an event; none: stop that"
    )
    line = Line("fail-notifier <event>")
    needs = ("notifier-errors",)

    event: Annotated[str, arg.choice(*_EVENTS, "none")]

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        codes = [
            (f"{_NOTIFIERS}/MEM_{event.upper().replace('-', '_')}/error", str(-errno.ENOMEM * (event == self.event)))
            for event in _EVENTS
        ]
        for (path, code), done in zip(codes, write_files(session.guest.shell, codes, deadline=deadline), strict=True):
            if done.error is not None:
                raise GuestError(f"writing {code} to {path} failed in the guest: {done.error}")
        return Outcome(note="no notifier fails" if self.event == "none" else f"{self.event} fails with ENOMEM")
