# SPDX-License-Identifier: GPL-2.0-or-later
"""memhp ptdump and memhp sections: output for real bundles, and errors of invalid requests."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from report_samples import GOOD

from harness.arch.config_queries import NO_CONFIG
from harness.check import Verdict
from harness.cli import main
from harness.cli.shown_tables import load_snapshot
from harness.config.guest import GuestSpec
from harness.errors import UsageError
from harness.report.observed import read_range
from harness.scenarios.file import Scenario
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions
from harness.units import AddrRange

FIXTURES = Path(__file__).parent / "fixtures"
ARM64, RISCV64 = FIXTURES / "walks" / "arm64", FIXTURES / "walks" / "riscv64"
#: a bundle whose snapshots have no walk by the host
GUEST_ONLY = FIXTURES / "bundles" / "arm64-dimm"


def said(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> tuple[str, str]:
    assert main([str(word) for word in words]) == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out, captured.err


def test_a_snapshot_is_printed_as_the_guest_would(capsys: pytest.CaptureFixture[str]) -> None:
    for bundle, state in ((ARM64, "002"), (RISCV64, "002")):
        expected = (bundle / "states" / state / "ptdump.txt").read_text()
        assert said(capsys, "ptdump", bundle) == (expected, "")
        assert said(capsys, "ptdump", bundle / "states" / state) == (expected, "")
    assert said(capsys, "ptdump", RISCV64, "--state", "0")[0] == (RISCV64 / "states/000/ptdump.txt").read_text()


def test_the_guests_own_dump_serves_where_the_host_walked_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "ptdump", GUEST_ONLY, "--state", "3")
    assert out == (GUEST_ONLY / "states/003/ptdump.txt").read_text()
    assert err == (
        f"memhp: {GUEST_ONLY}/states/003: this is the guest's own dump, not the host's walk: not in this snapshot\n"
    )


def test_part_of_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "ptdump", RISCV64, "--region", "pci")
    assert out == (
        "---[ PCI I/O start ]---\n"
        "0xff1bffffff000000-0xff1bffffff010000    0x0000000003000000        64K PTE .   ..     ..   D A G . . W R V\n"
    )
    words = ("--range", "ff1bffffff000000-ff1bffffff000001", "--range", "0xff60000040000000-0")
    out, _ = said(capsys, "ptdump", RISCV64, *words)
    assert [line.split()[0] for line in out.splitlines()][:4] == [
        "---[",
        "0xff1bffffff000000-0xff1bffffff010000",
        "---[",
        "0xff60000040000000-0xff60000080000000",
    ]


def test_tables_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "ptdump", ARM64, "--region", "fixmap start", "--json")[0])
    assert (found["arch"], found["source"], found["kernel"]) == ("arm64", "host", "6.12.107-hp")
    assert found["markers"] == [{"name": "Fixmap start", "address": "0xffffffffff436000"}]
    assert found["runs"][0]["start"] == "0xffffffffff436000"
    assert json.loads(said(capsys, "ptdump", GUEST_ONLY, "--json")[0])["source"] == "guest"


def test_what_changed_between_two_states(capsys: pytest.CaptureFixture[str]) -> None:
    added = (
        "@@ Linear mapping @@\n"
        "+0xff60000040000000-0xff60000080000000    0x00000000c0000000         1G PUD .   ..     ..   D A G . . W R V\n"
    )
    out, err = said(capsys, "ptdump", RISCV64, "--diff", "0", "2", "--region", "linear")
    assert (out, err) == (f"--- {RISCV64}/states/000\n+++ {RISCV64}/states/002\n{added}", "")
    paths = (RISCV64 / "states" / "002", RISCV64 / "states" / "000")
    out, _ = said(capsys, "ptdump", "--diff", *paths, "--range", "0xff60000040000000-0xff60000040200000")
    assert out.splitlines()[2:] == [
        "@@ Linear mapping @@",
        "-0xff60000040000000-0xff60000040200000    0x00000000c0000000         2M PUD .   ..     ..   D A G . . W R V",
    ]
    found = json.loads(said(capsys, "ptdump", RISCV64, "--diff", "0", "2", "--json")[0])
    assert {change["change"] for change in found["changes"]} == {"added"}
    assert found["old"]["snapshot"].endswith("000") and found["new"]["snapshot"].endswith("002")


def test_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "ptdump", RISCV64, "--diff", "0", "0") == ("", "memhp: no difference\n")
    assert said(capsys, "sections", "--diff", ARM64, ARM64) == ("", "memhp: no difference\n")


def test_different_boots_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "ptdump", "--diff", ARM64, GUEST_ONLY)
    assert "memhp: the two snapshots are of different boots: their addresses may not be comparable\n" in err


def test_sections(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "sections", ARM64)
    rows = out.splitlines()
    assert rows[0].split()[:6] == ["section", "physical", "flags", "sub-sections", "mem_map", "usage"] and err == ""
    assert rows[1].split()[:3] == ["8", "40000000-47ffffff", "present,has-mem-map,online,early"]
    assert len(rows) == 1 + 16
    out, _ = said(capsys, "sections", ARM64, "--range", "80000000-88000000", "--json")
    [section] = json.loads(out)["sections"]
    assert (section["number"], section["present"]) == (16, [["0x80000000", "0x88000000"]])
    out, _ = said(capsys, "sections", RISCV64, "--diff", "0", "2")
    assert out.splitlines()[0] == f"--- {RISCV64}/states/000"
    assert [row.split()[0] for row in out.splitlines()[3:]] == [f"+{number}" for number in range(24, 32)]
    found = json.loads(said(capsys, "sections", RISCV64, "--diff", "2", "0", "--json")[0])
    assert {change["change"] for change in found["changes"]} == {"removed"} and len(found["changes"]) == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ptdump"], "name a snapshot's directory or a guest to boot\n  hint: DIR: a bundle of memhp"),
        (
            ["ptdump", "/no"],
            "no directory /no\n  hint: a bundle of memhp run, a snapshot of memhp collect, or one of its",
        ),
        (
            ["ptdump", FIXTURES],
            f"{FIXTURES} is neither a bundle nor a snapshot with facts next to it\n  hint: a bundle",
        ),
        (["ptdump", ARM64, "-a", "arm64"], "a snapshot's directory and options of a guest exclude each other\n"),
        (["ptdump", ARM64, "--kernel", "debian"], "a snapshot's directory and options of a guest exclude each other\n"),
        (["ptdump", ARM64, "--state", "7"], f"{ARM64} has no snapshot 7: no such state\n  hint: known: 2\n"),
        (["ptdump", ARM64, "--state", "last"], "--state: invalid state number: 'last'\n  hint: such as 0"),
        (
            ["ptdump", ARM64 / "states/002", "--state", "2"],
            f"--state: {ARM64}/states/002 is one snapshot, not a bundle",
        ),
        (["ptdump", ARM64, "--region", "heap"], "--region: unknown marker 'heap'\n  hint: known: 'Linear Mapping"),
        (["ptdump", ARM64, "--range", "4G-5G"], "--range: '4G-5G' is not START-END\n  hint: hexadecimal addresses"),
        (["ptdump", ARM64, "--range", "0x10"], "--range: '0x10' is not START-END\n"),
        (["sections", ARM64, "--range", "20-10"], "--range: 20-10 is an empty range\n"),
        (
            ["sections", ARM64, "--region", "x"],
            "memhp sections does not know '--region'\n  hint: memhp sections --help\n",
        ),
        (["ptdump", "-a", "arm64", "--state", "1"], "--state: a guest booted here has only one snapshot\n"),
        (["ptdump", "-a", "arm64", "--diff", "1", "2"], "--diff compares saved snapshots, not guests to boot\n"),
        (["ptdump", ARM64, "--state", "2", "--diff", "0", "2"], "--state and --diff exclude each other\n"),
        (["ptdump", ARM64, "--diff", "2", ARM64], f"--diff: invalid state number: {str(ARM64)[:80]!r}\n"),
        (["ptdump", "--diff", "0", "2"], "no directory 0\n"),
        (["ptdump", "--diff", ARM64, RISCV64], "--diff: one snapshot is of arm64, the other of riscv64\n"),
        (["ptdump", "--diff", ARM64], "argument --diff: expected 2 arguments\n"),
        (["ptdump", "-a", "x86"], "unknown architecture 'x86'\n"),
        (["ptdump", "-a", "arm64", "--timeout", "no"], "--timeout: 'no' is not a number of seconds\n"),
    ],
)
def test_wrong_requests(capsys: pytest.CaptureFixture[str], words: Sequence[object], message: str) -> None:
    out, err = said(capsys, *words, status=2)
    assert out == "" and err.startswith(f"memhp: {message}")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ARM64, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_step_without_snapshot(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "states" / "005").mkdir()
    _, err = said(capsys, "ptdump", copied, "--state", "5", status=2)
    assert f"memhp: {copied} has no snapshot 5: that step has no snapshot\n  hint: known: 2\n" == err
    assert load_snapshot(copied, None).label == str(copied / "states" / "002")
    shutil.rmtree(copied / "states" / "002")
    _, err = said(capsys, "ptdump", copied, status=2)
    assert err == f"memhp: {copied} holds no snapshot\n  hint: the run ended before the guest was up\n"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "no saved facts in {facts}: No such file or directory\n"),
        ("{", "{facts}/meta.json is not JSON: "),
        ("[]", "{facts}/meta.json names no architecture\n"),
        ('{"arch": 1}', "{facts}/meta.json names no architecture\n"),
        ('{"arch": "vax"}', "unknown architecture 'vax'\n"),
        ('{"arch": "arm64"}', "{facts} holds no facts of format 1\n"),
    ],
)
def test_damaged_facts(copied: Path, capsys: pytest.CaptureFixture[str], meta: str | None, message: str) -> None:
    (copied / "facts" / "meta.json").unlink()
    if meta is not None:
        (copied / "facts" / "meta.json").write_text(meta)
    _, err = said(capsys, "ptdump", copied, status=2)
    assert err.startswith("memhp: " + message.replace("{facts}", str(copied / "facts")))


def test_a_source_that_is_not_understood(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "states" / "002" / "host_tables.txt").write_text("map nonsense\n")
    _, err = said(capsys, "ptdump", copied, status=3)
    assert err.startswith("memhp: host_tables:1: neither 'map', 'table', 'fault' nor 'count': 'map nonsense'\n")


def forget(state: Path, name: str, reason: str) -> None:
    (state / f"{name}.txt").unlink()
    with (state / "absent.txt").open("a") as absent:
        absent.write(f"{name} {reason}\n")


def test_what_was_not_observed_is_no_verdict(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = copied / "states" / "002"
    forget(state, "sections", "the kernel tells no roots")
    out, err = said(capsys, "sections", copied, status=3)
    assert (out, err) == ("", f"memhp: {state}: sections were not observed: the kernel tells no roots\n")
    forget(state, "host_tables", "QEMU was not asked")
    assert "not the host's walk: QEMU was not asked\n" in said(capsys, "ptdump", copied)[1]
    forget(state, "ptdump", "this kernel has no CONFIG_PTDUMP_DEBUGFS")
    out, err = said(capsys, "ptdump", copied, "--json", status=3)
    assert (out, err) == (
        "",
        f"memhp: {state}: page tables were not observed: from the host, QEMU was not asked; "
        "by the guest, this kernel has no CONFIG_PTDUMP_DEBUGFS\n",
    )


def test_without_the_kernels_config_kasans_markers_are_missed(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "facts" / "config.txt").unlink()
    out, err = said(capsys, "ptdump", copied)
    assert "Fixmap start" in out and "Fixmap end" in out
    state = copied / "states" / "002"
    assert err == f"memhp: {state}: without KASAN's markers: {NO_CONFIG.reason}\n"


def test_without_the_guests_own_dump_nothing_tells_the_size_of_the_fixmap(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = copied / "states" / "002"
    forget(state, "ptdump", "this kernel has no CONFIG_PTDUMP_DEBUGFS")
    _, err = said(capsys, "ptdump", copied)
    assert err.startswith(f"memhp: {state}: without the address of 'Fixmap start': ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("NUMBER(VMEMMAP_END)=", "NUMBER(OTHER)="),
            "markers unknown: no NUMBER(VMEMMAP_END) in the kernel's vmcoreinfo",
        ),
        (
            ("NUMBER(VA_BITS)=52", "NUMBER(VA_BITS)=12"),
            "cannot parse the kernel's vmcoreinfo: no arm64 kernel has 12 bi",
        ),
        (None, "there was no kcore"),
    ],
)
def test_without_markers_the_guests_own_dump_serves(
    copied: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str] | None, reason: str
) -> None:
    note = copied / "facts" / "vmcoreinfo.txt"
    if change is None:
        note.unlink()
        meta = json.loads((copied / "facts" / "meta.json").read_text())
        (copied / "facts" / "meta.json").write_text(json.dumps(meta | {"no_vmcoreinfo": "there was no kcore"}))
    else:
        note.write_text(note.read_text().replace(*change))
    out, err = said(capsys, "ptdump", copied)
    assert out == (copied / "states/002/ptdump.txt").read_text()
    assert f"this is the guest's own dump, not the host's walk: {reason}" in err


def test_entries_that_must_not_be_there_are_counted(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = "fault 0x0000000041c2f000 7 0x1 0xffff000000e00000-0xffff000001000000 points outside of memory\n"
    with (copied / "states/002/host_tables.txt").open("a") as tables:
        tables.write(fault)
    assert "faults found in these tables: 1; memhp check lists them\n" in said(capsys, "ptdump", copied)[1]


def test_a_page_size_that_the_architecture_has_not(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = json.loads((copied / "facts" / "meta.json").read_text())
    (copied / "facts" / "meta.json").write_text(json.dumps(meta | {"page_size": 8192}))
    assert "invalid page size for arm64: 8192 bytes\n" in said(capsys, "sections", copied, status=3)[1]


def test_facts_next_to_a_lone_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ARM64 / "facts", tmp_path / "facts")
    shutil.copytree(ARM64 / "states" / "002", tmp_path / "state")
    assert said(capsys, "ptdump", tmp_path / "state")[0] == (ARM64 / "states/002/ptdump.txt").read_text()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0x1000-0x2000", AddrRange(0x1000, 0x2000)),
        ("1000-2000", AddrRange(0x1000, 0x2000)),
        ("0XFFFF800000000000-0x0000000000000000", AddrRange(0xFFFF800000000000, 1 << 64)),
    ],
)
def test_ranges_as_the_kernel_prints_them(text: str, found: AddrRange) -> None:
    assert read_range(text) == found


@pytest.mark.parametrize("text", ["", "-", "1-", "0x-0x1", "1-2-3", "1-11111111111111111", "1 - 2", "1-2\n", "g-h"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="is not START-END"):
        read_range(text)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> list[RunResult]:
    """Stands in for harness.scenarios.runner: writes the bundle of a booted guest, or returns results from the list."""
    results: list[RunResult] = []

    def run_scenarios(
        scenarios: Sequence[Scenario], guest: GuestSpec, options: RunOptions, reporter: object, progress: object
    ) -> list[RunResult]:
        assert [scenario.steps for scenario in scenarios] == [()]
        assert (guest.arch, guest.kernel, options.timeout) == ("riscv64", "debian", 9.0)
        assert options.bundle_dir is not None
        bundle = options.bundle_dir / "run"
        shutil.copytree(RISCV64, bundle)
        shutil.rmtree(bundle / "states" / "002")
        return results or [dataclasses.replace(GOOD, guest="riscv64-debian", bundle=bundle)]

    stand_in = ModuleType("harness.scenarios.runner")
    vars(stand_in)["run_scenarios"] = run_scenarios
    monkeypatch.setitem(sys.modules, "harness.scenarios.runner", stand_in)
    return results


GUEST = ("-a", "riscv64", "--kernel", "debian", "--timeout", "9")


def test_a_guest_is_booted_for_one_snapshot(runner: list[RunResult], capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "ptdump", *GUEST)
    assert out == (RISCV64 / "states/000/ptdump.txt").read_text()
    assert "Taking one snapshot of riscv64" in err
    found = json.loads(said(capsys, "sections", *GUEST, "--json")[0])
    assert found["snapshot"] == "riscv64-debian" and len(found["sections"]) == 8


def test_a_guest_that_gives_no_snapshot(runner: list[RunResult], capsys: pytest.CaptureFixture[str]) -> None:
    runner.append(dataclasses.replace(GOOD, verdict=Verdict.INFRA, reason="no QEMU", hint="build one", bundle=None))
    out, err = said(capsys, "ptdump", *GUEST, status=3)
    assert out == "" and err.endswith("memhp: no QEMU\n  hint: build one\n")
    runner[0] = dataclasses.replace(GOOD, reason="", bundle=FIXTURES)
    assert said(capsys, "ptdump", *GUEST, status=3)[1].endswith("memhp: the guest gave no snapshot\n")


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    program = "import sys; from harness.cli import main; sys.exit(main())"
    try:
        found = subprocess.run(
            [sys.executable, "-c", program, "ptdump", str(ARM64)],
            cwd=Path(__file__).parents[2],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=300,
            check=False,
        )
    finally:
        os.close(write)
    assert (found.returncode, found.stderr) == (141, b"")
