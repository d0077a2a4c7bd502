# SPDX-License-Identifier: GPL-2.0-or-later
"""Real bugs put back: patches that each take one upstream fix back, and what must notice.

A file of ``configs/kernels/bugs`` is a header in YAML, a line ``---``, and a unified diff for ``patch -p1``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.artifacts.kept_tree import Patch
from harness.check import CATALOGUE
from harness.config.guest import DEFAULT_BOOT
from harness.config.places import configs_dir
from harness.config.yaml import Value, parse, read_text
from harness.errors import ConfigError, UsageError
from harness.scenarios.file import Scenario, load_scenario
from harness.selftest.catalogue import matching

T = TypeVar("T")

_KEYS = ("takes-back", "part", "breaks", "arch", "cpu", "scenarios", "named-by")
_FROM = re.compile(r"^--- a/(\S+)$", re.M)
_TO = re.compile(r"^\+\+\+ b/(\S+)$", re.M)


@dataclass(frozen=True, slots=True)
class KernelBug(Patch):
    """One bug. ``takes_back`` is the upstream commit, of which ``part`` is taken back (empty: all of it).

    ``breaks`` says what goes wrong; one of ``scenarios`` must turn red on a guest of each of ``arches`` (with the CPU
    model ``cpu`` if there is one), and in its first red step all of ``named_by`` must be broken.
    """

    takes_back: str
    part: str
    breaks: str
    arches: tuple[str, ...]
    cpu: str | None
    scenarios: tuple[Scenario, ...]
    named_by: tuple[str, ...]


def load_bug(path: Path) -> KernelBug:
    """Read one patch; raises ConfigError (file, line, key) for a wrong header or what is no such patch."""
    text = read_text(path)
    header, mark, diff = text.partition("\n---\n")
    if not mark:
        raise ConfigError("no line '---' between header and diff", file=path, hint="see the others beside it")
    reader = parse(header, path).mapping(*_KEYS)
    return KernelBug(
        name=path.stem,
        source=path,
        takes_back=reader.take("takes-back", Value.line_of_text),
        part=reader.take("part", Value.line_of_text, ""),
        breaks=reader.take("breaks", Value.line_of_text),
        arches=reader.take("arch", lambda value: _several(value, lambda item: item.choice(tuple(DEFAULT_BOOT)))),
        cpu=reader.take("cpu", Value.line_of_text, None),
        scenarios=reader.take("scenarios", lambda value: _several(value, _read_scenario)),
        named_by=reader.take("named-by", lambda value: _several(value, lambda item: item.choice(CATALOGUE))),
        diff=diff,
        files=_files(diff, path, header.count("\n") + 3),
    )


def _several(value: Value, read: Callable[[Value], T]) -> tuple[T, ...]:
    found = tuple(read(item) for item in value.items())
    if not found:
        value.fail("an empty list", hint="name at least one")
    return found


def _read_scenario(value: Value) -> Scenario:
    """A scenario by its name, or a file beside the patch."""
    name = value.line_of_text()
    try:
        return load_scenario(value.file.parent / name if name.endswith(".yaml") else name)
    except ConfigError:
        raise
    except UsageError as error:
        value.fail(error.message, hint=error.hint)


def _files(diff: str, path: Path, line: int) -> tuple[str, ...]:
    before, after = _FROM.findall(diff), _TO.findall(diff)
    if not before or before != after or any(".." in name.split("/") for name in before):
        hint = "diff -u with a/ and b/ before names of files that are there: none comes, none goes"
        raise ConfigError("no patch that changes files", file=path, line=line, hint=hint)
    return tuple(before)


def known_bugs() -> tuple[KernelBug, ...]:
    """All bugs that can be put back, by name; raises ConfigError, UsageError."""
    return tuple(load_bug(path) for path in sorted((configs_dir() / "kernels" / "bugs").glob("*.patch")))


def chosen_bugs(bugs: Sequence[KernelBug], patterns: Sequence[str]) -> tuple[KernelBug, ...]:
    """Those of ``bugs`` whose names match one of ``patterns``, see ``matching``."""
    return matching(bugs, patterns, "kernel bug", "memhp selftest --kernels --list")
