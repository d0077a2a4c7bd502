# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with two NUMA nodes: memory goes to the node it was plugged for, pmem to the node in the firmware's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.check import Verdict
from harness.config.guest import GuestSpec, NodeConfig
from harness.report.terminal_report import findings_text
from harness.scenarios.boot import Parts
from harness.scenarios.file import read_scenario
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios
from harness.units import MIB

pytestmark = pytest.mark.memhp_guest

NODES = (NodeConfig(512 * MIB), NodeConfig(512 * MIB))

#: needs ACPI: only its tables give the node of hot-plugged memory
PLACED = """
name: placed
guest: {memory: 1G, nodes: [{memory: 512M}, {memory: 512M}]}
steps:
  - auto-online: {policy: online_movable}
  - plug-dimm: {id: near, size: 256M, node: 0}
  - touch: {device: near, size: 16M}
  - plug-dimm: {id: far, size: 256M, node: 1}
  - touch: {device: far, size: 16M}
  - plug-virtio-mem: {id: vmem0, max: 512M, requested: 256M, node: 1}
  - unplug: {id: near}
  - unplug: {id: far}
"""

#: virtio-pmem has no node property
PMEM = """
name: pmem
guest: {memory: 1G, nodes: [{memory: 512M}, {memory: 512M}]}
steps:
  - auto-online: {policy: online_movable}
  - plug-pmem: {id: pmem0, size: 512M}
  - namespace: {id: pmem0, mode: devdax, map: dev}
  - kmem: {id: pmem0}
  - touch: {device: pmem0, size: 16M}
"""


@pytest.mark.parametrize(("boot", "text"), [("acpi", PLACED), ("acpi", PMEM), ("dt", PMEM)])
def test_two_nodes(boot: str, text: str, memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(text)
    spec = memhp_guest_spec.with_fields({"nodes": NODES, "boot": boot})
    [result] = run_scenarios([read_scenario(file)], spec, RunOptions(bundle_dir=tmp_path / "bundles"), SilentReporter())
    assert result.verdict is Verdict.PASS, findings_text(result) or result.reason
