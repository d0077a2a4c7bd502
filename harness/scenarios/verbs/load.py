# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that start and end loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from harness.config import arguments as arg
from harness.config.arguments import Args, Load, NewLoad
from harness.config.yaml import suggest
from harness.deadline import Deadline
from harness.guest import loads
from harness.guest.loads import LOADS
from harness.model.actions import StartLoad
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session, overlap
from harness.scenarios.verbs.plan import Impossible, Plan, require_free, require_there
from harness.scenarios.verbs.verb import Known, Line, Verb, Word

#: common names of loads
_ALIASES = {"ptdump-loop": "ptdump"}


@dataclass(frozen=True, slots=True)
class LoadArgs(Args):
    """A load of a ``kind`` of ``guest.loads.LOADS``, which says what the parameters mean and which of them it has."""

    id: NewLoad
    kind: Annotated[str, arg.choice(*LOADS)]
    cpus: Annotated[int | None, arg.count()] = None
    step: Annotated[int | None, arg.size(minimum=0, bare=False)] = None
    areas: Annotated[int | None, arg.count()] = None
    node: Annotated[int | None, arg.count()] = None
    size: Annotated[int | None, arg.size(minimum=0, bare=False)] = None
    count: Annotated[int | None, arg.count()] = None

    @property
    def given(self) -> Mapping[str, int]:
        """The parameters that are given."""
        values: Mapping[str, int | str | None] = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if isinstance(value, int)}


@dataclass(frozen=True, slots=True)
class UnloadArgs(Args):
    """The load that ends."""

    id: Load


def _follow_load(plan: Plan, args: LoadArgs, expect: str) -> None:
    require_free(args.id, plan.loads, f"a load {args.id!r} is already running", "unload")
    known = LOADS[args.kind].parameters
    for name in args.given:
        if name not in known:
            raise Impossible(name, f"a load of the kind {args.kind} has no {name!r}", suggest(name, known))
    plan.loads.add(args.id)


def _follow_unload(plan: Plan, args: UnloadArgs, expect: str) -> None:
    require_there(args.id, plan.loads, f"no load {args.id!r} is running")
    plan.loads.remove(args.id)


def load(session: Session, args: LoadArgs, deadline: Deadline) -> Outcome:
    """Start a load; it runs until unload, paused during snapshots."""
    loads.start_load(session.guest.shell, args.id, args.kind, args.given, deadline=deadline)
    session.loads[args.id] = loads.LoadCount(0, 0, True)
    session.apply(StartLoad(args.kind))
    return Outcome(note=f"{args.kind} is running")


def unload(session: Session, args: UnloadArgs, deadline: Deadline) -> Outcome:
    """End a load; a load that had died is a failure."""
    start = session.loads.pop(args.id)
    count = loads.stop_load(session.guest.shell, args.id, deadline=deadline)
    _, inconclusive = overlap({args.id: start}, {args.id: count})
    total = f"{count.rounds} rounds in all" + (f", {count.failures} failed" if count.failures else "")
    return Outcome(note=total, inconclusive="" if count.running else inconclusive)


def _read_kind(word: str, known: Known) -> Mapping[str, str]:
    return {"kind": _ALIASES.get(word, word)}


LOAD = Verb(
    "load",
    "start a load that runs until unload, paused during snapshots",
    LoadArgs,
    load,
    Line("load <kind> [id]", {"kind": Word("KIND", ("kind",), _read_kind, tuple(LOADS))}, fresh="{kind}"),
    _follow_load,
    more_needs=lambda args: ("acpi-node",) if args.node else (),
    require=lambda args, config: LOADS[args.kind].require(config),
)
UNLOAD = Verb("unload", "end a load", UnloadArgs, unload, Line("unload <id>"), _follow_unload)

VERBS = (LOAD, UNLOAD)
