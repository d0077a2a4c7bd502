# SPDX-License-Identifier: GPL-2.0-or-later
"""memhp bench walk without the timed parts: which guest, which sizes, and whether both readers agree."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.arch import ARM64
from harness.arch.kernel_layout import KernelLayout
from harness.bench import BenchOptions
from harness.bench import walk_speed as walk_bench
from harness.bench.measure import TOTAL, Spread, Timing
from harness.bench.readers import Readers, check_mapped, differences
from harness.bench.walk_speed import GROWTH, MEMORY, Point, affordable, default_guest, lack_of, line_facts, steps
from harness.config.guest import GuestSpec, NodeConfig
from harness.errors import GuestError, UnsupportedError, UsageError
from harness.progress import SilentProgress
from harness.qemu.memdev import HotplugOutcome
from harness.state import KernelFacts, Mapping, MemoryDevice, NotObserved
from harness.units import GIB, MIB, AddrRange

LINEAR, VMEMMAP = AddrRange(0x1000_0000, 0x2000_0000), AddrRange(0x3000_0000, 0x4000_0000)
RW, RO = ("RW", "AF"), ("ro", "AF")
FACTS = KernelFacts(
    arch="arm64",
    release="6.12-test",
    cmdline="",
    page_size=4096,
    memory_block_size=128 * MIB,
    config={"ACPI_HOTPLUG_MEMORY": "y", "MEMORY_HOTREMOVE": "y"},
    vmcoreinfo=NotObserved("no /proc/kcore"),
    parameters={},
)


def mapping(start: int, end: int, attrs: tuple[str, ...] = RW, level: str = "PTE", region: str = "") -> Mapping:
    return Mapping(AddrRange(start, end), level, attrs, region)


def test_equal_but_for_regions_cuts_and_what_lies_outside() -> None:
    dump = [
        mapping(0x0FFF_0000, 0x1001_0000, region="Linear Mapping start"),
        mapping(0x1001_0000, 0x1002_0000, region="another"),
        mapping(0x1002_0000, 0x1003_0000, RO),
        mapping(0x5000_0000, 0x5001_0000),
    ]
    walk = [mapping(0x1000_0000, 0x1002_0000), mapping(0x1002_0000, 0x1003_0000, RO), mapping(0x6000_0000, 0x6001_0000)]
    assert differences(dump, walk, (LINEAR, VMEMMAP)) == []


def test_every_kind_of_difference() -> None:
    dump = [mapping(0x1000_0000, 0x1002_0000), mapping(0x3000_0000, 0x3020_0000, level="PMD")]
    walk = [mapping(0x1000_0000, 0x1001_0000), mapping(0x1001_0000, 0x1002_0000, RO), mapping(0x3000_0000, 0x3020_0000)]
    assert differences(dump, walk, (LINEAR, VMEMMAP)) == [
        "virtual 10000000-1001ffff: guest's dump 10000000-1001ffff PTE RW AF, host's walk "
        "10000000-1000ffff PTE RW AF; 10010000-1001ffff PTE ro AF",
        "virtual 30000000-301fffff: guest's dump 30000000-301fffff PMD RW AF, host's walk 30000000-301fffff PTE RW AF",
    ]
    assert differences(dump[:1], [], (LINEAR,)) == [
        "virtual 10000000-1001ffff: guest's dump 10000000-1001ffff PTE RW AF, host's walk nothing"
    ]
    assert len(differences([], walk, (LINEAR, VMEMMAP))) == 2


def test_words_that_come_and_go_are_ignored() -> None:
    dump = [mapping(0x1000_0000, 0x1001_0000, ("F", *RW)), mapping(0x1001_0000, 0x1002_0000)]
    walk = [mapping(0x1000_0000, 0x1002_0000)]
    assert len(differences(dump, walk, (LINEAR,))) == 1
    assert differences(dump, walk, (LINEAR,), frozenset({"F"})) == []


def test_the_guest_that_the_targets_are_meant_for() -> None:
    spec = default_guest(GuestSpec.default("arm64"))
    assert (spec.memory, spec.room, spec.slots) == (5 * GIB, 64 * GIB, 8)
    assert spec.explicit == frozenset()
    assert default_guest(GuestSpec.default("arm64"), ()).room == GIB


def test_the_user_has_the_last_word() -> None:
    base = GuestSpec.default("arm64")
    assert default_guest(base.with_fields({"memory": GIB})).memory == GIB
    assert default_guest(base.with_fields({"maxmem": 8 * GIB})).maxmem == 8 * GIB
    assert default_guest(base.with_fields({"slots": 1})).slots == 1
    nodes = (NodeConfig(512 * MIB), NodeConfig(512 * MIB))
    assert default_guest(base.with_fields({"nodes": nodes})).memory == GIB
    none = default_guest(base.with_fields({"slots": 0, "memory": 16 * GIB}))
    assert (none.maxmem, none.slots) == (16 * GIB, 0)


def test_what_does_not_go_together() -> None:
    with pytest.raises(UsageError, match=r"maxmem 4G is below the boot memory 5G\n  hint: maxmem counts"):
        default_guest(GuestSpec.default("arm64").with_fields({"maxmem": 4 * GIB}))


def test_sizes_that_the_guest_can_take() -> None:
    spec = default_guest(GuestSpec.default("arm64"))
    assert affordable(GROWTH, spec, 4096, 64) == (GROWTH, [])
    small = default_guest(GuestSpec.default("arm64").with_fields({"memory": GIB}))
    sizes, notes = affordable(GROWTH, small, 4096, 64)
    assert sizes == (4 * GIB, 16 * GIB)
    assert notes == ["+64G not measured: its struct pages and tables take 1152M of 1G boot memory"]


def test_sizes_that_it_cannot() -> None:
    spec = GuestSpec.default("arm64").with_fields({"memory": 5 * GIB, "maxmem": 16 * GIB, "slots": 1})
    sizes, notes = affordable([16 * GIB, 8 * GIB, 4 * GIB], spec, 4096, 64)
    assert sizes == (4 * GIB,)
    assert notes == ["+8G not measured: the guest has 1 slots", "+16G not measured: the guest has room for 11G"]


def point(pages: int, wall: float, cpu: float | None = None) -> Point:
    return Point(GIB, pages, Timing(Spread((wall,)), None if cpu is None else Spread((cpu,))))


def test_a_point() -> None:
    made = Point(4 * GIB, 4, Timing(Spread((1.0, 2.0)), None))
    assert (str(made), made.each.values) == ("+4G", (0.25, 0.5))


def test_how_linear() -> None:
    straight = {"linear: fixed ms": 2.0, "us a page": 2.0, "largest deviation %": 0.0}
    assert line_facts([point(1000, 0.004), point(2000, 0.006), point(4000, 0.010)]) == straight
    measured = [point(1000, 0.004, 0.004), point(2000, 0.006, 0.004), point(4000, 0.010, 0.004)]
    assert line_facts(measured) == straight | {"by CPU time %": 0.0}
    assert line_facts([point(1000, 0.004), point(4000, 0.010)]) == {}
    assert line_facts([point(218, 0.004), point(218, 0.003), point(219, 0.005)]) == {}


@pytest.mark.parametrize(("sizes", "expected"), [(0, 11), (1, 43), (3, 85)])
def test_the_whole_of_a_progress_bar(sizes: int, expected: int) -> None:
    assert steps(sizes, 10) == expected


def booted(**changes: object) -> Any:
    facts = dataclasses.replace(FACTS, **cast(Any, changes))
    return SimpleNamespace(
        boot="acpi", facts=facts, machine=SimpleNamespace(spec=SimpleNamespace(arch=ARM64)), shell=None
    )


def test_kernels_that_take_no_dimm() -> None:
    assert lack_of(booted()) is None
    assert lack_of(booted(config=None)) is None
    said = lack_of(booted(config={}))
    assert said is not None and "the kernel 6.12-test has no CONFIG_ACPI_HOTPLUG_MEMORY" in said
    guest = booted()
    guest.boot = "dt"
    assert "needs a guest that boots by acpi" in str(lack_of(guest))


def test_a_kernel_whose_tables_cannot_be_found() -> None:
    with pytest.raises(UnsupportedError, match=r"page tables of 6\.12-test: no /proc/kcore\n  hint: the kernel needs"):
        Readers(booted(), 1.0)


KERNEL = KernelLayout(
    linear_start=0x1000_0000_0000,
    phys_offset=0,
    vmemmap=0,
    struct_page_size=64,
    page_size=4096,
    leaf_levels=frozenset({"PTE"}),
    vmemmap_granule=4096,
    linear_window=AddrRange(0x1000_0000_0000, 0x2000_0000_0000),
    vmemmap_window=AddrRange(0x3000_0000_0000, 0x4000_0000_0000),
)
DIMM = MemoryDevice("d0", "dimm", AddrRange.sized(4 * GIB, GIB), GIB, GIB, None, None, 0, 0, "mem-d0")


def test_memory_that_is_not_mapped() -> None:
    there = KERNEL.linear(DIMM.range)
    check_mapped([DIMM], KERNEL, [there])
    check_mapped([], KERNEL, [])
    with pytest.raises(GuestError, match=r"no linear map for 256M of d0 \(1G\)\n  hint: see its kernel log"):
        check_mapped([DIMM], KERNEL, [AddrRange(there.start, there.end - 256 * MIB)])


class Silent:
    """Stands in for Readers on a guest of 5 GB."""

    no_dump = ""
    page_size = 4096

    def __init__(self) -> None:
        self.guest = SimpleNamespace(shell=None, machine=None)


def bench(by_pages: float = 1.0, *, no_dump: str = "") -> walk_bench._WalkBench:
    readers = Silent()
    readers.no_dump = no_dump
    with SilentProgress().task("") as task:
        made = walk_bench._WalkBench(cast(Any, readers), BenchOptions(), task)
    made.series = {
        "host": {TOTAL: Timing(Spread((0.01,)), None)},
        "look": {"still": Timing(Spread((0.009,)), None)},
    }
    made.ratio = None if no_dump else Spread((40.0,))
    made.by_pages = by_pages
    return made


def verdicts(made: walk_bench._WalkBench, memory: int = MEMORY) -> dict[str, tuple[bool | None, str]]:
    return {target.name: (target.met, target.reason) for target in made.targets(memory)}


def test_targets_are_judged_on_what_they_are_meant_for() -> None:
    made = bench()
    made.grown = {0: Spread((0.01,)), 64 * GIB: Spread((0.4,))}
    assert verdicts(made) == {"walk": (True, ""), "pause": (False, ""), "ratio": (True, ""), "grown": (False, "")}


def test_targets_are_not_judged_on_anything_else() -> None:
    small = verdicts(bench(), GIB)
    assert small["walk"] == small["pause"] == small["ratio"] == (None, "the guest has 1G")
    assert small["grown"] == (None, "not measured")
    easy = bench(0.1)
    easy.grown = {64 * GIB: Spread((0.01,))}
    assert set(verdicts(easy).values()) == {(None, "10% of the linear map is mapped by single pages")}
    large = bench()
    cast(Any, large.readers).page_size = 16384
    assert verdicts(large)["walk"] == (None, "the guest's pages are 16K")
    assert verdicts(bench(no_dump="no dump"))["ratio"] == (None, "no dump")


def test_a_guest_that_does_not_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_bench, "set_auto_online", lambda *args, **named: None)
    refused = HotplugOutcome("bench4G", "refused", (), "_OST status 1: non-specific failure")
    monkeypatch.setattr(walk_bench.memdev, "plug", lambda *args, **named: refused)
    with pytest.raises(GuestError, match="does not accept 4G more memory: _OST status 1"):
        bench()._add("bench4G", 4 * GIB)
