# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's records in guest memory against the guest's own text, and alone where the text was not read."""

from __future__ import annotations

import re
from dataclasses import replace

import model_guest
import pytest
from selftest_scenes import scenes_of

from harness.check import CATALOGUE, CheckResult, Evidence, run_check
from harness.check.required import Demand, lacks_of
from harness.model.actions import SetAutoOnline
from harness.model.devices.dimm import PlugDimm
from harness.selftest.scene import broken, check
from harness.state import (
    DmesgLine,
    Garbled,
    GuestState,
    HostTables,
    IomemEntry,
    KernelRecords,
    MemoryBlock,
    NotObserved,
    TableCount,
    Zone,
)
from harness.units import GIB, AddrRange

RAM = model_guest.boot_state().iomem
PLUGGED = AddrRange.sized(0x8000_0000, GIB)
UNREAD = NotObserved("not asked for")


def evidence(text: object, tree: object, baseline: GuestState | None = None) -> Evidence:
    model = model_guest.model()
    model.apply(SetAutoOnline("offline"))
    model.apply(PlugDimm("d0", GIB))
    layout = replace(model.layout, baseline=baseline or model_guest.with_records(model.layout.baseline))
    observed = replace(layout.baseline, iomem=text, records=KernelRecords(iomem=tree))  # type: ignore[arg-type]
    return Evidence(layout, model.expected(), observed)


def result(id: str, seen: Evidence) -> CheckResult:
    found = run_check(CATALOGUE[id], seen)
    assert found is not None
    return found


def tree(*more: IomemEntry) -> tuple[IomemEntry, ...]:
    assert not isinstance(RAM, NotObserved)
    return (*RAM, *more)


SOUND = tree(IomemEntry(PLUGGED, "System RAM"))
RENAMED = tree(IomemEntry(PLUGGED, "System RAM (kmem)"))
NESTED = tree(IomemEntry(PLUGGED, "System RAM", (IomemEntry(PLUGGED, "Kernel code"),)))


def test_equal_witnesses_pass() -> None:
    seen = evidence(SOUND, SOUND)
    assert {id: result(id, seen).status for id in ("IOM-1", "IOM-2", "IOM-3", "XCK-2")} == dict.fromkeys(
        ("IOM-1", "IOM-2", "IOM-3", "XCK-2"), "pass"
    )


@pytest.mark.parametrize("other", [tree(), RENAMED, NESTED, (*SOUND, SOUND[-1])], ids=["gone", "name", "more", "twice"])
@pytest.mark.parametrize("turned", [False, True])
def test_each_difference_is_named(other: tuple[IomemEntry, ...], turned: bool) -> None:
    seen = result("XCK-2", evidence(SOUND, other) if turned else evidence(other, SOUND))
    assert seen.status == "fail"
    assert {finding.source for finding in seen.findings} == {"/proc/iomem against the resource tree in guest memory"}
    assert {finding.where for finding in seen.findings} == {str(PLUGGED)}


def test_a_line_that_no_kernel_prints_is_a_finding_of_the_tree() -> None:
    source = "the resource tree in guest memory"
    bad = Garbled(source, 3, "the resource at 0x1234 cannot be read", "not '<start>-<end> : <name>'")
    seen = evidence(SOUND, SOUND)
    found = result("XCK-2", replace(seen, observed=replace(seen.observed, garbled=(bad,))))
    assert [finding.where for finding in found.findings] == [f"{source}:3"]


def test_the_tree_alone_is_judged_where_the_text_was_not_read() -> None:
    assert [result(id, evidence(UNREAD, SOUND)).status for id in ("IOM-1", "IOM-2", "IOM-3")] == ["pass"] * 3
    assert result("XCK-2", evidence(UNREAD, SOUND)).reason == "not asked for"
    assert result("IOM-1", evidence(UNREAD, tree())).status == "fail"
    assert result("IOM-1", evidence(UNREAD, UNREAD)).status == "not-observed"
    assert result("IOM-1", evidence(tree(), SOUND)).status == "fail", "the text is judged if there is one"


def test_a_kernel_without_layouts_is_told_and_does_without() -> None:
    lack = NotObserved("the kernel's image has no BTF, and there is no layouts.btf beside it")
    baseline = replace(model_guest.boot_state(), records=KernelRecords(iomem=lack))
    seen = evidence(SOUND, lack, baseline)
    check = result("XCK-2", seen)
    assert (check.status, check.reason) == ("not-observed", lack.reason)
    assert lacks_of(seen.layout)["XCK-2"] == lack.reason
    assert Demand().unmet([check], seen.layout, seen.observed) == ()
    assert Demand(frozenset({"XCK-2"})).unmet([check], seen.layout, seen.observed) == (f"XCK-2 ({lack.reason})",)
    able = evidence(SOUND, SOUND)
    assert "XCK-2" not in lacks_of(able.layout)
    assert Demand().unmet([check], able.layout, able.observed) == (f"XCK-2 ({lack.reason})",)


# memory blocks, zones and counters -----------------------------------------------------------------------------------

BOOT = model_guest.with_records(model_guest.boot_state())
FIRST = 0x4000_0000 // model_guest.BLOCK
#: fields of GuestState and of its records, the cross-check, and the invariants that judge either
WITNESSES = {
    "blocks": ("XCK-3", ("BLK-1",)),
    "zones": ("XCK-4", ("ZON-1",)),
    "vmstat": ("XCK-5", ()),
    "meminfo": ("XCK-5", ("MEM-1",)),
}


def at_boot(text: GuestState = BOOT, **records: object) -> Evidence:
    """The guest after its boot; its ``text``, and other ``records`` than the text tells."""
    model = model_guest.model()
    layout = replace(model.layout, baseline=BOOT)
    return Evidence(layout, model.expected(), replace(text, records=replace(BOOT.records, **records)))  # type: ignore[arg-type]


def blocks(**changes: object) -> tuple[MemoryBlock, ...]:
    """The host's memory blocks, the first one changed."""
    assert not isinstance(BOOT.records.blocks, NotObserved)
    first, *others = BOOT.records.blocks
    return (replace(first, **changes), *others)  # type: ignore[arg-type]


def zones(**changes: object) -> tuple[Zone, ...]:
    assert not isinstance(BOOT.zones, NotObserved)
    first, *others = BOOT.zones
    return (replace(first, **changes), *others)  # type: ignore[arg-type]


def counters(**changes: int) -> dict[str, int]:
    assert not isinstance(BOOT.vmstat, NotObserved)
    return {**BOOT.vmstat, **changes}


@pytest.mark.parametrize("field", WITNESSES)
def test_what_the_text_and_the_memory_tell_alike_passes(field: str) -> None:
    cross, judges = WITNESSES[field]
    for id in (cross, *judges):
        assert result(id, at_boot()).status == "pass"
    unread = replace(BOOT, **{field: UNREAD})  # type: ignore[arg-type]
    assert [result(id, at_boot(unread)).status for id in judges] == ["pass"] * len(judges)
    assert (result(cross, at_boot(unread)).status, result(cross, at_boot(unread)).reason) == (
        "not-observed",
        UNREAD.reason,
    )
    blind = at_boot(unread, **{field: NotObserved("no layouts")})
    assert [result(id, blind).status for id in judges] == ["not-observed"] * len(judges)


@pytest.mark.parametrize(
    ("records", "cross", "judge", "where"),
    [
        ({"blocks": blocks(state="offline", valid_zones=None)}, "XCK-3", "BLK-2", f"memory{FIRST}"),
        ({"blocks": blocks(valid_zones=("Normal",))}, "XCK-3", "BLK-1", f"memory{FIRST}"),
        ({"blocks": blocks(valid_zones=("none",))}, "XCK-3", "BLK-1", f"memory{FIRST}"),
        ({"blocks": blocks(nodes=(1,))}, "XCK-3", "BLK-1", f"memory{FIRST}"),
        ({"blocks": blocks(phys_index=0)}, "XCK-3", "BLK-1", f"memory{FIRST}"),
        ({"blocks": blocks()[1:]}, "XCK-3", "BLK-1", f"memory{FIRST}"),
        ({"zones": zones(spanned=7)}, "XCK-4", "ZON-1", "node 0 zone DMA"),
        ({"zones": zones(present=7)}, "XCK-4", "ZON-1", "node 0 zone DMA"),
        ({"zones": zones(managed=7)}, "XCK-4", "ZON-1", "node 0 zone DMA"),
        ({"zones": zones(start_pfn=7)}, "XCK-4", "ZON-1", "node 0 zone DMA"),
        ({"zones": zones()[1:]}, "XCK-4", "ZON-1", "node 0 zone DMA"),
        ({"meminfo": {"MemTotal": 4096}}, "XCK-5", "MEM-1", "MemTotal"),
        ({"vmstat": counters(nr_memmap_pages=1)}, "XCK-5", "MEM-2", "nr_memmap_pages"),
        ({"vmstat": counters(nr_memmap_boot_pages=1)}, "XCK-5", "MEM-2", "nr_memmap_boot_pages"),
    ],
)
def test_each_difference_of_a_record_is_named(records: dict[str, object], cross: str, judge: str, where: str) -> None:
    found = result(cross, at_boot(**records))  # type: ignore[arg-type]
    assert [finding.where for finding in found.findings] == [where]
    assert result(judge, at_boot(**records)).status != "fail", "the text is judged if there is one"  # type: ignore[arg-type]
    [field] = records
    unread = replace(BOOT, **{field: UNREAD})  # type: ignore[arg-type]
    assert result(judge, at_boot(unread, **records)).status == "fail"


def test_what_moves_by_itself_is_not_compared() -> None:
    assert result("XCK-5", at_boot(vmstat=counters(nr_page_table_pages=81))).status == "pass"
    for state in ("going-offline", "ERROR-UNKNOWN-3"):
        assert result("XCK-3", at_boot(blocks=blocks(state=state, valid_zones=None))).status == "pass"


def test_a_block_in_two_nodes_has_one_of_them_in_memory() -> None:
    assert not isinstance(BOOT.blocks, NotObserved)
    shared = (replace(BOOT.blocks[0], nodes=(0, 1), valid_zones=("none",)), *BOOT.blocks[1:])
    text = replace(BOOT, blocks=shared)
    assert result("XCK-3", at_boot(text, blocks=blocks(nodes=(1,), valid_zones=("none",)))).status == "pass"
    assert result("XCK-3", at_boot(text, blocks=blocks(nodes=(2,), valid_zones=("none",)))).status == "fail"


def test_a_failed_action_is_judged_by_one_witness() -> None:
    """After a fast look, a full one: memory does not tell all that sysfs does."""
    fast = replace(BOOT, **dict.fromkeys(WITNESSES, UNREAD), dax=(), sections=())  # type: ignore[arg-type]
    full = replace(BOOT, dax=(), sections=())
    model = model_guest.model()
    failed = Evidence(model.layout, model.expected(), full, failed=True, before=fast)
    assert result("RBK-1", failed).status == "pass"
    moved = replace(full, records=replace(BOOT.records, zones=zones(managed=1)))
    assert result("RBK-1", replace(failed, observed=moved)).status == "fail"
    blind = replace(fast, records=KernelRecords())
    assert result("RBK-1", replace(failed, before=blind)).reason == "blocks: not asked for"


def accounted(astray: int | None, before: int | None = 0) -> CheckResult:
    """MEM-2 where processes' own accounts are ``astray``, and were so ``before``."""
    now, then = (HostTables((), (), (), TableCount(9, 4, 5, astray=off)) for off in (astray, before))
    seen = at_boot(replace(BOOT, host_tables=now))
    last = replace(BOOT, host_tables=then, uptime=0.5)
    return result("MEM-2", replace(seen, before=last))


def test_processes_account_for_their_tables() -> None:
    assert [accounted(0).status, accounted(None).status, accounted(3, before=3).status] == ["pass"] * 3
    assert [(one.where, one.expected, one.observed) for one in accounted(-2, before=3).findings] == [
        ("pgtables_bytes of processes", "the bytes of their tables", "-5 tables")
    ]
    assert accounted(1, before=None).findings[0].observed == "+1 tables"


LINES = (DmesgLine(1.5, 6, "one"), DmesgLine(1.5, 4, ""), DmesgLine(2.0, 6, "three"))


def logged(text: object, ring: object, *, lost: str = "", time: str = "Y") -> CheckResult:
    seen = evidence(SOUND, SOUND)
    records = KernelRecords(log=ring, log_lost=lost)  # type: ignore[arg-type]
    facts = replace(seen.layout.facts, parameters={"printk.time": time})
    state = replace(seen.observed, dmesg=text, records=records)  # type: ignore[arg-type]
    return result("XCK-6", replace(seen, layout=replace(seen.layout, facts=facts), observed=state))


def test_an_equal_log_passes() -> None:
    assert logged(LINES, LINES).status == logged((), ()).status == "pass"


@pytest.mark.parametrize(
    ("other", "line", "found"),
    [
        (LINES[:2], 3, "no line"),
        (LINES[1:], 1, "<4>[1.500000] "),
        ((*LINES[:2], replace(LINES[2], text="thrxe")), 3, "<6>[2.000000] thrxe"),
        ((*LINES[:2], replace(LINES[2], level=5)), 3, "<5>[2.000000] three"),
        ((*LINES[:2], replace(LINES[2], seconds=2.1)), 3, "<6>[2.100000] three"),
    ],
)
def test_the_first_difference_of_the_log_is_named(other: tuple[DmesgLine, ...], line: int, found: str) -> None:
    (finding,) = logged(other, LINES).findings
    assert (finding.where, finding.observed) == (f"new line {line} of the log", found)
    assert logged(LINES, other).status == "fail"


def test_a_log_without_times_is_not_compared() -> None:
    """Without the agent, the times of the lines tell which of them are new."""
    found = logged(LINES, LINES[1:], time="N")
    assert (found.status, found.reason) == ("not-observed", "the kernel prints no times (printk.time=0)")
    layout = at_boot().layout
    assert "XCK-6" not in lacks_of(layout)
    facts = replace(layout.facts, parameters={"printk.time": "N"})
    assert lacks_of(replace(layout, facts=facts))["XCK-6"] == found.reason


def test_an_incomplete_log_proves_nothing() -> None:
    found = logged(LINES, LINES[1:], lost="the kernel's log was overwritten")
    assert (found.status, found.reason) == ("not-observed", "the kernel's log was overwritten")
    assert logged(UNREAD, LINES).status == logged(LINES, UNREAD).status == "not-observed"


def test_alarms_in_the_log_that_the_host_read_are_findings() -> None:
    alarm = DmesgLine(3.0, 4, "BUG: Bad page state in process sh", "bad page")
    seen = evidence(SOUND, SOUND)
    state = replace(seen.observed, dmesg=UNREAD, console=(), records=KernelRecords(log=(*LINES, alarm)))
    found = result("LOG-1", replace(seen, observed=state))
    assert [finding.observed for finding in found.findings] == [alarm.text]


# recorded runs -------------------------------------------------------------------------------------------------------

#: an online DIMM of two blocks, at 80000000 or c0000000
ONLINE = 3
#: differences, each broken once: a record, a pattern and what replaces it; the cross-check that names it; the text that
#: tells the same, and what judges the record where that text was not read
DIFFERENCES = [
    ("host_iomem", r"^[8c]0000000-\wfffffff : System RAM\n", "", "XCK-2", "iomem", {"IOM-1"}),
    ("host_iomem", r"^([8c]0000000-\wfffffff : )System RAM$", r"\1reserved", "XCK-2", "iomem", {"IOM-1"}),
    ("host_iomem", r"^([8c]0000000-[8c])f(ffffff : System RAM)$", r"\g<1>7\2", "XCK-2", "iomem", {"IOM-1"}),
    ("host_iomem", r"^([8c]0000000-\wfffffff : System RAM)$", r"  \1", "XCK-2", "iomem", {"IOM-1", "IOM-3"}),
    ("host_iomem", r"\Z", "10000000000-1000fffffff : System RAM\n", "XCK-2", "iomem", {"IOM-2"}),
    ("host_blocks", r"(memory(17|25)/.*\n)+", "", "XCK-3", "blocks", {"BLK-1"}),
    ("host_blocks", r"\Z", "memory40/state:offline\nmemory40/phys_index:00000028\n", "XCK-3", "blocks", {"BLK-1"}),
    ("host_blocks", r"(memory(17|25)/state:)online$", r"\1offline", "XCK-3", "blocks", {"BLK-2"}),
    ("host_blocks", r"(memory(17|25)/phys_index:).*", r"\g<1>00000018", "XCK-3", "blocks", {"BLK-1"}),
    ("host_blocks", r"(memory(17|25)/valid_zones:).*", r"\1Normal", "XCK-3", "blocks", {"BLK-1"}),
    ("host_blocks", r"(memory(17|25)/node:)0", r"\g<1>1", "XCK-3", "blocks", {"BLK-1"}),
    ("host_zoneinfo", r"spanned  65536", "spanned  65535", "XCK-4", "zoneinfo", {"ZON-1"}),
    ("host_zoneinfo", r"present  65536", "present  65535", "XCK-4", "zoneinfo", {"ZON-1"}),
    ("host_zoneinfo", r"managed  65536", "managed  65535", "XCK-4", "zoneinfo", {"ZON-1"}),
    ("host_zoneinfo", r"(start_pfn: +)(524288|786432)", r"\g<1>524289", "XCK-4", "zoneinfo", {"ZON-1"}),
    ("host_zoneinfo", r"^Node 0, zone  Movable\n( .*\n)+", "", "XCK-4", "zoneinfo", {"ZON-1"}),
    ("host_vmstat", "nr_memmap_pages 1024", "nr_memmap_pages 1025", "XCK-5", "vmstat", {"MEM-2"}),
    ("host_vmstat", "nr_memmap_boot_pages 2048", "nr_memmap_boot_pages 2047", "XCK-5", "vmstat", {"MEM-2"}),
    ("host_meminfo", r"(MemTotal: +\d)", r"\g<1>0", "XCK-5", "meminfo", {"MEM-1"}),
    ("host_log", r"^<6>", "<5>", "XCK-6", "", set()),
    ("host_log", r"^(<6>\[ +\d+)\.", r"\g<1>0.", "XCK-6", "", set()),
    ("host_log", r"\bzone", "zzne", "XCK-6", "", set()),
    ("host_log", r"^.*\n\Z", "", "XCK-6", "", set()),
    ("host_log", r"\Z", "<6>[ 9999.000000] more\n", "XCK-6", "", set()),
]


@pytest.mark.parametrize("arch", ["arm64", "riscv64"])
@pytest.mark.parametrize(("record", "pattern", "by", "cross", "text", "judges"), DIFFERENCES)
def test_a_difference_in_a_recorded_run_is_named(
    arch: str, record: str, pattern: str, by: str, cross: str, text: str, judges: set[str]
) -> None:
    scene = scenes_of(f"{arch}-story")[ONLINE]

    def broken_by(source: str, left_out: str = "") -> set[str]:
        changed, hits = re.subn(pattern, by, scene.text(source), count=1, flags=re.MULTILINE)
        assert hits == 1
        return set(broken(check(scene.with_sources({source: changed.encode()}, left_out))))

    assert broken(scene.results) == set() and scene.results[cross].status == "pass"
    assert broken_by(record) == {cross}
    assert not text or broken_by(record, left_out=text) == judges
    # The text is judged if there is one.
    assert broken_by(text or "dmesg") == {cross} | judges
