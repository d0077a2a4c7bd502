# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a guest: restored if possible, booted otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

from harness.config.guest import GuestSpec
from harness.errors import InfraError, UnsupportedError
from harness.progress import Progress, SilentProgress
from harness.scenarios.boot import BootedGuest, Parts, boot_guest
from harness.scenarios.memorybudget import MemoryBudget, cost
from harness.scenarios.run_options import Start
from harness.scenarios.template import restore_guest, template

#: guests that could not be saved, and why: not tried again by this process
_hopeless: dict[tuple[GuestSpec, str], str] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def start_guest(
    spec: GuestSpec,
    parts: Parts,
    workdir: Path,
    timeout: float,
    start: Start = "auto",
    progress: Progress | None = None,
    *,
    counted: bool = False,
) -> Iterator[BootedGuest]:
    """A guest that answers on SSH, ended when the block is left; ``restored`` and ``why_booted`` say how it started.

    With ``auto``, a guest that cannot be restored boots instead. Other memhp processes leave this guest its memory;
    with ``counted``, the caller's ``MemoryBudget`` sees to it. ``workdir`` and errors are as in ``boot_guest``; with
    ``restore`` also those of ``template``.
    """
    with contextlib.ExitStack() as stack:
        if not counted:
            stack.enter_context(MemoryBudget.of_host()).enter(cost(spec))
        guest, why = None, "as requested"
        if start != "cold":
            try:
                saved = _saved(spec, parts, timeout, progress or SilentProgress())
                guest = stack.enter_context(restore_guest(spec, parts, saved, workdir, timeout))
            except (InfraError, UnsupportedError) as error:
                if start == "restore":
                    raise
                why = error.message
                _give_up(spec, parts, why)
        if guest is None:
            guest = dataclasses.replace(stack.enter_context(boot_guest(spec, parts, workdir, timeout)), why_booted=why)
        yield guest


def _saved(spec: GuestSpec, parts: Parts, timeout: float, progress: Progress) -> Path:
    with _lock:
        why = _hopeless.get(_key(spec, parts))
    if why is not None:
        raise UnsupportedError("restore", why)
    return template(spec, parts, timeout, progress)


def _give_up(spec: GuestSpec, parts: Parts, why: str) -> None:
    with _lock:
        _hopeless.setdefault(_key(spec, parts), why)


def _key(spec: GuestSpec, parts: Parts) -> tuple[GuestSpec, str]:
    return spec, repr(parts.qemu.argv)
