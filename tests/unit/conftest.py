# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of all unit tests."""

from __future__ import annotations

from hypothesis import settings

# How long one example takes says more about what else the machine is doing than about the code.
settings.register_profile("memhp", deadline=None)
settings.load_profile("memhp")
