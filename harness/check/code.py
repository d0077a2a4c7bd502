# SPDX-License-Identifier: GPL-2.0-or-later
"""Effects of loaded code on the linear map: its pages get the code's permissions there, too, and leaves are split."""

from __future__ import annotations

from harness.check.witnesses import Pair, Views, clip, translate
from harness.model.boot_layout import BootLayout
from harness.model.expected import ExpectedState
from harness.state import HostMapping, NotObserved
from harness.units import AddrRange, merge_ranges


def moving(layout: BootLayout) -> tuple[AddrRange, ...] | None:
    """The virtual ranges of vmalloc, modules, and KASAN's shadow; None if they are unknown."""
    note, rules, shadow = layout.facts.vmcoreinfo, layout.machine.arch.table_rules, layout.features.shadow
    if isinstance(note, NotObserved) or isinstance(shadow, NotObserved):
        return None
    try:
        spaces = [AddrRange(int(note[start], 0), int(note[end], 0)) for start, end in rules.volatile]
    except (KeyError, ValueError):
        return None
    return merge_ranges(spaces if shadow is None else [*spaces, shadow])


def code_pages(layout: BootLayout, views: Views) -> tuple[AddrRange, ...]:
    """Physical pages that modules and vmalloc map read-only.

    set_memory_ro and similar functions also change the linear map of such pages (change_memory_common,
    arch/arm64/mm/pageattr.c, with rodata=full; __set_memory, arch/riscv/mm/pageattr.c; v6.12). Only the host's walk
    shows which pages they are.
    """
    pair, windows = views.walk, moving(layout)
    if isinstance(pair, NotObserved) or windows is None:
        return ()
    writable = layout.machine.arch.writable_word
    return merge_ranges(
        translate(leaf, leaf.range)
        for window in windows
        for leaf in clip(pair.now.leaves, window)
        if isinstance(leaf, HostMapping) and writable not in leaf.attrs
    )


def may_split(layout: BootLayout, expected: ExpectedState, pair: Pair) -> bool:
    """True if leaves of the linear map may have been split since boot: by a load, or by loaded or unloaded code.

    Loaded modules are visible in their mappings. BPF programs share pages, so that their splits may outlast them and
    look as after boot; this requires a kernel that compiles unasked, or programs other than socket filters.
    """
    note, features = layout.facts.vmcoreinfo, layout.features
    if isinstance(note, NotObserved) or features.splits_linear_map is False or layout.maps_pages_only is True:
        return False
    # An unknown feature may be present.
    if expected.linear_split or features.unasked_jit is not False:
        return True
    windows = moving(layout)
    if windows is None:
        return features.modules is not False
    modules = [window for window in windows if int(note["NUMBER(MODULES_VADDR)"], 0) in window]
    before, now = ([leaf for w in modules for leaf in clip(view.leaves, w)] for view in (pair.boot, pair.now))
    return before != now
