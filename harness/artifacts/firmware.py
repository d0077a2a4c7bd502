# SPDX-License-Identifier: GPL-2.0-or-later
"""EDK2 flash images, and the firmware that runs before them, from Debian's packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts.apt import apt, fingerprints, host_arch, unpack
from harness.artifacts.cache import Cache, scratch
from harness.config.guest_parts import Firmware
from harness.errors import ArtefactError
from harness.progress import Progress
from harness.units import format_size

#: part of the cache key: increase it when this module turns the same package into another result
RECIPE = "1"


def firmware(arch: ArchSpec, progress: Progress) -> Firmware:
    """Code and variable store for ``arch``; raises ArtefactError if they are unavailable or do not fit the flash."""
    source = apt(host_arch())
    packages = source.closure([arch.firmware_package], progress, dependencies=False)

    def build(out: Path) -> None:
        work = scratch(out)
        unpack(source.download([arch.firmware_package], progress, dependencies=False), work, progress)
        for inner, name in ((arch.firmware_code, "code.fd"), (arch.firmware_vars, "vars.fd")):
            take_flash_image(arch, work / inner, out / name)

    inputs = {"recipe": RECIPE, **fingerprints(packages)}
    path = Cache().get("firmware", arch.name, inputs, build, progress, what=f"firmware for {arch.name}")
    return Firmware(code=path / "code.fd", vars=path / "vars.fd")


def bios(arch: ArchSpec, progress: Progress) -> Path | None:
    """The argument of ``-bios``: OpenSBI on riscv64, None where nothing runs before kernel or flash.

    QEMU's own ``-bios default`` looks in a folder that a QEMU built by memhp or by the user may not have. Raises
    ArtefactError if it is unavailable.
    """
    if arch.bios is None:
        return None
    package, inner = arch.bios
    source = apt(host_arch())
    packages = source.closure([package], progress, dependencies=False)

    def build(out: Path) -> None:
        work = scratch(out)
        unpack(source.download([package], progress, dependencies=False), work, progress)
        if not (work / inner).is_file():
            raise ArtefactError(f"{package} has no {inner}")
        shutil.copyfile(work / inner, out / Path(inner).name)

    inputs = {"recipe": RECIPE, "file": inner, **fingerprints(packages)}
    path = Cache().get("bios", arch.name, inputs, build, progress, what=f"{package} for {arch.name}")
    return path / Path(inner).name


def take_flash_image(arch: ArchSpec, source: Path, target: Path) -> None:
    """Copy a flash image; raises ArtefactError if it is missing or does not have the size that QEMU requires."""
    if not source.is_file():
        raise ArtefactError(f"{arch.firmware_package} has no {source.name}")
    size, wanted = source.stat().st_size, arch.flash_size
    if size != wanted:
        raise ArtefactError(
            f"{source.name} of {arch.firmware_package} has {format_size(size)}, not {format_size(wanted)}"
        )
    shutil.copyfile(source, target)
