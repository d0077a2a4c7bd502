# SPDX-License-Identifier: GPL-2.0-or-later
"""One real bug reintroduced on each architecture that has a kernel tree; nightly, memhp selftest --kernels runs all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.arch import arch_named
from harness.artifacts.kept_tree import place_of
from harness.cli import main
from harness.config.guest import GuestSpec
from harness.selftest.kernel_trials import SOURCE

pytestmark = [pytest.mark.memhp_guest, pytest.mark.long]

#: for each architecture one bug whose kernel builds quickly and that is detected early
BUGS = {"arm64": "arm64-hot-memory-untagged", "riscv64": "riscv64-altmap-not-handed-on"}


def test_a_real_bug_is_named_and_the_clean_kernel_is_green(memhp_guest_spec: GuestSpec, tmp_path: Path) -> None:
    arch, target = memhp_guest_spec.arch, tmp_path / "kernels.json"
    if not (place_of(arch_named(arch), SOURCE) / "configured").is_file():
        pytest.skip(f"no kernel tree of {SOURCE} for {arch}: memhp selftest --kernels creates it in ten minutes")
    assert main(["selftest", "--kernels", "-a", arch, "--only", BUGS[arch], "--json", str(target)]) == 0
    trials = json.loads(target.read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["green", "named"]
    assert set(trials[1]["bug"]["named_by"]) <= set(trials[1]["broken"])
