# SPDX-License-Identifier: GPL-2.0-or-later
"""Which scenarios --quick runs: one of each kind of device, or of what is hardest to get right.

``memhp check`` must come to the same verdict as every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agreement import disagreements

from harness.pytest_plugin import RESULTS
from harness.scenarios.file import known_scenarios

QUICK = {
    "arm64": {"dimm-refused-zone", "pmem-kmem", "sub-section"},
    "riscv64": {"dimm-cycle", "sub-section-shared", "virtio-mem-acpi"},
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unknown = set().union(*QUICK.values()) - set(known_scenarios())
    if unknown:
        raise pytest.UsageError(f"{__file__}: no such scenario: {', '.join(sorted(unknown))}")
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None or not item.path.is_relative_to(Path(__file__).parent):
            continue
        quick = QUICK.get(callspec.params["memhp_guest_spec"])
        if quick is not None and callspec.params["memhp_scenario"].name not in quick:
            item.add_marker("long")


@pytest.fixture(autouse=True)
def _checked_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for result in request.node.stash.get(RESULTS, []):
        assert result.bundle is None or disagreements(result, result.bundle) == []
