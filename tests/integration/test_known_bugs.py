# SPDX-License-Identifier: GPL-2.0-or-later
"""Known bugs on real guests: reported without failing, the same verdict on recheck, a failure without known bugs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.memhp_guest

MEMHP = [sys.executable, "-m", "harness"]


def run(tmp_path: Path, scenario: str, *options: str) -> tuple[int, dict[str, object]]:
    """(exit status, the only run in the JSON) of ``scenario`` on arm64's default kernel."""
    target = tmp_path / "out.json"
    words = ["run", scenario, "-a", "arm64", "--json", str(target), "--bundle-dir", str(tmp_path), *options]
    ended = subprocess.run([*MEMHP, *words], check=False, timeout=1800)
    [found] = json.loads(target.read_text())["runs"]
    return ended.returncode, found


@pytest.mark.parametrize(
    ("scenario", "bug"),
    [("page-table-page-missing", "page-table-page-bug-on"), ("pmem-memmap-runs-out", "pmem-memmap-runs-out")],
)
def test_a_kernel_that_has_the_bug(tmp_path: Path, scenario: str, bug: str) -> None:
    status, found = run(tmp_path, scenario)
    assert (status, found["verdict"], list(found["known_bugs"])) == (0, "known-bug", [bug])  # type: ignore[call-overload]
    assert found["steps_left"]
    again = tmp_path / "again.json"
    ended = subprocess.run([*MEMHP, "check", str(found["bundle"]), "--json", str(again)], check=False, timeout=1800)
    [checked] = json.loads(again.read_text())["runs"]
    assert (ended.returncode, checked["verdict"], list(checked["known_bugs"])) == (0, "known-bug", [bug])
    assert [step["verdict"] for step in checked["steps"]] == [step["verdict"] for step in found["steps"]]  # type: ignore[attr-defined]


def test_without_known_bugs_it_is_red(tmp_path: Path) -> None:
    status, found = run(tmp_path, "page-table-page-missing", "--no-known-bugs")
    assert (status, found["verdict"], found["known_bugs"]) == (1, "fail", {})
