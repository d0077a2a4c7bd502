# SPDX-License-Identifier: GPL-2.0-or-later
"""Where artefacts come from and where they are kept: one cache, one APT state per architecture, one configs folder."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from harness import proc
from harness.artifacts.apt import Package, PrivateApt, choose_mirror
from harness.artifacts.cache import Cache
from harness.deadline import Deadline
from harness.errors import UsageError


def apt(arch: str) -> PrivateApt:
    """APT for one Debian architecture, with its state in the cache; raises ArtefactError without a mirror."""
    return PrivateApt(Cache.default().root / "apt", arch, mirror=choose_mirror())


@functools.cache
def host_arch() -> str:
    """Debian's name of the machine we run on (amd64, arm64, …)."""
    return proc.run(["dpkg", "--print-architecture"], deadline=Deadline(30)).stdout.decode().strip()


def versions(packages: list[Package]) -> dict[str, str]:
    """What a set of packages adds to an artefact's key."""
    return {package.name: package.version for package in packages}


def configs(name: str) -> Path:
    """A folder of the checkout's configs; raises UsageError if it is not there."""
    root = Path(os.environ.get("MEMHP_CONFIGS") or Path(__file__).resolve().parents[2] / "configs")
    if not (root / name).is_dir():
        raise UsageError(f"{root / name} is missing", hint="memhp runs from its checkout: pip install -e . in a clone")
    return root / name
