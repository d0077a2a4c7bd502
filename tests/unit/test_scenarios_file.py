# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenario files: their content, and every mistake that is found before a guest starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.guest import GuestSpec
from harness.errors import ConfigError, UsageError
from harness.qemu.devices.dimm import DimmSpec
from harness.scenarios.file import Scenario, known_scenarios, load_scenario, read_scenario
from harness.scenarios.steps import Step, count_steps, flat
from harness.scenarios.verbs.blocks import OnlineVerb
from harness.scenarios.verbs.load import LoadVerb
from harness.scenarios.verbs.virtio_mem import PlugVirtioMemVerb
from harness.units import GIB, MIB

HEAD = "name: s\nguest: {memory: 1G, maxmem: 4G, slots: 2}\nsteps:\n"


def read(tmp_path: Path, steps: str, head: str = HEAD) -> Scenario:
    path = tmp_path / "s.yaml"
    path.write_text(head + steps)
    return read_scenario(path)


@pytest.mark.parametrize(
    "name", ["ram0", "rp1", "mem-x", "net0", "nic0", "rng0", "random0", "qmp", "console", "pcie.0", "virtio-0"]
)
def test_ids_that_the_machine_takes_are_refused_by_both_rooms(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        DimmSpec(name, GIB).check()
    with pytest.raises(
        ConfigError, match=r"s\.yaml:4: steps\[0\]\.plug-dimm\.id: device id .* is taken by the machine"
    ):
        read(tmp_path, f"  - plug-dimm: {{id: {name}, size: 1G}}\n")


def test_a_step_has_every_argument_of_its_verb(tmp_path: Path) -> None:
    scenario = read(tmp_path, "  - plug-virtio-mem: {id: v, max: 2G, requested: 512M}\n  - online: {device: v}\n")
    plug, online = scenario.steps
    assert isinstance(plug, Step) and isinstance(online, Step)
    assert plug.args == PlugVirtioMemVerb("v", 2 * GIB, 512 * MIB, block=2 * MIB, node=0, backing=None)
    assert online.args == OnlineVerb("v", boot=False, blocks=None, first=None, last=None, type="movable")
    assert (plug.title, online.title) == ("plug-virtio-mem v 2G requested=512M", "online v movable")
    assert (plug.line, plug.key, plug.expect) == (4, "steps[0].plug-virtio-mem", "done")
    assert scenario.text.startswith("name: s\n")


def test_needs_follow_from_the_verbs(tmp_path: Path) -> None:
    steps = "  - repeat: {times: 2, steps: [{plug-pmem: {id: p, size: 1G}}, {unplug: {id: p}}]}\n"
    assert read(tmp_path, steps, "name: s\nneeds: [dax-kmem]\nsteps:\n").needs == ("dax-kmem", "virtio-pmem")
    placed = "  - plug-virtio-mem: {id: v, max: 1G, node: 1}\n  - plug-virtio-mem: {id: w, max: 1G, node: 0}\n"
    two = "name: s\nguest: {memory: 1G, nodes: [{memory: 512M}, {memory: 512M}]}\nsteps:\n"
    assert read(tmp_path, placed, two).needs == ("acpi-node", "virtio-mem")
    refused = "  - plug-dimm: {id: d, size: 1G}\n    expect: refused\n    says: _OST\n"
    assert read(tmp_path, refused).needs == ()


def test_repeat_counts_and_titles(tmp_path: Path) -> None:
    inner = "[{plug-dimm: {id: d, size: 1G}}, {unplug: {id: d}}, {online: {blocks: [8, 9]}}]"
    [step] = read(tmp_path, f"  - repeat: {{times: 5, steps: {inner}}}\n").steps
    assert (count_steps([step]), step.title) == (15, "repeat 5 times")
    assert [one.title for one in flat([step])] == ["plug-dimm d 1G", "unplug d", "online blocks=8,9 movable"]


def test_endings_may_differ_between_architectures(tmp_path: Path) -> None:
    steps = (
        "  - {offline: {boot: true, last: 1}, expect: {arm64: refused}, says: EPERM,\n"
        "     bug: {riscv64: add-pages-not-undone}}\n"
        "  - repeat: {times: 1, steps: [{check: {}, bug: [add-pages-not-undone, pmem-memmap-runs-out]}]}\n"
    )
    scenario = read(tmp_path, steps)
    [arm, again] = scenario.steps_on("arm64")
    [riscv, _] = scenario.steps_on("riscv64")
    assert (arm.expect, arm.bugs, riscv.expect, riscv.bugs) == ("refused", (), "done", ("add-pages-not-undone",))
    assert (arm.says, riscv.says) == (("EPERM",), ())
    assert (arm.title, riscv.title) == ("offline boot memory last=1 (refused)", "offline boot memory last=1")
    assert next(flat([again])).bugs == ("add-pages-not-undone", "pmem-memmap-runs-out")


def test_the_refusal_that_is_meant_may_differ_between_architectures(tmp_path: Path) -> None:
    step = "  - {offline: {boot: true, last: 1}, expect: refused, says: {arm64: EPERM, riscv64: [EINVAL, EBUSY]}}\n"
    scenario = read(tmp_path, step)
    [[arm], [riscv]] = scenario.steps_on("arm64"), scenario.steps_on("riscv64")
    assert isinstance(arm, Step) and isinstance(riscv, Step)
    assert (arm.says, riscv.says) == (("EPERM",), ("EINVAL", "EBUSY"))


def test_addresses_may_be_at_the_top(tmp_path: Path) -> None:
    [step] = read(tmp_path, "  - plug-dimm: {id: d, size: 1G, address: top}\n").steps
    assert step.title == "plug-dimm d 1G address=top"


def test_what_is_to_fail_is_needed_all_the_same(tmp_path: Path) -> None:
    scenario = read(
        tmp_path, "  - {plug-dimm: {id: odd, size: 130M}, expect: failed, says: unaligned}\n  - unplug: {id: odd}\n"
    )
    assert (scenario.needs, scenario.steps[0].expect) == (("acpi-dimm",), "failed")


def test_what_is_refused_may_be_impossible(tmp_path: Path) -> None:
    read(
        tmp_path,
        "  - plug-virtio-mem: {id: v, max: 1G}\n"
        "  - {resize: {id: v, to: 3M}, expect: qemu-refused, says: multiples}\n"
        "  - {resize: {id: v, to: 2G}, expect: qemu-refused, says: exceed}\n"
        "  - {plug-dimm: {id: big, size: 64G}, expect: qemu-refused, says: [range, space]}\n"
        "  - {plug-dimm: {id: odd, size: 130M}, expect: refused, says: whole}\n",
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("  []\n", "s.yaml:4: steps: no steps\n  hint: add at least one step"),
        ("  - plug-dim: {}\n", "s.yaml:4: steps[0]: unknown key 'plug-dim'\n  hint: did you mean 'plug-dimm'?"),
        ("  - {expect: done}\n", "s.yaml:4: steps[0]: a step needs exactly one verb, found none"),
        ("  - {check: {}, unplug: {id: x}}\n", "steps[0]: a step needs exactly one verb, found check and unplug"),
        ("  - check: {now: 1}\n", "steps[0].check.now: unknown key 'now'\n  hint: this verb takes no arguments"),
        ("  - check:\n", "steps[0].check: expected a mapping, found nothing"),
        ("  - plug-dimm: {size: 1G}\n", "s.yaml:4: steps[0].plug-dimm: key 'id' is missing"),
        ("  - plug-dimm: {id: d}\n", "s.yaml:4: steps[0].plug-dimm: key 'size' is missing"),
        ("  - plug-dimm: {id: 9d, size: 1G}\n", "plug-dimm.id: '9d' cannot be a device id\n  hint: a letter"),
        ("  - plug-dimm: {id: d, size: 1G, sise: 2}\n", "steps[0].plug-dimm: unknown key 'sise'"),
        ("  - plug-dimm: {id: d, size: big}\n", "plug-dimm.size: 'big' is not a size"),
        (
            "  - plug-dimm: {id: d, size: 100M}\n",
            "plug-dimm.size: 100M is not a multiple of 128M\n  hint: nearest: 128M",
        ),
        ("  - plug-dimm: {id: d, size: 1G, address: 64M}\n", "plug-dimm.address: 64M is not a multiple of 128M"),
        (
            "  - {plug-dimm: {id: d, size: 3M}, expect: refused, says: x}\n",
            "plug-dimm.size: 3M is not a multiple of 2M",
        ),
        (
            "  - plug-dimm: {id: d, size: 4G}\n",
            "plug-dimm.size: 4G does not fit: 3G of the 3G for memory devices are left\n",
        ),
        ("  - plug-dimm: {id: d, size: 4G}\n", "hint: set the guest's maxmem to 5G or more"),
        ("  - plug-dimm: {id: d, size: 1G, node: 1}\n", "plug-dimm.node: there is no node 1: the guest has one node"),
        ("  - plug-dimm: {id: d, size: 1G, slot: 2}\n", "plug-dimm.slot: there is no slot 2: the guest has 2\n"),
        ("  - plug-virtio-mem: {id: v, max: 3M}\n", "plug-virtio-mem.max: 3M is not a multiple of 2M"),
        ("  - plug-virtio-mem: {id: v, max: 1G, block: 3M}\n", "plug-virtio-mem.block: 3M is not a power of two"),
        ("  - plug-virtio-mem: {id: v, max: 1G, requested: 2G}\n", "requested: 2G is above the device's maximum of 1G"),
        ("  - plug-virtio-mem: {id: v, max: 1G, requested: 1M}\n", "requested: 1M is not a multiple of 2M"),
        ("  - unplug: {id: d}\n", "s.yaml:4: steps[0].unplug.id: no device 'd' is plugged here\n  hint: known: none"),
        (
            "  - online: {}\n",
            "steps[0].online: takes either a device or blocks or boot memory\n  hint: device",
        ),
        ("  - online: {blocks: []}\n", "online.blocks: an empty list of memory blocks\n  hint: name at least one"),
        ("  - online: {blocks: [3, 3]}\n", "online.blocks: duplicate memory block"),
        (
            "  - online: {blocks: [3], first: 1}\n",
            "online.first: it counts the blocks of a device, but no device is named",
        ),
        (
            "  - online: {blocks: [3], type: moveable}\n",
            "online.type: 'moveable' is not one of kernel, movable, default",
        ),
        (
            "  - auto-online: {policy: 'on'}\n",
            "policy: 'on' is not one of offline, online, online_kernel, online_movable",
        ),
        ("  - touch: {size: 64G}\n", "touch.size: 64G is more than the guest has"),
        (
            "  - {check: {}, expect: refuse}\n",
            "expect: 'refuse' is not one of done, refused, failed, qemu-refused\n  hint: did you",
        ),
        ("  - {repeat: {times: 1, steps: [{check: {}}]}, expect: refused}\n", "a repeat cannot have an expectation"),
        ("  - {repeat: {times: 1, steps: [{check: {}}]}, bug: [x]}\n", "bug: a repeat cannot have an expectation"),
        (
            "  - {check: {}, expect: failed}\n",
            "check cannot be expected to fail\n  hint: use it with plug-dimm, online, offline, kmem-fault",
        ),
        (
            "  - {unplug: {id: d}, expect: refused}\n",
            "s.yaml:4: steps[0].expect: which refusal is meant?\n  hint: add says: and a part of what QEMU, the",
        ),
        ("  - {unplug: {id: d}, expect: refused, says: {arm64: x}}\n", "expect: which refusal is meant?"),
        ("  - {unplug: {id: d}, expect: refused, says: []}\n", "says: an empty list\n  hint: name at least one text"),
        ("  - {unplug: {id: d}, expect: refused, says: ''}\n", "says: expected text, found empty text"),
        (
            "  - {unplug: {id: d}, says: EBUSY}\n",
            "says: no refusal is expected\n  hint: add expect: refused, failed or",
        ),
        ("  - {check: {}, expect: {arm: refused}}\n", "expect: unknown key 'arm'\n  hint: did you mean 'arm64'?"),
        ("  - {check: {}, expect: {riscv64: no}}\n", "s.yaml:4: steps[0].expect.riscv64: 'no' is not one of done"),
        ("  - {check: {}, bug: no-bug}\n", "s.yaml:4: steps[0].bug: 'no-bug' is not one of page-table-page-bug-on, "),
        ("  - {check: {}, bug: [add-pages-not-undne]}\n", "did you mean 'add-pages-not-undone'?"),
        (
            "  - {check: {}, bug: {arm64: [add-pages-not-undone, add-pages-not-undone]}}\n",
            "bug.arm64: duplicate bug",
        ),
        (
            "  - load: {id: writer, kind: online}\n  - offline: {boot: true}\n",
            "steps[1].offline: the load 'writer' might bring a block online again\n  hint: unload it first",
        ),
        ("  - {check: {}, breaks: [SEC-1]}\n", "unknown key 'breaks'"),
        ("  - offline: {boot: true, blocks: [8]}\n", "offline: takes either a device or blocks or boot memory"),
        ("  - plug-dimm: {id: d, size: 1G, address: bottom}\n", "plug-dimm.address: 'bottom' is not a size"),
        (
            "  - repeat: {times: 3, soak: true, steps: [{check: {}}]}\n",
            "repeat.soak: 3 rounds are too few for a soak\n  hint: repeat it 4 times or more",
        ),
        ("  - repeat: {times: 0, steps: [{check: {}}]}\n", "repeat.times: 0 is too small\n  hint: at least 1"),
        (
            "  - repeat: {times: 400, steps: [{repeat: {times: 400, steps: [{check: {}}]}}]}\n",
            "160000 steps once every repeat is unrolled\n  hint: at most 100000",
        ),
    ],
)
def test_wrong_steps(tmp_path: Path, steps: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, steps)
    assert message in str(caught.value)


def test_loads_have_the_parameters_of_their_kind(tmp_path: Path) -> None:
    steps = "  - load: {id: dump, kind: ptdump, cpus: 2}\n  - unload: {id: dump}\n"
    start, stop = flat(read(tmp_path, steps).steps)
    assert isinstance(start.args, LoadVerb)
    assert (start.args.cpus, start.title, stop.title) == (2, "load dump ptdump cpus=2", "unload dump")


def test_steps_side_by_side_are_one_step(tmp_path: Path) -> None:
    inner = "[{unplug: {id: a}}, {online: {device: b}}, {plug-dimm: {id: c, size: 128M, address: 3G, slot: 2}}]"
    steps = (
        "  - plug-dimm: {id: a, size: 128M}\n  - plug-dimm: {id: b, size: 128M}\n"
        f"  - parallel: {inner}\n  - unplug: {{id: c}}\n"
    )
    head = "name: s\nguest: {memory: 1G, maxmem: 4G, slots: 4}\nsteps:\n"
    step = read(tmp_path, steps, head).steps[2]
    assert (step.title, count_steps([step])) == (
        "unplug a | online b movable | plug-dimm c 128M slot=2 address=0xc0000000",
        1,
    )


DIMM = "  - plug-dimm: {id: d, size: 1G}\n"
VMEM = "  - plug-virtio-mem: {id: v, max: 1G, requested: 512M}\n"
PMEM = "  - plug-pmem: {id: p, size: 512M}\n"


@pytest.mark.parametrize(
    ("before", "step", "message"),
    [
        (DIMM, DIMM, "s.yaml:5: steps[1].plug-dimm.id: device id 'd' is used twice\n  hint: unplug the first one"),
        (
            DIMM,
            "  - plug-dimm: {id: e, size: 1G, slot: 0}\n  - plug-dimm: {id: f, size: 1G}\n",
            "all 2 memory slots are",
        ),
        (DIMM, "  - unplug: {id: dd}\n", "no device 'dd' is plugged here\n  hint: did you mean 'd'?"),
        (DIMM, "  - resize: {id: d, to: 0}\n", "resize.id: 'd' is a pc-dimm, this takes a virtio-mem"),
        (DIMM, "  - online: {device: d, first: 1, last: 1}\n", "online.last: takes either first or last"),
        (VMEM, "  - resize: {id: v, to: 3M}\n", "s.yaml:5: steps[1].resize.to: 3M is not a multiple of 2M"),
        (
            VMEM,
            "  - resize: {id: v, to: 2G}\n",
            "resize.to: 2G is above the device's maximum of 1G\n  hint: expect: qemu",
        ),
        (
            VMEM,
            "  - unplug: {id: v}\n",
            "unplug.id: QEMU keeps 'v' as long as 512M of it are requested\n  hint: resize it",
        ),
        (
            PMEM,
            "  - kmem: {id: p}\n",
            "kmem.id: 'p' is in raw mode here, kmem takes it from devdax\n  hint: the step before",
        ),
        (PMEM, "  - dax-state: {id: p, state: unplugged}\n", "'p' is in raw mode here, dax-state takes it from kmem"),
        (PMEM, "  - devdax: {id: p}\n", "devdax.id: 'p' is in raw mode here, devdax takes it from kmem"),
        (
            PMEM,
            "  - online: {device: p}\n",
            "online.device: 'p' is in raw mode here: it has no memory blocks\n  hint: make",
        ),
        (PMEM, "  - namespace: {id: p, mode: fsdax}\n", "namespace.mode: 'fsdax' is not one of raw, devdax"),
        (
            "".join(f"  - plug-pmem: {{id: p{number}, size: 2M}}\n" for number in range(4)),
            "  - plug-pmem: {id: last, size: 2M}\n",
            "s.yaml:8: steps[4].plug-pmem: all 4 hot-plug ports for virtio devices are taken\n  hint: set",
        ),
        (
            "  - plug-dimm: {id: e, size: 128M, slot: 1}\n",
            "  - plug-dimm: {id: f, size: 128M, slot: 1}\n",
            "plug-dimm.slot: slot 1 is taken\n  hint: choose another",
        ),
        ("", "  - repeat: {times: 2, steps: [{plug-dimm: {id: d, size: 1G}}]}\n", "device id 'd' is used twice"),
        ("", "  - unload: {id: x}\n", "s.yaml:4: steps[0].unload.id: no load 'x' is running\n  hint: known: none"),
        (
            "",
            "  - release: {id: x}\n",
            "s.yaml:4: steps[0].release.id: no memory is held as 'x'\n  hint: known: none",
        ),
        ("", "  - hold: {id: x, device: d}\n", "steps[0].hold.device: no device 'd' is plugged here"),
        (
            "  - plug-dimm: {id: d, size: 1G}\n  - hold: {id: x, device: d}\n",
            "  - hold: {id: x, device: d}\n",
            "hold.id: memory is already held as 'x'\n  hint: release it first, or choose another id",
        ),
        (
            "  - plug-dimm: {id: d, size: 1G}\n",
            "  - hold: {id: x, device: d, pages: 17}\n",
            "hold.pages: 17 is too large",
        ),
        ("", "  - load: {id: 1x, kind: ptdump}\n", "load.id: '1x' cannot be a load's id\n  hint: a letter, then"),
        ("", "  - load: {id: x, kind: ptdmp}\n", "load.kind: 'ptdmp' is not one of"),
        (
            "",
            "  - load: {id: x, kind: ptdump, cpu: 2}\n",
            "steps[0].load: unknown key 'cpu'\n  hint: did you mean 'cpus'?",
        ),
        (
            "  - load: {id: x, kind: ptdump}\n",
            "  - load: {id: x, kind: ptdump}\n",
            "s.yaml:5: steps[1].load.id: a load 'x' is already running\n  hint: unload it first, or choose another id",
        ),
        ("", "  - parallel: [{check: {}}]\n", "parallel: parallel needs two steps or more"),
        ("", "  - parallel: [{check: {}}, {check: {}}]\n", "steps[0].parallel[0]: check cannot run in parallel"),
        (
            "",
            "  - {parallel: [{touch: {size: 2M}}, {touch: {size: 2M}}], expect: refused}\n",
            "steps[0].expect: parallel steps cannot have an expectation",
        ),
        (
            DIMM,
            "  - parallel: [{touch: {size: 2M}}, {unplug: {id: d}, expect: refused, says: x}]\n",
            "steps[1].parallel[1]: parallel steps cannot have an expectation\n  hint: remove expect and bug",
        ),
        (
            VMEM,
            "  - parallel: [{touch: {size: 2M}}, {resize: {id: v, to: 0, wait: false}}]\n",
            "steps[1].parallel[1]: parallel steps always wait\n  hint: remove wait",
        ),
        (
            DIMM,
            "  - parallel: [{online: {device: d}}, {unplug: {id: d}}]\n",
            "s.yaml:5: steps[1].parallel[1].unplug: two parallel steps use 'd'\n  hint: run them one after",
        ),
        (
            DIMM,
            "  - parallel: [{unplug: {id: d}}, {plug-dimm: {id: e, size: 128M, slot: 1}}]\n",
            "parallel[1].plug-dimm: its place depends on the order of parallel steps\n  hint: give the DIMM an addr",
        ),
    ],
)
def test_steps_that_make_no_sense_after_others(tmp_path: Path, before: str, step: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, before + step)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("steps:\n", "s.yaml:1: key 'name' is missing"),
        ("name: a b\nsteps:\n", "s.yaml:1: name: invalid name 'a b'\n  hint: use letters, digits"),
        ("name: s\nnedes: []\nsteps:\n", "s.yaml:2: unknown key 'nedes'\n  hint: did you mean 'needs'?"),
        ("name: s\nneeds: [kvm]\nsteps:\n", "s.yaml:2: needs[0]: 'kvm' is not one of acpi-dimm"),
        ("name: s\nguest: {kernel: x}\nsteps:\n", "s.yaml:2: guest: unknown key 'kernel'"),
        ("name: s\nguest: {memory: 1M}\nsteps:\n", "s.yaml:2: guest.memory: 1M is too small"),
        ("name: s\nguest: {maxmem: 512M}\nsteps:\n", "s.yaml:2: guest.maxmem: maxmem 512M is below the boot memory 1G"),
        ("name: s\nguest:\n  memory: 20G\nsteps:\n", "s.yaml:3: guest.memory: maxmem 16G is below the boot memory 20G"),
    ],
)
def test_wrong_heads(tmp_path: Path, head: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "  - check: {}\n", head)
    assert message in str(caught.value)


def test_the_users_options_win(tmp_path: Path) -> None:
    scenario = read(tmp_path, DIMM)
    plain = GuestSpec.default("arm64")
    spec = scenario.apply_to(plain)
    assert (spec.memory, spec.maxmem, spec.slots, spec.explicit) == (GIB, 4 * GIB, 2, frozenset())
    spec = scenario.apply_to(plain.with_fields({"memory": 2 * GIB}))
    assert (spec.memory, spec.maxmem) == (2 * GIB, 4 * GIB)


def test_a_device_must_fit_the_guest_that_the_user_chose(tmp_path: Path) -> None:
    scenario = read(tmp_path, DIMM)
    small = GuestSpec.default("arm64").with_fields({"maxmem": 1536 * MIB})
    with pytest.raises(ConfigError, match=r"s\.yaml:4: steps\[0\]\.plug-dimm\.size: 1G does not fit: 512M of the 512M"):
        scenario.apply_to(small)
    large = GuestSpec.default("arm64").with_fields({"memory": 8 * GIB})
    with pytest.raises(ConfigError, match=r"s\.yaml:2: guest\.maxmem: maxmem 4G is below the boot memory 8G"):
        scenario.apply_to(large)


def test_kernel_arguments_of_scenario_and_user_are_joined(tmp_path: Path) -> None:
    scenario = read(tmp_path, "  - check: {}\n", 'name: s\nguest: {cmdline: "a=1"}\nsteps:\n')
    assert scenario.apply_to(GuestSpec.default("arm64").with_fields({"cmdline": "b=2"})).cmdline == "a=1 b=2"


def test_every_scenario_of_the_checkout_loads() -> None:
    assert {"dimm-cycle", "dimm-refused", "virtio-mem-resize", "pmem-kmem"} <= set(known_scenarios())
    for name, path in known_scenarios().items():
        scenario = load_scenario(name)
        assert (scenario.name, scenario.source) == (name, path)
        assert scenario.summary and scenario.needs


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"unknown scenario 'dim-cycle'\n  hint: did you mean 'dimm-cycle'\?"):
        load_scenario("dim-cycle")
    with pytest.raises(ConfigError, match=r"nope\.yaml: cannot be read: No such file"):
        load_scenario("nope.yaml")
    read(tmp_path, "  - check: {}\n")
    assert load_scenario(str(tmp_path / "s.yaml")).name == "s"
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "other.yaml").write_text("name: s\nsteps: [{check: {}}]\n")
    monkeypatch.setenv("MEMHP_CONFIGS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"the scenario is called 's', its file 'other'\n  hint: files below configs"):
        load_scenario("other")
