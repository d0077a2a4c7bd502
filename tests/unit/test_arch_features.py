# SPDX-License-Identifier: GPL-2.0-or-later
"""Probed features of a kernel: command lines split like the kernel does, options, and the resulting fields."""

from __future__ import annotations

from pathlib import Path

import model_guest
import pytest
from model_guest import ARM64_4K, KINDS

from harness.arch import ARM64, RISCV64
from harness.arch.bootwords import BootWords
from harness.arch.config_queries import NO_CONFIG, Build
from harness.arch.features import OPTIMIZE_HUGETLB, PAGETYPEINFO, KernelFeatures, features_of
from harness.collect.snapshot_folder import load_facts
from harness.state import NotObserved

FIXTURES = Path(__file__).parent / "fixtures"
STRICT = {"STRICT_KERNEL_RWX": "y"}


def features(**changes: object) -> KernelFeatures:
    return features_of(model_guest.facts(**changes))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("quiet  root=/dev/vda\trw\n", (("quiet", None), ("root", "/dev/vda"), ("rw", None))),
        ("a=b=c x= =y", (("a", "b=c"), ("x", ""), ("=y", None))),
        ('log="two words" "name=also two" tail', (("log", "two words"), ("name", "also two"), ("tail", None))),
        ('a="b c"d e"f g"', (("a", 'b c"d'), ('e"f g"', None))),
        ("rodata=off -- rodata=on", (("rodata", "off"),)),
        ("--=x y", (("--", "x"), ("y", None))),
    ],
)
def test_a_command_line_is_split_as_the_kernel_splits_it(text: str, words: tuple[tuple[str, str | None], ...]) -> None:
    assert BootWords.of(text).words == words


def test_dashes_and_underscores_are_alike_and_the_last_word_wins() -> None:
    words = BootWords.of("debug-pagealloc=on debug_pagealloc=off rodata=on rodata=nonsense")
    assert words.values("debug_pagealloc") == ("on", "off")
    assert words.switch("debug-pagealloc", True) is False
    assert words.chosen("rodata", ("on", "off")) == "on"
    assert words.chosen("rodat", ("on", "off")) is None


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", True),
        ("x", True),
        ("x=", True),
        ("x=maybe", True),
        ("x=no", False),
        ("x=OFF", False),
        ("x=0x", False),
        ("x=false x=bogus", False),
        ("x=off x=1", True),
    ],
)
def test_a_switch_is_read_as_the_kernel_reads_it(text: str, state: bool) -> None:
    assert BootWords.of(text).switch("x", True) is state


def test_a_switch_that_only_some_kernels_read_is_not_observed() -> None:
    for value in ("enable", "Disabled"):
        found = BootWords.of(f"x={value}").switch("x", True)
        assert isinstance(found, NotObserved) and value in found.reason
    assert BootWords.of("x").switch("x", False, bare=True) is True


def test_options_are_read_in_one_place() -> None:
    build = Build({"A": "y", "B": "m", "N": "0x10", "T": "text"})
    assert build.has("A") is True and build.has("B") is False and build.has("C", "A") is True
    assert build.lacking(("A", "B", "C")) == ("C",)
    assert build.number("N") == 16 and build.number("C") is None
    assert build.number("T") == NotObserved("CONFIG_T is not a number: 'text'")
    assert {Build(None).has("A"), Build(None).lacking(("A",)), Build(None).number("A")} == {NO_CONFIG}


@pytest.mark.parametrize(
    ("kind", "config", "length", "order"),
    [
        (ARM64_4K, {"HUGETLB_PAGE": "y"}, 11, 9),
        (ARM64_4K, {}, 11, 10),
        # Up to v6.3 the limit is exclusive: 11 means 10.
        (ARM64_4K, {"ARCH_FORCE_MAX_ORDER": "11"}, 11, 10),
        (ARM64_4K, {"HUGETLB_PAGE": "y"}, 8, 7),
        (ARM64_4K, {"HUGETLB_PAGE": "y", "PAGE_BLOCK_MAX_ORDER": "8"}, 11, 8),
        (ARM64_4K, {"PAGE_BLOCK_MAX_ORDER": "9"}, 11, 9),
        (KINDS[2], {"HUGETLB_PAGE": "y"}, 12, 11),
        (KINDS[3], {"HUGETLB_PAGE": "y"}, 14, 13),
    ],
)
def test_the_size_of_a_pageblock_follows_from_options(
    kind: model_guest.Kind, config: dict[str, str], length: int, order: int
) -> None:
    note = model_guest.note(kind) | {"LENGTH(zone.free_area)": str(length)}
    found = features_of(model_guest.facts(kind, config=config, vmcoreinfo=note))
    assert (found.max_order, found.pageblock_order) == (length - 1, order)


def test_the_kernel_itself_tells_the_size_of_a_pageblock() -> None:
    told = features(config=None, files={PAGETYPEINFO: "Page block order: 8"})
    assert told.pageblock_order == 8
    garbled = features(files={PAGETYPEINFO: "Page block order: 99"})
    assert garbled.pageblock_order == 9


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config": None}, "configuration is unknown"),
        ({"config": {"TRANSPARENT_HUGEPAGE": "y"}}, "count only since v6.11"),
        ({"config": {}, "vmcoreinfo": {"OSRELEASE": "6.12"}}, r"LENGTH(zone.free_area)"),
        ({"config": {}, "vmcoreinfo": NotObserved("no kcore")}, "no kcore"),
        ({"config": {"PAGE_BLOCK_MAX_ORDER": "many"}}, "CONFIG_PAGE_BLOCK_MAX_ORDER is not a number: 'many'"),
    ],
)
def test_the_size_of_a_pageblock_is_never_a_guess(changes: dict[str, object], why: str) -> None:
    found = features(**changes).pageblock_order
    assert isinstance(found, NotObserved) and why in found.reason


@pytest.mark.parametrize(
    ("release", "config", "folds"),
    [
        ("6.12.117", {"ARCH_WANT_OPTIMIZE_DAX_VMEMMAP": "y"}, True),
        ("6.12.117", {"SPARSEMEM_VMEMMAP": "y"}, False),
        ("6.5-rc1", {"SPARSEMEM_VMEMMAP": "y"}, False),
        ("6.1.176-memhp", {"SPARSEMEM_VMEMMAP": "y"}, True),
        ("6.1.0-50-arm64", {"SPARSEMEM_VMEMMAP": "y"}, True),
        ("6.1.176", {}, False),
        ("5.15.2", {"SPARSEMEM_VMEMMAP": "y"}, False),
        ("6.4.3", {"SPARSEMEM_VMEMMAP": "y"}, "the device-dax memmap of 6.4.3 is unknown"),
        ("next", {"SPARSEMEM_VMEMMAP": "y"}, "'next' is not a version"),
    ],
)
def test_whether_the_memmap_of_device_dax_is_folded(release: str, config: dict[str, str], folds: bool | str) -> None:
    found = features(release=release, config=config).folds_dax
    assert found is folds if isinstance(folds, bool) else isinstance(found, NotObserved) and folds in found.reason


def test_which_memory_can_hold_its_own_struct_pages() -> None:
    assert features(release="6.7.12").splits_self_hosted is False
    assert features(release="6.8-rc1").splits_self_hosted is True
    assert isinstance(features(release="next").splits_self_hosted, NotObserved)


@pytest.mark.parametrize(
    ("config", "cmdline", "file", "folds"),
    [
        ({}, "hugetlb_free_vmemmap=on", None, False),
        ({"HUGETLB_PAGE_OPTIMIZE_VMEMMAP": "y"}, "", None, False),
        ({"HUGETLB_PAGE_OPTIMIZE_VMEMMAP": "y"}, "hugetlb_free_vmemmap=on", None, True),
        ({"HUGETLB_PAGE_OPTIMIZE_VMEMMAP": "y"}, "hugetlb-free-vmemmap=1", None, True),
        ({"HUGETLB_PAGE_OPTIMIZE_VMEMMAP": "y"}, "hugetlb_free_vmemmap=on", "0", False),
        (None, "", "1", True),
        (None, "", "none", False),
    ],
)
def test_folding_of_huge_pages(config: dict[str, str] | None, cmdline: str, file: str | None, folds: bool) -> None:
    files = {} if file is None else {PAGETYPEINFO: "Page block order: 9", OPTIMIZE_HUGETLB: file}
    if file == "none":
        # If the files were read, a missing one is information, too.
        del files[OPTIMIZE_HUGETLB]
    assert features(config=config, cmdline=cmdline, files=files).folds_hugetlb is folds


@pytest.mark.parametrize(
    ("config", "cmdline", "on"),
    [
        ({}, "debug_pagealloc=on", False),
        ({"DEBUG_PAGEALLOC": "y"}, "", False),
        ({"DEBUG_PAGEALLOC": "y"}, "debug_pagealloc=on", True),
        # early_debug_pagealloc: a parameter without a value is an error and has no effect.
        ({"DEBUG_PAGEALLOC": "y"}, "debug_pagealloc", False),
        ({"DEBUG_PAGEALLOC": "y", "DEBUG_PAGEALLOC_ENABLE_DEFAULT": "y"}, "debug_pagealloc=bogus", True),
        ({"DEBUG_PAGEALLOC": "y", "DEBUG_PAGEALLOC_ENABLE_DEFAULT": "y"}, "debug-pagealloc=0", False),
    ],
)
def test_debug_pagealloc(config: dict[str, str], cmdline: str, on: bool) -> None:
    found = features(config=config, cmdline=cmdline)
    assert found.debug_pagealloc is on
    assert found.hides_pages is on
    assert features(config={**config, "KFENCE": "y"}, cmdline=cmdline).hides_pages is True


@pytest.mark.parametrize(
    ("config", "cmdline", "lax"),
    [
        (STRICT, "", False),
        (STRICT, "rodata=off", True),
        (STRICT, "rodata=off rodata=noalias", False),
        (STRICT, "rodata=0", False),
        ({}, "rodata=full", True),
    ],
)
def test_only_some_kernels_leave_their_image_writable_and_executable(
    config: dict[str, str], cmdline: str, lax: bool
) -> None:
    assert features(config=config, cmdline=cmdline).lax_image is lax


def test_an_image_tells_what_the_kernel_does() -> None:
    image = {"splits a leaf entry in linear map": True, "Boot memory [%lx %lx] offlining attempted": False}
    found = features(image=image)
    assert (found.keeps_spanned_blocks, found.keeps_boot_memory) == (True, False)
    assert isinstance(found.shares_tails, NotObserved) and "no BTF" in found.shares_tails.reason
    assert features(image=image | {"zone.vmemmap_tails": False}).shares_tails is False
    assert features(config=None, image=image | {"BUG: KASAN: ": False}).shadow is None
    assert isinstance(features(config=None, image=image | {"BUG: KASAN: ": True}).shadow, NotObserved)


def test_kasan() -> None:
    assert features(config={"KASAN_HW_TAGS": "y"}).pointer_tag == 0xFF << 56
    assert features(config={"KASAN_GENERIC": "y", "KASAN_SHADOW_OFFSET": "0xdfff800000000000"}).pointer_tag == 0
    assert features(config={"KASAN_HW_TAGS": "y"}).shadow is None
    missing = features(config={"KASAN_GENERIC": "y"}).shadow
    assert missing == NotObserved("KASAN's shadow cannot be computed: no CONFIG_KASAN_SHADOW_OFFSET")


def test_without_a_configuration_nothing_that_follows_from_it_is_known() -> None:
    found = features(config=None)
    unknown = (found.pmem_api, found.keeps_meminfo, found.folds_dax, found.lax_image, found.shadow, found.pciehp)
    assert all(isinstance(field, NotObserved) for field in unknown)


@pytest.mark.parametrize("facts", sorted(FIXTURES.rglob("facts")), ids=lambda path: path.parent.name)
def test_recorded_kernels_leave_nothing_open(facts: Path) -> None:
    arch = RISCV64 if "riscv64" in str(facts) else ARM64
    kernel = load_facts(facts, arch)
    found = features_of(kernel)
    open_fields = [name for name in KernelFeatures.__slots__ if isinstance(getattr(found, name), NotObserved)]
    splits = [] if arch is RISCV64 else ["splits_linear_map"]
    # Most recordings do not include the image, and the one that does has no BTF.
    unkept = ["keeps_spanned_blocks", *splits, "keeps_boot_memory"] if isinstance(kernel.image, NotObserved) else []
    assert open_fields == [*unkept, "shares_tails"]
