# SPDX-License-Identifier: GPL-2.0-or-later
"""LIN-*: the linear map, as the guest's own dump and the host's walk of the page tables show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from harness.check.code import code_pages, may_split
from harness.check.evidence import Evidence
from harness.check.registry import Broken, Seen, Unobserved, invariant, observed
from harness.check.witnesses import Attributes, Pair, View
from harness.model.boot_layout import BootLayout
from harness.model.leaves import LeafRun
from harness.model.spanned_blocks import ram_leaves
from harness.state import HostMapping, NotObserved
from harness.units import AddrRange, intersect_ranges, merge_ranges, subtract_ranges


def by_witness(check: Callable[[Evidence, Pair], Iterable[Broken]]) -> Callable[[Evidence], Seen]:
    """A check that gives the findings of ``check`` in each available source of page tables."""

    def check_all(evidence: Evidence) -> Seen:
        views = evidence.views
        if not views.pairs:
            observed(views.unobserved())
        return Seen([broken for pair in views.pairs for broken in check(evidence, pair)], views.note())

    return check_all


def compare_cover(wanted: Iterable[AddrRange], seen: Iterable[AddrRange], what: str, source: str) -> Iterator[Broken]:
    """Holes in ``seen``, and what it has in addition to ``wanted``."""
    wanted, seen = tuple(wanted), tuple(seen)
    for hole in subtract_ranges(wanted, seen):
        yield Broken(f"{what} {hole}", "mapped", "not mapped", source)
    for left in subtract_ranges(seen, wanted):
        yield Broken(f"{what} {left}", "not mapped", "mapped", source)


@invariant(
    "LIN-1",
    "the linear map covers every added range completely and nothing of a removed one or beyond the end of boot memory, "
    "and leads where it must",
    source="arch_add_memory, arch_remove_memory (arch/arm64/mm/mmu.c, arch/riscv/mm/init.c, v6.12)",
    motive="ee7febce0519: arm64: mm: correct the inside linear map boundaries during hotplug check",
    needs=("tables",),
)
@by_witness
def lin_1(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    boot = intersect_ranges(pair.boot.covered(), evidence.layout.machine.node_ranges())
    wanted = merge_ranges([*boot, *(piece.range for piece in evidence.expected.linear)])
    yield from compare_cover(wanted, pair.now.covered(), "physical", pair.source)
    for leaf in pair.now.linear:
        must = pair.now.physical(leaf)
        if isinstance(leaf, HostMapping) and leaf.physical != must.start:
            leads = AddrRange.sized(leaf.physical, leaf.range.size)
            yield Broken(f"virtual {leaf.range}", f"physical {must}", f"physical {leads}", pair.source)


@invariant(
    "LIN-2",
    "attributes of hot-added memory equal boot memory's (loaded code aside); no page is writable and executable",
    source="pgprot_mhp, PAGE_KERNEL (v6.12); ptdump_check_wx (mm/ptdump.c)",
    motive="d15dfd31384b: arm64: mte: Map hotplugged memory as Normal Tagged",
    needs=("tables",),
)
def lin_2(evidence: Evidence) -> Seen:
    outcome = by_witness(lambda evidence, pair: [*_attributes(evidence, pair), *_write_exec(evidence, pair)])(evidence)
    if not outcome.broken:
        if not any(map(_ordinary_of(evidence), evidence.views.pairs)):
            raise Unobserved("no writable boot memory stands in the page tables to compare with")
        observed(evidence.layout.features.debug_pagealloc)
        observed(evidence.layout.features.lax_image)
    return outcome


def transient_attributes(layout: BootLayout) -> frozenset[str]:
    """Attributes that free pages of this kernel may lose: debug_pagealloc makes them inaccessible."""
    never = layout.features.debug_pagealloc is False
    return frozenset() if never else layout.machine.arch.table_rules.validity_words


def _ordinary_of(evidence: Evidence) -> Callable[[Pair], Attributes | None]:
    arch, passing = evidence.layout.machine.arch, transient_attributes(evidence.layout)
    return lambda pair: _ordinary(pair.boot, arch.writable_word, passing)


def _ordinary(boot: View, writable: str, passing: frozenset[str]) -> Attributes | None:
    """The attributes that most of boot RAM has: what PAGE_KERNEL looks like in this kernel."""
    sizes: Counter[Attributes] = Counter()
    for leaf in boot.linear:
        if writable in leaf.attrs:
            sizes[_without(boot.permissions(leaf), passing)] += leaf.range.size
    return sizes.most_common(1)[0][0] if sizes else None


def _without(words: Attributes, passing: frozenset[str]) -> Attributes:
    return tuple(word for word in words if word not in passing) if passing else words


def _attributes(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    ordinary = _ordinary_of(evidence)(pair)
    if ordinary is None:
        return
    words, passing = evidence.layout.machine.arch.device_page_words, transient_attributes(evidence.layout)
    code = code_pages(evidence.layout, evidence.views)
    device = tuple(words.get(word, word) for word in ordinary)
    for piece in evidence.expected.linear:
        wanted = device if piece.pages == "device" else ordinary
        for part, leaf in pair.now.runs(piece.range):
            seen = _without(pair.now.permissions(leaf), passing)
            for odd in subtract_ranges([part], code) if seen != wanted else ():
                yield Broken(f"physical {odd}", " ".join(wanted), " ".join(seen), pair.source)


def _write_exec(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    words = {evidence.layout.machine.arch.writable_word, evidence.layout.machine.arch.executable_word}
    # The kernel's own image, where it was built or told to leave that writable and executable (set_debug_rodata).
    lax = evidence.layout.features.lax_image is not False
    allowed = [leaf.range for leaf in pair.boot.leaves if words <= set(leaf.attrs)] if lax else []
    for leaf in pair.now.leaves:
        if words <= set(leaf.attrs):
            for piece in subtract_ranges([leaf.range], allowed):
                yield Broken(f"virtual {piece}", "writable or executable", " ".join(leaf.attrs), pair.source)


@invariant(
    "LIN-3",
    "leaf sizes and the contiguous hint obey the architecture's rule for this kernel; boot memory's are unchanged "
    "(or split for loaded code)",
    source="__create_pgd_mapping, can_set_direct_map (arch/arm64/mm); best_map_size (arch/riscv/mm/init.c, v6.12)",
    motive="95a58852b0e5: arm64/mm: Reject memory removal that splits a kernel leaf mapping",
    needs=("tables",),
)
@by_witness
def lin_3(evidence: Evidence, pair: Pair) -> Iterator[Broken]:
    layout, now = evidence.layout, pair.now
    split = may_split(layout, evidence.expected, pair)
    lent = evidence.expected.kernel_memory if split else ()
    for ram in layout.machine.node_ranges():
        yield from _compare_leaves(pair.boot.shapes(ram), now.shapes(ram), pair.source, _sizes(layout) if split else {})
    pages_only = layout.maps_pages_only
    assert not isinstance(pages_only, NotObserved)
    offset = now.kernel.linear_start - now.kernel.phys_offset
    sizes = _sizes(layout)
    for piece in evidence.expected.linear:
        virtual = ram_leaves(layout, piece.range, pages_only=pages_only)
        wanted = tuple(LeafRun(run.range.shift(-offset), run.level, run.contiguous) for run in virtual)
        finer = sizes if any(part.overlaps(piece.range) for part in lent) else {}
        yield from _compare_leaves(wanted, now.shapes(piece.range), pair.source, finer)


def _describe(runs: Iterable[LeafRun]) -> str:
    return ", ".join(f"{run.range} {run.level}{' CON' if run.contiguous else ''}" for run in runs) or "nothing"


def _sizes(layout: BootLayout) -> dict[str, int]:
    """The size of an entry of each level at which RAM is mapped."""
    assert layout.kernel is not None
    return {level: size for level, size in layout.paging.leaf_sizes.items() if level in layout.kernel.leaf_levels}


def _is_finer(wanted: tuple[LeafRun, ...], seen: tuple[LeafRun, ...], sizes: Mapping[str, int]) -> bool:
    """True if nothing is mapped by larger leaves than it must; an entry that is split is split as a whole."""
    if merge_ranges(run.range for run in wanted) != merge_ranges(run.range for run in seen):
        return False
    return all(
        sizes[run.level] < sizes[must.level] or (sizes[run.level] == sizes[must.level] and not run.contiguous)
        for run in seen
        for must in wanted
        if run.range.overlaps(must.range)
    )


def _compare_leaves(
    wanted: tuple[LeafRun, ...], seen: tuple[LeafRun, ...], source: str, finer: Mapping[str, int]
) -> Iterator[Broken]:
    """The difference between two lists of leaves; with the sizes of levels in ``finer`` smaller ones will do."""
    if wanted == seen or (finer and _is_finer(wanted, seen, finer)):
        return
    lost = [run for run in wanted if run not in seen]
    new = [run for run in seen if run not in wanted]
    where = ", ".join(map(str, merge_ranges(run.range for run in [*lost, *new]))) or "nothing"
    yield Broken(f"physical {where}", _describe(lost), _describe(new), source)
