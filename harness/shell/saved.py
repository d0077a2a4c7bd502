# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a prompt as a scenario file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.bounded import write_file
from harness.config.arguments import parameters
from harness.config.cold import ColdDevice
from harness.config.guest import SHAPE_FIELDS, GuestSpec
from harness.errors import UsageError
from harness.scenarios.outcome import Outcome
from harness.scenarios.steps import Parallel, Step
from harness.units import format_size

_SIZES = ("memory", "maxmem")


def expects(text: str, step: Step | Parallel) -> bool:
    """True if the step written as ``text`` says how it should end."""
    return "\n  expect:" in text or step.expect != "done" or (isinstance(step, Step) and bool(step.expect_on))


class Story:
    """The steps of a session as typed, with their outcome, and remarks on what no scenario can express."""

    def __init__(self, spec: GuestSpec, kernel: str) -> None:
        self._spec = spec
        self._kernel = kernel
        self._lines: list[str] = []
        self.steps = 0
        self.gaps = 0

    def add(self, text: str, step: Step | Parallel, outcome: Outcome) -> None:
        """Record the step written as ``text`` and how it ended."""
        self.steps += 1
        self._lines += text.splitlines()
        if outcome.ending != "done" and not isinstance(step, Parallel) and not expects(text, step):
            # JSON is valid YAML.
            says = json.dumps([_printable(said) for said in dict.fromkeys(one.said for one in outcome.refusals)])
            self._lines += [f"  expect: {outcome.ending}", f"  says: {says}"]

    def remark(self, text: str) -> None:
        """Record something that a replay omits."""
        self.gaps += 1
        self._lines.append(f"# omitted: {text}")

    def cut(self, mark: tuple[int, int, int]) -> None:
        """Drop everything after ``mark``: the guest was restored to that state."""
        length, self.steps, self.gaps = mark
        del self._lines[length:]

    @property
    def mark(self) -> tuple[int, int, int]:
        """The current position, for ``cut``."""
        return len(self._lines), self.steps, self.gaps

    def text(self, name: str) -> str:
        """The scenario file; without steps it has a single check."""
        guest = _guest(self._spec)
        head = [
            f"# Steps of memhp shell on {self._spec.arch} with {_printable(self._kernel)}.",
            f"name: {name}",
            "summary: recorded by memhp shell",
            *([f"guest: {{{guest}}}"] if guest else []),
            "steps:",
        ]
        body = self._lines if self.steps else [*self._lines, "- check: {}"]
        return "\n".join([*head, *(f"  {line}" for line in body)]) + "\n"

    def save(self, path: Path) -> None:
        """Write the scenario to ``path``; raises UsageError if that fails."""
        try:
            write_file(path, self.text(scenario_name(path)))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}", hint="name another file") from None


def scenario_name(path: Path) -> str:
    """A valid name for the scenario in ``path``."""
    name = "".join(char if char.isalnum() or char in "-_." else "-" for char in path.stem)
    return name if name[:1].isalnum() else f"session{name}"


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())[:200]


def _guest(spec: GuestSpec) -> str:
    """The fields of ``spec`` that a scenario can set and that differ from the default."""
    usual = GuestSpec.default(spec.arch)
    found: Sequence[tuple[str, object]] = [
        (name, getattr(spec, name)) for name in SHAPE_FIELDS if getattr(spec, name) != getattr(usual, name)
    ]
    return ", ".join(f"{name}: {_spell(name, value)}" for name, value in found)


def _spell(name: str, value: object) -> str:
    if name in _SIZES and isinstance(value, int):
        return format_size(value)
    if isinstance(value, tuple) and all(isinstance(item, ColdDevice) for item in value):
        return f"[{', '.join(map(_spell_device, value))}]"
    if isinstance(value, tuple):
        return f"[{', '.join(f'{{memory: {format_size(node.memory)}}}' for node in value)}]"
    if isinstance(value, str):
        # A JSON string is valid YAML.
        return json.dumps(value)
    return str(value)


def _spell_device(device: ColdDevice) -> str:
    values = [(name, getattr(device, name), known.default) for name, known in parameters(type(device)).items()]
    given = [f"{name}: {value}" for name, value, default in values if value not in (None, default)]
    return f"{{{device.verb}: {{{', '.join(given)}}}}}"
