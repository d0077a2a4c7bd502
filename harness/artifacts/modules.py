# SPDX-License-Identifier: GPL-2.0-or-later
"""The few modules of a kernel that a guest needs, as a cpio archive with their load order.

They come from a Debian package, from the output of ``make modules_install`` (INSTALL_MOD_PATH), or from the tree that
they were built in.
"""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path

from harness.artifacts.image import LIMIT, decompress
from harness.bounded import read_file
from harness.cpio import CpioEntry, directory, pack, regular
from harness.errors import ArtefactError, UsageError
from harness.qemu.devices.device import KINDS

#: what a guest loads, in this order, where the kernel has it as a module
WANTED = (
    "virtio_pci",
    "virtio_net",
    "virtio_rng",
    *(name for kind in KINDS.values() for name in kind.modules),
    "nd_pmem",
    "nd_btt",
    "dax_pmem",
    "device_dax",
    "kmem",
    "memory_notifier_error_inject",
)
#: drivers that ndctl and daxctl request by name, and the option that builds each of them
BUILT_IN = {
    "dax_pmem": "DEV_DAX_PMEM",
    "device_dax": "DEV_DAX",
    "kmem": "DEV_DAX_KMEM",
    "libnvdimm": "LIBNVDIMM",
    "nd_btt": "BLK_DEV_PMEM",
    "nd_pmem": "BLK_DEV_PMEM",
    **{name: option for kind in KINDS.values() if kind.persistent for name, option in kind.modules.items()},
}
#: all drivers that a guest needs or scenarios use, and the option of each
DRIVERS = {
    **BUILT_IN,
    "virtio_pci": "VIRTIO_PCI",
    "virtio_net": "VIRTIO_NET",
    **{name: option for kind in KINDS.values() for name, option in kind.modules.items()},
    "memory_notifier_error_inject": "MEMORY_NOTIFIER_ERROR_INJECT",
}
#: where the guest finds the list of modules to load
LIST = "usr/lib/memhp/modules"

# libkmod/libkmod-index.c
_MAGIC, _VERSION = 0xB007F457, 0x00020001
_VALUES, _CHILDREN = 0x40000000, 0x20000000
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_VERMAGIC = re.compile(rb"\0vermagic=([^\0 ]*)[ \0]")
_TAKES = "--modules takes an INSTALL_MOD_PATH, a lib/modules/RELEASE, or the tree that the kernel was built in"


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """The modules of one kernel: ``files`` by name, ``builtin`` ones' names; ``origin`` describes their source."""

    origin: str
    release: str
    files: Mapping[str, Path]
    builtin: tuple[str, ...]


def module_name(path: Path) -> str:
    """``virtio_mem`` for .../virtio-mem.ko.xz: the kernel's module names have no dashes."""
    return path.name.split(".ko")[0].replace("-", "_")


def depends(module: bytes) -> list[str]:
    """Names of the modules that a module depends on, from its .modinfo."""
    match = _DEPENDS.search(module)
    return [] if match is None or not match[1] else match[1].decode("ascii", "replace").replace("-", "_").split(",")


def release_tree(path: Path, origin: str) -> ModuleTree:
    """The modules in ``path``, a ``lib/modules/RELEASE``."""
    found = {module_name(file): file for file in sorted(path.rglob("*.ko*"))}
    return ModuleTree(origin, path.name, found, _builtin(path))


def built_tree(path: Path, origin: str) -> ModuleTree:
    """The modules of the last build (``modules.order``) in a build tree; raises UsageError if it cannot be read."""
    try:
        release = (path / "include" / "config" / "kernel.release").read_text().strip()
        order = path / "modules.order"
        rows = order.read_text().split() if order.is_file() else []
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}", hint="build the kernel first") from error
    # Since v6.3 the file lists objects (f65a486821cf, "kbuild: change module.order to list *.o instead of *.ko").
    files = [path / f"{row.removeprefix('kernel/').rpartition('.')[0]}.ko" for row in rows]
    return ModuleTree(origin, release, {module_name(file): file for file in files if file.is_file()}, _builtin(path))


def find_modules(path: Path, release: str | None) -> ModuleTree:
    """The modules of ``release`` (None: any) in ``path``, from ``--modules``; raises UsageError if there are none."""
    option = f"--modules {path}"
    if (path / "include" / "config" / "kernel.release").is_file():
        found = [built_tree(path, option)]
    elif (path / "kernel").is_dir() or (path / "modules.dep").is_file():
        found = [release_tree(path.resolve(), option)]
    else:
        places = [place for place in (path / "lib" / "modules", path / "usr" / "lib" / "modules") if place.is_dir()]
        folders = sorted(folder for place in places for folder in place.iterdir() if folder.is_dir())
        found = [release_tree(folder, option) for folder in folders]
    fitting = [tree for tree in found if release in (None, tree.release)]
    if not found:
        raise UsageError(f"{option}: no modules found", hint=_TAKES)
    if not fitting:
        others = ", ".join(sorted({tree.release for tree in found}))
        raise UsageError(
            f"{option} has the modules of {others}, but the kernel is {release}",
            hint="run make modules_install in the same build, or name the kernel's build tree",
        )
    if len(fitting) > 1 and release is None:
        raise UsageError(
            f"{option} has the modules of {', '.join(tree.release for tree in fitting)}, and the kernel's own "
            "release is unknown",
            hint="name one of them: DIR/lib/modules/RELEASE",
        )
    return fitting[0]


def _builtin(path: Path) -> tuple[str, ...]:
    rows = path / "modules.builtin"
    return tuple(module_name(Path(row)) for row in rows.read_text().split()) if rows.is_file() else ()


def modules_archive(tree: ModuleTree, config: Mapping[str, str] | None) -> bytes:
    """A gzipped archive of ``tree`` for a kernel of the configuration ``config`` (None: unknown).

    It has the modules of ``WANTED`` and their dependencies, unpacked, the indexes of modprobe and libkmod, and the list
    to load. Raises UsageError for a module of another release, ArtefactError for one that cannot be unpacked or has a
    missing dependency.
    """
    modules: dict[str, bytes] = {}
    waiting = [name for name in WANTED if name in tree.files]
    while waiting:
        name = waiting.pop()
        # An option that is now built in may have left an old module file.
        if name in modules or name in tree.builtin:
            continue
        modules[name] = _read_module(tree, name)
        waiting += depends(modules[name])
    builtin = tree.builtin or tuple(_built_in(config or {}))
    return _archive(tree.release, modules, builtin)


def _read_module(tree: ModuleTree, name: str) -> bytes:
    path = tree.files.get(name)
    if path is None:
        raise ArtefactError(f"{tree.origin}: a module of {tree.release} needs {name}, which is missing")
    try:
        data = decompress(read_file(path, LIMIT))
    except (ValueError, OSError, EOFError, LZMAError) as error:
        raise ArtefactError(f"{tree.origin}: cannot unpack {path.name}: {error}") from error
    magic = _VERMAGIC.search(data)
    if magic is not None and magic[1].decode("ascii", "replace") != tree.release:
        other = magic[1].decode("ascii", "replace")
        raise UsageError(
            f"{tree.origin}: {path.name} is a module of {other}, but the kernel is {tree.release}",
            hint="build or install all modules again: make modules, make modules_install",
        )
    return data


def absent_drivers(config: Mapping[str, str], tree: ModuleTree | None) -> frozenset[str]:
    """Options of ``config`` that are modules whose file ``tree`` (None: no modules) lacks."""
    files = {} if tree is None else tree.files
    return frozenset(option for name, option in DRIVERS.items() if config.get(option) == "m" and name not in files)


def _built_in(config: Mapping[str, str]) -> list[str]:
    return [name for name, option in BUILT_IN.items() if config.get(option) == "y"]


def builtin_archive(release: str, config: Mapping[str, str]) -> bytes:
    """The archive for a kernel with built-in drivers: no modules, but the indexes that libkmod needs."""
    return _archive(release, {}, _built_in(config))


def _archive(release: str, modules: Mapping[str, bytes], builtin: Sequence[str]) -> bytes:
    return gzip.compress(pack(_entries(release, modules, builtin)), 6, mtime=0)


def _entries(release: str, modules: Mapping[str, bytes], builtin: Sequence[str]) -> Iterator[CpioEntry]:
    base = f"usr/lib/modules/{release}"
    for path in ("usr", "usr/lib", "usr/lib/memhp", "usr/lib/modules", base):
        yield directory(path)
    for name, data in sorted(modules.items()):
        yield regular(f"{base}/{name}.ko", data)
    lines = {
        name: " ".join([f"{name}.ko:", *(f"{need}.ko" for need in load_order(name, modules))])
        for name in sorted(modules)
    }
    yield regular(f"{base}/modules.dep", "".join(f"{line}\n" for line in lines.values()).encode())
    yield regular(f"{base}/modules.dep.bin", pack_index(lines))
    yield regular(f"{base}/modules.builtin", "".join(f"kernel/{name}.ko\n" for name in sorted(builtin)).encode())
    yield regular(f"{base}/modules.builtin.bin", pack_index({name: "" for name in builtin}))
    for name in ("alias", "builtin.alias", "symbols"):
        yield regular(f"{base}/modules.{name}.bin", pack_index({}))
    wanted = [name for name in WANTED if name in modules]
    yield regular(LIST, "".join(f"{name}\n" for name in wanted).encode())


def load_order(name: str, modules: Mapping[str, bytes]) -> list[str]:
    """The dependencies of ``name`` among ``modules``, each before its own dependencies: the order of modules.dep."""
    out: list[str] = []

    def needs(module: str) -> list[str]:
        return [need for need in depends(modules[module]) if need in modules]

    def add(names: Iterable[str]) -> None:
        for need in names:
            if need in out:
                out.remove(need)
            out.append(need)
            add(needs(need))

    add(needs(name))
    return out


@dataclass
class _TrieNode:
    children: dict[int, _TrieNode] = field(default_factory=dict)
    value: str | None = None


def pack_index(values: Mapping[str, str]) -> bytes:
    """The binary index that libkmod reads, as depmod would write it: maps each key, in ASCII, to its one value.

    daxctl and ndctl ask libkmod for drivers, built-in ones too, and fail if any of its indexes is missing.
    """
    root = _TrieNode()
    for key, value in values.items():
        node = root
        for character in key.encode("ascii"):
            node = node.children.setdefault(character, _TrieNode())
        node.value = value
    # Two header words, then the offset of the root, which is only known at the end.
    out = bytearray(struct.pack(">III", _MAGIC, _VERSION, 0))
    struct.pack_into(">I", out, 8, _write_node(root, out))
    return bytes(out)


def _write_node(node: _TrieNode, out: bytearray) -> int:
    offsets = {character: _write_node(child, out) for character, child in sorted(node.children.items())}
    where = len(out)
    if offsets:
        first, last = min(offsets), max(offsets)
        out += bytes([first, last])
        for character in range(first, last + 1):
            out += struct.pack(">I", offsets.get(character, 0))
        where |= _CHILDREN
    if node.value is not None:
        # The number of values, then the priority and text of each.
        out += struct.pack(">II", 1, 0) + node.value.encode("ascii") + b"\0"
        where |= _VALUES
    return where
