# SPDX-License-Identifier: GPL-2.0-or-later
"""``configs/known-bugs.yaml``: known kernel bugs with their exact signatures.

::

    bugs:
      pmem-altmap-too-small:              # the id: scenarios name it (`bug: ID`), reports carry it
        title: one line for people
        source: devm_memremap_pages, mm/memremap.c
        arch: [arm64]                     # optional: every architecture
        when: {page-size: [4K], va-bits: [39], config: {MEMCG: n}, cmdline: word, features: {folds-dax: true}}
                                          # optional: all of it must hold
        since: {version: "5.3", commit: 0123456789ab, at-latest: true}     # at-latest: earlier ones may have it
        fixed: [{version: 7.3.5, commit: 0123456789ab}, {version: 6.12.130}]   # optional: one for each stable branch;
                                          # at-latest: versions between checked and this one may have it or not
        checked: 7.3.4                    # the newest version in whose source it was seen
        breaks:                           # optional: what it makes false; see Sign
          - {invariant: MEM-2, where: nr_memmap_pages, more: pages of SEC-1}
        log: 'something is lost: .*'      # optional: without such a line in the step's kernel log it is another bug;
                                          # nothing can be known of the steps after it, so that it stops
        ends: {as: dead, function: __pgd_pgtable_alloc, says: 'kernel BUG at .*'}   # optional; see Ending
        stops: true                       # optional: nothing can follow on that guest
        scenario: [pmem-odd-end]          # what shows it
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from harness.arch.features import YES_OR_NO
from harness.check.findings import EXPECTATIONS
from harness.check.registry import CATALOGUE
from harness.config.guest import DEFAULT_BOOT
from harness.config.places import configs_dir
from harness.config.yaml import Reader, Value, parse, read_text
from harness.model.devices.device import KINDS
from harness.release import Release, parse_release
from harness.units import format_size

T = TypeVar("T")

#: name of the file, in the configs directory and in a bundle
NAME = "known-bugs.yaml"

#: how a bug can end a step; dead: the kernel dies; hung: it never finishes
ENDINGS = (*EXPECTATIONS, "dead", "hung")

_COMMIT = re.compile(r"[0-9a-f]{12,40}")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MEASURE = re.compile(r"pages of ([A-Z]+-[0-9])|([+-]?[1-9][0-9]{0,11})")
_ANYWHERE = re.compile(".*")


@dataclass(frozen=True, slots=True)
class Change:
    """A version, and the commit (of mainline or of that branch; "" unknown) that introduced or fixed the bug.

    ``at_latest``: the versions between this one and the nearest one known to differ were not checked.
    """

    release: Release
    commit: str = ""
    at_latest: bool = False

    def __str__(self) -> str:
        text = f"{self.release} at the latest" if self.at_latest else str(self.release)
        return f"{text} ({self.commit})" if self.commit else text


@dataclass(frozen=True, slots=True)
class Measure:
    """By how much a counter is off: by ``count``, or by the pages of struct pages of the memory in which the same bug
    breaks the invariant ``of``.
    """

    count: int = 0
    of: str = ""


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that a bug breaks: findings of ``invariant`` whose place is ``where`` (a regular expression).

    Each sign must have a finding, if its invariant was observed, unless it is ``optional``: as lines of the log
    are, which only the step that meets the bug sees, and not the steps after it. ``says`` is what is expected and
    observed, ``EXPECTED -> OBSERVED``; of LOG-1 it is the line without its time, and ``function`` the one that the
    line names. ``inside`` is a kind of device: the physical range that the place names lies in one of those that
    are plugged. ``below`` are kinds (none: no matter): it ends where one of those begins. With ``memmap_of`` an
    invariant, the virtual ranges are, taken together, the struct pages of the memory in which this bug breaks that
    one, no more and no less; ``within_memmap_of`` is without the no less. ``shared_leaf``: the virtual range lies
    in PMD entries of vmemmap that hold struct pages of several devices, or of several sections. ``more`` is by how
    much the observed number is larger than the expected one: several bugs may add to it. ``verbs`` are those of the
    steps that it happens in (none: any).
    """

    invariant: str
    where: re.Pattern[str]
    says: re.Pattern[str] | None = None
    function: str = ""
    inside: str = ""
    below: tuple[str, ...] = ()
    memmap_of: str = ""
    within_memmap_of: str = ""
    shared_leaf: bool = False
    more: Measure | None = None
    optional: bool = False
    verbs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a step ends because of it: ``how`` is one of ENDINGS.

    ``verbs`` are the affected ones (none: any). ``says`` is a line of the step's kernel log (dead: of the console),
    ``function`` is where a kernel died, or one that it never leaves, as in its backtrace.
    """

    how: str
    verbs: tuple[str, ...] = ()
    says: re.Pattern[str] | None = None
    function: str = ""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions on kernels of the affected versions: all must hold, and an empty one does.

    ``features`` are those of ``arch.features.YES_OR_NO`` that a kernel must or must not have.
    """

    page_sizes: tuple[int, ...] = ()
    va_bits: tuple[int, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    cmdline: tuple[str, ...] = ()
    features: Mapping[str, bool] = field(default_factory=dict)

    @property
    def spelled(self) -> list[str]:
        """Each condition in words."""
        return [
            *(["pages of " + " or ".join(map(format_size, self.page_sizes))] if self.page_sizes else []),
            *([" or ".join(map(str, self.va_bits)) + " bits of virtual addresses"] if self.va_bits else []),
            *(f"CONFIG_{name}={value}" for name, value in self.config.items()),
            *self.cmdline,
            *(name if wanted else f"no {name}" for name, wanted in self.features.items()),
        ]


@dataclass(frozen=True, slots=True)
class KnownBug:
    """One entry; the module's docstring explains the fields."""

    id: str
    title: str
    source: str
    arches: tuple[str, ...]
    when: Conditions
    since: Change
    fixed: tuple[Change, ...]
    checked: Release
    breaks: tuple[Sign, ...]
    log: re.Pattern[str] | None
    ends: Ending | None
    stops: bool
    scenarios: tuple[str, ...]

    @property
    def effects(self) -> list[str]:
        """The invariants that it breaks, and how it ends a step."""
        ends = [] if self.ends is None else [{"dead": "dies", "hung": "hangs"}.get(self.ends.how, self.ends.how)]
        return list(dict.fromkeys([*(sign.invariant for sign in self.breaks), *ends]))

    def is_fixed(self, release: Release) -> Change | None:
        """The fix in ``release``: that of its branch, or the latest one if its branch is later than all listed ones."""
        for fix in self.fixed:
            if release.branch == fix.release.branch and release >= fix.release:
                return fix
        last = max(self.fixed, key=lambda fix: fix.release, default=None)
        return last if last is not None and release.branch > last.release.branch else None


def bugs_file() -> Path:
    """The file of known bugs."""
    return configs_dir() / NAME


def known_bugs(verbs: Collection[str] = ()) -> Mapping[str, KnownBug]:
    """The bugs of the configs directory by id; raises ConfigError (file, line, key) for a mistake in the file.

    ``verbs`` are all verbs that there are, of which ``at`` names some; without them any name will do: whoever reads
    scenarios has read the bugs with them before.
    """
    path = bugs_file()
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _read(path, stamp, tuple(verbs))


@functools.lru_cache(maxsize=4)
def _read(path: Path, stamp: int, verbs: tuple[str, ...]) -> Mapping[str, KnownBug]:
    return parse_bugs(read_text(path), path, verbs)


def parse_bugs(text: str, path: Path, verbs: Collection[str] = ()) -> Mapping[str, KnownBug]:
    """The bugs in ``text``; ``path`` is for messages, ``verbs`` as in ``known_bugs``. Raises ConfigError."""
    listed = parse(text, path).mapping("bugs").take("bugs", lambda value: value.mapping().values)
    return {id: _read_bug(id, value, verbs) for id, value in listed.items()}


def _read_bug(id: str, value: Value, verbs: Collection[str]) -> KnownBug:
    if _ID.fullmatch(id) is None:
        value.fail(f"invalid id {id!r}", hint="use lower-case words with '-' between them, for example pmem-odd-end")
    reader = value.mapping(
        *("title", "source", "arch", "when", "since", "fixed", "checked", "breaks", "log", "ends", "stops"),
        "scenario",
    )
    since = reader.take("since", _read_change)
    breaks = reader.take("breaks", _listed(lambda one: _read_sign(one, verbs)), ())
    log = reader.take("log", _read_pattern, None)
    ends = reader.take("ends", lambda one: _read_ending(one, verbs), None)
    if not breaks and ends is None:
        value.fail("neither breaks nor ends is given", hint="add breaks, ends or both")
    for number, sign in enumerate(breaks):
        _check_reference(reader.values["breaks"].items()[number], sign, breaks)
    return KnownBug(
        id=id,
        title=reader.take("title", Value.line_of_text),
        source=reader.take("source", Value.line_of_text),
        arches=reader.take("arch", _one_or_more(lambda one: one.choice(tuple(DEFAULT_BOOT))), tuple(DEFAULT_BOOT)),
        when=reader.take("when", _read_conditions, Conditions()),
        since=since,
        fixed=reader.take("fixed", _read_fixes(since), ()),
        checked=reader.take("checked", _read_release),
        breaks=breaks,
        log=log,
        ends=ends,
        stops=reader.take("stops", Value.boolean, ends is not None or log is not None),
        scenarios=reader.take("scenario", _one_or_more(Value.line_of_text)),
    )


def _check_reference(value: Value, sign: Sign, signs: tuple[Sign, ...]) -> None:
    """The invariant that a sign refers to must have a sign of the same bug, in the same step."""
    for name in (sign.memmap_of, sign.within_memmap_of, sign.more.of if sign.more is not None else ""):
        if name and not any(other.invariant == name and other.inside for other in signs):
            value.fail(f"nothing here breaks {name} inside a device", hint=f"add a sign of {name} with inside")


def _listed(read: Callable[[Value], T]) -> Callable[[Value], tuple[T, ...]]:
    def read_all(value: Value) -> tuple[T, ...]:
        found = tuple(read(item) for item in value.items())
        if not found:
            value.fail("an empty list", hint="remove the key")
        return found

    return read_all


def _one_or_more(read: Callable[[Value], T]) -> Callable[[Value], tuple[T, ...]]:
    return lambda value: _listed(read)(value) if value.is_list() else (read(value),)


def _read_release(value: Value) -> Release:
    text = value.scalar()
    release = parse_release(text, whole=True)
    if release is None:
        value.fail(f"{text[:40]!r} is not a version of Linux", hint="for example 7.3.4 or 7.4-rc2")
    return release


def _read_commit(value: Value) -> str:
    text = value.scalar()
    if _COMMIT.fullmatch(text) is None:
        value.fail(f"{text[:60]!r} is not a commit", hint="12 to 40 hexadecimal digits, quoted if there are no letters")
    return text


def _read_change(value: Value) -> Change:
    reader = value.mapping("version", "commit", "at-latest")
    release, commit = reader.take("version", _read_release), reader.take("commit", _read_commit, "")
    return Change(release, commit, reader.take("at-latest", Value.boolean, False))


def _read_fixes(since: Change) -> Callable[[Value], tuple[Change, ...]]:
    def read(value: Value) -> Change:
        change = _read_change(value)
        if change.release <= since.release:
            value.fail(f"fixed in {change.release}, but there since {since.release}", hint="is one of them wrong?")
        return change

    def read_all(value: Value) -> tuple[Change, ...]:
        found = _listed(read)(value)
        branches = [fix.release.branch for fix in found]
        for item, branch in zip(value.items(), branches, strict=True):
            if branches.count(branch) > 1:
                item.fail(f"two fixes in {branch[0]}.{branch[1]}", hint="list the first release that has it")
        return found

    return read_all


def _read_conditions(value: Value) -> Conditions:
    reader = value.mapping("page-size", "va-bits", "config", "cmdline", "features")
    return Conditions(
        page_sizes=reader.take("page-size", _one_or_more(lambda one: one.size(multiple=4096, minimum=4096)), ()),
        va_bits=reader.take("va-bits", _one_or_more(lambda one: one.integer(minimum=32, maximum=64)), ()),
        config=reader.take("config", _read_config, {}),
        cmdline=reader.take("cmdline", _one_or_more(Value.line_of_text), ()),
        features=reader.take("features", _read_features, {}),
    )


def _read_features(value: Value) -> Mapping[str, bool]:
    reader = value.mapping(*YES_OR_NO)
    return {name: reader.take(name, Value.boolean) for name in reader.values}


def _read_config(value: Value) -> Mapping[str, str]:
    options = {}
    for name, item in value.mapping().values.items():
        if name.startswith("CONFIG_"):
            item.fail("options are named without CONFIG_", hint=f"write {name.removeprefix('CONFIG_')}")
        options[name] = item.scalar()
    return options


def _read_pattern(value: Value) -> re.Pattern[str]:
    text = value.line_of_text()
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        value.fail(f"not a regular expression: {error}", hint=r"a plain '(', '[', '.' or '+' is written \( \[ \. \+")


def _read_measure(value: Value) -> Measure:
    text = value.scalar()
    match = _MEASURE.fullmatch(text)
    if match is None:
        value.fail(f"{text[:60]!r} is not an amount", hint="for example +512, -1, or pages of SEC-1")
    return Measure(int(match[2])) if match[2] else Measure(of=match[1])


def _read_sign(value: Value, verbs: Collection[str]) -> Sign:
    reader = value.mapping(
        *("invariant", "where", "says", "function", "inside", "below", "memmap-of", "within-memmap-of", "shared-leaf"),
        *("more", "optional", "at"),
    )
    invariant = reader.take("invariant", lambda one: one.choice(CATALOGUE))
    log = invariant == "LOG-1"
    if log and not {"says", "function"} & reader.values.keys():
        value.fail("LOG-1 alone matches any trouble", hint="add says, a line of the log, or function")
    if not log and "function" in reader.values:
        reader.values["function"].fail("only LOG-1 names functions", hint="say where instead")
    return Sign(
        invariant=invariant,
        where=reader.take("where", _read_pattern, _ANYWHERE) if log else reader.take("where", _read_pattern),
        says=reader.take("says", _read_pattern, None),
        function=reader.take("function", Value.line_of_text, ""),
        inside=reader.take("inside", lambda one: one.choice(sorted(KINDS)), ""),
        below=reader.take("below", _one_or_more(lambda one: one.choice(sorted(KINDS))), ()),
        memmap_of=reader.take("memmap-of", lambda one: one.choice(CATALOGUE), ""),
        within_memmap_of=reader.take("within-memmap-of", lambda one: one.choice(CATALOGUE), ""),
        shared_leaf=reader.take("shared-leaf", Value.boolean, False),
        more=reader.take("more", _read_measure, None),
        optional=reader.take("optional", Value.boolean, log),
        verbs=_take_verbs(reader, verbs),
    )


def _take_verbs(reader: Reader, verbs: Collection[str]) -> tuple[str, ...]:
    read: Callable[[Value], str] = (lambda one: one.choice(verbs)) if verbs else Value.line_of_text
    return reader.take("at", _one_or_more(read), ())


def _read_ending(value: Value, verbs: Collection[str]) -> Ending:
    reader = value.mapping("as", "at", "says", "function")
    ending = Ending(
        how=reader.take("as", lambda one: one.choice(ENDINGS)),
        verbs=_take_verbs(reader, verbs),
        says=reader.take("says", _read_pattern, None),
        function=reader.take("function", Value.line_of_text, ""),
    )
    if ending.how == "dead" and (ending.says is None or not ending.function):
        value.fail("this matches any death of a kernel", hint="add its line (says) and its place (function)")
    if ending.how == "hung" and not ending.function:
        value.fail("this matches any kernel that hangs", hint="add the function that it never leaves")
    if ending.how not in ("dead", "hung") and ending.function:
        reader.values["function"].fail("only a kernel that died or hangs names a function", hint="use says instead")
    if ending.how in ("refused", "failed") and ending.says is None:
        value.fail(f"this matches any {ending.how} step", hint="add says: a line of the kernel's log")
    return ending
