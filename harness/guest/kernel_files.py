# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of the guest's kernel: write to them, which shows how long the kernel took, and read them and links."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import GuestError, UsageError
from harness.guest.overlay import SCRIPTS
from harness.guest.ssh import OUTPUT_LIMIT, Shell

_FILES = f"/{SCRIPTS}/files"
_PATTERN = re.compile(r"/[!-~]+")
_VALUE = re.compile(r"[ -~]*")
_WRITTEN = re.compile(r"(-|[0-9]{1,18}) (?:(ok)|failed (.*))")
_FOUND = re.compile(rb"(file|link|failed) ([0-9]{1,10}) (/[!-~]+)")
_NAMES = {os.strerror(number): name for number, name in errno.errorcode.items()}


@dataclass(frozen=True, slots=True)
class Written:
    """Result of a write: ``error`` is None, or the errno's name, such as EBUSY.

    ``seconds`` is how long the kernel took for it, by the guest's clock; None in a guest root without the agent.
    """

    error: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Content:
    """What was read: the bytes of a file or the target of a link; with ``error``, an errno's name, nothing was."""

    data: bytes
    error: str | None = None


def error_name(text: str) -> str:
    """The name of the errno, such as EBUSY, whose description ends ``text``; the text itself if there is none."""
    return _NAMES.get(text.rpartition(": ")[2].strip(), text.strip())


def parse_written(text: str) -> Written | None:
    """Read ``TIME ok`` or ``TIME failed REASON``, TIME in nanoseconds or ``-``; None if it is something else."""
    match = _WRITTEN.fullmatch(text)
    if match is None:
        return None
    seconds = None if match[1] == "-" else int(match[1]) / 1e9
    return Written(None if match[2] else error_name(match[3]), seconds)


def write_files(shell: Shell, values: Sequence[tuple[str, str]], *, deadline: Deadline) -> tuple[Written, ...]:
    """Write each value, a line, to the existing file of that path, in the order given, in one round trip.

    Raises UsageError for a relative path, or spaces in one, or a value of several lines; GuestError, DeadlineExpired.
    """
    for path, value in values:
        if _PATTERN.fullmatch(path) is None or _VALUE.fullmatch(value) is None:
            raise UsageError(f"cannot write {value!r} to {path!r}: a value is one line of ASCII, a path is absolute")
    stdin = "".join(f"{path} {value}\n" for path, value in values).encode()
    done = shell.run(f"{_FILES} write", stdin=stdin, deadline=deadline)
    if done.status != 0:
        raise done.error("the guest's files script failed")
    written = [parse_written(line) for line in done.text.splitlines()]
    complete = [result for result in written if result is not None]
    if len(complete) != len(written) or len(written) != len(values):
        raise GuestError(f"asked for {len(values)} writes, the guest's files script printed {done.text[:200]!r}")
    return tuple(complete)


def read_files(
    shell: Shell, patterns: Sequence[str], *, links: bool = False, deadline: Deadline, limit: int = OUTPUT_LIMIT
) -> Mapping[str, Content]:
    """Read all files whose path matches one of ``patterns`` of the shell, in one round trip; or symbolic ``links``.

    The result has a path of every pattern: a pattern that matches nothing is its own path, with ENOENT. Raises
    UsageError for a relative pattern or spaces in one, GuestError for more than ``limit`` bytes, DeadlineExpired.
    """
    for pattern in patterns:
        if _PATTERN.fullmatch(pattern) is None:
            raise UsageError(f"cannot read {pattern!r}: a path is absolute, and has no spaces")
    kind = "link" if links else "file"
    stdin = "".join(f"{kind} {pattern}\n" for pattern in patterns).encode()
    done = shell.run(f"{_FILES} read", stdin=stdin, deadline=deadline, limit=limit)
    if done.status != 0:
        raise done.error("the guest's files script failed")
    return _parse_found(done.stdout)


def _parse_found(text: bytes) -> dict[str, Content]:
    found: dict[str, Content] = {}
    at = 0
    while at < len(text):
        stop = text.find(b"\n", at)
        match = _FOUND.fullmatch(text, at, max(stop, at))
        end = stop + 1 + (0 if match is None else int(match[2]))
        if match is None or text[end : end + 1] != b"\n":
            raise GuestError(f"the guest's files script printed {text[at : at + 200]!r}")
        data = text[stop + 1 : end]
        failed = match[1] == b"failed"
        path = match[3].decode()
        found[path] = Content(b"", error_name(data.decode(errors="replace"))) if failed else Content(data)
        at = end + 1
    return found
