# SPDX-License-Identifier: GPL-2.0-or-later
"""Matrix files: the axes to combine, checked before anything starts.

::

    name: nightly
    grids:                               # each is a full cross product of its axes
      - name: paging
        axes:
          arch: riscv64                  # one value, or a list
          paging: [sv39, sv48, sv57]
          scenario: [dimm-cycle, virtio-mem-resize]
          kaslr: ["off", 1, 2]
          cmdline: {plain: "", rodata: rodata=full}
        exclude:                         # combinations to leave out
          - {paging: sv39, scenario: dimm-cycle}
        timeout: 300                     # optional: seconds for the boot and each step
        rounds: 20                       # optional: repetitions of a soak's steps

Every grid has the axes arch and scenario; the others are kernel, qemu, paging, boot, memmap_on_memory, online, kaslr,
cpus and cmdline. Kernels and QEMUs are paths, or names of harness.config.selector.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.arch.modes import PAGING_CHOICES
from harness.config.guest import BOOTS, DEFAULT_BOOT, MAX_CPUS, MAX_RANDOM_SEED
from harness.config.places import configs_dir
from harness.config.selector import is_debian_name
from harness.config.yaml import Value, load, show, suggest
from harness.errors import ConfigError, UsageError
from harness.scenarios.file import MAX_STEPS, known_scenarios, load_scenario

#: values of memory_hotplug.memmap_on_memory (mm/memory_hotplug.c, set_memmap_mode)
MEMMAP_MODES = {"off": "0", "on": "1", "force": "force"}
#: values of memhp_default_state= (mm/memory_hotplug.c, setup_memhp_default_state)
POLICIES = ("offline", "online", "online_kernel", "online_movable")
#: maximum number of cells in one matrix: more is a mistake
MAX_CELLS = 10_000
_MAX_GRIDS = 256
DEFAULT_TIMEOUT = 300.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of one axis: ``text`` as written, ``label`` in a cell's name, ``value`` as parsed."""

    text: str
    label: str
    value: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Grid:
    """One cross product. ``axes`` are in the order of AXES; ``exclude`` maps axes to texts, all of which must match."""

    name: str
    axes: Mapping[str, tuple[Setting, ...]]
    exclude: tuple[Mapping[str, frozenset[str]], ...]
    timeout: float
    rounds: int | None
    line: int


@dataclass(frozen=True, slots=True)
class MatrixFile:
    """One matrix file as read."""

    name: str
    summary: str
    grids: tuple[Grid, ...]
    source: Path


def _plain(value: Value, known: Sequence[str]) -> Setting:
    text = value.choice(known)
    return Setting(text, text, text, value.line)


def _scenario(value: Value) -> Setting:
    text = value.line_of_text()
    where = text
    if "/" in text or text.endswith((".yaml", ".yml")):
        where = str(value.path())
    try:
        name = load_scenario(where).name
    except ConfigError:
        raise
    except UsageError as error:
        value.fail(error.message, hint=error.hint)
    return Setting(text, name, where, value.line)


def _kernel(value: Value) -> Setting:
    text, path = value.line_of_text(), value.place()
    if path.is_file() or path.is_dir():
        return Setting(text, label_of(path.name), str(path), value.line)
    if not is_debian_name(text):
        value.fail(f"no such file or directory: {path}", hint="relative paths start at the directory of the YAML file")
    return Setting(text, label_of(text), text, value.line)


def _qemu(value: Value) -> Setting:
    text, path = value.line_of_text(), value.place()
    found = path.is_file()
    if not found and not is_debian_name(text):
        value.fail(f"no such file: {path}", hint="a qemu-system-…, debian or debian:SUITE")
    return Setting(text, f"qemu-{label_of(path.name if found else text)}", str(path) if found else text, value.line)


def label_of(text: str) -> str:
    """``text`` with characters that are not allowed in a name replaced by dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "kernel"


def _memmap(value: Value) -> Setting:
    text = value.choice(tuple(MEMMAP_MODES))
    return Setting(text, f"memmap-{text}", f"memory_hotplug.memmap_on_memory={MEMMAP_MODES[text]}", value.line)


def _online(value: Value) -> Setting:
    text = value.choice(POLICIES)
    return Setting(text, text.replace("_", "-"), f"memhp_default_state={text}", value.line)


def _kaslr(value: Value) -> Setting:
    if value.is_text("off"):
        return Setting("off", "nokaslr", "", value.line)
    number = value.integer(minimum=0, maximum=MAX_RANDOM_SEED)
    return Setting(str(number), f"seed-{number}", str(number), value.line)


def _cpus(value: Value) -> Setting:
    number = value.integer(minimum=1, maximum=MAX_CPUS)
    return Setting(str(number), f"{number}cpus", str(number), value.line)


_PAGING = [name for choices in PAGING_CHOICES.values() for name in choices]

#: axis -> reader of one value; ``cmdline`` is a mapping and has its own reader
AXES: Mapping[str, Callable[[Value], Setting] | None] = {
    "arch": lambda value: _plain(value, tuple(DEFAULT_BOOT)),
    "kernel": _kernel,
    "qemu": _qemu,
    "paging": lambda value: _plain(value, _PAGING),
    "boot": lambda value: _plain(value, BOOTS),
    "memmap_on_memory": _memmap,
    "online": _online,
    "kaslr": _kaslr,
    "cpus": _cpus,
    "cmdline": None,
    "scenario": _scenario,
}


def load_matrix(what: str) -> MatrixFile:
    """Read the matrix file ``what``, a path or the name of a file in ``configs``; raises UsageError, ConfigError."""
    path = Path(os.path.expanduser(what))
    if not path.is_file() and "/" not in what:
        path = configs_dir() / f"{what.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise UsageError(f"--matrix: no such file: {what}", hint="for example configs/nightly.yaml")
    value = load(path)
    reader = value.mapping("name", "summary", "grids")
    items = reader.take("grids", Value.items)
    if not items:
        value.fail("the matrix is empty: it has no grids", hint="add a grid with the axes arch and scenario")
    if len(items) > _MAX_GRIDS:
        value.fail(f"more than {_MAX_GRIDS} grids", hint="a grid takes lists of values")
    grids = tuple(_grid(item, number) for number, item in enumerate(items, 1))
    names = [grid.name for grid in grids]
    for name in names:
        if names.count(name) > 1:
            value.fail(f"duplicate grid name {name!r}", hint="give each grid its own name")
    return MatrixFile(reader.take("name", _name), reader.take("summary", Value.line_of_text, ""), grids, path.resolve())


def _name(value: Value) -> str:
    text = value.line_of_text()
    if not _NAME.fullmatch(text):
        value.fail(f"invalid name {show(text)}", hint="use letters, digits, '-', '_' and '.'")
    return text


def _grid(value: Value, number: int) -> Grid:
    reader = value.mapping("name", "axes", "exclude", "timeout", "rounds")
    axes = reader.take("axes", _axes)
    for needed in ("arch", "scenario"):
        if needed not in axes:
            value.fail(f"a grid needs the axis {needed!r}", hint=f"axes: {{{needed}: [...]}}")
    rounds = reader.take("rounds", lambda found: found.integer(minimum=1, maximum=MAX_STEPS), None)
    return Grid(
        name=reader.take("name", _name, f"grid-{number}"),
        axes=axes,
        exclude=tuple(reader.take("exclude", lambda found: [_exclusion(item, axes) for item in found.items()], [])),
        timeout=reader.take("timeout", lambda found: found.number(minimum=1, maximum=86_400), DEFAULT_TIMEOUT),
        rounds=rounds,
        line=value.line,
    )


def _axes(value: Value) -> dict[str, tuple[Setting, ...]]:
    given = value.mapping(*AXES)
    found: dict[str, tuple[Setting, ...]] = {}
    for axis, read in AXES.items():
        part = given.values.get(axis)
        if part is None:
            continue
        settings: dict[str, Setting] = {}
        for setting in _cmdlines(part) if read is None else _settings(part, axis, read):
            if setting.label in settings:
                part.fail(f"duplicate value {show(setting.text)}", hint="list each value of an axis once")
            settings[setting.label] = setting
            if len(settings) > MAX_CELLS:
                part.fail(f"more than {MAX_CELLS} values", hint="each value makes a cell")
        if not settings:
            part.fail("an axis without values: the matrix is empty", hint="remove the axis, or add a value")
        found[axis] = tuple(settings.values())
    return found


def _settings(value: Value, axis: str, read: Callable[[Value], Setting]) -> Iterator[Setting]:
    if axis == "scenario" and value.is_text("all"):
        yield from (Setting(name, name, name, value.line) for name in known_scenarios())
        return
    for item in value.items() if value.is_list() else (value,):
        yield read(item)


def _cmdlines(value: Value) -> Iterator[Setting]:
    for name, text in value.mapping().values.items():
        if not _NAME.fullmatch(name):
            text.fail(f"invalid name {show(name)}", hint="cmdline: {plain: '', full: rodata=full}")
        yield Setting(name, name, text.text(), text.line)


def _exclusion(value: Value, axes: Mapping[str, Sequence[Setting]]) -> dict[str, frozenset[str]]:
    rule: dict[str, frozenset[str]] = {}
    for axis, found in value.mapping(*axes).values.items():
        known = [setting.text for setting in axes[axis]]
        chosen = set()
        for item in found.items() if found.is_list() else (found,):
            text = item.scalar()
            if text not in known:
                item.fail(f"{show(text)} is not a value of this grid's axis {axis}", hint=suggest(text, known))
            chosen.add(text)
        rule[axis] = frozenset(chosen)
    if not rule:
        value.fail("this excludes everything", hint="name at least one axis")
    return rule
