# SPDX-License-Identifier: GPL-2.0-or-later
"""Verbs as records: their arguments, and how a plan accepts or refuses steps before any guest starts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config.arguments import parameters
from harness.config.guest import GuestSpec
from harness.errors import UnsupportedError
from harness.guest.loads import LOADS
from harness.qemu.devices.virtio_mem import VirtioMemSpec
from harness.qemu.devices.virtio_pmem import VirtioPmemSpec
from harness.scenarios.file import parse_step
from harness.scenarios.requirements import REQUIREMENTS
from harness.scenarios.steps import Step, require_options
from harness.scenarios.verbs import VERBS
from harness.scenarios.verbs.blocks import OfflineVerb, OnlineVerb
from harness.scenarios.verbs.dimm import PlugDimmVerb
from harness.scenarios.verbs.fault import KmemFaultVerb
from harness.scenarios.verbs.load import LoadVerb
from harness.scenarios.verbs.memory import HoldVerb, ReleaseVerb, TouchVerb
from harness.scenarios.verbs.plan import Impossible, Plan, PlannedDevice
from harness.scenarios.verbs.plugging import UnplugVerb
from harness.scenarios.verbs.pmem import PlugPmemVerb
from harness.scenarios.verbs.verb import Verb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb, ResizeVerb
from harness.units import GIB, MIB


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_record_holds_together(verb: type[Verb]) -> None:
    assert set(verb.needs) <= set(REQUIREMENTS)
    assert all(known.argument.label for known in parameters(verb).values())


def verbs_below(kind: type[Verb]) -> Iterator[type[Verb]]:
    """The classes of harness/ below ``kind`` that have a name of their own."""
    for below in kind.__subclasses__():
        if "name" in vars(below) and below.__module__.startswith("harness."):
            yield below
        yield from verbs_below(below)


def test_no_verb_hides_another() -> None:
    """Of two with one name only the last would be in VERBS; one that no group has would be in no list at all."""
    # Of each class there are two until the garbage is collected: the one before slots=True.
    assert {(verb.name, verb.__name__) for verb in verbs_below(Verb)} == {
        (name, verb.__name__) for name, verb in VERBS.items()
    }


@pytest.mark.parametrize("kind", LOADS)
def test_every_parameter_of_a_load_can_be_given(kind: str) -> None:
    given = {name: 2 * MIB if what == "size" else 1 for name, what in LOADS[kind].parameters.items()}
    words = "".join(f", {name}: {value}" for name, value in given.items())
    step = parse_step(f"- load: {{id: x, kind: {kind}{words}}}", Path("line"))
    assert isinstance(step, Step) and isinstance(step.args, LoadVerb)
    assert step.args.given == given
    step.args.follow(Plan(GuestSpec.default("arm64")))


def test_a_load_has_the_parameters_of_its_kind_alone() -> None:
    with pytest.raises(Impossible, match=r"^size: a load of the kind ptdump has no 'size'"):
        LoadVerb("x", "ptdump", size=MIB).follow(Plan(GuestSpec.default("arm64")))


def test_a_load_takes_a_kernel_with_its_options() -> None:
    step = Step(LoadVerb("x", "ptdump"))
    require_options([step], None)
    with pytest.raises(UnsupportedError, match="CONFIG_PTDUMP_DEBUGFS"):
        require_options([step], {"DEBUG_FS": "y"})


def test_a_size_is_a_number_of_bytes_all_the_way() -> None:
    step = parse_step("- plug-virtio-mem: {id: v, max: 2G, requested: 512M}", Path("line"))
    assert isinstance(step, Step)
    assert step.args == PlugVirtioMemVerb("v", 2 * GIB, requested=512 * MIB)
    plan = Plan(GuestSpec.default("arm64"))
    step.follow(plan)
    assert plan.devices == {"v": PlannedDevice(VirtioMemSpec, 2 * GIB, 2 * MIB, 512 * MIB)}


def test_a_plan_says_no_and_stays_as_it_was() -> None:
    plan = Plan(GuestSpec.default("arm64"))
    PlugDimmVerb("d", GIB).follow(plan)
    HoldVerb("x", "d").follow(plan)
    before = copy.deepcopy(plan)
    for args, argument, problem in (
        (PlugDimmVerb("d", GIB), "id", "device id 'd' is used twice"),
        (PlugDimmVerb("e", 100 * MIB), "size", "100M is not a multiple of 128M"),
        (ResizeVerb("d", 0), "id", "'d' is a pc-dimm, this takes a virtio-mem"),
        (HoldVerb("x", "d"), "id", "memory is already held as 'x'"),
        (OnlineVerb(), None, "takes either a device or blocks or boot memory"),
        (KmemFaultVerb("d"), "id", "'d' is a pc-dimm, this takes persistent memory"),
    ):
        with pytest.raises(Impossible) as caught:
            args.follow(plan)
        assert (caught.value.argument, caught.value.problem) == (argument, problem)
        assert caught.value.exit_status == 2
    assert plan == before


def test_what_is_refused_leaves_a_device_where_it_is() -> None:
    plan = Plan(GuestSpec.default("arm64"))
    PlugDimmVerb("d", GIB).follow(plan, "refused")
    UnplugVerb("d").follow(plan, "refused")
    assert "d" in plan.devices
    PlugDimmVerb("e", 64 * GIB).follow(plan, "qemu-refused")
    assert "e" not in plan.devices


def test_what_nobody_unplugs_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(GuestSpec.default("arm64"))
    PlugPmemVerb("p", GIB).follow(plan)
    monkeypatch.setattr(VirtioPmemSpec, "unplugs", "nobody")
    with pytest.raises(Impossible, match=r"^id: nobody can unplug a virtio-pmem") as caught:
        UnplugVerb("p").follow(plan)
    assert caught.value.hint == "leave it, or expect: qemu-refused"
    UnplugVerb("p").follow(plan, "qemu-refused")
    assert "p" in plan.devices


def test_who_names_the_same_thing_is_not_done_at_the_same_time() -> None:
    online, unplug = OnlineVerb("d"), UnplugVerb("d")
    online.require_beside([], [unplug])
    with pytest.raises(Impossible, match="two parallel steps use 'd'"):
        unplug.require_beside([online], [])
    # Held pages have their own namespace of ids.
    ReleaseVerb("d").require_beside([online], [])
    TouchVerb(size=MIB).require_beside([TouchVerb(size=MIB)], [])
    placed = PlugDimmVerb("e", GIB, slot=1, address=4 * GIB)
    placed.require_beside([unplug], [])
    with pytest.raises(Impossible, match="its place depends on the order of parallel steps"):
        PlugDimmVerb("e", GIB, slot=1).require_beside([unplug], [])


def test_needs_and_titles_follow_from_the_arguments() -> None:
    dimm = PlugDimmVerb("d", GIB, node=1, backing="hugetlb-2M")
    assert dimm.requirements() == ("acpi-dimm", "acpi-node", "host-hugetlb-2M")
    assert dimm.title("refused") == "plug-dimm d 1G node=1 backing=hugetlb-2M (refused)"
    assert OfflineVerb(boot=True, last=1, attempts=3).title() == "offline boot memory last=1 attempts=3"
    assert TouchVerb(device="d", size=16 * MIB).title() == "touch d 16M"
    assert type(dimm) is VERBS["plug-dimm"]
