# SPDX-License-Identifier: GPL-2.0-or-later
"""Error messages for a QEMU that lacks something."""

from __future__ import annotations

import dataclasses

import pytest

from harness.arch import ARCHES, ARM64, RISCV64
from harness.config.guest_parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import QemuError
from harness.qemu.devices.device import KINDS, kinds_on
from harness.qemu.devices.dimm import DimmSpec
from harness.qemu.probe import (
    QemuAbilities,
    able,
    missing,
    needed_devices,
    probe,
)

ALL = needed_devices(KINDS)


def abilities(types: frozenset[str], refusal: str | None = None) -> QemuAbilities:
    return QemuAbilities("10.0.13", types, refusal, True)


def test_nothing_missing() -> None:
    assert missing(abilities(ALL), ALL) is None


def test_missing_devices_are_named() -> None:
    assert (
        missing(abilities(ALL - {"virtio-pmem-pci"}), ALL)
        == "QEMU 10.0.13 lacks the device virtio-pmem-pci: run memhp fetch for one that has it"
    )
    assert "lacks devices pc-dimm, virtio-mem-pci:" in str(missing(abilities(ALL - {"virtio-mem-pci", "pc-dimm"}), ALL))


def test_machine_without_hotplug() -> None:
    crippled = abilities(ALL, "memory devices are not supported by the machine")
    sentence = missing(crippled, ALL)
    assert sentence is not None
    assert "cannot hot-plug memory into this machine (memory devices are not supported by the machine)" in sentence
    assert missing(crippled, ALL, hotplug=False) is None


def test_needed_devices() -> None:
    assert "virtio-mem-pci" in needed_devices(["virtio-mem"])
    assert "pc-dimm" not in needed_devices(["virtio-mem"])


def test_a_board_need_not_have_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {kind for arch in ARCHES for kind in kinds_on(arch)} == set(KINDS)
    # kinds_on is what the search for a QEMU asks by default.
    nowhere = dataclasses.replace(DimmSpec.requirement, arch="riscv64")
    monkeypatch.setattr(DimmSpec, "requirement", nowhere)
    assert "dimm" not in kinds_on("arm64") and "dimm" in kinds_on("riscv64")
    without = abilities(ALL - {"pc-dimm"})
    monkeypatch.setattr("harness.qemu.probe.probe", lambda binary, arch, deadline: without)
    assert able(ARM64)(not_qemu("qemu")) is None
    assert "lacks the device pc-dimm" in str(able(RISCV64)(not_qemu("qemu")))


def not_qemu(*argv: str) -> QemuBinary:
    return QemuBinary(argv=argv, data_dir=None, origin="test", version="0")


def test_a_program_that_is_not_qemu() -> None:
    with pytest.raises(QemuError, match=r"(?s)sh -c .*-machine none .*exited with status 2: not QEMU"):
        probe(not_qemu("sh", "-c", "echo not QEMU >&2; exit 2"), ARM64, Deadline(60))
    reason = able(ARM64)(not_qemu("/nowhere/qemu"))
    assert reason is not None
    assert reason.startswith("/nowhere/qemu does not work: cannot run /nowhere/qemu")
