# SPDX-License-Identifier: GPL-2.0-or-later
"""LIN-* and VMM-1: the kernel's own page tables, as the guest's ptdump shows them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as MappingABC

from harness.arch.layout import KernelLayout
from harness.check.evidence import Evidence
from harness.check.registry import Broken, Outcome, invariant
from harness.model.expected import LinearPiece
from harness.model.layout import BootLayout
from harness.model.leaves import LeafRun, join_runs, leaf_runs
from harness.state import Mapping, NotObserved, PageTables
from harness.units import AddrRange, merge_ranges, subtract_ranges

SOURCE = "/sys/kernel/debug/kernel_page_tables"

Attributes = tuple[str, ...]


class _Dump:
    """The dump of one step with what is needed to read it; addresses are physical unless said otherwise."""

    def __init__(self, layout: BootLayout, kernel: KernelLayout, tables: PageTables) -> None:
        self.kernel = kernel
        self.window = layout.machine.device_window()
        self.shape_words = layout.machine.arch.shape_words
        linear = {name for name, address in tables.markers.items() if address == kernel.linear_start}
        self.linear = [mapping for mapping in tables.mappings if mapping.region in linear]
        self.vmemmap = [mapping for mapping in tables.mappings if mapping.region.startswith("vmemmap")]

    def physical(self, mapping: Mapping) -> AddrRange:
        return self.kernel.physical(mapping.range)

    def permissions(self, mapping: Mapping) -> Attributes:
        return tuple(word for word in mapping.attrs if word not in self.shape_words)

    def covered(self) -> tuple[AddrRange, ...]:
        return merge_ranges(self.physical(mapping) for mapping in self.linear)

    def runs(self, inside: AddrRange) -> Iterator[tuple[AddrRange, Mapping]]:
        """The mappings of the linear map clipped to a physical range."""
        for mapping in self.linear:
            part = self.physical(mapping).intersect(inside)
            if part is not None:
                yield part, mapping

    def leaves(self, inside: AddrRange) -> tuple[LeafRun, ...]:
        """Level and contiguous hint of everything inside, joined where equal."""
        return join_runs(LeafRun(part, mapping.level, "CON" in mapping.attrs) for part, mapping in self.runs(inside))


def _dumps(evidence: Evidence) -> tuple[_Dump, _Dump] | NotObserved:
    """The dumps of now and of the fresh boot."""
    layout = evidence.layout
    if layout.kernel is None:
        return NotObserved("the kernel's virtual layout is unknown: vmcoreinfo could not be read")
    now, boot = evidence.observed.page_tables, layout.baseline.page_tables
    if isinstance(now, NotObserved):
        return now
    if isinstance(boot, NotObserved):
        return boot
    return _Dump(layout, layout.kernel, now), _Dump(layout, layout.kernel, boot)


def _ranges(ranges: Iterable[AddrRange]) -> str:
    return ", ".join(map(str, ranges)) or "nothing"


def _compare(wanted: Iterable[AddrRange], seen: Iterable[AddrRange], what: str) -> Iterator[Broken]:
    wanted, seen = tuple(wanted), tuple(seen)
    for hole in subtract_ranges(wanted, seen):
        yield Broken(f"{what} {hole}", "mapped", "not mapped", SOURCE)
    for left in subtract_ranges(seen, wanted):
        yield Broken(f"{what} {left}", "not mapped", "mapped", SOURCE)


@invariant(
    "LIN-1",
    "the linear map covers every added range completely and nothing of a removed one",
    source="arch_add_memory, arch_remove_memory (arch/arm64/mm/mmu.c, arch/riscv/mm/init.c, v6.12)",
    motive="ee7febce0519: arm64: mm: correct the inside linear map boundaries during hotplug check",
)
def lin_1(evidence: Evidence) -> Outcome:
    dumps = _dumps(evidence)
    if isinstance(dumps, NotObserved):
        return dumps
    now, boot = dumps
    wanted = merge_ranges([*boot.covered(), *(piece.range for piece in evidence.expected.linear)])
    return list(_compare(wanted, now.covered(), "physical"))


def _ordinary(boot: _Dump, writable: str) -> Attributes | None:
    """The attributes that most of boot RAM has: what PAGE_KERNEL looks like in this kernel."""
    sizes: Counter[Attributes] = Counter()
    for mapping in boot.linear:
        if writable in mapping.attrs:
            sizes[boot.permissions(mapping)] += mapping.range.size
    return sizes.most_common(1)[0][0] if sizes else None


@invariant(
    "LIN-2",
    "attributes of hot-added memory equal boot memory's; no page is writable and executable",
    source="pgprot_mhp, PAGE_KERNEL (v6.12); ptdump_check_wx (mm/ptdump.c)",
    motive="d15dfd31384b: arm64: mte: Map hotplugged memory as Normal Tagged",
)
def lin_2(evidence: Evidence) -> Outcome:
    dumps = _dumps(evidence)
    if isinstance(dumps, NotObserved):
        return dumps
    now, boot = dumps
    arch = evidence.layout.machine.arch
    ordinary = _ordinary(boot, arch.writable_word)
    if ordinary is None:
        return NotObserved("no writable boot memory stands in the page-table dump to compare with")
    return [*_attributes(now, evidence.expected.linear, ordinary, arch.device_page_words), *_write_exec(evidence)]


def _attributes(
    now: _Dump, pieces: Iterable[LinearPiece], ordinary: Attributes, device_words: MappingABC[str, str]
) -> Iterator[Broken]:
    device = tuple(device_words.get(word, word) for word in ordinary)
    for piece in pieces:
        wanted = device if piece.pages == "device" else ordinary
        for part, mapping in now.runs(piece.range):
            seen = now.permissions(mapping)
            if seen != wanted:
                yield Broken(f"physical {part}", " ".join(wanted), " ".join(seen), SOURCE)


def _write_exec(evidence: Evidence) -> Iterator[Broken]:
    arch, tables = evidence.layout.machine.arch, evidence.observed.page_tables
    assert not isinstance(tables, NotObserved)
    for mapping in tables.mappings:
        if arch.writable_word in mapping.attrs and arch.executable_word in mapping.attrs:
            yield Broken(f"virtual {mapping.range}", "writable or executable", " ".join(mapping.attrs), SOURCE)


@invariant(
    "LIN-3",
    "leaf sizes and the contiguous hint obey the architecture's rule for this kernel; boot memory's are unchanged",
    source="__create_pgd_mapping, can_set_direct_map (arch/arm64/mm); best_map_size (arch/riscv/mm/init.c, v6.12)",
    motive="95a58852b0e5: arm64/mm: Reject memory removal that splits a kernel leaf mapping",
)
def lin_3(evidence: Evidence) -> Outcome:
    dumps = _dumps(evidence)
    if isinstance(dumps, NotObserved):
        return dumps
    return list(_leaf_differences(evidence, *dumps))


def _leaf_differences(evidence: Evidence, now: _Dump, boot: _Dump) -> Iterator[Broken]:
    layout = evidence.layout
    for ram in layout.machine.node_ranges():
        yield from _compare_leaves(boot.leaves(ram), now.leaves(ram))
    pages_only = _maps_pages_only(boot, layout)
    offset = now.kernel.linear_start - now.kernel.phys_offset
    sizes = {level: size for level, size in layout.paging.leaf_sizes.items() if level in now.kernel.leaf_levels}
    paging = dataclasses.replace(layout.paging, leaf_sizes=sizes)
    for piece in evidence.expected.linear:
        virtual = leaf_runs(piece.range.shift(offset), paging, offset, pages_only=pages_only)
        wanted = tuple(LeafRun(run.range.shift(-offset), run.level, run.contiguous) for run in virtual)
        yield from _compare_leaves(wanted, now.leaves(piece.range))


def _maps_pages_only(boot: _Dump, layout: BootLayout) -> bool:
    """True if this kernel maps RAM by single pages (rodata=full, debug_pagealloc, KFENCE), as boot RAM shows.

    The alias of the kernel's own text and rodata is mapped by blocks either way, so read-only runs do not count.
    """
    writable = layout.machine.arch.writable_word
    runs = [mapping for ram in layout.machine.node_ranges() for _, mapping in boot.runs(ram)]
    return all(m.level == "PTE" and "CON" not in m.attrs for m in runs if writable in m.attrs)


def _describe(runs: Iterable[LeafRun]) -> str:
    return ", ".join(f"{run.range} {run.level}{' CON' if run.contiguous else ''}" for run in runs) or "nothing"


def _compare_leaves(wanted: tuple[LeafRun, ...], seen: tuple[LeafRun, ...]) -> Iterator[Broken]:
    if wanted == seen:
        return
    lost = [run for run in wanted if run not in seen]
    new = [run for run in seen if run not in wanted]
    where = _ranges(merge_ranges(run.range for run in [*lost, *new]))
    yield Broken(f"physical {where}", _describe(lost), _describe(new), SOURCE)


@invariant(
    "VMM-1",
    "vmemmap is mapped for exactly the present (sub-)sections, at the page where a section is partial",
    source="vmemmap_populate, vmemmap_free (arch/arm64/mm/mmu.c, v6.12); section_activate (mm/sparse.c, v6.12)",
    motive="d4234d131b0a: arm64: mm: Populate vmemmap at the page level if not section aligned",
)
def vmm_1(evidence: Evidence) -> Outcome:
    dumps = _dumps(evidence)
    if isinstance(dumps, NotObserved):
        return dumps
    now, _ = dumps
    wanted = merge_ranges(now.kernel.memmap(piece) for piece in evidence.expected.memmap)
    seen = merge_ranges(mapping.range for mapping in now.vmemmap)
    return list(_compare(wanted, seen, "vmemmap"))
