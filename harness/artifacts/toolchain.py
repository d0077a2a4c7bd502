# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler for the user's tree: the cross compiler or LLVM, through ccache if it is installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError, UsageError

#: the programs of ``make LLVM=1`` (Documentation/kbuild/llvm.rst), and the Debian package of each
LLVM_PROGRAMS = {
    **{"clang": "clang", "ld.lld": "lld"},
    **dict.fromkeys(("llvm-ar", "llvm-nm", "llvm-objcopy", "llvm-objdump", "llvm-readelf", "llvm-strip"), "llvm"),
}
_ASK_SECONDS = 30.0
#: enough for a kernel with debug info; ccache drops the least recently used files
_CCACHE_SIZE = "5G"
#: the words before the first option of an object's command; ``savedcmd_`` since v6.2, ``cmd_`` before
_COMMAND = re.compile(r"(?:saved)?cmd_\S+ := ((?:[^\s-]\S*\s+)*?[^\s-]\S*)\s+-")
_CLANG = re.compile(r"(\S+/)?clang(-\d+)?")
_SUFFIXED = re.compile(r"clang-(\d+)")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """``words`` for make, variables for its environment, and the ``name`` of the compiler."""

    name: str
    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def cross_gcc(arch: ArchSpec) -> Toolchain:
    """The cross compiler, without ccache."""
    return Toolchain(f"{arch.triplet}-gcc", (f"CROSS_COMPILE={arch.triplet}-",))


def find_toolchain(arch: ArchSpec, llvm: bool, cache: Path, source: Path) -> Toolchain:
    """The toolchain for ``arch`` and the tree ``source``; ccache, if installed, keeps its files and settings below
    ``cache``.

    The user's own ccache settings do not apply: some (sloppiness, compiler_check) would let it return objects that the
    compiler would not produce. Raises UsageError naming what ``--llvm`` needs and this machine lacks.
    """
    plain = _llvm(_oldest_llvm(source)) if llvm else cross_gcc(arch)
    if shutil.which("ccache") is None:
        return plain
    place = cache / "ccache"
    try:
        place.mkdir(parents=True, exist_ok=True)
        settings = place / "ccache.conf"
        if not settings.is_file():
            settings.write_text(f"max_size = {_CCACHE_SIZE}\n")
    except OSError as error:
        raise ArtefactError(f"cannot write {place}: {error.strerror}", hint="see MEMHP_CACHE") from error
    env = {"CCACHE_DIR": str(place), "CCACHE_CONFIGPATH": str(settings)}
    return Toolchain(plain.name, (*plain.words, f"CC=ccache {plain.name}"), env)


def _llvm(oldest: int) -> Toolchain:
    """LLVM without a version in its programs' names, else the newest complete one with a version (``clang-19``).

    One older than ``oldest`` does not do.
    """
    old: list[int] = []
    for suffix in ("", *(f"-{version}" for version in sorted(_installed(), reverse=True))):
        if all(shutil.which(f"{program}{suffix}") for program in LLVM_PROGRAMS):
            version = int(suffix[1:]) if suffix else _version_of("clang")
            if version is None or version >= oldest:
                return Toolchain(f"clang{suffix}", (f"LLVM={suffix or 1}",))
            old.append(version)
    if old:
        raise UsageError(
            f"--llvm: the tree needs LLVM {oldest} or newer, this machine has {max(old)}",
            hint=f"install clang, lld and llvm of a newer version ({oldest}: sudo apt-get install "
            f"clang-{oldest} lld-{oldest} llvm-{oldest}); or omit --llvm to use the cross compiler",
        )
    lacking = [program for program in LLVM_PROGRAMS if shutil.which(program) is None]
    packages = dict.fromkeys(LLVM_PROGRAMS[program] for program in lacking)
    raise UsageError(
        f"--llvm: this machine lacks {', '.join(lacking)}",
        hint=f"sudo apt-get install {' '.join(packages)}; or omit --llvm to use the cross compiler",
    )


def _oldest_llvm(source: Path) -> int:
    """The major version of the oldest LLVM that the tree takes (scripts/min-tool-version.sh since v5.13); 0: any."""
    said = _first_number(["sh", str(source / "scripts" / "min-tool-version.sh"), "llvm"])
    return 0 if said is None else said


def _version_of(clang: str) -> int | None:
    return _first_number([clang, "--version"])


def _first_number(command: list[str]) -> int | None:
    try:
        done = proc.run(command, deadline=Deadline(_ASK_SECONDS))
    except InfraError:
        return None
    match = re.search(rb"\d+", done.stdout)
    return None if match is None else int(match[0])


def _installed() -> set[int]:
    names = (path.name for folder in os.get_exec_path() for path in Path(folder).glob("clang-*"))
    return {int(match[1]) for name in names if (match := _SUFFIXED.fullmatch(name))}


def used_compiler(tree: Path, usual: Toolchain) -> Toolchain:
    """The toolchain that compiled the objects in ``tree``, so that they can be reused; ``usual`` if there are none.

    kbuild keeps each object's command beside it (scripts/Kbuild.include, if_changed) and recompiles if it differs.
    """
    try:
        said = (tree / "init" / ".main.o.cmd").read_text()
    except OSError:
        return usual
    match = _COMMAND.match(said)
    if match is None:
        return usual
    words = match[1].split()
    command, name = " ".join(words), words[-1]
    env = usual.env if words[0].rpartition("/")[2] == "ccache" else {}
    clang = _CLANG.fullmatch(name)
    if clang is not None:
        return Toolchain(name, (f"LLVM={clang[1] or clang[2] or 1}", f"CC={command}"), env)
    if not name.endswith("gcc"):
        return usual
    return Toolchain(name, (f"CROSS_COMPILE={name.removesuffix('gcc')}", f"CC={command}"), env)
