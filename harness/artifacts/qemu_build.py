# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU built from Debian's source package, with the patches and the device list of ``configs/qemu``.

Why it has to be built at all is told in ``configs/qemu/README.md``. The steps are those of any QEMU build: unpack,
patch, configure, ninja. Each of them is here; ``harness.artifacts.qemu`` fetches what they need and keeps the result.
QEMU's configure wants a newer meson than an old host has, so meson is a package of the same suite and runs from where
it was unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.deadline import Deadline
from harness.errors import ArtefactError

#: the Debian source package
SOURCE = "qemu"
#: the packages of what configure asks for and an old host lacks; pycotap only where Debian has not patched it out
MESON = "meson"
PYCOTAP = "python3-pycotap"

#: whatever else QEMU could find on the host and link stays off: the binary needs no more of it than HOST_NEEDS says
CONFIGURE = (
    "--without-default-features",
    "--enable-tcg",
    "--enable-slirp",
    "--enable-fdt=system",
    "--enable-seccomp",
    "--enable-trace-backends=nop",
    "--disable-containers",
    "--disable-debug-info",
    "--disable-docs",
    "--disable-download",
    "--disable-guest-agent",
    "--disable-install-blobs",
    "--disable-tools",
    "--disable-user",
    "--disable-werror",
)

#: part of the cache key: raise the number when this module makes something else of the same inputs
RECIPE = " ".join(["1", *CONFIGURE])

_NINJA_STATUS = re.compile(r"\[(\d+)/(\d+)\] ")


@dataclass(frozen=True, slots=True)
class HostNeed:
    """Something the host must have: a program, a pkg-config module or a header, and the Debian package it is in."""

    package: str
    program: str | None = None
    module: str | None = None
    header: str | None = None

    @property
    def name(self) -> str:
        return self.program or self.module or f"<{self.header}>"

    def probe(self) -> list[str] | None:
        """The command that succeeds if the host has it; None if looking for the program is all."""
        if self.module is not None:
            return ["pkg-config", "--exists", self.module]
        if self.header is not None:
            return ["cc", "-fsyntax-only", "-include", self.header, "-x", "c", os.devnull]
        return None


#: in the order in which they are looked for: the libraries are asked for through the programs
HOST_NEEDS = (
    HostNeed("gcc", program="cc"),
    HostNeed("binutils", program="ld"),
    HostNeed("pkg-config", program="pkg-config"),
    HostNeed("ninja-build", program="ninja"),
    HostNeed("patch", program="patch"),
    HostNeed("dpkg-dev", program="dpkg-source"),
    HostNeed("libc6-dev", header="stdio.h"),
    HostNeed("libglib2.0-dev", module="glib-2.0"),
    HostNeed("zlib1g-dev", module="zlib"),
    HostNeed("libslirp-dev", module="slirp"),
    HostNeed("libseccomp-dev", module="libseccomp"),
    HostNeed("libfdt-dev", header="libfdt.h"),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What this project adds to one QEMU: ``patches`` in their order, and the list of devices (None: QEMU's own)."""

    target: str
    patches: tuple[Path, ...]
    devices: Path | None

    def arguments(self, version: str) -> list[str]:
        """The arguments of configure; ``version`` is the source package's."""
        chosen = [f"--target-list={self.target}-softmmu", f"--with-pkgversion=Debian {version}, patched by memhp"]
        if self.devices is not None:
            chosen += ["--without-default-devices", f"--with-devices-{self.target}=memhp"]
        return [*chosen, *CONFIGURE]


def load_recipe(arch: ArchSpec, configs: Path) -> Recipe:
    """Find the patches and the device list for ``arch`` below ``configs`` (the project's configs/qemu folder).

    Raises ArtefactError if there is no such folder at all: an unpatched QEMU must not pass for a patched one.
    """
    if not configs.is_dir():
        raise ArtefactError(f"QEMU's patches are missing: no folder {configs}", hint="run memhp from its checkout")
    target = arch.qemu_target
    devices = configs / f"devices-{target}.mak"
    return Recipe(target, tuple(sorted((configs / target).glob("*.patch"))), devices if devices.is_file() else None)


def missing_packages(deadline: Deadline, needs: Sequence[HostNeed] = HOST_NEEDS) -> tuple[HostNeed, ...]:
    """What the host lacks of ``needs``."""

    def has(need: HostNeed) -> bool:
        command = need.probe()
        program = need.program if command is None else command[0]
        if program is None or shutil.which(program) is None:
            return False
        return command is None or proc.run(command, deadline=deadline, check=False).returncode == 0

    return tuple(need for need in needs if not has(need))


def require_packages(deadline: Deadline, needs: Sequence[HostNeed] = HOST_NEEDS) -> None:
    """Raise ArtefactError, naming what to install, if the host lacks any of ``needs``."""
    lacking = missing_packages(deadline, needs)
    if lacking:
        raise ArtefactError(
            f"cannot build QEMU: this machine lacks {', '.join(need.name for need in lacking)}",
            hint=f"sudo apt-get install {' '.join(sorted({need.package for need in lacking}))}",
        )


def parse_ninja(line: str) -> tuple[int, int] | None:
    """(steps done, steps in all) if ``line`` is a status line of ninja, else None."""
    match = _NINJA_STATUS.match(line)
    return None if match is None else (int(match[1]), int(match[2]))


def environment(meson: Path, host: Mapping[str, str]) -> dict[str, str]:
    """The environment of the build: nothing of ``host`` but where programs and temporary files are.

    CFLAGS and the like would change the binary behind the cache key's back. ``meson`` is the root of its package.
    """
    kept = {name: host[name] for name in ("PATH", "HOME", "TMPDIR") if name in host}
    return kept | {
        "LC_ALL": "C.UTF-8",
        "NINJA_STATUS": "[%f/%t] ",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": str(meson / "usr/lib/python3/dist-packages"),
    }


@dataclass(frozen=True, slots=True)
class Build:
    """One build in ``work``, a scratch folder of its own; every command and its output go to ``log``."""

    recipe: Recipe
    version: str
    work: Path
    log: Path
    deadline: Deadline

    @property
    def source(self) -> Path:
        return self.work / "source"

    @property
    def tree(self) -> Path:
        return self.work / "build"

    def unpack(self, dsc: Path) -> None:
        """Unpack the source package with Debian's own patches (they drop what the repacked source has no blobs for)."""
        # It checks the hashes. About the signature it only warns: APT has checked the archive's, which covers them.
        self._run("unpacking", ["dpkg-source", "-x", str(dsc), str(self.source)])

    def patch(self) -> None:
        """Apply the project's patches and put its device list where configure looks for it."""
        for patch in self.recipe.patches:
            command = ["patch", "-p1", "--fuzz=0", "--forward", "--batch", "--no-backup-if-mismatch", "-i", str(patch)]
            self._run(f"applying {patch.name}", command, cwd=self.source)
        if self.recipe.devices is not None:
            place = self.source / "configs" / "devices" / f"{self.recipe.target}-softmmu"
            shutil.copyfile(self.recipe.devices, place / "memhp.mak")

    def configure(self, meson: Path) -> None:
        """Run QEMU's configure with meson unpacked at ``meson``."""
        self.tree.mkdir()
        command = [str(self.source / "configure"), f"--python={sys.executable}", *self.recipe.arguments(self.version)]
        self._run("configuring", command, cwd=self.tree, env=environment(meson, os.environ))

    def compile(self, meson: Path, on_step: Callable[[int, int], None]) -> Path:
        """Compile and return the binary's path; ``on_step`` gets (steps done, steps in all)."""

        def on_line(line: str) -> None:
            step = parse_ninja(line)
            if step is not None:
                on_step(*step)

        name = f"qemu-system-{self.recipe.target}"
        env = environment(meson, os.environ)
        self._run("compiling", ["ninja", name], cwd=self.tree, env=env, on_line=on_line)
        return self.tree / name

    def _run(
        self,
        what: str,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        done = proc.run(command, deadline=self.deadline, cwd=cwd, env=env, log=self.log, check=False, on_line=on_line)
        if done.returncode != 0:
            said = proc.tail(done.stdout + b"\n" + done.stderr, lines=30)
            raise ArtefactError(
                f"building QEMU: {what} {proc.describe_status(done.returncode)}:\n{said}",
                hint=f"the whole log is {self.log}",
            )
