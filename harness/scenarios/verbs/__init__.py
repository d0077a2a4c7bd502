# SPDX-License-Identifier: GPL-2.0-or-later
"""All verbs, one record each; one file per group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from harness.config.arguments import Args
from harness.deadline import Deadline
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs import blocks, dimm, fault, load, memory, plugging, pmem, reboot, virtio_mem
from harness.scenarios.verbs.plan import Impossible, Plan
from harness.scenarios.verbs.verb import AnyVerb, Verb

A = TypeVar("A", bound=Args)

_GROUPS: tuple[tuple[AnyVerb, ...], ...] = (
    *(dimm.VERBS, virtio_mem.VERBS, pmem.VERBS, plugging.VERBS, blocks.VERBS),
    *(memory.VERBS, load.VERBS, fault.VERBS, reboot.VERBS),
)
#: every verb by its name
VERBS: dict[str, AnyVerb] = {verb.name: verb for group in _GROUPS for verb in group}
_NAMES: Mapping[type[Args], str] = {verb.arguments: verb.name for verb in VERBS.values()}


def verb_of(args: A) -> Verb[A]:
    """The verb whose arguments these are."""
    return VERBS[_NAMES[type(args)]]


def title_of(args: Args, expect: str = "done") -> str:
    """A step in one line for people: ``plug-dimm dimm0 1G``."""
    return " ".join([verb_of(args).name, *args.spelled()]) + ("" if expect == "done" else f" ({expect})")


def work_of(args: Args) -> Callable[[Session, Deadline], Outcome]:
    """The work of ``Session.act`` for a step with these arguments."""
    verb = verb_of(args)
    return lambda session, deadline: verb.run(session, args, deadline)


def needs_of(args: Args) -> tuple[str, ...]:
    """The requirements that a step with these arguments has."""
    verb = verb_of(args)
    return (*verb.needs, *verb.more_needs(args))


def follow(plan: Plan, args: Args, expect: str = "done") -> None:
    """Apply a step with that expected or actual end to the plan; raises Impossible."""
    verb_of(args).follow(plan, args, expect)


def require_beside(args: Args, earlier: Sequence[Args], later: Sequence[Args]) -> None:
    """Raise Impossible unless a step can run in parallel with those before and after it.

    No two of them may use the same id, and the place of none may depend on another.
    """
    verb = verb_of(args)
    for _, id in args.ids() & {named for other in earlier for named in other.ids()}:
        raise Impossible(None, f"two parallel steps use {id!r}", "run them one after the other")
    movers = [other for other in (*earlier, *later) if verb_of(other).room]
    if movers and verb.room == "takes" and not verb.placed(args):
        raise Impossible(None, "its place depends on the order of parallel steps", verb.place_hint)
