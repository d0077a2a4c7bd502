# SPDX-License-Identifier: GPL-2.0-or-later
"""When the count of page tables is stable: it is inconsistent for a moment when processes start or exit."""

from __future__ import annotations

import pytest

from harness.collect.hostside import has_settled


@pytest.mark.parametrize(
    ("strays", "before", "settled"),
    [
        ([0], 0, True),
        ([3], 0, False),
        ([3, 0], 0, True),
        ([-2, -2, -2], 0, False),
        ([-2, -2, -2, -2], 0, True),
        ([10, -2, -2, -2, -2], 0, True),
        # recorded on riscv64: ten tables of an exiting process compensated for uncounted tables
        ([0], -10, False),
        ([0, -12, -12, -12], -10, False),
        ([0, -12, -12, -12, -12], -10, True),
        ([-10], -10, True),
        ([None], 0, False),
        ([None, None, None, None], 0, True),
    ],
)
def test_a_count_stands_if_it_fits_as_before_or_does_not_change(
    strays: list[int | None], before: int, settled: bool
) -> None:
    assert has_settled(strays, before) is settled
