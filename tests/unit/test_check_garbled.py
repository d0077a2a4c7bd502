# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines that no correct kernel prints become findings with a quote; unknown text that no check needs becomes a note."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from selftest_scenes import BUNDLES, scenes_of

from harness.check import CATALOGUE, Verdict, run_check
from harness.errors import ParseError
from harness.parsers import blocks, dax, iomem, meminfo, ptdump, slabinfo, vmstat, zoneinfo
from harness.scenarios.recheck import recheck
from harness.scenarios.record import Recorder
from harness.state import NotObserved, Unknown

SOURCES = [module.SOURCE for module in (blocks, dax, iomem, meminfo, ptdump, slabinfo, vmstat, zoneinfo)]


def test_every_file_that_can_be_garbled_is_read_by_one_invariant() -> None:
    read = Counter(source for item in CATALOGUE.values() for source in item.reads)
    assert read == dict.fromkeys([*SOURCES, iomem.HOST_IOMEM, blocks.HOST_BLOCKS], 1)


@pytest.mark.parametrize(
    ("source", "old", "new", "invariant", "where", "quoted"),
    [
        ("iomem", " : System RAM\n", " : \n", "IOM-3", "/proc/iomem:", "a resource without a name"),
        ("iomem", " : System RAM\n", " : Sys\ntem RAM\n", "IOM-3", "/proc/iomem:", "'tem RAM'"),
        ("iomem", " : System RAM\n", " : \x02\x7f\n", "IOM-3", "/proc/iomem:", r"\x02\x7f"),
        ("zoneinfo", "Node 0, zone", "Node \x02, zone", "ZON-1", "/proc/zoneinfo:1", r"Node \x02, zone"),
        ("vmstat", "nr_free_pages", "nr\x1b_pages", "MEM-2", "/proc/vmstat:1", r"nr\x1b_pages"),
        ("meminfo", "MemTotal", "Mem\x7fTotal", "MEM-1", "/proc/meminfo:1", r"Mem\x7fTotal"),
        ("blocks", "state:online", "state:on\x02", "BLK-1", "/sys/devices/system/memory:", r"state:on\x02"),
    ],
)
def test_a_garbled_line_is_a_finding(source: str, old: str, new: str, invariant: str, where: str, quoted: str) -> None:
    scene = scenes_of("arm64-story")[2]
    text = scene.text(source)
    assert old in text
    evidence = scene.with_sources({source: text.replace(old, new, 1).encode()})
    result = run_check(CATALOGUE[invariant], evidence, "step")
    assert result is not None and result.status == "fail"
    assert result.findings[0].where.startswith(where) and quoted in result.findings[0].observed
    assert result.findings[0].expected == "a line as the kernel prints it"


@pytest.mark.parametrize(("bundle", "iom_1"), [("arm64-dimm", "not-observed"), ("arm64-story", "pass")])
def test_a_file_that_is_garbled_through_and_through_is_a_finding_too(bundle: str, iom_1: str) -> None:
    """IOM-1 judges the host's resource tree instead, if it was read."""
    scene = scenes_of(bundle)[2]
    evidence = scene.with_sources({"vmstat": b"\xff\xfe\xfd\n\x00\n", "iomem": b"\xff\n", "zoneinfo": b"\x01 Node\n"})
    assert isinstance(evidence.observed.vmstat, NotObserved) and "garbled" in evidence.observed.vmstat.reason
    for invariant, status in (("MEM-2", "fail"), ("IOM-3", "fail"), ("ZON-1", "fail"), ("IOM-1", iom_1)):
        result = run_check(CATALOGUE[invariant], evidence)
        assert result is not None and result.status == status


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLES / "arm64-dimm", tmp_path / "bundle"))


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_what_is_unknown_in_many_snapshots_is_told_once(bundle: Path) -> None:
    for number, state in enumerate(sorted((bundle / "states").iterdir())):
        append(state / "zoneinfo.txt", f"  borrowed: {number}\n" * (number + 1))
    meta = json.loads((bundle / "facts" / "meta.json").read_text())
    meta["unknown"] = [{"source": "kernel config", "kind": "line", "example": "CONFIG_NEW=perhaps", "count": 1}]
    (bundle / "facts" / "meta.json").write_text(json.dumps(meta))
    result = recheck(bundle)
    assert result.verdict is Verdict.PASS
    assert result.unknown == (
        Unknown("kernel config", "line", "CONFIG_NEW=perhaps", 1),
        Unknown("/proc/zoneinfo", "line", "  borrowed: 0", 6),
    )


def test_text_that_cannot_be_parsed_is_kept_where_it_is_tried_again(bundle: Path) -> None:
    last = sorted((bundle / "states").iterdir())[-1]
    raw = {path.stem: path.read_bytes() for path in last.iterdir() if path.stem not in ("meta", "step")}
    step = (last / "step.json").read_bytes()
    shutil.rmtree(last)
    raw["zoneinfo"] = raw["zoneinfo"].replace(b"spanned  ", b"span     ")
    Recorder(bundle).save_unparsed(last, raw)
    (last / "step.json").write_bytes(step)
    with pytest.raises(ParseError, match="/proc/zoneinfo:1: this zone has no 'spanned'"):
        recheck(bundle)
    (last / "zoneinfo.txt").write_bytes(raw["zoneinfo"].replace(b"span     ", b"spanned  "))
    assert recheck(bundle).verdict is Verdict.PASS
