# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a scenario: single verbs, parallel ones, and repeated ones."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from harness.deadline import Deadline
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Impossible, Plan
from harness.scenarios.verbs.verb import Verb

#: the first round of a soak warms caches up; three more make a line
LEAST_ROUNDS = 4


class WrongStep(Impossible):
    """``step`` makes no sense after those before it."""

    def __init__(self, step: Step, wrong: Impossible) -> None:
        super().__init__(wrong.argument, wrong.problem, wrong.hint)
        self.step = step


@contextlib.contextmanager
def _blame(step: Step) -> Iterator[None]:
    try:
        yield
    except Impossible as wrong:
        raise WrongStep(step, wrong) from None


@dataclass(frozen=True, slots=True)
class Step:
    """One verb with its arguments, ``args``.

    ``expect`` is its expected end, ``says`` are texts of which the expected refusal has one, ``bugs`` are the ids of
    known bugs that show here on a kernel that has them; ``expect_on``, ``says_on`` and ``bugs_on`` are the same by
    architecture, where that matters: see ``on``; ``only`` is the one architecture it is done on. ``line``, ``key`` and
    ``lines`` (of the arguments) locate it in its file.
    """

    args: Verb
    line: int = 0
    expect: str = "done"
    key: str = ""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    bugs: tuple[str, ...] = ()
    expect_on: Mapping[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    says_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bugs_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only: str | None = None

    def on(self, arch: str) -> Step:
        """The step for ``arch``."""
        expect, bugs = self.expect_on.get(arch, self.expect), self.bugs_on.get(arch, self.bugs)
        says = () if expect == "done" else self.says_on.get(arch, self.says)
        return dataclasses.replace(self, expect=expect, says=says, bugs=bugs, expect_on={}, says_on={}, bugs_on={})

    @property
    def verb(self) -> str:
        """The name of its verb."""
        return self.args.name

    @property
    def title(self) -> str:
        """``plug-dimm dimm0 1G``."""
        return self.args.title(self.expect)

    def follow(self, plan: Plan, expect: str | None = None) -> None:
        """Apply it to ``plan``; ``expect`` is how it ended, None as expected. Raises WrongStep."""
        with _blame(self):
            self.args.follow(plan, expect or self.expect)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        """Do it."""
        return self.args.run(session, deadline)


@dataclass(frozen=True, slots=True)
class Parallel:
    """Steps that run in parallel, as one step; the fields are as in ``Step``."""

    steps: tuple[Step, ...]
    line: int = 0
    key: str = ""
    bugs: tuple[str, ...] = ()
    bugs_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verb = "parallel"
    expect = "done"
    says = ()
    only = None

    def on(self, arch: str) -> Parallel:
        """The step for ``arch``."""
        bugs = self.bugs_on.get(arch, self.bugs)
        return dataclasses.replace(self, steps=steps_on(self.steps, arch), bugs=bugs, bugs_on={})

    @property
    def title(self) -> str:
        """``unplug dimm0 | online dimm1 movable``."""
        return " | ".join(step.title for step in self.steps)

    def follow(self, plan: Plan, expect: str | None = None) -> None:
        """Apply all of them, each with its expected end. Raises WrongStep."""
        args = [step.args for step in self.steps]
        for number, step in enumerate(self.steps):
            with _blame(step):
                step.args.require_beside(args[:number], args[number + 1 :])
        for step in self.steps:
            step.follow(plan)

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        """Run all of them."""
        return side_by_side([(step.title, step.run) for step in self.steps])(session, deadline)


@dataclass(frozen=True, slots=True)
class Repeat:
    """Steps that are done ``times``; ``soak`` fits the slope of every counter over the rounds."""

    times: int
    steps: tuple[AnyStep, ...]
    soak: bool = False
    verb = "repeat"
    only = None

    def on(self, arch: str) -> Repeat:
        """The steps for ``arch``."""
        return dataclasses.replace(self, steps=steps_on(self.steps, arch))

    @property
    def title(self) -> str:
        """``repeat 3 times``."""
        return f"repeat {self.times} times"

    def follow(self, plan: Plan) -> None:
        """Apply two rounds: later ones are equal. Raises WrongStep."""
        for _ in range(min(2, self.times)):
            for step in self.steps:
                step.follow(plan)

    def rounds(self, wanted: int | None) -> int:
        """How often the steps are done; ``wanted`` is for soaks alone."""
        return max(wanted, LEAST_ROUNDS) if self.soak and wanted is not None else self.times


AnyStep = Step | Parallel | Repeat
S = TypeVar("S", Step, AnyStep)


def steps_on(steps: Sequence[S], arch: str) -> tuple[S, ...]:
    """``steps`` for ``arch``, without those of other architectures."""
    return tuple(step.on(arch) for step in steps if step.only in (None, arch))


def flat(steps: Sequence[AnyStep]) -> Iterator[Step]:
    """Every verb in ``steps``, each once, in order."""
    for step in steps:
        if isinstance(step, Step):
            yield step
        else:
            yield from flat(step.steps)


def count_steps(steps: Sequence[AnyStep], rounds: int | None = None) -> int:
    """The number of steps with every ``repeat`` unrolled, plus one at the end of each soak.

    ``rounds`` overrides the repetitions of a soak, None keeps the scenario's.
    """
    return sum(
        step.rounds(rounds) * count_steps(step.steps, rounds) + step.soak if isinstance(step, Repeat) else 1
        for step in steps
    )


def needs_of_steps(steps: Sequence[AnyStep]) -> tuple[str, ...]:
    """The requirements of ``steps``, each once, sorted; steps that QEMU or the guest must refuse need nothing."""
    done = (step for step in flat(steps) if step.expect in ("done", "failed"))
    return tuple(sorted({need for step in done for need in step.args.requirements()}))


def require_options(steps: Sequence[AnyStep], config: Mapping[str, str] | None) -> None:
    """Raise UnsupportedError if a kernel of this configuration cannot do one of ``steps``; an unknown one passes."""
    if config is not None:
        for step in flat(steps):
            step.args.require(config)


#: one action: its title and what does it
Branch = tuple[str, Callable[[Session, Deadline], Outcome]]


@dataclass(frozen=True, slots=True)
class _Done:
    title: str
    outcome: Outcome
    started: float
    ended: float


def side_by_side(branches: Sequence[Branch]) -> Callable[[Session, Deadline], Outcome]:
    """One piece of work that does all ``branches`` at the same time and ends with the last of them.

    An error of one is raised once all have ended.
    """

    def work(session: Session, deadline: Deadline) -> Outcome:
        def one(branch: Branch) -> _Done:
            started = time.monotonic()
            outcome = branch[1](session, deadline)
            return _Done(branch[0], outcome, started, time.monotonic())

        with ThreadPoolExecutor(len(branches), thread_name_prefix="memhp-step") as pool:
            futures = [pool.submit(one, branch) for branch in branches]
        return joined([future.result() for future in futures])

    return work


def joined(parts: Sequence[_Done]) -> Outcome:
    """The outcome that stands for all: done if every one is, else the first that is not."""
    outcome = Outcome(pending=any(part.outcome.pending for part in parts))
    for part in parts:
        outcome.offlines += part.outcome.offlines
        outcome.unplugs += part.outcome.unplugs
        outcome.resizes += part.outcome.resizes
        outcome.touches += part.outcome.touches
        if part.outcome.ending != "done":
            outcome.refuse(f"{part.title}: {part.outcome.note}", part.outcome.ending)
    outcome.refusals = [refusal for part in parts for refusal in part.outcome.refusals]
    both = min(part.ended for part in parts) - max(part.started for part in parts)
    apart = [] if both > 0 else ["no overlap: one had ended before another began"]
    outcome.inconclusive = "; ".join([*filter(None, (part.outcome.inconclusive for part in parts)), *apart])
    if outcome.ending == "done":
        times = [f"{part.title} {part.ended - part.started:.2f} s" for part in parts]
        outcome.note = f"{', '.join(times)}; all at once for {max(both, 0.0):.2f} s"
    return outcome
