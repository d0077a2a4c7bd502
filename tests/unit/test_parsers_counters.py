# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of numbers: zoneinfo, meminfo, vmstat, slabinfo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ParseError
from harness.parsers.meminfo import parse_meminfo
from harness.parsers.slabinfo import HEADER, parse_slabinfo
from harness.parsers.vmstat import parse_vmstat
from harness.parsers.zoneinfo import parse_zoneinfo
from harness.state import SlabCache, Zone
from harness.units import GIB, KIB

FIXTURES = Path(__file__).parent / "fixtures"

UNPOPULATED = """\
Node 0, zone  Movable
  pages free     0
        boost    0
        min      32
        low      32
        high     32
        promo    32
        spanned  0
        present  0
        managed  0
        cma      0
        protection: (0, 0, 0, 0)
"""
POPULATED = """\
Node 1, zone   Normal
  per-node stats
      nr_inactive_anon 7551
      nr_mapped    998
  pages free     233364
        boost    0
        min      5632
        spanned  262144
        present  262144
        managed  253580
        protection: (0, 0, -1, 0)
      nr_free_pages 233364
      nr_mapped    1
  pagesets
    cpu: 0
              count: 3491
              high:  3583
              batch: 63
  vm stats threshold: 16
    cpu: 1
              count: -1
              high:  3583
              batch: 63
  node_unreclaimable:  0
  start_pfn:           262144
"""
SLAB = "\n".join(HEADER) + "\n"
SLAB_ROW = (
    "kmalloc-8k           156    156   8192    4    8 : tunables    0    0    0 : slabdata     39     39      0\n"
)


def read(name: str, file: str) -> str:
    return (FIXTURES / name / file).read_text()


def recorded(file: str) -> list[str]:
    return sorted(path.parent.name for path in FIXTURES.glob(f"*/{file}"))


@pytest.mark.parametrize("name", recorded("zoneinfo.txt"))
def test_zoneinfo_recorded(name: str) -> None:
    zones = parse_zoneinfo(read(name, "zoneinfo.txt"))
    first = zones[0]
    assert (first.node, first.spanned, first.present) == (0, GIB // 4096, GIB // 4096)
    assert first.start_pfn == (0x8000_0000 if name.startswith("riscv64") else 0x4000_0000) // 4096
    assert 0 < first.managed < first.present
    assert [zone.name for zone in zones if zone.name != "DMA32" or zone is first][-3:] == [
        "Normal",
        "Movable",
        "Device",
    ]
    for zone in zones:
        assert (zone.start_pfn is None) == (zone.present == 0)


def test_zoneinfo_of_a_dimm_that_is_partly_online() -> None:
    zones = {zone.name: zone for zone in parse_zoneinfo(read("arm64-dimm-online", "zoneinfo.txt"))}
    assert zones["Normal"].present and zones["Movable"].present
    assert zones["Normal"].present % 32768 == zones["Movable"].present % 32768 == 0


def test_zoneinfo_values() -> None:
    assert parse_zoneinfo(POPULATED + UNPOPULATED) == (
        Zone(1, "Normal", 262144, 262144, 253580, 262144),
        Zone(0, "Movable", 0, 0, 0, None),
    )


def test_zoneinfo_has_two_more_lines_on_newer_kernels() -> None:
    newer = POPULATED + "  reserved_highatomic: 0\n  free_highatomic:     0\n"
    assert parse_zoneinfo(newer + UNPOPULATED) == parse_zoneinfo(POPULATED + UNPOPULATED)


def _without(text: str, needle: str) -> str:
    assert needle in text
    return "".join(row for row in text.splitlines(keepends=True) if needle not in row)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no zone"),
        ("  pages free     0\n", "no zone"),
        (UNPOPULATED + UNPOPULATED, "this zone is repeated"),
        (_without(UNPOPULATED, "spanned"), "this zone has no 'spanned'"),
        (_without(UNPOPULATED, "present"), "this zone has no 'present'"),
        (_without(UNPOPULATED, "managed"), "this zone has no 'managed'"),
        (_without(POPULATED, "start_pfn"), "present pages but no 'start_pfn'"),
        (POPULATED + "  start_pfn:           5\n", "'start_pfn' twice in one zone"),
        (UNPOPULATED + "        managed  0\n", "'managed' twice in one zone"),
        (UNPOPULATED.replace("spanned  0", "spanned  -1"), "this needed count is not in the kernel's format"),
        (UNPOPULATED.replace("  spanned", "spanned"), "this needed count is not in the kernel's format"),
        (POPULATED.replace("start_pfn:  ", "start_pfn  "), "this needed count is not in the kernel's format"),
        (UNPOPULATED.replace("spanned  0", f"spanned  {1 << 64}"), "is not an unsigned 64-bit number"),
        ("Node 0, zone  Movable\n        spanned  0\n", "this zone has no 'present'"),
        ("Node x, zone  Movable\n", "not 'Node N, zone NAME'"),
    ],
)
def test_zoneinfo_refusals(text: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_zoneinfo(text)
    assert why in str(caught.value)
    assert caught.value.source == "/proc/zoneinfo"


@pytest.mark.parametrize("name", recorded("meminfo.txt"))
def test_meminfo_recorded(name: str) -> None:
    fields = parse_meminfo(read(name, "meminfo.txt"))
    assert 0 < fields["MemFree"] < fields["MemTotal"] < 8 * GIB
    assert fields["HugePages_Total"] == 0
    assert fields["Hugepagesize"] == 2048 * KIB


def test_meminfo_units() -> None:
    text = "MemTotal:  100 kB\nActive(anon): 8728 kB\nShadowCallStack:12345678 kB\nHugePages_Free:    7\n"
    assert parse_meminfo(text) == {
        "MemTotal": 100 * KIB,
        "Active(anon)": 8728 * KIB,
        "ShadowCallStack": 12345678 * KIB,
        "HugePages_Free": 7,
    }


@pytest.mark.parametrize("name", recorded("vmstat.txt"))
def test_vmstat_recorded(name: str) -> None:
    counters = parse_vmstat(read(name, "vmstat.txt"))
    assert counters["nr_free_pages"] > 0
    assert counters["nr_memmap_boot_pages"] == 4096
    assert "nr_page_table_pages" in counters


@pytest.mark.parametrize("name", recorded("slabinfo.txt"))
def test_slabinfo_recorded(name: str) -> None:
    caches = {cache.name: cache for cache in parse_slabinfo(read(name, "slabinfo.txt"))}
    assert caches["kmalloc-4k"].objsize == 4096
    assert all(cache.active_objs <= cache.num_objs for cache in caches.values())


def test_slabinfo_values_and_odd_names() -> None:
    text = SLAB + SLAB_ROW + SLAB_ROW.replace("kmalloc-8k", "a b : c ")
    assert parse_slabinfo(text) == (SlabCache("kmalloc-8k", 156, 156, 8192), SlabCache("a b : c", 156, 156, 8192))
    assert parse_slabinfo(SLAB) == ()


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (parse_meminfo, "", "no MemTotal"),
        (parse_meminfo, "MemFree:  1 kB\n", "no MemTotal"),
        (parse_meminfo, "MemTotal:  1 kB\nMemTotal:  1 kB\n", "MemTotal twice"),
        (parse_meminfo, "MemTotal:  1\n", "not 'MemTotal: <number> kB'"),
        (parse_meminfo, "MemTotal:  -1 kB\n", "not 'MemTotal: <number> kB'"),
        (parse_meminfo, "MemTotal:  1 MB\n", "not 'MemTotal: <number> kB'"),
        (parse_meminfo, "MemTotal:  ٣ kB\n", "not 'MemTotal: <number> kB'"),
        (parse_meminfo, f"MemTotal:  {'9' * 5000} kB\n", "is not an unsigned 64-bit number"),
        (parse_meminfo, "MemTotal:  1 kB", "ends in the middle of a line"),
        (parse_vmstat, "", "no nr_free_pages"),
        (parse_vmstat, "nr_free_pages 1\nnr_free_pages 1\n", "no nr_free_pages"),
        (parse_vmstat, "nr_free_pages  1\n", "no nr_free_pages"),
        (parse_vmstat, "nr_free_pages -1\n", "no nr_free_pages"),
        (parse_vmstat, f"nr_free_pages {1 << 64}\n", "is not an unsigned 64-bit number"),
        (parse_slabinfo, "", "not the header of slabinfo"),
        (parse_slabinfo, HEADER[0] + "\n", "the header does not have the columns <active_objs>"),
        (parse_slabinfo, SLAB.replace("<objsize>", "<size>"), "the header does not have the columns <active_objs>"),
        (parse_slabinfo, SLAB + "cache 1 2 3 4 5\n", "it does not have the columns of the header"),
        (parse_slabinfo, SLAB + SLAB_ROW.replace("kmalloc-8k", ""), "expected 5 numbers behind a cache's name"),
        (parse_slabinfo, SLAB + SLAB_ROW.replace("8192", "x"), "is not an unsigned 64-bit number"),
        (parse_slabinfo, SLAB + SLAB_ROW.replace("slabdata", ""), "it does not have the columns of the header"),
    ],
)
def test_refusals(parse: Callable[[str], Any], text: str, why: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert why in str(caught.value)
