# SPDX-License-Identifier: GPL-2.0-or-later
"""EDK2 flash images from Debian."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts.apt import unpack
from harness.artifacts.cache import Cache
from harness.artifacts.store import apt, host_arch, versions
from harness.config.parts import Firmware
from harness.errors import ArtefactError
from harness.progress import Progress


def firmware(arch: ArchSpec, progress: Progress) -> Firmware:
    """Code and variable store for ``arch``; raises ArtefactError if they cannot be had or do not fit a flash bank."""
    source = apt(host_arch())
    wanted = [package for package in source.closure([arch.firmware_package], progress)]
    wanted = [package for package in wanted if package.name == arch.firmware_package]

    def build(target: Path) -> None:
        source.download([arch.firmware_package], progress, dependencies=False)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            unpack(wanted, Path(scratch), progress)
            for name, path in (("code.fd", arch.firmware_code), ("vars.fd", arch.firmware_vars)):
                try:
                    shutil.copyfile(Path(scratch) / path, target / name)
                except FileNotFoundError:
                    raise ArtefactError(f"{arch.firmware_package} has no {path}") from None
                if (target / name).stat().st_size % (1 << 20):
                    raise ArtefactError(f"{path} is not made of whole megabytes: QEMU cannot map it as flash")

    place = Cache.default().get("firmware", arch.name, versions(wanted), build, progress)
    return Firmware(place / "code.fd", place / "vars.fd")
