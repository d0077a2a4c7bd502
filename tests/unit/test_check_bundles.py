# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded runs of real guests, checked offline: they pass as recorded; each corruption breaks the right invariant."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.check import CATALOGUE, CheckResult, Verdict
from harness.errors import UsageError
from harness.scenarios.recheck import recheck

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"
RECORDED = sorted(path.name for path in BUNDLES.iterdir())

#: recordings older than any look from the host, and what they do not observe
OLD = ("arm64-dimm", "arm64-virtio")
FROM_THE_HOST = {"MEM-2", "PGT-1", "PGT-2", "SEC-1", "SEC-2", "SEC-3", *(f"XCK-{number}" for number in range(1, 7))}

Edit = Callable[[str], str]


def sub(pattern: str, by: str, count: int = 1) -> Edit:
    """Replace text that must exist."""

    def edit(text: str) -> str:
        changed, hits = re.subn(pattern, by, text, count=count, flags=re.MULTILINE)
        assert hits, f"{pattern!r} is not in the recording"
        return changed

    return edit


def drop(pattern: str) -> Edit:
    """Drop the first line that matches."""
    return sub(rf"^.*{pattern}.*\n" if not pattern.startswith("^") else f"{pattern}\n", "")


def append(line: str) -> Edit:
    return lambda text: text + line + "\n"


def in_json(change: Callable[[object], object]) -> Edit:
    return lambda text: json.dumps(change(json.loads(text)))


@dataclass(frozen=True)
class Corruption:
    """A corruption of one recorded file, and exactly the invariants that must break."""

    name: str
    bundle: str
    file: str
    edit: Edit
    broken: frozenset[str]


def corruption(name: str, bundle: str, file: str, edit: Edit, *broken: str) -> Corruption:
    return Corruption(name, bundle, file, edit, frozenset(broken))


def first_device(**changes: object) -> Edit:
    def change(value: object) -> object:
        assert isinstance(value, list)
        return [{**value[0], **changes}, *value[1:]]

    return in_json(change)


def outcome(**changes: object) -> Edit:
    def change(value: object) -> object:
        assert isinstance(value, dict)
        return {**value, "outcome": {**value["outcome"], **changes}}

    return in_json(change)


ONLINE, OFFLINE, GONE = "states/002", "states/004", "states/005"
STORY, FAST = "states/003", "states/002"
VMEM, KMEM, SHRUNK = "states/002", "states/005", "states/006"

CORRUPTIONS = [
    corruption(
        "device at another address", "dimm", f"{ONLINE}/devices.json", first_device(range=[1 << 33, 9 << 30]), "QMP-1"
    ),
    corruption("device lost", "dimm", f"{ONLINE}/devices.json", in_json(lambda _: []), "QMP-1"),
    corruption("other slot", "dimm", f"{ONLINE}/devices.json", first_device(slot=5), "QMP-1"),
    corruption("requested-size not taken", "virtio", f"{VMEM}/devices.json", first_device(requested_size=0), "QMP-1"),
    corruption(
        "unplug ended twice",
        "dimm",
        f"{GONE}/step.json",
        outcome(unplugs=[{"id": "dimm0", "endings": ["DEVICE_DELETED", "MEM_UNPLUG_ERROR"], "refused": False}]),
        "QMP-2",
    ),
    corruption(
        "unplug never ended",
        "dimm",
        f"{GONE}/step.json",
        outcome(unplugs=[{"id": "dimm0", "endings": [], "refused": False}]),
        "QMP-2",
    ),
    corruption(
        "resize stopped short",
        "virtio",
        f"{SHRUNK}/step.json",
        outcome(resizes=[{"id": "vmem0", "requested": 0, "size": 2 << 20, "qemu_refused": None}]),
        "QMP-3",
    ),
    corruption("RAM line dropped", "dimm", f"{ONLINE}/iomem.txt", drop("80000000-9fffffff"), "IOM-1"),
    corruption(
        "RAM line renamed", "dimm", f"{ONLINE}/iomem.txt", sub("(80000000-9fffffff : ).*", r"\1reserved"), "IOM-1"
    ),
    corruption("RAM line short", "dimm", f"{ONLINE}/iomem.txt", sub("80000000-9fffffff", "80000000-97ffffff"), "IOM-1"),
    corruption(
        "virtio-mem not nested", "virtio", f"{VMEM}/iomem.txt", sub(r"^  (80000000-8fffffff)", r"\1"), "IOM-1", "IOM-3"
    ),
    corruption("kmem child lost", "virtio", f"{KMEM}/iomem.txt", drop(r"System RAM \(kmem\)"), "IOM-1"),
    corruption("boot RAM line dropped", "dimm", f"{ONLINE}/iomem.txt", drop("^7.* : System RAM"), "IOM-2"),
    corruption(
        "left behind", "dimm", f"{GONE}/iomem.txt", sub("^(4010000000)", "80000000-9fffffff : System RAM\n\\1"), "IOM-2"
    ),
    corruption(
        "BAR of a device that is not",
        "dimm",
        f"{ONLINE}/iomem.txt",
        sub("^(  10000000-101fffff.*\n)", "\\1    10000000-10000fff : 0000:01:00.0\n"),
        "IOM-2",
    ),
    corruption(
        "siblings overlap",
        "dimm",
        f"{ONLINE}/iomem.txt",
        sub("08000000-0800ffff", "08000000-080affff"),
        "IOM-2",
        "IOM-3",
    ),
    corruption("block lost", "dimm", f"{ONLINE}/blocks.txt", lambda text: re.sub("memory17/.*\n", "", text), "BLK-1"),
    corruption(
        "block left behind",
        "dimm",
        f"{GONE}/blocks.txt",
        lambda text: (
            text
            + re.sub("memory15", "memory16", "\n".join(re.findall("^memory15/.*$", text, re.M))).replace(
                "0000000f", "00000010"
            )
            + "\n"
        ),
        "BLK-1",
    ),
    corruption(
        "phys_index",
        "dimm",
        f"{ONLINE}/blocks.txt",
        sub("memory17/phys_index:.*", "memory17/phys_index:00000012"),
        "BLK-1",
    ),
    corruption(
        "valid_zones",
        "dimm",
        f"{ONLINE}/blocks.txt",
        sub("memory17/valid_zones:.*", "memory17/valid_zones:Normal"),
        "BLK-1",
    ),
    corruption(
        "removable", "dimm", f"{ONLINE}/blocks.txt", sub("memory17/removable:1", "memory17/removable:0"), "BLK-1"
    ),
    corruption("node link", "dimm", f"{ONLINE}/blocks.txt", sub("memory17/node:0", "memory17/node:1"), "BLK-1"),
    corruption(
        "second node link", "dimm", f"{ONLINE}/blocks.txt", sub("(memory17/node:0)", "\\1\nmemory17/node:1"), "BLK-1"
    ),
    corruption(
        "state", "dimm", f"{ONLINE}/blocks.txt", sub("memory17/state:online", "memory17/state:offline"), "BLK-2"
    ),
    corruption("policy", "virtio", f"{VMEM}/auto_online.txt", sub("online_movable", "offline"), "BLK-2"),
    corruption("managed pages", "dimm", f"{ONLINE}/zoneinfo.txt", sub("managed  98304", "managed  98303"), "ZON-1"),
    corruption("spanned pages", "dimm", f"{OFFLINE}/zoneinfo.txt", sub("spanned  0", "spanned  98304"), "ZON-1"),
    corruption("present pages", "virtio", f"{VMEM}/zoneinfo.txt", sub("present  65536", "present  65024"), "ZON-1"),
    corruption(
        "zone start", "dimm", f"{ONLINE}/zoneinfo.txt", sub("start_pfn:( +)524288", r"start_pfn:\g<1>524800"), "ZON-1"
    ),
    corruption(
        "MemTotal off by a page",
        "dimm",
        f"{ONLINE}/meminfo.txt",
        sub(r"(MemTotal: +)(\d+)", lambda m: f"{m[1]}{int(m[2]) - 4}"),
        "MEM-1",
    ),  # type: ignore[arg-type]
    corruption(
        "MemTotal not back",
        "dimm",
        f"{GONE}/meminfo.txt",
        sub(r"(MemTotal: +)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 4}"),
        "MEM-1",
    ),  # type: ignore[arg-type]
    corruption(
        "memmap pages leaked",
        "dimm",
        f"{GONE}/vmstat.txt",
        sub("nr_memmap_pages 0", "nr_memmap_pages 512"),
        "MEM-2",
        "VMM-2",
    ),
    corruption(
        "boot memmap freed",
        "dimm",
        f"{ONLINE}/vmstat.txt",
        sub("nr_memmap_boot_pages 4096", "nr_memmap_boot_pages 4095"),
        "MEM-2",
    ),
    corruption(
        "page-table page leaked",
        "story",
        "states/011/host_tables.txt",
        sub(r"^(count )(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}"),
        "MEM-2",
    ),  # type: ignore[arg-type]
    corruption(
        "backend left behind",
        "dimm",
        f"{GONE}/backends.json",
        in_json(lambda value: {**value, "mem-dimm0": 0}),
        "MEM-2",
    ),  # type: ignore[dict-item]
    corruption(
        "unplugged memory still held",
        "virtio",
        f"{SHRUNK}/backends.json",
        in_json(lambda value: {**value, "mem-vmem0": 4096}),
        "MEM-2",
    ),  # type: ignore[dict-item]
    corruption(
        "hole in the linear map", "dimm", f"{ONLINE}/ptdump.txt", sub(r"^(.*512M PMD) +RW.*$", r"\1"), "LIN-1", "LIN-3"
    ),
    corruption("hot memory read-only", "dimm", f"{ONLINE}/ptdump.txt", sub(r"^(.*512M PMD +)RW", r"\1ro"), "LIN-2"),
    corruption("hot memory executable", "dimm", f"{ONLINE}/ptdump.txt", sub(r"^(.*512M PMD +RW )NX", r"\1x "), "LIN-2"),
    corruption(
        "hot memory untagged", "dimm", f"{ONLINE}/ptdump.txt", sub(r"^(.*512M PMD .*MEM/NORMAL)-TAGGED", r"\1"), "LIN-2"
    ),
    corruption("W+X elsewhere", "dimm", f"{ONLINE}/ptdump.txt", sub(r"^(0xffff8000.*PTE +RW )NX", r"\1x "), "LIN-2"),
    corruption("contiguous hint lost", "dimm", f"{ONLINE}/ptdump.txt", sub(r"^(.*512M PMD .*)CON", r"\1   "), "LIN-3"),
    corruption("memmap unmapped", "dimm", f"{ONLINE}/ptdump.txt", sub(r"^(0x\w+-0x\w+ +24M PMD) .*$", r"\1"), "VMM-1"),
    corruption(
        "new warning",
        "dimm",
        f"{ONLINE}/dmesg.txt",
        append("<4>[   99.000000] WARNING: CPU: 0 PID: 1 at mm/memory_hotplug.c:1 f+0x0/0x8"),
        "LOG-1",
    ),
    corruption(
        "bad page",
        "dimm",
        f"{GONE}/dmesg.txt",
        append("<1>[   99.000000] BUG: Bad page state in process sh  pfn:80000"),
        "LOG-1",
    ),
    corruption(
        "console alarm",
        "dimm",
        f"{ONLINE}/console.json",
        in_json(lambda _: ["Internal error: Oops: 96000004 [#1] SMP"]),
        "LOG-1",
    ),
    corruption(
        "pattern lost",
        "dimm",
        "states/003/step.json",
        outcome(touches=[{"pages": 9, "mismatches": 1, "used": []}]),
        "LIV-1",
    ),
    corruption(
        "memory never handed out",
        "dimm",
        "states/003/step.json",
        outcome(touches=[{"pages": 9, "mismatches": 0, "used": [[1 << 31, (1 << 31) + 4096, 0]]}]),
        "LIV-1",
    ),
    corruption("kept for nothing", "dimm", "states/003/step.json", outcome(offlines=[[16, "EPERM"]]), "BLK-3"),
    corruption(
        "kept for a leaf that ends with it",
        "dimm",
        f"{ONLINE}/dmesg.txt",
        lambda text: text + "<4>[ 9999.000001] [80200000 88000000] splits a leaf entry in vmemmap\n",
        "BLK-3",
    ),
    corruption(
        "removed range in the dump",
        "ends",
        "states/003/step.json",
        outcome(dumps=[["/proc/kcore", 0, 1 << 32, [[0x40000000, 0x90000000]]]]),
        "IOM-4",
    ),
    corruption(
        "left by a failure",
        "ends",
        "states/005/vmstat.txt",
        sub("nr_memmap_pages 1024", "nr_memmap_pages 1025"),
        "MEM-2",
        "RBK-1",
        "XCK-5",
    ),
    corruption(
        "a slope", "ends", "states/010/step.json", outcome(slopes=[["nr_memmap_pages", "1/3", "bytes"]]), "MEM-3"
    ),
    corruption("rebooted unexpectedly", "dimm", f"{ONLINE}/boot_id.txt", sub("^.", "z"), "LIV-1"),
    corruption(
        "dump read-only",
        "story",
        f"{STORY}/ptdump.txt",
        sub(r"^(0x\w+-0x\w+ +256M PTE +)RW", r"\1ro"),
        "LIN-2",
        "XCK-1",
    ),
    corruption(
        "table left behind",
        "story",
        "states/011/host_tables.txt",
        append("table 0x410e4000 PTE 0xfff0000050000000-0xfff0000050200000 0 uncounted"),
        "PGT-1",
    ),
    corruption(
        "table used twice",
        "story",
        f"{STORY}/host_tables.txt",
        sub(r"^table \w+ (PTE .*-0xfff0000050000000)", r"table 0x40de0000 \1"),
        "PGT-2",
    ),
    corruption("section not online", "story", f"{STORY}/sections.txt", sub("^(section 17 .*),online$", r"\1"), "SEC-1"),
    corruption(
        "sub-section lost", "story", f"{STORY}/sections.txt", sub("^(section 17 .*)0xf(f{15})", r"\g<1>0x7\2"), "SEC-2"
    ),
    corruption("page in another zone", "story", f"{STORY}/sections.txt", sub("Movable$", "Normal"), "SEC-3"),
    corruption("resource dropped", "story", f"{STORY}/host_iomem.txt", drop("80000000-8fffffff"), "XCK-2"),
    corruption(
        "block's other state", "story", f"{STORY}/host_blocks.txt", sub("17/state:online", "17/state:offline"), "XCK-3"
    ),
    corruption(
        "zone's other span", "story", f"{STORY}/host_zoneinfo.txt", sub("spanned  65536", "spanned  0"), "XCK-4"
    ),
    corruption(
        "counter's other value",
        "story",
        f"{STORY}/host_vmstat.txt",
        sub("nr_memmap_pages 1024", "nr_memmap_pages 1"),
        "XCK-5",
    ),
    corruption("line of the log dropped", "story", f"{STORY}/host_log.txt", drop("^.*Policy zone.*"), "XCK-6"),
    corruption("resource dropped, unread", "fast", f"{FAST}/host_iomem.txt", drop("80000000-8fffffff"), "IOM-1"),
    corruption(
        "block offline, unread", "fast", f"{FAST}/host_blocks.txt", sub("17/state:online", "17/state:offline"), "BLK-2"
    ),
    corruption(
        "zone's span, unread", "fast", f"{FAST}/host_zoneinfo.txt", sub("spanned  65536", "spanned  0"), "ZON-1"
    ),
    corruption(
        "counter's value, unread",
        "fast",
        f"{FAST}/host_vmstat.txt",
        sub("nr_memmap_pages 1024", "nr_memmap_pages 1"),
        "MEM-2",
    ),
]


def broken_in(directory: Path) -> set[str]:
    """The invariants that break in a recheck."""
    return {check.invariant for step in recheck(directory).steps for check in step.checks if check.status == "fail"}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_is_green(name: str) -> None:
    result = recheck(BUNDLES / name)
    assert [finding for step in result.steps for check in step.checks for finding in check.findings] == []
    assert result.verdict is Verdict.PASS


def test_the_recordings_observe_every_invariant() -> None:
    passed = {
        check.invariant
        for name in RECORDED
        for step in recheck(BUNDLES / name).steps
        for check in step.checks
        if check.status == "pass"
    }
    assert passed == set(CATALOGUE)


def test_every_invariant_is_broken_by_some_corruption() -> None:
    assert {invariant for item in CORRUPTIONS for invariant in item.broken} == set(CATALOGUE)


@pytest.mark.parametrize("name", OLD)
def test_what_an_old_recording_lacks_is_not_observed(name: str) -> None:
    steps = recheck(BUNDLES / name).steps
    for step in steps:
        unseen = {check.invariant: check.reason for check in step.checks if check.status == "not-observed"}
        assert unseen == dict.fromkeys(FROM_THE_HOST, "not in this snapshot")
    assert len(steps) > 5


@pytest.mark.parametrize("item", CORRUPTIONS, ids=lambda item: item.name.replace(" ", "-"))
def test_a_corruption_is_named_and_forgotten_when_undone(item: Corruption, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLES / f"arm64-{item.bundle}", copy)
    file = copy / item.file
    original = file.read_text()
    file.write_text(item.edit(original))
    assert broken_in(copy) == item.broken
    file.write_text(original)
    assert broken_in(copy) == set()


@pytest.mark.parametrize(
    ("bundle", "at", "object", "broken"),
    [
        ("riscv64-story", "000", "resource0", set()),
        ("riscv64-story", "000", "0000:03:00.0/resource4_wc", set()),
        ("riscv64-story", "000", "config", {"LOG-1"}),
        ("riscv64-story", "001", "resource0", {"LOG-1"}),
        ("arm64-story", "000", "resource0", {"LOG-1"}),
    ],
)
@pytest.mark.parametrize("files", [("dmesg.txt", "host_log.txt"), ("console.json",)])
def test_a_race_of_booting_is_no_alarm_while_the_guest_boots(
    bundle: str, at: str, object: str, broken: set[str], files: tuple[str, ...], tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLES / bundle, copy)
    line = f"sysfs: cannot create duplicate filename '/devices/pci0000:00/0000:00:06.0/{object}'"
    in_log, on_console = append(f"<4>[   99.000000] {line}"), in_json(lambda _: [f"[   99.000000] {line}"])
    for file in files:
        source = copy / "states" / at / file
        source.write_text((on_console if source.suffix == ".json" else in_log)(source.read_text()))
    assert broken_in(copy) == broken


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not a bundle: it has no run\.json"):
        recheck(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLES / RECORDED[0], copy)
    (copy / "run.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="has format 99, but this memhp reads 1"):
        recheck(copy)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLES / RECORDED[0], copy)
    (copy / "machine.json").write_text("{")
    with pytest.raises(UsageError, match=r"machine\.json is damaged"):
        recheck(copy)


def test_a_missing_source_is_not_observed_and_no_pass(tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLES / "arm64-dimm", copy)
    (copy / ONLINE / "ptdump.txt").unlink()
    step = recheck(copy).steps[2]
    unseen = {check.invariant for check in step.checks if check.status == "not-observed"}
    assert unseen == {"LIN-1", "LIN-2", "LIN-3", "VMM-1"} | FROM_THE_HOST


def balances(directory: Path) -> list[CheckResult]:
    """MEM-2's result for each step."""
    return [check for step in recheck(directory).steps for check in step.checks if check.invariant == "MEM-2"]


def test_tables_that_nobody_counted_leave_the_balance_unobserved(tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLES / "arm64-story", copy)
    assert {check.status for check in balances(copy)} == {"pass"}
    file = copy / "states/011/host_tables.txt"
    file.write_text(re.sub("^count .*$", "count - no reason", file.read_text(), flags=re.MULTILINE))
    unseen = [check for check in balances(copy) if check.status == "not-observed"]
    assert [check.reason for check in unseen] == ["no reason"]


def test_a_kernel_that_does_not_count_memmap_pages_is_told_beside_the_balance(tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLES / "arm64-story", copy)
    meta = copy / "facts" / "meta.json"
    meta.write_text(meta.read_text().replace("6.12.117", "6.10.14"))
    for file in copy.glob("states/*/vmstat.txt"):
        file.write_text(re.sub("^nr_memmap.*\n", "", file.read_text(), flags=re.MULTILINE))
    seen = balances(copy)
    assert {(check.status, check.note) for check in seen} == {("pass", "this kernel has no nr_memmap (since v6.11)")}
