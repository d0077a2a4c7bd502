# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts that are built once, keyed by the content of their inputs, and verified before every use.

::

    ROOT/KIND/NAME-KEY/            one finished entry: its files, read-only, and manifest.json
    ROOT/KIND/.tmp-NAME-KEY-XXXX/  one being built: its ``out`` becomes the entry, the rest is discarded
    ROOT/locks/                    one lock file per entry, held by its builder

A single rename creates an entry, so readers need no lock. A builder that is killed leaves a ``.tmp-`` folder whose lock
is free: the next build removes it.
"""

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
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.bounded import MAX_SMALL, load_json, read_file
from harness.config.places import user_dir
from harness.deadline import Deadline
from harness.errors import ArtefactError, UsageError
from harness.progress import Progress

#: increase it when the format of entries or manifests changes
FORMAT = 1

MANIFEST = "manifest.json"
_LOCK_SECONDS = 4 * 3600.0
_LOCK_EVERY = 0.2

_HINTS = {
    errno.ENOSPC: "free some disk space, or set MEMHP_CACHE to a folder on a larger disk",
    errno.EDQUOT: "free some of your quota, or set MEMHP_CACHE to a folder elsewhere",
    errno.EACCES: "set MEMHP_CACHE to a writable folder",
    errno.EPERM: "set MEMHP_CACHE to a writable folder",
    errno.EROFS: "set MEMHP_CACHE to a folder on a writable file system",
}

#: hashes of files by path, size, time and inode
_hashes: dict[tuple[str, int, int, int], str] = {}
_hashes_lock = threading.Lock()

#: fills an empty folder with the entry's files; ``scratch`` gives it another one to work in
Builder = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One entry of the cache on disk; ``broken`` says what is wrong with it, None if nothing."""

    path: Path
    kind: str
    size: int
    broken: str | None


def cache_root() -> Path:
    """``$MEMHP_CACHE``, or ``memhp`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("MEMHP_CACHE")
    if own:
        return Path(own).absolute()
    return user_dir("XDG_CACHE_HOME", ".cache")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """The cache in one folder, by default the user's (``cache_root``); it need not exist yet."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_root()

    def find(self, kind: str, name: str, inputs: Mapping[str, str]) -> Path | None:
        """The verified entry made from ``inputs``, or None. Never writes."""
        path = self.place(kind, name, inputs)
        return path if verify(path) is None else None

    def get(
        self, kind: str, name: str, inputs: Mapping[str, str], builder: Builder, progress: Progress, *, what: str = ""
    ) -> Path:
        """The entry made from ``inputs``: all that the result depends on, as text by label. Built if missing or bad.

        Concurrent callers build once. Raises ArtefactError if it cannot be written, and whatever ``builder`` raises.
        """
        path = self.place(kind, name, inputs)
        if verify(path) is None:
            return path
        what = what or f"{kind} {name}"
        with _explained(what), hold_lock(self.root / "locks" / f"{kind}-{path.name}", what, progress):
            damage = verify(path)
            if damage is None:
                return path
            if path.exists():
                progress.say(f"{what}: the cached copy is damaged ({damage}); building it again")
            self._sweep(kind, path)
            self._build(path, builder, what, progress)
        return path

    def use(self, path: Path) -> None:
        """Mark the entry at ``path`` as recently used: ``prune`` removes others first."""
        with contextlib.suppress(OSError):
            os.utime(path)

    def prune(self, kind: str, keep: int) -> None:
        """Remove all entries of ``kind`` but the ``keep`` last used; concurrent readers of a removed one lose it."""
        found = []
        for path in (self.root / kind).glob("*/"):
            with contextlib.suppress(OSError):
                if not path.name.startswith(".tmp-"):
                    found.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(found)[: max(0, len(found) - keep)]:
            with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-old-") as temp:
                path.chmod(0o755)
                path.rename(Path(temp) / "entry")
                remove_tree(Path(temp) / "entry")

    def entries(self, *, full: bool) -> Iterator[CacheEntry]:
        """Every entry, verified: by size and time, or with ``full`` by hashing every byte."""
        for path in sorted(self.root.glob("*/*/")):
            if (path / MANIFEST).exists():
                size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file() and not item.is_symlink())
                yield CacheEntry(path, path.parent.name, size, verify(path, full=full))

    def place(self, kind: str, name: str, inputs: Mapping[str, str]) -> Path:
        """Where the entry made from ``inputs`` is, or would be."""
        text = json.dumps([FORMAT, kind, name, sorted(inputs.items())])
        return self.root / kind / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _sweep(self, kind: str, path: Path) -> None:
        """Remove the leftovers of dead builders: their locks are free."""
        for temp in path.parent.glob(".tmp-*"):
            owner = temp.name.removeprefix(".tmp-").rpartition("-")[0]
            if owner == path.name:
                remove_tree(temp)
                continue
            with contextlib.suppress(OSError), (self.root / "locks" / f"{kind}-{owner}").open("r") as file:
                if _try_lock(file.fileno()):
                    remove_tree(temp)

    def _build(self, path: Path, builder: Builder, what: str, progress: Progress) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".tmp-{path.name}-"))
        try:
            out = temp / "out"
            out.mkdir()
            builder(out)
            # Before the sync: removed files need not reach the disk.
            with progress.task(f"Putting {what} into the cache"):
                for rest in temp.iterdir():
                    if rest != out:
                        remove_tree(rest)
                _seal(out)
            if path.exists():
                # Moving a folder needs write permission in it: its ``..`` changes.
                path.chmod(0o755)
                path.rename(temp / "broken")
            out.rename(path)
            path.chmod(0o555)
            _sync(path.parent)
        finally:
            remove_tree(temp)


def scratch(out: Path) -> Path:
    """A folder beside a builder's ``out``: on the same disk, and removed after the build."""
    return Path(tempfile.mkdtemp(dir=out.parent, prefix="work-"))


@contextlib.contextmanager
def hold_lock(path: Path, what: str, progress: Progress) -> Iterator[None]:
    """Hold the lock on the file ``path``, which ends with its holder; reports progress while it waits.

    ``what`` names the locked resource. Raises DeadlineExpired after hours, OSError if the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not _try_lock(file.fileno()):
            with progress.task(f"Waiting for another memhp: {what}"):
                deadline, pause = Deadline(_LOCK_SECONDS), threading.Event()
                while not _try_lock(file.fileno()):
                    deadline.check(f"another memhp that holds {what}")
                    pause.wait(_LOCK_EVERY)
        yield


def verify(path: Path, *, full: bool = False) -> str | None:
    """What is wrong with an entry, None if nothing; without ``full``, files of unchanged size and time are intact."""
    try:
        files = load_json(read_file(path / MANIFEST, MAX_SMALL))["files"]
        for name, said in files.items():
            problem = _verify_file(path / name, said, full)
            if problem is not None:
                return f"{name}: {problem}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is unreadable: {error}"
    return None


def _verify_file(path: Path, said: Mapping[str, str | int], full: bool) -> str | None:
    if "link" in said:
        return None if path.is_symlink() and os.readlink(path) == said["link"] else "not the original link"
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if status.st_size != said["size"]:
        return f"{status.st_size} bytes instead of {said['size']}"
    if (full or status.st_mtime_ns != said["mtime_ns"]) and hash_file(path) != said["sha256"]:
        return "changed since it was made"
    return None


def _seal(out: Path) -> None:
    """Write the manifest, make every file read-only and sync it to disk."""
    files: dict[str, dict[str, str | int]] = {}
    folders = [out]
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_symlink():
            files[name] = {"link": os.readlink(path)}
        elif path.is_dir():
            folders.append(path)
        else:
            path.chmod(0o555 if path.stat().st_mode & 0o111 else 0o444)
            _sync(path)
            status = path.stat()
            files[name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": hash_file(path)}
    manifest = out / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True) + "\n")
    manifest.chmod(0o444)
    _sync(manifest)
    for folder in reversed(folders):
        _sync(folder)
        # The top folder itself must stay writable until it has been renamed.
        if folder != out:
            folder.chmod(0o555)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a tree, read-only folders included, as far as possible."""
    with contextlib.suppress(OSError):
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        hint = _HINTS.get(error.errno or 0)
        raise ArtefactError(f"cannot create {what}: {error.strerror or error}{where}", hint=hint) from error


def content_of(path: Path) -> str:
    """SHA-256 over the content of a file, or over names and contents of all files in a folder, in hexadecimal.

    It depends on neither location nor time. For files in cache entries, which are verified on lookup, the manifest's
    hash is used if only this user can write to the cache; any other file is read once per process unless its size or
    time changes. Raises UsageError if it cannot be read.
    """
    try:
        if not path.is_dir():
            return _file_hash(path)
        names = sorted(item for item in path.rglob("*") if item.is_file())
        text = json.dumps([[str(item.relative_to(path)), _file_hash(item)] for item in names])
        return hashlib.sha256(text.encode()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check the path") from error


def _file_hash(path: Path) -> str:
    status = path.stat()
    key = (os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)
    with _hashes_lock:
        known = _hashes.get(key)
    if known is None:
        known = _from_manifest(path) or hash_file(path)
        with _hashes_lock:
            _hashes[key] = known
    return known


def _from_manifest(path: Path) -> str | None:
    """The hash in the manifest of the cache entry that holds ``path``, if only this user can change the cache."""
    status, root = path.lstat(), Path(os.path.realpath(cache_root()))
    place = Path(os.path.realpath(path.parent)) / path.name
    if not place.is_relative_to(root):
        return None
    owner = root.stat()
    if owner.st_uid != os.geteuid() or owner.st_mode & 0o022:
        return None
    # An entry is two folders below the root (ROOT/KIND/ENTRY).
    for folder in [folder for folder in place.parents if folder.is_relative_to(root)][:-2]:
        try:
            said = load_json(read_file(folder / MANIFEST, MAX_SMALL))["files"][str(place.relative_to(folder))]
            if (said["size"], said["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
                return str(said["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
