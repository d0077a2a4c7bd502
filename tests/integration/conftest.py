# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the tests that end the harness at random moments."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memhp")
    group.addoption(
        "--memhp-interrupts",
        type=int,
        default=3,
        metavar="N",
        help="runs of memhp that are ended at a random moment (default 3; nightly: 200)",
    )
    group.addoption("--memhp-interrupt-seed", type=int, default=0, metavar="N", help="seed of those moments")
