# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache of artefacts by content of their inputs: built once, whole or not at all, read-only, verified on use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ArtefactError
from harness.progress import Progress

_MANIFEST = "manifest.json"
_CHUNK = 1 << 20

#: fills an empty directory with the artefact's files
Builder = Callable[[Path], None]


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """MEMHP_CACHE, else memhp below XDG_CACHE_HOME, else below ~/.cache."""
    if environ.get("MEMHP_CACHE"):
        return Path(environ["MEMHP_CACHE"]).absolute()
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "memhp"


def content_key(kind: str, inputs: Mapping[str, str]) -> str:
    """Hex digest of everything that goes into an artefact; independent of the order of ``inputs``."""
    text = json.dumps([kind, sorted(inputs.items())], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Cache:
    """Artefacts below ``root``, each a directory ``kind/name-KEY`` with a manifest of its files."""

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The user's cache."""
        return cls(cache_root())

    def place(self, kind: str, name: str, inputs: Mapping[str, str]) -> Path:
        """Where the artefact is, or would be."""
        return self.root / kind / f"{name}-{content_key(kind, inputs)[:16]}"

    def find(self, kind: str, name: str, inputs: Mapping[str, str]) -> Path | None:
        """The artefact's directory if it is there and whole."""
        place = self.place(kind, name, inputs)
        return place if damage(place) is None else None

    def get(self, kind: str, name: str, inputs: Mapping[str, str], builder: Builder, progress: Progress) -> Path:
        """The artefact's directory, built now if it is not there; a damaged one is built again.

        Concurrent callers build once: the others wait. Raises ArtefactError if there is no room or no permission, and
        whatever ``builder`` raises; nothing half-made stays behind.
        """
        place = self.place(kind, name, inputs)
        if damage(place) is None:
            return place
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(place, progress):
                if damage(place) is not None:
                    self._build(place, builder)
        except OSError as error:
            raise _explain(error, place) from error
        return place

    @contextlib.contextmanager
    def _locked(self, place: Path, progress: Progress) -> Iterator[None]:
        with (place.parent / f".{place.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with progress.task(f"Waiting for another run that makes {place.name}"):
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _build(self, place: Path, builder: Builder) -> None:
        for stale in place.parent.glob(f".{place.name}.new-*"):
            remove_tree(stale)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}.new-", dir=place.parent))
        try:
            builder(work)
            write_manifest(work)
            _make_read_only(work)
            if place.exists():
                remove_tree(place)
            work.rename(place)
        except BaseException:
            remove_tree(work)
            raise


def _explain(error: OSError, place: Path) -> ArtefactError:
    hints = {
        errno.ENOSPC: f"free some room below {place.parent}, or set MEMHP_CACHE to a larger disk",
        errno.EACCES: "set MEMHP_CACHE to a directory that you may write to",
        errno.EROFS: "set MEMHP_CACHE to a directory that you may write to",
    }
    return ArtefactError(f"cannot write {place}: {error.strerror}", hint=hints.get(error.errno or 0))


def remove_tree(path: Path) -> None:
    """Remove a tree whose directories may be read-only."""
    for directory, _, _ in os.walk(path):
        os.chmod(directory, stat.S_IRWXU)
    shutil.rmtree(path, ignore_errors=True)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(root: Path) -> None:
    """Describe every file below ``root``."""
    files = {}
    for path in _files(root):
        status = path.stat()
        files[str(path.relative_to(root))] = [status.st_size, status.st_mtime_ns, file_digest(path)]
    with (root / _MANIFEST).open("w") as manifest:
        json.dump(files, manifest, indent=0, sort_keys=True)
        manifest.flush()
        os.fsync(manifest.fileno())


def damage(root: Path, *, thorough: bool = False) -> str | None:
    """Say what is wrong with an artefact, None if it is whole.

    Sizes and times are compared; a file's content only where they differ from the manifest, or with ``thorough``.
    """
    try:
        files: dict[str, Any] = json.loads((root / _MANIFEST).read_text())
    except FileNotFoundError:
        return "not there"
    except (ValueError, OSError) as error:
        return f"its manifest cannot be read: {error}"
    for name, (size, modified, digest) in files.items():
        try:
            status = (root / name).stat()
        except OSError:
            return f"{name} is gone"
        if status.st_size != size:
            return f"{name} has {status.st_size} bytes, not {size}"
        if (thorough or status.st_mtime_ns != modified) and file_digest(root / name) != digest:
            return f"{name} has been changed"
    return None


def _make_read_only(root: Path) -> None:
    for path in _files(root):
        path.chmod(path.stat().st_mode & 0o555)
