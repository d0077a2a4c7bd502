# SPDX-License-Identifier: GPL-2.0-or-later
"""The threads of QEMU, which must be those of the process that memhp started.

That process dies with memhp, even if memhp is killed (prctl(2), PR_SET_PDEATHSIG). A wrapper that starts QEMU as its
child would leave it behind, and hides its memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import QemuError
from harness.qemu.qmp import QmpSession


def require_own(threads: Iterable[int], pid: int, program: str) -> None:
    """Raise QemuError unless ``threads``, as reported by QEMU, are threads of the process ``pid``."""
    if all((Path("/proc") / str(pid) / "task" / str(thread)).exists() for thread in threads):
        return
    raise QemuError(
        f"{program} runs QEMU as another process, which would outlive a memhp that is killed",
        hint="have it start QEMU with exec, in the same PID namespace",
    )


def cpu_threads(qmp: QmpSession, pid: int, program: str, deadline: Deadline) -> tuple[int, ...]:
    """The ids of the vCPUs' threads. Raises QemuError as ``require_own`` does, DeadlineExpired."""
    threads = tuple(int(cpu["thread-id"]) for cpu in qmp.execute("query-cpus-fast", deadline=deadline))
    require_own(threads, pid, program)
    return threads
