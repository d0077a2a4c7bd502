# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundle of a run: everything needed to debug it, check it again without a VM, and replay it.

::

    scenario.yaml   the steps as they were written         run.json        what was run, and how it ended
    facts/          what the kernel is (collect.store)     machine.json    the guest as QEMU built it
    states/000/     one snapshot a step, one file a source states/NNN/step.json  actions, ending and reports
    boots/NNN/      facts and state of the guest as it came up again in step NNN
    known-bugs.yaml  what was known then; without it, nothing is
    console.log  qmp.jsonl  qemu.stderr  argv.txt  notes.txt
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from harness.arch import arch_named
from harness.check import DumpReport, OfflineReport, ResizeReport, Slope, TouchReport, UnplugReport, Verdict
from harness.check.bugs import NAME as BUGS
from harness.check.bugs import parse_bugs
from harness.check.known import Watch, watch_for
from harness.collect.store import load_facts, load_state, save_facts, save_raw, save_state
from harness.config.yaml import read_text
from harness.errors import InfraError, UsageError
from harness.model.actions import Action, action_from_json, action_to_json
from harness.model.layout import MachineShape
from harness.scenarios.outcome import Outcome
from harness.state import GuestState, KernelFacts
from harness.units import AddrRange

#: layout of the bundle; another number is refused, not guessed at
FORMAT = 1
#: how the run ended: ``verdict``, ``reason``, and the number of the last of its ``steps``
VERDICT = "verdict.json"
#: where bundles go when nobody says where
DEFAULT_BUNDLES = Path("memhp-runs")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def open_bundle(chosen: Path | None, name: str, started: datetime.datetime) -> Path:
    """A new private folder for what is recorded of ``name``, in ``chosen`` or DEFAULT_BUNDLES; raises InfraError."""
    path = (chosen or DEFAULT_BUNDLES) / f"{started:%Y%m%d-%H%M%S-%f}-{name}"
    try:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another run that leaves nothing behind removes an empty folder of bundles, maybe just now.
            with contextlib.suppress(FileNotFoundError):
                path.mkdir(mode=0o700)
                return path
    except OSError as error:
        raise InfraError(f"cannot write the bundle {path}: {error.strerror}", hint="see --bundle-dir") from None


class Recorder:
    """Writes the bundle while the run goes on, so that even a killed harness leaves what there was."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._actions: dict[int, list[Action]] = {}

    def start(self, scenario: str, scenario_text: str, details: Mapping[str, object]) -> None:
        """Open the bundle."""
        (self.directory / "scenario.yaml").write_text(scenario_text)
        write_json(self.directory / "run.json", {"format": FORMAT, "scenario": scenario, **details})

    def save_bugs(self, text: str) -> None:
        """The known bugs that the run was judged by."""
        (self.directory / BUGS).write_text(text)

    def save_guest(self, shape: MachineShape, facts: KernelFacts) -> None:
        """The machine and its kernel."""
        write_json(self.directory / "machine.json", shape_to_json(shape))
        save_facts(self.directory / "facts", facts)

    def save_boot(self, state: GuestState) -> None:
        """The freshly booted guest: the base that later states are compared with."""
        save_state(self.step_dir(0), state)

    def save_unparsed(self, directory: Path, raw: Mapping[str, bytes]) -> None:
        """The text of a snapshot that could not be parsed, where the snapshot would be: checked again, it may be."""
        save_raw(directory, raw)

    def save_reboot(self, step: int, facts: KernelFacts, state: GuestState) -> None:
        """The guest as it came up again in ``step``: the base of later comparisons."""
        save_facts(self.boot_dir(step) / "facts", facts)
        save_state(self.boot_dir(step) / "state", state)

    def note_action(self, step: int, action: Action) -> None:
        """Remember what took effect in a step."""
        self._actions.setdefault(step, []).append(action)

    def save_step(
        self,
        number: int,
        title: str,
        expect: str,
        outcome: Outcome,
        state: GuestState | None,
        bugs: Sequence[str] = (),
    ) -> None:
        """One step with its snapshot, None where the guest was still at work."""
        directory = self.step_dir(number)
        if state is not None:
            save_state(directory, state)
        directory.mkdir(parents=True, exist_ok=True)
        step = {
            "title": title,
            "expect": expect,
            "bugs": list(bugs),
            "actions": [action_to_json(action) for action in self._actions.get(number, [])],
            "outcome": outcome_to_json(outcome),
        }
        write_json(directory / "step.json", step)

    def undo(self, number: int) -> None:
        """Put the steps after ``number`` aside, as ``undone-N``: the guest is back where it was then."""
        self._actions = {step: actions for step, actions in self._actions.items() if step <= number}
        later = [path for path in self.directory.glob("states/*") if int(path.name) > number]
        boots = [path for path in self.directory.glob("boots/*") if int(path.name) > number]
        if later:
            aside = self.directory / f"undone-{len(list(self.directory.glob('undone-*'))) + 1}"
            (aside / "boots").mkdir(parents=True)
            for path in later:
                path.rename(aside / path.name)
            for path in boots:
                path.rename(aside / "boots" / path.name)

    def note(self, text: str) -> None:
        """Append a line to the notes."""
        with (self.directory / "notes.txt").open("a") as notes:
            notes.write(text + "\n")

    def save_monitor(self, text: str) -> None:
        """What QEMU's monitor told of a guest that got lost."""
        (self.directory / "monitor.txt").write_text(text)

    def step_dir(self, number: int) -> Path:
        return self.directory / "states" / f"{number:03d}"

    def boot_dir(self, number: int) -> Path:
        return self.directory / "boots" / f"{number:03d}"


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step of a saved run; ``again`` is the guest as it came up in a step that rebooted it."""

    number: int
    title: str
    expect: str
    actions: tuple[Action, ...]
    outcome: Outcome
    state: GuestState | None
    bugs: tuple[str, ...] = ()
    again: tuple[KernelFacts, GuestState] | None = None


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A bundle read back; the states are parsed afresh from their files. ``watch`` has the known bugs of its time.

    ``verdict``, with its ``reason``, is what the run came to, after the steps up to number ``count``; None where it did
    not say.
    """

    details: Mapping[str, Any]
    shape: MachineShape
    facts: KernelFacts
    boot: GuestState
    steps: tuple[RecordedStep, ...]
    watch: Watch
    verdict: Verdict | None = None
    reason: str = ""
    count: int | None = None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path.parent} is no bundle: it has no {path.name}", hint="name a run's directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None


def load_run(directory: Path) -> RecordedRun:
    """Read a bundle; raises UsageError for what is none, ParseError for a source that cannot be understood."""
    details = _read_json(directory / "run.json")
    if details.get("format") != FORMAT:
        raise UsageError(
            f"{directory} was written in format {details.get('format')}, this memhp reads {FORMAT}",
            hint="use the memhp that wrote it",
        )
    shape = shape_from_json(_read_json(directory / "machine.json"))
    facts = load_facts(directory / "facts", shape.arch)
    boot = load_state(directory / "states" / "000", facts)
    bugs = directory / BUGS
    watch = watch_for(parse_bugs(read_text(bugs), bugs).values(), facts) if bugs.exists() else Watch()
    verdict, reason, count = _load_verdict(directory / VERDICT)
    steps = tuple(_load_steps(directory, shape, facts))
    return RecordedRun(details, shape, facts, boot, steps, watch, verdict, reason, count)


def _load_verdict(path: Path) -> tuple[Verdict | None, str, int | None]:
    if not path.exists():
        return None, "", None
    told = _read_json(path)
    try:
        count = told.get("steps")
        return Verdict(told["verdict"]), str(told["reason"]), None if count is None else int(count)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None


def _load_steps(directory: Path, shape: MachineShape, facts: KernelFacts) -> Iterator[RecordedStep]:
    for path in sorted((path for path in (directory / "states").iterdir() if path.name.isdecimal()), key=_number):
        if not (path / "step.json").exists():
            continue
        step, again = _read_json(path / "step.json"), None
        outcome = outcome_from_json(step["outcome"])
        boot = directory / "boots" / path.name
        if boot.is_dir():
            facts = load_facts(boot / "facts", shape.arch)
            again = facts, load_state(boot / "state", facts)
        yield RecordedStep(
            number=_number(path),
            title=step["title"],
            expect=step["expect"],
            actions=tuple(action_from_json(action) for action in step["actions"]),
            outcome=outcome,
            # A kernel that died has left its console; what was read of it before may be anything.
            state=load_state(path, facts) if (path / "meta.json").exists() and not outcome.alarms else None,
            bugs=tuple(step.get("bugs", ())),
            again=again,
        )


def _number(path: Path) -> int:
    return int(path.name)


def shape_to_json(shape: MachineShape) -> dict[str, object]:
    """The machine's shape as JSON."""
    fields = {f.name: getattr(shape, f.name) for f in dataclasses.fields(shape)}
    return {**fields, "arch": shape.arch.name, "cold": [action_to_json(action) for action in shape.cold]}


def shape_from_json(value: Mapping[str, Any]) -> MachineShape:
    """Inverse of shape_to_json."""
    return MachineShape(
        arch=arch_named(value["arch"]),
        node_memory=tuple(value["node_memory"]),
        max_memory=value["max_memory"],
        slots=value["slots"],
        ports=tuple(value["ports"]),
        virtio_devices=value["virtio_devices"],
        acpi=value.get("acpi", True),
        cpu_nodes=None if value.get("cpu_nodes") is None else tuple(value["cpu_nodes"]),
        cold=tuple(action_from_json(action) for action in value.get("cold", ())),
    )


def outcome_to_json(outcome: Outcome) -> dict[str, object]:
    """What an action came to, as JSON."""
    touches = [
        {
            "pages": touch.pages,
            "mismatches": touch.mismatches,
            "used": [[where.start, where.end, used] for where, used in touch.used],
        }
        for touch in outcome.touches
    ]
    return {
        "ending": outcome.ending,
        "note": outcome.note,
        "pending": outcome.pending,
        "alarms": list(outcome.alarms),
        "trace": list(outcome.trace),
        "inconclusive": outcome.inconclusive,
        "due": outcome.due,
        "offlines": [[report.index, report.error] for report in outcome.offlines],
        "unplugs": [dataclasses.asdict(report) for report in outcome.unplugs],
        "resizes": [dataclasses.asdict(report) for report in outcome.resizes],
        "touches": touches,
        "dumps": [[dump.source, *_pair(dump.scope), [_pair(one) for one in dump.ranges]] for dump in outcome.dumps],
        "slopes": [[slope.name, str(slope.each), slope.unit] for slope in outcome.slopes],
        "unread": list(outcome.unread),
    }


def _pair(place: AddrRange) -> list[int]:
    return [place.start, place.end]


def _slope(name: str, each: str, *rest: str) -> Slope:
    """Older bundles tell, before the unit, up to which limit the caches of the CPUs explained a slope."""
    *limits, unit = rest
    found = Fraction(each)
    return Slope(name, Fraction(0) if any(abs(found) <= Fraction(limit) for limit in limits) else found, unit)


def outcome_from_json(value: Mapping[str, Any]) -> Outcome:
    """Inverse of outcome_to_json."""

    def used(rows: Sequence[Sequence[int]]) -> tuple[tuple[AddrRange, int], ...]:
        return tuple((AddrRange(start, end), size) for start, end, size in rows)

    return Outcome(
        ending=value["ending"],
        note=value["note"],
        pending=value["pending"],
        alarms=tuple(value.get("alarms", ())),
        trace=tuple(value.get("trace", ())),
        inconclusive=value.get("inconclusive", value.get("useless", "")),
        due=value.get("due", ""),
        offlines=[OfflineReport(index, error) for index, error in value.get("offlines", ())],
        unplugs=[UnplugReport(r["id"], tuple(r["endings"]), r["refused"]) for r in value["unplugs"]],
        resizes=[ResizeReport(**report) for report in value["resizes"]],
        touches=[TouchReport(t["pages"], t["mismatches"], used(t["used"])) for t in value["touches"]],
        dumps=tuple(
            DumpReport(source, AddrRange(start, end), tuple(AddrRange(*one) for one in ranges))
            for source, start, end, ranges in value.get("dumps", ())
        ),
        slopes=tuple(_slope(*row) for row in value.get("slopes", ())),
        unread=tuple(value.get("unread", ())),
    )
