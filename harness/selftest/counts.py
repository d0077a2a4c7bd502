# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruptions of the kernel's page-table count: the counter itself, and the page type of a table's struct page."""

from __future__ import annotations

from collections.abc import Callable

from harness.kmem.lookup import KernelReader
from harness.selftest.corruption import MemoryCorruption, memory
from harness.selftest.live import Live
from harness.selftest.scene import Inapplicable
from harness.state import TablePage

COUNTER = "vm_node_stat"
PAGES = "struct page"


def _counter(by: int) -> Callable[[Live], str]:
    def apply(live: Live) -> str:
        address = _reader(live).physical(live.counting.counter)
        live.editor.write_word(address, (live.editor.read_word(address) + by) % (1 << 64))
        return "NR_PAGETABLE"

    return apply


def _mark(counted: bool) -> Callable[[Live], str]:
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


CORRUPTIONS: tuple[MemoryCorruption, ...] = (
    memory("tables-overcounted", COUNTER, "one page table too many is counted", "MEM-2", apply=_counter(1)),
    memory("tables-undercounted", COUNTER, "one page table too few is counted", "MEM-2", apply=_counter(-1)),
    memory("table-dtor-skipped", PAGES, "a counted table has no type", "MEM-2", apply=_mark(True)),
    memory("table-ctor-skipped", PAGES, "an uncounted table has the type", "MEM-2", apply=_mark(False)),
)
