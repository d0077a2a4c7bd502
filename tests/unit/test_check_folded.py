# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages with a folded memmap: the results of folding and unfolding pass, anything else is reported."""

from __future__ import annotations

import dataclasses

import pytest
from model_guest import with_records
from test_check_host import RISCV, Guest, both, broken, complaints, dumped, elsewhere, split, tables, with_mappings

from harness.check import CATALOGUE, Evidence, run_check
from harness.model.actions import Action, SetBlock, StartLoad
from harness.model.devices.dimm import PlugDimm
from harness.scenarios.record import CODEC
from harness.state import GuestState, HostMapping, NotObserved
from harness.units import GIB, MIB, AddrRange

CONFIG = {"HUGETLB_PAGE": "y", "HUGETLB_PAGE_OPTIMIZE_VMEMMAP": "y"}
ON = "hugetlb_free_vmemmap=on"
#: vmemmap pages of one huge page
PAGES = 8


def folding(cmdline: str = ON, load: str = "hugetlb") -> Guest:
    guest = Guest(RISCV, config=CONFIG, cmdline=cmdline)
    return guest.do(PlugDimm("d0", 2 * GIB), SetBlock(guest.first, "online_movable"), StartLoad(load))


def huge_pages(guest: Guest, count: int) -> AddrRange:
    """The vmemmap of the first huge pages of the DIMM."""
    kernel = guest.kernel.kernel
    return AddrRange.sized(kernel.vmemmap + guest.first * guest.block // 4096 * 64, count * PAGES * 4096)


def boot_pages(guest: Guest, count: int) -> AddrRange:
    start = guest.layout.machine.node_ranges()[0].start + 512 * MIB
    return AddrRange.sized(guest.kernel.kernel.vmemmap + start // 4096 * 64, count * PAGES * 4096)


def remapped(guest: Guest, state: GuestState, place: AddrRange, *, folded: bool, size: int = PAGES) -> GuestState:
    """The memmap at ``place`` page by page, folded (``size`` pages share one frame) or with newly allocated frames."""
    (block,) = [leaf for leaf in tables(state).mappings if leaf.range.covers(place)]
    frame = guest.layout.machine.node_ranges()[0].start + 64 * MIB
    out = [leaf for leaf in tables(state).mappings if leaf is not block]
    for number, part in enumerate(block.range.chunks(4096)):
        old = block.physical + part.start - block.range.start
        if not place.covers(part):
            out.append(HostMapping(part, old, "PTE", block.attrs))
            continue
        tail = folded and (part.start - place.start) // 4096 % size
        attrs = tuple(word for word in block.attrs if word != "W" or not tail)
        new = frame + 4096 * (number - (number - (place.start - block.range.start) // 4096) % size * folded)
        out.append(HostMapping(part, new, "PTE", attrs))
    walk = with_mappings(state, sorted(out, key=lambda leaf: leaf.range))
    return dataclasses.replace(walk, page_tables=dumped(tables(walk)))


def counted(state: GuestState, *, huge: int = 0, hot: int = 0, boot: int = 0) -> GuestState:
    assert not isinstance(state.meminfo, NotObserved) and not isinstance(state.vmstat, NotObserved)
    vmstat = dict(state.vmstat)
    vmstat["nr_memmap_pages"] += hot
    vmstat["nr_memmap_boot_pages"] += boot
    counts = dataclasses.replace(state, meminfo={**state.meminfo, "Hugetlb": huge * 2 * MIB}, vmstat=vmstat)
    return with_records(counts)


def seen(evidence: Evidence, state: GuestState) -> Evidence:
    return dataclasses.replace(evidence, observed=state)


def balance(evidence: Evidence) -> list[str]:
    """MEM-2's result for the memmap pages."""
    result = run_check(CATALOGUE["MEM-2"], evidence)
    assert result is not None
    return [f"{finding.expected} -> {finding.observed}" for finding in result.findings if "memmap" in finding.where]


@pytest.mark.parametrize("where", [huge_pages, boot_pages])
def test_folded_and_unfolded_memmaps_pass(where: object) -> None:
    guest = folding()
    evidence = guest.evidence()
    place = where(guest, 3)  # type: ignore[operator]
    folded = counted(remapped(guest, evidence.observed, place, folded=True), huge=3, hot=-7 * 3)
    assert complaints(seen(evidence, folded)) == [] and balance(seen(evidence, folded)) == []
    # Boot's own frames were freed; the new frames are counted in nr_memmap_pages.
    after = counted(remapped(guest, evidence.observed, place, folded=False), hot=8, boot=-8)
    assert complaints(seen(evidence, after)) == [] and balance(seen(evidence, after)) == []


def given_back(guest: Guest, *, managed: int, total: int, boot: int) -> Evidence:
    """``boot`` pages of boot's memmap are free; zones have ``managed`` additional pages, MemTotal has ``total``."""
    evidence = guest.evidence()
    before, (first, *others) = evidence.layout.baseline.meminfo, evidence.expected.zones
    assert not isinstance(before, NotObserved) and not isinstance(evidence.observed.meminfo, NotObserved)
    memory = before["MemTotal"] + evidence.expected.managed_bytes + total * 4096
    state = dataclasses.replace(
        evidence.observed,
        zones=(dataclasses.replace(first, managed=first.managed + managed), *others),
        meminfo={**evidence.observed.meminfo, "MemTotal": memory},
    )
    return seen(evidence, counted(state, hot=boot, boot=-boot))


def statuses(evidence: Evidence) -> list[str]:
    """The results of ZON-1 and MEM-1."""
    checks = [run_check(CATALOGUE[name], evidence) for name in ("ZON-1", "MEM-1")]
    return [check.status for check in checks if check is not None]


@pytest.mark.parametrize(
    ("managed", "total", "wanted"),
    [
        (8, 8, ["pass", "pass"]),
        (7, 8, ["fail", "pass"]),
        (9, 8, ["fail", "pass"]),
        (8, 7, ["pass", "fail"]),
        (0, 0, ["fail", "fail"]),
    ],
)
def test_frames_of_boots_memmap_that_folding_frees_are_memory_from_then_on(
    managed: int, total: int, wanted: list[str]
) -> None:
    assert statuses(given_back(folding(), managed=0, total=0, boot=0)) == ["pass", "pass"]
    assert statuses(given_back(folding(), managed=managed, total=total, boot=8)) == wanted
    assert statuses(given_back(folding(cmdline=""), managed=8, total=8, boot=8)) == ["fail", "fail"]


def test_what_is_freed_of_boots_memmap_must_be_counted() -> None:
    evidence = given_back(folding(), managed=0, total=0, boot=0)
    assert not isinstance(evidence.observed.vmstat, NotObserved)
    vmstat = {name: count for name, count in evidence.observed.vmstat.items() if "memmap_boot" not in name}
    blind = seen(evidence, dataclasses.replace(evidence.observed, vmstat=vmstat))
    assert statuses(blind) == ["not-observed", "not-observed"]


@pytest.mark.parametrize(("cmdline", "load"), [("", "hugetlb"), (ON, "anon"), ("hugetlb_free_vmemmap=off", "hugetlb")])
def test_without_huge_pages_or_folding_nothing_may_move(cmdline: str, load: str) -> None:
    guest = folding(cmdline, load)
    evidence = guest.evidence()
    assert not evidence.expected.memmap_split
    for folded in (True, False):
        state = remapped(guest, evidence.observed, boot_pages(guest, 2), folded=folded)
        assert broken(seen(evidence, state)) == {"VMM-1"}
    assert balance(seen(evidence, counted(evidence.observed, hot=8, boot=-8))) != []


def test_boots_memmap_keeps_its_leaves() -> None:
    guest = folding(cmdline="")
    evidence = guest.evidence()
    place = boot_pages(guest, 1)
    (block,) = [leaf for leaf in tables(evidence.observed).mappings if leaf.range.covers(place)]
    finer = both(lambda _, leaf: dataclasses.replace(leaf, level="PTE"), lambda _: block.range)
    assert broken(seen(evidence, finer(guest, evidence.observed))) == {"VMM-1"}
    assert complaints(seen(folding().evidence(), finer(guest, evidence.observed))) == []


def test_what_is_badly_folded_is_named() -> None:
    guest = folding()
    evidence = guest.evidence()
    place = huge_pages(guest, 2)
    folded = counted(remapped(guest, evidence.observed, place, folded=True), huge=2)
    last = AddrRange(place.end - 4096, place.end)
    lost = both(elsewhere(64 * 4096), lambda _: last)(guest, folded)
    assert broken(seen(evidence, lost)) == {"VMM-1"}
    assert broken(seen(evidence, remapped(guest, folded_less(evidence), place, folded=True))) == {"VMM-1"}
    odd = counted(remapped(guest, evidence.observed, place, folded=True, size=4), huge=4)
    assert broken(seen(evidence, odd)) == {"VMM-1"}
    writable = both(lambda _, leaf: dataclasses.replace(leaf, attrs=(*leaf.attrs, "W")), lambda _: last)
    assert broken(seen(evidence, writable(guest, folded))) >= {"VMM-1"}


def with_shared_tails(guest: Guest, state: GuestState, place: AddrRange, count: int, *, frame: int) -> GuestState:
    """``count`` folded huge pages from ``place`` on: each has its own first page, all other pages map ``frame``."""
    folded = counted(remapped(guest, state, place, folded=True), huge=count)
    leaves = []
    for leaf in tables(folded).mappings:
        tail = place.covers(leaf.range) and "W" not in leaf.attrs
        leaves.append(dataclasses.replace(leaf, physical=frame) if tail else leaf)
    walk = with_mappings(folded, leaves)
    return dataclasses.replace(walk, page_tables=dumped(tables(walk)))


SHARES, OWN = {"zone.vmemmap_tails": True}, {"zone.vmemmap_tails": False}


@pytest.mark.parametrize(
    ("image", "shared", "own"),
    [(SHARES, set(), {"VMM-1"}), (OWN, {"VMM-1"}, set()), (NotObserved("packed"), set(), set())],
)
def test_tails_lead_where_this_kernel_has_them(image: object, shared: set[str], own: set[str]) -> None:
    guest = folding()
    guest.layout = guest.model.layout = dataclasses.replace(
        guest.layout, facts=dataclasses.replace(guest.layout.facts, image=image)
    )
    evidence, place = guest.evidence(), huge_pages(guest, 3)
    frame = guest.layout.machine.node_ranges()[0].start + 200 * MIB
    common = with_shared_tails(guest, evidence.observed, place, 3, frame=frame)
    assert broken(seen(evidence, common)) == shared
    assert broken(seen(evidence, counted(remapped(guest, evidence.observed, place, folded=True), huge=3))) == own


def test_a_shared_tail_is_one_for_all_and_nobodys_memmap() -> None:
    guest = folding()
    evidence, place = guest.evidence(), huge_pages(guest, 3)
    frame = guest.layout.machine.node_ranges()[0].start + 200 * MIB
    common = with_shared_tails(guest, evidence.observed, place, 3, frame=frame)
    last = AddrRange(place.end - 4096, place.end)
    assert broken(seen(evidence, both(elsewhere(64 * 4096), lambda _: last)(guest, common))) == {"VMM-1"}
    taken = next(leaf.physical for leaf in tables(common).mappings if leaf.range.start == place.end)
    assert broken(seen(evidence, with_shared_tails(guest, evidence.observed, place, 3, frame=taken))) == {"VMM-1"}


def folded_less(evidence: Evidence) -> GuestState:
    """The kernel counts one huge page less than are folded."""
    return counted(evidence.observed, huge=1)


def test_the_memmap_of_huge_pages_balances() -> None:
    guest = folding()
    evidence = guest.evidence()
    place = huge_pages(guest, 3)
    folded = remapped(guest, evidence.observed, place, folded=True)
    for hot in (0, -7 * 3 - 1, -8 * 3):
        assert balance(seen(evidence, counted(folded, huge=3, hot=hot))) != []


def test_loads_split_the_linear_map_where_the_architecture_does() -> None:
    for load, wanted in (("memfd-secret", set()), ("bpf", set()), ("anon", {"LIN-3"})):
        guest = Guest(RISCV).do(PlugDimm("d0", 2 * GIB), StartLoad(load))
        guest.do(SetBlock(guest.first + 3, "online_kernel"))
        evidence = guest.evidence()
        assert broken(seen(evidence, split(guest, evidence.observed))) == wanted


def test_loads_are_actions_that_can_be_saved() -> None:
    guest = Guest().do(StartLoad("vmalloc"))
    assert not guest.model.expected().linear_split
    assert CODEC.load(CODEC.dump(StartLoad("bpf"), Action), Action) == StartLoad("bpf")
