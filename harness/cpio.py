# SPDX-License-Identifier: GPL-2.0-or-later
"""The newc archives that a kernel unpacks at boot (Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
#: PATH_MAX of the kernel, with the NUL: it silently drops longer names (init/initramfs.c, do_header)
_MAX_NAME = 4096
_MAX_SIZE = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """One file of an archive, owned by root.

    ``path`` is relative to the guest's root; ``mode`` carries the file type (``stat.S_IFREG | 0o755``); ``data`` is a
    regular file's content or a symbolic link's target; ``device`` is (major, minor) of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if "" in parts or "." in parts or ".." in parts or "\0" in self.path:
            raise ValueError(f"{self.path!r} is not a plain relative path")
        if len(self.path.encode()) >= _MAX_NAME or len(self.data) > _MAX_SIZE:
            raise ValueError(f"{self.path[:80]!r} is too long or too large for a newc archive")
        if not stat.S_IFMT(self.mode):
            raise ValueError(f"the mode {self.mode:o} of {self.path!r} has no file type")


def directory(path: str, permissions: int = 0o755) -> CpioEntry:
    """A directory; an existing one only changes its permissions."""
    return CpioEntry(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> CpioEntry:
    """A regular file; it replaces one of an earlier archive."""
    return CpioEntry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> CpioEntry:
    """A symbolic link to ``target``."""
    return CpioEntry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> CpioEntry:
    """A character device node."""
    return CpioEntry(path, stat.S_IFCHR | permissions, device=(major, minor))


def pack(entries: Iterable[CpioEntry]) -> bytes:
    """Return an archive of ``entries`` in their order; equal entries give equal bytes.

    A directory must precede its content: the kernel creates no parents. Raises ValueError for a duplicate path.
    """
    out = bytearray()
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        if entry.path in seen:
            raise ValueError(f"duplicate path {entry.path!r}")
        seen.add(entry.path)
        _append(out, number, entry.mode, entry.path, entry.data, entry.device)
    _append(out, 0, 0, _TRAILER, b"", (0, 0))
    return bytes(out)


def _append(out: bytearray, number: int, mode: int, path: str, data: bytes, device: tuple[int, int]) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    out += (_MAGIC + "".join(f"{field:08x}" for field in fields)).encode() + name
    out += bytes(-len(out) % 4)
    out += data
    out += bytes(-len(out) % 4)
