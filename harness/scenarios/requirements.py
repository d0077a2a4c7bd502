# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario's requirements for kernel, QEMU and host: probed, not derived from versions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.arch.bootwords import BootWords
from harness.arch.config_queries import Build
from harness.config.requirement import Requirement
from harness.errors import UnsupportedError, UsageError
from harness.qemu.devices.device import KINDS
from harness.state import DmesgLine, NotObserved
from harness.units import GIB, KIB, MIB

_SHMEM_THP = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_HUGE = "/sys/kernel/mm/hugepages/hugepages-{}kB"


def _host_pages(name: str, size: int, count: int) -> Requirement:
    def are_free() -> bool:
        return int(_read(f"{_HUGE.format(size // KIB)}/free_hugepages") or 0) >= count

    return Requirement(
        f"host-hugetlb-{name}",
        f"{count} free huge pages of {name}",
        (),
        host=are_free,
        hint=f"echo {count} >{_HUGE.format(size // KIB)}/nr_hugepages",
    )


REQUIREMENTS: dict[str, Requirement] = {
    one.name: one
    for one in (
        *(kind.requirement for kind in KINDS.values()),
        Requirement("acpi-node", "memory on a chosen node (node=)", ("NUMA", "ACPI_NUMA"), boot="acpi"),
        Requirement(
            "node-without-cpu",
            "a node without a CPU, which goes offline with its last memory",
            ("NUMA",),
            arch="arm64",
            elsewhere="QEMU's virt machine of riscv64 requires a CPU on every node (hw/riscv/numa.c, QEMU 10.0)",
        ),
        Requirement("memmap-on-memory", "a memmap that lies in the memory it describes", ("MHP_MEMMAP_ON_MEMORY",)),
        Requirement(
            "folded-hugetlb",
            "folding the memmap of huge pages (HVO)",
            ("HUGETLB_PAGE_OPTIMIZE_VMEMMAP",),
            hint="riscv64 kernels have it; arm64 does not: exchanging the frames of a memmap in use would violate its "
            "break-before-make rule for page tables",
        ),
        Requirement(
            "folded-dax",
            "folding the memmap of device-dax memory",
            ("ARCH_WANT_OPTIMIZE_DAX_VMEMMAP", "NVDIMM_DAX", "DEV_DAX"),
            hint="riscv64 kernels have it; arm64 does not select it (arch/arm64/Kconfig, v6.12)",
        ),
        Requirement("notifier-errors", "memory notifiers that fail", ("MEMORY_NOTIFIER_ERROR_INJECT", "DEBUG_FS")),
        Requirement(
            "host-thp",
            "transparent huge pages for shared memory",
            (),
            host=lambda: _thp(_read(_SHMEM_THP)),
            hint=f"echo advise >{_SHMEM_THP}",
        ),
        # As many as the scenarios of the family plug at a time.
        _host_pages("2M", 2 * MIB, 256),
        _host_pages("1G", GIB, 2),
        Requirement(
            "fault-injection",
            "slab allocations that fail on demand",
            ("FAULT_INJECTION_DEBUG_FS", "FAILSLAB"),
        ),
        Requirement(
            "sv39",
            "paging with three levels (Sv39)",
            (),
            arch="riscv64",
            elsewhere="arm64 has other paging modes",
            hint="--cpu rv64,sv57=off,sv48=off",
            va_bits=39,
        ),
        Requirement("proc-kcore", "the kernel's own view of its memory as a core file", ("PROC_KCORE",)),
        Requirement("dax-kmem", "device-dax memory as system RAM", ("NVDIMM_DAX", "DEV_DAX", "DEV_DAX_KMEM")),
    )
}


def requirement(name: str) -> Requirement:
    """The requirement ``name``; raises UsageError."""
    try:
        return REQUIREMENTS[name]
    except KeyError:
        raise UsageError(f"unknown requirement {name!r}", hint=f"known: {', '.join(REQUIREMENTS)}") from None


def device_kinds(needs: Iterable[str]) -> frozenset[str]:
    """The kinds of memory devices that QEMU must have for ``needs``."""
    wanted = [requirement(name) for name in needs]
    return frozenset(name for name, kind in KINDS.items() if kind.requirement in wanted)


def require_boot(needs: Iterable[str], boot: str) -> None:
    """Raise UnsupportedError if a requirement needs another boot method than ``boot``."""
    for wanted in map(requirement, needs):
        if wanted.boot not in (None, boot):
            raise UnsupportedError(
                wanted.name,
                f"{wanted.meaning} needs a guest that boots by {wanted.boot}, this one boots by {boot}",
                hint=f"boot it with --boot {wanted.boot}",
            )


def require_arch(needs: Iterable[str], arch: str) -> None:
    """Raise UnsupportedError if ``arch`` lacks a requirement."""
    for wanted in map(requirement, needs):
        if wanted.arch not in (None, arch):
            raise UnsupportedError(
                wanted.name, f"{wanted.meaning}: {wanted.elsewhere}", hint=f"run it with -a {wanted.arch}"
            )


def require_paging(needs: Iterable[str], va_bits: int | None) -> None:
    """Raise UnsupportedError unless the guest booted in the required paging mode."""
    for wanted in map(requirement, needs):
        if wanted.va_bits not in (None, va_bits):
            has = "an unknown number of" if va_bits is None else str(va_bits)
            message = f"{wanted.meaning} has virtual addresses of {wanted.va_bits} bits, this guest {has} bits"
            raise UnsupportedError(wanted.name, message, hint=wanted.hint)


def require_host(needs: Iterable[str]) -> None:
    """Raise UnsupportedError if this host lacks a requirement."""
    for wanted in map(requirement, needs):
        if wanted.host is not None and not wanted.host():
            raise UnsupportedError(wanted.name, f"this host lacks {wanted.meaning}", hint=wanted.hint)


#: a kernel's messages about a word that it rejects: init/main.c, kernel/params.c (v6.1 to v7.3)
_IGNORED = re.compile(
    r"Invalid option string for (?P<name>\S+): '.*'"
    r"|Malformed early option '(?P<early>\S+)'"
    r'|Unknown kernel command line parameters "(?P<unknown>.*)", will be passed to user space\.'
)


def require_words(cmdline: str, dmesg: tuple[DmesgLine, ...] | NotObserved, kernel: str) -> None:
    """Raise UnsupportedError for a word of ``cmdline`` that the kernel reported as ignored during boot.

    Otherwise the effect of that word would silently go untested.
    """
    words = BootWords.of(cmdline)
    for line in () if isinstance(dmesg, NotObserved) else dmesg:
        match = _IGNORED.fullmatch(line.text)
        if match is None:
            continue
        names = [name for name in (match["name"], match["early"]) if name]
        names += [name for name, _ in BootWords.of(match["unknown"] or "").words]
        ignored = [name for name in names if words.values(name)]
        if ignored:
            raise UnsupportedError(
                "command-line",
                f"{kernel} does not take {ignored[0]} as it is given: {line.text}",
                hint="remove the word, or use a value that this kernel accepts",
            )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _thp(modes: str) -> bool:
    """QEMU advises the kernel to use them (ram_block_add, system/physmem.c), so ``advise`` is enough."""
    return any(f"[{mode}]" in modes for mode in ("always", "within_size", "advise", "force"))


def require_config(needs: Iterable[str], config: Mapping[str, str] | None, kernel: str) -> None:
    """Raise UnsupportedError naming every kernel option that is missing; an unknown config passes."""
    build = Build(config)
    for wanted in map(requirement, needs):
        missing = build.lacking(wanted.options)
        if missing and not isinstance(missing, NotObserved):
            options = ", ".join(f"CONFIG_{option}" for option in missing)
            raise UnsupportedError(
                wanted.name,
                f"{kernel} has no {options}, which {wanted.meaning} needs",
                hint=wanted.hint,
            )
