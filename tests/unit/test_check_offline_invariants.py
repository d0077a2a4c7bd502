# SPDX-License-Identifier: GPL-2.0-or-later
"""BLK-3: which memory blocks a leaf of the linear map keeps online, and which refusals are unexplained."""

from __future__ import annotations

import dataclasses

import model_guest
import pytest
from model_guest import ARM64_4K, FIRST, KINDS, Kind

from harness.check import CATALOGUE, Evidence, OfflineReport, run_check
from harness.model.actions import SetAutoOnline, SetBlock
from harness.model.boot_layout import BootLayout, boot_layout
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.virtio_mem import PlugVirtioMem, Resize
from harness.model.memory_model import MemoryModel
from harness.state import DmesgLine, HostMapping, HostTables, NotObserved
from harness.units import GIB, MIB

KEEPS = {"splits a leaf entry in linear map": True, "Boot memory [%lx %lx] offlining attempted": True}


def layout(kind: Kind = ARM64_4K, level: str = "PMD", **facts: object) -> BootLayout:
    """A guest that maps its boot memory at ``level``."""
    plain = model_guest.layout(kind, **{"image": KEEPS} | facts)
    assert plain.kernel is not None
    ram = plain.machine.node_ranges()[0]
    leaf = HostMapping(plain.kernel.linear(ram), ram.start, level, (plain.machine.arch.writable_word,))
    boot = dataclasses.replace(model_guest.boot_state(kind), host_tables=HostTables((leaf,), (), ()))
    return boot_layout(plain.machine, plain.facts, boot)


def model(size: int, kind: Kind = ARM64_4K, level: str = "PMD", **facts: object) -> MemoryModel:
    found = MemoryModel(layout(kind, level, **facts))
    found.apply(PlugDimm("dimm0", size))
    for index in found.blocks_of("dimm0"):
        found.apply(SetBlock(index, "online_movable"))
    return found


def findings(found: MemoryModel, *reports: OfflineReport, log: str = "") -> list[tuple[str, str]]:
    lines = (DmesgLine(1.0, 4, log),) if log else ()
    observed = dataclasses.replace(found.layout.baseline, dmesg=lines)
    result = run_check(CATALOGUE["BLK-3"], Evidence(found.layout, found.expected(), observed, offlines=reports))
    assert result is not None
    return [(finding.where, finding.observed) for finding in result.findings]


@pytest.mark.parametrize(
    ("size", "level", "kept"),
    [
        # One PUD maps the whole DIMM, so it extends beyond each block.
        (GIB, "PMD", range(8)),
        # A PUD, then contiguous groups of 16 PMDs, 32 MiB each.
        (GIB + 256 * MIB, "PMD", range(8)),
        (512 * MIB, "PMD", ()),
        (GIB, "PTE", ()),
    ],
)
def test_a_leaf_keeps_the_blocks_that_it_reaches_beyond(size: int, level: str, kept: range) -> None:
    found = model(size, level=level)
    assert sorted(found.kept_blocks()) == [FIRST + number for number in kept]
    assert all(reason == "a PUD of 1G reaches beyond it" for reason in found.kept_blocks().values())


def test_with_pages_of_16k_a_group_of_blocks_reaches_as_far() -> None:
    found = model(GIB, KINDS[2])
    assert set(found.kept_blocks().values()) == {"a PMD group of 1G reaches beyond it"}
    assert len(found.kept_blocks()) == 8


def test_a_block_that_was_added_alone_is_mapped_alone() -> None:
    found = MemoryModel(layout())
    found.apply(PlugVirtioMem("v0", 2 * GIB, 2 * MIB, 0, 0, "rp0"))
    found.apply(Resize("v0", GIB))
    assert found.expected().spanned == {}


@pytest.mark.parametrize(
    ("size", "policy", "left"), [(GIB, "online", 2 * GIB), (GIB, "offline", 0), (512 * MIB, "online", 0)]
)
def test_virtio_mem_keeps_a_big_block_whose_memory_blocks_share_a_leaf(size: int, policy: str, left: int) -> None:
    found = MemoryModel(layout())
    found.apply(SetAutoOnline(policy))
    found.apply(PlugVirtioMem("v0", 4 * GIB, size, 0, 0, "rp0"))
    found.apply(Resize("v0", 2 * GIB))
    assert found.devices["v0"].qmp().size == 2 * GIB
    found.apply(Resize("v0", 0))
    assert found.devices["v0"].qmp().size == left
    assert sorted(found.kept_blocks()) == list(found.blocks_of("v0"))


def test_a_kernel_that_does_not_look_keeps_none() -> None:
    found = model(GIB, image={"splits a leaf entry in linear map": False})
    assert found.kept_blocks() == {}
    assert findings(found, OfflineReport(FIRST, None)) == []
    assert model(GIB, image=NotObserved("packed")).kept_blocks() == {}


def test_a_refusal_that_a_leaf_explains_is_none_of_the_kernels_faults() -> None:
    found = model(GIB)
    report = OfflineReport(FIRST, "EPERM")
    assert findings(found, report, log="[80000000 88000000] splits a leaf entry in linear map") == []
    assert findings(found, OfflineReport(FIRST, None)) == [(f"memory{FIRST}", "went offline")]


def test_the_struct_pages_of_a_self_hosted_memmap_are_no_reason() -> None:
    """The kernel checks the range behind the memmap; the memmap itself is never offlined (v7.3)."""
    found = model(512 * MIB, level="PTE", parameters={"memory_hotplug.memmap_on_memory": "Y"})
    text = "[80200000 88000000] splits a leaf entry in vmemmap"
    told = [(f"memory{FIRST}", f"stays online: {text}")]
    assert findings(found, OfflineReport(FIRST, "EPERM"), log=text) == told
    # Likewise without an offline report, if a whole device was to be removed.
    assert findings(found, log=text) == told


def test_a_veto_without_a_word_is_a_finding() -> None:
    found = model(512 * MIB, level="PTE")
    silent = "stays online: EPERM, and the kernel's log does not say why"
    assert findings(found, OfflineReport(FIRST, "EPERM")) == [(f"memory{FIRST}", silent)]
    assert findings(found, OfflineReport(FIRST, "EBUSY"), OfflineReport(FIRST + 1, None)) == []


def test_boot_memory_stays_where_the_kernel_never_gives_it_up() -> None:
    found = model(512 * MIB, level="PTE")
    first = found.boot_blocks()[0]
    assert findings(found, OfflineReport(first, "EPERM")) == []
    lets = model(512 * MIB, level="PTE", image=KEEPS | {"Boot memory [%lx %lx] offlining attempted": False})
    assert len(findings(lets, OfflineReport(first, "EPERM"))) == 1


def test_where_no_tables_were_seen_nobody_knows() -> None:
    blind = MemoryModel(model_guest.layout(image=KEEPS))
    blind.apply(PlugDimm("dimm0", GIB))
    evidence = Evidence(
        blind.layout, blind.expected(), blind.layout.baseline, offlines=(OfflineReport(FIRST, "EPERM"),)
    )
    result = run_check(CATALOGUE["BLK-3"], evidence)
    assert result is not None and result.status == "not-observed"
    assert "page tables were not observed after boot" in result.reason
