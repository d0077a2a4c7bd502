# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources of parts besides the cache: an APT for each architecture, and the files of the project's checkout."""

from __future__ import annotations

import functools
from pathlib import Path

from harness import proc
from harness.artifacts.apt import PrivateApt
from harness.artifacts.cache import Cache
from harness.config.places import configs_dir, guest_scripts_dir
from harness.deadline import Deadline
from harness.errors import ArtefactError

_ASK_SECONDS = 30.0
_WHOLE = "install memhp from a clone of its repository: pip install -e ."


def apt(arch: str, suite: str | None = None) -> PrivateApt:
    """APT for one Debian architecture and suite (None: the default one), with its state in the cache.

    Raises ArtefactError without a mirror.
    """
    return PrivateApt(Cache.default().root / "apt", arch, suite=suite)


@functools.cache
def host_arch() -> str:
    """Debian's name of the host architecture (amd64, arm64, …)."""
    return proc.run(["dpkg", "--print-architecture"], deadline=Deadline(_ASK_SECONDS)).stdout.decode().strip()


def configs(name: str) -> Path:
    """A folder below ``configs``; raises ArtefactError if it is missing."""
    path = configs_dir() / name
    if not path.is_dir():
        raise ArtefactError(f"no directory {path}", hint=_WHOLE)
    return path


def guest_source(name: str) -> Path:
    """A source file in guest-scripts; raises ArtefactError if it is missing."""
    path = guest_scripts_dir() / name
    if not path.is_file():
        raise ArtefactError(f"no file {path}", hint=_WHOLE)
    return path
