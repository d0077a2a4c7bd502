# SPDX-License-Identifier: GPL-2.0-or-later
"""The content of a file or a folder as one hash, independent of location and time."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

from harness.artifacts.cache import MANIFEST, cache_root, hash_file
from harness.errors import UsageError

_known: dict[tuple[str, int, int, int], str] = {}
_lock = threading.Lock()


def content_of(path: Path) -> str:
    """SHA-256 over the content of a file, or over names and contents of all files in a folder, in hexadecimal.

    For files in cache entries, which are verified on lookup, the manifest's hash is used if only this user can write
    to the cache; any other file is read once per process unless its size or time changes. Raises UsageError if it
    cannot be read.
    """
    try:
        if not path.is_dir():
            return _file(path)
        names = sorted(item for item in path.rglob("*") if item.is_file())
        text = json.dumps([[str(item.relative_to(path)), _file(item)] for item in names])
        return hashlib.sha256(text.encode()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check the path") from error


def _file(path: Path) -> str:
    seen = path.stat()
    key = (os.path.realpath(path), seen.st_size, seen.st_mtime_ns, seen.st_ino)
    with _lock:
        known = _known.get(key)
    if known is None:
        known = _from_manifest(path) or hash_file(path)
        with _lock:
            _known[key] = known
    return known


def _from_manifest(path: Path) -> str | None:
    """The hash in the manifest of the cache entry that contains ``path``, None without a matching one."""
    seen, root = path.lstat(), Path(os.path.realpath(cache_root()))
    place = Path(os.path.realpath(path.parent)) / path.name
    if not place.is_relative_to(root) or not _is_private(root):
        return None
    for folder in list(place.parents)[:3]:
        try:
            said = json.loads((folder / MANIFEST).read_text())["files"][str(place.relative_to(folder))]
            if (said["size"], said["mtime_ns"]) == (seen.st_size, seen.st_mtime_ns):
                return str(said["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _is_private(folder: Path) -> bool:
    """True if only this user can write to ``folder``."""
    seen = folder.stat()
    return seen.st_uid == os.geteuid() and not seen.st_mode & 0o022
