# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of all unit tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes depends more on the load of the machine than on the code. Every run has the same examples.
settings.register_profile("memhp", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("memhp")
