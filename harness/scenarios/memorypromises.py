# SPDX-License-Identifier: GPL-2.0-or-later
"""What each memhp process of this host has promised to its guests: a file in the cache, locked while the process lives.

The lock (flock(2)) ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from harness.artifacts.cache import cache_root
from harness.errors import InfraError
from harness.scratch import make_private

#: held while promises are read or made
_LOCK = "lock"


def promises_dir() -> Path:
    """The folder of the promises."""
    return cache_root() / "memory"


def _host() -> str:
    """The beginning of the names of this host's files: several hosts may share a cache."""
    return f"promise-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}-"


def _prefix(pid: int) -> str:
    # Containers may share a cache as well, and have equal process ids.
    return f"{_host()}{os.stat('/proc/self/ns/pid').st_ino}-{pid}-"


class Promises:
    """The promises in ``folder``. ``covered``: our parent has promised the memory of our guests (it runs a matrix)."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, InfraError."""
        make_private(folder)
        self._folder = folder
        self._path = folder / f"{_prefix(os.getpid())}{secrets.token_hex(4)}"
        with self._locked():
            parents = folder.glob(f"{_prefix(os.getppid())}*")
            self.covered = any(_promised(path) is not None for path in parents)
            self._file = self._path.open("x")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    @classmethod
    def of_host(cls) -> Promises | None:
        """Those of this host; None if the cache cannot be written."""
        try:
            return cls(promises_dir())
        except (OSError, InfraError):
            return None

    def close(self) -> None:
        """Take back our promise; may be called again."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    @contextlib.contextmanager
    def others(self) -> Iterator[int]:
        """The bytes that others have promised; they promise nothing more until the block is left."""
        with self._locked():
            found = {path: _promised(path) for path in self._folder.glob("promise-*") if path != self._path}
            yield sum(size or 0 for path, size in found.items() if path.name.startswith(_host()))

    def promise(self, size: int) -> None:
        """From now on we promise ``size`` bytes; call it in a block of ``others``, unless it is less than before."""
        # A full disk must not end a run.
        with contextlib.suppress(OSError):
            os.pwrite(self._file.fileno(), f"{size:<20}\n".encode(), 0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            # Who removes the cache during a run removes the promises with it; the run goes on.
            with contextlib.suppress(OSError):
                fcntl.flock(stack.enter_context((self._folder / _LOCK).open("w")), fcntl.LOCK_EX)
            yield


def _promised(path: Path) -> int | None:
    """The promise of a process; None, and its file is removed, if it has ended."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(40) or "0")
            path.unlink()
    except (OSError, ValueError):
        pass
    return None
