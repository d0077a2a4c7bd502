# SPDX-License-Identifier: GPL-2.0-or-later
"""Private folders for the time of a run, which even a run that was killed does not leave behind for long."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "memhp-scratch-"
_LOCK = ".in-use"
_NEW_LOCK = ".new"


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """A new folder that nobody else can look into (mode 0700), removed when the block is left.

    Its maker holds a lock in it, which dies with the process. Folders of ours whose lock nobody holds were left by
    runs that were killed: they are removed on the way.
    """
    root = Path(tempfile.gettempdir())
    sweep(root)
    # A name that is known before there is anything of it: a signal may come between any two instructions.
    path = root / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
        with (path / _NEW_LOCK).open("w") as lock:
            # It is held before anybody can find it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            (path / _NEW_LOCK).rename(path / _LOCK)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove the folders below ``root`` that nobody uses any more; what cannot be removed stays."""
    for path in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid() and _is_free(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_free(path: Path) -> bool:
    """False as well for one that is just being made: it has no lock yet."""
    try:
        # O_NOFOLLOW: in a folder that all may write to, a name proves nothing.
        fd = os.open(path / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return {entry.name for entry in path.iterdir()} <= {_NEW_LOCK} and _is_old(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _is_old(path: Path) -> bool:
    """Older than the moment between the making of a folder and that of its lock; the clock may have been set."""
    return abs(time.time() - path.stat().st_mtime) > 60.0
