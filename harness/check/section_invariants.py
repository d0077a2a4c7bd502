# SPDX-License-Identifier: GPL-2.0-or-later
"""SEC-*: mem_section and its sub-section bitmaps, read from the guest's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.check.evidence import Evidence
from harness.check.registry import Broken, Unobserved, invariant, observed, paired
from harness.check.witnesses import WALK
from harness.model.expected import ExpectedSection
from harness.state import NotObserved, Section
from harness.units import AddrRange

#: section -> expected and observed, None if absent
Pairs = dict[int, tuple[ExpectedSection | None, Section | None]]


def _pairs(evidence: Evidence) -> Pairs:
    return paired(evidence.expected.sections, observed(evidence.observed.sections), lambda section: section.number)


def _where(evidence: Evidence, number: int) -> str:
    size = evidence.layout.paging.section_size
    return f"section {number} (physical {AddrRange.sized(number * size, size)})"


def _words(flags: Iterable[str]) -> str:
    return " ".join(sorted(flags)) or "none"


@invariant(
    "SEC-1",
    "mem_section has exactly the present sections, each with the model's flags (present, has-mem-map, online, early, "
    "zone-device) and its memmap in vmemmap",
    source="section_activate, section_deactivate, sparse_init_one_section, online_mem_sections (mm/sparse.c), "
    "section_taint_zone_device (mm/memory_hotplug.c, v6.12)",
    motive="5ec8e8ea8b77: mm/sparsemem: fix race in accessing memory_section->usage",
    needs=("sections",),
)
def sec_1(evidence: Evidence) -> Iterator[Broken]:
    pairs, kernel, faults = _pairs(evidence), evidence.layout.kernel, evidence.observed.section_faults
    for fault in () if isinstance(faults, NotObserved) else faults:
        where = f"sections {fault.first} to {fault.first + fault.count - 1}"
        yield Broken(where, "readable", f"{fault.reason} ({fault.address:#x})", WALK)
    for number, (wanted, seen) in pairs.items():
        where = _where(evidence, number)
        if wanted is None or seen is None or wanted.flags != set(seen.flags):
            must, there = ("absent" if part is None else _words(part.flags) for part in (wanted, seen))
            yield Broken(where, must, there, WALK)
        if wanted is not None and seen is not None and kernel is not None and seen.mem_map != kernel.vmemmap:
            must = f"mem_map of pfn 0 at {kernel.vmemmap:#x} (vmemmap)"
            yield Broken(where, must, f"{seen.mem_map:#x}", WALK)


@invariant(
    "SEC-2",
    "the sub-section bitmap of every section has exactly the model's bits",
    source="fill_subsection_map, clear_subsection_map (mm/sparse.c, v6.12)",
    motive="a bit too many makes pfn_valid() vouch for struct pages that are gone",
    needs=("subsections",),
)
def sec_2(evidence: Evidence) -> Iterator[Broken]:
    pairs = _pairs(evidence)
    if all(seen is None or (seen.usage == 0 and seen.subsections is None) for _, seen in pairs.values()):
        raise Unobserved("where this kernel keeps the bitmaps of its sub-sections is not known")
    for number, (wanted, seen) in pairs.items():
        if wanted is not None and seen is not None and wanted.subsections != seen.subsections:
            must, there = (_bits(evidence, part.subsections) for part in (wanted, seen))
            yield Broken(_where(evidence, number), must, there, WALK)


@invariant(
    "SEC-3",
    "struct pages of memory that is online carry the node and the zone of the model",
    source="set_page_links (include/linux/mm.h), move_pfn_range_to_zone (mm/memory_hotplug.c, v6.12)",
    motive="a page that is freed to another zone's lists than its own",
    needs=("struct-pages",),
)
def sec_3(evidence: Evidence) -> Iterator[Broken]:
    pages, layout = observed(evidence.observed.struct_pages), evidence.layout
    for block in evidence.expected.blocks:
        if block.state != "online" or block.valid_zones is None or len(block.valid_zones) != 1:
            continue
        pfn = (block.index + 1) * layout.block_size // layout.page_size - 1
        wanted = f"node {block.nodes[0]} zone {block.valid_zones[0]}"
        page = pages.get(pfn, NotObserved("its section has none"))
        seen = page.reason if isinstance(page, NotObserved) else f"node {page.node} zone {page.zone}"
        if seen != wanted and block.valid_zones[0] != "none":
            yield Broken(f"struct page of pfn {pfn:#x} (memory{block.index})", wanted, seen, WALK)


def _bits(evidence: Evidence, bits: int | None) -> str:
    """``sub-sections 0-31, 48`` of as many as a section has."""
    if bits is None:
        return "no usage"
    count = evidence.layout.paging.section_size // evidence.layout.machine.arch.subsection_size
    present = [number for number in range(max(count, bits.bit_length())) if bits >> number & 1]
    runs: list[list[int]] = []
    for number in present:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    spelled = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return f"sub-sections {', '.join(spelled) or 'none'} of {count}"
