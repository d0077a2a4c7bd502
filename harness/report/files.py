# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing reports: a file is written completely or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.bounded import write_file
from harness.errors import InfraError, UsageError

#: stands for standard output
STDOUT = "-"


def check_target(target: str, option: str) -> None:
    """Raise UsageError, naming ``option``, if ``target`` is clearly not writable."""
    if target == STDOUT:
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a directory", hint="name a file, or - for standard output")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: no directory {path.parent}", hint="create it first")
    writable = path if path.exists() else path.parent
    if not os.access(writable, os.W_OK):
        raise UsageError(f"{option}: {writable} is not writable", hint="choose another place")


def write_report(target: str, text: str) -> None:
    """Write ``text`` to the file ``target`` (``-``: standard output), replacing it atomically; raises InfraError."""
    if target == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(target)
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        # Beside the file itself, not beside a symlink to it: only then is the replacement atomic.
        write_file(path.resolve(), text)
    except OSError as error:
        raise InfraError(f"cannot write {target}: {error.strerror}", hint="the results above are complete") from error
