# SPDX-License-Identifier: GPL-2.0-or-later
"""XCK-*: two witnesses of the same fact must agree, the guest's own text and what the host read in its memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.arch.table_removal import TableRules
from harness.check.code import moving
from harness.check.counters import show_zone
from harness.check.evidence import Evidence
from harness.check.iomem_invariants import SOURCE as IOMEM
from harness.check.iomem_invariants import TREE, paths, show
from harness.check.linear_invariants import transient_attributes
from harness.check.registry import Broken, Unobserved, invariant, observed, paired
from harness.check.sysfs import BLOCKS
from harness.check.sysfs import SOURCE as SYSFS
from harness.check.witnesses import PTDUMP, WALK, Attributes, Leaf, View, clip
from harness.model.boot_layout import BootLayout
from harness.state import DmesgLine, HostMapping, MemoryBlock, NotObserved
from harness.units import TOP, AddrRange, merge_ranges, subtract_ranges


@dataclass(frozen=True, slots=True)
class _SharedRun:
    """A run that both formats can express: adjacent virtual addresses, one level, one set of attributes."""

    range: AddrRange
    level: str
    attrs: Attributes

    def __str__(self) -> str:
        return f"{self.range} {self.level} {' '.join(self.attrs)}"


@invariant(
    "XCK-1",
    "the guest's own dump and the host's walk describe the same mappings, attribute by attribute (vmalloc, modules and "
    "KASAN's shadow aside: they change between the two looks)",
    source="mm/ptdump.c, arch/{arm64,riscv}/mm/ptdump.c note_page (v6.12)",
    motive="a finding stands on firmer ground when two independent readers agree on everything else",
    reads=("/sys/kernel/debug/kernel_page_tables",),
    needs=("ptdump", "walk"),
)
def xck_1(evidence: Evidence) -> Iterator[Broken]:
    views = evidence.views
    if len(views.pairs) != 2:
        observed(views.unobserved())
    layout = evidence.layout
    rules = layout.machine.arch.table_rules
    dump, walk = (next(pair.now for pair in views.pairs if pair.source == source) for source in (PTDUMP, WALK))
    hidden = _hidden(layout, walk)
    windows: list[tuple[AddrRange, frozenset[str]]] = []
    for place in _still(layout, rules, walk):
        windows += [(part, frozenset()) for part in subtract_ranges([place], hidden)]
        windows += [(part, rules.validity_words) for other in hidden if (part := place.intersect(other)) is not None]
    windows.sort(key=lambda window: window[0])
    return _differences(_runs(dump.leaves, windows), _runs(walk.leaves, windows))


def _hidden(layout: BootLayout, walk: View) -> tuple[AddrRange, ...]:
    """Where pages of an idle kernel become inaccessible, and accessible again: any place, or that of KFENCE's pool."""
    if transient_attributes(layout):
        return (AddrRange(0, TOP),)
    if layout.features.hides_pages is False:
        return ()
    return merge_ranges(map(walk.kernel.linear, layout.machine.node_ranges()))


def _still(layout: BootLayout, rules: TableRules, walk: View) -> tuple[AddrRange, ...]:
    """The ranges that do not change between two looks: all but vmalloc and module space, plus the kernel's image."""
    spaces, note = moving(layout), layout.facts.vmcoreinfo
    if spaces is None or isinstance(note, NotObserved) or rules.image_offset not in note:
        return (walk.kernel.linear_window, walk.kernel.vmemmap_window)
    image = _image(walk.leaves, int(note[rules.image_offset], 0), spaces)
    return merge_ranges([*subtract_ranges([AddrRange(0, TOP)], spaces), *image])


def _image(walked: Sequence[Leaf], offset: int, moving: Sequence[AddrRange]) -> Iterator[AddrRange]:
    """The kernel's image: mappings inside the moving ranges that have its offset from physical memory."""
    ours = [
        leaf.range
        for space in moving
        for leaf in clip(walked, space)
        if isinstance(leaf, HostMapping) and (leaf.range.start - leaf.physical) % TOP == offset
    ]
    if ours:
        yield AddrRange(ours[0].start, ours[-1].end)


def _runs(leaves: Sequence[Leaf], windows: Iterable[tuple[AddrRange, frozenset[str]]]) -> list[_SharedRun]:
    """The runs in ``windows``, in each without the attributes that pages lose and gain there."""
    out: list[_SharedRun] = []
    for window, passing in windows:
        for leaf in clip(leaves, window):
            # What is not valid is a block or not by its level. ptdump says BLK of it as of v6.15 no more, whose bits
            # [1:0] are 00 (pte_bits, arch/arm64/mm/ptdump.c).
            unsaid = passing | {"BLK"} if "F" in leaf.attrs else passing
            attrs = tuple(word for word in leaf.attrs if word not in unsaid)
            last = out[-1] if out else None
            where = leaf.range
            if last is not None and (last.range.end, last.level, last.attrs) == (where.start, leaf.level, attrs):
                where = AddrRange(out.pop().range.start, where.end)
            out.append(_SharedRun(where, leaf.level, attrs))
    return out


def _differences(dump: Sequence[_SharedRun], walk: Sequence[_SharedRun]) -> Iterator[Broken]:
    dumped, walked = set(dump), set(walk)
    only_dumped, only_walked = [run for run in dump if run not in walked], [run for run in walk if run not in dumped]
    for where in merge_ranges(run.range for run in [*only_dumped, *only_walked]):
        yield Broken(
            f"virtual {where}", _describe(only_walked, where), _describe(only_dumped, where), f"{PTDUMP} against {WALK}"
        )


def _describe(runs: Iterable[_SharedRun], where: AddrRange) -> str:
    return "; ".join(str(run) for run in runs if run.range.overlaps(where)) or "nothing"


@invariant(
    "XCK-2",
    "/proc/iomem and the kernel's resource tree, as the host reads it in guest memory, are equal, entry by entry",
    source="r_show, kernel/resource.c; struct resource, include/linux/ioport.h (v6.12)",
    motive="the tree alone is judged where the text was not read, and shows what a dead kernel cannot print",
    reads=(TREE,),
    needs=("host-iomem",),
)
def xck_2(evidence: Evidence) -> Iterator[Broken]:
    text, tree = observed(evidence.observed.iomem), observed(evidence.observed.records.iomem)
    printed, kept = Counter(paths(text)), Counter(paths(tree))
    for path in (kept - printed).elements():
        yield Broken(str(path[-1][0]), show(path), "no such line", f"{IOMEM} against {TREE}")
    for path in (printed - kept).elements():
        yield Broken(str(path[-1][0]), "no such resource", show(path), f"{IOMEM} against {TREE}")


@invariant(
    "XCK-3",
    "sysfs and the kernel's memory blocks, as the host reads them in guest memory, are equal: index, state, nodes, and "
    "the zone of those online",
    source="struct memory_block (include/linux/memory.h); state_show, valid_zones_show (drivers/base/memory.c, v7.3)",
    motive="a second witness of what decides whether memory can be removed, which needs no guest that answers",
    reads=(BLOCKS,),
    needs=("hotplug", "host-blocks"),
)
def xck_3(evidence: Evidence) -> Iterator[Broken]:
    text, kept = observed(evidence.observed.blocks), observed(evidence.observed.records.blocks)
    for index, (printed, held) in paired(text, kept, lambda block: block.index).items():
        if printed is None or held is None:
            shown, there = ("absent" if block is None else "present" for block in (held, printed))
        else:
            fields = _shared_fields(printed, held)
            shown, there = (_fields_of(block, fields) for block in (held, printed))
        if shown != there:
            yield Broken(f"memory{index}", shown, there, f"{SYSFS} against {BLOCKS}")


def _shared_fields(printed: MemoryBlock, held: MemoryBlock) -> tuple[str, ...]:
    """What both tell, and what does not change between the two looks."""
    fields = ["phys_index"]
    settled = {printed.state, held.state} <= {"online", "offline"}
    if settled:
        # virtio-mem tries again on its own to put a block offline.
        fields.append("state")
    # A block of boot memory that lies in several nodes has the last of them only.
    if not (held.valid_zones == ("none",) and set(held.nodes) <= set(printed.nodes)):
        fields.append("nodes")
    if settled and printed.state == held.state and None not in (printed.valid_zones, held.valid_zones):
        fields.append("valid_zones")
    return tuple(fields)


def _fields_of(block: MemoryBlock, names: Iterable[str]) -> str:
    values = ((name, getattr(block, name)) for name in names)
    return ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in values
    )


@invariant(
    "XCK-4",
    "/proc/zoneinfo and the zones, as the host reads them in guest memory, are equal: spanned, present and managed "
    "pages, and the first one",
    source="struct zone (include/linux/mmzone.h); zoneinfo_show_print (mm/vmstat.c, v6.12)",
    motive="a second witness of what the page allocator and compaction work with",
    needs=("host-zones",),
)
def xck_4(evidence: Evidence) -> Iterator[Broken]:
    text, kept = observed(evidence.observed.zones), observed(evidence.observed.records.zones)
    for (node, name), (printed, held) in paired(text, kept, lambda zone: (zone.node, zone.name)).items():
        if printed != held:
            where = f"node {node} zone {name}"
            yield Broken(
                where, show_zone(held), show_zone(printed), "/proc/zoneinfo against struct zone in guest memory"
            )


#: what only memory hotplug and folding change: other counters move between the two looks
_STILL = ("MemTotal", "nr_memmap", "nr_memmap_pages", "nr_memmap_boot", "nr_memmap_boot_pages")


@invariant(
    "XCK-5",
    "MemTotal and the counters of memory for struct pages are the same in the guest's files and in guest memory, where "
    "what a CPU has not added to them yet counts",
    source="_totalram_pages (mm/page_alloc.c); nr_memmap_pages (mm/vmstat.c, v6.12)",
    motive="a second witness of the balance of MEM-1 and MEM-2",
    needs=("host-counters", "host-total"),
)
def xck_5(evidence: Evidence) -> Iterator[Broken]:
    state, records, unseen = evidence.observed, evidence.observed.records, list[str]()
    for file, text, memory in (
        ("/proc/meminfo", state.meminfo, records.meminfo),
        ("/proc/vmstat", state.vmstat, records.vmstat),
    ):
        missing = [source.reason for source in (text, memory) if isinstance(source, NotObserved)]
        unseen += missing
        if not missing:
            yield from _uneven(observed(text), observed(memory), file)
    if unseen:
        raise Unobserved(unseen[0])


def _uneven(printed: Mapping[str, int], held: Mapping[str, int], file: str) -> Iterator[Broken]:
    for name in _STILL:
        if name in printed and name in held and printed[name] != held[name]:
            yield Broken(name, str(held[name]), str(printed[name]), f"{file} against guest memory")


@invariant(
    "XCK-6",
    "the guest's text of its log, and the log's ring buffer as the host reads it in guest memory, have the same lines",
    source="kernel/printk/printk_ringbuffer.h; record_print_text, kernel/printk/printk.c (v6.12)",
    motive="the ring alone tells what a guest that hangs, or has died, cannot print any more",
    needs=("log", "host-log"),
)
def xck_6(evidence: Evidence) -> Iterator[Broken]:
    state = evidence.observed
    text, ring = observed(state.dmesg), observed(state.records.log)
    for lost in (state.dmesg_lost, state.records.log_lost):
        if lost:
            raise Unobserved(lost)
    if untimed := untimed_log(evidence.layout):
        raise Unobserved(untimed)
    printed, kept = (map(_logged, lines) for lines in (text, ring))
    pairs = enumerate(itertools.zip_longest(kept, printed, fillvalue="no line"), 1)
    for number, (expected, found) in pairs:
        if expected != found:
            yield Broken(f"new line {number} of the log", expected, found, "dmesg against the log in guest memory")
            return


def untimed_log(layout: BootLayout) -> str:
    """Why the guest may print a line of its log twice, "" if it cannot: its collector without the agent needs times."""
    untimed = layout.facts.parameters.get("printk.time") == "N"
    return "the kernel prints no times (printk.time=0)" if untimed else ""


def _logged(line: DmesgLine) -> str:
    return f"<{line.level}>[{line.seconds:.6f}] {line.text}"
