# SPDX-License-Identifier: GPL-2.0-or-later
"""The doctor's rows, each ok and not ok, with a real cache; and which function fetches which part."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.arch import ARM64, RISCV64, ArchSpec
from harness.artifacts import doctor
from harness.artifacts.building import HostNeed
from harness.artifacts.cache import Cache
from harness.artifacts.doctor import DoctorRow, diagnose
from harness.artifacts.fetch import PARTS, fetch
from harness.config.guest_parts import Firmware, GuestRoot, KernelImage, QemuBinary
from harness.errors import ArtefactError, UnsupportedError, UsageError
from harness.progress import Progress, SilentProgress
from harness.units import GIB

QUIET = SilentProgress()


def willing(arch: ArchSpec) -> Callable[[QemuBinary], str | None]:
    return lambda binary: None


def unwilling(arch: ArchSpec) -> Callable[[QemuBinary], str | None]:
    return lambda binary: f"QEMU {binary.version} lacks {arch.name} memory"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    return Cache()


def put(cache: Cache, kind: str, name: str, text: str = "content") -> Path:
    def build(out: Path) -> None:
        (out / "Image").write_text(text)

    return cache.get(kind, name, {}, build, QUIET)


def spoil(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text)


def part(cache: Cache, name: str, arch: ArchSpec = ARM64, *, full: bool = False) -> DoctorRow:
    return doctor.part_row(name, arch, list(cache.entries(full=full)))


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_part_that_is_not_there(cache: Cache) -> None:
    row = part(cache, "kernel")
    assert row == DoctorRow(
        "arm64 kernel",
        "missing",
        "not in the cache; the first run that needs it fetches it",
        "memhp fetch kernel -a arm64",
    )


@pytest.mark.parametrize(
    ("kind", "name", "wanted"),
    [
        ("kernel", "arm64-linux-source-6.12", "kernel"),
        ("debian-kernel", "arm64-linux-image-6.12-unsigned", "debian-kernel"),
        ("qemu", "aarch64-debian", "qemu"),
        ("qemu", "aarch64-built", "qemu"),
        ("firmware", "arm64", "firmware"),
    ],
)
def test_a_part_that_is_there(cache: Cache, kind: str, name: str, wanted: str) -> None:
    path = put(cache, kind, name)
    row = part(cache, wanted)
    assert (row.status, row.mend) == ("ok", "")
    assert str(path) in row.detail
    assert part(cache, wanted, RISCV64).status == "missing"
    for other in set(PARTS) - {wanted}:
        assert part(cache, other).status == "missing"


def test_a_truncated_part_and_the_command_that_mends_it(cache: Cache) -> None:
    path = put(cache, "kernel", "arm64-linux-source-6.12")
    spoil(path / "Image", "con")
    row = part(cache, "kernel")
    assert row.status == "missing"
    assert row.detail == f"{path} is damaged: Image: 3 bytes instead of 7"
    assert row.mend == f"chmod -R u+w {path} && rm -r {path} && memhp fetch kernel -a arm64"
    subprocess.run(row.mend.rpartition(" && ")[0], shell=True, check=True)
    assert not path.exists()


def test_a_change_that_hides_is_found_by_verifying(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(cache, "kernel", "arm64-linux-source-6.12")
    seen = (path / "Image").stat()
    spoil(path / "Image", "CONTENT")
    os.utime(path / "Image", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert part(cache, "kernel").status == "ok"
    rows = {row.name: row for row in diagnose(QUIET, verify=True, arches=[ARM64])}
    assert rows["arm64 kernel"].detail == f"{path} is damaged: Image: changed since it was made"
    assert {row.name: row for row in diagnose(QUIET, arches=[ARM64])}["arm64 kernel"].status == "ok"


def test_a_damaged_entry_of_nobody(cache: Cache) -> None:
    path = put(cache, "kernel", "loongarch-linux")
    assert list(doctor.stray_rows(list(cache.entries(full=False)), [ARM64])) == []
    spoil(path / "Image", "")
    [row] = doctor.stray_rows(list(cache.entries(full=False)), [ARM64])
    assert (row.name, row.status) == ("cache: kernel", "missing")
    assert row.mend == f"chmod -R u+w {path} && rm -r {path}"


def test_the_hosts_qemu_counts_if_it_is_able(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "bin", "qemu-system-aarch64", "echo 'QEMU emulator version 9.9.1 (Debian)'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert doctor.part_row("qemu", ARM64, [], willing).detail == f"the host's {path}, 9.9.1"
    unasked = doctor.part_row("qemu", ARM64, [])
    assert (unasked.status, unasked.mend) == ("ok", "")
    assert unasked.detail.endswith("9.9.1; its abilities are checked when a guest starts")
    row = doctor.part_row("qemu", ARM64, [], unwilling)
    assert row.status == "old"
    assert row.detail == f"the host's {path}: QEMU 9.9.1 lacks arm64 memory"
    assert row.mend == "memhp fetch qemu -a arm64"
    assert doctor.part_row("qemu", RISCV64, [], willing).detail.startswith("not in the cache")
    put(cache, "qemu", "aarch64-debian")
    assert doctor.part_row("qemu", ARM64, list(cache.entries(full=False)), unwilling).status == "ok"


def test_a_host_qemu_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "bin", "qemu-system-aarch64", "echo hello")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert doctor.part_row("qemu", ARM64, []).detail == f"the host's {path} is not QEMU"
    program(tmp_path / "bin", "qemu-system-aarch64", "echo no libraries >&2; exit 127")
    row = doctor.part_row("qemu", ARM64, [])
    assert row.status == "missing"
    assert row.detail.startswith(f"the host's {path} does not run: ")
    assert "no libraries" in row.detail


def test_one_row_for_each_package_of_the_host() -> None:
    needs = (
        HostNeed("shell", program="sh"),
        HostNeed("nonesuch-utils", program="nonesuch"),
        HostNeed("nonesuch-utils", program="sh"),
    )
    assert doctor.host_rows(needs) == [
        DoctorRow("nonesuch-utils", "missing", "no nonesuch", "sudo apt-get install nonesuch-utils"),
        DoctorRow("shell", "ok", "sh", ""),
    ]


def test_the_cross_compiler_and_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.cross_rows(ARM64) == [
        DoctorRow(
            "gcc-aarch64-linux-gnu", "missing", "no aarch64-linux-gnu-gcc", "sudo apt-get install gcc-aarch64-linux-gnu"
        ),
        DoctorRow(
            "libc6-dev-arm64-cross",
            "missing",
            "no libc.a for arm64",
            "sudo apt-get install libc6-dev-arm64-cross",
        ),
    ]
    program(tmp_path, "aarch64-linux-gnu-gcc", "echo libc.a")
    assert [row.status for row in doctor.cross_rows(ARM64)] == ["ok", "missing"]
    program(tmp_path, "aarch64-linux-gnu-gcc", "echo /usr/aarch64-linux-gnu/lib/libc.a")
    assert [row.status for row in doctor.cross_rows(ARM64)] == ["ok", "ok"]


def test_the_keyring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "keys.gpg"
    monkeypatch.setattr("harness.artifacts.apt._KEYRINGS", (keys,))
    row = doctor.keyring_row()
    assert (row.status, row.mend) == ("missing", "sudo apt-get install debian-archive-keyring")
    assert str(keys) in row.detail
    keys.touch()
    assert doctor.keyring_row() == DoctorRow("Debian keyring", "ok", str(keys), "")


def test_the_mirror_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMHP_MIRROR", "https://me:secret@mirror.example/debian")
    assert doctor.mirror_row() == DoctorRow("Debian mirror", "ok", "https://mirror.example/debian", "")
    monkeypatch.setenv("MEMHP_MIRROR", "nonsense [")
    row = doctor.mirror_row()
    assert (row.status, row.mend) == ("missing", "export MEMHP_MIRROR=http://HOST/debian")
    assert "nonsense" in row.detail


def test_python_packages() -> None:
    rows = list(doctor.python_rows(["pytest>=1.0", "pytest", "pytest>=4000.1", "nonesuch-package>=2.0"]))
    assert [row.status for row in rows] == ["ok", "ok", "old", "missing"]
    assert rows[2].detail == f"{pytest.__version__}, 4000.1 is needed"
    assert rows[2].mend == f"{sys.executable} -m pip install 'pytest>=4000.1'"
    assert rows[3].name == "python: nonesuch-package"
    assert rows[3].mend.endswith("-m pip install 'nonesuch-package>=2.0'")


def test_requirements_are_those_of_the_project() -> None:
    assert any(text.startswith("qemu.qmp") for text in doctor.requirements())


def test_disk(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    assert doctor.disk_row(root, needed=0).status == "ok"
    row = doctor.disk_row(root, needed=1 << 60)
    assert (row.status, row.mend) == ("missing", "export MEMHP_CACHE=/a/folder/on/a/larger/disk")
    assert row.detail.startswith(str(root))
    assert not root.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root can write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    row = doctor.disk_row(tmp_path)
    assert row == DoctorRow("cache", "missing", f"{tmp_path} is not writable", "export MEMHP_CACHE=/a/folder/of/yours")


def test_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       99999999 kB\nMemAvailable:    3145728 kB\n")
    assert doctor.memory_row(meminfo) == DoctorRow("memory", "ok", "3.0 GiB available", "")
    row = doctor.memory_row(meminfo, needed=4 * GIB)
    assert row.status == "missing"
    assert row.detail == "3.0 GiB available; a guest with its devices takes 4.0 GiB"
    assert row.mend


def test_a_cache_that_cannot_be_read(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Cache, *, full: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Cache, "entries", refuse)
    with pytest.raises(ArtefactError, match=f"cannot read the cache {cache.root}: Permission denied") as caught:
        diagnose(QUIET, arches=[ARM64])
    assert caught.value.hint == "set MEMHP_CACHE to a folder that you own"


def test_the_whole_machine_writes_nothing(cache: Cache) -> None:
    rows = diagnose(QUIET)
    assert not cache.root.exists()
    assert all(bool(row.mend) == (row.status != "ok") for row in rows)
    assert len({row.name for row in rows}) == len(rows)
    for arch in (ARM64, RISCV64):
        for name in PARTS:
            assert f"{arch.name} {name}" in {row.name for row in rows}
    assert {"apt", "gcc", "libelf-dev", "ninja-build", "Debian keyring", "cache", "memory", "accelerator"} <= {
        row.name for row in rows
    }


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Replaces the modules that use the network, and records the requests."""
    asked: list[tuple[object, ...]] = []

    def find_qemu(
        arch: ArchSpec, *, explicit: Path | None, able: Callable[[QemuBinary], str | None], progress: Progress
    ) -> QemuBinary:
        binary = QemuBinary(("/ld.so", "/qemu"), None, "Debian's", "10")
        asked.append(("qemu", arch.name, explicit, able(binary)))
        return binary

    def firmware(arch: ArchSpec, progress: Progress) -> Firmware:
        asked.append(("firmware", arch.name))
        return Firmware(Path("/code.fd"), Path("/vars.fd"))

    def guest_root(arch: ArchSpec, progress: Progress) -> GuestRoot:
        asked.append(("guest-root", arch.name))
        return GuestRoot(Path("/root.cpio"))

    def kernel(arch: ArchSpec, selector: str | None, progress: Progress) -> KernelImage:
        asked.append(("kernel", arch.name, selector))
        return KernelImage(Path("/Image"), selector or "purpose-built", None, None, None)

    stand_ins = types.ModuleType("qemu")
    vars(stand_ins).update(
        find_qemu=find_qemu, debian_qemu=lambda arch, progress: QemuBinary(("/old",), None, "Old", "9")
    )
    monkeypatch.setitem(sys.modules, "harness.artifacts.qemu", stand_ins)

    def bios(arch: ArchSpec, progress: Progress) -> Path | None:
        return None if arch.bios is None else Path("/bios")

    functions: dict[str, tuple[Callable[..., object], ...]] = {
        "firmware": (bios, firmware),
        "guestroot": (guest_root,),
        "kernel": (kernel,),
    }
    for module, stand_for in functions.items():
        stand_in = types.ModuleType(module)
        for function in stand_for:
            setattr(stand_in, function.__name__, function)
        monkeypatch.setitem(sys.modules, f"harness.artifacts.{module}", stand_in)
    return asked


def test_fetch_gets_each_part_for_each_architecture(sources: list[tuple[object, ...]]) -> None:
    got = fetch(list(reversed(PARTS)), [ARM64, RISCV64], QUIET, able=unwilling)
    assert got[:5] == [
        ("qemu", "arm64", "Debian's: /qemu"),
        ("firmware", "arm64", "/code.fd"),
        ("guest-root", "arm64", "/root.cpio"),
        ("kernel", "arm64", "purpose-built: /Image"),
        ("debian-kernel", "arm64", "debian: /Image"),
    ]
    assert [row[1] for row in got[5:]] == ["riscv64"] * 5
    assert got[6] == ("firmware", "riscv64", "/bios, /code.fd")
    assert sources[0] == ("qemu", "arm64", None, "QEMU 10 lacks arm64 memory")
    assert ("kernel", "riscv64", "debian") in sources


def test_fetch_keeps_a_qemu_that_cannot_plug_memory_where_there_is_no_other(
    sources: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object, **__: object) -> QemuBinary:
        raise UnsupportedError("qemu", "no QEMU is suitable")

    monkeypatch.setattr(sys.modules["harness.artifacts.qemu"], "find_qemu", nothing)
    [(_, _, where)] = fetch(["qemu"], [RISCV64], QUIET, able=unwilling)
    assert where == "Old, which cannot plug memory (QEMU 9 lacks riscv64 memory): /old"


def test_fetch_of_one_part_leaves_the_others(sources: list[tuple[object, ...]]) -> None:
    assert fetch(["kernel", "kernel"], [ARM64], QUIET, able=willing) == [("kernel", "arm64", "purpose-built: /Image")]
    assert sources == [("kernel", "arm64", None)]


def test_fetch_of_an_unknown_part_fetches_nothing(sources: list[tuple[object, ...]]) -> None:
    with pytest.raises(UsageError, match="unknown part: 'kernal', 'x'") as caught:
        fetch(["qemu", "kernal", "x"], [ARM64], QUIET, able=willing)
    assert caught.value.hint == "known: qemu, firmware, guest-root, kernel, debian-kernel"
    assert sources == []
