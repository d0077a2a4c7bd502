# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU runs a guest: the user's, the machine's, Debian's newer one, or one built with our patches."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.artifacts import qemu_build
from harness.artifacts.apt import PrivateApt, fingerprints, unpack
from harness.artifacts.cache import Cache, scratch
from harness.artifacts.elf import find_closure, inside
from harness.artifacts.store import apt, configs, host_arch
from harness.config.parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError, UnsupportedError, UsageError
from harness.progress import Progress

#: says why a binary will not do, None if it will
Able = Callable[[QemuBinary], str | None]

#: part of the cache key: raise it when this module makes something else of the same packages
RECIPE = "1"

_VERSION_SECONDS = 30.0
_BUILD_SECONDS = 3600.0
_VERSION = re.compile(r"QEMU emulator version (\S+)")
#: loaded by name while a program runs, so that nothing in its file tells
_LOADED_BY_NAME = ("libgcc_s.so.1",)


def find_qemu(arch: ArchSpec, *, explicit: Path | None, able: Able, progress: Progress) -> QemuBinary:
    """The first that ``able`` has nothing against: ``explicit`` alone if given; else the machine's own, one built here
    before, Debian's package, one built now.

    Raises UsageError for a path that is no QEMU, UnsupportedError telling what each candidate lacks, ArtefactError if
    one cannot be had.
    """
    if explicit is not None:
        binary = own_qemu(explicit)
        lack = able(binary)
        if lack is not None:
            raise UnsupportedError(
                "qemu", f"--qemu {explicit}: {lack}", hint="leave --qemu out, and memhp finds one that can"
            )
        return binary
    reasons: list[str] = []
    for candidate in _candidates(arch, progress, reasons):
        lack = able(candidate)
        if lack is None:
            return candidate
        reasons.append(f"{candidate.origin}: {lack.partition(': run memhp')[0]}")
    listed = "".join(f"\n  {reason}" for reason in reasons)
    raise UnsupportedError("qemu", f"no QEMU for {arch.name} will do:{listed}", hint="give one that does with --qemu")


def own_qemu(path: Path) -> QemuBinary:
    """The user's own QEMU; raises UsageError if it is none, or does not run."""
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(f"--qemu {path} is not a program", hint="name the qemu-system-… binary itself")
    argv = (str(path.absolute()),)
    try:
        return QemuBinary(argv, None, str(path), version_of(argv))
    except InfraError as error:
        raise UsageError(f"--qemu {path}: {error.message}", hint="name the qemu-system-… binary itself") from error


def version_of(argv: tuple[str, ...]) -> str:
    """What ``--version`` says, such as 10.0.13; raises InfraError for a program that does not run or is no QEMU."""
    said = proc.run([*argv, "--version"], deadline=Deadline(_VERSION_SECONDS)).stdout.decode(errors="replace")
    match = _VERSION.search(said)
    if match is None:
        raise InfraError(f"{argv[-1]} is not QEMU: it calls itself {said[:100]!r}")
    return match[1]


def debian_qemu(arch: ArchSpec, progress: Progress) -> QemuBinary:
    """QEMU of the suite with the libraries it needs, run by its own loader: works on any host release, needs no root.

    Raises ArtefactError if it cannot be had.
    """
    source = apt(host_arch())
    program = f"qemu-system-{arch.qemu_target}"
    packages = source.closure([arch.qemu_package], progress)

    def build(out: Path) -> None:
        work = scratch(out)
        unpack(source.download([arch.qemu_package], progress), work, progress)
        _take_over(work, program, out)

    inputs = {"recipe": RECIPE, "program": program, **fingerprints(packages)}
    path = Cache.default().get(
        "qemu", f"{arch.qemu_target}-debian", inputs, build, progress, what=f"Debian's {program}"
    )
    argv = (str(path / "lib" / "ld.so"), "--library-path", str(path / "lib"), str(path / "bin" / program))
    return QemuBinary(
        argv, path / "share" / "qemu", f"Debian's {arch.qemu_package} of {source.suite}", version_of(argv)
    )


def built_qemu(arch: ArchSpec, progress: Progress, *, only_cached: bool = False) -> QemuBinary | None:
    """QEMU built from Debian's source with the patches of ``configs/qemu``: two to three minutes on two cores, once.

    None if there are no patches for ``arch``, or if ``only_cached`` and it was not built yet. Raises ArtefactError: the
    machine lacks something to build it with, it cannot be fetched, a patch does not fit, a step fails.
    """
    recipe = qemu_build.load_recipe(arch, configs("qemu"))
    source, cache = apt(host_arch()), Cache.default()
    # Without patches it would be what Debian has; without lists of sources it cannot have been built.
    if not recipe.patches or (only_cached and not source.knows_sources()):
        return None
    version = source.source_version(qemu_build.SOURCE, progress)
    name = f"qemu-system-{arch.qemu_target}"
    inputs = _recipe_inputs(recipe, version, source, progress)
    path = cache.find("qemu", f"{arch.qemu_target}-built", inputs)
    if path is None and not only_cached:
        builder = _BuildJob(recipe, version, source, progress).run
        path = cache.get("qemu", f"{arch.qemu_target}-built", inputs, builder, progress, what=f"QEMU for {arch.name}")
    if path is None:
        return None
    argv = (str(path / "bin" / name),)
    count = len(recipe.patches)
    origin = f"built from Debian's qemu {version} with {count} patch{'es' if count > 1 else ''} of memhp"
    return QemuBinary(argv, None, origin, version_of(argv))


def _recipe_inputs(recipe: qemu_build.Recipe, version: str, source: PrivateApt, progress: Progress) -> dict[str, str]:
    files = [*recipe.patches, *([] if recipe.devices is None else [recipe.devices])]
    packages = source.source_files(qemu_build.SOURCE, progress)
    return {
        "recipe": RECIPE,
        # It is linked with this machine's libraries.
        "host": _host_release(),
        "configure": "\n".join(recipe.arguments(version)),
        **{f"file {path.name}": path.read_text() for path in files},
        **fingerprints(packages),
    }


@dataclass(frozen=True, slots=True)
class _BuildJob:
    """Builds QEMU into the folder that the cache gives it."""

    recipe: qemu_build.Recipe
    version: str
    source: PrivateApt
    progress: Progress

    def run(self, out: Path) -> None:
        deadline = Deadline(_BUILD_SECONDS)
        qemu_build.require_packages(deadline)
        work = scratch(out)
        dsc = self.source.source(qemu_build.SOURCE, self.version, work, self.progress)
        meson = work / "meson"
        tools = [qemu_build.MESON, qemu_build.PYCOTAP]
        unpack(self.source.download(tools, self.progress, dependencies=False), meson, self.progress)
        # Outside the scratch folder, so that a failed build leaves it.
        log = Cache.default().root / "logs" / f"qemu-{self.recipe.target}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_bytes(b"")
        job = qemu_build.Build(self.recipe, self.version, work, log, deadline)
        with self.progress.task(f"Building QEMU {self.version} for {self.recipe.target}") as task:
            task.update(note="unpacking the source")
            job.unpack(dsc)
            job.patch()
            task.update(note="configuring")
            job.configure(meson)
            binary = job.compile(meson, lambda done, total: task.update(done=done, total=total, note="compiling"))
        (out / "bin").mkdir()
        shutil.copy(binary, out / "bin" / binary.name)
        log.unlink()


def _host_release() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return " ".join([platform.machine(), release.get("ID", ""), release.get("VERSION_ID", ""), *platform.libc_ver()])


def _candidates(arch: ArchSpec, progress: Progress, reasons: list[str]) -> Iterator[QemuBinary]:
    host = shutil.which(f"qemu-system-{arch.qemu_target}")
    if host is not None:
        try:
            yield QemuBinary((host,), None, f"the host's {host}", version_of((host,)))
        except InfraError as error:
            reasons.append(f"the host's {host}: {error.message}")
    before = built_qemu(arch, progress, only_cached=True)
    if before is not None:
        yield before
    yield debian_qemu(arch, progress)
    now = None if before is not None else built_qemu(arch, progress)
    if now is not None:
        yield now


def _take_over(root: Path, program: str, out: Path) -> None:
    """Keep of the unpacked packages what the program needs: itself, its libraries in one folder, its data."""
    triplet = f"{platform.machine()}-linux-gnu"
    binary = root / "usr" / "bin" / program
    if not binary.is_file():
        raise ArtefactError(f"the packages have no {program}")
    closure = find_closure(root, [binary], triplet)
    libraries = dict(closure.libraries)
    for name in _LOADED_BY_NAME:
        extra = inside(root, f"usr/lib/{triplet}/{name}")
        if extra.is_file():
            libraries[name] = extra
    for folder in ("bin", "lib", "share/qemu"):
        (out / folder).mkdir(parents=True)
    shutil.copy(binary, out / "bin" / program)
    shutil.copy(closure.loader, out / "lib" / "ld.so")
    for name, path in libraries.items():
        shutil.copy(path, out / "lib" / name)
    data = root / "usr" / "share" / "qemu"
    for name in sorted(os.listdir(data)):
        path = inside(root, f"usr/share/qemu/{name}")
        if path.is_file():
            shutil.copy(path, out / "share" / "qemu" / name)
    shutil.copytree(data / "keymaps", out / "share" / "qemu" / "keymaps")
