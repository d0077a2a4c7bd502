# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants of the host's observations: correct states of a miniature kernel pass, each corruption is reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import model_guest
import pytest
from model_guest import ARM64_4K, KINDS, Kind, with_records
from model_kernel import Kernel

from harness.check import CATALOGUE, CheckResult, Evidence, run_check
from harness.model.actions import Action, SetAutoOnline, SetBlock, StartLoad, Unplug
from harness.model.boot_layout import boot_layout
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.pmem import SetPmemMode
from harness.model.devices.virtio_mem import PlugVirtioMem, Resize
from harness.model.devices.virtio_pmem import PlugVirtioPmem
from harness.model.memory_model import MemoryModel
from harness.state import (
    GuestState,
    HostMapping,
    HostTables,
    Mapping,
    NotObserved,
    PageTables,
    Section,
    SectionFault,
    StructPage,
    TableFault,
    TablePage,
)
from harness.units import GIB, MIB, AddrRange

FAMILIES = ("LIN", "VMM", "PGT", "SEC", "XCK")
IDS = [name for name in CATALOGUE if name.partition("-")[0] in FAMILIES]
RISCV = KINDS[-1]
FOLDS = {"HUGETLB_PAGE": "y", "ARCH_WANT_OPTIMIZE_DAX_VMEMMAP": "y"}


class Guest:
    """A model and a miniature kernel that performs the same actions."""

    def __init__(self, kind: Kind = ARM64_4K, memory: int = GIB, **fact_changes: object) -> None:
        boot, shape = model_guest.boot_state(kind, memory), model_guest.shape(kind, node_memory=(memory,))
        layout = boot_layout(shape, model_guest.facts(kind, **fact_changes), boot)
        self.kernel = Kernel(kind, layout)
        self.layout = dataclasses.replace(layout, baseline=with_records(self.kernel.state(boot)))
        self.model = MemoryModel(self.layout)
        self.block = layout.block_size
        self.first = self.layout.machine.device_window().start // self.block

    def do(self, *actions: Action) -> Guest:
        for action in actions:
            self.model.apply(action)
            self.kernel.follow(self.model.expected())
        return self

    def evidence(self) -> Evidence:
        expected = self.model.expected()
        pages = {
            pfn: StructPage(pfn, 0, 1, block.nodes[0], block.valid_zones[0])
            for block in expected.blocks
            if block.state == "online" and block.valid_zones
            for pfn in [(block.index + 1) * self.block // self.layout.page_size - 1]
        }
        observed = dataclasses.replace(self.kernel.state(self.layout.baseline), struct_pages=pages)
        return Evidence(self.layout, expected, with_records(observed))


def results(evidence: Evidence) -> dict[str, CheckResult]:
    found = ((name, run_check(CATALOGUE[name], evidence)) for name in IDS)
    return {name: result for name, result in found if result is not None}


def broken(evidence: Evidence) -> set[str]:
    """The invariants that break."""
    return {name for name, result in results(evidence).items() if result.status == "fail"}


def complaints(evidence: Evidence) -> list[str]:
    return [str(finding) for result in results(evidence).values() for finding in result.findings]


def story(guest: Guest) -> Iterator[tuple[str, Evidence]]:
    """DIMM, virtio-mem and pmem are added, changed and removed."""
    block, first = guest.block, guest.first
    steps: Sequence[tuple[Action, ...]] = (
        (),
        (PlugDimm("d0", 2 * GIB),),
        (SetBlock(first, "online_movable"), SetBlock(first + 2, "online_kernel")),
        (PlugVirtioMem("v0", 2 * GIB, 2 * MIB, 0, 0, "rp0"), SetAutoOnline("online_movable"), Resize("v0", 3 * block)),
        (Resize("v0", block + block // 2),),
        (SetBlock(first, "offline"), SetBlock(first + 2, "offline"), Unplug("d0")),
        (PlugVirtioPmem("p0", GIB, "rp1"),),
        (SetPmemMode("p0", "devdax"),),
        (SetPmemMode("p0", "kmem"),),
        (SetPmemMode("p0", "devdax", "dev"),),
        (SetPmemMode("p0", "raw"), Unplug("p0")),
        (Resize("v0", 0), Unplug("v0"), SetAutoOnline("offline")),
    )
    for actions in steps:
        yield "; ".join(map(str, actions)) or "boot", guest.do(*actions).evidence()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_sound_states_pass(kind: Kind) -> None:
    for _, evidence in story(Guest(kind)):
        assert complaints(evidence) == []
        assert {result.status for result in results(evidence).values()} == {"pass"}


@pytest.mark.parametrize("mode", ["Y", "force"])
def test_a_memmap_in_each_block_passes(mode: str) -> None:
    guest = Guest(parameters={"memory_hotplug.memmap_on_memory": mode}).do(PlugDimm("d0", GIB))
    piece = guest.model.expected().linear[0]
    assert piece.altmap == AddrRange.sized(piece.range.start, 2 * MIB)
    assert complaints(guest.evidence()) == []
    assert complaints(guest.do(Unplug("d0")).evidence()) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.page_size != 4096], ids=str)
def test_a_memmap_that_fills_no_pmd_is_never_in_its_block(kind: Kind) -> None:
    guest = Guest(kind, parameters={"memory_hotplug.memmap_on_memory": "force"}).do(PlugDimm("d0", GIB))
    assert {piece.altmap for piece in guest.model.expected().linear} == {None}
    assert complaints(guest.evidence()) == []


@pytest.mark.parametrize("align", [2 * MIB, 64 * MIB, GIB])
def test_folded_memmaps_pass(align: int) -> None:
    guest = Guest(RISCV, config=FOLDS).do(PlugVirtioPmem("p0", GIB), SetPmemMode("p0", "devdax", "mem", align))
    assert guest.model.expected().linear[0].folded == align // 4096 * 64
    assert complaints(guest.evidence()) == []
    assert complaints(guest.do(SetPmemMode("p0", "raw"), Unplug("p0")).evidence()) == []


def test_partial_sections_pass() -> None:
    guest = Guest().do(PlugVirtioPmem("p0", 192 * MIB), SetPmemMode("p0", "devdax"))
    guest.do(PlugVirtioPmem("p1", 130 * MIB), SetPmemMode("p1", "devdax"))
    assert complaints(guest.evidence()) == []
    tainted = {s.number: s.subsections for s in guest.model.expected().sections if "zone-device" in s.flags}
    assert tainted == {guest.first + 1: (1 << 64) - 1, guest.first + 2: (1 << 33) - 1}
    guest.do(SetPmemMode("p0", "raw"), Unplug("p0"))
    assert complaints(guest.evidence()) == []
    assert {s.number: s.subsections for s in guest.model.expected().sections if "zone-device" in s.flags} == {
        guest.first + 1: (1 << 64) - (1 << 32),
        guest.first + 2: (1 << 33) - 1,
    }


def test_what_virtio_mem_has_not_added_is_no_memory() -> None:
    guest = Guest().do(PlugVirtioMem("v0", 2 * GIB, 2 * MIB, 0, 0, "rp0"), Resize("v0", GIB))
    evidence = guest.evidence()
    unplugged = guest.kernel.kernel.linear(AddrRange.sized(guest.first * guest.block + GIB, guest.block))
    leaf = leaf_at(unplugged, guest.first * guest.block + GIB, "PMD", guest)
    state = with_mappings(evidence.observed, [*tables(evidence.observed).mappings, leaf])
    assert broken(evidence) == set()
    assert "PGT-2" in broken(dataclasses.replace(evidence, observed=state))


STRICT = {"STRICT_KERNEL_RWX": "y"}


@pytest.mark.parametrize(
    ("facts", "allowed"),
    [
        ({"cmdline": "quiet rodata=off", "config": STRICT}, True),
        ({"cmdline": "rodata=0", "config": STRICT}, False),
        ({"cmdline": "rodata=off rodata=full", "config": STRICT}, False),
        ({"cmdline": "rodata=on", "config": STRICT}, False),
        ({"config": {}}, True),
        ({"config": STRICT}, False),
    ],
)
def test_only_a_kernel_that_was_told_so_may_keep_its_image_writable_and_executable(
    facts: dict[str, object], allowed: bool
) -> None:
    guest = Guest(**facts)
    image = HostMapping(AddrRange.sized(0xFFFF_FFFF_0000_0000, 4096), ram(guest).start, "PTE", ("RW", "x", "AF"))
    boot = with_mappings(guest.layout.baseline, [*tables(guest.layout.baseline).mappings, image])
    boot = dataclasses.replace(boot, page_tables=dumped(tables(boot)))
    evidence = guest.evidence()
    layout = dataclasses.replace(evidence.layout, baseline=boot)
    assert ("LIN-2" in broken(dataclasses.replace(evidence, layout=layout, observed=boot))) is not allowed
    # New mappings are never allowed.
    hot = put(lambda guest: dataclasses.replace(image, range=image.range.shift(1 << 20)))(guest, boot)
    assert "LIN-2" in broken(dataclasses.replace(evidence, layout=layout, observed=hot))


# Corruptions --------------------------------------------------------------------------------------------------------

Edit = Callable[[Guest, GuestState], GuestState]


def tables(state: GuestState) -> HostTables:
    assert isinstance(state.host_tables, HostTables)
    return state.host_tables


def with_mappings(state: GuestState, mappings: Sequence[HostMapping]) -> GuestState:
    ordered = tuple(sorted(mappings, key=lambda mapping: mapping.range.start))
    return dataclasses.replace(state, host_tables=dataclasses.replace(tables(state), mappings=ordered))


def both(edit: Callable[[Guest, HostMapping], HostMapping | None], where: Callable[[Guest], AddrRange]) -> Edit:
    """Change what ``where`` (virtual) maps, in the walk and in the guest's dump."""

    def change(guest: Guest, state: GuestState) -> GuestState:
        walk = one_sided(edit, where)(guest, state)
        return dataclasses.replace(walk, page_tables=dumped(tables(walk)))

    return change


def dumped(walked: HostTables) -> PageTables:
    return PageTables({}, tuple(Mapping(leaf.range, leaf.level, leaf.attrs, "") for leaf in walked.mappings))


def one_sided(edit: Callable[[Guest, HostMapping], HostMapping | None], where: Callable[[Guest], AddrRange]) -> Edit:
    """Change what ``where`` (virtual) maps, only in the walk."""

    def change(guest: Guest, state: GuestState) -> GuestState:
        out: list[HostMapping] = []
        place, touched = where(guest), False
        for leaf in tables(state).mappings:
            part = leaf.range.intersect(place)
            if part is None:
                out.append(leaf)
                continue
            touched = True
            for start, end in ((leaf.range.start, part.start), (part.end, leaf.range.end)):
                if start < end:
                    out.append(sub(leaf, AddrRange(start, end)))
            changed = edit(guest, sub(leaf, part))
            if changed is not None:
                out.append(changed)
        assert touched, f"nothing is mapped at {place}"
        return with_mappings(state, out)

    return change


def sub(leaf: HostMapping, part: AddrRange) -> HostMapping:
    return dataclasses.replace(leaf, range=part, physical=leaf.physical + part.start - leaf.range.start)


def put(make: Callable[[Guest], HostMapping]) -> Edit:
    """Add a mapping, in the walk and in the dump."""

    def change(guest: Guest, state: GuestState) -> GuestState:
        walk = with_mappings(state, [*tables(state).mappings, make(guest)])
        return dataclasses.replace(walk, page_tables=dumped(tables(walk)))

    return change


def with_page(make: Callable[[Guest, HostTables], TablePage]) -> Edit:
    """Add a table page."""

    def change(guest: Guest, state: GuestState) -> GuestState:
        walk = tables(state)
        pages = (*walk.pages, make(guest, walk))
        return dataclasses.replace(state, host_tables=dataclasses.replace(walk, pages=pages))

    return change


def pages(change: Callable[[Guest, TablePage], TablePage | None]) -> Edit:
    def edit(guest: Guest, state: GuestState) -> GuestState:
        walk = tables(state)
        found = tuple(page for old in walk.pages if (page := change(guest, old)) is not None)
        assert found != walk.pages
        return dataclasses.replace(state, host_tables=dataclasses.replace(walk, pages=found))

    return edit


def page(change: Callable[[StructPage], StructPage | NotObserved]) -> Edit:
    """Change the last struct page of online memory."""

    def edit(guest: Guest, state: GuestState) -> GuestState:
        assert not isinstance(state.struct_pages, NotObserved)
        last = max(state.struct_pages)
        old = state.struct_pages[last]
        assert isinstance(old, StructPage)
        return dataclasses.replace(state, struct_pages={**state.struct_pages, last: change(old)})

    return edit


def section(number: Callable[[Guest], int], change: Callable[[Section], Section | None]) -> Edit:
    def edit(guest: Guest, state: GuestState) -> GuestState:
        assert not isinstance(state.sections, NotObserved)
        found = [s for old in state.sections if (s := change(old) if old.number == number(guest) else old) is not None]
        assert tuple(found) != state.sections
        return dataclasses.replace(state, sections=tuple(found))

    return edit


def words(**changes: str) -> Callable[[Guest, HostMapping], HostMapping]:
    """Change attribute words: ``RW="ro"``; an empty value removes the word, an unknown key adds its value."""

    def change(_: Guest, leaf: HostMapping) -> HostMapping:
        attrs = [changes.get(word.replace("/", "_").replace("-", "_"), word) for word in leaf.attrs]
        attrs += [value for key, value in changes.items() if key.startswith("add")]
        return dataclasses.replace(leaf, attrs=tuple(filter(None, attrs)))

    return change


def linear(guest: Guest) -> AddrRange:
    """One block of the DIMM in the linear map."""
    return guest.kernel.kernel.linear(AddrRange.sized((guest.first + 3) * guest.block, guest.block))


def boot_linear(guest: Guest) -> AddrRange:
    """One block of boot memory in the linear map."""
    start = guest.layout.machine.node_ranges()[0].start
    return guest.kernel.kernel.linear(AddrRange.sized(start, guest.block))


def memmap(guest: Guest) -> AddrRange:
    return guest.kernel.kernel.memmap(AddrRange.sized((guest.first + 3) * guest.block, guest.block))


def boot_memmap(guest: Guest) -> AddrRange:
    start = guest.layout.machine.node_ranges()[0].start
    return guest.kernel.kernel.memmap(AddrRange.sized(start, guest.block))


def leaf_at(place: AddrRange, physical: int, level: str, guest: Guest) -> HostMapping:
    ordinary = next(leaf for leaf in tables(guest.layout.baseline).mappings if "CON" not in leaf.attrs)
    return HostMapping(place, physical, level, ordinary.attrs)


def drop(_: Guest, leaf: HostMapping) -> None:
    return None


def elsewhere(shift: int) -> Callable[[Guest, HostMapping], HostMapping]:
    return lambda _, leaf: dataclasses.replace(leaf, physical=leaf.physical + shift)


def to(physical: Callable[[Guest], int]) -> Callable[[Guest, HostMapping], HostMapping]:
    return lambda guest, leaf: dataclasses.replace(leaf, physical=physical(guest))


def ram(guest: Guest) -> AddrRange:
    return guest.layout.machine.node_ranges()[0]


def dimm(guest: Guest) -> AddrRange:
    return AddrRange.sized(guest.first * guest.block, 2 * GIB)


def spare_table(level: str, size: int, at: Callable[[Guest], int]) -> Edit:
    return with_page(lambda guest, _: TablePage(ram(guest).end - 4096, level, AddrRange.sized(at(guest), size), 0))


def fault(guest: Guest, state: GuestState) -> GuestState:
    one = TableFault(ram(guest).start, 7, 1, linear(guest), "points outside of memory")
    return dataclasses.replace(state, host_tables=dataclasses.replace(tables(state), faults=(one,)))


PRESENT = {
    "hole in the linear map": (both(drop, linear), {"LIN-1", "LIN-3"}),
    "linear map leads to another page": (both(elsewhere(2 * MIB), linear), {"LIN-1"}),
    "linear map leads out of memory": (both(to(lambda _: 1 << 44), linear), {"LIN-1", "PGT-2"}),
    "hot memory is read-only": (both(words(RW="ro", W=""), linear), {"LIN-2"}),
    "hot memory loses its memory type": (both(words(MEM_NORMAL_TAGGED="MEM/NORMAL", G=""), linear), {"LIN-2"}),
    "hot memory in smaller leaves": (
        both(lambda _, leaf: dataclasses.replace(leaf, level="PTE"), linear),
        {"LIN-3"},
    ),
    "hole in vmemmap": (both(drop, memmap), {"VMM-1"}),
    "vmemmap read-only": (both(words(RW="ro", W=""), memmap), {"VMM-1"}),
    "vmemmap leads into the DIMM that it describes": (both(to(lambda g: dimm(g).start), memmap), {"VMM-1"}),
    "vmemmap leads out of memory": (both(to(lambda _: 1 << 44), memmap), {"VMM-1", "PGT-2"}),
    "vmemmap shares frames": (both(to(lambda g: g.kernel.free - 2 * MIB), memmap), {"VMM-1"}),
    "boot's vmemmap has moved": (both(elsewhere(256 * MIB), boot_memmap), {"VMM-1"}),
    "an empty table below the DIMM's linear map is no harm": (
        spare_table("PTE", 2 * MIB, lambda g: linear(g).start),
        set(),
    ),
    "an entry is unsound": (fault, {"PGT-2"}),
    "a table page in the DIMM": (
        pages(lambda g, page: dataclasses.replace(page, address=dimm(g).start) if page.level == "PMD" else page),
        {"PGT-2"},
    ),
    "one page for two tables": (
        pages(lambda g, page: dataclasses.replace(page, address=ram(g).start) if page.level in "PMD PUD" else page),
        {"PGT-2"},
    ),
    "a table page serves as memmap": (
        pages(
            lambda g, page: dataclasses.replace(page, address=ram(g).start + 64 * MIB) if page.level == "PGD" else page
        ),
        {"PGT-2"},
    ),
    "a section lost its memmap": (
        section(lambda g: g.first, lambda s: dataclasses.replace(s, flags=("online", "present"))),
        {"SEC-1"},
    ),
    "an offline section is online": (
        section(lambda g: g.first + 3, lambda s: dataclasses.replace(s, flags=("has-mem-map", "online", "present"))),
        {"SEC-1"},
    ),
    "a hot section is early": (
        section(lambda g: g.first + 3, lambda s: dataclasses.replace(s, flags=("early", "has-mem-map", "present"))),
        {"SEC-1"},
    ),
    "a section leads to another memmap": (
        section(lambda g: g.first, lambda s: dataclasses.replace(s, mem_map=s.mem_map + 64)),
        {"SEC-1"},
    ),
    "a section is gone": (section(lambda g: g.first, lambda s: None), {"SEC-1"}),
    "a sub-section bit too few": (
        section(lambda g: g.first + 3, lambda s: dataclasses.replace(s, subsections=(s.subsections or 0) & ~8)),
        {"SEC-2"},
    ),
    "a section without usage": (
        section(lambda g: g.first + 3, lambda s: dataclasses.replace(s, usage=0, subsections=None)),
        {"SEC-2"},
    ),
    "a struct page of another zone": (page(lambda p: dataclasses.replace(p, zone="Device")), {"SEC-3"}),
    "a struct page of another node": (page(lambda p: dataclasses.replace(p, node=1)), {"SEC-3"}),
    "a struct page that nobody initialized": (page(lambda p: NotObserved("it is poisoned")), {"SEC-3"}),
    "the walk sees another attribute": (one_sided(words(AF="", A=""), boot_memmap), {"VMM-1", "XCK-1"}),
    "the walk misses a block": (one_sided(drop, linear), {"LIN-1", "LIN-3", "XCK-1"}),
}


@pytest.mark.parametrize("kind", [ARM64_4K, RISCV], ids=str)
@pytest.mark.parametrize("name", PRESENT, ids=lambda name: name.replace(" ", "-"))
def test_a_lie_about_present_memory_is_named(name: str, kind: Kind) -> None:
    edit, wanted = PRESENT[name]
    guest = Guest(kind).do(PlugDimm("d0", 2 * GIB))
    guest.do(SetBlock(guest.first, "online_movable"))
    evidence = guest.evidence()
    assert broken(evidence) == set()
    assert broken(dataclasses.replace(evidence, observed=edit(guest, evidence.observed))) == wanted


def stale(virtual: Callable[[Guest], AddrRange], physical: Callable[[Guest], int], level: str) -> Edit:
    return put(lambda guest: leaf_at(virtual(guest), physical(guest), level, guest))


def stale_section(guest: Guest, state: GuestState) -> GuestState:
    assert not isinstance(state.sections, NotObserved)
    left = Section(guest.first + 3, ("has-mem-map", "present"), guest.kernel.kernel.vmemmap, 64, 1)
    return dataclasses.replace(state, sections=(*state.sections, left))


def counted(guest: Guest, state: GuestState) -> GuestState:
    assert not isinstance(state.vmstat, NotObserved)
    return dataclasses.replace(state, vmstat={**state.vmstat, "nr_memmap_pages": 512})


def top_table(guest: Guest, page: TablePage) -> TablePage | None:
    """Drop the last of the empty tables below the root that riscv64 preallocates for the linear map."""
    return None if page.range.end == guest.kernel.kernel.linear_window.end and not page.entries else page


REMOVED = {
    "a stale linear mapping": (
        stale(lambda g: AddrRange.sized(linear(g).start, 2 * MIB), lambda g: dimm(g).start + 3 * g.block, "PMD"),
        {"LIN-1", "PGT-2"},
    ),
    "a stale vmemmap mapping": (
        stale(memmap, lambda g: ram(g).start + 256 * MIB, "PMD"),
        {"VMM-1", "VMM-2"},
    ),
    "memmap pages still counted": (counted, {"VMM-2", "XCK-5"}),
    "an empty PTE table left": (spare_table("PTE", 2 * MIB, lambda g: linear(g).start), {"PGT-1"}),
    "an empty PMD table left": (spare_table("PMD", GIB, lambda g: linear(g).start // GIB * GIB), {"PGT-1"}),
    "an empty vmemmap PTE table left": (spare_table("PTE", 2 * MIB, lambda g: memmap(g).start), {"PGT-1"}),
    "a section left behind": (stale_section, {"SEC-1"}),
}


@pytest.mark.parametrize("kind", [ARM64_4K, RISCV], ids=str)
@pytest.mark.parametrize("name", REMOVED, ids=lambda name: name.replace(" ", "-"))
def test_a_lie_about_removed_memory_is_named(name: str, kind: Kind) -> None:
    edit, wanted = REMOVED[name]
    guest = Guest(kind).do(PlugDimm("d0", 2 * GIB), Unplug("d0"))
    evidence = guest.evidence()
    assert broken(evidence) == set()
    assert broken(dataclasses.replace(evidence, observed=edit(guest, evidence.observed))) == wanted


# Allowed differences ------------------------------------------------------------------------------------------------


def with_code(guest: Guest, state: GuestState) -> GuestState:
    """A module's page in the DIMM's fourth block: read-only there and in the linear map, whose leaf is split."""
    space = int(model_guest.note(RISCV)["NUMBER(MODULES_VADDR)"], 0)
    physical = linear_physical(guest)
    code = HostMapping(AddrRange.sized(space, 4096), physical, "PTE", ("D", "A", "G", "X", "R", "V"))
    state = split(guest, state)
    return put(lambda _: code)(guest, both(words(W="", addX="X"), first_page)(guest, state))


def split(guest: Guest, state: GuestState, *, words_added: tuple[str, ...] = ()) -> GuestState:
    place = guest.kernel.kernel.linear(AddrRange.sized(linear_physical(guest), 2 * MIB))

    def finer(_: Guest, leaf: HostMapping) -> HostMapping:
        kept = tuple(word for word in leaf.attrs if word not in ("BLK", *words_added))
        return dataclasses.replace(leaf, level="PTE", attrs=(*kept, *words_added))

    return both(finer, lambda _: place)(guest, state)


def linear_physical(guest: Guest) -> int:
    return (guest.first + 3) * guest.block


def first_page(guest: Guest) -> AddrRange:
    return AddrRange.sized(linear(guest).start, 4096)


def test_code_in_hot_memory_may_be_read_only_and_split_a_leaf() -> None:
    guest = Guest(RISCV).do(PlugDimm("d0", 2 * GIB), SetBlock(Guest(RISCV).first + 3, "online_kernel"))
    evidence = guest.evidence()
    assert complaints(dataclasses.replace(evidence, observed=with_code(guest, evidence.observed))) == []
    # Without the module's mapping, neither is allowed.
    read_only = both(words(W=""), first_page)(guest, evidence.observed)
    assert broken(dataclasses.replace(evidence, observed=read_only)) == {"LIN-2"}
    assert broken(dataclasses.replace(evidence, observed=split(guest, evidence.observed))) == {"LIN-3"}


def test_offline_hot_memory_holds_no_code() -> None:
    guest = Guest(RISCV).do(PlugDimm("d0", 2 * GIB))
    evidence = guest.evidence()
    assert broken(dataclasses.replace(evidence, observed=with_code(guest, evidence.observed))) == {"LIN-3"}


def test_bpf_code_may_have_split_leaves_and_be_gone() -> None:
    config = {"HUGETLB_PAGE": "y", "BPF_JIT": "y", "BPF_SYSCALL": "y"}
    guest = Guest(RISCV, config=config)
    guest.do(PlugDimm("d0", 2 * GIB), SetBlock(guest.first + 3, "online_kernel"))
    evidence = guest.evidence()
    assert complaints(dataclasses.replace(evidence, observed=split(guest, evidence.observed))) == []
    larger = both(lambda _, leaf: dataclasses.replace(leaf, level="P4D"), linear)(guest, evidence.observed)
    assert broken(dataclasses.replace(evidence, observed=larger)) == {"LIN-3"}


def test_free_pages_of_a_debugging_kernel_are_out_of_reach() -> None:
    config = {"HUGETLB_PAGE": "y", "DEBUG_PAGEALLOC": "y"}
    invalid = both(words(V=""), linear)
    for cmdline, wanted in (("debug_pagealloc=on", set()), ("debug_pagealloc=off", {"LIN-2"}), ("", {"LIN-2"})):
        guest = Guest(RISCV, config=config, cmdline=cmdline).do(PlugDimm("d0", 2 * GIB))
        evidence = guest.evidence()
        assert broken(dataclasses.replace(evidence, observed=invalid(guest, evidence.observed))) == wanted


def test_pages_that_kfence_guards_are_no_disagreement() -> None:
    """Its pool is boot memory (kfence_alloc_pool, mm/kfence/core.c): hot-added pages are not guarded."""
    for config, where, wanted in (
        ({"KFENCE": "y"}, boot_linear, set()),
        ({}, boot_linear, {"XCK-1"}),
        ({"KFENCE": "y"}, linear, {"LIN-2", "XCK-1"}),
        ({}, linear, {"LIN-2", "XCK-1"}),
    ):
        guest = Guest(RISCV, config=config).do(PlugDimm("d0", 2 * GIB))
        evidence = guest.evidence()
        seen = one_sided(words(V=""), where)(guest, evidence.observed)
        assert broken(dataclasses.replace(evidence, observed=seen)) == wanted


def test_pages_that_debug_pagealloc_hides_are_no_disagreement() -> None:
    config = {"HUGETLB_PAGE": "y", "DEBUG_PAGEALLOC": "y"}
    for cmdline, wanted in (("debug_pagealloc=on", set()), ("", {"LIN-2", "XCK-1"})):
        guest = Guest(RISCV, config=config, cmdline=cmdline).do(PlugDimm("d0", 2 * GIB))
        evidence = guest.evidence()
        seen = one_sided(words(V=""), linear)(guest, evidence.observed)
        assert broken(dataclasses.replace(evidence, observed=seen)) == wanted


def test_beside_a_table_a_partial_section_has_single_pages_of_memmap() -> None:
    """vmemmap_populate_hugepages, mm/sparse-vmemmap.c: a PMD entry that points to a table is not changed."""
    guest = Guest(RISCV).do(PlugVirtioPmem("p0", 34 * MIB), SetPmemMode("p0", "devdax", "mem"))
    evidence, kernel = guest.evidence(), guest.kernel.kernel
    (piece,) = (piece.range for piece in guest.model.expected().linear)
    own, entry = kernel.struct_pages(piece), kernel.memmap(piece)
    assert own != entry and broken(evidence) == set()
    (run,) = [leaf for leaf in tables(evidence.observed).mappings if leaf.range.covers(entry)]
    others = [leaf for leaf in tables(evidence.observed).mappings if leaf is not run]
    boot, first = AddrRange(run.range.start, entry.start), run.physical + entry.start - run.range.start
    for level, place, wanted in (
        ("PTE", own, set()),
        ("PTE", entry, set()),
        ("PMD", own, {"VMM-1"}),
        ("PTE", AddrRange(own.start + 4096, own.end), {"VMM-1"}),
    ):
        part = replace(run, range=place, physical=first + place.start - entry.start, level=level)
        leaves = [*others, replace(run, range=boot), part]
        state = with_mappings(evidence.observed, sorted(leaves, key=lambda leaf: leaf.range))
        state = replace(state, page_tables=dumped(tables(state)))
        assert broken(replace(evidence, observed=state)) == wanted


def test_a_block_that_is_not_valid_is_named_in_either_way() -> None:
    """ptdump prints BLK for it up to v6.14, but not since v6.15."""
    guest = Guest()
    evidence = guest.evidence()
    place = AddrRange.sized(0xFFFF_FFFF_E000_0000, 2 * MIB)
    invalid = HostMapping(place, ram(guest).start, "PMD", ("F", "RW", "NX", "BLK"))
    walked = with_mappings(evidence.observed, [*tables(evidence.observed).mappings, invalid])
    for attrs, wanted in ((("F", "RW", "NX"), set()), (invalid.attrs, set()), (("F", "ro", "NX"), {"XCK-1"})):
        told = dumped(
            tables(with_mappings(walked, [*tables(evidence.observed).mappings, replace(invalid, attrs=attrs)]))
        )
        assert broken(dataclasses.replace(evidence, observed=replace(walked, page_tables=told))) == wanted


def test_arm64_kernels_that_split_on_demand_may_have_smaller_leaves() -> None:
    """With BBML3, RAM is mapped by blocks whatever rodata says, and split when code is loaded there (v7.2)."""
    for image, wanted in (
        ({"Failed to split linear map": True}, set()),
        ({"Failed to split linear map": False}, {"LIN-3"}),
    ):
        guest = Guest(image=image).do(PlugDimm("d0", 2 * GIB), StartLoad("bpf"))
        guest.do(SetBlock(guest.first + 3, "online_kernel"))
        evidence = guest.evidence()
        groups = split(guest, evidence.observed, words_added=("CON",))
        assert broken(dataclasses.replace(evidence, observed=groups)) == wanted


def test_modules_and_vmalloc_are_not_compared_but_the_image_is() -> None:
    guest = Guest(RISCV)
    note = model_guest.note(RISCV)
    vmalloc, modules = (int(note[f"NUMBER({key})"], 0) for key in ("VMALLOC_START", "MODULES_VADDR"))
    evidence = guest.evidence()
    elsewhere = [
        HostMapping(AddrRange.sized(start, 8192), ram(guest).start, "PTE", ("D", "A", "G", "W", "R", "V"))
        for start in (vmalloc, modules)
    ]
    seen = with_mappings(evidence.observed, [*tables(evidence.observed).mappings, *elsewhere])
    assert complaints(dataclasses.replace(evidence, observed=seen)) == []
    offset = int(note["NUMBER(va_kernel_pa_offset)"], 0)
    image = HostMapping(AddrRange.sized(ram(guest).start + offset, 8192), ram(guest).start, "PTE", ("D", "R", "V"))
    seen = with_mappings(evidence.observed, [*tables(evidence.observed).mappings, image])
    assert broken(dataclasses.replace(evidence, observed=seen)) == {"XCK-1"}


# Witnesses ----------------------------------------------------------------------------------------------------------


def test_findings_name_their_witness() -> None:
    guest = Guest().do(PlugDimm("d0", 2 * GIB))
    evidence = guest.evidence()
    seen = results(dataclasses.replace(evidence, observed=both(drop, memmap)(guest, evidence.observed)))["VMM-1"]
    assert [finding.source for finding in seen.findings] == ["/sys/kernel/debug/kernel_page_tables", "host walk"]
    seen = results(dataclasses.replace(evidence, observed=one_sided(drop, memmap)(guest, evidence.observed)))["VMM-1"]
    assert [finding.source for finding in seen.findings] == ["host walk"]


def unseen(evidence: Evidence, **reasons: str) -> dict[str, CheckResult]:
    absent = {name: NotObserved(reason) for name, reason in reasons.items()}
    return results(dataclasses.replace(evidence, observed=dataclasses.replace(evidence.observed, **absent)))


def test_one_witness_is_enough_and_says_so() -> None:
    evidence = Guest().do(PlugDimm("d0", 2 * GIB), Unplug("d0")).evidence()
    assert {result.note for result in results(evidence).values()} == {""}
    seen = unseen(evidence, page_tables="this kernel has no CONFIG_PTDUMP_DEBUGFS")
    assert {name for name, result in seen.items() if result.status != "pass"} == {"XCK-1"}
    assert seen["XCK-1"].reason == "this kernel has no CONFIG_PTDUMP_DEBUGFS"
    noted = {name: result.note for name, result in seen.items() if result.note}
    assert set(noted) == {"LIN-1", "LIN-2", "LIN-3", "VMM-1", "VMM-2"}
    assert set(noted.values()) == {"host walk alone: this kernel has no CONFIG_PTDUMP_DEBUGFS"}
    seen = unseen(evidence, host_tables="QEMU was not asked")
    assert {name for name, result in seen.items() if result.status != "pass"} == {"PGT-1", "PGT-2", "XCK-1"}
    assert seen["LIN-1"].note == "the guest's own dump alone: QEMU was not asked"
    assert seen["PGT-1"].reason == "QEMU was not asked"


def test_no_witness_is_no_pass() -> None:
    evidence = Guest().do(PlugDimm("d0", 2 * GIB), Unplug("d0")).evidence()
    seen = unseen(evidence, page_tables="no dump", host_tables="no walk", sections="no sections", struct_pages="no")
    statuses = {name: result.status for name, result in seen.items()}
    # Of other sources.
    assert {name for name, status in statuses.items() if status == "pass"} == {
        f"XCK-{number}" for number in range(2, 7)
    }
    assert set(statuses.values()) == {"pass", "not-observed"}
    assert seen["LIN-1"].reason == "no dump; no walk"
    assert seen["SEC-1"].reason == "no sections"
    blind = dataclasses.replace(evidence, layout=dataclasses.replace(evidence.layout, kernel=None))
    assert results(blind)["VMM-1"].reason == "the kernel's virtual layout is unknown: vmcoreinfo could not be read"


def test_a_walk_that_began_only_after_boot_is_of_no_use() -> None:
    evidence = Guest().evidence()
    baseline = dataclasses.replace(evidence.layout.baseline, host_tables=NotObserved("not read at boot"))
    late = dataclasses.replace(evidence, layout=dataclasses.replace(evidence.layout, baseline=baseline))
    assert results(late)["PGT-2"].reason == "not read at boot"
    assert results(late)["LIN-1"].note == "the guest's own dump alone: not read at boot"


def test_frames_that_nobody_counts_are_said_to_be_uncounted() -> None:
    evidence = Guest().do(PlugDimm("d0", GIB), Unplug("d0")).evidence()
    assert not isinstance(evidence.observed.vmstat, NotObserved)
    observed = dataclasses.replace(evidence.observed, vmstat={"nr_page_table_pages": 80})
    seen = results(dataclasses.replace(evidence, observed=observed))["VMM-2"]
    assert (seen.status, seen.note) == (
        "pass",
        "the frames were not counted: no nr_memmap in /proc/vmstat (it is there since v6.11)",
    )
    assert results(Guest().do(PlugDimm("d0", GIB)).evidence()).keys() == set(IDS) - {"VMM-2"}


def test_tables_below_the_root_stay_on_riscv64() -> None:
    guest = Guest(RISCV).do(PlugDimm("d0", GIB), Unplug("d0"))
    evidence = guest.evidence()
    seen = pages(top_table)(guest, evidence.observed)
    result = results(dataclasses.replace(evidence, observed=seen))["PGT-1"]
    assert [(finding.where, finding.expected, finding.observed) for finding in result.findings] == [
        ("P4D table of virtual ffde000000000000-ffdeffffffffffff", "kept", "absent")
    ]


def test_an_empty_table_of_the_boot_may_go_only_where_memory_came_and_went() -> None:
    guest = Guest()
    boot = guest.layout.baseline
    far, near = (
        TablePage(ram(guest).end - offset, "PTE", AddrRange.sized(start, 2 * MIB), 0)
        for offset, start in ((4096, linear(guest).end + 512 * GIB), (8192, linear(guest).start))
    )
    empty = dataclasses.replace(tables(boot), pages=(*tables(boot).pages, far, near))
    guest.layout = dataclasses.replace(guest.layout, baseline=dataclasses.replace(boot, host_tables=empty))
    evidence = guest.evidence()
    result = results(evidence)["PGT-1"]
    assert [finding.where for finding in result.findings] == [
        f"PTE table of virtual {near.range}",
        f"PTE table of virtual {far.range}",
    ]
    kept = dataclasses.replace(evidence.observed, host_tables=empty)
    assert results(dataclasses.replace(evidence, observed=kept))["PGT-1"].status == "pass"
    guest.do(PlugDimm("d0", GIB), Unplug("d0"))
    assert [finding.where for finding in results(guest.evidence())["PGT-1"].findings] == [
        f"PTE table of virtual {far.range}"
    ]


# Frames -------------------------------------------------------------------------------------------------------------


def test_a_memmap_on_its_own_device_lies_exactly_where_the_kernel_puts_it() -> None:
    guest = Guest(parameters={"memory_hotplug.memmap_on_memory": "Y"}).do(PlugDimm("d0", 2 * GIB))
    evidence = guest.evidence()
    for change in (elsewhere(2 * MIB), to(lambda g: ram(g).start + 256 * MIB)):
        seen = both(change, memmap)(guest, evidence.observed)
        assert broken(dataclasses.replace(evidence, observed=seen)) == {"VMM-1"}


def test_frames_may_lie_in_memory_that_is_online_for_the_kernel_only() -> None:
    guest = Guest().do(PlugDimm("d0", GIB), PlugDimm("d1", GIB), SetBlock(Guest().first, "online_kernel"))
    place = guest.kernel.kernel.memmap(AddrRange.sized((guest.first + 8) * guest.block, guest.block))
    evidence = guest.evidence()
    there = both(to(lambda g: g.first * g.block), lambda _: place)(guest, evidence.observed)
    assert broken(dataclasses.replace(evidence, observed=there)) == set()
    for state in ("offline", "online_movable"):
        guest.do(SetBlock(guest.first, state))
        assert broken(dataclasses.replace(evidence, expected=guest.model.expected(), observed=there)) >= {"VMM-1"}


def test_a_badly_folded_memmap_is_named() -> None:
    guest = Guest(RISCV, config=FOLDS).do(PlugVirtioPmem("p0", GIB), SetPmemMode("p0", "devdax"))
    (piece,) = guest.model.expected().linear
    start = guest.kernel.kernel.memmap(piece.range).start
    evidence = guest.evidence()
    for page in (0, 1, 5):
        where = AddrRange.sized(start + piece.folded + page * 4096, 4096)
        twice = both(to(lambda g: g.kernel.free - 4096), lambda _, where=where: where)(guest, evidence.observed)
        assert broken(dataclasses.replace(evidence, observed=twice)) == {"VMM-1"}


def test_sections_that_cannot_be_read_are_named() -> None:
    evidence = Guest().evidence()
    fault = SectionFault(128, 64, 0xFFFF_0000_1234_0000, "outside of memory")
    seen = dataclasses.replace(evidence.observed, section_faults=(fault,))
    result = results(dataclasses.replace(evidence, observed=seen))["SEC-1"]
    assert [(finding.where, finding.observed) for finding in result.findings] == [
        ("sections 128 to 191", "outside of memory (0xffff000012340000)")
    ]
