# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that somebody else may have written: read within bounds. And files of ours: written whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from harness.units import format_size

#: no number in JSON is further from 0: it is the end of the address space
MAX_NUMBER = 1 << 64
#: objects and lists inside one another in JSON; results, which have the most, need 10
MAX_DEPTH = 40
#: values in one JSON text, unless its reader needs more: about 500 MB in memory
MAX_VALUES = 4 << 20
#: bytes of a kernel configuration; a real one has 0.3 MB
MAX_CONFIG = 4 << 20
#: bytes of a small JSON file, such as one that describes a machine or a step
MAX_SMALL = 16 << 20


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file (symbolic links are followed) of at most ``limit`` bytes; raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
    if len(data) > limit or size > limit:
        raise OSError(errno.EFBIG, f"larger than {format_size(limit)}", str(path))
    return data


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file (symbolic links are followed), for a reader that bounds what it reads itself; raises OSError."""
    # Before it is opened: to open a device may have effects.
    _require_regular(os.stat(path), path)
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
        _require_regular(os.fstat(file.fileno()), path)
        yield file


def _require_regular(seen: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(seen.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(seen.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def gunzip(data: bytes, limit: int) -> bytes:
    """``data`` unpacked by gzip; raises ValueError if it is damaged, or takes more than ``limit`` bytes."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) > limit:
        raise ValueError(f"it is larger than {format_size(limit)}")
    if not unpacker.eof:
        raise ValueError("it ends too early")
    return found


def load_json(data: bytes | str, values: int = MAX_VALUES) -> Any:
    """The value of a JSON text.

    Raises ValueError for anything else, and for NaN, Infinity, numbers beyond MAX_NUMBER, more than ``values`` values
    or nesting beyond MAX_DEPTH.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    # Each value but the first follows one of these; those within strings only make the count too large.
    if sum(text.count(mark) for mark in ",[{") >= values:
        raise ValueError(f"more than {values} values")
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_fraction, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [child for children in inside for child in children if isinstance(child, dict | list)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _integer(text: str) -> int:
    # MAX_NUMBER has 20 digits.
    if len(text) > 21 or abs(value := int(text)) > MAX_NUMBER:
        _refuse(text)
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not abs(value) <= MAX_NUMBER:
        _refuse(text)
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"no number that memhp writes: {text[:40]}")


def write_file(path: Path, data: str | bytes) -> None:
    """Write ``data``, text as UTF-8, as the file ``path``, which it replaces atomically; raises OSError."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with fresh.open("xb") as file:
            file.write(data if isinstance(data, bytes) else data.encode("utf-8"))
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
