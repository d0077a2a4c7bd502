# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that start and end loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from harness.config import arguments as arg
from harness.config.arguments import Load, NewLoad
from harness.config.yaml import suggest
from harness.deadline import Deadline
from harness.guest import loads
from harness.guest.loads import LOADS, overlap
from harness.model.actions import StartLoad
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.scenarios.verbs.plan import Impossible, Plan, require_free, require_there
from harness.scenarios.verbs.verb import Known, Line, Verb, Word

#: common names of loads
_ALIASES = {"ptdump-loop": "ptdump"}


def _read_kind(word: str, known: Known) -> Mapping[str, str]:
    return {"kind": _ALIASES.get(word, word)}


@dataclass(frozen=True, slots=True)
class LoadVerb(Verb):
    """A load of a ``kind`` of ``guest.loads.LOADS``, which says what the parameters mean and which of them it has."""

    name = "load"
    summary = "start a load that runs until unload, paused during snapshots"
    line = Line("load <kind> [id]", {"kind": Word("KIND", ("kind",), _read_kind, tuple(LOADS))}, fresh="{kind}")

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

    def requirements(self) -> tuple[str, ...]:
        return ("acpi-node",) if self.node else ()

    def require(self, config: Mapping[str, str]) -> None:
        LOADS[self.kind].require(config)

    def follow(self, plan: Plan, expect: str = "done") -> None:
        require_free(self.id, plan.loads, f"a load {self.id!r} is already running", "unload")
        known = LOADS[self.kind].parameters
        for name in self.given:
            if name not in known:
                raise Impossible(name, f"a load of the kind {self.kind} has no {name!r}", suggest(name, known))
        plan.loads[self.id] = self.kind

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        loads.start_load(session.guest.shell, self.id, self.kind, self.given, deadline=deadline)
        session.loads[self.id], session.load_kinds[self.id] = loads.LoadCount(0, 0, True), self.kind
        session.apply(StartLoad(self.kind))
        return Outcome(note=f"{self.kind} is running")


@dataclass(frozen=True, slots=True)
class UnloadVerb(Verb):
    """End a load; a load that had died is a failure."""

    name = "unload"
    summary = "end a load"
    line = Line("unload <id>")

    id: Load

    def follow(self, plan: Plan, expect: str = "done") -> None:
        require_there(self.id, plan.loads, f"no load {self.id!r} is running")
        del plan.loads[self.id]

    def run(self, session: Session, deadline: Deadline) -> Outcome:
        start = session.loads.pop(self.id)
        count = loads.stop_load(session.guest.shell, self.id, deadline=deadline)
        _, inconclusive = overlap({self.id: start}, {self.id: count})
        total = f"{count.rounds} rounds in all" + (f", {count.failures} failed" if count.failures else "")
        return Outcome(note=total, inconclusive="" if count.running else inconclusive)
