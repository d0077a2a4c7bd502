# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's own source tree: where and how it is built, with which options, and what is refused. Toy trees."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from toy_kernel import BOOTABLE, TOY, module

from harness.arch import ARM64
from harness.artifacts.kconfig_check import definitions
from harness.artifacts.kernel import kernel
from harness.artifacts.toolchain import LLVM_PROGRAMS, Toolchain, find_toolchain, used_compiler
from harness.config.own_build import OwnBuild, parse_kernel_option
from harness.errors import ArtefactError, UsageError
from harness.progress import SilentProgress

QUIET = SilentProgress()

KCONFIG = """\
config DEBUG_VM
\tbool "Debug VM"
\tdepends on DEBUG_KERNEL
\tdepends on A || \\
\t\tB
\thelp
\t  It depends on nothing that this text says.

menuconfig LOST
\ttristate "Never taken"
"""
GCC = f"{ARM64.triplet}-gcc"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy_tree(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("harness.artifacts.kernel_tree.require_tools", lambda arch, cross: None)
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Makefile").write_text(TOY)
    (tree / "Kconfig").write_text(KCONFIG)
    return tree


def own(*options: str, build_dir: Path | None = None, llvm: bool = False, own_config: bool = False) -> OwnBuild:
    return OwnBuild(tuple(map(parse_kernel_option, options)), build_dir, llvm, own_config)


def test_a_source_tree_is_built_and_built_again(toy_tree: Path) -> None:
    image = kernel(ARM64, str(toy_tree), QUIET)
    assert (image.image.read_text(), image.release) == ("image\n", "6.12-hp")
    assert image.config is not None and image.config["MEMORY_HOTPLUG"] == "y"
    assert image.origin == f"built from {toy_tree}" and image.modules is not None
    assert sorted(path.name for path in toy_tree.iterdir()) == ["Kconfig", "Makefile"], "the tree is not written to"
    (toy_tree / "Makefile").write_text(TOY.replace("echo image", "echo another"))
    assert kernel(ARM64, str(toy_tree), QUIET).image.read_text() == "another\n"


def test_debug_info_is_kept_for_debuggers_as_long_as_there_is_any(toy_tree: Path) -> None:
    debug = TOY.replace("'# tiny'", "CONFIG_DEBUG_INFO=y").replace("Image:\n", "Image:\n\techo dwarf > $(O)/vmlinux\n")
    (toy_tree / "Makefile").write_text(debug)
    before = kernel(ARM64, str(toy_tree), QUIET).image.with_name("vmlinux")
    (toy_tree / "Makefile").write_text(TOY)
    after = kernel(ARM64, str(toy_tree), QUIET).image.with_name("vmlinux")
    assert before.read_text() == "dwarf\n" and not after.exists()


def test_a_source_tree_that_does_not_build(toy_tree: Path) -> None:
    (toy_tree / "Makefile").write_text(TOY.replace("@echo '  CC ", "exit 1; echo '"))
    with pytest.raises(ArtefactError, match="building the kernel: make exited with status 2"):
        kernel(ARM64, str(toy_tree), QUIET)


def test_equal_builds_are_one_kernel_and_no_later_build_changes_an_earlier_one(toy_tree: Path) -> None:
    first = kernel(ARM64, str(toy_tree), QUIET)
    assert kernel(ARM64, str(toy_tree), QUIET) == first
    (toy_tree / "Makefile").write_text(TOY.replace("echo image", "echo another"))
    assert kernel(ARM64, str(toy_tree), QUIET).image != first.image
    assert first.image.read_text() == "image\n"


def test_options_come_last(toy_tree: Path) -> None:
    found = kernel(ARM64, str(toy_tree), QUIET, own("EXTRA", "LOCALVERSION=-mine", "DEBUG_WX=n", "NR=8"))
    assert found.config is not None
    names = ("EXTRA", "LOCALVERSION", "DEBUG_WX", "NR", "VIRTIO_MEM")
    assert [found.config.get(name) for name in names] == ["y", "-mine", None, "8", "y"]


def refused(tree: Path, build: OwnBuild, makefile: str = TOY) -> UsageError:
    """The error; asserts that nothing was compiled."""
    (tree / "Makefile").write_text(makefile.replace("@echo '  CC ", "touch $(O)/compiled; echo '"))
    with pytest.raises(UsageError) as caught:
        kernel(ARM64, str(tree), QUIET, build)
    assert not list(tree.parent.rglob("compiled"))
    assert caught.value.exit_status == 2
    return caught.value


def test_options_that_were_not_taken(toy_tree: Path) -> None:
    makefile = TOY.replace("grep -v LOST", "grep -v -e LOST -e DEBUG_VMM")
    error = refused(toy_tree, own("LOST", "EXTRA", "DEBUG_VMM"), makefile)
    assert error.message.splitlines() == [
        f"-K: the kernel of {toy_tree} did not accept 2 of 3 options:",
        "  CONFIG_LOST=y: it is n (Kconfig:9)",
        "  CONFIG_DEBUG_VMM=y: not in any Kconfig file; did you mean DEBUG_VM?",
    ]


def test_what_an_option_depends_on_is_quoted(toy_tree: Path) -> None:
    [found] = definitions(toy_tree)["DEBUG_VM"]
    assert (found.where, found.depends) == ("Kconfig:1", ("DEBUG_KERNEL", "A || B"))


def test_a_module_in_a_kernel_without_modules(toy_tree: Path) -> None:
    error = refused(toy_tree, own("MODULES=n", "LOST=m"))
    assert "CONFIG_LOST=m: it is n, because modules need CONFIG_MODULES=y" in error.message


def test_a_kernel_that_could_not_boot_is_not_built(toy_tree: Path) -> None:
    error = refused(toy_tree, own("DEVTMPFS=n"))
    assert error.message == f"--kernel {toy_tree} cannot boot a memhp guest: it lacks CONFIG_DEVTMPFS (/dev)"
    assert error.hint == "-K turns options on; for drivers that are modules, add --modules DIR"


def test_what_is_no_tree_is_not_built_to_order(tmp_path: Path, cache: Path) -> None:
    for name in ("debian", "purpose", str(tmp_path / "Image")):
        with pytest.raises(UsageError, match=r"-K, --llvm: these options need a kernel source tree") as caught:
            kernel(ARM64, name, QUIET, own("X", llvm=True))
        assert caught.value.hint == "--kernel path/to/linux"


# --- the user's own build


def test_a_build_dir(toy_tree: Path, tmp_path: Path) -> None:
    place = tmp_path / "obj"
    found = kernel(ARM64, str(toy_tree), QUIET, own(build_dir=place))
    assert (place / ".config").is_file() and found.image.read_text() == "image\n"
    assert kernel(ARM64, str(toy_tree), QUIET, own(build_dir=place)) == found


def test_a_build_dir_of_somebody_elses(toy_tree: Path, tmp_path: Path) -> None:
    place = tmp_path / "obj"
    place.mkdir()
    (place / ".config").write_text("CONFIG_MINE=y\n")
    error = refused(toy_tree, own(build_dir=place))
    assert error.message == f"--build-dir {place} has a .config that is not memhp's"
    assert "use --own-config to build with it unchanged" in str(error.hint)
    assert (place / ".config").read_text() == "CONFIG_MINE=y\n"


def configured(place: Path, more: str = "CONFIG_MINE=y\n") -> str:
    place.mkdir(exist_ok=True)
    (place / ".config").write_text(BOOTABLE + more)
    return BOOTABLE + more


def test_the_users_own_configuration_stays_as_it_is(toy_tree: Path, tmp_path: Path) -> None:
    text = configured(tmp_path / "obj")
    build = own("EXTRA", build_dir=tmp_path / "obj", own_config=True)
    found = kernel(ARM64, str(toy_tree), QUIET, build)
    assert found.config is not None
    assert (found.config["MINE"], found.config["EXTRA"]) == ("y", "y")
    assert "MEMORY_HOTPLUG" not in found.config, "no option is forced"
    assert sorted(path.name for path in (tmp_path / "obj").iterdir()) == [".config", "arch", "include"]
    assert (tmp_path / "obj" / ".config").read_text() == text
    (toy_tree / "Makefile").write_text(TOY.replace("@echo '  CC ", "exit 1; echo '"))
    with pytest.raises(ArtefactError, match="building the kernel"):
        kernel(ARM64, str(toy_tree), QUIET, build)
    assert (tmp_path / "obj" / ".config").read_text() == text, "also after a failed build"


def test_an_own_configuration_without_options_is_not_even_touched(toy_tree: Path, tmp_path: Path) -> None:
    configured(tmp_path / "obj")
    before = (tmp_path / "obj" / ".config").stat().st_mtime_ns
    kernel(ARM64, str(toy_tree), QUIET, own(build_dir=tmp_path / "obj", own_config=True))
    assert (tmp_path / "obj" / ".config").stat().st_mtime_ns == before


def test_a_tree_that_was_configured_in_place_is_built_there(toy_tree: Path) -> None:
    configured(toy_tree)
    assert kernel(ARM64, str(toy_tree), QUIET, own(own_config=True)).image.read_text() == "image\n"
    assert (toy_tree / "arch").is_dir()
    error = refused(toy_tree, own())
    assert "is configured in place: kbuild cannot build it in another folder" in error.message
    assert "make mrproper" in str(error.hint)


def test_what_an_own_configuration_lacks_to_boot_is_named(toy_tree: Path, tmp_path: Path) -> None:
    configured(tmp_path / "obj")
    (tmp_path / "obj" / ".config").write_text(BOOTABLE.replace("CONFIG_INET=y\n", ""))
    error = refused(toy_tree, own(build_dir=tmp_path / "obj", own_config=True))
    assert "cannot boot a memhp guest: it lacks CONFIG_INET (SSH)" in error.message


def test_no_own_configuration(toy_tree: Path, tmp_path: Path) -> None:
    assert "--own-config: there is no .config in" in refused(toy_tree, own(own_config=True)).message
    assert "--build-dir DIR" in str(refused(toy_tree, own(own_config=True)).hint)
    error = refused(toy_tree, own(build_dir=toy_tree))
    assert "is the source tree itself" in error.message


def test_a_build_that_was_killed_has_left_the_configuration_aside(toy_tree: Path, tmp_path: Path) -> None:
    configured(tmp_path / "obj")
    shutil.copy(tmp_path / "obj" / ".config", tmp_path / "obj" / ".config.before-memhp")
    error = refused(toy_tree, own(build_dir=tmp_path / "obj", own_config=True))
    assert "a killed build left your own .config at" in error.message
    assert "move it back to .config" in str(error.hint)


def test_drivers_in_modules_are_built_along_and_packed(toy_tree: Path, tmp_path: Path) -> None:
    configured(tmp_path / "obj", "CONFIG_MODULES=y\nCONFIG_VIRTIO_MEM=m\nCONFIG_VIRTIO_PMEM=m\n")
    (tmp_path / "a.ko").write_bytes(module(release="6.12-hp"))
    (toy_tree / "Makefile").write_text(f"MODULE = {tmp_path}/a.ko\n{TOY}")
    build = own(build_dir=tmp_path / "obj", own_config=True)
    found = kernel(ARM64, str(toy_tree), QUIET, build)
    assert found.absent == {"VIRTIO_PMEM"}
    assert kernel(ARM64, str(toy_tree), QUIET, build, tmp_path / "obj") == found, "the build's own folder may be named"
    (tmp_path / "a.ko").write_bytes(module(release="6.11"))
    with pytest.raises(UsageError, match=r"virtio_mem\.ko is a module of 6\.11, but the kernel is 6\.12-hp"):
        kernel(ARM64, str(toy_tree), QUIET, build)


# --- compiling


def programs(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str], *, llvm: bool) -> Toolchain:
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", *names)))
    return find_toolchain(ARM64, llvm, tmp_path / "cache", tmp_path)


def test_ccache_has_settings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCACHE_SLOPPINESS", "time_macros")
    assert chain(tmp_path, monkeypatch, [], llvm=False) == Toolchain(GCC, (f"CROSS_COMPILE={ARM64.triplet}-",))
    found = chain(tmp_path, monkeypatch, ["ccache"], llvm=False)
    assert found.words == (f"CROSS_COMPILE={ARM64.triplet}-", f"CC=ccache {GCC}")
    assert found.env == {
        "CCACHE_DIR": str(tmp_path / "cache" / "ccache"),
        "CCACHE_CONFIGPATH": str(tmp_path / "cache" / "ccache" / "ccache.conf"),
    }


def test_llvm_is_all_of_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = [f"{name}-19" for name in LLVM_PROGRAMS]
    older = [f"{name}-9" for name in LLVM_PROGRAMS]
    assert chain(tmp_path, monkeypatch, [*newer[:-1], *older], llvm=True).words == ("LLVM=-9",)
    assert chain(tmp_path, monkeypatch, newer, llvm=True).words == ("LLVM=-19",)
    assert chain(tmp_path, monkeypatch, list(LLVM_PROGRAMS), llvm=True).words == ("LLVM=1",)
    assert chain(tmp_path, monkeypatch, ["ccache"], llvm=True).words == ("LLVM=1", "CC=ccache clang")


def test_llvm_is_one_that_the_tree_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 7.3 refuses Debian 12's clang 14, and takes the clang-19 beside it."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "min-tool-version.sh").write_text("echo 17.0.1\n")
    names = [*LLVM_PROGRAMS, *(f"{name}-16" for name in LLVM_PROGRAMS), "sh"]
    said = "#!/bin/sh\necho 'Debian clang version 14.0.6'\n"
    programs(tmp_path / "bin", *names)
    (tmp_path / "bin" / "clang").write_text(said)
    (tmp_path / "bin" / "sh").unlink()
    (tmp_path / "bin" / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UsageError, match="--llvm: the tree needs LLVM 17 or newer, this machine has 16"):
        find_toolchain(ARM64, True, tmp_path / "cache", tmp_path)
    programs(tmp_path / "bin", *(f"{name}-19" for name in LLVM_PROGRAMS))
    assert find_toolchain(ARM64, True, tmp_path / "cache", tmp_path).words == ("LLVM=-19",)
    (tmp_path / "bin" / "clang").write_text(said.replace("14", "20"))
    assert find_toolchain(ARM64, True, tmp_path / "cache", tmp_path).words == ("LLVM=1",)


def test_llvm_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--llvm: this machine lacks ld\.lld, llvm-ar,") as caught:
        chain(tmp_path, monkeypatch, ["clang"], llvm=True)
    assert str(caught.value.hint).startswith("sudo apt-get install lld llvm; or omit --llvm")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("cmd_init/main.o := arm-gcc -Wp,-MMD", ("CROSS_COMPILE=arm-", "CC=arm-gcc")),
        ("savedcmd_init/main.o := ccache /x/arm-gcc -Wp", ("CROSS_COMPILE=/x/arm-", "CC=ccache /x/arm-gcc")),
        ("savedcmd_init/main.o := clang -Wp", ("LLVM=1", "CC=clang")),
        ("savedcmd_init/main.o := clang-19 -Wp", ("LLVM=-19", "CC=clang-19")),
        ("savedcmd_init/main.o := /opt/bin/clang -Wp", ("LLVM=/opt/bin/", "CC=/opt/bin/clang")),
        ("savedcmd_init/main.o := tcc -Wp", ("usual",)),
        ("garbage", ("usual",)),
    ],
)
def test_what_has_compiled_a_tree_compiles_it_again(tmp_path: Path, command: str, words: tuple[str, ...]) -> None:
    usual = Toolchain("usual", ("usual",), {"CCACHE_DIR": "x"})
    assert used_compiler(tmp_path, usual) == usual
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / ".main.o.cmd").write_text(f"{command}\n\nsource_init/main.o := init/main.c\n")
    found = used_compiler(tmp_path, usual)
    assert found.words == words
    assert bool(found.env) == ("ccache" in command or words == ("usual",))
