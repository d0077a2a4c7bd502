# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a guest, as provided by the artifacts room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """A runnable QEMU: ``argv`` is the start of its command line (including its own loader, if it needs one).

    ``data_dir`` is passed with -L if set; ``origin`` describes its source.
    """

    argv: tuple[str, ...]
    data_dir: Path | None
    origin: str
    version: str


@dataclass(frozen=True, slots=True)
class Firmware:
    """EDK2 flash images: code, and the template of the variable store (never written to)."""

    code: Path
    vars: Path


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A bootable Image; ``config`` maps options without CONFIG_, None if unknown; ``modules`` is a cpio of modules.

    ``absent`` are options that are modules in ``config``, but whose files the guest lacks. ``packed`` is the file that
    ``image`` was unpacked from, if it was.
    """

    image: Path
    origin: str
    release: str | None
    config: Mapping[str, str] | None
    modules: Path | None
    absent: frozenset[str] = frozenset()
    packed: Path | None = None

    @property
    def usable(self) -> Mapping[str, str] | None:
        """``config`` without ``absent``: the options available to a guest."""
        if self.config is None:
            return None
        return {name: value for name, value in self.config.items() if name not in self.absent}


@dataclass(frozen=True, slots=True)
class GuestRoot:
    """The cached userland, a cpio archive without /init and without keys."""

    initrd: Path
