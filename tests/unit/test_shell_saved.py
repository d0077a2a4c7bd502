# SPDX-License-Identifier: GPL-2.0-or-later
"""A session saved as a scenario file, a bundle repeated as a run, and a model turned into a restored QEMU's devices."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.arch import arch_named
from harness.config.guest import GuestSpec, NodeConfig, load_guest
from harness.config.guest_parts import KernelImage, QemuBinary
from harness.config.own_build import OwnBuild
from harness.errors import UnsupportedError, UsageError
from harness.model.devices.dimm import Dimm
from harness.model.devices.virtio_mem import VirtioMem
from harness.model.devices.virtio_pmem import VirtioPmem
from harness.qemu.cmdline import Channels, command_line
from harness.qemu.machine_spec import MachineSpec, NodeSpec
from harness.scenarios.file import parse_step, read_scenario
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import Recorder
from harness.scenarios.replay import changed_parts, guest_from_json, guest_to_json, read_replay
from harness.scenarios.steps import Repeat
from harness.shell.saved import Story, expects, scenario_name
from harness.shell.snapshots import devices_of
from harness.units import GIB, MIB, AddrRange


def parts_of(kernel: KernelImage) -> Any:
    """A guest's parts: this file stands for QEMU and for the guest root."""
    return SimpleNamespace(
        kernel=kernel, qemu=SimpleNamespace(argv=("loader", __file__)), root=SimpleNamespace(initrd=Path(__file__))
    )


def story_of(spec: GuestSpec, *steps: tuple[str, Outcome]) -> Story:
    story = Story(spec, "6.12.0\x1b[0m")
    for text, outcome in steps:
        story.add(text, parse_step(text, Path("line")), outcome)
    return story


def test_a_story_is_read_back_as_it_was(tmp_path: Path) -> None:
    spec = GuestSpec.default("arm64").with_fields(
        {"memory": 2 * GIB, "nodes": (NodeConfig(GIB), NodeConfig(GIB)), "cmdline": 'a="b c"', "boot": "dt"}
    )
    kept = Outcome()
    for index in (8, 9, 8):
        kept.refuse(f"memory{index}: 'EBUSY' \x1b")
    story = story_of(
        spec,
        ("- plug-virtio-mem: {id: vmem0, max: 1G}", Outcome()),
        ("- offline: {boot: true, first: 1}", kept),
        ("- {unplug: {id: vmem0}, expect: refused, says: busy}", kept),
    )
    story.remark("ssh")
    path = tmp_path / "my story.yaml"
    story.save(path)
    text = path.read_text()
    assert "\x1b" not in text and "# omitted: ssh" in text
    scenario = read_scenario(path)
    assert scenario.name == "my-story"
    assert [(step.verb, step.expect, step.says) for step in scenario.steps] == [
        ("plug-virtio-mem", "done", ()),
        ("offline", "refused", ("memory8: 'EBUSY' ", "memory9: 'EBUSY' ")),
        ("unplug", "refused", ("busy",)),
    ]
    assert scenario.guest == {"memory": 2 * GIB, "nodes": spec.nodes, "cmdline": spec.cmdline, "boot": "dt"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- unplug: {id: d}", False),
        ("- unplug: {id: d}\n  expect: done", True),
        ("- {unplug: {id: d}, expect: refused, says: busy}", True),
        ("- {unplug: {id: d}, expect: {arm64: refused}, says: busy}", True),
        ("- parallel: [{touch: {size: 2M}}, {unplug: {id: d}}]", False),
    ],
)
def test_a_step_may_say_how_it_should_end(text: str, expected: bool) -> None:
    step = parse_step(text, Path("line"))
    assert not isinstance(step, Repeat) and expects(text, step) is expected


def test_an_empty_story_looks_and_a_cut_one_forgets(tmp_path: Path) -> None:
    story = story_of(GuestSpec.default("riscv64"))
    mark = story.mark
    story.add("- touch: {size: 64M}", parse_step("- touch: {size: 64M}", Path("line")), Outcome())
    story.cut(mark)
    (tmp_path / "x.yaml").write_text(story.text("x"))
    assert [step.verb for step in read_scenario(tmp_path / "x.yaml").steps] == ["check"]
    assert scenario_name(Path(".a b")) == "session.a-b"
    with pytest.raises(UsageError, match="cannot write"):
        story.save(tmp_path / "no" / "x.yaml")


def test_devices_of_the_command_line_are_part_of_a_story_and_of_a_bundle(tmp_path: Path) -> None:
    text = "[{plug-dimm: {id: dimm0, size: 1G, slot: 2}}, {plug-virtio-mem: {id: v, max: 2G, requested: 256M}}]"
    (tmp_path / "guest.yaml").write_text(f"arch: arm64\ndevices: {text}\n")
    spec = load_guest(tmp_path / "guest.yaml")
    story_of(spec).save(tmp_path / "story.yaml")
    assert read_scenario(tmp_path / "story.yaml").guest == {"devices": spec.devices}
    parts = parts_of(KernelImage(tmp_path / "guest.yaml", "a file", None, None, None))
    kept = json.loads(json.dumps(guest_to_json(spec, parts)))["spec"]
    assert guest_from_json(kept) == spec


def test_how_a_tree_was_built_is_part_of_what_is_run_again(tmp_path: Path) -> None:
    tree = {"kernel": "/linux", "kernel_options": ("X=m", "LOCALVERSION=-a b"), "build_dir": Path("/obj"), "llvm": True}
    spec = GuestSpec.default("arm64").with_fields(
        {**tree, "own_config": True, "modules": Path("/m"), "qemu": "debian:trixie-backports"}
    )
    parts = parts_of(KernelImage(Path(__file__), "a file", None, None, None))
    kept = json.loads(json.dumps(guest_to_json(spec, parts)))["spec"]
    assert guest_from_json(kept) == spec and guest_from_json(kept).explicit == spec.explicit
    for name in ("kernel_options", "build_dir", "llvm", "own_config", "modules"):
        del kept[name]
    plain = guest_from_json(kept)
    assert (plain.kernel, plain.build, plain.modules) == ("/linux", OwnBuild(), None), "a bundle of an older memhp"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    image = tmp_path / "Image"
    image.write_bytes(b"kernel")
    spec = GuestSpec.default("arm64").with_fields({"kernel": str(image), "slots": 4})
    parts = parts_of(KernelImage(image, "a file", None, None, None))
    directory = tmp_path / "bundle"
    directory.mkdir()
    details = {"seed": 7, "rounds": 5, "start": "cold", **guest_to_json(spec, parts)}
    (directory / "run.json").write_text(json.dumps(details))
    (directory / "scenario.yaml").write_text("name: again\nsteps:\n  - check: {}\n")
    return directory


def test_a_bundle_is_run_again_as_it_was(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = read_replay(bundle)
    assert (replay.scenario.name, replay.seed, replay.rounds, replay.start) == ("again", 7, 5, "cold")
    assert replay.guest.slots == 4 and replay.guest.explicit == {"kernel", "slots"}
    image = bundle.parent / "Image"
    parts = parts_of(KernelImage(image, "a file", None, None, None))
    assert changed_parts(replay, replay.guest, parts, given=()) == []
    image.write_bytes(b"another")
    with pytest.raises(UsageError, match="the kernel has changed since"):
        changed_parts(replay, replay.guest, parts, given=("qemu",))
    assert changed_parts(replay, replay.guest, parts, given=("kernel",)) == [f"the kernel: {image}"]


def test_another_qemu_or_initrd_than_that_of_the_bundle_is_told(bundle: Path, tmp_path: Path) -> None:
    replay, image = read_replay(bundle), KernelImage(bundle.parent / "Image", "a file", None, None, None)
    (other := tmp_path / "other").write_bytes(b"x")
    parts = parts_of(image)
    parts.qemu.argv = ("loader", str(other))
    assert changed_parts(replay, replay.guest, parts, given=()) == [f"QEMU: {other}"]
    for changes in ({"root": SimpleNamespace(initrd=other)}, {"kernel": dataclasses.replace(image, modules=other)}):
        parts = SimpleNamespace(**{**vars(parts_of(image)), **changes})
        assert changed_parts(replay, replay.guest, parts, given=()) == ["the initrd"]
    with_own = replay.guest.with_fields({"initrd": other})
    assert changed_parts(replay, with_own, parts_of(image), given=("initrd",)) == ["the initrd"]
    details = json.loads((bundle / "run.json").read_text())
    del details["qemu"], details["initrd"]
    (bundle / "run.json").write_text(json.dumps(details))
    assert changed_parts(read_replay(bundle), with_own, parts, given=()) == [], "a bundle of an older memhp"


def test_what_is_no_bundle_cannot_be_run_again(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a bundle: run\.json"):
        read_replay(tmp_path / "nothing")
    (bundle / "scenario.yaml").write_text("")
    with pytest.raises(UsageError, match="has no scenario to run again"):
        read_replay(bundle)
    details = json.loads((bundle / "run.json").read_text())
    spec = {**details["spec"], "slots": 4000}
    for broken in ({}, {**details, "spec": spec}, {**details, "kernel": 1}, {**details, "start": "warm"}):
        (bundle / "run.json").write_text(json.dumps(broken))
        with pytest.raises(UsageError, match="does not describe its guest"):
            read_replay(bundle)
    with pytest.raises(KeyError):
        guest_from_json({"arch": "arm64"})


def test_devices_are_restored_where_they_were_and_of_what_they_were() -> None:
    dimm = Dimm("dimm0", AddrRange.sized(4 * GIB, GIB), 1, 3, True)
    vmem = VirtioMem("v", AddrRange.sized(8 * GIB, 2 * GIB), 2, "rp1", 0, 2 * MIB, 128 * MIB, 2 * MIB, GIB)
    model: Any = SimpleNamespace(devices={"dimm0": dimm, "v": vmem})
    machine = MachineSpec(
        arch=arch_named("arm64"),
        qemu=QemuBinary(("qemu",), None, "test", "10"),
        kernel=Path("Image"),
        boot="dt",
        maxmem=16 * GIB,
        slots=8,
        nodes=(NodeSpec(GIB, (0, 1)), NodeSpec(0)),
        cold_devices=devices_of(model, {"dimm0": (("hugetlb", "on"), ("hugetlbsize", "2M")), "v": ()}),
    )
    argv = command_line(machine, Channels(qmp=3, console=4, console_log=Path("log"), incoming=True))
    assert [word for word in argv if "mem-dimm0" in word or "mem-v" in word] == [
        "memory-backend-memfd,id=mem-dimm0,size=1G,share=on,hugetlb=on,hugetlbsize=2M",
        "pc-dimm,id=dimm0,memdev=mem-dimm0,node=1,slot=3,addr=0x100000000",
        "memory-backend-memfd,id=mem-v,size=2G,share=on",
        "virtio-mem-pci,id=v,memdev=mem-v,bus=rp1,requested-size=1G,block-size=2M,node=0,memaddr=0x200000000",
    ]
    pmem = VirtioPmem("p", AddrRange.sized(4 * GIB, GIB), 2, "rp0", 0, True)
    with pytest.raises(UnsupportedError, match="cannot save the virtio-pmem device p\n  hint: unplug p first"):
        devices_of(SimpleNamespace(devices={"p": pmem}), {"p": ()})  # type: ignore[arg-type]


def test_a_boot_that_was_undone_is_put_aside_with_its_step(tmp_path: Path) -> None:
    for name in ("states/000", "states/001", "states/002", "boots/002", "boots/001"):
        (tmp_path / name).mkdir(parents=True)
    Recorder(tmp_path).undo(1)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert left == ["boots/001", "states/000", "states/001", "undone-1/002", "undone-1/boots"]
    assert (tmp_path / "undone-1/boots/002").is_dir()
