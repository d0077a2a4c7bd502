# SPDX-License-Identifier: GPL-2.0-or-later
"""Known bugs: which kernels have them, which findings match one exactly, and which go beyond it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import model_guest
import pytest

from harness.arch.features import OPTIMIZE_HUGETLB
from harness.check import CheckResult, Finding, Verdict
from harness.check.bugs import KnownBug, known_bugs, parse_bugs
from harness.check.evidence import Evidence
from harness.check.known import Watch, died_of, explain, hung_in, standing, watch_for
from harness.model.devices.dimm import PlugDimm
from harness.model.devices.virtio_pmem import PlugVirtioPmem
from harness.scenarios.outcome import Outcome, Rejection
from harness.scenarios.verdict import ExpectedBugs, Ruling, evaluate, judge
from harness.state import DmesgLine, HostTime, NotObserved, ThreadTime
from harness.units import GIB, MIB, AddrRange

PLACE = "source: f, mm/f.c\n    checked: 7.3.4\n    scenario: s\n    title: t\n"


def bug(text: str) -> KnownBug:
    """A bug with this text; the other required keys have arbitrary values."""
    [found] = parse_bugs(f"bugs:\n  the-bug:\n    {PLACE}    {text}", Path("b.yaml")).values()
    return found


MAYBE = None
BLK = "breaks: [{invariant: BLK-1, where: memory1}]"
FOLDS = "since: {version: '6.1'}\n    when: {features: {folds-hugetlb: true}}"


@pytest.mark.parametrize(
    ("text", "changes", "has", "why"),
    [
        ("since: {version: '6.1'}", {}, True, "there since 6.1"),
        ("since: {version: '6.13'}", {}, False, "there since 6.13, this is 6.12"),
        ("since: {version: '6.13', at-latest: true}", {}, MAYBE, "there since 6.13 at the latest, this is 6.12"),
        ("since: {version: '6.1'}\n    fixed: [{version: '6.12'}]", {}, False, "fixed in 6.12, this is 6.12"),
        ("since: {version: '6.1'}\n    fixed: [{version: 6.12.9}]", {"release": "6.12.8"}, True, "there since 6.1"),
        ("since: {version: '6.1'}\n    fixed: [{version: 6.12.9}]", {"release": "6.13-rc1"}, False, "fixed in 6.12.9"),
        ("since: {version: '6.1'}\n    fixed: [{version: 6.1.9}]", {"release": "6.1.0-41-arm64"}, MAYBE, "patch level"),
        ("since: {version: '6.1'}", {"release": "mine"}, MAYBE, "'mine' is not a version"),
        (
            "since: {version: '6.1'}\n    fixed: [{version: '7.9', at-latest: true}]",
            {"release": "7.5"},
            MAYBE,
            "there in 7.3.4, fixed in 7.9 at the latest",
        ),
        ("since: {version: '6.1'}\n    arch: riscv64", {}, False, "the bug is on riscv64 only"),
        ("since: {version: '6.1'}\n    when: {page-size: 64K}", {}, False, "the bug needs pages of 65536 bytes"),
        ("since: {version: '6.1'}\n    when: {va-bits: 48}", {}, False, "the bug needs 48 virtual address bits"),
        ("since: {version: '6.1'}\n    when: {va-bits: 52}", {}, True, "there since 6.1"),
        (
            "since: {version: '6.1'}\n    when: {va-bits: 52}",
            {"vmcoreinfo": NotObserved("lost")},
            MAYBE,
            "virtual address bits",
        ),
        ("since: {version: '6.1'}\n    when: {config: {HUGETLB_PAGE: n}}", {}, False, "this kernel has y"),
        ("since: {version: '6.1'}\n    when: {config: {MEMCG: n}}", {}, True, "there since 6.1"),
        (
            "since: {version: '6.1'}\n    when: {config: {MEMCG: n}}",
            {"config": None},
            MAYBE,
            "configuration is unknown",
        ),
        ("since: {version: '6.1'}\n    when: {cmdline: a.b}", {}, False, "the bug needs a.b on the command line"),
        ("since: {version: '6.1'}\n    when: {cmdline: a.b}", {"cmdline": "x a.b=1"}, True, "there since 6.1"),
        (FOLDS, {"files": {OPTIMIZE_HUGETLB: "1"}}, True, "there since 6.1"),
        (FOLDS, {"files": {OPTIMIZE_HUGETLB: "0"}}, False, "the bug needs folds-hugetlb, which this kernel lacks"),
        (FOLDS.replace("true", "false"), {"files": {OPTIMIZE_HUGETLB: "1"}}, False, "needs no folds-hugetlb, which"),
        (FOLDS, {"config": None}, MAYBE, "configuration is unknown"),
    ],
)
def test_who_has_a_bug(text: str, changes: dict[str, object], has: bool | None, why: str) -> None:
    found = standing(bug(f"{text}\n    {BLK}"), model_guest.facts(**changes))
    assert found.has is has and why in found.why


def finding(invariant: str, where: str, expected: str, observed: str, source: str = "host walk") -> Finding:
    return Finding(invariant, where, expected, observed, source, "plug-dimm d 1G (failed)")


def checks(*findings: Finding, passed: tuple[str, ...] = ()) -> tuple[CheckResult, ...]:
    names = dict.fromkeys(found.invariant for found in findings)
    broken = (CheckResult(name, "fail", tuple(one for one in findings if one.invariant == name)) for name in names)
    return (*broken, *(CheckResult(name, "pass") for name in passed))


def evidence(dmesg: tuple[str, ...] = ()) -> Evidence:
    """A DIMM of 1 GiB at 0x80000000 that the kernel failed to add."""
    model = model_guest.model()
    model.apply(PlugDimm("d", GIB, address=0x8000_0000, slot=0, kernel_added=False))
    lines = tuple(DmesgLine(1.0, 4, line, None) for line in dmesg)
    state = dataclasses.replace(model_guest.boot_state(), dmesg=lines)
    return Evidence(model.layout, model.expected(), state)


LEFT = "absent", "has-mem-map present"
VMEMMAP = model_guest.layout().kernel


def memmap(start: int, size: int) -> str:
    assert VMEMMAP is not None
    first = VMEMMAP.vmemmap + start // 4096 * 64
    return f"vmemmap {first:x}-{first + size // 4096 * 64 - 1:x}"


#: the findings of add-pages-not-undone if two sections of 128 MiB are left behind
SEC = [finding("SEC-1", f"section {n} (physical {n << 27:x}-{(n + 1 << 27) - 1:x})", *LEFT) for n in (16, 17)]
TWO_SOURCES = [
    finding("VMM-1", memmap(0x8000_0000, 256 * MIB), "not mapped", "mapped", source) for source in ("ptdump", "walk")
]
COUNT = [finding("MEM-2", "nr_memmap_pages", "100", "1124", "/proc/vmstat")]
ALL = [*SEC, *TWO_SOURCES, *COUNT]
BUG = known_bugs()["add-pages-not-undone"]


@pytest.mark.parametrize(("verb", "met"), [("plug-dimm", True), ("[kmem-fault, plug-dimm]", True), ("unplug", False)])
@pytest.mark.parametrize(
    "sign", ["{invariant: MEM-2, where: nr_page_table_pages, more: -1, at: %s}", "{invariant: BLK-1, where: b, at: %s}"]
)
def test_a_bug_of_one_verb_is_none_in_other_steps(sign: str, verb: str, met: bool) -> None:
    known = bug(f"since: {{version: '6.1'}}\n    breaks: [{sign % verb}]")
    broken = finding("BLK-1", "b", "x", "y") if "BLK-1" in sign else finding("MEM-2", "nr_page_table_pages", "9", "8")
    found = explain([known], checks(broken), evidence())
    assert bool(found.met) is met and bool(found.rest) is not met


def test_exactly_the_bug_is_explained() -> None:
    found = explain([BUG], checks(*ALL, passed=("PGT-1", "IOM-1")), evidence())
    assert (found.met, found.rest) == (("add-pages-not-undone",), ())


def test_a_counter_that_the_kernel_does_not_have_is_not_missed() -> None:
    found = explain([BUG], checks(*SEC, *TWO_SOURCES, passed=("MEM-2",)), evidence())
    assert found.rest, "the counter exists, so it must show the leak"
    old = evidence()
    state = dataclasses.replace(old.observed, vmstat={"nr_free_pages": 1})
    found = explain([BUG], checks(*SEC, *TWO_SOURCES, passed=("MEM-2",)), dataclasses.replace(old, observed=state))
    assert (found.met, found.rest) == (("add-pages-not-undone",), ())


@pytest.mark.parametrize(
    "findings",
    [
        # off by one page: another leak
        [*SEC, *TWO_SOURCES, finding("MEM-2", "nr_memmap_pages", "100", "1125")],
        # the counter shows only one section
        [*SEC, *TWO_SOURCES, finding("MEM-2", "nr_memmap_pages", "100", "612")],
        # struct pages of one more section than there are
        [*SEC, finding("VMM-1", memmap(0x8000_0000, 384 * MIB), "not mapped", "mapped"), *COUNT],
        # the two witnesses disagree
        [
            *SEC,
            TWO_SOURCES[0],
            finding("VMM-1", memmap(0x8000_0000, 128 * MIB), "not mapped", "mapped", "walk"),
            *COUNT,
        ],
        # a section outside of any device
        [*SEC, finding("SEC-1", "section 99 (physical 318000000-31fffffff)", *LEFT), *TWO_SOURCES, *COUNT],
        # no section at all
        [*TWO_SOURCES, *COUNT],
        # only the counter
        COUNT,
        # expected and observed swapped
        [finding("SEC-1", SEC[0].where, "has-mem-map present", "absent"), *TWO_SOURCES, *COUNT],
    ],
)
def test_what_is_off_by_another_amount_or_elsewhere_is_not_the_bug(findings: list[Finding]) -> None:
    found = explain([BUG], checks(*findings), evidence())
    assert found.rest and (found.met == () or len(found.rest) < len(findings))
    ruling = judge(checks(*findings), "failed", Outcome(ending="failed"), KNOWN, evidence())
    assert ruling.verdict is Verdict.FAIL


def test_a_counter_that_does_not_move_with_the_sections_is_another_bug() -> None:
    found = explain([BUG], checks(*SEC, *TWO_SOURCES, passed=("MEM-2",)), evidence())
    assert found.met == () and len(found.rest) == 4
    # if MEM-2 was not checked, the other findings are sufficient
    found = explain([BUG], checks(*SEC, *TWO_SOURCES), evidence())
    assert found.met == ("add-pages-not-undone",) and not found.rest


def test_one_finding_beyond_it_is_told() -> None:
    other = finding("BLK-1", "memory16", "absent", "offline", "sysfs")
    ruling = judge(checks(*ALL, other), "failed", Outcome(ending="failed"), KNOWN, evidence())
    assert ruling == Ruling(Verdict.FAIL, "beyond the known bug add-pages-not-undone: BLK-1", ("add-pages-not-undone",))


KNOWN = ExpectedBugs(Watch({BUG.id: standing(BUG, model_guest.facts())}), (BUG.id,))


def test_a_step_that_meets_a_known_bug_is_not_red() -> None:
    outcome = Outcome(ending="failed", note="why")
    told = "why; known bug add-pages-not-undone"
    for known in (KNOWN, ExpectedBugs(KNOWN.watch)):
        assert judge(checks(*ALL), "failed", outcome, known, evidence()) == Ruling(Verdict.KNOWN, told, (BUG.id,))
    assert judge(checks(*ALL), "failed", outcome, ExpectedBugs(), evidence()).verdict is Verdict.FAIL, "--no-known-bugs"


def test_a_known_bug_explains_a_failure_that_nobody_told() -> None:
    outcome = Outcome(says=("exceeds maximum addressable range",))
    outcome.refuse("beyond the linear map", "failed", said="")
    assert judge(checks(*ALL), "failed", outcome, KNOWN, evidence()).verdict is Verdict.KNOWN
    outcome.refusals = [Rejection("memory16 did not go offline: EINVAL")]
    assert judge(checks(*ALL), "failed", outcome, KNOWN, evidence()).verdict is Verdict.FAIL


def test_a_known_bug_excuses_no_other_ending() -> None:
    ruling = judge(checks(*ALL), "done", Outcome(ending="refused", note="EBUSY"), KNOWN, evidence())
    assert (ruling.verdict, ruling.note, ruling.bugs) == (Verdict.REFUSED, "EBUSY", (BUG.id,))
    ruling = judge(checks(*ALL), "failed", Outcome(inconclusive="no overlap"), KNOWN, evidence())
    assert (ruling.verdict, ruling.note) == (Verdict.INFRA, "no overlap")


def test_a_bug_that_does_not_show_is_told_and_one_that_cannot_be_there_is_red() -> None:
    ruling = judge(checks(passed=("SEC-1",)), "done", Outcome(), KNOWN, evidence())
    assert ruling == Ruling(
        Verdict.PASS,
        "known bug add-pages-not-undone did not show here",
        (),
        (BUG.id,),
    )
    fixed = dataclasses.replace(
        BUG, fixed=bug(f"since: {{version: '6.1'}}\n    fixed: [{{version: '6.12'}}]\n    {BLK}").fixed
    )
    known = ExpectedBugs(watch_for([fixed], model_guest.facts()), (BUG.id,))
    assert judge((), "done", Outcome(), known, evidence()) == Ruling(Verdict.PASS, "")
    ruling = judge(checks(*ALL), "failed", Outcome(ending="failed"), known, evidence())
    told = "exactly the known bug add-pages-not-undone, which this kernel should not have: fixed in 6.12, this is 6.12"
    assert (ruling.verdict, ruling.note) == (Verdict.FAIL, told)


def test_two_bugs_may_add_to_one_counter() -> None:
    one = bug("since: {version: '6.1'}\n    breaks: [{invariant: MEM-2, where: nr_memmap_pages, more: +3}]")
    both = checks(*SEC, *TWO_SOURCES, finding("MEM-2", "nr_memmap_pages", "100", "1127"))
    assert explain([BUG, one], both, evidence()).met == ("add-pages-not-undone", "the-bug")
    assert explain([one], checks(finding("MEM-2", "nr_memmap_pages", "100", "103")), evidence()).met == ("the-bug",)
    assert explain([one], checks(finding("MEM-2", "nr_memmap_pages", "100", "104")), evidence()).met == ()
    assert explain([one], checks(finding("MEM-2", "nr_memmap_pages", "absent", "104")), evidence()).met == ()


WARNED = (
    "------------[ cut here ]------------",
    "WARNING: CPU: 1 PID: 180 at mm/memremap.c:153 memunmap_pages+0x2b0/0x2b8",
    "---[ end trace 0000000000000000 ]---",
)


@pytest.mark.parametrize(
    "report",
    [WARNED[1], "WARNING: mm/memremap.c:153 at memunmap_pages+0x2b0/0x2b8, CPU#1: pmem/180"],
    ids=["v6.12", "v6.19"],
)
def test_lines_of_the_log_are_known_by_their_function(report: str) -> None:
    known = bug("since: {version: '6.1'}\n    breaks: [{invariant: LOG-1, function: memunmap_pages}]")
    lines = (WARNED[0], report, WARNED[2])
    dmesg = [finding("LOG-1", "[8.1]", "no WARN", line, "dmesg") for line in lines]
    console = [finding("LOG-1", "console", "no", f"[    8.079094][ T180] {line}", "serial console") for line in lines]
    assert explain([known], checks(*dmesg, *console), evidence()).rest == ()
    other = finding("LOG-1", "[8.2]", "no WARN", report.replace("memunmap_pages", "free_pages"), "dmesg")
    left = explain([known], checks(*dmesg, *console, other), evidence())
    assert other in left.rest and len(left.rest) == 5, "the frames may belong to the other WARN"
    assert explain([known], checks(dmesg[0], dmesg[2]), evidence()).met == ()


REFUSED = "[90200000 98000000] splits a leaf entry in vmemmap"
STAYS = known_bugs()["self-hosted-memmap-stays-online"]


@pytest.mark.parametrize(
    ("title", "ending", "line", "verdict"),
    [
        ("offline dimm0 last=2", "refused", REFUSED, Verdict.KNOWN),
        ("unplug dimm0 | offline dimm1", "refused", REFUSED, Verdict.KNOWN),
        ("online dimm0", "refused", REFUSED, Verdict.REFUSED),
        ("offline dimm0", "failed", REFUSED, Verdict.REFUSED),
        ("offline dimm0", "refused", "", Verdict.FAIL),
        ("offline dimm0", "refused", REFUSED.replace("vmemmap", "linear map"), Verdict.FAIL),
        # the edge of the block, not of its own struct pages
        ("offline dimm0", "refused", "[90000000 98000000] splits a leaf entry in vmemmap", Verdict.FAIL),
    ],
)
def test_a_refusal_is_known_by_its_verb_and_its_line(title: str, ending: str, line: str, verdict: Verdict) -> None:
    facts = model_guest.facts(release="7.3.4", cmdline="memory_hotplug.memmap_on_memory=1")
    known = ExpectedBugs(watch_for([STAYS], facts), (STAYS.id,))
    stays = checks(finding("BLK-3", "memory18", "goes offline: no leaf reaches beyond it", f"stays online: {line}"))
    ruling = judge(stays, "done", Outcome(ending=ending, note="EPERM"), known, evidence((line,)), title)
    assert ruling.verdict is verdict
    assert ruling.stops is (verdict is Verdict.KNOWN) and ruling.bugs == (
        () if verdict is Verdict.FAIL else (STAYS.id,)
    )
    ruling = judge(checks(finding("BLK-1", "memory1", "a", "b")), "done", Outcome(ending=ending), known, evidence())
    assert ruling.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("other", "lines", "verdict"),
    [
        ("EPERM", (16, 17), Verdict.KNOWN),
        ("EPERM", (16,), Verdict.REFUSED),
        ("EBUSY", (16,), Verdict.REFUSED),
    ],
    ids=["a line for each", "a silent one", "another one"],
)
def test_a_line_of_a_known_bug_excuses_only_the_refusal_that_it_is_about(
    other: str, lines: tuple[int, ...], verdict: Verdict
) -> None:
    leaf = bug("since: {version: '6.1'}\n    ends: {as: refused, at: offline, says: '.* splits a leaf entry in .*'}")
    known = ExpectedBugs(watch_for([leaf], model_guest.facts()))
    outcome = Outcome()
    for index, error in ((16, "EPERM"), (17, other)):
        outcome.refuse(f"memory{index} did not go offline: {error}", place=AddrRange.sized(index << 27, 1 << 27))
    log = tuple(f"[{index << 27:x} {(index + 1) << 27:x}] splits a leaf entry in linear map" for index in lines)
    ruling = judge((), "done", outcome, known, evidence(log), "offline dimm0")
    assert (ruling.verdict, ruling.bugs) == (verdict, (leaf.id,) if verdict is Verdict.KNOWN else ())


def test_an_ending_alone_is_not_a_bug_that_breaks_something_as_well() -> None:
    both = bug(f"since: {{version: '6.1'}}\n    {BLK}\n    ends: {{as: refused, says: no}}")
    known = ExpectedBugs(watch_for([both], model_guest.facts()))
    refused = Outcome(ending="refused")
    assert judge((), "done", refused, known, evidence(("no",))).verdict is Verdict.REFUSED
    broken = checks(finding("BLK-1", "memory1", "a", "b"))
    assert judge(broken, "done", refused, known, evidence(("no",))).verdict is Verdict.KNOWN
    assert judge(broken, "done", refused, known, evidence()).verdict is Verdict.REFUSED


ALARMS = (
    "[    6.304046] ------------[ cut here ]------------",
    "[    6.304995] kernel BUG at arch/arm64/mm/mmu.c:479!",
    "[    6.305806] Internal error: Oops - BUG: 00000000f2000800 [#1] SMP",
    "[    6.327327] ---[ end trace 0000000000000000 ]---",
    "[    6.327688] Kernel panic - not syncing: Oops - BUG: Fatal exception",
)
TRACE = (*ALARMS[:3], "[    6.311190] pc : __pgd_pgtable_alloc+0x58/0x5c", *ALARMS[3:])
DIES = known_bugs()["page-table-page-bug-on"]


@pytest.mark.parametrize(
    ("alarms", "trace", "known"),
    [
        (ALARMS, TRACE, True),
        (ALARMS, ALARMS, False),
        (ALARMS, tuple(line.replace("__pgd_pgtable_alloc", "pgd_alloc") for line in TRACE), False),
        (tuple(line.replace("mmu.c", "init.c") for line in ALARMS), TRACE, False),
        (("[    6.1] BUG: Bad page state in process x  pfn:1", *ALARMS), TRACE, False),
        ((ALARMS[0], *ALARMS[2:]), TRACE, False),
        (ALARMS, (ALARMS[0], "[    6.300000] pc : elsewhere+0x1/0x2", *TRACE), False),
    ],
    ids=["exactly", "no backtrace", "elsewhere", "another file", "something else before", "no report", "a first oops"],
)
def test_a_death_is_known_by_its_line_and_its_function(
    alarms: tuple[str, ...], trace: tuple[str, ...], known: bool
) -> None:
    assert (died_of([DIES], alarms, trace) is DIES) is known
    outcome = Outcome(note="the guest panicked", alarms=alarms, trace=trace)
    told = checks(*(finding("LOG-1", "console", "no", line) for line in alarms))
    ruling = judge(told, "failed", outcome, ExpectedBugs(watch_for([DIES], model_guest.facts())), title="kmem-fault p0")
    assert ruling.verdict is (Verdict.KNOWN if known else Verdict.FAIL) and ruling.stops is known


#: Linux 6.1.176 on arm64 in numa-offline, shortened
STACKS = (
    "[  141.103512] sysrq: Show backtrace of all active CPUs",
    "[  141.104201] CPU: 0 PID: 8 Comm: kworker/0:1 Not tainted 6.1.176-hp #1 ",
    "[  141.104544] Workqueue: events_freezable virtio_mem_run_wq",
    "[  141.106842]  node_page_state+0x0/0x40",
    "[  141.106928]  isolate_migratepages_range+0x74/0xec",
    "[  141.107010]  __alloc_contig_migrate_range+0xf0/0x1a0",
)
HUNG_TASK = "[  242.827977] INFO: task agent:53 blocked for more than 120 seconds."
HANGS = known_bugs()["virtio-mem-unplug-livelock"]


@pytest.mark.parametrize(
    ("title", "stacks", "alarms", "release", "verdict"),
    [
        ("resize vmem0 0", STACKS, (), "6.1.176", Verdict.KNOWN),
        ("resize vmem0 0", STACKS, (HUNG_TASK,), "6.1.176", Verdict.KNOWN),
        ("resize vmem0 0", STACKS, (HUNG_TASK, ALARMS[1]), "6.1.176", Verdict.FAIL),
        ("resize vmem0 0", STACKS, (HUNG_TASK,), "6.12.117", Verdict.FAIL),
        ("resize vmem0 0", STACKS[:-2], (HUNG_TASK,), "6.1.176", Verdict.FAIL),
        ("resize vmem0 0", STACKS[:-2], (), "6.1.176", Verdict.INFRA),
        ("resize vmem0 0", STACKS, (), "6.12.117", Verdict.INFRA),
        ("online dimm0", STACKS, (), "6.1.176", Verdict.INFRA),
        ("resize vmem0 0", (), (), "6.1.176", Verdict.INFRA),
    ],
    ids=[
        *("silent", "with a hung task", "something else too", "fixed, hung task", "elsewhere, hung task", "elsewhere"),
        *("fixed", "another step", "no stacks"),
    ],
)
def test_a_hang_is_known_by_its_step_and_its_function(
    title: str, stacks: tuple[str, ...], alarms: tuple[str, ...], release: str, verdict: Verdict
) -> None:
    model, seen = model_guest.model(), model_guest.boot_state()
    known = ExpectedBugs(watch_for([HANGS], model_guest.facts(release=release)))
    outcome = Outcome(note="gave up", alarms=alarms, stacks=stacks)
    ruling, _ = evaluate(model, title, "done", outcome, None, seen, known)
    assert ruling.verdict is verdict
    assert ruling.bugs == ((HANGS.id,) if verdict is Verdict.KNOWN else ()) and ruling.stops is bool(ruling.bugs)


@pytest.mark.parametrize(
    "line",
    [
        "[   79.573253]  offline_pages+0x4d0/0xa5c",
        "[   79.573253] pc : offline_pages+0x4d0/0xa5c",
        "[   58.228113] epc : offline_pages+0x2f8/0x8c6",
        "[   58.228426] [<ffffffff80119300>] offline_pages+0x2f8/0x8c6",
    ],
)
def test_a_hang_is_known_by_the_frames_of_every_architecture(line: str) -> None:
    bug = known_bugs()["slab-page-is-offlined-for-ever"]
    assert hung_in([bug], "unplug dimm0 (refused)", [line]) == bug
    assert hung_in([bug], "unplug dimm0 (refused)", [line.replace("offline_pages", "online_pages")]) is None


@pytest.mark.parametrize(("release", "verdict"), [("6.1.176", Verdict.KNOWN), ("6.12.117", Verdict.INFRA)])
def test_a_known_hang_is_known_on_a_busy_host_too(release: str, verdict: Verdict) -> None:
    model, seen = model_guest.model(), model_guest.boot_state()
    known = ExpectedBugs(watch_for([HANGS], model_guest.facts(release=release)))
    busy = HostTime(HUNG_TASK, 120, 120.0, (ThreadTime("CPU 0", 1.0, 119.0, 0.0),))
    outcome = Outcome(note="gave up", alarms=(HUNG_TASK,), stacks=STACKS, host=(busy,))
    ruling, [log] = evaluate(model, "resize vmem0 0", "done", outcome, None, seen, known)
    assert (ruling.verdict, log.status) == (verdict, "fail" if verdict is Verdict.KNOWN else "not-observed")
    assert "gave up" in ruling.note


def test_a_death_of_a_bug_that_was_fixed_is_red_and_says_so() -> None:
    outcome = Outcome(note="the guest panicked", alarms=ALARMS, trace=TRACE)
    told = checks(*(finding("LOG-1", "console", "no", line) for line in ALARMS))
    known = ExpectedBugs(watch_for([DIES], model_guest.facts(release="7.3.4")))
    ruling = judge(told, "failed", outcome, known)
    assert ruling.verdict is Verdict.FAIL and "which this kernel should not have: fixed in 7.2" in ruling.note


def test_struct_pages_are_lost_beside_others_only() -> None:
    lost = bug(
        "since: {version: '6.1'}\n    breaks: "
        "[{invariant: VMM-1, where: 'vmemmap .*', says: mapped -> not mapped, shared-leaf: true}]"
    )
    model = model_guest.model()
    # the second section of p0 is also the first section of p1
    model.apply(PlugVirtioPmem("p0", 190 * MIB, "rp0"))
    model.apply(PlugVirtioPmem("p1", 66 * MIB, "rp1"))
    assert [device.range.start for device in model.expected().devices] == [0x8000_0000, 0x8BE0_0000]
    both = Evidence(model.layout, model.expected(), model_guest.boot_state())
    places = {0x8800_0000: True, 0x8BE0_0000: True, 0x8000_0000: False, 0x4000_0000: False}
    for start, known in places.items():
        found = finding("VMM-1", memmap(start, 2 * MIB), "mapped", "not mapped")
        assert (explain([lost], checks(found), both).met == ("the-bug",)) is known, hex(start)


@pytest.mark.parametrize("kinds", ["dimm", "[virtio-mem, dimm]"])
def test_a_line_of_the_log_and_a_neighbour_may_be_part_of_it(kinds: str) -> None:
    one = bug(
        "since: {version: '6.1'}\n    log: 'something is lost'\n    "
        f"breaks: [{{invariant: IOM-2, where: '.*', below: {kinds}, says: no such line -> .*}}]"
    )
    assert one.stops, "the log of a later step does not repeat the line"
    said, other = evidence(("something is lost",)), evidence(("something is lost?",))
    below = checks(finding("IOM-2", "78000000-7fffffff", "no such line", "78000000-7fffffff : x"))
    above = checks(finding("IOM-2", "c0000000-cfffffff", "no such line", "c0000000-cfffffff : x"))
    assert explain([one], below, said).met == ("the-bug",)
    assert explain([one], below, other).met == explain([one], above, said).met == ()


def test_a_bug_that_explains_a_part_gives_way_to_the_one_that_explains_all() -> None:
    wide = bug(
        "since: {version: '6.1'}\n    breaks:\n"
        "    - {invariant: SEC-1, where: 'section .*', says: absent -> has-mem-map present, inside: dimm}\n"
        "    - {invariant: VMM-1, where: 'vmemmap .*', says: not mapped -> mapped, memmap-of: SEC-1}\n"
        "    - {invariant: MEM-2, where: nr_memmap_pages, more: pages of SEC-1}\n"
        "    - {invariant: BLK-1, where: 'memory[0-9]+', says: absent -> present, inside: dimm}"
    )
    block, stray = (finding("BLK-1", f"memory{n}", "absent", "present", "sysfs") for n in (16, 99))
    assert explain([BUG, wide], checks(*ALL, block), evidence()).met == ("the-bug",)
    assert explain([BUG, wide], checks(*ALL, passed=("BLK-1",)), evidence()).met == ("add-pages-not-undone",)
    assert explain([BUG, wide], checks(*ALL, block, stray), evidence()).rest == (stray,)


COPIES = known_bugs()["unfolded-tails-are-copies-of-the-head"]
#: the log of 6.12.117 for the first huge page that is freed, whose struct pages fill eight pages of vmemmap
COPIED = tuple(f"14{page:x}{tail}" for page in range(0x024, 0x040, 4) for tail in "00112")
WHY = "page dumped because: corrupted mapping in tail page"


@pytest.mark.parametrize(
    ("pages", "why", "known"),
    [
        (COPIED, WHY, True),
        (("140503", "ffffc2"), WHY, True),
        # a page that is described by the huge page's own head, and the fifth entry of a vmemmap page
        ((*COPIED, "140200"), WHY, False),
        ((*COPIED, "140244"), WHY, False),
        ((*COPIED, "140250"), WHY, False),
        # the log does not mention a corrupted tail page
        (COPIED, "page dumped because: nonzero mapcount", False),
    ],
    ids=["exactly", "anywhere", "the head's", "the fifth", "no first one", "another reason"],
)
def test_copies_of_the_head_are_known_by_their_places(pages: tuple[str, ...], why: str, known: bool) -> None:
    lines = [f"BUG: Bad page state in process load-hugetlb  pfn:{page}" for page in pages]
    dmesg = [finding("LOG-1", "[8.1]", "no bad page", line, "dmesg") for line in lines]
    console = [finding("LOG-1", "console", "no", f"[    8.079094] {line}", "serial console") for line in lines]
    found = explain([COPIES], checks(*dmesg, *console), evidence((lines[0], why)))
    assert (not found.rest, bool(found.met)) == (known, why == WHY)


def test_copies_of_the_head_may_be_too_many_to_be_told() -> None:
    line = f"BUG: Bad page state in process load-hugetlb  pfn:{COPIED[0]}"
    told = finding("LOG-1", "[8.1]", "no bad page", line, "dmesg")
    late = finding("LOG-1", "[70.1]", "no bad page", "BUG: Bad page state: 1060 messages suppressed", "dmesg")
    assert explain([COPIES], checks(told, late), evidence((line, WHY))).rest == ()


@pytest.mark.parametrize(
    ("release", "has"),
    [
        ("6.12.107-hp", False),
        ("6.12.113", False),
        ("6.12.114", True),
        ("6.12.117-hp", True),
        ("6.18.51", MAYBE),
        ("7.2.12", False),
        ("7.3.4-hp", False),
    ],
)
def test_which_kernels_copy_the_head(release: str, has: bool | None) -> None:
    facts = model_guest.facts(arch="riscv64", release=release, files={OPTIMIZE_HUGETLB: "1"})
    assert standing(COPIES, facts).has is has
