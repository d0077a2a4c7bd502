# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests stay together when several processes share the work (pytest-xdist, -n 2)."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

#: one file, one process: what is done there builds on what was done before, or is over in seconds
TOGETHER = re.compile(r"tests/unit/\w+\.py|tests/integration/test_readme\.py")
#: their tests share a guest: one process for each architecture
GUEST = re.compile(r"(tests/integration/test_(?:collector|guest_session|loads|security)\.py)::.*\[(arm64|riscv64)")
#: the longest of all begins first
FIRST = "test_readme"

#: what --quick leaves out, by node id
LONG = re.compile(
    "|".join(
        (
            # The harness's own world is the same with a guest of either architecture.
            r"integration/test_(?:bench|faults|faults_host|loads|matrix|restore|run|security|selftest|shell)\.py.*\[riscv64",
            # Other tests do the same, or the like, on the way.
            r"test_readme\.py.*\[(?:make demo|.*(?:list support|selftest|bench --json|pytest tests/kernel|-j 2\]))",
            r"test_readme\.py.*(?:sv57=off|--kernel debian|pmem-kmem -a arm64|--boot=cold|bench walk)",
            r"\[arm64-(?:qmp-stalled|network-stalled)\]|full_disk_is_no_verdict\[arm64-0\.[19]\]",
            r"test_every_paging_mode\[(?!acpi-virtio-mem-resize-sv39)",
            r"test_every_interrupt_controller\[(?!aplic-imsic)",
            r"oom-deadlock|oom-kill|finds_the_first_bad_commit|test_many_runs|test_drgn|test_kernels_put_back",
            # One scenario of each kind of device, or of what is hardest to get right.
            r"kernel/test_scenarios\.py.*\[arm64-(?!dimm-refused-zone|pmem-kmem|sub-section\])",
            r"kernel/test_scenarios\.py.*\[riscv64-(?!dimm-cycle|sub-section-shared|virtio-mem-acpi)",
        )
    )
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what takes long: CI has the time")


def pytest_configure(config: pytest.Config) -> None:
    # Under nohup, cron or a shell's background job SIGINT is ignored, and what is started here inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        left_out = [item for item in items if LONG.search(item.nodeid)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.path.stem != FIRST)
