# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the checkout keeps what is not Python."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import UsageError

#: an environment variable that names another ``configs`` directory
CONFIGS_VARIABLE = "MEMHP_CONFIGS"


def configs_dir() -> Path:
    """The ``configs`` directory: $MEMHP_CONFIGS, or the checkout's; raises UsageError if it is not there."""
    chosen = os.environ.get(CONFIGS_VARIABLE)
    path = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "configs"
    if not path.is_dir():
        hint = f"{CONFIGS_VARIABLE} names it" if chosen else f"run memhp from its checkout, or set {CONFIGS_VARIABLE}"
        raise UsageError(f"no directory {path}", hint=hint)
    return path


def guest_scripts_dir() -> Path:
    """The checkout's ``guest-scripts``: what runs inside a guest; raises UsageError if it is not there."""
    path = Path(__file__).resolve().parents[2] / "guest-scripts"
    if not path.is_dir():
        raise UsageError(f"no directory {path}", hint="memhp runs from its checkout: pip install -e . in a clone of it")
    return path
