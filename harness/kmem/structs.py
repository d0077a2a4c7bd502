# SPDX-License-Identifier: GPL-2.0-or-later
"""The layout of mem_section, its usage, and struct page in one kernel.

BTF is used where available. Without it, the vmcoreinfo note and the kernel's configuration give most of the layout;
the usage and its sub-section bitmap are located by evidence: the sections of boot RAM, whose bits are known. The kernel
version is never used. Sources: include/linux/mmzone.h, include/linux/page-flags-layout.h, include/linux/mm.h and
kernel/vmcore_info.c (v6.12).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.arch.config_queries import Build
from harness.arch.kernel_layout import KernelLayout
from harness.kmem._sparse_entries import SectionArray, UsagePlace, find_usage
from harness.kmem.address import DirectMap
from harness.kmem.btf import Btf
from harness.kmem.physical_memory import PhysicalMemory
from harness.state import NotObserved
from harness.units import AddrRange

__all__ = ["BitField", "BootedMemory", "PageLayout", "SectionArray", "SparseLayout", "UsagePlace", "sparse_layout"]

_LONG = 64
_MAX_ROOTS = 1 << 23

#: names of the SECTION_* bits that do not follow from the C name in an obvious way
_FLAG_NAMES = {
    "SECTION_MARKED_PRESENT_BIT": "present",
    "SECTION_HAS_MEM_MAP_BIT": "has-mem-map",
    "SECTION_IS_ONLINE_BIT": "online",
    "SECTION_IS_EARLY_BIT": "early",
    "SECTION_TAINT_ZONE_DEVICE_BIT": "zone-device",
    "SECTION_IS_VMEMMAP_PREINIT_BIT": "vmemmap-preinit",
}
_ALWAYS = ("present", "has-mem-map", "online", "early")
_LAST_BIT = "SECTION_MAP_LAST_BIT"
#: zone_names, mm/show_mem.c, as /proc/zoneinfo prints them
_ZONE_NAMES = {
    "ZONE_DMA": "DMA",
    "ZONE_DMA32": "DMA32",
    "ZONE_NORMAL": "Normal",
    "ZONE_HIGHMEM": "HighMem",
    "ZONE_MOVABLE": "Movable",
    "ZONE_DEVICE": "Device",
}
_NUMBER_OF_ZONES = "__MAX_NR_ZONES"
#: types whose sizes and offsets in vmcoreinfo tell whether BTF belongs to the kernel
_COMPARED = ("mem_section", "page", "pglist_data", "zone", "free_area", "list_head")
_OFFSET = re.compile(r"OFFSET\((\w+)\.(\w+)\)")
_NO_SUBSECTIONS = NotObserved("the kernel keeps no sub-sections (no CONFIG_SPARSEMEM_VMEMMAP)")


@dataclass(frozen=True, slots=True)
class BitField:
    """``width`` bits of a word from bit ``shift`` on."""

    shift: int
    width: int


@dataclass(frozen=True, slots=True)
class PageLayout:
    """struct page: its ``size``, the offsets of two members in bytes, and the fields in the upper bits of its flags.

    ``vmemmap`` is the virtual address of the struct page of pfn 0; ``zones`` are the zones' names by number.
    """

    vmemmap: int
    size: int
    flags: int
    refcount: int
    node: BitField
    zone: BitField
    zones: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SparseLayout:
    """mem_section of one kernel.

    ``map_offset`` and ``usage.pointer`` are bytes into an entry, ``usage.bitmap`` bytes into struct mem_section_usage;
    ``flags`` are the names of the low bits of section_mem_map by number; ``section_size`` is bytes, and
    ``subsections`` how many a section has. ``usage`` is not observed where the kernel keeps no sub-sections
    (no SPARSEMEM_VMEMMAP), or where its layout is unknown; likewise ``page``.
    """

    array: SectionArray
    section_size: int
    subsections: int
    map_offset: int
    flags: tuple[str, ...]
    usage: UsagePlace | NotObserved
    page: PageLayout | NotObserved


@dataclass(frozen=True, slots=True)
class BootedMemory:
    """A booted guest: its memory, and the physical ranges ``ram`` of its boot RAM, all of them in use."""

    memory: PhysicalMemory
    direct: DirectMap
    ram: tuple[AddrRange, ...]


def sparse_layout(
    note: Mapping[str, str],
    kernel: KernelLayout,
    *,
    subsection_size: int,
    build: Build,
    btf: Btf | None,
    evidence: BootedMemory,
) -> SparseLayout | NotObserved:
    """Determine the section layout of the kernel that wrote the vmcoreinfo ``note``.

    ``build`` is its configuration and ``btf`` its BTF, if known; one of the two is needed. Anything that cannot be
    determined is not observed, never guessed. Raises ParseError for broken BTF, OutsideMemory if mem_section itself
    cannot be read.
    """
    try:
        return _layout(note, kernel, subsection_size, build, btf, evidence)
    except _Unknown as untold:
        return NotObserved(str(untold))


class _Unknown(Exception):
    """A part of the layout that cannot be determined; the text is the reason."""


@dataclass(frozen=True, slots=True)
class _Build:
    """The parts that depend on the kernel's configuration; ``nodes`` is MAX_NUMNODES, None if unknown."""

    flags: tuple[str, ...]
    zones: tuple[str, ...]
    nodes: int | None
    vmemmap: bool


def _layout(
    note: Mapping[str, str],
    kernel: KernelLayout,
    subsection_size: int,
    options: Build,
    btf: Btf | None,
    evidence: BootedMemory,
) -> SparseLayout:
    section_bits = _number(note, "NUMBER(SECTION_SIZE_BITS)", limit=_LONG)
    memory_bits = _number(note, "NUMBER(MAX_PHYSMEM_BITS)", limit=_LONG)
    section_size = 1 << section_bits
    if section_size % subsection_size or memory_bits <= section_bits:
        raise _Unknown(f"the vmcoreinfo note has sections of {section_bits} bits in a memory of {memory_bits} bits")
    array = _array(note, kernel.page_size, memory_bits - section_bits)
    map_offset = _number(note, "OFFSET(mem_section.section_mem_map)", limit=array.entry_size, unit=8)
    if btf is not None:
        if differs := misfit(note, btf):
            # Worse than none.
            raise _Unknown(differs)
        build = _by_btf(btf)
    else:
        build = _by_config(options)
    usage: UsagePlace | NotObserved = _NO_SUBSECTIONS
    if build.vmemmap and btf is not None:
        usage = _usage(btf, array.entry_size, section_size // subsection_size)
    elif build.vmemmap:
        usage = find_usage(
            evidence.memory, evidence.direct, array, map_offset, section_size, subsection_size, evidence.ram
        )
    return SparseLayout(
        array=array,
        section_size=section_size,
        subsections=section_size // subsection_size,
        map_offset=map_offset,
        flags=build.flags,
        usage=usage,
        page=_page(note, kernel, build),
    )


def _number(note: Mapping[str, str], key: str, *, base: int = 10, limit: int, unit: int = 1) -> int:
    text = note.get(key)
    if text is None:
        raise _Unknown(f"the vmcoreinfo note has no {key}")
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if not 0 <= value < limit or value % unit:
        raise _Unknown(f"the vmcoreinfo note has {key}={text[:40]}")
    return value


def _array(note: Mapping[str, str], page_size: int, bits: int) -> SectionArray:
    """The kind of array, recognised by its number of roots (NR_SECTION_ROOTS, include/linux/mmzone.h)."""
    size = _number(note, "SIZE(mem_section)", limit=page_size + 1)
    roots = _number(note, "LENGTH(mem_section)", limit=_MAX_ROOTS + 1)
    if size < 16 or size & (size - 1):
        raise _Unknown(f"the vmcoreinfo note has a struct mem_section of {size} bytes, which is not a power of two")
    per_root = page_size // size
    address = _number(note, "SYMBOL(mem_section)", base=16, limit=1 << _LONG)
    if roots == -(-(1 << bits) // per_root):
        return SectionArray(address, True, roots, per_root, size)
    if roots == 1 << bits:
        return SectionArray(address, False, roots, 1, size)
    raise _Unknown(f"the vmcoreinfo note has {roots} roots of mem_section, which fits neither kind of SPARSEMEM")


def misfit(note: Mapping[str, str], btf: Btf) -> str | None:
    """How ``btf`` differs from the sizes and offsets in the kernel's vmcoreinfo ``note``: "" if it does not.

    None if it has none of them. Raises ParseError for broken BTF.
    """
    found = [(key, btf.size(name)) for name in _COMPARED if (key := f"SIZE({name})") in note]
    for key in note:
        place = _OFFSET.fullmatch(key)
        if place is not None and place[1] in _COMPARED:
            member = btf.member(place[1], place[2])
            found.append((key, None if member is None else member.offset))
    told = [(key, value) for key, value in found if value is not None]
    for key, value in told:
        if note[key] != str(value):
            return f"the BTF is not that of the running kernel: {key} is {value} in the BTF, {note[key]} in the kernel"
    return "" if told else None


def checked_types(btf: Btf, note: Mapping[str, str]) -> Btf | NotObserved:
    """``btf`` if it fits the kernel that wrote the vmcoreinfo ``note``. Raises ParseError for broken BTF."""
    differs = misfit(note, btf)
    if differs is None:
        return NotObserved("the BTF has none of the types in the kernel's vmcoreinfo")
    return NotObserved(differs) if differs else btf


def _by_btf(btf: Btf) -> _Build:
    bits, kinds = btf.enumerators(_LAST_BIT), btf.enumerators(_NUMBER_OF_ZONES)
    if bits is None or kinds is None:
        raise _Unknown(f"the kernel's BTF has no {_LAST_BIT if bits is None else _NUMBER_OF_ZONES}")
    zones = _in_order(kinds, _NUMBER_OF_ZONES, _ZONE_NAMES)
    # struct zonelist has one element for each zone of each node, and one more (MAX_ZONES_PER_ZONELIST).
    places = btf.member("zonelist", "_zonerefs")
    nodes, rest = (0, 1) if places is None or not places.dimensions else divmod(places.dimensions[0] - 1, len(zones))
    return _Build(
        flags=_in_order(bits, _LAST_BIT, _FLAG_NAMES),
        zones=zones,
        nodes=nodes if rest == 0 and _sound_nodes(nodes) else None,
        vmemmap=btf.member("mem_section_usage", "subsection_map") is not None,
    )


def _by_config(build: Build) -> _Build:
    def has(option: str) -> bool:
        answer = build.has(option)
        if isinstance(answer, NotObserved):
            raise _Unknown("the kernel has neither BTF nor a configuration to read (DEBUG_INFO_BTF, IKCONFIG_PROC)")
        return answer

    shift = build.number("NODES_SHIFT") if has("NUMA") else 0
    nodes = 1 << shift if isinstance(shift, int) and 0 <= shift < 11 else 0
    optional = {"zone-device": "ZONE_DEVICE", "vmemmap-preinit": "SPARSEMEM_VMEMMAP_PREINIT"}
    return _Build(
        flags=_ALWAYS + tuple(name for name, option in optional.items() if has(option)),
        # Every kernel has these two zones.
        zones=tuple(name for zone, name in _ZONE_NAMES.items() if zone in ("ZONE_NORMAL", "ZONE_MOVABLE") or has(zone)),
        nodes=nodes if _sound_nodes(nodes) else None,
        vmemmap=has("SPARSEMEM_VMEMMAP"),
    )


def _sound_nodes(nodes: int) -> bool:
    """MAX_NUMNODES is a power of two up to 1024 (NODES_SHIFT, arch/*/Kconfig)."""
    return 0 < nodes <= 1024 and nodes & (nodes - 1) == 0


def _in_order(values: Mapping[str, int], last: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """The names of an enum that counts from 0 to its enumerator ``last``."""
    by_number = {value: name for name, value in values.items() if name != last}
    if len(by_number) != values[last] or sorted(by_number) != list(range(values[last])):
        raise _Unknown(f"the kernel's enum that ends with {last} does not count up from 0")
    ordered = (by_number[number] for number in range(values[last]))
    return tuple(names.get(name, _plain(name)) for name in ordered)


def _plain(name: str) -> str:
    """SECTION_IS_NEW_THING_BIT: new-thing."""
    words = name.removeprefix("SECTION_").removeprefix("ZONE_").removeprefix("IS_").removesuffix("_BIT")
    return words.lower().replace("_", "-")


def _usage(btf: Btf, entry_size: int, subsections: int) -> UsagePlace | NotObserved:
    pointer, bitmap = btf.member("mem_section", "usage"), btf.member("mem_section_usage", "subsection_map")
    if pointer is None or bitmap is None or pointer.size != 8 or pointer.bit_offset not in range(0, entry_size * 8, 64):
        return NotObserved("the kernel's BTF has no pointer from mem_section to its usage")
    if bitmap.bit_offset % _LONG or bitmap.size != -(-subsections // _LONG) * 8:
        return NotObserved(f"the kernel's BTF has {bitmap.size} bytes of bitmap for {subsections} sub-sections")
    return UsagePlace(pointer.offset, bitmap.offset)


def _page(note: Mapping[str, str], kernel: KernelLayout, build: _Build) -> PageLayout | NotObserved:
    """Node and zone are kept at the top of page->flags (NODES_PGOFF and ZONES_PGOFF, include/linux/mm.h)."""
    if not build.vmemmap:
        return NotObserved("without CONFIG_SPARSEMEM_VMEMMAP, page flags do not always hold the node")
    if build.nodes is None:
        return NotObserved("the kernel's maximum number of nodes is unknown")
    try:
        size = _number(note, "SIZE(page)", limit=kernel.page_size)
        flags = _number(note, "OFFSET(page.flags)", limit=size, unit=8)
        refcount = _number(note, "OFFSET(page._refcount)", limit=size, unit=4)
    except _Unknown as untold:
        return NotObserved(str(untold))
    node_bits = (build.nodes - 1).bit_length()
    # ZONES_SHIFT, include/linux/page-flags-layout.h
    zone_bits = (len(build.zones) - 1).bit_length()
    return PageLayout(
        vmemmap=kernel.vmemmap,
        size=size,
        flags=flags,
        refcount=refcount,
        node=BitField(_LONG - node_bits, node_bits),
        zone=BitField(_LONG - node_bits - zone_bits, zone_bits),
        zones=build.zones,
    )
