# SPDX-License-Identifier: GPL-2.0-or-later
"""What a saved boot depends on, and which guests are not saved at all."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from qemu_peer import spec

from harness.config.guest import GuestSpec
from harness.config.guest_parts import Firmware, GuestRoot, KernelImage, QemuBinary
from harness.deadline import Deadline
from harness.errors import ArtefactError, GuestError, QemuError, UnsupportedError
from harness.guest.console import Console
from harness.parsers.dmesg import alarming
from harness.progress import SilentProgress
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.machine_spec import MachineSpec
from harness.scenarios import start as starting
from harness.scenarios import template as template_module
from harness.scenarios.boot import BootedGuest, Parts, archives_of
from harness.scenarios.template import INITRD, UncleanBoot, inputs, require_clean, template, why_not
from harness.units import GIB, MIB


def parts(folder: Path, qemu: str = "qemu", kernel: str = "kernel") -> dict[str, Path]:
    folder.mkdir()
    texts = {"qemu": qemu, "kernel": kernel, "code": "code", "vars": "vars", "root": "root"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in texts}


def machine(files: dict[str, Path], **changes: Any) -> MachineSpec:
    return dataclasses.replace(
        spec(),
        qemu=QemuBinary((str(files["qemu"]),), None, "made up", "10.0"),
        kernel=files["kernel"],
        initrd=Path("initrd"),
        firmware=Firmware(files["code"], files["vars"]),
        **changes,
    )


def key(files: dict[str, Path], extra: bytes = b"scripts", **changes: Any) -> dict[str, str]:
    return inputs(machine(files, **changes), [files["root"]], extra)


def test_the_same_contents_elsewhere_are_the_same_guest(tmp_path: Path) -> None:
    one, two = parts(tmp_path / "one"), parts(tmp_path / "two")
    assert key(one) == key(two)
    assert not any(str(tmp_path) in text for text in key(one).values())


@pytest.mark.parametrize("changed", ["qemu", "kernel", "code", "vars", "root"])
def test_any_other_content_is_another_guest(changed: str, tmp_path: Path) -> None:
    one, two = parts(tmp_path / "one"), parts(tmp_path / "two")
    two[changed].write_text("something else")
    assert key(one) != key(two)


@pytest.mark.parametrize(
    "change",
    [{"cmdline": "rodata=full"}, {"memory": 2 * GIB}, {"cpus": 1}, {"cpu": "max"}, {"root_ports": 1}, {"slots": 9}],
    ids=lambda change: next(iter(change)),
)
def test_any_other_command_line_is_another_guest(change: dict[str, Any], tmp_path: Path) -> None:
    files = parts(tmp_path / "one")
    assert key(files) != key(files, **change)


def test_other_scripts_are_another_guest(tmp_path: Path) -> None:
    files = parts(tmp_path / "one")
    assert key(files) != key(files, b"other scripts")


def test_the_archives_of_a_root_are_in_order(tmp_path: Path) -> None:
    image = KernelImage(tmp_path / "Image", "", None, None, tmp_path / "modules")
    made = Parts(QemuBinary((), None, "", ""), None, image, GuestRoot(tmp_path / "root"))
    own = GuestSpec.default("arm64").with_fields({"initrd": tmp_path / "own"})
    assert [path.name for path in archives_of(own, made)] == ["root", "modules", "own"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cold_devices": (DimmSpec("d0", 128 * MIB),)}, "memory devices from the start"),
        ({"backend": (("prealloc", "on"),)}, "boot memory has special options"),
        ({"paused": True}, "it starts paused"),
        ({}, None),
    ],
)
def test_what_cannot_be_restored(change: dict[str, Any], why: str | None, tmp_path: Path) -> None:
    said = why_not(machine(parts(tmp_path / "one"), **change))
    assert said is why if why is None else why in (said or "")


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "file" / "cache"))
    image = KernelImage(tmp_path / "Image", "", None, None, None)
    made = Parts(QemuBinary((), None, "", ""), None, image, GuestRoot(tmp_path / "root"))
    with pytest.raises(ArtefactError, match="cannot write to the cache"):
        template(GuestSpec.default("arm64").with_fields({"boot": "dt"}), made, 5.0, SilentProgress())


def test_a_boot_with_complaints_is_not_kept() -> None:
    here, there = socket.socketpair()
    with here, there, Console(here, alarming) as console:
        there.sendall(b"[    1.0] all is well\r\n")
        console.wait_line("all is well", Deadline(60))
        require_clean(console)
        there.sendall(b"[   22.6] rcu: INFO: rcu_sched self-detected stall on CPU\r\n")
        console.wait_line("stall", Deadline(60))
        with pytest.raises(GuestError, match=r"its boot was not clean: .*rcu_sched self-detected stall"):
            require_clean(console)


@pytest.mark.parametrize(("unclean", "kept"), [(0, True), (2, True), (3, False)])
def test_a_boot_with_complaints_is_tried_again(
    unclean: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots: list[list[str]] = []

    def put_to_rest(machine: MachineSpec, out: Path, deadline: Deadline) -> None:
        boots.append(sorted(path.name for path in out.iterdir()))
        (out / "state").touch()
        (out / "facts").mkdir()
        if len(boots) <= unclean:
            raise UncleanBoot("its boot was not clean")

    monkeypatch.setattr(template_module, "_put_to_rest", put_to_rest)
    monkeypatch.setattr(template_module, "_try_out", lambda *args: None)
    (tmp_path / INITRD).touch()
    machine = cast(MachineSpec, None)
    with contextlib.nullcontext() if kept else pytest.raises(UncleanBoot):
        template_module._boot_cleanly(machine, cast(Parts, None), tmp_path, Deadline(60))
    assert boots == [[INITRD]] * min(unclean + 1, 3), "nothing of the previous boot may be left"


class Stand:
    """Stands in for starting guests by boot or restore; counts the attempts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried = 0
        self.error: Exception | None = None
        monkeypatch.setattr(starting, "template", self.template)
        monkeypatch.setattr(starting, "restore_guest", self.context(restored=True))
        monkeypatch.setattr(starting, "boot_guest", self.context(restored=False))
        monkeypatch.setattr(starting, "_hopeless", {})

    def template(self, *args: object) -> Path:
        self.tried += 1
        if self.error is not None:
            raise self.error
        return Path("saved")

    def context(self, restored: bool) -> Callable[..., Any]:
        import contextlib

        guest = BootedGuest(*[None] * 5, "dt", None, restored=restored)  # type: ignore[arg-type]
        return lambda *args: contextlib.nullcontext(guest)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(monkeypatch)


def begin(tmp_path: Path, how: Any = "auto") -> BootedGuest:
    image = KernelImage(tmp_path / "Image", "", None, None, None)
    made = Parts(QemuBinary(("qemu",), None, "", ""), None, image, GuestRoot(tmp_path / "root"))
    with starting.start_guest(GuestSpec.default("arm64"), made, tmp_path, 1.0, how) as guest:
        return guest


def test_a_guest_is_restored_if_nothing_is_against_it(stand: Stand, tmp_path: Path) -> None:
    assert begin(tmp_path).restored and begin(tmp_path, "restore").restored
    cold = begin(tmp_path, "cold")
    assert (cold.restored, cold.why_booted, stand.tried) == (False, "as requested", 2)


@pytest.mark.parametrize("error", [QemuError("it cannot migrate"), UnsupportedError("restore", "it cannot migrate")])
def test_what_cannot_be_restored_boots_says_why_and_is_not_tried_again(
    error: Exception, stand: Stand, tmp_path: Path
) -> None:
    stand.error = error
    for _ in range(2):
        guest = begin(tmp_path)
        assert (guest.restored, guest.why_booted) == (False, "it cannot migrate")
    assert stand.tried == 1


def test_who_insists_gets_the_error(stand: Stand, tmp_path: Path) -> None:
    stand.error = QemuError("it cannot migrate")
    for _ in range(2):
        with pytest.raises(QemuError, match="it cannot migrate"):
            begin(tmp_path, "restore")
    assert stand.tried == 2
