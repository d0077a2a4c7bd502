# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of mem_section and of the sub-section bitmaps behind it."""

from __future__ import annotations

from collections.abc import Callable

from harness.kmem.edit import WORD
from harness.selftest.corruption import MemoryCorruption, memory
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable

TARGET = "mem_section"
PAGES = "struct page"
#: returns the number of a section
Find = Callable[[Live], int]


def _online(live: Live) -> int:
    return live.scene.block("online").index


def _offline(live: Live) -> int:
    return live.scene.block("offline").index


def _boot(live: Live) -> int:
    return live.scene.block("online", hot=False).index


def _partial(live: Live) -> int:
    return live.scene.partial_section().number


def _tainted(live: Live) -> int:
    for section in live.scene.evidence.expected.sections:
        if "zone-device" in section.flags:
            return section.number
    raise Inapplicable("no section is tainted by ZONE_DEVICE")


def _device(live: Live) -> int:
    """A complete section of device memory, and so without the taint."""
    size = live.scene.evidence.layout.paging.section_size
    device = live.scene.device("virtio-pmem").range
    for piece in live.scene.evidence.expected.linear:
        if device.covers(piece.range) and (whole := piece.range.align_inward(size)):
            return whole.start // size
    raise Inapplicable("device memory has no whole section")


def _removed(live: Live) -> int:
    return live.scene.removed().start // live.scene.evidence.layout.paging.section_size


def _map_word(live: Live, number: int) -> int:
    """The physical address of a section's section_mem_map."""
    return live.section_entry(number) + live.sparse.map_offset


def _usage_word(live: Live, number: int) -> int:
    """The physical address of a section's pointer to its usage."""
    return live.section_entry(number) + live.usage.pointer


def _bitmap(live: Live, number: int) -> int:
    """The physical address of a section's sub-section bitmap."""
    return live.direct.physical(live.editor.read_word(_usage_word(live, number))) + live.usage.bitmap


def _where(number: int) -> str:
    return f"section {number}"


def _turn(live: Live, number: int, change: Callable[[int], int]) -> None:
    """Change a section's flags."""
    address = _map_word(live, number)
    before = live.editor.read_word(address)
    if change(before) == before:
        raise Inapplicable(f"section {number} is already like that")
    live.editor.write_word(address, change(before))


def _clear(find: Find, flag: str) -> Callable[[Live], str]:
    def apply(live: Live) -> str:
        number = find(live)
        _turn(live, number, lambda word: word & ~live.flag(flag))
        return _where(number)

    return apply


def _set(find: Find, flag: str) -> Callable[[Live], str]:
    def apply(live: Live) -> str:
        number = find(live)
        _turn(live, number, lambda word: word | live.flag(flag))
        return _where(number)

    return apply


def _unknown_flag(live: Live) -> str:
    """The first bit above all flags of the kernel."""
    number = _online(live)
    address = _map_word(live, number)
    live.editor.write_word(address, live.editor.read_word(address) | 1 << len(live.sparse.flags))
    return _where(number)


def _wrong_map(live: Live) -> str:
    number = _online(live)
    address = _map_word(live, number)
    live.editor.write_word(address, live.editor.read_word(address) + live.tables.page_size)
    return _where(number)


def _gone(find: Find) -> Callable[[Live], str]:
    def apply(live: Live) -> str:
        number = find(live)
        live.editor.write(live.section_entry(number), bytes(live.sparse.array.entry_size))
        return _where(number)

    return apply


def _stale(live: Live) -> str:
    """Restore the entry of removed memory: like offline memory, but with its own usage."""
    number, model = _removed(live), _offline(live)
    size = live.sparse.array.entry_size
    live.editor.write(live.section_entry(number), live.editor.read(live.section_entry(model), size))
    usage = live.spare()
    live.editor.write_word(usage + live.usage.bitmap, live.editor.read_word(_bitmap(live, model)))
    live.editor.write_word(
        _usage_word(live, number), live.view.kernel.linear_start - live.view.kernel.phys_offset + usage
    )
    return _where(number)


def _half_removed(live: Live) -> str:
    """Removed memory's section keeps only its usage (an incomplete section_deactivate)."""
    number = _removed(live)
    live.editor.write_word(_usage_word(live, number), live.editor.read_word(_usage_word(live, _offline(live))))
    return _where(number)


def _swapped(live: Live) -> str:
    one, other = live.section_entry(_online(live)), live.section_entry(_offline(live))
    size = live.sparse.array.entry_size
    here, there = live.editor.read(one, size), live.editor.read(other, size)
    live.editor.write(one, there)
    live.editor.write(other, here)
    return f"sections {_online(live)} and {_offline(live)}"


def _usage(pointer: Callable[[Live, int], int]) -> Callable[[Live], str]:
    """Change the pointer to an online section's usage."""

    def apply(live: Live) -> str:
        number = _online(live)
        address = _usage_word(live, number)
        live.editor.write_word(address, pointer(live, live.editor.read_word(address)))
        return _where(number)

    return apply


def _nowhere(live: Live, pointer: int) -> int:
    kernel = live.view.kernel
    return kernel.linear_start - kernel.phys_offset + live.nowhere


def _of_another(live: Live, pointer: int) -> int:
    return live.editor.read_word(_usage_word(live, _offline(live)))


def _bits(find: Find, change: Callable[[int], int]) -> Callable[[Live], str]:
    """Change the first word of a section's bitmap."""

    def apply(live: Live) -> str:
        number = find(live)
        address = _bitmap(live, number)
        live.editor.write_word(address, change(live.editor.read_word(address)))
        return _where(number)

    return apply


def _one_more(live: Live) -> str:
    """Add a sub-section to a partial section."""
    number, bits = _partial(live), live.scene.partial_section().subsections
    place = next(bit for bit in range(live.sparse.subsections) if not bits >> bit & 1)
    address = _bitmap(live, number) + place // 64 * WORD
    live.editor.write_word(address, live.editor.read_word(address) | 1 << place % 64)
    return f"{_where(number)}, sub-section {place}"


def _root(pointer: Callable[[Live, int], int]) -> Callable[[Live], str]:
    def apply(live: Live) -> str:
        number = _online(live)
        address = live.section_root(number)
        live.editor.write_word(address, pointer(live, live.editor.read_word(address)))
        return f"the root of section {number}"

    return apply


def _page(change: Callable[[Live, int], int]) -> Callable[[Live], str]:
    """Change the flags of the last struct page of an online section."""

    def apply(live: Live) -> str:
        pfn = live.scene.online().end // live.tables.page_size - 1
        address = live.struct_page(pfn)
        before = live.editor.read_word(address)
        after = change(live, before)
        if after == before:
            raise Inapplicable("the kernel does not store this in page flags")
        live.editor.write_word(address, after)
        return f"pfn {pfn:#x}"

    return apply


def _other_node(live: Live, flags: int) -> int:
    return flags ^ (1 << live.page.node.shift if live.page.node.width else 0)


def _other_zone(live: Live, flags: int) -> int:
    zone = live.page.zone
    return flags ^ (1 << zone.shift if zone.width else 0)


CORRUPTIONS: tuple[MemoryCorruption, ...] = (
    memory(
        "section-not-online", TARGET, "an online section is not marked online", "SEC-1", apply=_clear(_online, "online")
    ),
    memory("section-online", TARGET, "an offline section is marked online", "SEC-1", apply=_set(_offline, "online")),
    memory(
        "section-boot-not-online", TARGET, "boot memory is not marked online", "SEC-1", apply=_clear(_boot, "online")
    ),
    memory("section-device-online", TARGET, "device memory is marked online", "SEC-1", apply=_set(_device, "online")),
    memory("section-not-present", TARGET, "a section is not marked present", "SEC-1", apply=_clear(_online, "present")),
    memory(
        "section-without-map",
        TARGET,
        "a section is marked as having no memmap",
        "SEC-1",
        apply=_clear(_online, "has-mem-map"),
    ),
    memory("section-not-early", TARGET, "boot memory is not marked early", "SEC-1", apply=_clear(_boot, "early")),
    memory("section-early", TARGET, "hot-added memory is marked early", "SEC-1", apply=_set(_online, "early")),
    memory("section-tainted", TARGET, "RAM is tainted as device memory", "SEC-1", apply=_set(_online, "zone-device")),
    memory(
        "section-not-tainted",
        TARGET,
        "a section shared with ZONE_DEVICE has lost its taint",
        "SEC-1",
        apply=_clear(_tainted, "zone-device"),
    ),
    memory(
        "section-unknown-flag",
        TARGET,
        "a section has a flag that the kernel does not use",
        "SEC-1",
        apply=_unknown_flag,
    ),
    memory("section-wrong-map", TARGET, "a section's memmap has a wrong address", "SEC-1", apply=_wrong_map),
    memory("section-gone", TARGET, "a section of hot-added memory is missing", "SEC-1", apply=_gone(_online)),
    memory("section-boot-gone", TARGET, "a section of boot memory is missing", "SEC-1", apply=_gone(_boot)),
    memory("section-stale", TARGET, "a section of removed memory is present again", "SEC-1", apply=_stale),
    memory("section-half-removed", TARGET, "the usage of a removed section is left", "SEC-1", apply=_half_removed),
    memory("section-swapped", TARGET, "an online and an offline section are swapped", "SEC-1", apply=_swapped),
    memory("usage-outside", TARGET, "a section's usage lies outside of memory", "SEC-1", apply=_usage(_nowhere)),
    memory(
        "usage-misaligned",
        TARGET,
        "a pointer to a section's usage is not aligned",
        "SEC-1",
        apply=_usage(lambda live, at: at + 4),
    ),
    memory(
        "usage-not-linear",
        TARGET,
        "a section's usage pointer is not a pointer",
        "SEC-1",
        apply=_usage(lambda live, at: 0xDEAD000),
    ),
    memory("usage-shared", TARGET, "two sections share one usage", "SEC-1", apply=_usage(_of_another)),
    memory("usage-lost", TARGET, "a section has lost its usage", "SEC-2", apply=_usage(lambda live, at: 0)),
    memory(
        "subsection-lost",
        TARGET,
        "a sub-section of online memory is not marked present",
        "SEC-2",
        apply=_bits(_online, lambda bits: bits & ~(1 << 5)),
    ),
    memory(
        "subsection-boot-lost",
        TARGET,
        "a sub-section of boot memory is not marked present",
        "SEC-2",
        apply=_bits(_boot, lambda bits: bits & ~1),
    ),
    memory(
        "subsections-lost", TARGET, "no sub-section is marked present", "SEC-2", apply=_bits(_offline, lambda bits: 0)
    ),
    memory("subsection-too-many", TARGET, "an absent sub-section is marked present", "SEC-2", apply=_one_more),
    memory("section-root-lost", TARGET, "a root of mem_section is lost", "SEC-1", apply=_root(lambda live, at: 0)),
    memory(
        "section-root-misaligned",
        TARGET,
        "a root of mem_section is not aligned",
        "SEC-1",
        apply=_root(lambda live, at: at + 4),
    ),
    memory(
        "section-root-outside",
        TARGET,
        "a root of mem_section points outside of memory",
        "SEC-1",
        apply=_root(_nowhere),
    ),
    memory(
        "page-other-node", PAGES, "a page of online memory belongs to another node", "SEC-3", apply=_page(_other_node)
    ),
    memory(
        "page-other-zone", PAGES, "a page of online memory belongs to another zone", "SEC-3", apply=_page(_other_zone)
    ),
    memory(
        "page-poisoned",
        PAGES,
        "a struct page of online memory was never initialised",
        "SEC-3",
        apply=_page(lambda live, flags: (1 << 64) - 1),
    ),
)
