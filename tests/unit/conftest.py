# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of all unit tests."""

from __future__ import annotations

from hypothesis import settings

# No deadline: how long an example takes depends more on the load of the machine than on the code.
settings.register_profile("memhp", deadline=None)
settings.load_profile("memhp")
