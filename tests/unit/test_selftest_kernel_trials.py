# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of kernels with a reintroduced bug, as text, JSON and exit status."""

from __future__ import annotations

import dataclasses

import pytest

from harness.selftest.kernel_trials import ALARM, GREEN, MISNAMED, MISSED, NAMED, NO_VERDICT, KernelTrial
from harness.selftest.kernelresult import exit_status, kernels_to_json, line_of, score
from harness.selftest.putback import known_bugs

BUG = next(bug for bug in known_bugs() if bug.name == "zone-keeps-its-span")
BAD = KernelTrial(
    arch="arm64",
    kernel="7.3.4",
    bug=BUG,
    status=NAMED,
    scenario="dimm-cycle",
    number=6,
    step="unplug dimm0",
    broken=("ZON-1", "LOG-1"),
    reason="step 6 (unplug dimm0): ZON-1, LOG-1 broken",
    image="/images/zone-keeps-its-span/Image",
    built=31.04,
    ran=12.5,
)
CLEAN = dataclasses.replace(BAD, bug=None, status=GREEN, number=0, step="", broken=(), reason="", image="/images/clean")
MISNAMED_BAD = dataclasses.replace(BAD, status=MISNAMED, broken=("LOG-1",))
MISSED_BAD = dataclasses.replace(BAD, status=MISSED, number=0, step="", broken=(), reason="")
UNTRIED = dataclasses.replace(MISSED_BAD, status=NO_VERDICT, reason="QEMU died")


@pytest.mark.parametrize(
    ("trial", "line"),
    [
        (
            BAD,
            "arm64 7.3.4: zone-keeps-its-span named by ZON-1, LOG-1 in dimm-cycle, step 6 (unplug dimm0); "
            "built in 31.0 s, ran 12.5 s",
        ),
        (CLEAN, "arm64 7.3.4: the clean kernel passes dimm-cycle; built in 31.0 s, ran 12.5 s"),
        (
            dataclasses.replace(CLEAN, status=ALARM, reason="step 2 (x): MEM-2 broken"),
            "arm64 7.3.4: the clean kernel ALARM in dimm-cycle: step 2 (x): MEM-2 broken; built in 31.0 s, ran 12.5 s",
        ),
        (
            MISNAMED_BAD,
            "arm64 7.3.4: zone-keeps-its-span MISNAMED: expected ZON-1, found LOG-1 in dimm-cycle, step 6 "
            "(unplug dimm0); built in 31.0 s, ran 12.5 s",
        ),
        (
            MISSED_BAD,
            "arm64 7.3.4: zone-keeps-its-span MISSED: dimm-cycle passed; built in 31.0 s, ran 12.5 s; "
            "/images/zone-keeps-its-span/Image",
        ),
        (
            UNTRIED,
            "arm64 7.3.4: zone-keeps-its-span NO VERDICT in dimm-cycle: QEMU died; built in 31.0 s, ran 12.5 s",
        ),
    ],
)
def test_each_trial_is_a_line(trial: KernelTrial, line: str) -> None:
    assert line_of(trial) == line


def test_the_score_counts_bugs_and_the_clean_kernel() -> None:
    other = dataclasses.replace(BAD, arch="riscv64")
    assert score([CLEAN, BAD, MISSED_BAD, other]) == [
        "arm64: 1/2 real bugs named, the clean kernel green in 1/1 scenarios; 131 s",
        "riscv64: 1/1 real bugs named, the clean kernel green in 0/0 scenarios; 44 s",
    ]


@pytest.mark.parametrize(
    ("trials", "status"),
    [
        ([CLEAN, BAD], 0),
        ([CLEAN, BAD, MISSED_BAD], 1),
        ([CLEAN, BAD, MISNAMED_BAD], 1),
        ([dataclasses.replace(CLEAN, status=ALARM), BAD], 1),
        ([CLEAN, BAD, UNTRIED], 3),
        ([dataclasses.replace(CLEAN, status=NO_VERDICT), BAD], 3),
        ([CLEAN, UNTRIED, MISSED_BAD], 1),
        ([CLEAN], 3),
        ([], 3),
    ],
)
def test_only_bugs_that_are_named_are_good(trials: list[KernelTrial], status: int) -> None:
    assert exit_status(trials) == status


def test_json_holds_all_of_it() -> None:
    made = kernels_to_json([CLEAN, BAD])
    assert (made["format"], made["version"], made["source"]) == ("memhp-selftest-kernels", 1, "linux-source-7.3")
    trials = made["trials"]
    assert isinstance(trials, list)
    clean, bad = trials
    assert clean["bug"] is None and clean["status"] == "green"
    assert bad["bug"]["takes_back"].startswith("feee6b298916") and bad["bug"]["named_by"] == ["ZON-1"]
    assert (bad["status"], bad["step"], bad["title"]) == ("named", 6, "unplug dimm0")
    assert (bad["broken"], bad["built_seconds"], bad["run_seconds"]) == (["ZON-1", "LOG-1"], 31.04, 12.5)
