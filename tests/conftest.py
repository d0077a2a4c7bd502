# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests stay together when several processes share the work (pytest -n 2 --dist loadgroup)."""

from __future__ import annotations

from pathlib import Path

import pytest

UNIT = Path(__file__).parent / "unit"
#: the longest of those that stay together begins first
FIRST = "test_readme"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): done by one process, in order (pytest-xdist)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        group = _group(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.stem != FIRST)


def _group(item: pytest.Item) -> str | None:
    """Unit tests by their file; others only where they share a guest or a place of work."""
    if item.path.is_relative_to(UNIT):
        return item.path.stem
    assert isinstance(item, pytest.Function)
    if "memhp_guest" in item.fixturenames:
        return f"{item.path.stem}-{item.callspec.params['memhp_guest_spec']}"
    return item.path.stem if "desk" in item.fixturenames else None
