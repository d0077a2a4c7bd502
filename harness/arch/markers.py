# SPDX-License-Identifier: GPL-2.0-or-later
"""The markers of /sys/kernel/debug/kernel_page_tables: what the regions are called, and where they begin.

address_markers of arch/{arm64,riscv}/mm/ptdump.c, filled in from what the kernel tells of itself (its vmcoreinfo note)
and from what its headers compute from that (v6.12).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.arch.spec import ArchSpec
from harness.units import GIB, KIB, MIB, align_down

_TOP = 1 << 64
_RELEASE = re.compile(r"(\d+)\.(\d+)")

Config = Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class MarkerSet:
    """The markers of one boot in the order in which the kernel has them, which is that of their addresses.

    ``start`` is the virtual address from which ptdump walks. ``left_out`` has a sentence for each marker that cannot
    be computed exactly.
    """

    start: int
    markers: tuple[tuple[int, str], ...]
    left_out: tuple[str, ...]


def markers(arch: str | ArchSpec, note: Mapping[str, str], config: Config) -> tuple[tuple[int, str], ...]:
    """The (address, name) of every marker that is known; see ``marker_set``."""
    return marker_set(arch, note, config).markers


def marker_set(arch: str | ArchSpec, note: Mapping[str, str], config: Config) -> MarkerSet:
    """The markers of the boot whose vmcoreinfo is ``note``, of a kernel with ``config`` (None if that is not known).

    Raises KeyError for a key that the note lacks, ValueError for an architecture or values that are not known.
    """
    name = arch if isinstance(arch, str) else arch.name
    if name not in _LAYOUTS:
        raise ValueError(f"no markers are known for {name}")
    found = _LAYOUTS[name](note, config)
    for (lower, before), (upper, after) in itertools.pairwise(found.markers):
        if not 0 <= lower <= upper < _TOP:
            raise ValueError(f"the marker {before!r} at {lower:#x} does not lie below {after!r} at {upper:#x}")
    return found


def _number(note: Mapping[str, str], key: str) -> int:
    return int(note[f"NUMBER({key})"], 0)


_NO_CONFIG = "KASAN's markers: the snapshot has no kernel config"


@dataclass(frozen=True, slots=True)
class _Shadow:
    """Where KASAN keeps its shadow."""

    start: int
    end: int

    def markers(self) -> list[tuple[int, str]]:
        return [(self.start, "Kasan shadow start"), (self.end, "Kasan shadow end")]


#: KASAN_SHADOW_SCALE_SHIFT, arch/arm64/Makefile
_ARM64_SCALES = {"KASAN_GENERIC": 3, "KASAN_SW_TAGS": 4}


def _arm64(note: Mapping[str, str], config: Config) -> MarkerSet:
    """ptdump_init and the macros of arch/arm64/include/asm/memory.h.

    v6.9 moved the fixmap and PCI's I/O ports above vmemmap and made the walk start where the hardware's addresses do;
    before it those two regions are left out.
    """
    bits = _number(note, "VA_BITS")
    used = 64 - _number(note, "TCR_EL1_T1SZ") if bits > 48 else bits
    page, new = int(note["PAGESIZE"]), _is_at_least(note, 6, 9)
    if not 36 <= used <= bits <= 52:
        raise ValueError(f"no arm64 kernel has {bits} bits of virtual addresses and uses {used}")
    offset = _TOP - (1 << bits)
    start = _TOP - (1 << used) if new else offset
    modules = _number(note, "MODULES_VADDR")
    shadow = _arm64_shadow(config or {}, used)
    vmemmap = _number(note, "VMEMMAP_START") + (start - offset) // page * int(note["SIZE(page)"])
    vmemmap_end = _number(note, "VMEMMAP_END")
    found = [
        (offset, "Linear Mapping start"),
        # PAGE_END is _PAGE_END(VA_BITS_MIN), and so is MODULES_VADDR
        (modules if shadow is None else shadow.start, "Linear Mapping end"),
        *(shadow.markers() if shadow is not None else ()),
        (modules, "Modules start"),
        (_number(note, "MODULES_END"), "Modules end"),
        (_number(note, "VMALLOC_START"), "vmalloc() area"),
        (_number(note, "VMALLOC_END"), "vmalloc() end"),
        (vmemmap, "vmemmap start"),
        (vmemmap_end, "vmemmap end"),
    ]
    left_out = [] if config is not None else [_NO_CONFIG]
    if not new:
        left_out.append("'PCI I/O' and 'Fixmap': known for Linux 6.9 and later")
        return MarkerSet(start, tuple(found), tuple(left_out))
    ports = vmemmap_end + 8 * MIB
    found += [(ports, "PCI I/O start"), (ports + 16 * MIB, "PCI I/O end")]
    top = _TOP - 8 * MIB
    if config is None:
        left_out.append("'Fixmap start': it depends on the kernel config, which the snapshot has not")
    else:
        found.append((top - _arm64_fixmap_pages(page, config) * page, "Fixmap start"))
    found.append((top, "Fixmap end"))
    return MarkerSet(start, tuple(found), tuple(left_out))


def _is_at_least(note: Mapping[str, str], major: int, minor: int) -> bool:
    found = _RELEASE.match(note["OSRELEASE"])
    if found is None:
        raise ValueError(f"{note['OSRELEASE'][:80]!r} is not a kernel's release")
    return (int(found[1]), int(found[2])) >= (major, minor)


def _arm64_shadow(config: Mapping[str, str], bits: int) -> _Shadow | None:
    for option, scale in _ARM64_SCALES.items():
        if config.get(option) == "y":
            end = (int(config["KASAN_SHADOW_OFFSET"], 0) + (1 << 64 - scale)) % _TOP
            return _Shadow(end - (1 << bits - scale), end)
    return None


def _arm64_fixmap_pages(page: int, config: Mapping[str, str]) -> int:
    """__end_of_fixed_addresses of enum fixed_addresses, arch/arm64/include/asm/fixmap.h (v6.9 to v6.12)."""
    # FIX_HOLE, FIX_FDT_END to FIX_FDT, FIX_EARLYCON_MEM_BASE, FIX_TEXT_POKE0
    pages = 1 + (2 * MIB // page + 2) + 2
    if config.get("ACPI_APEI_GHES") == "y":
        pages += 4 if config.get("ARM_SDE_INTERFACE") == "y" else 2
    if config.get("UNMAP_KERNEL_AT_EL0") == "y":
        pages += 4 if config.get("RELOCATABLE") == "y" else 3
    # seven slots of early_ioremap, then FIX_PTE to FIX_PGD
    return pages + 7 * (256 * KIB // page) + 5


#: for SV39, SV48 and SV57 alike: a PMD entry of 4K pages
_RISCV_PMD = 2 * MIB


def _riscv64(note: Mapping[str, str], config: Config) -> MarkerSet:
    """ptdump_init and the macros of arch/riscv/include/asm/{pgtable,kasan}.h."""
    bits = _number(note, "VA_BITS")
    if bits not in (39, 48, 57):
        raise ValueError(f"riscv64 has no paging mode of {bits} bits")
    vmemmap = _number(note, "VMEMMAP_START")
    ports = vmemmap - 16 * MIB
    # Before v6.4 the fixmap was smaller. Nothing is mapped below it, and what is not mapped is not printed.
    fixmap = ports - 3 * _RISCV_PMD
    # Where the image is: kernel_map.virt_addr, which KASLR moves (unlike KERNEL_LINK_ADDR) and where modules must end
    image = _number(note, "MODULES_END")
    found = [
        (fixmap, "Fixmap start"),
        (ports, "Fixmap end"),
        (ports, "PCI I/O start"),
        (vmemmap, "PCI I/O end"),
        (vmemmap, "vmemmap start"),
        (_number(note, "VMEMMAP_END"), "vmemmap end"),
        (_number(note, "VMALLOC_START"), "vmalloc() area"),
        (_number(note, "VMALLOC_END"), "vmalloc() end"),
        (_number(note, "PAGE_OFFSET"), "Linear mapping"),
        *(_riscv64_shadow(note, bits).markers() if (config or {}).get("KASAN") == "y" else ()),
        (_number(note, "MODULES_VADDR"), "Modules/BPF mapping"),
        (image, "Kernel mapping"),
    ]
    return MarkerSet(fixmap, tuple(found), () if config is not None else (_NO_CONFIG,))


def _riscv64_shadow(note: Mapping[str, str], bits: int) -> _Shadow:
    end = _number(note, "KERNEL_LINK_ADDR") - 2 * GIB
    return _Shadow(align_down(end - (1 << bits - 4), 1 << bits - 9), end)


_LAYOUTS: Mapping[str, Callable[[Mapping[str, str], Config], MarkerSet]] = {"arm64": _arm64, "riscv64": _riscv64}
