# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp replay`` of a bundle from somebody else: nothing of the host is used because the bundle says so."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import main
from harness.cli.replay import require_given
from harness.config.cold import DimmArgs
from harness.config.guest import GuestSpec
from harness.config.guest_parts import KernelImage
from harness.errors import ConfigError, UsageError
from harness.scenarios.replay import guest_from_json, guest_to_json, read_replay

BUNDLE = Path("a bundle")


def spec(**fields: object) -> GuestSpec:
    return GuestSpec.default("arm64").with_fields(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kernel": "purpose:7.3+16k", "qemu": "debian:trixie-backports"},
        {"machine_options": ("gic-version=3", "mte=on"), "cpu": "max,lpa2=off", "kernel_options": ("KASAN",)},
    ],
)
def test_names_and_shapes_are_taken_from_a_bundle(fields: dict[str, object]) -> None:
    require_given(BUNDLE, spec(**fields), {})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kernel": "/theirs/Image"}, ["--kernel", "/theirs/Image"]),
        ({"kernel": "/their linux", "build_dir": Path("/o")}, ["--kernel", "/their linux", "--build-dir", "/o"]),
        ({"qemu": "/tmp/x; rm -rf ~"}, ["--qemu", "/tmp/x; rm -rf ~"]),
        ({"modules": Path("/m")}, ["--modules", "/m"]),
        ({"initrd": Path("/i")}, ["--initrd", "/i"]),
        ({"kernel_options": ("KASAN", "X=$(shell id)")}, ["-K", "KASAN", "-K", "X=$(shell id)"]),
        ({"kernel_options": ("INITRAMFS_SOURCE=/etc",)}, ["-K", "INITRAMFS_SOURCE=/etc"]),
        (
            {"machine_options": ("gic-version=3", "dumpdtb=/etc/passwd")},
            ["--machine", "gic-version=3", "--machine", "dumpdtb=/etc/passwd"],
        ),
    ],
)
def test_what_is_of_the_host_must_be_given_again(fields: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError, match="replay only takes from the command line") as caught:
        require_given(BUNDLE, spec(**fields), {})
    assert caught.value.hint is not None
    assert shlex.split(caught.value.hint.partition(": ")[2]) == ["memhp", "replay", str(BUNDLE), *words]
    require_given(BUNDLE, spec(**fields), dict(fields))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "d,file=/etc/passwd"},
        {"id": "ram0"},
        {"size": 1 << 70},
        {"size": -1},
        {"slot": 4096},
        {"address": "top"},
        {"backing": "thp"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_device_of_a_bundle_is_checked_like_one_of_a_file(changes: dict[str, object]) -> None:
    guest = spec(maxmem=4 << 30, slots=2, devices=(DimmArgs("dimm0", 1 << 30),))
    value: Any = json.loads(
        json.dumps(guest_to_json(guest, parts_of(KernelImage(Path(__file__), "", None, None, None))))
    )
    assert guest_from_json(value["spec"]).devices == guest.devices
    value["spec"]["devices"][0]["plug-dimm"].update(changes)
    with pytest.raises((ConfigError, ValueError)):
        guest_from_json(value["spec"])


def parts_of(kernel: KernelImage) -> Any:
    return SimpleNamespace(
        kernel=kernel, qemu=SimpleNamespace(argv=("loader", __file__)), root=SimpleNamespace(initrd=Path(__file__))
    )


def test_a_bundle_starts_no_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, ran = tmp_path / "qemu-system-aarch64", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    image = tmp_path / "Image"
    image.write_bytes(b"kernel")
    parts = parts_of(KernelImage(image, "a file", None, None, None))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    guest = spec(kernel=str(image), qemu=str(program))
    (bundle / "run.json").write_text(json.dumps({"seed": 0, **guest_to_json(guest, parts)}))
    (bundle / "scenario.yaml").write_text("name: again\nsteps:\n  - check: {}\n")
    assert main(["replay", str(bundle), "--kernel", str(image)]) == 2
    assert f"--qemu {program}" in capsys.readouterr().err and not ran.exists()


def test_the_look_of_a_bundle_is_repeated_if_there_is_one_of_that_name(tmp_path: Path) -> None:
    value = guest_to_json(spec(), parts_of(KernelImage(Path(__file__), "", None, None, None)))
    (tmp_path / "scenario.yaml").write_text("name: again\nsteps:\n  - check: {}\n")
    for look, details in (("full", value), ("fast", {**value, "look": "fast"})):
        (tmp_path / "run.json").write_text(json.dumps(details))
        assert read_replay(tmp_path).look == look
    for wrong in ("none", ["fast"], None):
        (tmp_path / "run.json").write_text(json.dumps({**value, "look": wrong}))
        with pytest.raises(UsageError, match="does not describe"):
            read_replay(tmp_path)


@pytest.mark.parametrize("rounds", ["many", [4], {}, -1, 0, 1.5], ids=str)
def test_the_rounds_of_a_bundle_are_checked_like_those_of_the_command_line(rounds: object, tmp_path: Path) -> None:
    value = guest_to_json(spec(), parts_of(KernelImage(Path(__file__), "", None, None, None)))
    (tmp_path / "scenario.yaml").write_text("name: again\nsteps:\n  - check: {}\n")
    (tmp_path / "run.json").write_text(json.dumps({**value, "rounds": 7}))
    assert read_replay(tmp_path).rounds == 7
    (tmp_path / "run.json").write_text(json.dumps({**value, "rounds": rounds}))
    with pytest.raises(UsageError, match="does not describe"):
        read_replay(tmp_path)
