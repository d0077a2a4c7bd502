# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a kernel's options: those that it needs to boot a memhp guest, and those of ``-K``.

Why it did not accept an option of ``-K`` is explained from its Kconfig files.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ArchSpec
from harness.config.own_build import KernelOption
from harness.errors import UsageError

#: option -> its purpose
BOOT_NEEDS = {
    "BLK_DEV_INITRD": "the guest's root is an initrd",
    "RD_GZIP": "the initrd is gzipped",
    "BINFMT_ELF": "its programs",
    "BINFMT_SCRIPT": "/init is a script",
    "PROC_FS": "/proc",
    "SYSFS": "/sys",
    "DEVTMPFS": "/dev",
    "INET": "SSH",
    "PCI": "the network card",
    "VIRTIO_PCI": "the network card",
    "VIRTIO_NET": "the network card",
}
#: drivers that the guest's init can load
_DRIVERS = ("VIRTIO_PCI", "VIRTIO_NET")
#: the drivers of the guest's console, on which a line says that it is up
CONSOLES = {"ttyAMA0": "SERIAL_AMBA_PL011_CONSOLE", "ttyS0": "SERIAL_8250_CONSOLE"}

_ENTRY = re.compile(r"^(?:menu)?config[ \t]+(\w+)[ \t]*$", re.MULTILINE)
_DEPENDS = re.compile(r"^[ \t]+depends on[ \t]+(.+)$", re.MULTILINE)
#: folders of a tree without Kconfig files of the kernel itself
_ELSEWHERE = ("Documentation", "tools", ".git")
#: how many characters of an option's dependencies are quoted
_QUOTED = 300


def require_bootable(arch: ArchSpec, config: Mapping[str, str], name: str, remedy: str) -> None:
    """Raise UsageError naming the options that the kernel lacks; drivers may be modules; ``remedy`` is the hint."""
    needs = BOOT_NEEDS | {CONSOLES[arch.console]: f"the console {arch.console}"}
    missing = [
        f"CONFIG_{option} ({why})"
        for option, why in needs.items()
        if config.get(option) != "y" and not (option in _DRIVERS and config.get(option) == "m")
    ]
    if missing:
        raise UsageError(
            f"{name} cannot boot a memhp guest: it lacks {', '.join(missing)}",
            hint=f"{remedy}; for drivers that are modules, add --modules DIR",
        )


@dataclass(frozen=True, slots=True)
class Definition:
    """One place that defines an option: ``where`` is FILE:LINE in the tree, ``depends`` what it depends on there."""

    where: str
    depends: tuple[str, ...]


def definitions(tree: Path) -> dict[str, list[Definition]]:
    """Every option defined in the Kconfig files of ``tree``, including other architectures'."""
    found: dict[str, list[Definition]] = {}
    for path in _files(tree):
        text = path.read_text(errors="replace")
        entries = list(_ENTRY.finditer(text))
        ends = [*(entry.start() for entry in entries), len(text)][1:]
        for entry, end in zip(entries, ends, strict=True):
            where = f"{path.relative_to(tree)}:{text.count(chr(10), 0, entry.start()) + 1}"
            below = _attributes(text[entry.end() : end]).replace("\\\n", " ")
            depends = tuple(" ".join(words.split()) for words in _DEPENDS.findall(below))
            found.setdefault(entry[1], []).append(Definition(where, depends))
    return found


def _attributes(text: str) -> str:
    """The text below an entry's first line, up to the next line that is not indented."""
    rest = re.search(r"^\S", text, re.MULTILINE)
    return text if rest is None else text[: rest.start()]


def _files(tree: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(tree):
        folders[:] = sorted(name for name in folders if name not in _ELSEWHERE)
        yield from (Path(folder, name) for name in sorted(names) if name.startswith("Kconfig"))


def require_options(options: Sequence[KernelOption], config: Mapping[str, str], tree: Path) -> None:
    """Raise UsageError naming each of ``options`` that is missing from ``config``, the result of Kconfig; the last
    setting of an option counts."""
    wanted = {option.name: option for option in options}
    lost = [option for option in wanted.values() if not option.is_in(config.get(option.name))]
    if not lost:
        return
    known = definitions(tree)
    reasons = [_why(option, config, known) for option in lost]
    raise UsageError(
        "\n  ".join([f"-K: the kernel of {tree} did not accept {len(lost)} of {len(wanted)} options:", *reasons]),
        hint="set its dependencies with -K, too, or leave it out; nothing was built",
    )


def _why(option: KernelOption, config: Mapping[str, str], known: Mapping[str, Sequence[Definition]]) -> str:
    places, have = known.get(option.name), config.get(option.name, "n")
    if not places:
        near = difflib.get_close_matches(option.name, known, n=1)
        return f"{option.line}: not in any Kconfig file" + (f"; did you mean {near[0]}?" if near else "")
    if option.value == "m" and "MODULES" not in config:
        return f"{option.line}: it is {have}, because modules need CONFIG_MODULES=y"
    symbols = "; ".join(f"{place.where}{_needs(place)}" for place in places)
    return f"{option.line}: it is {have} ({symbols})"


def _needs(place: Definition) -> str:
    if not place.depends:
        return ""
    words = " && ".join(f"({text})" if "||" in text else text for text in place.depends)
    return f" depends on {words[:_QUOTED]}"
