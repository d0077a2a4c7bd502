# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundle of a run: everything needed to debug it, to check it again without a VM, and to replay it.

::

    scenario.yaml   the steps as written                   run.json        the guest, the options and the end
    facts/          the kernel (collect.store)             machine.json    the guest's machine
    states/000/     a snapshot per step, a file per source states/NNN/step.json  actions, ending and reports
    states/NNN/fast/  the fast look that found something; states/NNN is the full look taken just after it
    states/NNN/lost/  what the host alone read of the guest that died or hung in step NNN; no verdict depends on it
    monitor.txt     what QEMU reported about a guest that was lost
    states/000/host.json  what the host gave QEMU before reports of watchdogs; for later steps it is in step.json
    boots/NNN/      facts and state of the guest after the reboot in step NNN
    known-bugs.yaml  the known bugs at that time; without it, none apply
    console.log  qmp.jsonl  qemu.stderr  argv.txt  notes.txt
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from harness.arch import ArchSpec, arch_named
from harness.bounded import MAX_SMALL, load_json, read_file, write_file
from harness.check import DumpReport, OfflineReport, ResizeReport, Slope, TouchReport, UnplugReport, Verdict
from harness.check.bugs import NAME as BUGS
from harness.check.bugs import parse_bugs
from harness.check.known import Watch, watch_for
from harness.check.required import Demand
from harness.codec import Codec
from harness.collect.parse_cache import ParseCache
from harness.collect.snapshot_folder import load_facts, load_state, save_facts, save_lost, save_raw, save_state
from harness.config.guest import MAX_MAXMEM, MAX_SLOTS
from harness.config.yaml import read_text
from harness.errors import InfraError, MemhpError, UsageError
from harness.model.actions import ACTIONS, Action, action_to_json
from harness.model.blocktable import MAX_BLOCKS
from harness.model.boot_layout import MachineShape
from harness.scenarios.outcome import Outcome, Rejection
from harness.state import GuestState, HostTime, KernelFacts, NotObserved, ThreadTime
from harness.units import AddrRange

T = TypeVar("T")

#: format of the bundle; other numbers are rejected
FORMAT = 1
#: how the run ended: ``verdict``, ``reason``, and the number of the last of its ``steps``
VERDICT = "verdict.json"
_HOST = "host.json"
_FAST = "fast"
_LOST = "lost"
_FRACTION = re.compile(r"-?[0-9]{1,20}(/[1-9][0-9]{0,19})?")
#: the default folder for bundles
DEFAULT_BUNDLES = Path("memhp-runs")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` atomically: a reader sees either the old file or the new one."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def open_bundle(chosen: Path | None, name: str, started: datetime.datetime) -> Path:
    """A new private folder for the bundle of ``name``, in ``chosen`` or DEFAULT_BUNDLES; raises InfraError."""
    path = (chosen or DEFAULT_BUNDLES) / f"{started:%Y%m%d-%H%M%S-%f}-{name}"
    try:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another run may just now remove the empty folder of bundles.
            with contextlib.suppress(FileNotFoundError):
                path.mkdir(mode=0o700)
                return path
    except OSError as error:
        raise InfraError(f"cannot write the bundle {path}: {error.strerror}", hint="see --bundle-dir") from None


class Recorder:
    """Writes the bundle during the run, so that even a killed harness leaves it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._actions: dict[int, list[Action]] = {}

    def start(self, scenario: str, scenario_text: str, details: Mapping[str, object]) -> None:
        """Open the bundle."""
        write_file(self.directory / "scenario.yaml", scenario_text)
        write_json(self.directory / "run.json", {"format": FORMAT, "scenario": scenario, **details})

    def save_bugs(self, text: str) -> None:
        """Save the known bugs of the run."""
        write_file(self.directory / BUGS, text)

    def save_guest(self, shape: MachineShape, facts: KernelFacts) -> None:
        """Save the machine and its kernel."""
        write_json(self.directory / "machine.json", CODEC.dump(shape))
        save_facts(self.directory / "facts", facts)

    def save_boot(self, state: GuestState, host: Sequence[HostTime] = ()) -> None:
        """Save the freshly booted guest, the baseline of later states; ``host`` as in Outcome."""
        save_state(self.step_dir(0), state)
        if host:
            write_json(self.step_dir(0) / _HOST, CODEC.dump(tuple(host)))

    def save_unparsed(self, directory: Path, raw: Mapping[str, bytes]) -> None:
        """Save the text of a snapshot that could not be parsed, in the snapshot's place, for a later check."""
        save_raw(directory, raw)

    def save_reboot(self, step: int, facts: KernelFacts, state: GuestState) -> None:
        """Save the rebooted guest of ``step``: the baseline of later states."""
        save_facts(self.boot_dir(step) / "facts", facts)
        save_state(self.boot_dir(step) / "state", state)

    def note_action(self, step: int, action: Action) -> None:
        """Remember an action that took effect in a step."""
        self._actions.setdefault(step, []).append(action)

    def save_step(
        self,
        number: int,
        title: str,
        expect: str,
        outcome: Outcome,
        state: GuestState | None,
        bugs: Sequence[str] = (),
        first: GuestState | None = None,
    ) -> None:
        """Save a step with its snapshot, None if the guest was still working, and the fast one just before it."""
        directory = self.step_dir(number)
        if state is not None:
            save_state(directory, state)
        if first is not None:
            save_state(directory / _FAST, first)
        directory.mkdir(parents=True, exist_ok=True)
        step = _Step(title, expect, tuple(self._actions.get(number, ())), outcome, tuple(bugs))
        write_json(directory / "step.json", CODEC.dump(step))

    def undo(self, number: int) -> None:
        """Move the steps after ``number`` to ``undone-N``: the guest was restored to that point."""
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

    def save_lost(self, step: int, raw: Mapping[str, bytes], facts: KernelFacts) -> GuestState | NotObserved:
        """Save what the host saw of the guest that was lost in ``step``; returns it as ``load_run`` does."""
        save_lost(self.lost_dir(step), raw)
        return _load_lost(self.step_dir(step), facts)

    def save_monitor(self, text: str) -> None:
        """Save the monitor's report about a lost guest."""
        write_file(self.directory / "monitor.txt", text)

    def step_dir(self, number: int) -> Path:
        return self.directory / "states" / f"{number:03d}"

    def lost_dir(self, number: int) -> Path:
        return self.step_dir(number) / _LOST

    def boot_dir(self, number: int) -> Path:
        return self.directory / "boots" / f"{number:03d}"


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step of a saved run; ``again`` is the guest after a step that rebooted it.

    ``first`` is as in ``evaluate``; ``lost`` is what the host saw of a guest that was lost, None if nobody looked.
    """

    number: int
    title: str
    expect: str
    actions: tuple[Action, ...]
    outcome: Outcome
    state: GuestState | None
    bugs: tuple[str, ...] = ()
    again: tuple[KernelFacts, GuestState] | None = None
    first: GuestState | None = None
    lost: GuestState | NotObserved | None = None


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A loaded bundle; the states are parsed again from their files. ``watch`` has the known bugs of its time.

    ``demand`` is what had to be observed, ``ending`` how the run ended if that is recorded, ``planned`` the number of
    its steps, -1 if that is not. ``host`` is what the host gave QEMU before reports of watchdogs during boot.
    """

    details: Mapping[str, Any]
    shape: MachineShape
    facts: KernelFacts
    boot: GuestState
    steps: tuple[RecordedStep, ...]
    watch: Watch
    ending: RunEnding | None = None
    seed: int = 0
    demand: Demand = field(default_factory=Demand)
    planned: int = -1
    host: tuple[HostTime, ...] = ()


def _read_json(path: Path) -> Any:
    try:
        return load_json(read_file(path, MAX_SMALL))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent} is not a bundle: it has no {path.name}", hint="name a run's directory"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="name a run's directory") from None
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from None


def _read(path: Path, kind: type[T]) -> T:
    return _load(path, _read_json(path), kind)


def _load(path: Path, value: Any, kind: type[T]) -> T:
    try:
        return CODEC.load(value, kind)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def load_run(directory: Path) -> RecordedRun:
    """Read a bundle; raises UsageError if it is not one, ParseError for a source that cannot be parsed."""
    details = load_details(directory)
    shape = _read(directory / "machine.json", MachineShape)
    _require_plausible(shape, directory / "machine.json")
    facts = load_facts(directory / "facts", shape.arch)
    cache = ParseCache()
    boot = load_state(directory / "states" / "000", facts, cache)
    bugs = directory / BUGS
    watch = watch_for(parse_bugs(read_text(bugs), bugs).values(), facts) if os.path.lexists(bugs) else Watch()
    steps = tuple(_load_steps(directory, shape, facts, cache))
    seed = _load(directory / "run.json", details.get("seed", 0), int)
    planned = _load(directory / "run.json", details.get("steps", -1), int)
    demand = demand_from_json(details)
    told = directory / "states" / "000" / _HOST
    host = _read(told, tuple[HostTime, ...]) if os.path.lexists(told) else ()
    return RecordedRun(details, shape, facts, boot, steps, watch, load_ending(directory), seed, demand, planned, host)


def load_details(directory: Path) -> dict[str, Any]:
    """The run.json of a bundle; raises UsageError if ``directory`` is not one."""
    details = _read(directory / "run.json", dict[str, Any])
    if details.get("format") != FORMAT:
        raise UsageError(
            f"{directory} has format {str(details.get('format'))[:40]}, but this memhp reads {FORMAT}",
            hint="use the memhp that wrote it",
        )
    return details


def load_ending(directory: Path) -> RunEnding | None:
    """How the run of a bundle ended, if that is recorded; raises UsageError."""
    path = directory / VERDICT
    return _read(path, RunEnding) if os.path.lexists(path) else None


def was_seen(directory: Path) -> bool:
    """True if the bundle has a first snapshot of its guest."""
    return (directory / "states" / "000").is_dir() and all((directory / n).exists() for n in ("machine.json", "facts"))


def _require_plausible(shape: MachineShape, path: Path) -> None:
    """Raise UsageError for a machine that no memhp runs: the model's size depends on these numbers."""
    most = {
        "node_memory": (shape.memory, MAX_BLOCKS * shape.arch.paging[min(shape.arch.paging)].section_size),
        "max_memory": (shape.max_memory, MAX_MAXMEM),
        "slots": (shape.slots, MAX_SLOTS),
        "virtio_devices": (shape.virtio_devices, 1 << 10),
    }
    for name, (value, limit) in most.items():
        if not 0 <= value <= limit or (name == "max_memory" and value < shape.memory):
            raise UsageError(f"{path} is damaged: {name} of {value}")


def demand_to_json(demand: Demand) -> dict[str, object]:
    """What had to be observed, as keys of run.json."""
    return {"require": sorted(demand.require), "allow_unobserved": sorted(demand.allowed)}


def demand_from_json(details: Mapping[str, Any]) -> Demand:
    """Inverse of demand_to_json; older bundles say nothing. Raises UsageError for what is no list."""
    lists = [details.get(key, []) for key in ("require", "allow_unobserved")]
    if not all(isinstance(names, list) for names in lists):
        raise UsageError("run.json is damaged: require and allow_unobserved are lists of invariants")
    return Demand(*(frozenset(map(str, names)) for names in lists))


def _load_steps(directory: Path, shape: MachineShape, facts: KernelFacts, cache: ParseCache) -> Iterator[RecordedStep]:
    for path in sorted((path for path in (directory / "states").iterdir() if path.name.isdecimal()), key=_number):
        if not os.path.lexists(path / "step.json"):
            continue
        step, again = _read(path / "step.json", _Step), None
        boot = directory / "boots" / path.name
        if boot.is_dir():
            facts = load_facts(boot / "facts", shape.arch)
            again = facts, load_state(boot / "state", facts, cache)
        # A kernel that died leaves only its console; earlier readings may be garbage.
        looked = os.path.lexists(path / "meta.json") and not step.outcome.alarms
        yield RecordedStep(
            number=_number(path),
            title=step.title,
            expect=step.expect,
            actions=step.actions,
            outcome=step.outcome,
            state=load_state(path, facts, cache) if looked else None,
            bugs=step.bugs,
            again=again,
            first=load_state(path / _FAST, facts, cache) if looked and os.path.lexists(path / _FAST) else None,
            lost=_load_lost(path, facts) if os.path.lexists(path / _LOST) else None,
        )


def _load_lost(step: Path, facts: KernelFacts) -> GuestState | NotObserved:
    """What was saved of the guest that was lost in a step; anything may have been in the memory of a dead kernel."""
    try:
        return load_state(step / _LOST, facts)
    except MemhpError as error:
        return NotObserved(error.message)


def _number(path: Path) -> int:
    return int(path.name)


@dataclass(frozen=True, slots=True)
class _Step:
    """The content of ``step.json``."""

    title: str
    expect: str
    actions: tuple[Action, ...]
    outcome: Outcome
    bugs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunEnding:
    """The content of ``verdict.json``; ``steps`` is the number of the last step."""

    verdict: Verdict
    reason: str
    steps: int | None = None


def _codec() -> Codec:
    codec = Codec()
    codec.register_structure_hook(ArchSpec, lambda name, _: arch_named(codec.structure(name, str)))
    codec.register_unstructure_hook(ArchSpec, lambda arch: arch.name)
    for kind in ACTIONS.values():
        codec.describe(kind, since=[one.name for one in dataclasses.fields(kind)], forbid_extra=True)
    codec.register_structure_hook_func(_is_action, lambda value, _: _action(codec, value))
    codec.register_unstructure_hook_func(_is_action, action_to_json)
    codec.describe(MachineShape, since=("acpi", "cpu_nodes", "cold"))
    codec.describe_row(ThreadTime)
    codec.describe(HostTime)
    codec.describe(UnplugReport)
    codec.describe(ResizeReport, since=("qemu_refused",))
    codec.describe(TouchReport)
    codec.describe_row(OfflineReport)
    codec.register_structure_hook(Rejection, lambda value, _: _refusal(codec, value))
    codec.register_unstructure_hook(Rejection, _refusal_to_json)
    codec.describe_row(DumpReport)
    codec.register_structure_hook(Slope, lambda row, _: _slope(*codec.structure(row, list[str])))
    codec.register_unstructure_hook(Slope, lambda slope: [slope.name, str(slope.each), slope.unit])
    older = {"ending", "note", "pending", "unplugs", "resizes", "touches"}
    newer = {field.name for field in dataclasses.fields(Outcome)} - older
    codec.describe(Outcome, since=newer, formerly={"useless": "inconclusive"})
    codec.describe(_Step, since=("bugs",))
    codec.describe(RunEnding, since=("steps",))
    return codec


def _is_action(kind: Any) -> bool:
    return kind is Action


def _action(codec: Codec, value: Any) -> Action:
    """Inverse of action_to_json."""
    fields = dict(codec.structure(value, dict[str, object]))
    kind = ACTIONS.get(str(name := fields.pop("action", None)))
    if kind is None:
        raise ValueError(f"unknown action {str(name)[:40]!r}")
    return codec.structure(fields, kind)


def _refusal_to_json(refusal: Rejection) -> object:
    """What was said, or a row of that and the range."""
    return refusal.said if refusal.place is None else [refusal.said, refusal.place.start, refusal.place.end]


def _refusal(codec: Codec, value: Any) -> Rejection:
    return Rejection(value) if isinstance(value, str) else Rejection(*codec.structure(value, tuple[str, AddrRange]))


def _fraction(text: str) -> Fraction:
    # Fraction computes the power of an exponent.
    if _FRACTION.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is not a fraction")
    return Fraction(text)


def _slope(name: str, each: str, *rest: str) -> Slope:
    """Older bundles have, before the unit, the limit up to which per-CPU caches explained a slope."""
    *limits, unit = rest
    found = _fraction(each)
    return Slope(name, Fraction(0) if any(abs(found) <= _fraction(limit) for limit in limits) else found, unit)


#: reads and writes a bundle's JSON
CODEC = _codec()
