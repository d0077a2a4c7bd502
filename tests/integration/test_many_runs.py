# SPDX-License-Identifier: GPL-2.0-or-later
"""Many runs on restored guests, in parallel: each must reach its own verdict, whatever runs beside it."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from agreement import disagreements

from harness.check import Verdict
from harness.config.guest import GuestSpec
from harness.scenarios.boot import Parts
from harness.scenarios.file import Scenario, read_scenario
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios

pytestmark = [pytest.mark.memhp_guest, pytest.mark.long]

DIMM = "plug-dimm: {id: dimm0, size: 256M}"
#: kinds of runs: weight, expected verdict by architecture (default: pass), requirement, steps
KINDS: dict[str, tuple[int, dict[str, Verdict], str, tuple[str, ...]]] = {
    "dimm": (
        4,
        {},
        "acpi-dimm",
        (DIMM, "online: {device: dimm0, type: movable}", "touch: {device: dimm0, size: 32M}", "unplug: {id: dimm0}"),
    ),
    "resize": (
        4,
        {},
        "virtio-mem",
        (
            "auto-online: {policy: online_movable}",
            "plug-virtio-mem: {id: vmem0, max: 512M}",
            "resize: {id: vmem0, to: 256M}",
            "resize: {id: vmem0, to: 0}",
        ),
    ),
    "pmem": (
        2,
        {},
        "virtio-pmem",
        ("plug-pmem: {id: pmem0, size: 512M}", "namespace: {id: pmem0, mode: devdax, map: mem}"),
    ),
    "refused as it must be": (
        1,
        {},
        "acpi-dimm",
        ("offline: {boot: true, first: 1}\n    expect: refused\n    says: [EBUSY, EINVAL]",),
    ),
    "refused for another reason": (
        1,
        dict.fromkeys(("arm64", "riscv64"), Verdict.FAIL),
        "acpi-dimm",
        ("offline: {boot: true, first: 1}\n    expect: refused\n    says: ENOMEM",),
    ),
    "refused": (
        1,
        dict.fromkeys(("arm64", "riscv64"), Verdict.REFUSED),
        "acpi-dimm",
        ("offline: {boot: true, first: 1}",),
    ),
    "not refused": (
        1,
        dict.fromkeys(("arm64", "riscv64"), Verdict.FAIL),
        "acpi-dimm",
        (
            DIMM,
            "online: {device: dimm0, type: movable}",
            "offline: {device: dimm0}\n    expect: refused\n    says: EBUSY",
        ),
    ),
    "not refused by QEMU": (
        1,
        dict.fromkeys(("arm64", "riscv64"), Verdict.INFRA),
        "acpi-dimm",
        (f"{DIMM}\n    expect: qemu-refused\n    says: usable range",),
    ),
    "refused by QEMU for another reason": (
        1,
        dict.fromkeys(("arm64", "riscv64"), Verdict.INFRA),
        "acpi-dimm",
        ("plug-dimm: {id: dimm0, size: 256M, address: 64T}\n    expect: qemu-refused\n    says: conflicts with",),
    ),
    "unable": (1, {"arm64": Verdict.SKIPPED}, "folded-hugetlb", ("check: {}",)),
    "unable elsewhere": (1, {"riscv64": Verdict.SKIPPED}, "node-without-cpu", ("check: {}",)),
}


def scenario(kind: str, folder: Path) -> Scenario:
    _, _, needs, steps = KINDS[kind]
    path = folder / f"{kind.replace(' ', '-')}.yaml"
    lines = "".join(f"  - {step}\n" for step in steps)
    path.write_text(f"name: {path.stem.lower()}\nneeds: [{needs}]\nguest: {{maxmem: 12G}}\nsteps:\n{lines}")
    return read_scenario(path)


def test_every_run_comes_to_its_own_verdict(
    memhp_guest_spec: GuestSpec,
    memhp_artifacts: Parts,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_fault: Callable[..., None],
) -> None:
    count, seed = request.config.getoption("memhp_runs"), request.config.getoption("memhp_interrupt_seed")
    dice = random.Random(f"{seed} {memhp_guest_spec.arch}")
    # Each kind at least once, whatever is drawn.
    rest = dice.choices(list(KINDS), [often for often, *_ in KINDS.values()], k=max(0, count - len(KINDS)))
    chosen = [*KINDS, *rest]
    dice.shuffle(chosen)
    known = {kind: scenario(kind, tmp_path) for kind in KINDS}
    options = RunOptions(bundle_dir=tmp_path / "bundles", jobs=2)
    results = run_scenarios([known[kind] for kind in chosen], memhp_guest_spec, options, SilentReporter())
    wanted = [KINDS[kind][1].get(memhp_guest_spec.arch, Verdict.PASS) for kind in chosen]
    wrong = [
        f"{kind}: {result.verdict.value} instead of {verdict.value}: {result.reason} ({result.bundle})"
        for kind, verdict, result in zip(chosen, wanted, results, strict=True)
        if result.verdict is not verdict
    ]
    assert wrong == [], f"{len(wrong)} of {len(chosen)} runs, seed {seed}"
    bundles = [(result, result.bundle) for result in results if result.bundle is not None]
    assert [told for result, bundle in bundles for told in disagreements(result, bundle)] == []
    assert all(result.facts["restored"] for result in results if result.verdict is not Verdict.SKIPPED)
    tally = collections.Counter(result.verdict.value for result in results)
    for verdict, times in sorted(tally.items()):
        record_fault(f"{times} runs", memhp_guest_spec.arch, "-", verdict, "-")
