# SPDX-License-Identifier: GPL-2.0-or-later
"""Verbs as records: their arguments, and how a plan accepts or refuses steps before any guest starts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from harness.config.arguments import parameters
from harness.config.cold import DimmArgs, VirtioMemArgs
from harness.config.guest import GuestSpec
from harness.errors import UnsupportedError
from harness.guest.loads import LOADS
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.scenarios.file import parse_step
from harness.scenarios.requirements import REQUIREMENTS
from harness.scenarios.steps import Step, require_options
from harness.scenarios.verbs import VERBS, follow, needs_of, require_beside, title_of, verb_of
from harness.scenarios.verbs.blocks import OfflineArgs, OnlineArgs
from harness.scenarios.verbs.fault import KmemFaultArgs
from harness.scenarios.verbs.load import LoadArgs
from harness.scenarios.verbs.memory import HoldArgs, ReleaseArgs, TouchArgs
from harness.scenarios.verbs.plan import Impossible, Plan, PlannedDevice
from harness.scenarios.verbs.plugging import UnplugArgs
from harness.scenarios.verbs.verb import AnyVerb
from harness.scenarios.verbs.virtio_mem import ResizeArgs
from harness.units import GIB, MIB


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_record_holds_together(verb: AnyVerb) -> None:
    assert set(verb.needs) <= set(REQUIREMENTS)
    assert all(known.argument.label for known in parameters(verb.arguments).values())
    assert [one for one in VERBS.values() if one.arguments is verb.arguments] == [verb]


@pytest.mark.parametrize("kind", LOADS)
def test_every_parameter_of_a_load_can_be_given(kind: str) -> None:
    given = {name: 2 * MIB if what == "size" else 1 for name, what in LOADS[kind].parameters.items()}
    words = "".join(f", {name}: {value}" for name, value in given.items())
    step = parse_step(f"- load: {{id: x, kind: {kind}{words}}}", Path("line"))
    assert isinstance(step, Step) and isinstance(step.args, LoadArgs)
    assert step.args.given == given
    follow(Plan(GuestSpec.default("arm64")), step.args)


def test_a_load_has_the_parameters_of_its_kind_alone() -> None:
    with pytest.raises(Impossible, match=r"^size: a load of the kind ptdump has no 'size'"):
        follow(Plan(GuestSpec.default("arm64")), LoadArgs("x", "ptdump", size=MIB))


def test_a_load_takes_a_kernel_with_its_options() -> None:
    step = Step(LoadArgs("x", "ptdump"))
    require_options([step], None)
    with pytest.raises(UnsupportedError, match="CONFIG_PTDUMP_DEBUGFS"):
        require_options([step], {"DEBUG_FS": "y"})


def test_a_size_is_a_number_of_bytes_all_the_way() -> None:
    step = parse_step("- plug-virtio-mem: {id: v, max: 2G, requested: 512M}", Path("line"))
    assert isinstance(step, Step)
    assert step.args == VirtioMemArgs("v", 2 * GIB, requested=512 * MIB)
    plan = Plan(GuestSpec.default("arm64"))
    step.follow(plan)
    assert plan.devices == {"v": PlannedDevice(VirtioMemSpec, 2 * GIB, 2 * MIB, 512 * MIB)}


def test_a_plan_says_no_and_stays_as_it_was() -> None:
    plan = Plan(GuestSpec.default("arm64"))
    follow(plan, DimmArgs("d", GIB))
    follow(plan, HoldArgs("x", "d"))
    before = copy.deepcopy(plan)
    for args, argument, problem in (
        (DimmArgs("d", GIB), "id", "device id 'd' is used twice"),
        (DimmArgs("e", 100 * MIB), "size", "100M is not a multiple of 128M"),
        (ResizeArgs("d", 0), "id", "'d' is a pc-dimm, this takes a virtio-mem"),
        (HoldArgs("x", "d"), "id", "memory is already held as 'x'"),
        (OnlineArgs(), None, "takes either a device or blocks or boot memory"),
        (KmemFaultArgs("d"), "id", "'d' is a pc-dimm, this takes persistent memory"),
    ):
        with pytest.raises(Impossible) as caught:
            follow(plan, args)
        assert (caught.value.argument, caught.value.problem) == (argument, problem)
        assert caught.value.exit_status == 2
    assert plan == before


def test_what_is_refused_leaves_a_device_where_it_is() -> None:
    plan = Plan(GuestSpec.default("arm64"))
    follow(plan, DimmArgs("d", GIB), "refused")
    follow(plan, UnplugArgs("d"), "refused")
    assert "d" in plan.devices
    follow(plan, DimmArgs("e", 64 * GIB), "qemu-refused")
    assert "e" not in plan.devices


def test_who_names_the_same_thing_is_not_done_at_the_same_time() -> None:
    online, unplug = OnlineArgs("d"), UnplugArgs("d")
    require_beside(online, [], [unplug])
    with pytest.raises(Impossible, match="two parallel steps use 'd'"):
        require_beside(unplug, [online], [])
    # Held pages have their own namespace of ids.
    require_beside(ReleaseArgs("d"), [online], [])
    require_beside(TouchArgs(size=MIB), [TouchArgs(size=MIB)], [])
    placed = DimmArgs("e", GIB, slot=1, address=4 * GIB)
    require_beside(placed, [unplug], [])
    with pytest.raises(Impossible, match="its place depends on the order of parallel steps"):
        require_beside(DimmArgs("e", GIB, slot=1), [unplug], [])


def test_needs_and_titles_follow_from_the_arguments() -> None:
    dimm = DimmArgs("d", GIB, node=1, backing="hugetlb-2M")
    assert needs_of(dimm) == ("acpi-dimm", "acpi-node", "host-hugetlb-2M")
    assert title_of(dimm, "refused") == "plug-dimm d 1G node=1 backing=hugetlb-2M (refused)"
    assert title_of(OfflineArgs(boot=True, last=1, attempts=3)) == "offline boot memory last=1 attempts=3"
    assert title_of(TouchArgs(device="d", size=16 * MIB)) == "touch d 16M"
    assert verb_of(dimm) is VERBS["plug-dimm"]
