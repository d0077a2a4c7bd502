# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports between rooms: none that the table does not allow, and no circles."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent

#: what every room may import; they themselves may only import errors
EVERYWHERE = {"errors", "units", "deadline", "release"}

_BELOW = {
    "bounded",
    "proc",
    "progress",
    "scratch",
    "codec",
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

#: room -> what it may import, besides EVERYWHERE and itself
MAY: dict[str, set[str]] = {
    "errors": set(),
    "units": set(),
    "deadline": set(),
    "release": set(),
    "proc": set(),
    "progress": set(),
    "scratch": set(),
    "cpio": set(),
    "codec": set(),
    "dotconfig": set(),
    "elfheader": set(),
    "bounded": set(),
    "state": {"units"},
    "arch": {"state"},
    "config": {"errors", "units", "bounded"},
    "artifacts": {"config", "bounded", "proc", "progress", "cpio", "arch", "dotconfig", "elfheader", "qemu"},
    "qemu": {"config", "bounded", "proc", "scratch", "arch", "state"},
    "guest": {"cpio", "arch", "state"},
    "parsers": {"state", "arch", "dotconfig", "elfheader"},
    "kmem": {"state", "arch"},
    "collect": {"guest", "bounded", "elfheader", "qemu", "parsers", "kmem", "state", "arch", "codec"},
    "model": {"state", "arch"},
    "check": {"config", "state", "model", "arch"},
    "scenarios": _BELOW,
    "bench": _BELOW | {"scenarios"},
    "selftest": _BELOW | {"scenarios"},
    "matrix": _BELOW | {"scenarios", "report"},
    "report": _BELOW | {"scenarios"},
    "shell": _BELOW | {"scenarios", "report"},
    "cli": _BELOW | {"scenarios", "report", "bench", "selftest", "matrix", "shell"},
    "pytest_plugin": _BELOW | {"scenarios", "report", "cli"},
    "__main__": {"cli"},
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every import of memhp's own modules in ``source``, a module of ``package``, at any depth.

    ``from a.b import c`` gives the name a.b.c, whether c is a module or a name in a.b.
    """
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
            if name.startswith("harness."):
                yield node.lineno, name


def imported_rooms(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of memhp's own modules in ``source``, a module of ``package``."""
    return ((line, name.split(".")[1]) for line, name in imports_of(source, package))


def package_of(path: Path) -> str:
    return ".".join(("harness", *path.relative_to(ROOT).parent.parts))


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
    assert room in MAY, f"{room} is a new room: add it to this table"
    assert forbidden(path.read_text(), room, package_of(path)) == []


def test_the_package_itself_imports_nothing_of_ours() -> None:
    assert list(imported_rooms((ROOT / "__init__.py").read_text(), "harness")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import harness.guest", ["line 1: model imports guest"]),
        ("from harness import state, parsers", ["line 1: model imports parsers"]),
        ("from harness.collect.look import take as t", ["line 1: model imports collect"]),
        ("def f():\n    from harness.qemu import machine", ["line 2: model imports qemu"]),
        ("from ..check import findings", ["line 1: model imports check"]),
        ("from .. import guest", ["line 1: model imports guest"]),
        ("from . import zones\nfrom .zones import x\nfrom harness.arch import ARM64\nimport os, harness.units", []),
        ("from harness import __version__", []),
    ],
)
def test_the_walk_sees_every_kind_of_import(source: str, found: list[str]) -> None:
    assert forbidden(source, "model", "harness.model") == found


def circle_in(sources: Mapping[str, tuple[str, str]]) -> list[str] | None:
    """Modules that import each other in a circle, with the first repeated at the end; None if there are none.

    ``sources`` has the package and the text of each module.
    """

    def module(name: str) -> str:
        return name if name in sources else name.rpartition(".")[0]

    graph = {
        name: {module(found) for _, found in imports_of(source, package)} - {name}
        for name, (package, source) in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def test_no_two_files_import_each_other_in_a_circle() -> None:
    sources = {}
    for path in ROOT.rglob("*.py"):
        package = package_of(path)
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        sources[name] = package, path.read_text()
    assert circle_in(sources) is None


def test_the_search_for_circles_sees_every_kind_of_import() -> None:
    files = {
        "harness.a": ("harness", "import harness.b"),
        "harness.b": ("harness", "def f():\n    from harness.c.d import thing"),
        "harness.c.d": ("harness.c", "if TYPE_CHECKING:\n    from . import e"),
        "harness.c.e": ("harness.c", "from harness import units"),
        "harness.units": ("harness", ""),
    }
    assert circle_in(files) is None
    for back in ("from harness.a import x", "from harness import a", "from ..a import x", "import harness.a as other"):
        found = circle_in({**files, "harness.c.e": ("harness.c", back)})
        assert found is not None and set(found) == {"harness.a", "harness.b", "harness.c.d", "harness.c.e"}


def test_no_two_classes_have_the_same_name() -> None:
    """Names with a leading underscore are private to their file."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_the_name_of_a_file_is_that_of_no_other() -> None:
    """Exceptions: a command's file is named like the command, and each folder of devices has a file per device."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        place = path.relative_to(ROOT)
        if path.stem != "__init__" and room_of(path) != "cli" and place.parent.name not in ("devices", "verbs"):
            found.setdefault(path.stem, []).append(str(place))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_no_room_can_reach_itself_through_others() -> None:
    def reach(room: str, seen: frozenset[str]) -> set[str]:
        return {room}.union(*(reach(other, seen | {room}) for other in MAY[room] - seen)) if room not in seen else set()

    for room in _BELOW:
        assert all(room not in reach(other, frozenset()) for other in MAY[room])
