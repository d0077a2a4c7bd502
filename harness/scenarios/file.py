# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenario files: the steps for a guest, checked before anything starts.

::

    name: dimm-cycle
    family: dimm-cycle
    summary: pc-dimm hot-added, onlined, offlined and removed
    needs: [acpi-dimm]                    # optional: the requirements of the verbs are added automatically
    guest: {memory: 1G, slots: 4}         # optional: the scenario's wishes for the guest; the user's options win
    steps:
      - plug-dimm: {id: dimm0, size: 1G}
      - repeat: {times: 3, steps: [...]}  # soak: true fits the slope of every counter over the rounds
      - parallel: [{online: {device: dimm0}}, {resize: {id: vmem0, to: 1G}}]
      - unplug: {id: dimm0}
        expect: refused                   # done (the default), refused (by the guest), failed, qemu-refused
        says: device busy                 # which refusal: a part of what QEMU, the guest or its kernel's log says
      - offline: {boot: true, last: 1}
        expect: {arm64: refused, riscv64: done}
        says: [EPERM, EINVAL]             # one of these, or by architecture: {arm64: EPERM}
        bug: {riscv64: some-bug}          # known bugs that show here, one or a list: configs/known-bugs.yaml has them
      - check: {}
        only: arm64                       # skipped on other architectures
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from harness.check.bugs import known_bugs
from harness.check.findings import EXPECTATIONS
from harness.config.guest import DEFAULT_BOOT, GuestSpec, problems, read_shape
from harness.config.places import configs_dir
from harness.config.yaml import Value, parse, read_text, show, suggest
from harness.errors import ConfigError, UsageError
from harness.scenarios.requirements import REQUIREMENTS
from harness.scenarios.steps import (
    LEAST_ROUNDS,
    AnyStep,
    Parallel,
    Repeat,
    Step,
    WrongStep,
    count_steps,
    needs_of_steps,
    steps_on,
)
from harness.scenarios.verbs import VERBS, plugging_of
from harness.scenarios.verbs.plan import Plan

T = TypeVar("T")
P = TypeVar("P", Step, Parallel)

#: steps of a scenario with every ``repeat`` unrolled
MAX_STEPS = 100_000
#: keys of a step about its expected end
_ENDINGS = ("expect", "says", "bug", "only")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario file. ``guest`` has its wishes for fields of GuestSpec; ``text`` is the file as written."""

    name: str
    family: str
    summary: str
    guest: Mapping[str, object]
    needs: tuple[str, ...]
    steps: tuple[AnyStep, ...]
    source: Path
    text: str = field(default="", compare=False, repr=False)
    guest_lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def apply_to(self, guest: GuestSpec) -> GuestSpec:
        """The guest for this scenario: ``guest`` with the scenario's wishes for fields that the user did not set.

        Raises UsageError if the two conflict, ConfigError (file, line, key) for a step that is impossible on that
        guest, such as a device that does not fit.
        """
        wishes = {name: value for name, value in self.guest.items() if name not in guest.explicit}
        if self.guest.get("cmdline"):
            wishes["cmdline"] = " ".join(part for part in (str(self.guest["cmdline"]), guest.cmdline) if part)
        spec = guest.with_fields(wishes, explicit=False)
        for problem in problems(spec):
            blamed = problem.blame(wishes)
            if blamed is not None:
                line, key = self.guest_lines.get(blamed), f"guest.{blamed}"
                raise ConfigError(problem.message, file=self.source, line=line, key=key, hint=problem.hint)
            raise UsageError(f"{self.name}: {problem.message}", hint=problem.hint)
        line = self.guest_lines.get("devices", 0)
        cold = [Step(plugging_of(device), line, key="guest.devices") for device in spec.devices]
        plan = Plan(spec)
        try:
            for step in (*cold, *self.steps_on(spec.arch)):
                step.follow(plan)
        except WrongStep as wrong:
            raise self._blamed(wrong) from None
        return spec

    def steps_on(self, arch: str) -> tuple[AnyStep, ...]:
        """The steps for ``arch``."""
        return steps_on(self.steps, arch)

    def _blamed(self, wrong: WrongStep) -> ConfigError:
        step, name = wrong.step, wrong.argument
        line = step.line if name is None else step.lines.get(name, step.line)
        key = step.key if name is None else f"{step.key}.{name}"
        return ConfigError(wrong.problem, file=self.source, line=line, key=key, hint=wrong.hint)


#: no steps: one snapshot of the booted guest
SNAPSHOT = Scenario("collect", "collect", "one snapshot of the booted guest", {}, (), (), Path("collect"))


def known_scenarios() -> dict[str, Path]:
    """The names of all scenarios in ``configs``, sorted."""
    return {path.stem: path for path in sorted((configs_dir() / "scenarios").glob("*.yaml"))}


def load_scenario(what: Path | str) -> Scenario:
    """Load a scenario by its name, or from a file: anything with a slash or a .yaml or .yml suffix.

    Raises UsageError for an unknown name, ConfigError (file, line, key) for an invalid file.
    """
    text = str(what)
    if isinstance(what, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        return read_scenario(Path(what))
    known = known_scenarios()
    if text not in known:
        raise UsageError(f"unknown scenario {show(text)}", hint=f"{suggest(text, known)} (memhp list scenarios)")
    scenario = read_scenario(known[text])
    if scenario.name != text:
        raise ConfigError(
            f"the scenario is called {scenario.name!r}, its file {text!r}",
            file=known[text],
            key="name",
            hint="files below configs/scenarios are named after their scenario",
        )
    return scenario


def read_scenario(path: Path) -> Scenario:
    """Read one scenario file and check it against its own guest; raises ConfigError."""
    text = read_text(path)
    value = parse(text, path)
    reader = value.mapping("name", "family", "summary", "needs", "guest", "steps")
    name = reader.take("name", _read_name)
    guest = reader.values.get("guest")
    steps = reader.take("steps", _read_steps)
    shape = {} if guest is None else read_shape(guest)
    cold = [need for device in shape.get("devices", ()) for need in VERBS[device.verb].needs]
    total = count_steps(steps)
    if total > MAX_STEPS:
        value.fail(f"{total} steps once every repeat is unrolled", hint=f"at most {MAX_STEPS}")
    scenario = Scenario(
        name=name,
        family=reader.take("family", _read_name, name),
        summary=reader.take("summary", Value.line_of_text, ""),
        guest=shape,
        needs=tuple(sorted({*reader.take("needs", _read_needs, ()), *cold, *needs_of_steps(steps)})),
        steps=steps,
        source=path,
        text=text,
        guest_lines={} if guest is None else {key: found.line for key, found in guest.mapping().values.items()},
    )
    for arch in DEFAULT_BOOT:
        scenario.apply_to(GuestSpec.default(arch))
    return scenario


def parse_step(text: str, source: Path) -> AnyStep:
    """The single step in ``text``, written as in a scenario: ``- plug-dimm: {id: dimm0, size: 1G}``.

    ``source`` is for messages. Raises ConfigError.
    """
    steps = _read_steps(parse(text, source))
    if len(steps) != 1:
        raise ConfigError(f"expected one step, found {len(steps)}", file=source)
    return steps[0]


def _read_name(value: Value) -> str:
    text = value.line_of_text()
    if not all(char.isalnum() or char in "-_." for char in text) or not text[0].isalnum():
        value.fail(f"invalid name {text!r}", hint="use letters, digits, '-', '_' and '.'")
    return text


def _read_needs(value: Value) -> tuple[str, ...]:
    return tuple(item.choice(REQUIREMENTS) for item in value.items())


def _read_steps(value: Value) -> tuple[AnyStep, ...]:
    steps = tuple(_read_step(item) for item in value.items())
    if not steps:
        value.fail("no steps", hint="add at least one step; `- check: {}` only checks")
    return steps


def _read_step(value: Value) -> AnyStep:
    reader = value.mapping(*VERBS, "repeat", "parallel", *_ENDINGS)
    verbs = [key for key in reader.values if key not in _ENDINGS]
    if len(verbs) != 1:
        found = " and ".join(verbs) or "none"
        value.fail(f"a step needs exactly one verb, found {found}", hint="use one list item per step")
    verb = verbs[0]
    body = reader.values[verb]
    if verb == "repeat":
        for ending in _ENDINGS:
            if ending in reader.values:
                hint = "put it on the steps inside"
                reader.values[ending].fail("a repeat cannot have an expectation", hint=hint)
        return _read_repeat(body)
    if verb == "parallel" and "only" in reader.values:
        reader.values["only"].fail("parallel steps cannot be limited to an architecture")
    for key in ("expect", "says"):
        if verb == "parallel" and key in reader.values:
            reader.values[key].fail("parallel steps cannot have an expectation")
    expect_on = reader.take("expect", lambda found: _by_arch(found, lambda one: _read_ending(one, verb)), {})
    says_on = reader.take("says", lambda found: _by_arch(found, _read_says), {})
    bugs_on = reader.take("bug", lambda found: _by_arch(found, _read_bugs), {})
    if verb == "parallel":
        beside = _read_parallel(body)
        return _settled(Parallel(beside, body.line, body.key, bugs_on=bugs_on))
    args = VERBS[verb].read(body)
    lines = {name: found.line for name, found in body.mapping().values.items()}
    only = reader.take("only", lambda found: found.choice(tuple(DEFAULT_BOOT)), None)
    refusing = [arch for arch in DEFAULT_BOOT if only in (None, arch) and expect_on.get(arch, "done") != "done"]
    if not args.knows_why and not says_on.keys() >= set(refusing):
        hint = "add says: and a part of what QEMU, the guest or its kernel's log says of it, such as EBUSY"
        reader.values["expect"].fail("which refusal is meant?", hint=hint)
    if says_on and not refusing:
        reader.values["says"].fail("no refusal is expected", hint="add expect: refused, failed or qemu-refused")
    step = Step(args, body.line, "done", body.key, lines, (), expect_on, (), says_on, bugs_on, only)
    return _settled(step)


def _settled(step: P) -> P:
    """The step itself, if it is the same on every architecture."""
    ways = [step.on(arch) for arch in DEFAULT_BOOT]
    return ways[0] if all(way == ways[0] for way in ways) else step


def _by_arch(value: Value, read: Callable[[Value], T]) -> dict[str, T]:
    """A value for every architecture, or a mapping from architectures to values; the others have the default."""
    if not value.is_mapping():
        return dict.fromkeys(DEFAULT_BOOT, read(value))
    return {arch: read(found) for arch, found in value.mapping(*DEFAULT_BOOT).values.items()}


def _read_ending(value: Value, verb: str) -> str:
    ending = value.choice(EXPECTATIONS)
    can_fail = [one.name for one in VERBS.values() if one.can_fail]
    if ending == "failed" and verb not in can_fail:
        hint = f"use it with {', '.join(can_fail)}, or expect: refused if the guest must refuse"
        value.fail(f"{verb} cannot be expected to fail", hint=hint)
    return ending


def _read_says(value: Value) -> tuple[str, ...]:
    found = tuple(item.line_of_text() for item in (value.items() if value.is_list() else (value,)))
    if not found:
        value.fail("an empty list", hint="name at least one text")
    return found


def _read_bugs(value: Value) -> tuple[str, ...]:
    known = tuple(known_bugs(VERBS))
    bugs = tuple(item.choice(known) for item in (value.items() if value.is_list() else (value,)))
    if len(set(bugs)) != len(bugs):
        value.fail("duplicate bug")
    return bugs


def _read_parallel(body: Value) -> tuple[Step, ...]:
    steps, beside = _read_steps(body), [verb.name for verb in VERBS.values() if verb.parallel]
    if len(steps) < 2:
        body.fail("parallel needs two steps or more")
    found = []
    for item, step in zip(body.items(), steps, strict=True):
        if not isinstance(step, Step) or step.verb not in beside:
            item.fail(f"{step.verb} cannot run in parallel", hint=f"known: {', '.join(beside)}")
        if step.expect != "done" or step.expect_on or step.bugs or step.bugs_on:
            item.fail("parallel steps cannot have an expectation", hint="remove expect and bug")
        if step.args.unwaited:
            item.fail("parallel steps always wait", hint="remove wait")
        found.append(step)
    return tuple(found)


def _read_repeat(body: Value) -> Repeat:
    reader = body.mapping("times", "steps", "soak")
    times = reader.take("times", lambda value: value.integer(minimum=1, maximum=MAX_STEPS))
    soak = reader.take("soak", Value.boolean, False)
    if soak and times < LEAST_ROUNDS:
        message = f"{times} rounds are too few for a soak"
        reader.values["soak"].fail(message, hint=f"repeat it {LEAST_ROUNDS} times or more")
    return Repeat(times, reader.take("steps", _read_steps), soak)
