# SPDX-License-Identifier: GPL-2.0-or-later
"""The markers of /sys/kernel/debug/kernel_page_tables: names and start addresses of the regions.

address_markers of arch/{arm64,riscv}/mm/ptdump.c, computed from the kernel's vmcoreinfo note as in its headers (v6.12).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.arch.architecture import ArchSpec
from harness.arch.config_queries import Build
from harness.arch.features import kasan_shadow
from harness.arch.kernel_layout import arm64_page_end, has_regions_above_vmemmap
from harness.arch.modes import arm64_bits, riscv64_bits
from harness.state import NotObserved
from harness.units import MIB, TOP, AddrRange

Config = Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class MarkerSet:
    """The markers of one boot in the kernel's order, which is that of their addresses.

    ``start`` is the virtual address from which ptdump walks. ``left_out`` has a sentence for each marker that cannot
    be computed exactly.
    """

    start: int
    markers: tuple[tuple[int, str], ...]
    left_out: tuple[str, ...]


def marker_set(
    arch: str | ArchSpec, note: Mapping[str, str], config: Config, dumped: Mapping[str, int] | None = None
) -> MarkerSet:
    """The markers of the boot whose vmcoreinfo is ``note``, of a kernel with ``config`` (None if that is not known).

    ``dumped`` are the markers in the guest's own dump, None without one: the size of arm64's fixmap depends on the
    kernel's options and version, and has no other source.

    Raises KeyError for a key that the note lacks, ValueError for an unknown architecture or unknown values.
    """
    name = arch if isinstance(arch, str) else arch.name
    if name not in _LAYOUTS:
        raise ValueError(f"no markers are known for {name}")
    found = _LAYOUTS[name](note, config, dumped or {})
    for (lower, before), (upper, after) in itertools.pairwise(found.markers):
        if not 0 <= lower <= upper < TOP:
            raise ValueError(f"the marker {before!r} at {lower:#x} is not below {after!r} at {upper:#x}")
    return found


def _number(note: Mapping[str, str], key: str) -> int:
    return int(note[f"NUMBER({key})"], 0)


def _shadow(arch: str, note: Mapping[str, str], config: Config) -> tuple[AddrRange | None, tuple[str, ...]]:
    """KASAN's shadow, and why its markers are left out where that is not known."""
    place = kasan_shadow(arch, note, Build(config))
    return (None, (f"KASAN's markers: {place.reason}",)) if isinstance(place, NotObserved) else (place, ())


def _shadow_markers(shadow: AddrRange | None) -> list[tuple[int, str]]:
    return [] if shadow is None else [(shadow.start, "Kasan shadow start"), (shadow.end, "Kasan shadow end")]


_NO_FIXMAP = "the address of 'Fixmap start': only a dump by the guest shows it, and there is none"


def _arm64(note: Mapping[str, str], config: Config, dumped: Mapping[str, int]) -> MarkerSet:
    """ptdump_init and the macros of arch/arm64/include/asm/memory.h.

    A fixmap of unknown size begins where the region below it ends; nothing is mapped in between.
    """
    bits = _number(note, "VA_BITS")
    used = arm64_bits(note)
    page, new = int(note["PAGESIZE"]), has_regions_above_vmemmap(note)
    if not 36 <= used <= bits <= 52:
        raise ValueError(f"no arm64 kernel has {bits} bits of virtual addresses and uses {used}")
    offset = TOP - (1 << bits)
    start = TOP - (1 << used) if new else offset
    modules, vmalloc_end = _number(note, "MODULES_VADDR"), _number(note, "VMALLOC_END")
    shadow, left_out = _shadow("arm64", note, config)
    found = [
        (offset, "Linear Mapping start"),
        (arm64_page_end(note, shadow), "Linear Mapping end"),
        *_shadow_markers(shadow),
        (modules, "Modules start"),
        (_number(note, "MODULES_END"), "Modules end"),
        (_number(note, "VMALLOC_START"), "vmalloc() area"),
        (vmalloc_end, "vmalloc() end"),
    ]
    vmemmap, vmemmap_end = _number(note, "VMEMMAP_START"), _number(note, "VMEMMAP_END")
    if new:
        memmap = vmemmap + (start - offset) // page * int(note["SIZE(page)"])
        ports = vmemmap_end + 8 * MIB
        found += [(memmap, "vmemmap start"), (vmemmap_end, "vmemmap end"), *_arm64_ports(ports)]
        found += [(dumped.get("Fixmap start", ports + 16 * MIB), "Fixmap start"), (TOP - 8 * MIB, "Fixmap end")]
    else:
        found += [(dumped.get("Fixmap start", vmalloc_end), "Fixmap start"), (vmemmap - 32 * MIB, "Fixmap end")]
        found += [*_arm64_ports(vmemmap - 24 * MIB), (vmemmap, "vmemmap start"), (vmemmap_end, "vmemmap end")]
    return MarkerSet(start, tuple(found), left_out if "Fixmap start" in dumped else (*left_out, _NO_FIXMAP))


def _arm64_ports(start: int) -> list[tuple[int, str]]:
    return [(start, "PCI I/O start"), (start + 16 * MIB, "PCI I/O end")]


#: for SV39, SV48 and SV57 alike: a PMD entry of 4K pages
_RISCV_PMD = 2 * MIB


def _riscv64(note: Mapping[str, str], config: Config, dumped: Mapping[str, int]) -> MarkerSet:
    """ptdump_init and the macros of arch/riscv/include/asm/{pgtable,kasan}.h."""
    bits = riscv64_bits(note)
    if bits not in (39, 48, 57):
        raise ValueError(f"riscv64 has no paging mode of {bits} bits")
    shadow, left_out = _shadow("riscv64", note, config)
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
        *_shadow_markers(shadow),
        (_number(note, "MODULES_VADDR"), "Modules/BPF mapping"),
        (image, "Kernel mapping"),
    ]
    return MarkerSet(fixmap, tuple(found), left_out)


_LAYOUTS: Mapping[str, Callable[[Mapping[str, str], Config, Mapping[str, int]], MarkerSet]] = {
    "arm64": _arm64,
    "riscv64": _riscv64,
}
