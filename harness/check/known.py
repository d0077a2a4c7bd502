# SPDX-License-Identifier: GPL-2.0-or-later
"""Known kernel bugs: which of them a kernel has, and whether the findings of a step are exactly one of them.

A bug is recognised wherever its whole signature matches on a kernel that may have it, whether the step names it or not.
It explains only what its signature covers: with one more finding, or a counter that is off by another amount, the step
fails as if there were no known bug. A partially matching signature explains nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.arch.features import features_of
from harness.arch.modes import VA_BITS
from harness.check.backtrace import first_backtrace, frame_function
from harness.check.bugs import Conditions, KnownBug, Sign
from harness.check.evidence import Evidence
from harness.check.findings import CheckResult, Finding
from harness.check.patterns import matches
from harness.release import parse_release
from harness.state import KernelFacts, NotObserved
from harness.units import AddrRange, merge_ranges

_RANGE = re.compile(r"\b([0-9a-f]{4,16})-([0-9a-f]{4,16})\b")
_NUMBER = re.compile(r"-?[0-9]+")
#: time stamp and caller before a line of the console
_PREFIX = re.compile(r"(?:<[0-9]+>)?\[ *[0-9]+\.[0-9]{6}\](?:\[ *[TC][0-9]+\])? ")
#: lines around every report in the kernel log (kernel/panic.c, lib/bug.c, arch/*/kernel/traps.c)
_FRAME = re.compile(
    r"-+\[ cut here \]-+|---\[ end trace(?: [0-9a-f]+)? \]---|Internal error: Oops - BUG: .*|Kernel BUG \[#1\]"
    r"|Kernel panic - not syncing: (?:Oops - BUG: )?Fatal exception.*|---\[ end Kernel panic .*"
)
#: a hung-task report (check_hung_task, kernel/hung_task.c)
_WAITS = re.compile(r"INFO: task .* blocked for more than [0-9]+ seconds\.")
#: uname of Debian's kernels before trixie, without their patch level: 6.1.0-41-arm64
_NO_PATCH = re.compile(r"[0-9]+\.[0-9]+\.0-[0-9]+-")


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a kernel ``has`` a bug (None: unknown), and ``why``."""

    bug: KnownBug
    has: bool | None
    why: str


def standing(bug: KnownBug, facts: KernelFacts) -> Standing:
    """Tell whether the kernel has ``bug``: by architecture, conditions and version."""
    if facts.arch not in bug.arches:
        return Standing(bug, False, f"the bug is on {', '.join(bug.arches)} only")
    held, why = _held(bug.when, facts)
    if held is False:
        return Standing(bug, False, why)
    by_version = _by_version(bug, facts.release)
    if by_version.has is False or held:
        return by_version
    return Standing(bug, None, why)


def _held(when: Conditions, facts: KernelFacts) -> tuple[bool | None, str]:
    """Whether the conditions hold; None and why if one of them was not observed and no other fails."""
    if when.page_sizes and facts.page_size not in when.page_sizes:
        sizes = ", ".join(map(str, when.page_sizes))
        return False, f"the bug needs pages of {sizes} bytes, this kernel has {facts.page_size}"
    features, unknown = features_of(facts), ""
    for word in when.cmdline:
        if not features.words.values(word):
            return False, f"the bug needs {word} on the command line"
    if when.va_bits:
        bits = _va_bits(facts)
        if bits is None:
            unknown = "the number of virtual address bits was not observed"
        elif bits not in when.va_bits:
            wanted_bits = ", ".join(map(str, when.va_bits))
            return False, f"the bug needs {wanted_bits} virtual address bits, this kernel has {bits}"
    for option, wanted in when.config.items():
        value = features.build.value(option)
        if isinstance(value, NotObserved):
            unknown = value.reason
        elif value != wanted:
            return False, f"the bug needs CONFIG_{option}={wanted}, this kernel has {value}"
    for name, needed in when.features.items():
        feature: bool | NotObserved = getattr(features, name.replace("-", "_"))
        if isinstance(feature, NotObserved):
            unknown = feature.reason
        elif feature is not needed:
            takes, has = ("", "lacks") if needed else ("no ", "has")
            return False, f"the bug needs {takes}{name}, which this kernel {has}"
    return (None, unknown) if unknown else (True, "")


def _va_bits(facts: KernelFacts) -> int | None:
    if isinstance(facts.vmcoreinfo, NotObserved):
        return None
    try:
        return VA_BITS[facts.arch](facts.vmcoreinfo)
    except (KeyError, ValueError):
        return None


def _by_version(bug: KnownBug, text: str) -> Standing:
    release = parse_release(text)
    if release is None:
        return Standing(bug, None, f"{text!r} is not a version that memhp can compare")
    if _NO_PATCH.match(text) and any(
        change.release.branch == release.branch and change.release.patch for change in (bug.since, *bug.fixed)
    ):
        return Standing(bug, None, f"{text} does not include its patch level")
    fix = bug.is_fixed(release)
    if fix is not None:
        return Standing(bug, False, f"fixed in {fix}, this is {release}")
    if release < bug.since.release:
        if bug.since.at_latest:
            return Standing(bug, None, f"there since {bug.since}, this is {release}")
        return Standing(bug, False, f"there since {bug.since}, this is {release}")
    if release > bug.checked and any(later.at_latest and release < later.release for later in bug.fixed):
        return Standing(bug, None, f"there in {bug.checked}, fixed in {', '.join(map(str, bug.fixed))}")
    return Standing(bug, True, f"there since {bug.since}")


@dataclass(frozen=True, slots=True)
class Explained:
    """``met`` are the ids of bugs whose whole signature was found; ``rest`` what none of them explains."""

    met: tuple[str, ...]
    rest: tuple[Finding, ...]


@dataclass
class _Fit:
    """A bug whose signature fits: the findings by sign, and by how much its counters are off."""

    bug: KnownBug
    found: dict[Sign, list[Finding]] = field(default_factory=dict)
    amounts: dict[Sign, int] = field(default_factory=dict)

    @property
    def explained(self) -> frozenset[int]:
        """The findings, by identity."""
        return frozenset(id(finding) for found in self.found.values() for finding in found)


def explain(bugs: Iterable[KnownBug], checks: Sequence[CheckResult], evidence: Evidence) -> Explained:
    """Match the findings of one step with the exact signatures of ``bugs``."""
    findings = [finding for check in checks for finding in check.findings]
    examined = {check.invariant for check in checks if check.status in ("pass", "fail")}
    fits = [fit for bug in bugs if (fit := _fit(bug, findings, examined, evidence)) is not None]
    # A signature that explains only a part of what another one explains is dropped.
    fits = [fit for fit in fits if not any(frozenset() < fit.explained < other.explained for other in fits)]
    while (bad := _unbalanced(fits, findings, examined)) is not None:
        fits.remove(bad)
    explained = {finding for fit in fits for finding in fit.explained}
    explained |= {id(finding) for finding in findings if any(_adds_to(fit, finding) for fit in fits)}
    explained |= _frames(findings, explained)
    rest = tuple(finding for finding in findings if id(finding) not in explained)
    return Explained(tuple(dict.fromkeys(fit.bug.id for fit in fits)), rest)


def _fit(bug: KnownBug, findings: Sequence[Finding], examined: set[str], evidence: Evidence) -> _Fit | None:
    """How the places of ``bug`` fit, None if they do not; counters are checked later, since they add up."""
    fit = _Fit(bug)
    if bug.log is not None and not any(matches(bug.log, line) for line in log_lines(evidence)):
        return None
    for sign in bug.breaks:
        if sign.more is None:
            fit.found[sign] = [finding for finding in findings if _matches(sign, finding, evidence)]
            if not fit.found[sign] and not sign.optional and sign.invariant in examined:
                return None
    for sign, found in fit.found.items():
        if found and not _measured(sign, found, fit, evidence):
            return None
    for sign in bug.breaks:
        if sign.more is not None and _is_counted(sign, evidence):
            if sign.verbs and not any(_in_step(sign.verbs, finding.step) for finding in findings):
                return None
            amount = sign.more.count or _memmap_pages(fit, sign.more.of, evidence)
            if not amount:
                return None
            fit.amounts[sign] = amount
    places = any(fit.found.values())
    return fit if places or (fit.amounts and not fit.found) else None


def _is_counted(sign: Sign, evidence: Evidence) -> bool:
    """Whether this kernel has the counter: 6.1 has no nr_memmap_pages."""
    vmstat = evidence.observed.counters
    if sign.invariant not in ("MEM-2", "RBK-1") or isinstance(vmstat, NotObserved):
        return True
    return any(matches(sign.where, name) for name in vmstat)


def _matches(sign: Sign, finding: Finding, evidence: Evidence) -> bool:
    if finding.invariant != sign.invariant or not matches(sign.where, finding.where):
        return False
    if sign.verbs and not _in_step(sign.verbs, finding.step):
        return False
    if sign.invariant == "LOG-1":
        line = bare(finding.observed)
        if sign.function and re.search(rf"\b{re.escape(sign.function)}\+0x", line) is None:
            return False
        return sign.says is None or matches(sign.says, line)
    if sign.says is not None and not matches(sign.says, f"{finding.expected} -> {finding.observed}"):
        return False
    place = _place(finding, evidence)
    if sign.shared_leaf and (place is None or not any(leaf.covers(place) for leaf in _shared_leaves(evidence))):
        return False
    size, devices = evidence.layout.paging.section_size, evidence.expected.devices
    insides = [device.range.align_outward(size) for device in devices if device.kind == sign.inside]
    if sign.inside and (place is None or not any(inside.covers(place) for inside in insides)):
        return False
    edges = [device.range.start for device in devices if device.kind in sign.below]
    return not sign.below or (place is not None and place.end in edges)


def _in_step(verbs: Collection[str], title: str) -> bool:
    """Whether the step ``title``, possibly of several parallel steps, has one of ``verbs``."""
    return not {part.split()[0] for part in title.split(" | ") if part.strip()}.isdisjoint(verbs)


def _shared_leaves(evidence: Evidence) -> tuple[AddrRange, ...]:
    """The virtual ranges of PMD entries of vmemmap that hold struct pages of several parts of memory."""
    kernel, layout = evidence.layout.kernel, evidence.layout
    if kernel is None:
        return ()
    owners: Counter[int] = Counter()
    leaf = layout.page_size * layout.page_size // 8
    for memory in (*layout.machine.node_ranges(), *(device.range for device in evidence.expected.devices)):
        for part in memory.chunks(layout.paging.section_size):
            memmap = kernel.memmap(part)
            owners.update(range(memmap.start // leaf, -(-memmap.end // leaf)))
    return merge_ranges(AddrRange.sized(number * leaf, leaf) for number, count in owners.items() if count > 1)


def log_lines(evidence: Evidence) -> list[str]:
    """The lines of the kernel log since the last snapshot."""
    dmesg = evidence.observed.dmesg
    return [] if isinstance(dmesg, NotObserved) else [line.text for line in dmesg]


def bare(line: str) -> str:
    """A line of the log without level, time and caller."""
    match = _PREFIX.match(line)
    return line if match is None else line[match.end() :]


def _place(finding: Finding, evidence: Evidence) -> AddrRange | None:
    """The last range that the place of ``finding`` names: the physical one of a section, the virtual one of a table.

    Of a memory block it is the physical range.
    """
    block = re.fullmatch(r"memory([0-9]{1,12})", finding.where)
    if block is not None:
        return AddrRange.sized(int(block[1]) * evidence.layout.block_size, evidence.layout.block_size)
    ranges = _RANGE.findall(finding.where)
    if not ranges:
        return None
    start, last = (int(text, 16) for text in ranges[-1])
    return AddrRange(start, last + 1) if last >= start else None


def _memory(fit: _Fit, invariant: str, evidence: Evidence) -> tuple[AddrRange, ...]:
    """The physical memory in which the bug breaks ``invariant``."""
    signs = (sign for sign in fit.found if sign.invariant == invariant and sign.inside)
    places = (_place(finding, evidence) for sign in signs for finding in fit.found[sign])
    return merge_ranges(place for place in places if place is not None)


def _memmap(fit: _Fit, invariant: str, evidence: Evidence) -> tuple[AddrRange, ...]:
    kernel = evidence.layout.kernel
    return () if kernel is None else merge_ranges(map(kernel.memmap, _memory(fit, invariant, evidence)))


def _memmap_pages(fit: _Fit, invariant: str, evidence: Evidence) -> int:
    return sum(part.size for part in _memmap(fit, invariant, evidence)) // evidence.layout.page_size


def _measured(sign: Sign, findings: Sequence[Finding], fit: _Fit, evidence: Evidence) -> bool:
    """True if the places of the findings are exactly as large as required, by each witness."""
    invariant = sign.memmap_of or sign.within_memmap_of
    if not invariant:
        return True
    wanted = _memmap(fit, invariant, evidence)
    witnesses: dict[str, list[AddrRange]] = {}
    for finding in findings:
        place = _place(finding, evidence)
        if place is None:
            return False
        witnesses.setdefault(finding.source, []).append(place)
    if sign.within_memmap_of:
        return all(any(part.covers(place) for part in wanted) for places in witnesses.values() for place in places)
    return all(merge_ranges(places) == wanted for places in witnesses.values())


def _adds_to(fit: _Fit, finding: Finding) -> int:
    """By how much the bug makes the counter of ``finding`` larger, 0 if it does not touch it."""
    return sum(
        amount
        for sign, amount in fit.amounts.items()
        if finding.invariant == sign.invariant and matches(sign.where, finding.where)
    )


def _unbalanced(fits: Sequence[_Fit], findings: Sequence[Finding], examined: set[str]) -> _Fit | None:
    """A bug that would change some counter by another amount than observed."""
    for finding in findings:
        adding = [fit for fit in fits if _adds_to(fit, finding)]
        expected, observed = _NUMBER.search(finding.expected), _NUMBER.search(finding.observed)
        if not adding:
            continue
        if expected is None or observed is None:
            return adding[0]
        if int(observed[0]) - int(expected[0]) != sum(_adds_to(fit, finding) for fit in adding):
            return adding[0]
    for fit in fits:
        for sign in fit.amounts:
            there = any(matches(sign.where, one.where) and one.invariant == sign.invariant for one in findings)
            if not there and sign.invariant in examined:
                return fit
    return None


def _frames(findings: Sequence[Finding], explained: set[int]) -> set[int]:
    """The lines around reports in the log, if every report is explained."""
    log = [finding for finding in findings if finding.invariant == "LOG-1"]
    frames = {id(finding) for finding in log if _FRAME.fullmatch(bare(finding.observed))}
    reports = {id(finding) for finding in log} - frames
    return frames if reports and reports <= explained else set()


def died_of(bugs: Iterable[KnownBug], alarms: Sequence[str], trace: Sequence[str]) -> KnownBug | None:
    """The bug of which a kernel with the console lines ``alarms`` died; ``trace`` are all lines from the first one."""
    reports = [line for line in map(bare, alarms) if _FRAME.fullmatch(line) is None]
    died_in = first_backtrace(map(bare, trace))[:1]
    for bug in bugs:
        ending = bug.ends
        if ending is None or ending.how != "dead" or ending.says is None or not reports:
            continue
        if died_in != (ending.function,):
            continue
        if all(matches(ending.says, line) for line in reports):
            return bug
    return None


def hung_in(bugs: Iterable[KnownBug], title: str, stacks: Sequence[str], alarms: Sequence[str] = ()) -> KnownBug | None:
    """The bug in which the step ``title`` hangs: a task or CPU of ``stacks`` is in its function.

    ``alarms`` are the console's since: only tasks that wait for the hung one may be reported.
    """
    if not all(_WAITS.fullmatch(bare(line)) for line in alarms):
        return None
    for bug in hanging(bugs, title):
        assert bug.ends is not None
        if any(frame_function(bare(line)) == bug.ends.function for line in stacks):
            return bug
    return None


def hanging(bugs: Iterable[KnownBug], title: str) -> Iterator[KnownBug]:
    """Those of ``bugs`` in which the step ``title`` may hang."""
    for bug in bugs:
        ending = bug.ends
        if ending is not None and ending.how == "hung" and (not ending.verbs or _in_step(ending.verbs, title)):
            yield bug


def ended_by(
    bugs: Iterable[KnownBug], how: str, title: str, lines: Sequence[str], met: Sequence[str] = ()
) -> KnownBug | None:
    """The bug that made the step ``title`` end as ``how``; ``lines`` are its kernel log.

    A bug that also breaks invariants must be among those ``met``.
    """
    for bug in bugs:
        ending = bug.ends
        if ending is None or ending.how != how or (ending.verbs and not _in_step(ending.verbs, title)):
            continue
        if bug.breaks and bug.id not in met:
            continue
        if ending.says is None or any(matches(ending.says, line) for line in lines):
            return bug
    return None


@dataclass(frozen=True, slots=True)
class Watch:
    """The standings of the kernel under test; an empty one explains no finding."""

    standings: Mapping[str, Standing] = field(default_factory=dict)

    @property
    def possible(self) -> tuple[KnownBug, ...]:
        """The bugs that the kernel has, or may have."""
        return tuple(one.bug for one in self.standings.values() if one.has is not False)

    @property
    def impossible(self) -> tuple[KnownBug, ...]:
        """Those that it cannot have."""
        return tuple(one.bug for one in self.standings.values() if one.has is False)


def watch_for(bugs: Iterable[KnownBug], facts: KernelFacts) -> Watch:
    """The standings of a kernel for all ``bugs``."""
    return Watch({bug.id: standing(bug, facts) for bug in bugs})
