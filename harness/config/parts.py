# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts a guest is made of, as the artefacts room hands them over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """A QEMU that can be run: ``argv`` is the command's beginning (its own loader included, where it needs one).

    ``data_dir`` is given with -L where set; ``origin`` says in words where it came from.
    """

    argv: tuple[str, ...]
    data_dir: Path | None
    origin: str
    version: str


@dataclass(frozen=True, slots=True)
class Firmware:
    """EDK2 flash images: code, and the variable store's template (never written to)."""

    code: Path
    vars: Path


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A bootable Image; ``config`` maps options without CONFIG_, None if unknown; ``modules`` is a cpio of modules.

    ``absent`` are options that ``config`` has as modules, and the guest has no file of.
    """

    image: Path
    origin: str
    release: str | None
    config: Mapping[str, str] | None
    modules: Path | None
    absent: frozenset[str] = frozenset()

    @property
    def usable(self) -> Mapping[str, str] | None:
        """``config`` without ``absent``: what a guest can make use of."""
        if self.config is None:
            return None
        return {name: value for name, value in self.config.items() if name not in self.absent}


@dataclass(frozen=True, slots=True)
class GuestRoot:
    """The cached userland, a cpio archive without /init and without keys."""

    initrd: Path
