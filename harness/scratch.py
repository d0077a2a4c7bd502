# SPDX-License-Identifier: GPL-2.0-or-later
"""Private folders: for the duration of a run (later runs remove those of a killed run), or to stay."""

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

from harness.errors import InfraError

_PREFIX = "memhp-scratch-"
_LOCK = ".in-use"
_NEW_LOCK = ".new"


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """A new private folder (mode 0700), removed when the block is left.

    Its creator holds a lock in it, which ends with the process. Folders of the same user whose lock is free were left
    by killed runs: they are removed here.
    """
    root = Path(tempfile.gettempdir())
    sweep(root)
    # The name is known before the folder exists: a signal may come between any two instructions.
    path = root / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
        with (path / _NEW_LOCK).open("w") as lock:
            # It is locked before anyone can find it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            (path / _NEW_LOCK).rename(path / _LOCK)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_private(path: Path) -> None:
    """Create the folder ``path``, or take the access of others to it away. Raises InfraError if it is somebody else's.

    Raises OSError if it cannot be created.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = os.fstat(fd).st_uid
        if owner != os.geteuid():
            hint = "remove it, or have MEMHP_CACHE and XDG_STATE_HOME name folders of your own"
            raise InfraError(f"{path} belongs to another user (uid {owner})", hint=hint)
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def sweep(root: Path) -> None:
    """Remove the unused folders below ``root``; those that cannot be removed stay."""
    for path in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid() and _is_free(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_free(path: Path) -> bool:
    """False also for a folder that is just being created: it has no lock yet."""
    # The clock may have been set.
    age = abs(time.time() - path.stat().st_mtime)
    try:
        # O_NOFOLLOW: in a world-writable folder, a name proves nothing.
        fd = os.open(path / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return {entry.name for entry in path.iterdir()} <= {_NEW_LOCK} and age > 60.0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
