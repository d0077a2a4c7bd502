# SPDX-License-Identifier: GPL-2.0-or-later
"""What was done at the prompt, as a scenario file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.config.arguments import parameters
from harness.config.cold import ColdDevice
from harness.config.guest import SHAPE_FIELDS, GuestSpec
from harness.errors import UsageError
from harness.scenarios.steps import Parallel, Step
from harness.units import format_size

_SIZES = ("memory", "maxmem")


class Story:
    """The steps of a session as they were typed, each with how it ended, and remarks on what no scenario can say."""

    def __init__(self, spec: GuestSpec, kernel: str) -> None:
        self._spec = spec
        self._kernel = kernel
        self._lines: list[str] = []
        self.steps = 0
        self.gaps = 0

    def add(self, text: str, step: Step | Parallel, ending: str) -> None:
        """Take note of a step, written as ``text``, that ended as ``ending``, one of ``findings.EXPECTATIONS``."""
        self.steps += 1
        has_expect = "\n  expect:" in text or isinstance(step, Parallel) or bool(step.expect_on)
        if has_expect or ending == "done":
            self._lines += text.splitlines()
        else:
            self._lines += [*text.splitlines(), f"  expect: {ending}"]

    def remark(self, text: str) -> None:
        """Take note of something that a replay leaves out."""
        self.gaps += 1
        self._lines.append(f"# left out: {text}")

    def cut(self, mark: tuple[int, int, int]) -> None:
        """Forget what came after ``mark``: the guest was put back to how it was then."""
        length, self.steps, self.gaps = mark
        del self._lines[length:]

    @property
    def mark(self) -> tuple[int, int, int]:
        """Where we are, for ``cut``."""
        return len(self._lines), self.steps, self.gaps

    def text(self, name: str) -> str:
        """The scenario file; a session without a step gets one that only looks."""
        guest = _guest(self._spec)
        head = [
            f"# What was done at the prompt of memhp shell, on {self._spec.arch} with {_printable(self._kernel)}.",
            f"name: {name}",
            "summary: recorded by memhp shell",
            *([f"guest: {{{guest}}}"] if guest else []),
            "steps:",
        ]
        body = self._lines if self.steps else [*self._lines, "- check: {}"]
        return "\n".join([*head, *(f"  {line}" for line in body)]) + "\n"

    def save(self, path: Path) -> None:
        """Write it to ``path``; raises UsageError if that cannot be."""
        try:
            path.write_text(self.text(scenario_name(path)))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}", hint="name another file") from None


def scenario_name(path: Path) -> str:
    """A name for the scenario in ``path`` that scenario files take."""
    name = "".join(char if char.isalnum() or char in "-_." else "-" for char in path.stem)
    return name if name[:1].isalnum() else f"session{name}"


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())[:200]


def _guest(spec: GuestSpec) -> str:
    """What of ``spec`` a scenario can wish for, where it is not what everybody gets."""
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
        # JSON's strings are YAML's.
        import json

        return json.dumps(value)
    return str(value)


def _spell_device(device: ColdDevice) -> str:
    values = [(name, getattr(device, name), known.default) for name, known in parameters(type(device)).items()]
    said = [f"{name}: {value}" for name, value, default in values if value not in (None, default)]
    return f"{{{device.verb}: {{{', '.join(said)}}}}}"
