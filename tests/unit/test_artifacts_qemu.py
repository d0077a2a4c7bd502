# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU is chosen, and the error if none is suitable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.arch import ARM64, ArchSpec
from harness.artifacts import qemu
from harness.artifacts.qemu import find_qemu, own_qemu, version_of
from harness.config.guest_parts import QemuBinary
from harness.errors import InfraError, UnsupportedError, UsageError
from harness.progress import Progress, SilentProgress

QUIET = SilentProgress()
GOOD = "#!/bin/sh\necho 'QEMU emulator version 10.0.13 (Debian 1:10)'\n"


def program(folder: Path, text: str, name: str = "qemu-system-aarch64") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def willing(_: QemuBinary) -> None:
    return None


def test_the_users_own_is_taken_alone(tmp_path: Path) -> None:
    path = program(tmp_path, GOOD)
    assert find_qemu(ARM64, explicit=str(path), able=willing, progress=QUIET) == QemuBinary(
        (str(path),), None, str(path), "10.0.13"
    )
    with pytest.raises(UnsupportedError, match=r"--qemu .*: QEMU 10\.0\.13 lacks pc-dimm"):
        find_qemu(ARM64, explicit=str(path), able=lambda binary: f"QEMU {binary.version} lacks pc-dimm", progress=QUIET)


def test_what_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(GOOD)
    for path in (tmp_path / "file", tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=f"--qemu {path} is not a program"):
            own_qemu(path)


@pytest.mark.parametrize(
    ("text", "message"), [("#!/bin/sh\necho gizmo 3\n", "is not QEMU"), ("#!/bin/sh\nexit 3\n", "exited with status 3")]
)
def test_what_is_no_qemu(tmp_path: Path, text: str, message: str) -> None:
    path = program(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        own_qemu(path)
    with pytest.raises(InfraError, match=message):
        version_of((str(path),))


def test_the_hosts_own_is_taken_if_able(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "bin", GOOD)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    binary = find_qemu(ARM64, explicit=None, able=willing, progress=QUIET)
    assert (binary.argv, binary.origin) == ((str(path),), f"the host's {path}")


def test_where_none_will_do_each_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def candidates(
        arch: ArchSpec, explicit: str | None, progress: Progress, reasons: list[str]
    ) -> Iterator[QemuBinary]:
        reasons.append("the host's /q: does not run")
        yield QemuBinary(("/a",), None, "Debian's", "1")

    monkeypatch.setattr(qemu, "_candidates", candidates)
    with pytest.raises(UnsupportedError) as caught:
        find_qemu(ARM64, explicit=None, able=lambda _: "lacks pc-dimm: run memhp fetch", progress=QUIET)
    assert caught.value.message.splitlines() == [
        "no QEMU for arm64 is suitable:",
        "  the host's /q: does not run",
        "  Debian's: lacks pc-dimm",
    ]
