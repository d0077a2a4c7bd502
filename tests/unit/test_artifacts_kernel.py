# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels: recognising images, the modules a guest needs, the required options of a purpose-built one."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from toy_kernel import BOOTABLE, TOY, image, module_tree

from harness.arch import ARCHES, ARM64, RISCV64, ArchSpec
from harness.artifacts import kernel_build
from harness.artifacts.apt import Package
from harness.artifacts.image import embedded_config, read_image, release_of, require_arch
from harness.artifacts.kernel import kernel, take_apart
from harness.artifacts.kernel_build import (
    Fragment,
    KernelBuild,
    environment,
    known_flavours,
    load_fragments,
    lost_options,
    version_of,
)
from harness.dotconfig import read_config
from harness.errors import ArtefactError, UsageError
from harness.progress import SilentProgress

QUIET = SilentProgress()
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "kernels"

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")


CONFIG_SEEN = read_config(BOOTABLE) | {"DEV_DAX_KMEM": "y", "X": "m"}


def zboot(payload: bytes, kind: bytes) -> bytes:
    return b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload)) + bytes(8) + kind.ljust(40, b"\0") + payload


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "Image").write_bytes(data)
    return tmp_path / "Image"


# --- images


@pytest.mark.parametrize(
    "packed",
    [image(), gzip.compress(image()), lzma.compress(image()), lzma.compress(image(), lzma.FORMAT_ALONE)],
    ids=["bare", "gzip", "xz", "lzma"],
)
@pytest.mark.parametrize("in_zboot", [False, True], ids=["file", "zboot"])
def test_images_are_unpacked(tmp_path: Path, packed: bytes, in_zboot: bool) -> None:
    path = written(tmp_path, zboot(packed, b"any") if in_zboot else packed)
    assert read_image(path) == image()


@needs_zstd
def test_a_zstd_image_with_the_size_that_the_kernels_build_appends(tmp_path: Path) -> None:
    packed = subprocess.run(["zstd", "-qc"], input=image(), check=True, capture_output=True).stdout
    assert read_image(written(tmp_path, packed)) == image()
    assert read_image(written(tmp_path, zboot(packed + struct.pack("<I", 9000), b"zstd22"))) == image()


@pytest.mark.parametrize(
    "data",
    [gzip.compress(image())[:40] + b"x" * 40, lzma.compress(image())[:60] + b"y" * 60, zboot(b"", b"gzip")],
    ids=["gzip", "xz", "zboot"],
)
def test_damaged_images(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UsageError, match=r"cannot unpack .*/Image: "):
        read_image(written(tmp_path, data))


def test_a_kernel_of_the_other_architecture_names_both(tmp_path: Path) -> None:
    path = written(tmp_path, image(RISCV64))
    with pytest.raises(UsageError, match=r"Image is a kernel for riscv64, but the guest is arm64") as caught:
        kernel(ARM64, str(path), QUIET)
    assert caught.value.hint == "use -a riscv64, or give a kernel for arm64"


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"\x7fELF" + bytes(4096), r"a vmlinux \(ELF\)"), (b"", "not a kernel Image"), (b"x" * 9000, "not ")],
)
def test_what_is_no_image(data: bytes, what: str) -> None:
    with pytest.raises(UsageError, match=f"it is {what}") as caught:
        require_arch("it", data, ARM64)
    assert caught.value.hint == "the kernel build writes it to arch/arm64/boot/Image"


def test_a_missing_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such kernel: .*/none") as caught:
        kernel(ARM64, str(tmp_path / "none"), QUIET)
    assert caught.value.hint is not None
    assert "'debian'" in caught.value.hint


def test_the_users_own_image(tmp_path: Path) -> None:
    path = written(tmp_path, image())
    own = kernel(ARM64, str(path), QUIET)
    assert (own.image, own.release, own.config) == (path, "6.12.107-hp", CONFIG_SEEN)
    assert own.modules is not None


def test_a_packed_image_of_the_users_becomes_a_bare_one(tmp_path: Path, cache: Path) -> None:
    own = kernel(ARM64, str(written(tmp_path, gzip.compress(image(config=None)))), QUIET)
    assert cache in own.image.parents
    assert own.image.read_bytes() == image(config=None)
    assert (own.config, own.modules) == (None, None)


def test_config_and_release_inside_an_image() -> None:
    assert release_of(image()) == "6.12.107-hp"
    assert release_of(bytes(100)) is None
    assert embedded_config(image(config=None)) is None
    damaged = image().replace(b"IKCFG_ST\x1f\x8b", b"IKCFG_ST\0\0")
    assert embedded_config(damaged) is None


def test_read_config() -> None:
    text = '# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C="a \\"b\\""\nCONFIG_D=n\nCONFIG_E=0x10\nnoise\n'
    assert read_config(text) == {"B": "y", "C": 'a "b"', "E": "0x10"}


# --- selectors


def test_a_source_that_is_none() -> None:
    with pytest.raises(UsageError, match="'bash_5' is not the name of a Debian suite"):
        kernel(ARM64, "purpose:bash_5", QUIET)


# --- packages


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return module_tree(tmp_path)


def package_tree(tmp_path: Path, data: bytes, tree: Path) -> Path:
    root = tmp_path
    (root / "boot").mkdir()
    (root / "boot" / f"vmlinuz-{tree.name}").write_bytes(data)
    (root / "boot" / f"config-{tree.name}").write_text("CONFIG_A=y\n")
    return root


def test_a_kernel_package_is_taken_apart(tmp_path: Path, tree: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    package = Package(tmp_path / "linux-image-x_1_arm64.deb")
    take_apart(ARM64, package, package_tree(tmp_path, gzip.compress(image()), tree), out)
    assert (out / "Image").read_bytes() == image()
    assert (out / "release").read_text() == "6.12-x\n"
    assert (out / "config").read_text() == "CONFIG_A=y\n"


def test_the_parts_of_a_kernel_package_lie_in_one_folder_since_6_16(tmp_path: Path, tree: Path) -> None:
    out, place = tmp_path / "out", tmp_path / "usr" / "lib" / "modules" / tree.name
    out.mkdir()
    place.parent.mkdir(parents=True)
    tree.rename(place)
    (place / "vmlinuz").write_bytes(gzip.compress(image()))
    package = Package(tmp_path / "linux-image-x_1_arm64.deb")
    with pytest.raises(ArtefactError, match=r"linux-image-x holds no configuration of 6\.12-x"):
        take_apart(ARM64, package, tmp_path, out)
    (place / "config").write_text("CONFIG_B=y\n")
    take_apart(ARM64, package, tmp_path, out)
    assert (out / "Image").read_bytes() == image()
    assert [(out / name).read_text() for name in ("release", "config")] == ["6.12-x\n", "CONFIG_B=y\n"]


def test_a_package_without_a_kernel_or_with_a_foreign_one(tmp_path: Path, tree: Path) -> None:
    package = Package(tmp_path / "linux-image-x_1_arm64.deb")
    with pytest.raises(ArtefactError, match="linux-image-x holds 0 kernels and 1 sets of modules"):
        take_apart(ARM64, package, tmp_path, tmp_path)
    with pytest.raises(UsageError, match="linux-image-x is a kernel for riscv64, but the guest is arm64"):
        take_apart(ARM64, package, package_tree(tmp_path, image(RISCV64), tree), tmp_path)


# --- building


FRAGMENT = Fragment(
    "x.config",
    'CONFIG_A=y\nCONFIG_B=n\n# a comment\nCONFIG_NAME="-hp"\n\n# optional: new ones\nCONFIG_C=y\n\nCONFIG_D=16\n',
)


V612 = (6, 12)


def test_what_a_fragment_requires() -> None:
    assert FRAGMENT.options(V612) == {"A": "y", "B": "n", "NAME": "-hp", "C": None, "D": "16"}


def test_options_that_only_some_versions_must_take() -> None:
    part = Fragment("x", "# optional before 6.11: new\nCONFIG_A=y\n\n# optional since 7.2\nCONFIG_B=y\n")
    seen = {version: part.options(version) for version in ((6, 10), (6, 11), (7, 1), (7, 2), (10, 0))}
    assert [version for version, options in seen.items() if options["A"] is None] == [(6, 10)]
    assert [version for version, options in seen.items() if options["B"] is None] == [(7, 2), (10, 0)]


def test_options_of_some_versions_alone() -> None:
    usual = "CONFIG_A=y\n\n# optional since 7.2\nCONFIG_B=y\n"
    part = Fragment("x", usual + "\n# only before 6.9: new default\nCONFIG_C=y\n")
    assert part.text_for((6, 9)) == usual and "C" not in part.options((7, 3))
    assert part.text_for((6, 8)) == part.text and part.options((6, 8))["C"] == "y"
    assert Fragment("x", "# only since 6.9\nCONFIG_C=y\n\nCONFIG_A=y\n").text_for((6, 8)) == "CONFIG_A=y\n"


def test_lost_options_are_named() -> None:
    assert lost_options({"A": "y", "NAME": "-hp", "D": "16"}, (FRAGMENT,), V612) == []
    lost = lost_options({"A": "m", "B": "y", "NAME": "-hp", "D": "16"}, (FRAGMENT,), V612)
    assert lost == ["CONFIG_A=y", "CONFIG_B=n"]
    later = Fragment("y.config", "CONFIG_A=n\n")
    assert lost_options({"NAME": "-hp", "D": "16"}, (FRAGMENT, later), V612) == []
    excused = Fragment("z.config", "# optional before 6.13\nCONFIG_A=y\n")
    assert lost_options({"NAME": "-hp", "D": "16"}, (FRAGMENT, excused), V612) == []
    assert lost_options({"NAME": "-hp", "D": "16"}, (FRAGMENT, excused), (6, 13)) == ["CONFIG_A=y"]


def test_the_version_of_a_kernel_package() -> None:
    assert version_of("6.12.117-1") == V612 and version_of("7.3~rc2-1~exp1") == (7, 3)
    with pytest.raises(ArtefactError, match="'next-2026' is not a kernel version"):
        version_of("next-2026")


@pytest.mark.parametrize("arch", ARCHES.values(), ids=lambda arch: arch.name)
def test_the_projects_fragments_ask_for_what_the_invariants_read(arch: ArchSpec) -> None:
    wanted = {name: value for part in load_fragments(arch, CONFIGS) for name, value in part.options(V612).items()}
    needed = ["PTDUMP_DEBUGFS", "DEBUG_WX", "VIRTIO_MEM", "VIRTIO_PMEM", "DEV_DAX_KMEM", "ACPI_HOTPLUG_MEMORY"]
    needed += ["MEMORY_HOTREMOVE", "MHP_MEMMAP_ON_MEMORY", "SLUB_DEBUG", "IKCONFIG", "VMCORE_INFO", "DEBUG_VM"]
    assert {name: wanted.get(name) for name in needed} == dict.fromkeys(needed, "y")


def test_a_missing_fragment(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"cannot read .*common\.config: No such file"):
        load_fragments(ARM64, tmp_path)


def test_missing_build_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArtefactError, match="cannot build a kernel: this machine lacks make, cc, flex") as caught:
        kernel_build.require_tools(ARM64)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("sudo apt-get install bc bison flex gcc gcc-aarch64-linux-gnu")


def test_the_builds_environment_has_nothing_of_the_users() -> None:
    made = environment({"PATH": "/bin", "KCFLAGS": "-O0", "USER": "me"})
    assert made["PATH"] == "/bin"
    assert "KCFLAGS" not in made
    assert (made["KBUILD_BUILD_USER"], made["KBUILD_BUILD_TIMESTAMP"]) == ("memhp", "1970-01-01")


def toy_build(tmp_path: Path, text: str, makefile: str = TOY) -> Path:
    source = tmp_path / "linux-source-6.12"
    source.mkdir()
    (source / "Makefile").write_text(makefile)
    package = tmp_path / "package" / "usr" / "src"
    package.mkdir(parents=True)
    archive = package / "linux-source-6.12.tar.xz"
    subprocess.run(["tar", "-C", tmp_path, "-cJf", archive, source.name], check=True)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    job = KernelBuild(ARM64, (Fragment("a.config", text),), "6.12-1", work, tmp_path / "log", QUIET)
    job.run(tmp_path / "package", out)
    return out


def test_a_build_leaves_image_config_and_release(tmp_path: Path) -> None:
    out = toy_build(tmp_path, "CONFIG_A=y\n")
    assert sorted(path.name for path in out.iterdir()) == ["Image", "config", "release"]
    assert (out / "config").read_text() == "# tiny\nCONFIG_A=y\n"


def test_an_option_that_did_not_come_true(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"kernel 6\.12-1 for arm64 did not accept CONFIG_LOST=y"):
        toy_build(tmp_path, "CONFIG_LOST=y\n")


def test_a_failing_build_shows_its_last_lines_and_names_its_log(tmp_path: Path) -> None:
    makefile = TOY.replace("@echo '  CC ", "echo 'mm/slub.c:1: error: boom' >&2; exit 1; echo '")
    with pytest.raises(ArtefactError, match=r"(?s)make exited with status 2:.*error: boom") as caught:
        toy_build(tmp_path, "CONFIG_A=y\n", makefile)
    assert caught.value.hint == f"the whole log is {tmp_path / 'log'}"
    assert "$ make -C" in (tmp_path / "log").read_text()


def test_a_source_package_without_a_source(tmp_path: Path) -> None:
    job = KernelBuild(ARM64, (), "6.12-1", tmp_path, tmp_path / "log", QUIET)
    with pytest.raises(ArtefactError, match="holds 0 archives"):
        job.run(tmp_path, tmp_path)


def test_flavours_are_fragments_that_apply_last() -> None:
    assert set(known_flavours(ARM64, CONFIGS)) == {"16k", "64k", "debug", "dwarf"}
    assert set(known_flavours(RISCV64, CONFIGS)) == {"debug", "dwarf"}
    names = [part.name for part in load_fragments(ARM64, CONFIGS, ["16k", "debug"])]
    assert names == ["common.config", "arm64.config", "arm64+16k.config", "common+debug.config"]
    wanted = load_fragments(ARM64, CONFIGS, ["16k"])
    lost = lost_options({"ARM64_4K_PAGES": "y"}, wanted[-1:], V612)
    assert lost == ["CONFIG_ARM64_4K_PAGES=n", "CONFIG_ARM64_16K_PAGES=y"]
    with pytest.raises(UsageError, match="unknown flavour of the riscv64 kernel: '16k'") as caught:
        kernel(RISCV64, "purpose+16k", QUIET)
    assert caught.value.hint == "known: debug, dwarf"


def test_a_vmlinux_with_debugging_information_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    with path.open("wb") as file:
        file.write(b"\x7fELF")
        file.truncate(512 << 20)
    with pytest.raises(UsageError, match="larger than 256M") as caught:
        read_image(path)
    assert caught.value.hint == "give the Image that the build writes to arch/*/boot, not its vmlinux"
