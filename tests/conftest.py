# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests stay together when several processes share the work (pytest-xdist, -n 2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

#: one file, one process: what is done there builds on what was done before, or is over in seconds
TOGETHER = re.compile(r"tests/unit/\w+\.py|tests/integration/test_readme\.py")
#: their tests share a guest: one process for each architecture
GUEST = re.compile(r"(tests/integration/test_(?:guest_session|loads|security)\.py)::.*\[(arm64|riscv64)")
#: the longest of all begins first
FIRST = "test_readme"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    # --dist loadgroup of pytest-xdist 3.8 does nothing with pytest 9: it writes to a field that is no more.
    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return Scheduling(config, log)


def scope_of(nodeid: str) -> str:
    """Tests with the same answer are done by the same process, in order."""
    together, guest = TOGETHER.search(nodeid), GUEST.search(nodeid)
    if together is not None:
        return together[0]
    return nodeid if guest is None else f"{guest[1]} {guest[2]}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem != FIRST)
