# SPDX-License-Identifier: GPL-2.0-or-later
"""The layouts of a kernel's types: made by the command that made its objects; a failure costs no build."""

from __future__ import annotations

import gzip
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from qemu_peer import spec
from toy_kernel import TOY, image

from harness.arch import ARM64
from harness.artifacts.kernel import kernel
from harness.artifacts.layouts import LayoutsBuild
from harness.deadline import Deadline
from harness.errors import ArtefactError
from harness.kmem.btf import Btf
from harness.progress import SilentProgress, Task
from harness.qemu.machine_spec import LAYOUTS

GCC = f"{ARM64.triplet}-gcc"
SOURCE = "#include <toy.h>\nstruct { struct toy *toy; enum kind kind; } memhp_layouts;\n"
HEADER = "struct toy { char a[WIDE]; long b; };\nenum kind { KIND_A, KIND_B = 7 };\n"
#: as kbuild writes it: for make, and for the shell
COMMAND = """{key}_init/main.o := {cc} -Wp,-MMD,init/.main.o.d -I./include -DWIDE=24 -DTEXT='"$(pound)$$a"' -Werror \
-c -o init/main.o /src/init/main.c

source_init/main.o := /src/init/main.c
"""

needs_gcc = pytest.mark.skipif(shutil.which(GCC) is None, reason=f"{GCC} is not installed")


class Told(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, title: str, total: float | None = None) -> AbstractContextManager[Task]:
        return super().task(title, total)

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    configs = tmp_path / "configs" / "kernels"
    configs.mkdir(parents=True)
    (configs / "layouts.c").write_text(SOURCE)
    monkeypatch.setenv("MEMHP_CONFIGS", str(configs.parent))
    built = tmp_path / "built"
    (built / "include").mkdir(parents=True)
    (built / "include" / "toy.h").write_text(HEADER)
    (built / "init").mkdir()
    return built


def made(tree: Path, command: str, path: str | None = None) -> Path:
    (tree / "init" / ".main.o.cmd").write_text(command)
    work, out = tree.parent / "work", tree.parent / "out"
    work.mkdir()
    out.mkdir()
    env = {"PATH": path or "/usr/local/bin:/usr/bin:/bin"}
    LayoutsBuild(ARM64, tree, work, tree.parent / "log", env).run(out, Deadline(60))
    return out / LAYOUTS


@needs_gcc
@pytest.mark.parametrize("key", ["cmd", "savedcmd"])
def test_types_are_laid_out_as_the_kernels_own_command_lays_them_out(tree: Path, key: str) -> None:
    btf = Btf(made(tree, COMMAND.format(key=key, cc=GCC)).read_bytes())
    member = btf.member("toy", "b")
    assert member is not None and (member.offset, btf.size("toy")) == (24, 32)
    assert btf.enumerators("KIND_A") == {"KIND_A": 0, "KIND_B": 7}
    assert not (tree / "init" / ".main.o.d").exists(), "nothing is written into the build"


def test_a_compiler_without_btf(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    with pytest.raises(ArtefactError, match=r"(?s)the compiler writes no BTF \(-gbtf\): .*status 1") as caught:
        made(tree, COMMAND.format(key="cmd", cc="false"))
    assert caught.value.hint == "gcc can since version 12; with another compiler install pahole"
    assert not (tree.parent / "out" / LAYOUTS).exists()


def test_pahole_reads_the_debug_info_of_another_compiler(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tree.parent / "bin"
    programs.mkdir()
    for name, text in {
        "other-cc": 'case "$*" in *-gbtf*) exit 1;; esac\nwhile [ "$1" != -o ]; do shift; done; echo dwarf >$2\n',
        "pahole": "grep -q dwarf $2 && printf '\\237\\353\\001\\000rest' >${1#--btf_encode_detached=}\n",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}")
        (programs / name).chmod(0o755)
    path = f"{programs}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    assert made(tree, COMMAND.format(key="savedcmd", cc="other-cc"), path).read_bytes() == b"\x9f\xeb\x01\x00rest"


@pytest.mark.parametrize(
    "command", ["", "cmd_init/main.o := ccache\n", "cmd_init/main.o := gcc ' -c -o init/main.o x\n"]
)
def test_a_build_that_does_not_tell_its_command(tree: Path, command: str) -> None:
    with pytest.raises(ArtefactError, match=r"init/\.main\.o\.cmd (does not tell how|cannot be read)"):
        made(tree, command)


def test_without_layouts_a_kernel_is_built_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.artifacts.kernel_tree.require_tools", lambda arch, cross: None)
    tree, told = tmp_path / "linux", Told()
    tree.mkdir()
    (tree / "Makefile").write_text(TOY)
    (tree / "Kconfig").write_text("")
    built = kernel(ARM64, str(tree), told)
    assert built.image.is_file() and not built.image.with_name(LAYOUTS).exists()
    (line,) = told.lines
    assert line.startswith("memhp will see less in this kernel's memory: ")
    assert line.endswith(" (scripts/Kbuild.include of v6.1 to v7.3 writes it there)")


def test_layouts_beside_a_packed_image_are_those_of_the_unpacked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "Image.gz"
    path.write_bytes(gzip.compress(image()))
    found = kernel(ARM64, str(path), SilentProgress())
    machine = spec(kernel=found.image, packed=found.packed)
    assert found.image != path and list(machine.beside(LAYOUTS)) == []
    path.with_name(LAYOUTS).write_bytes(b"layouts")
    assert list(machine.beside(LAYOUTS)) == [path.with_name(LAYOUTS)]
    (tmp_path / "Image").write_bytes(image())
    assert kernel(ARM64, str(tmp_path / "Image"), SilentProgress()).packed is None
