# SPDX-License-Identifier: GPL-2.0-or-later
"""Library closures without running anything, of files of this machine and of made-up trees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.arch import ARM64, RISCV64
from harness.artifacts.elf_needed import find_closure, inside, read_elf
from harness.artifacts.firmware import take_flash_image
from harness.artifacts.guestroot import compile_tool, root_entries
from harness.cpio import pack
from harness.errors import ArtefactError

PYTHON = Path(sys.executable).resolve()

needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")
needs_cross = pytest.mark.skipif(
    shutil.which(f"{ARM64.triplet}-gcc") is None, reason="the arm64 cross compiler is not installed"
)


@needs_readelf
def test_what_readelf_says_too() -> None:
    # readelf speaks the user's language.
    english = dict(os.environ, LC_ALL="C")
    said = subprocess.run(["readelf", "-ldW", PYTHON], check=True, capture_output=True, text=True, env=english).stdout
    elf = read_elf(PYTHON)
    assert list(elf.needed) == re.findall(r"\(NEEDED\)\s+Shared library: \[(\S+)\]", said)
    assert elf.interpreter == next(iter(re.findall(r"program interpreter: (\S+)\]", said)), None)


@pytest.mark.parametrize(
    "data",
    [b"", b"#!/bin/sh\n" * 20, b"\x7fELF\x01\x01" + bytes(200), b"\x7fELF\x02\x01" + b"\xff" * 90],
    ids=["empty", "script", "32 bits", "garbage"],
)
def test_what_is_no_elf_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ArtefactError, match="file is not a 64-bit little-endian ELF file"):
        read_elf(tmp_path / "file")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A program that needs libone, which needs libtwo; the library's name is a symlink, as in packages."""
    root = tmp_path / "root"
    libraries = root / "usr" / "lib" / "x-linux-gnu"
    libraries.mkdir(parents=True)
    (root / "usr" / "bin").mkdir()

    def compile_to(out: Path, text: str, *flags: str) -> None:
        command = ["cc", "-x", "c", "-", "-o", str(out), "-nostdlib", *flags]
        subprocess.run(command, input=text.encode(), check=True, capture_output=True)

    search = f"-L{libraries}"
    compile_to(libraries / "libtwo.so.2", "int two(void) { return 2; }", "-shared", "-fPIC", "-Wl,-soname,libtwo.so.2")
    (libraries / "libtwo.so").symlink_to("libtwo.so.2")
    one = "int two(void); int one(void) { return two(); }"
    compile_to(libraries / "libone.so.1.0", one, "-shared", "-fPIC", "-Wl,-soname,libone.so.1", search, "-ltwo")
    (libraries / "libone.so.1").symlink_to("/usr/lib/x-linux-gnu/libone.so.1.0")
    (libraries / "libone.so").symlink_to("libone.so.1.0")
    program = "int one(void); void _start(void) { one(); }"
    flags = ["-pie", "-fPIE", search, f"-Wl,-rpath-link,{libraries}", "-lone", "-Wl,--dynamic-linker=/lib/ld-x.so.1"]
    compile_to(root / "usr" / "bin" / "tool", program, *flags)
    shutil.copy(libraries / "libtwo.so.2", root / "usr" / "lib" / "ld-x.so.1")
    return root


@needs_cc
def test_a_closure_follows_libraries_and_links(tree: Path) -> None:
    closure = find_closure(tree, [tree / "usr" / "bin" / "tool"], "x-linux-gnu")
    libraries = tree / "usr" / "lib" / "x-linux-gnu"
    assert closure.libraries == {"libone.so.1": libraries / "libone.so.1.0", "libtwo.so.2": libraries / "libtwo.so.2"}
    assert closure.interpreter == "/lib/ld-x.so.1"
    assert closure.loader == tree / "usr" / "lib" / "ld-x.so.1"


@needs_cc
def test_a_missing_library_is_named_with_who_needs_it(tree: Path) -> None:
    (tree / "usr" / "lib" / "x-linux-gnu" / "libtwo.so.2").unlink()
    with pytest.raises(ArtefactError, match=r"libone\.so\.1\.0 needs libtwo\.so\.2, which is in none of the packages"):
        find_closure(tree, [tree / "usr" / "bin" / "tool"], "x-linux-gnu")


@needs_cc
def test_a_missing_loader(tree: Path) -> None:
    (tree / "usr" / "lib" / "ld-x.so.1").unlink()
    with pytest.raises(ArtefactError, match=r"none of the packages has the loader /lib/ld-x\.so\.1"):
        find_closure(tree, [tree / "usr" / "bin" / "tool"], "x-linux-gnu")


@needs_cc
def test_the_guest_root_has_programs_libraries_and_loader_and_no_init(tree: Path) -> None:
    mine = tree / "mine"
    mine.write_bytes(b"x")
    entries = list(root_entries(tree, ["usr/bin/tool"], "x-linux-gnu", [mine]))
    paths = [entry.path for entry in entries]
    libraries = [path for path in paths if path.startswith("usr/lib/x-linux-gnu/")]
    assert libraries == ["usr/lib/x-linux-gnu/libone.so.1", "usr/lib/x-linux-gnu/libtwo.so.2"]
    assert {"usr/lib/ld-x.so.1", "usr/bin/tool", "usr/bin/mine", "etc/passwd", "lib", "proc"} <= set(paths)
    assert "init" not in paths
    again = root_entries(tree, ["usr/bin/tool"], "x-linux-gnu", [mine])
    assert pack(again) == pack(entries)


@needs_cc
def test_the_guest_root_names_a_program_that_is_missing(tree: Path) -> None:
    with pytest.raises(ArtefactError, match="none of the packages has usr/bin/other"):
        list(root_entries(tree, ["usr/bin/other"], "x-linux-gnu", []))


def test_paths_stay_inside_the_tree(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "usr" / "lib" / "file").write_text("x")
    (root / "lib").symlink_to("usr/lib")
    (root / "up").symlink_to("../../../../lib/file")
    (root / "loop").symlink_to("loop")
    assert inside(root, "/lib/./file") == root / "usr" / "lib" / "file"
    assert inside(root, "up") == root / "usr" / "lib" / "file"
    assert inside(root, "../../etc/passwd") == root / "etc" / "passwd"
    with pytest.raises(ArtefactError, match="too many symbolic links"):
        inside(root, "loop")


@needs_cross
def test_a_guest_program_is_static_and_for_the_guest(tmp_path: Path) -> None:
    (tmp_path / "tool.c").write_text("int main(void) { return 0; }\n")
    compile_tool(ARM64, tmp_path / "tool.c", tmp_path / "tool")
    elf = read_elf(tmp_path / "tool")
    assert (elf.machine, elf.interpreter, elf.needed) == (183, None, ())
    (tmp_path / "tool.c").write_text("int main(void) { return nonesuch; }\n")
    with pytest.raises(ArtefactError, match=r"(?s)cannot compile tool\.c for arm64:.*nonesuch"):
        compile_tool(ARM64, tmp_path / "tool.c", tmp_path / "tool")


def test_a_machine_without_the_cross_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArtefactError, match="this machine lacks riscv64-linux-gnu-gcc") as caught:
        compile_tool(RISCV64, tmp_path / "tool.c", tmp_path / "tool")
    assert caught.value.hint == "sudo apt-get install gcc-riscv64-linux-gnu libc6-dev-riscv64-cross"


def test_flash_images_have_the_size_that_qemu_takes(tmp_path: Path) -> None:
    image = tmp_path / "AAVMF_CODE.fd"
    with pytest.raises(ArtefactError, match=r"qemu-efi-aarch64 has no AAVMF_CODE\.fd"):
        take_flash_image(ARM64, image, tmp_path / "code.fd")
    image.write_bytes(b"x" * 4096)
    with pytest.raises(ArtefactError, match=r"AAVMF_CODE\.fd of qemu-efi-aarch64 has 4K, not 64M"):
        take_flash_image(ARM64, image, tmp_path / "code.fd")
    with image.open("r+b") as file:
        file.truncate(ARM64.flash_size)
    take_flash_image(ARM64, image, tmp_path / "code.fd")
    assert (tmp_path / "code.fd").stat().st_size == 64 << 20
