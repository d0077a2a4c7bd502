# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario, aimed at your kernel: pytest tests/kernel --memhp-kernel path/to/Image --memhp-arch arm64."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.scenarios.file import Scenario
from harness.scenarios.result import RunResult

pytestmark = pytest.mark.memhp_guest


def test_scenario(memhp_scenario: Scenario, memhp_run: Callable[[Scenario], RunResult]) -> None:
    memhp_run(memhp_scenario)
