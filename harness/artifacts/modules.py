# SPDX-License-Identifier: GPL-2.0-or-later
"""The few modules of a kernel that a guest needs, as a cpio archive with an order to load them in."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.artifacts.image import decompress
from harness.artifacts.modindex import pack_index
from harness.cpio import CpioEntry, directory, pack, regular
from harness.errors import ArtefactError

#: what a guest loads, in this order, as far as the kernel has it as a module
WANTED = (
    "virtio_pci",
    "virtio_net",
    "virtio_rng",
    "virtio_mem",
    "virtio_pmem",
    "nd_pmem",
    "nd_btt",
    "dax_pmem",
    "device_dax",
    "kmem",
)
#: drivers that ndctl and daxctl ask for by name, and the option that builds them in
BUILT_IN = {
    "dax_pmem": "DEV_DAX_PMEM",
    "device_dax": "DEV_DAX",
    "kmem": "DEV_DAX_KMEM",
    "libnvdimm": "LIBNVDIMM",
    "nd_btt": "BLK_DEV_PMEM",
    "nd_pmem": "BLK_DEV_PMEM",
    "virtio_pmem": "VIRTIO_PMEM",
}
#: where the guest finds the list of modules to load
LIST = "usr/lib/memhp/modules"

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_name(path: Path) -> str:
    """``virtio_mem`` for .../virtio-mem.ko.xz: the kernel has no dashes in names."""
    return path.name.split(".ko")[0].replace("-", "_")


def depends(module: bytes) -> list[str]:
    """Names of the modules that a module needs, as its .modinfo has them."""
    match = _DEPENDS.search(module)
    return [] if match is None or not match[1] else match[1].decode("ascii", "replace").replace("-", "_").split(",")


def modules_archive(tree: Path) -> bytes:
    """A gzipped archive from ``lib/modules/RELEASE`` of an unpacked kernel package.

    It has the modules of ``WANTED`` and all they need, unpacked, what modprobe and libkmod look them up in, and the
    list to load. Raises ArtefactError for a module that cannot be unpacked, or needs one that is not there.
    """
    known = {module_name(path): path for path in sorted(tree.rglob("*.ko*"))}
    modules: dict[str, bytes] = {}
    waiting = [name for name in WANTED if name in known]
    while waiting:
        name = waiting.pop()
        if name in modules:
            continue
        if name not in known:
            raise ArtefactError(f"a module of {tree.name} needs {name}, which the package has not")
        try:
            modules[name] = decompress(known[name].read_bytes())
        except (ValueError, OSError, EOFError) as error:
            raise ArtefactError(f"cannot unpack {known[name].name}: {error}") from error
        waiting += depends(modules[name])
    builtin = tree / "modules.builtin"
    names = [module_name(Path(row)) for row in builtin.read_text().split()] if builtin.is_file() else []
    return _archive(tree.name, modules, names)


def builtin_archive(release: str, config: Mapping[str, str]) -> bytes:
    """The archive of a kernel that has its drivers built in: no modules, but libkmod finds that out."""
    return _archive(release, {}, [name for name, option in BUILT_IN.items() if config.get(option) == "y"])


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
    """Everything that ``name`` needs, each before what it needs itself: the order of modules.dep."""
    out: list[str] = []

    def add(names: Iterable[str]) -> None:
        for need in names:
            if need in out:
                out.remove(need)
            out.append(need)
            add(depends(modules[need]))

    add(depends(modules[name]))
    return out
