# SPDX-License-Identifier: GPL-2.0-or-later
"""The selftest of the oracle on a real guest: every deliberate corruption is named and undone, and leaves no trace."""

from __future__ import annotations

import pytest

from harness.config.guest import GuestSpec
from harness.progress import SilentProgress
from harness.scenarios.boot import Parts
from harness.selftest.catalogue import CATALOGUE
from harness.selftest.corruption import MemoryCorruption
from harness.selftest.oracle import run_selftest
from harness.selftest.score import exit_status, to_lines
from harness.selftest.trial import INAPPLICABLE, NAMED

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

#: distinct corruptions of live memory, and as many of text, that must apply to any guest
ENOUGH = 40


def test_every_corruption_is_named(memhp_guest_spec: GuestSpec, memhp_artifacts: Parts) -> None:
    result = run_selftest(memhp_guest_spec, CATALOGUE, 120, SilentProgress())
    lines = "\n".join(to_lines(result))
    assert result.perfect, lines
    assert exit_status([result]) == 0 and "(100 %)" in lines
    live = [trial for trial in result.applied if isinstance(trial.corruption, MemoryCorruption)]
    assert len(live) >= ENOUGH and len(result.applied) - len(live) >= ENOUGH
    assert all(trial.status in (NAMED, INAPPLICABLE) for trial in result.trials)
