# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests --quick deselects, and where tests run under pytest-xdist.

Tests that belong together run in the same process, and so does each file of tests/unit. Of three workers or more the
last runs only unit tests, at low priority: guests leave parts of the processors idle, and more guests at a time would
starve each other. The markers that control this are in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

#: each file here takes seconds, so one process runs all of it
UNIT = "tests/unit/"

_groups = pytest.StashKey[Path]()

#: how much nicer the worker for unit tests is
NICER = 10


def spare_worker(config: pytest.Config) -> str | None:
    """The name of the worker for unit tests, None if there are too few workers for one."""
    workers: int = config.getoption("numprocesses", 0) or 0
    return f"gw{workers - 1}" if workers > 2 else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="deselect long tests, which CI runs")


def pytest_configure(config: pytest.Config) -> None:
    if re.search(r"[\s:]", tempfile.gettempdir()):
        why = "kernels and QEMU cannot be built in a folder whose path has a space or a colon"
        raise pytest.UsageError(f"TMPDIR is {tempfile.gettempdir()!r}: {why}")
    # Under nohup, cron or a shell's background job signals are ignored, and child processes inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # What is printed to a terminal of a test does not depend on whose terminal started it.
    for name in ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        os.environ.pop(name, None)


def arch_of(item: pytest.Item) -> str | None:
    """The architecture of the guest that the test was parametrized with."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("memhp_guest_spec")


def is_long(item: pytest.Item) -> bool:
    """True if --quick deselects the test."""
    arches = item.config.getoption("memhp_arch") or ()
    again = item.get_closest_marker("either_arch") is not None and arch_of(item) in arches[1:]
    return again or item.get_closest_marker("long") is not None


def group_of(item: pytest.Item) -> str | None:
    """The group of the test: tests of a group run in the same process, in order. None: it can run anywhere."""
    file = item.path.relative_to(item.config.rootpath).as_posix()
    if item.nodeid.startswith(UNIT) or item.get_closest_marker("one_process") is not None:
        return file
    if item.get_closest_marker("shared_guest") is not None:
        return f"{file} {arch_of(item)}"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        deselected = [item for item in items if is_long(item)]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker_input is not None:
        groups = {item.nodeid: group for item in items if (group := group_of(item)) is not None}
        (Path(worker_input["memhp_groups"]) / f"{os.getpid()}.json").write_text(json.dumps(groups))
        both = len({item.nodeid.startswith(UNIT) for item in items}) == 2
        if both and worker_input["workerid"] == worker_input["memhp_spare"]:
            os.nice(NICER)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a worker where to write the groups of its tests: the scheduler sees only their ids, not their markers."""
    config = node.config
    if _groups not in config.stash:
        folder = tempfile.TemporaryDirectory(prefix="memhp-groups-")
        config.add_cleanup(folder.cleanup)
        config.stash[_groups] = Path(folder.name)
    node.workerinput["memhp_groups"] = str(config.stash[_groups])
    node.workerinput["memhp_spare"] = spare_worker(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    # --dist loadgroup of pytest-xdist 3.8 does nothing with pytest 9: it writes to a field that no longer exists.
    class Scheduling(LoadScopeScheduling):
        groups: dict[str, str] | None = None

        def _split_scope(self, nodeid: str) -> str:
            if self.groups is None:
                # By now every worker has collected the same tests.
                written = min(config.stash[_groups].glob("*.json"))
                self.groups = json.loads(written.read_text())
            return self.groups.get(nodeid, nodeid)

        def _assign_work_unit(self, node: WorkerController) -> None:
            # The others help with unit tests once no guest is left.
            spare = node.gateway.id == spare_worker(config)
            preferred = [scope for scope in self.workqueue if scope.startswith(UNIT) is spare]
            if preferred:
                self.workqueue.move_to_end(preferred[0], last=False)
            elif spare and any(nodeid.startswith(UNIT) for nodeid in self.collection or ()):
                node.shutdown()
                return
            super()._assign_work_unit(node)

    return Scheduling(config, log)
