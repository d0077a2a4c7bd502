# SPDX-License-Identifier: GPL-2.0-or-later
"""What was not observed does not pass: recorded runs without files that the kernel could provide."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from harness.check import CATALOGUE, Verdict
from harness.check.required import Demand
from harness.collect.kernel_log import LOG_SOURCES
from harness.collect.records import RECORD_SOURCES
from harness.scenarios.recheck import recheck
from harness.scenarios.record import demand_from_json, demand_to_json
from harness.scenarios.result import RunResult

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"
LAST = "states/010"
#: invariants that compare the kernel's records with the guest's text
OF_RECORDS = {"XCK-2", "XCK-3", "XCK-4", "XCK-5", "XCK-6"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLES / "arm64-ends", tmp_path / "bundle"))


def demand(bundle: Path, *, require: str = "", allow: str = "") -> None:
    path = bundle / "run.json"
    wanted = Demand(frozenset(require.split()), frozenset(allow.split()))
    path.write_text(json.dumps(json.loads(path.read_text()) | demand_to_json(wanted)))


def note(result: RunResult) -> str:
    """The note of the first step without a proof."""
    return next((step.note for step in result.steps if step.verdict is Verdict.INFRA), "")


def without(bundle: Path, pattern: str) -> None:
    hits = list(bundle.glob(pattern))
    assert hits
    for path in hits:
        path.unlink()


def configure(bundle: Path, *lines: str) -> None:
    """Remove options from the recorded configuration; without options, remove the configuration."""
    path = bundle / "facts" / "config.txt"
    if not lines:
        path.unlink()
        return
    kept = [line for line in path.read_text().splitlines(keepends=True) if line.rstrip("\n") not in lines]
    path.write_text("".join(kept))


def test_snapshots_of_next_to_nothing_prove_nothing(bundle: Path) -> None:
    for path in bundle.glob("states/*/*"):
        kept = {"boot_id.txt", "uptime.txt", "meta.json", "status.txt", "step.json"}
        if path.name not in kept and (path.name != "zoneinfo.txt" or path.parent.name != "000"):
            path.unlink()
    result = recheck(bundle)
    assert result.verdict is Verdict.INFRA
    assert "not observed, though it could have been: QMP-1 (not in this snapshot), IOM-1" in note(result)


@pytest.mark.parametrize(
    ("sources", "unseen"),
    [
        ("devices.json", {"QMP-1"}),
        ("iomem.txt", {"XCK-2"}),
        ("host_iomem.txt", {"XCK-2"}),
        ("iomem.txt host_iomem.txt", {"IOM-1", "IOM-2", "IOM-3", "XCK-2"}),
        ("blocks.txt", {"XCK-3"}),
        ("host_blocks.txt", {"XCK-3"}),
        ("blocks.txt host_blocks.txt", {"BLK-1", "BLK-2", "XCK-3"}),
        ("auto_online.txt", {"BLK-2"}),
        ("zoneinfo.txt", {"XCK-4"}),
        ("host_zoneinfo.txt", {"XCK-4"}),
        ("zoneinfo.txt host_zoneinfo.txt", {"ZON-1", "XCK-4"}),
        ("meminfo.txt", {"XCK-5"}),
        ("host_meminfo.txt", {"XCK-5"}),
        ("meminfo.txt host_meminfo.txt", {"MEM-1", "XCK-5"}),
        ("vmstat.txt", {"XCK-5"}),
        ("host_vmstat.txt", {"XCK-5"}),
        ("vmstat.txt host_vmstat.txt", {"MEM-2", "XCK-5"}),
        ("backends.json", {"MEM-2"}),
        ("ptdump.txt", {"XCK-1"}),
        ("host_tables.txt", {"MEM-2", "PGT-1", "PGT-2", "XCK-1"}),
        ("sections.txt", {"SEC-1", "SEC-2", "SEC-3"}),
        ("dmesg.txt", {"BLK-3", "XCK-6"}),
        ("host_log.txt", {"XCK-6"}),
        ("dmesg.txt host_log.txt", {"BLK-3", "LOG-1", "XCK-6"}),
        ("console.json", {"LOG-1"}),
        ("dax.txt", {"BLK-2"}),
    ],
)
def test_each_source_that_is_gone_is_missed(sources: str, unseen: set[str], bundle: Path) -> None:
    for source in sources.split():
        (bundle / LAST / source).unlink()
    result = recheck(bundle)
    step = result.steps[-1]
    assert {check.invariant for check in step.checks if check.status == "not-observed"} == unseen
    assert result.verdict is step.verdict is Verdict.INFRA
    demand(bundle, allow=" ".join(unseen))
    assert recheck(bundle).verdict is Verdict.PASS


def test_a_run_that_was_recorded_before_the_host_read_records_has_its_verdict(bundle: Path) -> None:
    for source in (*RECORD_SOURCES, *LOG_SOURCES):
        without(bundle, f"states/*/{source}.txt")
    result = recheck(bundle)
    assert result.verdict is Verdict.PASS
    for step in result.steps:
        assert {check.invariant for check in step.checks if check.status == "not-observed"} == OF_RECORDS
    demand(bundle, require="XCK-2")
    assert recheck(bundle).verdict is Verdict.INFRA


def test_what_the_kernel_cannot_show_is_not_asked_of_it(bundle: Path) -> None:
    without(bundle, "states/*/ptdump.txt")
    assert recheck(bundle).verdict is Verdict.INFRA, "it has CONFIG_PTDUMP_DEBUGFS"
    configure(bundle, "CONFIG_PTDUMP_DEBUGFS=y")
    assert recheck(bundle).verdict is Verdict.PASS
    demand(bundle, require="XCK-1")
    assert recheck(bundle).verdict is Verdict.INFRA, "unless XCK-1 is required"


def test_what_the_first_look_saw_must_be_seen_to_the_end(bundle: Path) -> None:
    configure(bundle, "CONFIG_PTDUMP_DEBUGFS=y")
    (bundle / LAST / "ptdump.txt").unlink()
    assert "XCK-1 (not in this snapshot)" in note(recheck(bundle))


def test_a_kernel_whose_configuration_nobody_knows(bundle: Path) -> None:
    configure(bundle)
    for source in ("ptdump", "sections"):
        without(bundle, f"states/*/{source}.txt")
    result = recheck(bundle)
    assert result.verdict is Verdict.PASS, note(result)
    (bundle / LAST / "iomem.txt").unlink()
    assert recheck(bundle).verdict is Verdict.INFRA


def test_what_is_required_must_be_observed_at_least_once(bundle: Path) -> None:
    demand(bundle, require="IOM-4 RBK-1 MEM-3")
    assert recheck(bundle).verdict is Verdict.PASS
    demand(bundle, require="IOM-4 QMP-3 VMM-2")
    result = recheck(bundle)
    assert (result.verdict, result.reason) == (Verdict.INFRA, "required, and observed in no step: QMP-3, VMM-2")


def test_a_broken_invariant_outweighs_what_was_not_observed(bundle: Path) -> None:
    (bundle / LAST / "iomem.txt").unlink()
    meminfo = bundle / LAST / "meminfo.txt"
    meminfo.write_text(re.sub(r"MemTotal: +", "MemTotal: 1", meminfo.read_text()))
    assert recheck(bundle).verdict is Verdict.FAIL


def test_a_step_after_which_nobody_looked_proves_nothing(bundle: Path) -> None:
    for path in (bundle / LAST).iterdir():
        if path.name != "step.json":
            path.unlink()
    result = recheck(bundle)
    assert result.verdict is Verdict.INFRA and note(result).endswith("nobody looked after it")


def test_what_an_overwritten_log_still_has_is_judged(bundle: Path) -> None:
    absent, log = bundle / LAST / "absent.txt", bundle / LAST / "dmesg.txt"
    absent.write_text(absent.read_text() + "dmesg the kernel's log was overwritten\n")
    result = recheck(bundle)
    assert result.verdict is Verdict.INFRA and "LOG-1 (the kernel's log was overwritten)" in note(result)
    log.write_text(log.read_text() + "<4>[   99.000000] WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x8\n")
    result = recheck(bundle)
    assert result.verdict is Verdict.FAIL
    assert [check.invariant for check in result.steps[-1].checks if check.status == "fail"] == ["LOG-1"]


def test_counters_of_struct_pages_are_there_since_v6_11(bundle: Path) -> None:
    for path in bundle.glob("states/*/vmstat.txt"):
        text = path.read_text()
        path.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("nr_memmap")))
    assert "MEM-2 (/proc/vmstat has no nr_memmap, which is there since v6.11)" in note(recheck(bundle))


def test_half_of_the_counters_of_struct_pages_is_not_all_of_them(bundle: Path) -> None:
    for path in bundle.glob("states/*/vmstat.txt"):
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in rows if not row.startswith("nr_memmap_boot")))
    assert "MEM-2 (/proc/vmstat has no nr_memmap, which is there since v6.11)" in note(recheck(bundle))


def test_a_counter_that_a_soak_could_not_read(bundle: Path) -> None:
    path = bundle / LAST / "step.json"
    step = json.loads(path.read_text())
    step["outcome"]["unread"] = ["slab kernfs_node_cache: lost"]
    path.write_text(json.dumps(step))
    assert "MEM-3 (slab kernfs_node_cache: lost)" in note(recheck(bundle)), "its slabinfo has that cache"
    for path in bundle.glob("states/*/slabinfo.txt"):
        path.write_text("".join(row for row in path.read_text().splitlines(keepends=True) if "kernfs" not in row))
    assert recheck(bundle).verdict is Verdict.PASS, "its caches are merged"


def test_every_need_is_known() -> None:
    from harness.check.required import _LACKS

    assert {need for item in CATALOGUE.values() for need in item.needs} == set(_LACKS)


def test_a_demand_survives_json() -> None:
    wanted = Demand(frozenset({"XCK-1"}), frozenset({"MEM-2", "MEM-3"}))
    assert demand_from_json(json.loads(json.dumps(demand_to_json(wanted)))) == wanted
    assert demand_from_json({}) == Demand()
