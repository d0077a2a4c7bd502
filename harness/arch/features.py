# SPDX-License-Identifier: GPL-2.0-or-later
"""The behaviour of one booted kernel: the only place that knows how kernels differ, and how to probe each difference.

A field is probed from the kernel's configuration, vmcoreinfo note, command line, or files. The comment of a field says
since when its rule holds; the version is for the reader, never for the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_type_hints

from harness.arch.bootwords import BootWords
from harness.arch.config_queries import Build
from harness.arch.kernel_layout import riscv64_shadow
from harness.arch.modes import arm64_bits
from harness.release import parse_release
from harness.state import KernelFacts, NotObserved
from harness.units import TOP, AddrRange

#: the first line of /proc/pagetypeinfo (pagetypeinfo_show, mm/vmstat.c): unchanged since v2.6.24
PAGETYPEINFO = "/proc/pagetypeinfo"
#: the state of hugetlb_optimize_vmemmap, since v5.19
OPTIMIZE_HUGETLB = "/proc/sys/vm/hugetlb_optimize_vmemmap"

_SPLITS_LEAF = "splits a leaf entry in linear map"
#: by architecture, what only kernels that split it say; None: all do
_SPLITS_MAP = {"arm64": "Failed to split linear map", "riscv64": None}
_BOOT_MEMORY = "Boot memory [%lx %lx] offlining attempted"
_KASAN_REPORT = "BUG: KASAN: "
_VMEMMAP_TAILS = "zone.vmemmap_tails"
#: evidence searched in a kernel's image: texts, and members of structures
IMAGE_TEXTS = (_SPLITS_LEAF, *filter(None, _SPLITS_MAP.values()), _BOOT_MEMORY, _KASAN_REPORT)
IMAGE_MEMBERS = (_VMEMMAP_TAILS,)


@dataclass(frozen=True, slots=True)
class KernelFeatures:
    """The behaviour of this kernel. A field that could not be probed is NotObserved with the reason, never a guess.

    ``build`` and ``words`` are its configuration and its command line, which most probes read.
    """

    build: Build
    words: BootWords

    #: Pages of the buddy allocator's largest block, as a power of two: LENGTH(zone.free_area) less one. The option
    #: ARCH_FORCE_MAX_ORDER is not reliable: it was exclusive up to v6.3 (23baf831a32c, v6.4).
    max_order: int | NotObserved
    #: Pages of a pageblock, as a power of two, as /proc/pagetypeinfo says. Without huge pages it is the largest block;
    #: transparent ones count since v6.11; since v6.17 CONFIG_PAGE_BLOCK_MAX_ORDER is a limit (e13e7922d034).
    pageblock_order: int | NotObserved
    #: True if pmem is mapped write-back (ARCH_MEMREMAP_PMEM, include/linux/io.h): arm64 with ARM64_PMEM, since v4.14.
    pmem_api: bool | NotObserved
    #: True if the kernel remembers the nodes described by firmware (mm/numa_memblks.c since v6.12, else phys_to_node).
    keeps_meminfo: bool | NotObserved
    #: True if struct pages of device-dax compound pages are folded (4917f55b4ef9, v5.19): by an option of its own since
    #: v6.5 (0b6f15824cc7, vmemmap_can_optimize in include/linux/mm.h), which riscv64 selects since v6.11, arm64 never;
    #: up to v6.2 wherever struct pages lie in vmemmap (__populate_section_memmap, mm/sparse-vmemmap.c, v6.1).
    folds_dax: bool | NotObserved
    #: True if added memory of several blocks can hold its own struct pages, each block its own; else of one block alone
    #: (create_altmaps_and_memory_blocks, mm/memory_hotplug.c; 6b8f0798b85a, v6.8).
    splits_self_hosted: bool | NotObserved
    #: True if the struct pages of huge pages are folded (HVO, f41f2ed43ca5, v5.14), as the sysctl says after boot.
    folds_hugetlb: bool | NotObserved
    #: True if free pages become inaccessible: debug_pagealloc, built in and on.
    debug_pagealloc: bool | NotObserved
    #: True if single pages of the linear map become inaccessible at any time: those of KFENCE's pool, which is boot
    #: memory (kfence_alloc_pool, mm/kfence/core.c), or with debug_pagealloc any.
    hides_pages: bool | NotObserved
    #: True if the kernel's own image may be writable and executable: no STRICT_KERNEL_RWX, or rodata=off.
    lax_image: bool | NotObserved
    #: The bits of a kernel pointer that are no part of an address: KASAN's tags (__tag_set, asm/memory.h of arm64).
    pointer_tag: int | NotObserved
    #: KASAN's shadow memory, None without it.
    shadow: AddrRange | NotObserved | None
    #: True if BPF code may be compiled unasked: all of it, or programs besides socket filters.
    unasked_jit: bool | NotObserved
    #: True if modules can come and go.
    modules: bool | NotObserved
    #: True if a block stays online if a leaf of the linear map or of vmemmap reaches beyond it: the kernel has the text
    #: of its refusal (can_unmap_without_split, arch/arm64/mm/mmu.c; 95a58852b0e5, not in v6.12, in v7.2).
    keeps_spanned_blocks: bool | NotObserved
    #: True if the linear map's larger leaves are split while the kernel runs, where the permissions of single pages
    #: change: riscv64 (split_linear_mapping, 311cd2f6e253, v6.7), and arm64 on CPUs with BBML3, whose RAM is mapped by
    #: blocks then, rodata or not (split_kernel_leaf_mapping, not in v6.12, in v7.2).
    splits_linear_map: bool | NotObserved
    #: True if boot memory never goes offline: arm64's notifier has a text for that, too (bbd6ec605c0f, v5.7).
    keeps_boot_memory: bool | NotObserved
    #: True if folded struct pages of huge pages lead to one page for each zone and order, not to the huge page's own
    #: first one: struct zone has a place for it (vmemmap_get_tail, mm/hugetlb_vmemmap.c, not in v6.12, in v7.2).
    shares_tails: bool | NotObserved
    #: True if PCIe slots are powered by pciehp; without it the guest does not notice plugged devices.
    pciehp: bool | NotObserved


#: the features that a kernel has or has not, as files name them: pmem-api
YES_OR_NO = tuple(
    name.replace("_", "-") for name, kind in get_type_hints(KernelFeatures).items() if kind == bool | NotObserved
)


def features_of(facts: KernelFacts) -> KernelFeatures:
    """Probe one booted kernel."""
    build, words = Build(facts.config), BootWords.of(facts.cmdline)
    debug_pagealloc = _debug_pagealloc(build, words)
    max_order = _max_order(facts)
    return KernelFeatures(
        build=build,
        words=words,
        max_order=max_order,
        pageblock_order=_pageblock_order(facts, build, max_order),
        pmem_api=build.has("ARCH_HAS_PMEM_API"),
        keeps_meminfo=build.has("NUMA_KEEP_MEMINFO"),
        folds_dax=_folds_dax(facts, build),
        splits_self_hosted=_since(facts, (6, 8)),
        folds_hugetlb=_folds_hugetlb(facts, build, words),
        debug_pagealloc=debug_pagealloc,
        hides_pages=debug_pagealloc is True or build.has("KFENCE"),
        lax_image=_lax_image(build, words),
        pointer_tag=_pointer_tag(build),
        shadow=_shadow(facts, build),
        unasked_jit=_unasked_jit(build),
        modules=build.has("MODULES"),
        keeps_spanned_blocks=_in_image(facts, _SPLITS_LEAF),
        splits_linear_map=_in_image(facts, _SPLITS_MAP[facts.arch]),
        keeps_boot_memory=_in_image(facts, _BOOT_MEMORY),
        shares_tails=_in_image(facts, _VMEMMAP_TAILS),
        pciehp=build.has("HOTPLUG_PCI_PCIE"),
    )


def _all(*answers: bool | NotObserved) -> bool | NotObserved:
    """True if all are true; False if any is False, whatever else is unknown."""
    if any(answer is False for answer in answers):
        return False
    return next((answer for answer in answers if isinstance(answer, NotObserved)), True)


def _in_image(facts: KernelFacts, mark: str | None) -> bool | NotObserved:
    """Whether the image has ``mark``, if any must be asked for."""
    if mark is None:
        return True
    if isinstance(facts.image, NotObserved):
        return facts.image
    if mark not in facts.image:
        return NotObserved(f"the kernel's image has no BTF (CONFIG_DEBUG_INFO_BTF) for {mark}")
    return facts.image[mark]


def counts_memmap(facts: KernelFacts) -> bool | NotObserved:
    """Whether /proc/vmstat has nr_memmap and nr_memmap_boot: since v6.11 (mm/vmstat.c)."""
    return _since(facts, (6, 11))


def _max_order(facts: KernelFacts) -> int | NotObserved:
    if isinstance(facts.vmcoreinfo, NotObserved):
        return facts.vmcoreinfo
    length = facts.vmcoreinfo.get("LENGTH(zone.free_area)", "")
    if not length.isdecimal() or not 1 <= int(length) <= 32:
        return NotObserved("the kernel's vmcoreinfo has no plausible LENGTH(zone.free_area)")
    return int(length) - 1


def _pageblock_order(facts: KernelFacts, build: Build, max_order: int | NotObserved) -> int | NotObserved:
    order = facts.files.get(PAGETYPEINFO, "").removeprefix("Page block order: ")
    if order.isdecimal() and int(order) < 32:
        return int(order)
    limit = build.number("PAGE_BLOCK_MAX_ORDER")
    limit = max_order if limit is None else limit
    hugetlb, transparent = build.has("HUGETLB_PAGE"), build.has("TRANSPARENT_HUGEPAGE")
    for answer in (limit, hugetlb, transparent):
        if isinstance(answer, NotObserved):
            return NotObserved(f"{PAGETYPEINFO} is unknown, and {answer.reason}")
    assert isinstance(limit, int)
    if hugetlb:
        # HUGETLB_PAGE_ORDER is PMD_SHIFT less PAGE_SHIFT on both: what one table of PTEs maps.
        return min((facts.page_size // 8).bit_length() - 1, limit)
    if transparent:
        return NotObserved(f"{PAGETYPEINFO} is unknown, and transparent huge pages alone count only since v6.11")
    return limit


def _folds_dax(facts: KernelFacts, build: Build) -> bool | NotObserved:
    own, split, folds = build.has("ARCH_WANT_OPTIMIZE_DAX_VMEMMAP"), _since(facts, (6, 5)), _since(facts, (5, 19))
    if own is not False:
        return own
    # An option without a prompt is only in a .config if it is on.
    if split is not False or folds is not True:
        return folds if isinstance(split, NotObserved) else False
    if _since(facts, (6, 3)):
        return NotObserved(f"the device-dax memmap of {facts.release} is unknown")
    return build.has("SPARSEMEM_VMEMMAP")


def _since(facts: KernelFacts, branch: tuple[int, int]) -> bool | NotObserved:
    """Whether the kernel is ``branch`` or later: for behaviour without a trace in configuration, image or files."""
    release = parse_release(facts.release)
    if release is None:
        return NotObserved(f"{facts.release!r} is not a version that memhp can compare")
    return release.branch >= branch


def _folds_hugetlb(facts: KernelFacts, build: Build, words: BootWords) -> bool | NotObserved:
    setting = facts.files.get(OPTIMIZE_HUGETLB)
    if setting in ("0", "1"):
        return setting == "1"
    if PAGETYPEINFO in facts.files:
        # The files were read, and this one is missing: it exists if any size of huge pages can be folded.
        return False
    default = build.has("HUGETLB_PAGE_OPTIMIZE_VMEMMAP_DEFAULT_ON")
    # Up to about v6.13 a plain module parameter, which its bare name turns on; later an early one, which it does not:
    # where that matters, the file decides.
    wanted = words.switch("hugetlb_free_vmemmap", default, bare=True)
    return _all(build.has("HUGETLB_PAGE_OPTIMIZE_VMEMMAP"), wanted)


def _debug_pagealloc(build: Build, words: BootWords) -> bool | NotObserved:
    """early_debug_pagealloc, mm/debug_page_alloc.c."""
    default = build.has("DEBUG_PAGEALLOC_ENABLE_DEFAULT")
    return _all(build.has("DEBUG_PAGEALLOC"), words.switch("debug_pagealloc", default))


def _lax_image(build: Build, words: BootWords) -> bool | NotObserved:
    """set_debug_rodata (init/main.c): ``full`` is arm64's up to v6.17, ``noalias`` since; both are strict."""
    strict = build.has("STRICT_KERNEL_RWX")
    if strict is False:
        return True
    # A kernel ignores a word that it does not know.
    state = words.chosen("rodata", ("on", "off", "full", "noalias"))
    return state == "off" if state is not None else (strict if isinstance(strict, NotObserved) else False)


def _pointer_tag(build: Build) -> int | NotObserved:
    tagged = build.has("KASAN_SW_TAGS", "KASAN_HW_TAGS")
    return tagged if isinstance(tagged, NotObserved) else (0xFF << 56 if tagged else 0)


def _unasked_jit(build: Build) -> bool | NotObserved:
    return _all(build.has("BPF_JIT"), build.has("BPF_JIT_DEFAULT_ON", "BPF_SYSCALL"))


def _shadow(facts: KernelFacts, build: Build) -> AddrRange | NotObserved | None:
    found = kasan_shadow(facts.arch, facts.vmcoreinfo, build)
    # Tags in hardware have no shadow, but the same reports.
    absent = isinstance(found, NotObserved) and _in_image(facts, _KASAN_REPORT) is False
    return None if absent else found


def kasan_shadow(arch: str, note: Mapping[str, str] | NotObserved, build: Build) -> AddrRange | NotObserved | None:
    """KASAN's shadow memory, None without it: ``KernelFeatures.shadow``."""
    scales, place = _SHADOWS[arch]
    kind = None
    for option in scales:
        answer = build.has(option)
        if isinstance(answer, NotObserved):
            return answer
        if answer:
            kind = option
    if kind is None:
        return None
    if isinstance(note, NotObserved):
        return note
    try:
        return place(note, build, scales[kind])
    except (KeyError, ValueError) as error:
        return NotObserved(f"KASAN's shadow cannot be computed: {error}")


def _arm64_shadow(note: Mapping[str, str], build: Build, scale: int) -> AddrRange:
    """KASAN_SHADOW_START, arch/arm64/include/asm/memory.h (v6.1 to v7.3)."""
    offset = build.number("KASAN_SHADOW_OFFSET")
    if not isinstance(offset, int):
        raise ValueError("no CONFIG_KASAN_SHADOW_OFFSET" if offset is None else offset.reason)
    end = ((1 << 64 - scale) + offset) % TOP
    return AddrRange(end - (1 << arm64_bits(note) - scale), end)


_Shadow = Callable[[Mapping[str, str], Build, int], AddrRange]
#: architecture -> KASAN_SHADOW_SCALE_SHIFT by option, and where the shadow is; raises KeyError, ValueError
_SHADOWS: Mapping[str, tuple[Mapping[str, int], _Shadow]] = {
    "arm64": ({"KASAN_GENERIC": 3, "KASAN_SW_TAGS": 4}, _arm64_shadow),
    "riscv64": ({"KASAN_GENERIC": 3}, lambda note, build, scale: riscv64_shadow(note)),
}
