# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the tests that kill the harness at random moments, and the table of injected faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from harness.config.guest import GuestSpec
from harness.scenarios.boot import Parts

_FAULT = "injected fault"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memhp")
    group.addoption(
        "--memhp-interrupts",
        type=int,
        default=3,
        metavar="N",
        help="runs of memhp per architecture that are killed at a random moment (default 3; nightly: 100)",
    )
    group.addoption(
        "--memhp-runs",
        type=int,
        default=12,
        metavar="N",
        help="runs of all kinds per architecture, two at a time (default 12; nightly: 500)",
    )
    group.addoption(
        "--memhp-interrupt-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random moments, and of the order of the runs",
    )
    group.addoption(
        "--memhp-debug-info",
        action="store_true",
        help="build kernels with debug info, which the drgn test needs (nightly: yes)",
    )


@pytest.fixture
def guest(request: pytest.FixtureRequest, memhp_guest_spec: GuestSpec, memhp_artifacts: Parts) -> list[str]:
    """Command-line options that select the guest under test; its parts are available."""
    kernel = request.config.getoption("memhp_kernel")
    return ["-a", memhp_guest_spec.arch, *(["--kernel", kernel] if kernel else [])]


@pytest.fixture
def record_fault(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Add a row to the final table: the injected fault, how the run ended, how many seconds it took."""

    def record(*row: object) -> None:
        request.node.user_properties.append((_FAULT, tuple(map(str, row))))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = [
        row
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, row in report.user_properties
        if name == _FAULT and isinstance(row, Sequence)
    ]
    if rows:
        terminalreporter.section("injected faults")
        for row in [("fault", "arch", "exit", "verdict", "seconds"), *sorted(rows, key=lambda row: row[1])]:
            terminalreporter.write_line("".join(f"{cell:<18}" for cell in row))
