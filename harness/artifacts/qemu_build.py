# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU built from Debian's source package, with the patches and the device list of ``configs/qemu``.

``configs/qemu/README.md`` explains why it has to be built. The steps are those of any QEMU build (unpack, patch,
configure, ninja); only the binary is kept. QEMU's configure needs a newer meson than an old host has, so meson comes
from a package of the same suite and runs from its unpacked tree.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.artifacts.apt import PrivateApt, unpack
from harness.artifacts.building import PATCH, clean_environment, host_needs, require_packages, run_step
from harness.artifacts.cache import Cache, scratch
from harness.config.guest_parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import ArtefactError
from harness.progress import Progress

#: the project's patches and device lists
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "qemu"

#: the Debian source package, and the package of the build tool that an old host lacks
SOURCE = "qemu"
MESON = "meson"

#: part of the cache key: increase it when this module builds or installs the same inputs differently
RECIPE = 1

#: optional host libraries stay off: the binary must not depend on anything beyond HOST_NEEDS
_ENABLED = ("tcg", "slirp", "fdt=system", "seccomp", "trace-backends=nop")
_DISABLED = ("containers", "debug-info", "docs", "download", "guest-agent", "install-blobs", "tools", "user", "werror")
CONFIGURE = (
    "--without-default-features",
    *(f"--enable-{feature}" for feature in _ENABLED),
    *(f"--disable-{feature}" for feature in _DISABLED),
)

_BUILD_SECONDS = 3600.0
_ASK_SECONDS = 30.0
_VERSION = re.compile(rb"QEMU emulator version (\S+)")
_NINJA_STATUS = re.compile(r"\[(\d+)/(\d+)\] ")


_PROGRAMS = {"gcc": "cc", "binutils": "ld", "pkg-config": "pkg-config", "ninja-build": "ninja", "patch": "patch"}
_MODULES = {
    "libglib2.0-dev": "glib-2.0",
    "zlib1g-dev": "zlib",
    "libslirp-dev": "slirp",
    "libseccomp-dev": "libseccomp",
}
_HEADERS = {"libc6-dev": "stdio.h", "libfdt-dev": "libfdt.h"}
HOST_NEEDS = host_needs(_PROGRAMS | {"dpkg-dev": "dpkg-source"}, _MODULES, _HEADERS)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The project's changes to one QEMU: ``patches`` in order, and the list of devices (None: QEMU's own)."""

    target: str
    patches: tuple[Path, ...]
    devices: Path | None

    def arguments(self, version: str) -> list[str]:
        """The arguments of configure; ``version`` is the source package's."""
        chosen = [f"--target-list={self.target}-softmmu", f"--with-pkgversion=Debian {version}, patched by memhp"]
        if self.devices is not None:
            chosen += ["--without-default-devices", f"--with-devices-{self.target}=memhp"]
        return [*chosen, *CONFIGURE]

    def inputs(self, version: str) -> dict[str, str]:
        """All that determines the binary, for the cache key: also the host's release, whose libraries it uses."""
        made_of = {"recipe": str(RECIPE), "source": version, "host": _host_release()}
        made_of["configure"] = "\n".join(self.arguments(version))
        if self.devices is not None:
            made_of["devices"] = self.devices.read_text()
        return made_of | {f"patch {patch.name}": patch.read_text() for patch in self.patches}


def _host_release() -> str:
    release: dict[str, str] = {}
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
    return " ".join([platform.machine(), release.get("ID", "unknown"), release.get("VERSION_ID", "")]).strip()


def load_recipe(arch: ArchSpec, configs: Path = CONFIGS) -> Recipe:
    """The patches and device list for ``arch`` below ``configs``, if any; raises ArtefactError without that folder."""
    if not configs.is_dir():
        raise ArtefactError(f"QEMU's patches are missing: no folder {configs}", hint="run memhp from its checkout")
    target = arch.qemu_target
    devices = configs / f"devices-{target}.mak"
    return Recipe(target, tuple(sorted((configs / target).glob("*.patch"))), devices if devices.is_file() else None)


def parse_ninja(line: str) -> tuple[int, int] | None:
    """(steps done, steps in all) if ``line`` is a status line of ninja, else None."""
    match = _NINJA_STATUS.match(line)
    return None if match is None else (int(match[1]), int(match[2]))


def environment(meson: Path, host: Mapping[str, str]) -> dict[str, str]:
    """The environment of the build, from that of the ``host``; ``meson`` is the root of its package."""
    return clean_environment(
        host,
        LC_ALL="C.UTF-8",
        NINJA_STATUS="[%f/%t] ",
        PYTHONNOUSERSITE="1",
        PYTHONPATH=str(meson / "usr/lib/python3/dist-packages"),
    )


@dataclass(frozen=True, slots=True)
class QemuBuild:
    """One build in ``work``, a scratch folder; every command and its output go to ``log``."""

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
        # It checks the hashes. It only warns about the signature: APT has checked the archive's, which covers them.
        command = ["dpkg-source", "-x", str(dsc), str(self.source)]
        run_step("QEMU: unpacking", command, self.log, self.deadline)

    def patch(self) -> None:
        """Apply the project's patches and install its device list for configure."""
        for patch in self.recipe.patches:
            command = [*PATCH, "-i", str(patch)]
            run_step(f"QEMU: applying {patch.name}", command, self.log, self.deadline, cwd=self.source)
        if self.recipe.devices is not None:
            place = self.source / "configs" / "devices" / f"{self.recipe.target}-softmmu"
            shutil.copyfile(self.recipe.devices, place / "memhp.mak")

    def configure(self, meson: Path) -> None:
        """Run QEMU's configure with meson unpacked at ``meson``."""
        self.tree.mkdir()
        command = [str(self.source / "configure"), f"--python={sys.executable}", *self.recipe.arguments(self.version)]
        env = environment(meson, os.environ)
        run_step("QEMU: configuring", command, self.log, self.deadline, cwd=self.tree, env=env)

    def compile(self, meson: Path, on_step: Callable[[int, int], None]) -> Path:
        """Compile and return the binary's path; ``on_step`` gets (steps done, steps in all)."""

        def on_line(line: str) -> None:
            step = parse_ninja(line)
            if step is not None:
                on_step(*step)

        name, env = f"qemu-system-{self.recipe.target}", environment(meson, os.environ)
        run_step("QEMU: compiling", ["ninja", name], self.log, self.deadline, cwd=self.tree, env=env, on_line=on_line)
        return self.tree / name


def find_qemu(
    arch: ArchSpec, *, apt: PrivateApt, cache: Cache, progress: Progress, configs: Path = CONFIGS
) -> QemuBinary | None:
    """The result of ``build_qemu`` if it is cached, else None; raises the same errors."""
    recipe = load_recipe(arch, configs)
    version = apt.source_version(SOURCE, progress)
    place = cache.find("qemu", recipe.target, recipe.inputs(version))
    return None if place is None else _installed(place, recipe, version)


def build_qemu(
    arch: ArchSpec, *, apt: PrivateApt, cache: Cache, progress: Progress, configs: Path = CONFIGS
) -> QemuBinary:
    """QEMU for ``arch``, built unless cached: two to three minutes on two cores.

    ``apt`` may be for any architecture: only source packages are fetched. Raises ArtefactError: the host lacks
    something (the hint says what to install), a patch does not apply, a step fails (the hint names the log, which is
    kept), the result does not run. Raises DeadlineExpired after an hour.
    """
    recipe = load_recipe(arch, configs)
    version = apt.source_version(SOURCE, progress)
    inputs = recipe.inputs(version)
    log = cache.root / "logs" / f"qemu-{cache.place('qemu', recipe.target, inputs).name}.log"

    def builder(out: Path) -> None:
        deadline = Deadline(_BUILD_SECONDS)
        require_packages("QEMU", HOST_NEEDS, deadline)
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        _make(QemuBuild(recipe, version, scratch(out), log, deadline), out, apt, progress)
        log.unlink()

    what = f"QEMU for {arch.name}"
    return _installed(cache.get("qemu", recipe.target, inputs, builder, progress, what=what), recipe, version)


def _make(build: QemuBuild, out: Path, apt: PrivateApt, progress: Progress) -> None:
    dsc = apt.source(SOURCE, build.version, build.work, progress)
    meson = build.work / "meson"
    unpack(apt.download([MESON], progress, dependencies=False), meson, progress)
    with progress.task(f"Building QEMU for {build.recipe.target}") as task:
        task.update(note="unpacking the source")
        build.unpack(dsc)
        build.patch()
        task.update(note="configuring")
        build.configure(meson)
        binary = build.compile(meson, lambda done, total: task.update(done=done, total=total, note="compiling"))
    target = out / "bin" / binary.name
    target.parent.mkdir()
    shutil.copy2(binary, target)


def _installed(place: Path, recipe: Recipe, version: str) -> QemuBinary:
    binary = place / "bin" / f"qemu-system-{recipe.target}"
    said = proc.run([str(binary), "--version"], deadline=Deadline(_ASK_SECONDS), check=False)
    match = _VERSION.match(said.stdout)
    if said.returncode != 0 or match is None:
        libraries = sorted(need.package for need in HOST_NEEDS if need.program is None)
        raise ArtefactError(
            f"{binary} does not run: it {proc.describe_status(said.returncode)}:\n{proc.tail(said.stderr)}",
            hint=f"one of its libraries may have been removed: sudo apt-get install {' '.join(libraries)}",
        )
    patches = f"{len(recipe.patches)} patch{'' if len(recipe.patches) == 1 else 'es'}"
    origin = f"built from Debian's qemu {version} with {patches} from memhp"
    return QemuBinary((str(binary),), None, origin, match[1].decode())
