# SPDX-License-Identifier: GPL-2.0-or-later
"""Hotplug cycles: what the kernel alone takes for each operation, and the parts of the verified step that does it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.bench.figures import Figure, Target
from harness.bench.kernel_time import Alone
from harness.bench.measure import Spread
from harness.check import Verdict
from harness.collect.look import parse_state
from harness.collect.parse_cache import ParseCache
from harness.errors import InfraError
from harness.scenarios.outcome import Outcome
from harness.scenarios.result import StepResult
from harness.scenarios.run_options import Look
from harness.scenarios.session import Session
from harness.scenarios.verbs.verb import Verb
from harness.scenarios.verdict import evaluate

#: a verified step may take so many times what the kernel takes, and so many seconds more
TIMES, MORE = 2.0, 0.025
#: the times of a verified step; ``rest`` is looking, and saving what was seen
PARTS = ("step", "action", "parse", "check", "rest")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a cycle, with the device of an id: ``verb`` gives the step that does and verifies it."""

    name: str
    label: str
    verb: Callable[[str], Verb]
    alone: Alone


class Cycle:
    """Operations that restore the guest's state. Each round does them alone, then verified with either look.

    ``times`` has the seconds of each operation, one per round, by its name and the part: ``kernel``, or ``fast`` or
    ``full`` with one of PARTS.
    """

    def __init__(self, session: Session, operations: Sequence[Operation], ids: Iterator[str]) -> None:
        """``ids`` are those of the devices; QEMU frees the memory of a removed one late, and its id with it."""
        self.session = session
        self.operations = operations
        self.times: dict[tuple[str, ...], list[float]] = {}
        self._ids = ids
        self._cache = ParseCache()

    def once(self, number: int, *, counts: bool = True) -> None:
        """Do the round ``number``. Raises InfraError if a step does not pass: its time would be meaningless."""
        self._alone(counts)
        looks: list[Look] = ["fast", "full"]
        for look in looks if number % 2 == 0 else reversed(looks):
            self._verified(look, counts)

    def _alone(self, counts: bool) -> None:
        """Do each operation alone, between two looks, as in steps.

        The kernel takes longer after a look: its lock of memory hotplug needs a grace period of RCU unless it was just
        held (percpu_down_write, rcu_sync_enter).
        """
        device = next(self._ids)
        for operation in self.operations:
            self.session.look(self.session.left_out)
            seconds = operation.alone(self.session.guest, device, self.session.deadline())
            if counts:
                self._add((operation.name, "kernel"), seconds)
        self.session.look(self.session.left_out)

    def _verified(self, look: Look, counts: bool) -> None:
        device = next(self._ids)
        for operation in self.operations:
            verb, before = operation.verb(device), self.session.state
            start = time.monotonic()
            result = self.session.act(verb.name, verb.run, look=look)
            step = time.monotonic() - start
            require_pass(result)
            after, facts = self.session.state, self.session.guest.facts
            # The same once more, by itself.
            clock = time.monotonic()
            parse_state(after.raw, facts, self._cache)
            parsed = time.monotonic()
            evaluate(self.session.model, verb.name, "done", Outcome(), after, before)
            parse, check = parsed - clock, time.monotonic() - parsed
            rest = step - result.guest_seconds - parse - check
            if counts:
                for part, seconds in zip(PARTS, (step, result.guest_seconds, parse, check, rest), strict=True):
                    self._add((operation.name, look, part), seconds)

    def _add(self, key: tuple[str, ...], seconds: float) -> None:
        self.times.setdefault(key, []).append(seconds)

    def figures(self) -> Iterator[Figure]:
        """All figures of the cycle."""
        for operation in self.operations:
            name = operation.name
            kernel = self._spread(name, "kernel")
            yield Figure(f"{name}_kernel", f"{operation.label}: the kernel alone", kernel)
            for look in ("fast", "full"):
                step, action, parse, check, rest = (self._spread(name, look, part) for part in PARTS)
                over = Spread(tuple(whole - alone for whole, alone in zip(action.values, kernel.values, strict=True)))
                yield Figure(f"{name}_{look}", f"    a verified step, {look} look", step)
                yield Figure(f"{name}_{look}_overhead", "        the action beside the kernel's time", over)
                yield Figure(f"{name}_{look}_look", "        looking, and saving what was seen", rest)
                yield Figure(f"{name}_{look}_parse", "        parsing", parse)
                yield Figure(f"{name}_{look}_check", "        checking", check)
        for look in ("fast", "full"):
            rows = zip(*(self.times[operation.name, look, "step"] for operation in self.operations), strict=True)
            rates = Spread(tuple(len(self.operations) / sum(row) for row in rows))
            yield Figure(f"rate_{look}", f"verified steps a second, {look} look", rates, "/s")

    def targets(self) -> Iterator[Target]:
        """A verified step with a fast look, as a ratio to what it may take at most."""
        for operation in self.operations:
            step, kernel = (self.times[key] for key in ((operation.name, "fast", "step"), (operation.name, "kernel")))
            limit = TIMES * statistics.median(kernel) + MORE
            label = f"{operation.label}, verified / ({TIMES:g} x the kernel's time + {MORE * 1e3:g} ms)"
            yield Target(f"step_{operation.name}", label, 1.0, "x", statistics.median(step) / limit)

    def _spread(self, *key: str) -> Spread:
        return Spread(tuple(self.times[key]))


def fresh_ids(prefix: str) -> Iterator[str]:
    """``dimm0``, ``dimm1``, …"""
    return (f"{prefix}{number}" for number in itertools.count())


def require_pass(result: StepResult) -> None:
    """Raise InfraError unless a step passed."""
    if result.verdict is not Verdict.PASS:
        broken = [check.invariant for check in result.checks if check.status == "fail"]
        why = f"{', '.join(broken)} broken" if broken else result.note
        raise InfraError(f"a timed step failed: {result.title}: {why}", hint="see memhp run for details")
