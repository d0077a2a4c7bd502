# SPDX-License-Identifier: GPL-2.0-or-later
"""Building QEMU: inputs, requirements of the host, errors of each step. Nothing is compiled here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.arch import ARCHES, ARM64, RISCV64
from harness.artifacts import qemu_build
from harness.artifacts.apt import Package, PrivateApt
from harness.artifacts.building import HostNeed, missing_packages, require_packages
from harness.artifacts.cache import Cache
from harness.artifacts.qemu_build import (
    CONFIGS,
    HOST_NEEDS,
    QemuBuild,
    Recipe,
    build_qemu,
    find_qemu,
    load_recipe,
)
from harness.config.guest_parts import QemuBinary
from harness.deadline import Deadline
from harness.errors import ArtefactError
from harness.progress import Progress, SilentProgress

needs_patch = pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")
needs_ninja = pytest.mark.skipif(shutil.which("ninja") is None, reason="ninja is not installed")


def recipe(tmp_path: Path, **patches: str) -> Recipe:
    folder = tmp_path / "configs" / "aarch64"
    folder.mkdir(parents=True)
    for name, text in patches.items():
        (folder / f"{name}.patch").write_text(text)
    return load_recipe(ARM64, folder.parent)


def build(tmp_path: Path, made_of: Recipe) -> QemuBuild:
    work = tmp_path / "work"
    work.mkdir()
    (work / "source").mkdir()
    return QemuBuild(made_of, "1:10.0.13", work, tmp_path / "build.log", Deadline(20))


def kconfig_patch(context: str, number: int = 1) -> str:
    return f"--- a/Kconfig\n+++ b/Kconfig\n@@ -1,2 +1,3 @@\n {context}\n+    select NEW{number}\n     select OLD\n"


# --- the recipe


def test_arm64_has_the_pmem_patch_and_a_device_list() -> None:
    found = load_recipe(ARM64, CONFIGS)
    assert [patch.name for patch in found.patches] == ["0001-hw-arm-virt-support-virtio-pmem.patch"]
    assert found.devices is not None
    assert "CONFIG_VIRTIO_PMEM=y\n" in found.devices.read_text()


def test_an_architecture_without_files_gets_qemu_as_it_is(tmp_path: Path) -> None:
    found = load_recipe(RISCV64, tmp_path)
    assert found == Recipe("riscv64", (), None)
    arguments = found.arguments("1:10.0.13")
    assert "--target-list=riscv64-softmmu" in arguments
    assert "--without-default-devices" not in arguments


def test_a_device_list_turns_qemus_own_off(tmp_path: Path) -> None:
    (tmp_path / "devices-riscv64.mak").write_text("CONFIG_RISCV_VIRT=y\n")
    arguments = load_recipe(RISCV64, tmp_path).arguments("1:10.0.13")
    assert arguments[2:4] == ["--without-default-devices", "--with-devices-riscv64=memhp"]


def test_configure_neither_downloads_nor_picks_up_what_it_finds() -> None:
    arguments = load_recipe(ARM64, CONFIGS).arguments("1:10.0.13")
    assert {"--disable-download", "--without-default-features", "--disable-containers"} <= set(arguments)
    assert "--with-pkgversion=Debian 1:10.0.13, patched by memhp" in arguments


def test_without_the_configs_folder_nothing_is_built_unpatched(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="QEMU's patches are missing: no folder") as caught:
        load_recipe(ARM64, tmp_path / "gone")
    assert caught.value.hint == "run memhp from its checkout"


def test_everything_that_goes_in_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of = recipe(tmp_path, **{"0001-a": "one"})
    before = made_of.inputs("1:10.0.13")
    assert before == made_of.inputs("1:10.0.13")
    assert made_of.inputs("1:10.0.14") != before
    assert Recipe("aarch64", (), None).inputs("1:10.0.13") != before
    made_of.patches[0].write_text("two")
    assert made_of.inputs("1:10.0.13") != before
    made_of.patches[0].write_text("one")
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "99"})
    assert made_of.inputs("1:10.0.13")["host"].endswith(" debian 99")
    devices = tmp_path / "devices.mak"
    devices.write_text("CONFIG_A=y\n")
    listed = Recipe("aarch64", (), devices).inputs("1:10.0.13")
    devices.write_text("CONFIG_B=y\n")
    assert Recipe("aarch64", (), devices).inputs("1:10.0.13") != listed


def test_patches_apply_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = recipe(tmp_path, **{"0010-c": "", "0002-b": "", "0001-a": ""})
    assert [patch.stem for patch in found.patches] == ["0001-a", "0002-b", "0010-c"]


@pytest.mark.parametrize(
    "patch", sorted(CONFIGS.glob("*/*.patch")), ids=lambda patch: f"{patch.parent.name}-{patch.name}"
)
def test_patches_are_fit_for_review(patch: Path) -> None:
    text = patch.read_text()
    head, _, diff = text.partition("\n---\n")
    assert "\nSubject: [PATCH" in head
    assert "\nSigned-off-by: " in head
    assert diff.count("\ndiff --git a/") >= 1
    assert max(map(len, head.splitlines())) <= 76
    assert patch.parent.name in {arch.qemu_target for arch in ARCHES.values()}


# --- the host


def test_what_the_host_lacks_is_named_with_its_packages() -> None:
    needs = (
        HostNeed("zz-program", program="no-such-program"),
        HostNeed("libzz-dev", module="no-such-module"),
        HostNeed("libyy-dev", header="no-such-header.h"),
        HostNeed("python3", program=sys.executable),
    )
    assert [need.package for need in missing_packages(Deadline(20), needs)] == ["zz-program", "libzz-dev", "libyy-dev"]
    with pytest.raises(ArtefactError) as caught:
        require_packages("QEMU", needs, Deadline(20))
    assert caught.value.message == (
        "cannot build QEMU: this machine lacks no-such-program, no-such-module, <no-such-header.h>"
    )
    assert caught.value.hint == "sudo apt-get install libyy-dev libzz-dev zz-program"


def test_with_no_compiler_everything_is_missing_and_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert missing_packages(Deadline(300), HOST_NEEDS) == qemu_build.HOST_NEEDS


def test_every_need_is_found_in_exactly_one_way() -> None:
    for need in qemu_build.HOST_NEEDS:
        assert [need.program, need.module, need.header].count(None) == 2, need


def test_nothing_of_the_users_environment_changes_the_binary() -> None:
    host = {"PATH": "/bin", "CFLAGS": "-O0", "CC": "tcc", "PYTHONPATH": "/elsewhere", "PKG_CONFIG_PATH": "/elsewhere"}
    env = qemu_build.environment(Path("/meson"), host)
    assert env["PATH"] == "/bin"
    assert env["PYTHONPATH"] == "/meson/usr/lib/python3/dist-packages"
    assert not {"CFLAGS", "CC", "PKG_CONFIG_PATH"} & set(env)


# --- the steps


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("[7/1327] Compiling C object libcommon.a.p/x.c.o", (7, 1327)),
        ("[1327/1327] Linking target qemu-system-aarch64", (1327, 1327)),
        ("ninja: no work to do.", None),
        ("../x.c:1: note: [1/2] is no status", None),
        ("", None),
    ],
)
def test_ninja_status_lines(line: str, step: tuple[int, int] | None) -> None:
    assert qemu_build.parse_ninja(line) == step


@needs_patch
def test_patches_and_device_list_reach_the_source(tmp_path: Path) -> None:
    made_of = recipe(tmp_path, **{"0001-a": kconfig_patch("config VIRT", 1), "0002-b": kconfig_patch("config VIRT", 2)})
    devices = tmp_path / "devices-aarch64.mak"
    devices.write_text("CONFIG_ARM_VIRT=y\n")
    made = build(tmp_path, Recipe(made_of.target, made_of.patches[:1], devices))
    (made.source / "Kconfig").write_text("config VIRT\n    select OLD\n")
    place = made.source / "configs" / "devices" / "aarch64-softmmu"
    place.mkdir(parents=True)
    made.patch()
    assert (made.source / "Kconfig").read_text() == "config VIRT\n    select NEW1\n    select OLD\n"
    assert (place / "memhp.mak").read_text() == "CONFIG_ARM_VIRT=y\n"


@needs_patch
@pytest.mark.parametrize(
    "there",
    [
        pytest.param("config OTHER\n    select OLD\n", id="context-moved-on"),
        pytest.param("config VIRT\n    select NEW1\n    select OLD\n", id="applied-already"),
    ],
)
def test_a_patch_that_does_not_fit_exactly_is_refused_by_name(tmp_path: Path, there: str) -> None:
    made = build(tmp_path, recipe(tmp_path, **{"0001-a": kconfig_patch("config VIRT")}))
    (made.source / "Kconfig").write_text(there)
    with pytest.raises(ArtefactError, match=r"building QEMU: applying 0001-a\.patch exited with status 1") as caught:
        made.patch()
    assert caught.value.hint == f"the whole log is {made.log}"
    assert "Kconfig" in made.log.read_text()


@needs_ninja
def test_compiling_reports_each_step_and_returns_the_binary(tmp_path: Path) -> None:
    made = build(tmp_path, Recipe("aarch64", (), None))
    made.tree.mkdir()
    (made.tree / "build.ninja").write_text(
        "rule touch\n  command = touch $out\nbuild a: touch\nbuild b: touch\nbuild qemu-system-aarch64: touch a b\n"
    )
    steps: list[tuple[int, int]] = []
    binary = made.compile(tmp_path, lambda done, total: steps.append((done, total)))
    assert binary.is_file()
    assert steps == [(1, 3), (2, 3), (3, 3)]


@needs_ninja
def test_a_compiler_error_is_shown_with_its_last_lines(tmp_path: Path) -> None:
    made = build(tmp_path, Recipe("aarch64", (), None))
    made.tree.mkdir()
    (made.tree / "build.ninja").write_text(
        "rule fail\n  command = echo hw/arm/virt.c:1: error: boom; false\nbuild qemu-system-aarch64: fail\n"
    )
    with pytest.raises(ArtefactError, match=r"(?s)compiling exited with status 1:.*virt\.c:1: error: boom"):
        made.compile(tmp_path, lambda done, total: None)


def test_a_failing_configure_says_why(tmp_path: Path) -> None:
    made = build(tmp_path, Recipe("aarch64", (), None))
    script = made.source / "configure"
    script.write_text("#!/bin/sh\necho ERROR: glib-2.66 is required >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(ArtefactError, match=r"(?s)configuring exited with status 1:.*glib-2\.66 is required"):
        made.configure(tmp_path)
    assert f"--python={sys.executable}" in made.log.read_text()


# --- from a source package to the cache: a toy QEMU, built by the real tools


TOY_CONFIGURE = """#!/bin/sh
cat > build.ninja <<END
rule make
  command = cp $(dirname "$0")/toy \\$out && chmod 755 \\$out
build qemu-system-aarch64: make
END
"""
TOY = '#!/bin/sh\necho "QEMU emulator version 10.0.13 (toy)"\n'

needs_toolchain = pytest.mark.skipif(
    bool(missing_packages(Deadline(300), HOST_NEEDS)), reason="this machine lacks packages to build QEMU with"
)


def toy_package(folder: Path, version: str, toy: str = TOY) -> Path:
    tree = folder / "toy"
    (tree / "debian" / "source").mkdir(parents=True)
    (tree / "debian" / "source" / "format").write_text("3.0 (native)\n")
    (tree / "debian" / "control").write_text(
        "Source: qemu\nMaintainer: A B <a@example.org>\n\nPackage: qemu\nArchitecture: any\n"
    )
    (tree / "debian" / "changelog").write_text(
        f"qemu ({version}) unstable; urgency=low\n\n  * Toy.\n\n"
        " -- A B <a@example.org>  Thu, 01 Jan 2026 00:00:00 +0000\n"
    )
    (tree / "toy").write_text(toy)
    (tree / "Kconfig").write_text("config VIRT\n    select OLD\n")
    (tree / "configure").write_text(TOY_CONFIGURE)
    (tree / "configure").chmod(0o755)
    subprocess.run(["dpkg-source", "-b", "toy"], cwd=folder, check=True, capture_output=True)
    return next(folder.glob("*.dsc"))


class ToyApt(PrivateApt):
    """Provides a generated source package, and no meson; nothing is downloaded."""

    def __init__(self, root: Path, toy: str = TOY) -> None:
        super().__init__(root, "amd64", mirror="file:///nonexistent")
        self.toy = toy
        self.fetched = 0

    def source_version(self, source: str, progress: Progress) -> str:
        assert source == "qemu"
        return "1:10.0.13"

    def source(self, source: str, version: str, target: Path, progress: Progress) -> Path:
        self.fetched += 1
        return toy_package(target, version, self.toy)

    def download(self, packages: Sequence[str], progress: Progress, *, dependencies: bool = True) -> list[Package]:
        assert (list(packages), dependencies) == (["meson"], False)
        return []


def make(tmp_path: Path, apt: ToyApt, context: str = "config VIRT") -> QemuBinary:
    configs = tmp_path / "configs"
    if not configs.exists():
        recipe(tmp_path, **{"0001-a": kconfig_patch(context)})
    cache = Cache(tmp_path / "cache")
    return build_qemu(ARM64, apt=apt, cache=cache, progress=SilentProgress(), configs=configs)


@needs_toolchain
def test_the_binary_alone_is_kept_and_found_again(tmp_path: Path) -> None:
    apt = ToyApt(tmp_path / "apt")
    binary = make(tmp_path, apt)
    assert binary.version == "10.0.13"
    assert binary.origin == "built from Debian's qemu 1:10.0.13 with 1 patch from memhp"
    place = Path(binary.argv[0]).parents[1]
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert files == {"bin/qemu-system-aarch64", "manifest.json"}
    assert Path(binary.argv[0]).stat().st_mode & 0o777 == 0o555
    assert list((tmp_path / "cache" / "logs").iterdir()) == []
    assert make(tmp_path, apt) == binary
    assert apt.fetched == 1


@needs_toolchain
def test_what_is_not_built_yet_is_not_found(tmp_path: Path) -> None:
    apt, cache, progress = ToyApt(tmp_path / "apt"), Cache(tmp_path / "cache"), SilentProgress()
    configs = recipe(tmp_path, **{"0001-a": kconfig_patch("config VIRT")}).patches[0].parents[1]
    assert find_qemu(ARM64, apt=apt, cache=cache, progress=progress, configs=configs) is None
    binary = make(tmp_path, apt)
    assert find_qemu(ARM64, apt=apt, cache=cache, progress=progress, configs=configs) == binary


@needs_toolchain
def test_a_failed_build_leaves_its_log_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"applying 0001-a\.patch exited with status 1") as caught:
        make(tmp_path, ToyApt(tmp_path / "apt"), context="config OTHER")
    (log,) = (tmp_path / "cache" / "logs").iterdir()
    assert caught.value.hint == f"the whole log is {log}"
    assert "$ patch -p1 --fuzz=0" in log.read_text()
    assert [path.name for path in (tmp_path / "cache" / "qemu").iterdir() if path.is_dir()] == []


@needs_toolchain
def test_a_binary_that_does_not_run_says_what_to_install(tmp_path: Path) -> None:
    toy = "#!/bin/sh\necho 'libslirp.so.0: cannot open shared object file' >&2\nexit 127\n"
    with pytest.raises(ArtefactError, match=r"(?s)does not run: it exited with status 127:.*libslirp\.so\.0") as caught:
        make(tmp_path, ToyApt(tmp_path / "apt", toy))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("one of its libraries may have been removed: sudo apt-get install libc6-dev")


def test_a_machine_without_compiler_is_told_so_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    apt = ToyApt(tmp_path / "apt")
    with pytest.raises(ArtefactError, match="cannot build QEMU: this machine lacks cc, ld, pkg-config, ninja"):
        make(tmp_path, apt)
    assert apt.fetched == 0


@needs_toolchain
def test_a_source_package_with_a_wrong_hash_is_not_built(tmp_path: Path) -> None:
    made = build(tmp_path, Recipe("aarch64", (), None))
    shutil.rmtree(made.source)
    dsc = toy_package(tmp_path, "1:10.0.13")
    archive = next(tmp_path.glob("qemu_*.tar.*"))
    archive.write_bytes(archive.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtefactError, match=r"(?s)building QEMU: unpacking exited with .*has checksum"):
        made.unpack(dsc)
