# SPDX-License-Identifier: GPL-2.0-or-later
"""What building QEMU and building a kernel have in common: host packages, environment, steps with a log."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.deadline import Deadline
from harness.errors import ArtefactError

#: the command that applies a diff that fits exactly
PATCH = ("patch", "-p1", "--fuzz=0", "--forward", "--batch", "--no-backup-if-mismatch")


@dataclass(frozen=True, slots=True)
class HostNeed:
    """A host requirement: a program, a pkg-config module or a header, and its Debian package."""

    package: str
    program: str | None = None
    module: str | None = None
    header: str | None = None

    @property
    def name(self) -> str:
        return self.program or self.module or f"<{self.header}>"

    def is_met(self, deadline: Deadline) -> bool:
        if self.program is not None:
            return shutil.which(self.program) is not None
        if self.module is not None:
            command = ["pkg-config", "--exists", self.module]
        else:
            command = ["cc", "-fsyntax-only", "-include", str(self.header), "-x", "c", os.devnull]
        return (
            shutil.which(command[0]) is not None and proc.run(command, deadline=deadline, check=False).returncode == 0
        )


def host_needs(
    programs: Mapping[str, str], modules: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> tuple[HostNeed, ...]:
    """Needs by their packages, in the order of the checks: those for libraries need the programs."""
    return (
        *(HostNeed(package, program=name) for package, name in programs.items()),
        *(HostNeed(package, module=name) for package, name in (modules or {}).items()),
        *(HostNeed(package, header=name) for package, name in (headers or {}).items()),
    )


def missing_packages(deadline: Deadline, needs: Sequence[HostNeed]) -> tuple[HostNeed, ...]:
    """Those of ``needs`` that the host lacks."""
    return tuple(need for need in needs if not need.is_met(deadline))


def require_packages(what: str, needs: Sequence[HostNeed], deadline: Deadline) -> None:
    """Raise ArtefactError, naming what to install, if the host lacks anything for building ``what``."""
    lacking = missing_packages(deadline, needs)
    if lacking:
        raise ArtefactError(
            f"cannot build {what}: this machine lacks {', '.join(need.name for need in lacking)}",
            hint=f"sudo apt-get install {' '.join(sorted({need.package for need in lacking}))}",
        )


def clean_environment(host: Mapping[str, str], **own: str) -> dict[str, str]:
    """``own``, and of ``host`` only the paths of programs and temporary files.

    CFLAGS and the like would change the result without changing the cache key.
    """
    return {name: host[name] for name in ("PATH", "HOME", "TMPDIR") if name in host} | own


def run_step(
    what: str,
    command: Sequence[str],
    log: Path,
    deadline: Deadline,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Run ``command``, whose output goes to ``log``; raises ArtefactError with its last lines if it fails."""
    done = proc.run(command, deadline=deadline, cwd=cwd, env=env, log=log, check=False, on_line=on_line)
    if done.returncode != 0:
        said = proc.tail(done.stdout + b"\n" + done.stderr, lines=30)
        raise ArtefactError(
            f"building {what} {proc.describe_status(done.returncode)}:\n{said}", hint=f"the whole log is {log}"
        )
