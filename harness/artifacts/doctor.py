# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that this machine has everything memhp needs, and names the commands that fix what is missing.

Nothing is fetched, built or written here.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from harness import proc
from harness.arch import ARCHES, ArchSpec
from harness.artifacts import kernel_build, qemu_build
from harness.artifacts.apt import keyring
from harness.artifacts.building import HostNeed, host_needs, missing_packages
from harness.artifacts.cache import Cache, CacheEntry
from harness.artifacts.fetch import PARTS, Able
from harness.artifacts.mirror import debian_mirror
from harness.config.guest_parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError, MemhpError
from harness.progress import Progress
from harness.units import GIB, KIB

#: bytes of disk that building QEMU or a kernel takes at most, and of memory that a guest with its devices takes
DISK_NEEDED = 4 * GIB
MEMORY_NEEDED = 2 * GIB

#: host programs for fetching
COMMON_NEEDS = host_needs(programs={"apt": "apt-get", "dpkg": "dpkg-deb", "gcc": "gcc"})

_ASK_SECONDS = 60.0
_QEMU_VERSION = re.compile(r"QEMU emulator version (\S+)")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?\s*")
_OTHER_DISK = "export MEMHP_CACHE=/a/folder/on/a/larger/disk"


@dataclass(frozen=True, slots=True)
class DoctorRow:
    """One check; ``mend`` is the command that fixes it, empty if it is ok."""

    name: str
    status: Literal["ok", "missing", "old"]
    detail: str
    mend: str


def diagnose(
    progress: Progress, *, verify: bool = False, able: Able | None = None, arches: Sequence[ArchSpec] | None = None
) -> list[DoctorRow]:
    """Look at the host, the cache, and the parts for ``arches`` (all).

    ``verify`` hashes every byte of the cache instead of comparing sizes and times. ``able`` judges the host's own QEMU;
    without it, that QEMU is only listed. Raises ArtefactError if the cache cannot be read.
    """
    chosen = tuple(ARCHES.values()) if arches is None else tuple(arches)
    cache = Cache()
    with progress.task("Checking this machine"):
        rows = [
            *host_rows(COMMON_NEEDS + kernel_build.HOST_NEEDS + qemu_build.HOST_NEEDS),
            *(row for arch in chosen for row in cross_rows(arch)),
        ]
        rows += [keyring_row(), mirror_row(), *python_rows(requirements())]
    entries = _entries(cache, verify, progress)
    for arch in chosen:
        rows += [part_row(part, arch, entries, able) for part in PARTS]
    return [*rows, *stray_rows(entries, chosen), disk_row(cache.root), memory_row(), accelerator_row()]


def host_rows(needs: Sequence[HostNeed]) -> list[DoctorRow]:
    """One row for each Debian package in ``needs``."""
    lacking = missing_packages(Deadline(_ASK_SECONDS), needs)

    def names(some: Sequence[HostNeed], package: str) -> str:
        return ", ".join(dict.fromkeys(need.name for need in some if need.package == package))

    packages = sorted({need.package for need in needs})
    return [_package_row(package, names(needs, package), names(lacking, package)) for package in packages]


def cross_rows(arch: ArchSpec) -> list[DoctorRow]:
    """The cross compiler for ``arch``, and the static C library that programs for its guests are linked with."""
    compiler = f"{arch.triplet}-gcc"
    found = library = shutil.which(compiler) is not None
    if found:
        asked = [compiler, "-print-file-name=libc.a"]
        # The compiler repeats the bare name if it does not find the file.
        library = b"/" in proc.run(asked, deadline=Deadline(_ASK_SECONDS), check=False).stdout
    name = f"libc.a for {arch.name}"
    return [
        _package_row(f"gcc-{arch.triplet.replace('_', '-')}", compiler, "" if found else compiler),
        _package_row(f"libc6-dev-{arch.name}-cross", name, "" if library else name),
    ]


def _package_row(package: str, has: str, lacks: str) -> DoctorRow:
    if lacks:
        return DoctorRow(package, "missing", f"no {lacks}", f"sudo apt-get install {package}")
    return DoctorRow(package, "ok", has, "")


def keyring_row() -> DoctorRow:
    """The keys for verifying Debian's archive."""
    try:
        return DoctorRow("Debian keyring", "ok", str(keyring()), "")
    except ArtefactError as error:
        return DoctorRow("Debian keyring", "missing", error.message, error.hint or "")


def mirror_row() -> DoctorRow:
    """The configured Debian mirror; it is not contacted."""
    try:
        uri = urlsplit(debian_mirror())
    except MemhpError as error:
        return DoctorRow("Debian mirror", "missing", error.message, "export MEMHP_MIRROR=http://HOST/debian")
    # Reports get pasted into mails: no user name, no password.
    shown = uri._replace(netloc=uri.netloc.rpartition("@")[2])
    return DoctorRow("Debian mirror", "ok", shown.geturl(), "")


def requirements() -> list[str]:
    """memhp's Python requirements as ``name>=version``: from the installed package, else from the checkout."""
    try:
        wanted = importlib.metadata.requires("memhp") or []
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[2] / "pyproject.toml"
        wanted = tomllib.loads(project.read_text())["project"]["dependencies"] if project.is_file() else []
    return sorted(text for text in wanted if ";" not in text)


def python_rows(wanted: Sequence[str]) -> Iterator[DoctorRow]:
    """One row for each requirement, ``name>=version`` or ``name``."""
    for text in wanted:
        match = _REQUIREMENT.match(text)
        if match is None:
            continue
        name, least = match[1], match[2] or ""
        mend = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(f'{name}>={least}' if least else name)}"
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield DoctorRow(f"python: {name}", "missing", "not installed", mend)
            continue
        if _numbers(have) < _numbers(least):
            yield DoctorRow(f"python: {name}", "old", f"{have}, {least} is needed", mend)
        else:
            yield DoctorRow(f"python: {name}", "ok", have, "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _entries(cache: Cache, verify: bool, progress: Progress) -> list[CacheEntry]:
    found = []
    try:
        with progress.task("Verifying every byte of the cache" if verify else "Checking the cache") as task:
            for entry in cache.entries(full=verify):
                task.update(note=entry.path.name)
                found.append(entry)
    except OSError as error:
        raise ArtefactError(
            f"cannot read the cache {cache.root}: {error.strerror or error}",
            hint="set MEMHP_CACHE to a folder that you own",
        ) from error
    return found


def _belongs(entry: CacheEntry, part: str, arch: ArchSpec) -> bool:
    if entry.kind == "kernel" and not kernel_build.is_usual(entry.path.name, arch):
        # A flavour or another version does not replace the default kernel.
        return False
    words = entry.path.name.split("-")[:-1]
    return entry.kind == part and (arch.name in words or arch.qemu_target in words)


def part_row(part: str, arch: ArchSpec, entries: Sequence[CacheEntry], able: Able | None = None) -> DoctorRow:
    """Whether the cache has ``part`` for ``arch``; the host's own QEMU counts unless ``able`` rejects it."""
    name, get = f"{arch.name} {part}", f"memhp fetch {part} -a {arch.name}"
    mine = [entry for entry in entries if _belongs(entry, part, arch)]
    broken = [entry for entry in mine if entry.broken is not None]
    if broken:
        row = _damaged(name, broken)
        return replace(row, mend=f"{row.mend} && {get}")
    if mine:
        size = sum(entry.size for entry in mine)
        return DoctorRow(name, "ok", f"{', '.join(str(entry.path) for entry in mine)} ({_amount(size)})", "")
    if part == "qemu":
        own = _host_qemu(name, arch, able, get)
        if own is not None:
            return own
    return DoctorRow(name, "missing", "not in the cache; the first run that needs it fetches it", get)


def _host_qemu(name: str, arch: ArchSpec, able: Able | None, get: str) -> DoctorRow | None:
    path = shutil.which(f"qemu-system-{arch.qemu_target}")
    if path is None:
        return None
    try:
        said = proc.run([path, "--version"], deadline=Deadline(_ASK_SECONDS)).stdout.decode(errors="replace")
        match = _QEMU_VERSION.search(said)
        if match is None:
            return DoctorRow(name, "missing", f"the host's {path} is not QEMU", get)
        binary = QemuBinary((path,), None, f"the host's {path}", match[1])
        lack = None if able is None else able(arch)(binary)
    except InfraError as error:
        return DoctorRow(name, "missing", f"the host's {path} does not run: {error.message}", get)
    if lack is not None:
        return DoctorRow(name, "old", f"the host's {path}: {lack}", get)
    unsure = "" if able is not None else "; its abilities are checked when a guest starts"
    return DoctorRow(name, "ok", f"the host's {path}, {match[1]}{unsure}", "")


def stray_rows(entries: Sequence[CacheEntry], arches: Sequence[ArchSpec]) -> Iterator[DoctorRow]:
    """A row for each damaged entry outside the parts for ``arches``."""
    for entry in entries:
        part_of = any(_belongs(entry, part, arch) for part in PARTS for arch in arches)
        if entry.broken is not None and not part_of:
            yield _damaged(f"cache: {entry.kind}", [entry])


def _damaged(name: str, broken: Sequence[CacheEntry]) -> DoctorRow:
    paths = " ".join(shlex.quote(str(entry.path)) for entry in broken)
    detail = "; ".join(f"{entry.path} is damaged: {entry.broken}" for entry in broken)
    # An entry's folders are read-only, too.
    return DoctorRow(name, "missing", detail, f"chmod -R u+w {paths} && rm -r {paths}")


def disk_row(root: Path, needed: int = DISK_NEEDED) -> DoctorRow:
    """Whether the cache at ``root`` is writable and has ``needed`` bytes free."""
    place = root
    while not place.is_dir() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return DoctorRow("cache", "missing", f"{place} is not writable", "export MEMHP_CACHE=/a/folder/of/yours")
    free = shutil.disk_usage(place).free
    detail = f"{root}, {_amount(free)} free"
    if free < needed:
        return DoctorRow("cache", "missing", f"{detail}; building takes {_amount(needed)}", _OTHER_DISK)
    return DoctorRow("cache", "ok", detail, "")


def memory_row(meminfo: Path = Path("/proc/meminfo"), needed: int = MEMORY_NEEDED) -> DoctorRow:
    """Whether the host has ``needed`` bytes of memory available for a guest."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    available = int(match[1]) * KIB if match is not None else 0
    detail = f"{_amount(available)} available"
    if available < needed:
        lacks = f"{detail}; a guest with its devices takes {_amount(needed)}"
        return DoctorRow("memory", "missing", lacks, "ps -eo rss,pid,comm --sort=-rss | head")
    return DoctorRow("memory", "ok", detail, "")


def accelerator_row() -> DoctorRow:
    """The accelerator, so that no one looks for KVM."""
    return DoctorRow("accelerator", "ok", "QEMU's TCG: guests need no /dev/kvm, but run slower than with KVM", "")


def _amount(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / KIB / KIB:.1f} MiB"
