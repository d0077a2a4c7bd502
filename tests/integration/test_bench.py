# SPDX-License-Identifier: GPL-2.0-or-later
"""memhp bench walk on a real guest, small and short: checks the structure of the figures, not their values."""

from __future__ import annotations

import json

import pytest

from harness.bench import BenchOptions
from harness.bench.figures import to_json, to_lines
from harness.bench.walk_speed import run
from harness.config.guest import GuestSpec
from harness.progress import SilentProgress
from harness.scenarios.boot import Parts
from harness.units import GIB

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

ROUNDS = 2
GROWTH = (GIB, 4 * GIB)


def test_walk(memhp_guest_spec: GuestSpec, memhp_artifacts: Parts) -> None:
    spec = memhp_guest_spec.with_fields({"memory": GIB})
    result = run(spec, BenchOptions(rounds=ROUNDS), SilentProgress(), GROWTH)
    found = json.loads(json.dumps(to_json(result)))
    assert (result.exit_status, found["benchmark"], found["rounds"]) == (0, "walk", ROUNDS)
    config = memhp_artifacts.kernel.config or {}
    paired, growth = found["sections"]["paired"], found["sections"]["growth"]

    assert paired["facts"]["table pages"] > 10 and paired["facts"]["runs"] > 10
    assert paired["facts"]["table bytes"] >= paired["facts"]["table pages"] * 4096 // 2
    median = {name: figure["median"] for name, figure in paired["figures"].items()}
    assert all(len(figure["values"]) == ROUNDS for figure in paired["figures"].values())
    assert 0 < median["host_copy"] < median["host_pause"] < median["host_total"]
    assert median["host_still"] > 0 and median["host_walk"] + median["host_coalesce"] < median["host_total"]
    if "PTDUMP_DEBUGFS" in config:
        assert found["agreement"] == {"agreed": True, "mismatches": [], "reason": ""}
        assert median["guest_ssh"] < median["guest_total"] and median["ratio"] > 0
    else:
        assert found["agreement"]["agreed"] is None and "ratio" not in median

    if "ACPI_HOTPLUG_MEMORY" in config and memhp_guest_spec.boot == "acpi":
        assert list(growth["figures"]) == [f"{kind}_{size}" for kind in ("total", "per_page") for size in (0, *GROWTH)]
        assert growth["facts"]["table pages +0"] <= growth["facts"]["table pages +4G"]
    else:
        assert growth["figures"] == {} and growth["notes"]

    assert {target["met"] for target in found["targets"].values()} == {None}
    assert any(line.startswith("guest  arch ") for line in to_lines(result))
