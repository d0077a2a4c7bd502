# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the checkout keeps what is not Python."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UsageError


def _beside_package(name: str) -> Path:
    path = Path(__file__).resolve().parents[2] / name
    if not path.is_dir():
        raise UsageError(f"{path} is missing", hint="memhp runs from its checkout: pip install -e . in a clone of it")
    return path


def guest_scripts() -> Path:
    """The scripts that run inside the guest."""
    return _beside_package("guest-scripts")
