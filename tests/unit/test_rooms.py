# SPDX-License-Identifier: GPL-2.0-or-later
"""Which way the doors open: no module imports from a room that its own may not know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent

#: what every room may import; among themselves these know only errors
EVERYWHERE = {"errors", "units", "deadline", "release"}

_BELOW = {
    "proc",
    "progress",
    "scratch",
    "state",
    "arch",
    "config",
    "artifacts",
    "qemu",
    "guest",
    "parsers",
    "kmem",
    "collect",
    "model",
    "check",
}
_ALL = _BELOW | {"scenarios", "report", "cli", "pytest_plugin"}

#: room -> what it may import besides EVERYWHERE and itself
MAY: dict[str, set[str]] = {
    "errors": set(),
    "units": set(),
    "deadline": set(),
    "release": set(),
    "proc": set(),
    "progress": set(),
    "scratch": set(),
    "cpio": set(),
    "state": {"units"},
    "arch": {"state"},
    "config": {"errors", "units"},
    "artifacts": {"config", "proc", "progress", "cpio", "arch"},
    "qemu": {"config", "proc", "scratch", "arch", "state"},
    "guest": {"config", "proc", "cpio", "arch", "state"},
    "parsers": {"state", "arch"},
    "kmem": {"state", "arch"},
    "collect": {"guest", "qemu", "parsers", "kmem", "state", "arch"},
    "model": {"state", "arch"},
    "check": {"config", "state", "model", "arch"},
    "scenarios": _BELOW,
    "bench": _BELOW | {"scenarios"},
    "selftest": _BELOW | {"scenarios"},
    "matrix": _BELOW | {"scenarios", "report"},
    "report": _ALL,
    "shell": _ALL,
    "cli": _ALL | {"bench", "selftest", "matrix", "shell"},
    "pytest_plugin": _ALL,
    "__main__": _ALL,
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of ours in ``source``, a module of ``package``, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "harness" and len(parts) > 1:
                yield node.lineno, parts[1]


def forbidden(source: str, room: str, package: str) -> list[str]:
    common = {"errors"} if room in EVERYWHERE else EVERYWHERE
    allowed = MAY[room] | common | {room, "__version__"}
    return [
        f"line {line}: {room} imports {name}" for line, name in imported_rooms(source, package) if name not in allowed
    ]


MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_obey_the_table(path: Path) -> None:
    room = room_of(path)
    assert room in MAY, f"{room} is a new room: give it a line in this table"
    package = ".".join(("harness", *path.relative_to(ROOT).parent.parts))
    assert forbidden(path.read_text(), room, package) == []


def test_the_package_itself_imports_nothing_of_ours() -> None:
    assert list(imported_rooms((ROOT / "__init__.py").read_text(), "harness")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import harness.guest", ["line 1: model imports guest"]),
        ("from harness import state, parsers", ["line 1: model imports parsers"]),
        ("from harness.collect.snapshot import take as t", ["line 1: model imports collect"]),
        ("def f():\n    from harness.qemu import machine", ["line 2: model imports qemu"]),
        ("from ..check import findings", ["line 1: model imports check"]),
        ("from .. import guest", ["line 1: model imports guest"]),
        ("from . import zones\nfrom .zones import x\nfrom harness.arch import ARM64\nimport os, harness.units", []),
        ("from harness import __version__", []),
    ],
)
def test_the_walk_sees_every_kind_of_import(source: str, found: list[str]) -> None:
    assert forbidden(source, "model", "harness.model") == found


def test_no_room_can_reach_itself_through_others() -> None:
    def reach(room: str, seen: frozenset[str]) -> set[str]:
        return {room}.union(*(reach(other, seen | {room}) for other in MAY[room] - seen)) if room not in seen else set()

    for room in _BELOW:
        assert all(room not in reach(other, frozenset()) for other in MAY[room])
