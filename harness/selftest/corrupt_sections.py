# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of mem_section, of struct pages, and of the count of page tables, to which their struct pages belong."""

from __future__ import annotations

from collections.abc import Callable

from harness.kmem.edit import WORD
from harness.kmem.lookup import KernelReader
from harness.kmem.structs import BitField, PageLayout
from harness.selftest.corruption import Case, Stroke, memory
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.state import TablePage

#: returns the number of a section
Find = Callable[[Live], int]
#: returns the physical address of a word of a section
Word = Callable[[Live, int], int]


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


# words of a section ----------------------------------------------------------------------------------------------


def _map(live: Live, number: int) -> int:
    """section_mem_map."""
    return live.section_entry(number) + live.sparse.map_offset


def _usage(live: Live, number: int) -> int:
    """The pointer to its usage."""
    return live.section_entry(number) + live.usage.pointer


def _bitmap(live: Live, number: int) -> int:
    """The first word of its sub-section bitmap."""
    return live.direct.physical(live.editor.read_word(_usage(live, number))) + live.usage.bitmap


def _changed(find: Find, word: Word, change: Callable[[Live, int], int], where: str = "section {}") -> Stroke:
    """Change a word of a section."""

    def apply(live: Live) -> str:
        number = find(live)
        address = word(live, number)
        before = live.editor.read_word(address)
        after = change(live, before)
        if after == before:
            raise Inapplicable(f"section {number} is already like that")
        live.editor.write_word(address, after)
        return where.format(number)

    return apply


def _clear(find: Find, flag: str) -> Stroke:
    return _changed(find, _map, lambda live, word: word & ~live.flag(flag))


def _set(find: Find, flag: str) -> Stroke:
    return _changed(find, _map, lambda live, word: word | live.flag(flag))


def _unknown_flag(live: Live, word: int) -> int:
    """The first bit above all flags of the kernel."""
    return word | 1 << len(live.sparse.flags)


def _nowhere(live: Live, pointer: int) -> int:
    return _linear(live, live.nowhere)


def _of_another(live: Live, pointer: int) -> int:
    return live.editor.read_word(_usage(live, _offline(live)))


def _linear(live: Live, physical: int) -> int:
    """A pointer to a physical address."""
    return live.view.kernel.linear_start - live.view.kernel.phys_offset + physical


def _root(pointer: Callable[[Live, int], int]) -> Stroke:
    return _changed(_online, Live.section_root, pointer, "the root of section {}")


# whole entries ---------------------------------------------------------------------------------------------------


def _gone(find: Find) -> Stroke:
    def apply(live: Live) -> str:
        number = find(live)
        live.editor.write(live.section_entry(number), bytes(live.sparse.array.entry_size))
        return f"section {number}"

    return apply


def _stale(live: Live) -> str:
    """Restore the entry of removed memory: like offline memory, but with its own usage."""
    number, model = _removed(live), _offline(live)
    size = live.sparse.array.entry_size
    live.editor.write(live.section_entry(number), live.editor.read(live.section_entry(model), size))
    usage = live.spare()
    live.editor.write_word(usage + live.usage.bitmap, live.editor.read_word(_bitmap(live, model)))
    live.editor.write_word(_usage(live, number), _linear(live, usage))
    return f"section {number}"


def _swapped(live: Live) -> str:
    one, other = live.section_entry(_online(live)), live.section_entry(_offline(live))
    size = live.sparse.array.entry_size
    here, there = live.editor.read(one, size), live.editor.read(other, size)
    live.editor.write(one, there)
    live.editor.write(other, here)
    return f"sections {_online(live)} and {_offline(live)}"


def _one_more(live: Live) -> str:
    """Add a sub-section to a partial section."""
    number, bits = _partial(live), live.scene.partial_section().subsections
    place = next(bit for bit in range(live.sparse.subsections) if not bits >> bit & 1)
    address = _bitmap(live, number) + place // 64 * WORD
    live.editor.write_word(address, live.editor.read_word(address) | 1 << place % 64)
    return f"section {number}, sub-section {place}"


# struct pages, and the count of page tables ----------------------------------------------------------------------


def _page(change: Callable[[Live, int], int]) -> Stroke:
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


def _other(field: Callable[[PageLayout], BitField]) -> Stroke:
    """Flip the lowest bit of a field of the flags, if the kernel has it."""
    return _page(lambda live, flags: flags ^ (1 << field(live.page).shift if field(live.page).width else 0))


def _counter(by: int) -> Stroke:
    def apply(live: Live) -> str:
        address = _reader(live).physical(live.counting.counter)
        live.editor.write_word(address, (live.editor.read_word(address) + by) % (1 << 64))
        return "NR_PAGETABLE"

    return apply


def _mark(counted: bool) -> Stroke:
    """Flip the page type of the first table that is ``counted`` or not; the counter stays."""

    def apply(live: Live) -> str:
        layout, page = live.counting, _table(live, counted)
        kind = layout.type
        at = layout.vmemmap + page.address // live.tables.page_size * layout.struct_page + kind.offset
        address = _reader(live).physical(at)
        shift = kind.shift + address % 8 * 8
        # No page type is -1 in every scheme.
        bits = kind.mask if counted else kind.value
        word = live.editor.read_word(address - address % 8) & ~(kind.mask << shift)
        live.editor.write_word(address - address % 8, word | bits << shift)
        return f"{page.level} table of {page.range}"

    return apply


def _table(live: Live, counted: bool) -> TablePage:
    for page in live.walked.pages:
        if page.counted is counted:
            return page
    raise Inapplicable(f"the kernel has no table that is {'' if counted else 'not '}counted")


def _reader(live: Live) -> KernelReader:
    return KernelReader(live.memory, live.direct, live.tables)


_SECTIONS = memory(
    "mem_section",
    Case("section-not-online", "an online section is not marked online", "SEC-1", _clear(_online, "online")),
    Case("section-online", "an offline section is marked online", "SEC-1", _set(_offline, "online")),
    Case("section-boot-not-online", "boot memory is not marked online", "SEC-1", _clear(_boot, "online")),
    Case("section-device-online", "device memory is marked online", "SEC-1", _set(_device, "online")),
    Case("section-not-present", "a section is not marked present", "SEC-1", _clear(_online, "present")),
    Case("section-without-map", "a section is marked as having no memmap", "SEC-1", _clear(_online, "has-mem-map")),
    Case("section-not-early", "boot memory is not marked early", "SEC-1", _clear(_boot, "early")),
    Case("section-early", "hot-added memory is marked early", "SEC-1", _set(_online, "early")),
    Case("section-tainted", "RAM is tainted as device memory", "SEC-1", _set(_online, "zone-device")),
    Case(
        "section-not-tainted",
        "a section shared with ZONE_DEVICE has lost its taint",
        "SEC-1",
        _clear(_tainted, "zone-device"),
    ),
    Case(
        "section-unknown-flag",
        "a section has a flag that the kernel does not use",
        "SEC-1",
        _changed(_online, _map, _unknown_flag),
    ),
    Case(
        "section-wrong-map",
        "a section's memmap has a wrong address",
        "SEC-1",
        _changed(_online, _map, lambda live, word: word + live.tables.page_size),
    ),
    Case("section-gone", "a section of hot-added memory is missing", "SEC-1", _gone(_online)),
    Case("section-boot-gone", "a section of boot memory is missing", "SEC-1", _gone(_boot)),
    Case("section-stale", "a section of removed memory is present again", "SEC-1", _stale),
    # An incomplete section_deactivate.
    Case(
        "section-half-removed",
        "the usage of a removed section is left",
        "SEC-1",
        _changed(_removed, _usage, _of_another),
    ),
    Case("section-swapped", "an online and an offline section are swapped", "SEC-1", _swapped),
    Case("usage-outside", "a section's usage lies outside of memory", "SEC-1", _changed(_online, _usage, _nowhere)),
    Case(
        "usage-misaligned",
        "a pointer to a section's usage is not aligned",
        "SEC-1",
        _changed(_online, _usage, lambda live, at: at + 4),
    ),
    Case(
        "usage-not-linear",
        "a section's usage pointer is not a pointer",
        "SEC-1",
        _changed(_online, _usage, lambda live, at: 0xDEAD000),
    ),
    Case("usage-shared", "two sections share one usage", "SEC-1", _changed(_online, _usage, _of_another)),
    Case("usage-lost", "a section has lost its usage", "SEC-2", _changed(_online, _usage, lambda live, at: 0)),
    Case(
        "subsection-lost",
        "a sub-section of online memory is not marked present",
        "SEC-2",
        _changed(_online, _bitmap, lambda live, bits: bits & ~(1 << 5)),
    ),
    Case(
        "subsection-boot-lost",
        "a sub-section of boot memory is not marked present",
        "SEC-2",
        _changed(_boot, _bitmap, lambda live, bits: bits & ~1),
    ),
    Case(
        "subsections-lost",
        "no sub-section is marked present",
        "SEC-2",
        _changed(_offline, _bitmap, lambda live, bits: 0),
    ),
    Case("subsection-too-many", "an absent sub-section is marked present", "SEC-2", _one_more),
    Case("section-root-lost", "a root of mem_section is lost", "SEC-1", _root(lambda live, at: 0)),
    Case("section-root-misaligned", "a root of mem_section is not aligned", "SEC-1", _root(lambda live, at: at + 4)),
    Case("section-root-outside", "a root of mem_section points outside of memory", "SEC-1", _root(_nowhere)),
)
_PAGES = memory(
    "struct page",
    Case("page-other-node", "a page of online memory belongs to another node", "SEC-3", _other(lambda page: page.node)),
    Case("page-other-zone", "a page of online memory belongs to another zone", "SEC-3", _other(lambda page: page.zone)),
    Case(
        "page-poisoned",
        "a struct page of online memory was never initialised",
        "SEC-3",
        _page(lambda live, flags: (1 << 64) - 1),
    ),
)
_COUNTER = memory(
    "vm_node_stat",
    Case("tables-overcounted", "one page table too many is counted", "MEM-2", _counter(1)),
    Case("tables-undercounted", "one page table too few is counted", "MEM-2", _counter(-1)),
)
_TYPES = memory(
    "struct page",
    Case("table-dtor-skipped", "a counted table has no type", "MEM-2", _mark(True)),
    Case("table-ctor-skipped", "an uncounted table has the type", "MEM-2", _mark(False)),
)
CORRUPTIONS = (*_SECTIONS, *_PAGES, *_COUNTER, *_TYPES)
