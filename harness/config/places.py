# SPDX-License-Identifier: GPL-2.0-or-later
"""The folders of the checkout other than the Python code, and those of the user."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import UsageError

#: an environment variable that names another ``configs`` directory
CONFIGS_VARIABLE = "MEMHP_CONFIGS"


def configs_dir() -> Path:
    """The ``configs`` directory: $MEMHP_CONFIGS, or the checkout's; raises UsageError if it does not exist."""
    chosen = os.environ.get(CONFIGS_VARIABLE)
    path = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "configs"
    if not path.is_dir():
        hint = f"correct {CONFIGS_VARIABLE}" if chosen else f"run memhp from its checkout, or set {CONFIGS_VARIABLE}"
        raise UsageError(f"no directory {path}", hint=hint)
    return path


def user_dir(variable: str, usual: str) -> Path:
    """``memhp`` below ``$variable``, an XDG base directory, or below ``usual`` in the home; raises UsageError."""
    base = os.environ.get(variable)
    # The XDG specification requires relative paths to be ignored.
    if base and os.path.isabs(base):
        return Path(base) / "memhp"
    try:
        return Path.home() / usual / "memhp"
    except RuntimeError:
        raise UsageError("this user has no home directory", hint=f"export {variable}=/a/writable/folder") from None


def guest_scripts_dir() -> Path:
    """The checkout's ``guest-scripts``, which run inside guests; raises UsageError if it does not exist."""
    path = Path(__file__).resolve().parents[2] / "guest-scripts"
    if not path.is_dir():
        raise UsageError(f"no directory {path}", hint="install memhp from a clone of its repository: pip install -e .")
    return path
