# SPDX-License-Identifier: GPL-2.0-or-later
"""What must be observed: everything that the kernel under test can show, since "not observed" is never a pass.

What a kernel cannot show follows from its configuration, its version and how it was booted, not from what a snapshot
happens to lack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from harness.arch.config_queries import NO_CONFIG
from harness.arch.features import counts_memmap
from harness.check.counters import SLAB
from harness.check.crosscheck import untimed_log
from harness.check.findings import CheckResult
from harness.check.registry import CATALOGUE
from harness.model.boot_layout import BootLayout
from harness.state import LEFT_OUT, GuestState, NotObserved

#: why a kernel cannot show something, "" if it can
_Lack = Callable[[BootLayout], str]


def _unless_seen(seen: Callable[[GuestState], object], lack: _Lack) -> _Lack:
    """Whatever the first look after boot observed, the kernel can show."""
    return lambda layout: lack(layout) if isinstance(seen(layout.baseline), NotObserved) else ""


def _option(name: str) -> _Lack:
    """A required configuration option; without a known configuration, only the first look decides."""

    def lack(layout: BootLayout) -> str:
        value = layout.features.build.value(name)
        if isinstance(value, NotObserved):
            return value.reason
        return "" if value == "y" else f"the kernel has no CONFIG_{name}"

    return lack


def _ptdump(layout: BootLayout) -> str:
    words = layout.features.words
    if words.chosen("debugfs", ("on", "off", "no-mount")) == "off":
        return "the kernel was booted with debugfs=off"
    # debugfs_locked_down (fs/debugfs/file.c): the file is not readable by all.
    if words.chosen("lockdown", ("integrity", "confidentiality")) is not None:
        return "the kernel was booted with lockdown"
    return _option("PTDUMP_DEBUGFS")(layout)


def _walk(layout: BootLayout) -> str:
    if not isinstance(layout.facts.vmcoreinfo, NotObserved):
        return ""
    if layout.features.words.chosen("lockdown", ("integrity", "confidentiality")) == "confidentiality":
        return "the kernel was booted with lockdown=confidentiality"
    return _option("PROC_KCORE")(layout)


def _sections(layout: BootLayout) -> str:
    # Without a known configuration, the kernel may or may not have BTF, which is sufficient.
    return _walk(layout) or (NO_CONFIG.reason if layout.facts.config is None else "")


def _subsections(layout: BootLayout) -> str:
    return _sections(layout) or _option("SPARSEMEM_VMEMMAP")(layout)


def _count(layout: BootLayout) -> str:
    return _walk(layout) or _option("KALLSYMS_ALL")(layout)


def _counted(state: GuestState) -> object:
    return state.host_tables if isinstance(state.host_tables, NotObserved) else state.host_tables.count


def _memmap_counters(layout: BootLayout) -> str:
    counters = layout.baseline.counters
    counted = not isinstance(counters, NotObserved) and any(name.startswith("nr_memmap") for name in counters)
    return "" if counted or counts_memmap(layout.facts) is True else "the kernel has no nr_memmap (since v6.11)"


def _slabs(layout: BootLayout) -> str:
    slabs = layout.baseline.slabs
    if not isinstance(slabs, NotObserved) and any(slab.name == SLAB for slab in slabs):
        return ""
    words, merges = layout.features.words, layout.features.build.has("SLAB_MERGE_DEFAULT")
    if merges is True and not words.values("slab_nomerge") and not words.values("slub_nomerge"):
        return "the kernel merges its caches (CONFIG_SLAB_MERGE_DEFAULT without slab_nomerge)"
    return _option("SLUB_DEBUG")(layout)


def _first_look(seen: Callable[[GuestState], object]) -> _Lack:
    """For what takes the layouts of types, which the kernel may have beside its image: the first look tells."""

    def lack(layout: BootLayout) -> str:
        value = seen(layout.baseline)
        return value.reason if isinstance(value, NotObserved) else ""

    return lack


#: what a kernel may lack, by the word that an invariant ``needs``
_LACKS: Mapping[str, _Lack] = {
    "hotplug": _unless_seen(lambda state: state.blocks, _option("MEMORY_HOTPLUG")),
    "log": _unless_seen(lambda state: state.dmesg, _option("PRINTK")),
    "slabs": _slabs,
    "ptdump": _unless_seen(lambda state: state.page_tables, _ptdump),
    "walk": _unless_seen(lambda state: state.host_tables, _walk),
    # Without vmcoreinfo the addresses of ptdump have no meaning.
    "tables": _walk,
    "counted-tables": _unless_seen(_counted, _count),
    "host-iomem": _first_look(lambda state: state.records.iomem),
    "host-log": lambda layout: untimed_log(layout) or _first_look(lambda state: state.records.log)(layout),
    "sections": _unless_seen(lambda state: state.sections, _sections),
    "struct-pages": _unless_seen(lambda state: state.struct_pages, _sections),
    "subsections": _subsections,
    "memmap-counters": _memmap_counters,
    "host-blocks": _first_look(lambda state: state.records.blocks),
    "host-zones": _first_look(lambda state: state.records.zones),
    "host-counters": _first_look(lambda state: state.records.vmstat),
    "host-total": _first_look(lambda state: state.records.meminfo),
}


def lacks_of(layout: BootLayout) -> dict[str, str]:
    """Why this kernel cannot show the sources of an invariant, by invariant; observable ones are omitted."""
    lacks = {need: lack(layout) for need, lack in _LACKS.items()}
    found = {item.id: "; ".join(filter(None, map(lacks.__getitem__, item.needs))) for item in CATALOGUE.values()}
    return {id: why for id, why in found.items() if why}


@dataclass(frozen=True, slots=True)
class Demand:
    """What the user wants of the observation: ``require`` even if the kernel cannot show it, and at least once in a
    run; ``allowed`` to be unobserved even if it can.
    """

    require: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()

    def unmet(self, checks: Iterable[CheckResult], layout: BootLayout, state: GuestState) -> tuple[str, ...]:
        """Those of one step's ``checks`` of ``state`` that had to be observed and were not, each with its reason.

        What a fast look left out is judged at the full looks.
        """
        left = {LEFT_OUT} if state.left_out else set()
        unseen = [check for check in checks if check.status == "not-observed" and check.invariant not in self.allowed]
        unseen = [check for check in unseen if check.reason not in left]
        if not unseen:
            return ()
        lacks, unknown = lacks_of(layout), _unknown_features(layout)
        return tuple(
            f"{check.invariant} ({check.reason})"
            for check in unseen
            if check.invariant in self.require or (check.invariant not in lacks and check.reason not in unknown)
        )

    def never(self, steps: Iterable[Iterable[CheckResult]]) -> tuple[str, ...]:
        """The required invariants that were observed in none of the ``steps``."""
        seen = {check.invariant for checks in steps for check in checks if check.status != "not-observed"}
        return tuple(id for id in CATALOGUE if id in self.require - seen)


def _unknown_features(layout: BootLayout) -> set[str]:
    """The reasons why features of this kernel are unknown: these come from its build, not from a snapshot."""
    features = layout.features
    answers = [getattr(features, field.name) for field in dataclasses.fields(features)]
    return {answer.reason for answer in answers if isinstance(answer, NotObserved)}
