# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's modules: where memhp finds them, which kernel they belong to, and the archive built from them."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from toy_kernel import BOOTABLE, image, module, module_tree

from harness.arch import ARM64
from harness.artifacts.kernel import kernel
from harness.artifacts.modules import (
    absent_drivers,
    builtin_archive,
    depends,
    find_modules,
    load_order,
    module_name,
    modules_archive,
    pack_index,
    release_tree,
)
from harness.errors import ArtefactError, UsageError
from harness.progress import SilentProgress

QUIET = SilentProgress()
needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return module_tree(tmp_path)


def unpacked(tmp_path: Path, archive: bytes) -> Path:
    out = tmp_path / "unpacked"
    out.mkdir()
    command = ["cpio", "-idm", "--quiet"]
    subprocess.run(command, input=gzip.decompress(archive), cwd=out, check=True, capture_output=True)
    return out


@needs_cpio
def test_the_archive_has_the_closure_the_indexes_and_the_list(tmp_path: Path, tree: Path) -> None:
    out = unpacked(tmp_path, modules_archive(release_tree(tree, "it"), None))
    base = out / "usr" / "lib" / "modules" / "6.12-x"
    names = ["failover", "net_failover", "virtio_mem", "virtio_net"]
    assert sorted(path.stem for path in base.glob("*.ko")) == names
    assert (base / "virtio_net.ko").read_bytes() == module("net_failover", "failover")
    assert (base / "modules.dep").read_text().splitlines() == [
        "failover.ko:",
        "net_failover.ko: failover.ko",
        "virtio_mem.ko:",
        "virtio_net.ko: net_failover.ko failover.ko",
    ]
    assert (out / "usr" / "lib" / "memhp" / "modules").read_text() == "virtio_net\nvirtio_mem\n"
    assert (base / "modules.builtin").read_text() == "kernel/virtio.ko\nkernel/virtio_pci.ko\n"
    assert lookup((base / "modules.builtin.bin").read_bytes(), "virtio_pci") == ""
    assert lookup((base / "modules.dep.bin").read_bytes(), "net_failover") == "net_failover.ko: failover.ko"


def test_equal_modules_give_equal_bytes(tree: Path) -> None:
    assert modules_archive(release_tree(tree, "it"), None) == modules_archive(release_tree(tree, "it"), None)


def test_a_module_whose_need_is_missing(tree: Path) -> None:
    (tree / "kernel" / "drivers" / "failover.ko.gz").unlink()
    with pytest.raises(ArtefactError, match=r"it: a module of 6\.12-x needs failover, which is missing"):
        modules_archive(release_tree(tree, "it"), None)


def test_a_module_that_cannot_be_unpacked(tree: Path) -> None:
    (tree / "kernel" / "drivers" / "failover.ko.gz").write_bytes(b"\x1f\x8bx")
    with pytest.raises(ArtefactError, match=r"cannot unpack failover\.ko\.gz"):
        modules_archive(release_tree(tree, "it"), None)


def test_load_order_puts_every_module_before_what_it_needs() -> None:
    modules = {"a": module("b", "c"), "b": module("c"), "c": module("d"), "d": module()}
    assert load_order("a", modules) == ["b", "c", "d"]
    assert load_order("d", modules) == []


def test_names_and_needs() -> None:
    assert module_name(Path("x/virtio-mem.ko.xz")) == "virtio_mem"
    assert depends(b"\0depends=a-b,c\0") == ["a_b", "c"]
    assert depends(b"\0depends=\0") == depends(b"") == []


@needs_cpio
def test_built_in_drivers_are_announced(tmp_path: Path) -> None:
    out = unpacked(tmp_path, builtin_archive("6.12-hp", {"DEV_DAX_KMEM": "y", "BLK_DEV_PMEM": "m"}))
    base = out / "usr" / "lib" / "modules" / "6.12-hp"
    assert (base / "modules.builtin").read_text() == "kernel/kmem.ko\n"
    assert (out / "usr" / "lib" / "memhp" / "modules").read_text() == ""


def lookup(index: bytes, key: str) -> str | None:
    """Search an index as libkmod does (libkmod/libkmod-index.c, index_mm_search)."""
    magic, version, where = struct.unpack_from(">III", index)
    assert (magic, version) == (0xB007F457, 0x00020001)
    rest = key.encode()
    while True:
        offset = where & 0x0FFFFFFF
        if where & 0x80000000:
            end = index.index(0, offset)
            prefix, offset = index[offset:end], end + 1
            if not rest.startswith(prefix):
                return None
            rest = rest[len(prefix) :]
        first, last = (index[offset], index[offset + 1]) if where & 0x20000000 else (1, 0)
        children = offset + 2
        if where & 0x20000000:
            offset = children + 4 * (last - first + 1)
        if not rest:
            if not where & 0x40000000:
                return None
            assert struct.unpack_from(">II", index, offset) == (1, 0)
            return index[offset + 8 : index.index(0, offset + 8)].decode()
        if not first <= rest[0] <= last:
            return None
        (where,) = struct.unpack_from(">I", index, children + 4 * (rest[0] - first))
        if where & 0x0FFFFFFF == 0:
            return None
        rest = rest[1:]


def test_the_index_is_one_that_libkmod_can_search() -> None:
    values = {"kmem": "kmem.ko:", "kmemleak": "", "dax": "x y", "d": "z"}
    index = pack_index(values)
    assert {key: lookup(index, key) for key in values} == values
    for key in ("", "k", "kmemlea", "daxx", "zzz"):
        assert lookup(index, key) is None
    assert lookup(pack_index({}), "kmem") is None


# --- --modules


def built(tmp_path: Path, suffix: str = "o") -> Path:
    """A build tree with modules."""
    path = tmp_path / "linux"
    for folder in ("include/config", "drivers/virtio", "old"):
        (path / folder).mkdir(parents=True)
    (path / "include" / "config" / "kernel.release").write_text("6.12-x\n")
    (path / "modules.order").write_text(f"drivers/virtio/virtio-mem.{suffix}\n")
    (path / "drivers" / "virtio" / "virtio-mem.ko").write_bytes(module())
    (path / "old" / "virtio_pmem.ko").write_bytes(module(release="6.1"))
    return path


@pytest.mark.parametrize("suffix", ["o", "ko"])
def test_a_tree_that_modules_were_built_in(tmp_path: Path, suffix: str) -> None:
    found = find_modules(built(tmp_path, suffix), "6.12-x")
    assert (list(found.files), found.release) == (["virtio_mem"], "6.12-x")


def test_where_modules_were_installed(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "lib" / "modules" / "6.1-other" / "kernel").mkdir(parents=True)
    for place in (tmp_path, tree):
        found = find_modules(place, "6.12-x")
        assert (found.release, sorted(found.files)[0]) == ("6.12-x", "failover")
    with pytest.raises(UsageError, match=r"modules of 6\.1-other, 6\.12-x, and the kernel's own release is unknown"):
        find_modules(tmp_path, None)


def test_no_modules(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no modules found") as caught:
        find_modules(tmp_path, "6.12-x")
    assert "INSTALL_MOD_PATH" in str(caught.value.hint)


def test_modules_of_another_release(tmp_path: Path, tree: Path) -> None:
    places = (tmp_path, tree, built(tmp_path))
    for place in places:
        with pytest.raises(
            UsageError, match=r"--modules \S+ has the modules of 6\.12-x, but the kernel is 7\.3-y"
        ) as caught:
            find_modules(place, "7.3-y")
        assert "make modules_install" in str(caught.value.hint)


def test_a_module_that_is_left_of_another_release(tree: Path) -> None:
    (tree / "kernel" / "drivers" / "net_failover.ko").write_bytes(module("failover", release="6.11-z"))
    with pytest.raises(UsageError, match=r"it: net_failover\.ko is a module of 6\.11-z, but the kernel is 6\.12-x"):
        modules_archive(release_tree(tree, "it"), None)


def test_a_built_tree_that_was_not_built_to_its_end(tmp_path: Path) -> None:
    path = built(tmp_path)
    (path / "drivers" / "virtio" / "virtio-mem.ko").unlink()
    assert absent_drivers({"VIRTIO_MEM": "m", "VIRTIO_NET": "y"}, find_modules(path, "6.12-x")) == {"VIRTIO_MEM"}


@needs_cpio
def test_what_has_become_built_in_is_no_module_any_more(tmp_path: Path, tree: Path) -> None:
    (tree / "modules.builtin").write_text("kernel/virtio-mem.ko\nkernel/failover.ko\n")
    base = unpacked(tmp_path, modules_archive(release_tree(tree, "it"), None)) / "usr" / "lib" / "modules" / "6.12-x"
    assert sorted(path.stem for path in base.glob("*.ko")) == ["net_failover", "virtio_net"]


MODULAR = BOOTABLE.replace("VIRTIO_NET=y", "VIRTIO_NET=m") + "CONFIG_VIRTIO_MEM=m\nCONFIG_VIRTIO_PMEM=m\n"


@pytest.fixture
def modular(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Image whose drivers are modules."""
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "Image"
    path.write_bytes(image(config=MODULAR).replace(b"6.12.107-hp", b"6.12-x\0\0\0\0\0"))
    path.write_bytes(path.read_bytes().replace(b"6.12-x\0\0\0\0\0 (", b"6.12-x (\0\0\0\0\0"))
    return path


@needs_cpio
def test_an_image_with_its_modules(tmp_path: Path, tree: Path, modular: Path) -> None:
    found = kernel(ARM64, str(modular), QUIET, modules=tmp_path)
    assert (found.release, found.absent) == ("6.12-x", {"VIRTIO_PMEM"})
    assert found.usable is not None and "VIRTIO_PMEM" not in found.usable and found.usable["VIRTIO_MEM"] == "m"
    assert found.modules is not None
    out = unpacked(tmp_path, found.modules.read_bytes())
    assert (out / "usr" / "lib" / "memhp" / "modules").read_text() == "virtio_net\nvirtio_mem\n"


def test_an_image_without_the_modules_that_it_takes(modular: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot boot a memhp guest: it lacks CONFIG_VIRTIO_NET") as caught:
        kernel(ARM64, str(modular), QUIET)
    assert "--modules DIR" in str(caught.value.hint)


def test_debians_kernels_have_modules_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--modules: --kernel debian brings its own modules"):
        kernel(ARM64, "debian", QUIET, modules=tmp_path)
