# SPDX-License-Identifier: GPL-2.0-or-later
"""What is specific to riscv64: paging modes, interrupt controllers, and limits that only a trial can show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.check import Verdict
from harness.config.guest import GuestSpec, NodeConfig
from harness.errors import ConfigError
from harness.report.terminal_report import findings_text
from harness.scenarios.file import Scenario, load_scenario, read_scenario
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.units import GIB, MIB

pytestmark = pytest.mark.memhp_guest

#: values of -cpu; the other tests run with Sv57
SV48, SV39 = "rv64,sv57=off", "rv64,sv57=off,sv48=off"

SHORT = """
name: short
guest: {memory: 1G, maxmem: 8G, slots: 4}
steps:
  - auto-online: {policy: online_movable}
  - plug-dimm: {id: dimm0, size: 256M}
  - touch: {device: dimm0, size: 32M}
  - plug-virtio-mem: {id: vmem0, max: 512M, requested: 256M}
  - resize: {id: vmem0, to: 0}
  - unplug: {id: dimm0}
"""

PLACED = """
name: placed
guest: {memory: 1G, nodes: [{memory: 512M}, {memory: 512M}]}
steps:
  - plug-dimm: {id: dimm0, size: 256M, node: 1}
  - online: {device: dimm0, type: movable}
  - plug-virtio-mem: {id: vmem0, max: 512M, requested: 256M, node: 1}
  - unplug: {id: dimm0}
"""

TOO_HIGH = """
name: too-high
guest: {memory: 1G, maxmem: 256G, slots: 4}
steps:
  - plug-dimm: {id: high, size: 256M, address: 0x2a00000000}
    expect: refused
    says: outside of the linear map
  - plug-dimm: {id: low, size: 256M}
  - unplug: {id: low}
"""

TOO_SMALL = """
name: too-small
steps:
  - plug-dimm: {id: small, size: 64M}
"""


def run(tmp_path: Path, scenario: Scenario | str, **fields: object) -> RunResult:
    if isinstance(scenario, str):
        file = tmp_path / "scenario.yaml"
        file.write_text(scenario)
        scenario = read_scenario(file)
    guest = GuestSpec.default("riscv64").with_fields(fields)
    [result] = run_scenarios([scenario], guest, RunOptions(bundle_dir=tmp_path / "bundles"), SilentReporter())
    if result.verdict is Verdict.INFRA and result.bundle is None and not os.environ.get("CI"):
        pytest.skip(result.reason)
    return result


def passes(tmp_path: Path, scenario: Scenario | str, **fields: object) -> RunResult:
    """Check that it passes, apart from the counters that 6.12 is known to get wrong with namespaces."""
    result = run(tmp_path, scenario, **fields)
    assert result.verdict is (Verdict.KNOWN if result.bugs else Verdict.PASS), findings_text(result)
    assert set(result.bugs) <= {"riscv-vmemmap-tables-uncounted", "riscv-pud-tables-stay-counted"}
    assert not result.left
    return result


#: the only combination that --quick runs
QUICK = ("acpi", "virtio-mem-resize", SV39)


@pytest.mark.parametrize(
    ("boot", "name", "cpu"),
    [
        pytest.param(
            *(boot, name, cpu),
            id=f"{boot}-{name}-{mode}",
            marks=[] if (boot, name, cpu) == QUICK else [pytest.mark.long],
        )
        for boot, name in (
            ("acpi", "dimm-cycle"),
            ("acpi", "virtio-mem-resize"),
            ("acpi", "pmem-kmem"),
            ("dt", "virtio-mem-resize"),
            ("dt", "pmem-kmem"),
        )
        for mode, cpu in (("sv48", SV48), ("sv39", SV39))
    ],
)
def test_every_paging_mode(boot: str, name: str, cpu: str, tmp_path: Path) -> None:
    passes(tmp_path, load_scenario(name), cpu=cpu, boot=boot)


@pytest.mark.parametrize(
    ("aia", "cpus"),
    [
        pytest.param("none", 1, marks=pytest.mark.long),
        pytest.param("aplic", 4, marks=pytest.mark.long),
        ("aplic-imsic", 3),
    ],
)
def test_every_interrupt_controller(aia: str, cpus: int, tmp_path: Path) -> None:
    passes(tmp_path, SHORT, machine_options=(f"aia={aia}",), cpus=cpus)


def test_a_device_tree_tells_no_node_and_no_dimm(tmp_path: Path) -> None:
    nodes = (NodeConfig(512 * MIB), NodeConfig(512 * MIB))
    result = run(tmp_path, PLACED, nodes=nodes, boot="dt")
    assert (result.verdict, result.steps, result.bundle) == (Verdict.SKIPPED, (), None)
    assert "needs a guest that boots by acpi, this one boots by dt" in result.reason


def test_debians_kernel_has_no_pciehp_and_takes_pmem_all_the_same(tmp_path: Path) -> None:
    passes(tmp_path, load_scenario("pmem-kmem"), kernel="debian")


def test_struct_pages_of_a_huge_page_that_are_copies_of_its_head(tmp_path: Path) -> None:
    # Needs a kernel that reports that it folds them.
    result = run(tmp_path, load_scenario("hvo-neighbour"), kernel="purpose:6.12")
    assert (result.verdict, result.met) == (Verdict.KNOWN, ("unfolded-tails-are-copies-of-the-head",))
    assert (result.steps[-1].title, result.left) == ("load huge hugetlb count=32", 25)


def test_memory_beyond_the_linear_map_must_be_refused(tmp_path: Path) -> None:
    # v6.12 accepts it: arch_get_mappable_range() calls __pa() on an address for which is_linear_mapping() is false.
    result = run(tmp_path, TOO_HIGH, cpu=SV39)
    step = result.steps[1]
    assert "outside of the linear map" in step.note
    took = any("2a00000000-2a0fffffff : System RAM" in change for change in step.changes)
    broken = {check.invariant for check in step.checks if check.status == "fail"}
    assert step.verdict is (Verdict.KNOWN if took else Verdict.PASS)
    assert step.bugs == (("riscv-sv39-beyond-linear-map",) if took else ())
    assert broken >= ({"IOM-2", "BLK-1"} if took else set())


def test_a_dimm_smaller_than_a_memory_block(tmp_path: Path) -> None:
    # A kernel may have larger blocks than the smallest possible ones: then only the guest knows.
    with pytest.raises(ConfigError, match=r"size: 64M is not a multiple of 128M"):
        run(tmp_path, TOO_SMALL, maxmem=4 * GIB)
    result = passes(
        tmp_path, f"{TOO_SMALL}    expect: refused\n    says: not a multiple of a memory block\n", maxmem=4 * GIB
    )
    assert result.steps[1].note == "the kernel cannot add a range that is not a multiple of a memory block"
