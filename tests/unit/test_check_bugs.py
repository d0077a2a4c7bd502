# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of known bugs: its content, and every mistake reported with file, line and key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.arch import ARCHES
from harness.check.bugs import Change, KnownBug, known_bugs, parse_bugs
from harness.errors import ConfigError
from harness.release import Release, parse_release
from harness.scenarios.file import known_scenarios, load_scenario
from harness.scenarios.steps import AnyStep, Repeat, Step, steps_on
from harness.scenarios.verbs import VERBS

HEAD = "bugs:\n  some-bug:\n"
FIELDS = {
    "title": "a title",
    "source": "f, mm/f.c",
    "since": "{version: '6.1'}",
    "checked": "7.3.4",
    "breaks": "[{invariant: BLK-1, where: memory1}]",
    "scenario": "dimm-cycle",
}


def text(**changes: str) -> str:
    fields = {name: value for name, value in (FIELDS | changes).items() if value}
    return HEAD + "".join(f"    {name}: {value}\n" for name, value in fields.items())


def read(**changes: str) -> KnownBug:
    return parse_bugs(text(**changes), Path("bugs.yaml"), VERBS)["some-bug"]


@pytest.mark.parametrize(
    ("spelled", "release"),
    [
        ("6.12.117-hp", Release(6, 12, 117)),
        ("7.4.0-rc2+", Release(7, 4, 0, 2)),
        ("7.4-rc2", Release(7, 4, 0, 2)),
        ("6.1.0-41-arm64", Release(6, 1)),
        ("next-20261101", None),
    ],
)
def test_releases(spelled: str, release: Release | None) -> None:
    assert parse_release(spelled) == release


def test_releases_are_in_the_order_of_their_making() -> None:
    names = ["6.1", "6.12-rc1", "6.12", "6.12.1", "7.3.9", "7.3.10", "7.4-rc1", "7.4-rc10", "7.4"]
    releases = [parse_release(name) for name in names]
    assert releases == sorted(releases, key=lambda one: one or Release(0, 0))
    assert [str(release) for release in releases] == names


FIXES = "[{version: 7.3.5, commit: 0123456789ab}, {version: 6.12.130}]"


@pytest.mark.parametrize(
    ("release", "fix"),
    [
        ("6.1.176", None),
        ("6.12.129", None),
        ("6.12.130", Change(Release(6, 12, 130))),
        ("6.13.1", None),
        ("7.3.4", None),
        ("7.3.5", Change(Release(7, 3, 5), "0123456789ab")),
        ("7.4-rc1", Change(Release(7, 3, 5), "0123456789ab")),
    ],
)
def test_each_stable_branch_has_its_own_fix(release: str, fix: Change | None) -> None:
    found = parse_release(release)
    assert found is not None
    assert read(fixed=FIXES).is_fixed(found) == fix


def test_what_an_entry_says() -> None:
    words = "config: {MEMCG: n}, cmdline: debug, features: {folds-hugetlb: true, modules: false}"
    when = f"{{page-size: [4K, 64K], va-bits: 39, {words}}}"
    bug = read(arch="riscv64", when=when, ends="{as: refused, at: offline, says: 'no .*'}", scenario="[a, b]")
    assert bug.arches == ("riscv64",) and bug.scenarios == ("a", "b") and bug.stops
    assert bug.when.spelled == [
        "pages of 4K or 64K",
        "39 bits of virtual addresses",
        "CONFIG_MEMCG=n",
        "debug",
        "folds-hugetlb",
        "no modules",
    ]
    assert bug.effects == ["BLK-1", "refused"]
    assert read().arches == tuple(ARCHES) and not read().stops
    assert str(read(since="{version: '6.1', commit: 0123456789ab, at-latest: true}").since) == (
        "6.1 at the latest (0123456789ab)"
    )


@pytest.mark.parametrize(
    ("changes", "line", "message", "hint"),
    [
        ({"titel": "x"}, 9, "bugs.some-bug: unknown key 'titel'", "did you mean 'title'?"),
        ({"title": ""}, 3, "bugs.some-bug: key 'title' is missing", None),
        ({"arch": "x86"}, 9, "bugs.some-bug.arch: 'x86' is not one of", "known: arm64, riscv64"),
        (
            {"since": "{version: six}"},
            5,
            "since.version: 'six' is not a version of Linux",
            "for example 7.3.4 or 7.4-rc2",
        ),
        ({"since": "{version: 6.1, commit: xyz}"}, 5, "since.commit: 'xyz' is not a commit", "12 to 40 hexadecimal"),
        ({"fixed": "[{version: 6.1}]"}, 9, "fixed[0]: fixed in 6.1, but there since 6.1", "is one of them wrong?"),
        ({"fixed": "[{version: 7.3.5}, {version: 7.3.6}]"}, 9, "fixed[0]: two fixes in 7.3", "the first release"),
        ({"fixed": "[]"}, 9, "fixed: an empty list", "remove the key"),
        ({"breaks": ""}, 3, "some-bug: neither breaks nor ends is given", "breaks, ends or both"),
        ({"breaks": "[{invariant: BLK-9, where: x}]"}, 7, "breaks[0].invariant: 'BLK-9' is not one of", "did you mean"),
        ({"breaks": "[{invariant: BLK-1}]"}, 7, "breaks[0]: key 'where' is missing", None),
        ({"breaks": "[{invariant: BLK-1, where: '('}]"}, 7, "breaks[0].where: not a regular expression", r"\("),
        ({"breaks": "[{invariant: LOG-1}]"}, 7, "breaks[0]: LOG-1 alone matches any trouble", "a line of the log"),
        (
            {"breaks": "[{invariant: BLK-1, where: x, function: f}]"},
            7,
            "breaks[0].function: only LOG-1 names functions",
            "say where instead",
        ),
        (
            {"breaks": "[{invariant: MEM-2, where: x, more: some}]"},
            7,
            "breaks[0].more: 'some' is not an amount",
            "for example +512, -1, or pages of SEC-1",
        ),
        (
            {"breaks": "[{invariant: MEM-2, where: x, more: pages of SEC-1}]"},
            7,
            "breaks[0]: nothing here breaks SEC-1 inside a device",
            "add a sign of SEC-1 with inside",
        ),
        ({"ends": "{as: dead, says: x}"}, 9, "ends: this matches any death of a kernel", "(function)"),
        ({"ends": "{as: hung, says: x}"}, 9, "ends: this matches any kernel that hangs", "that it never leaves"),
        ({"ends": "{as: refused}"}, 9, "ends: this matches any refused step", "a line of the kernel's log"),
        ({"ends": "{as: gone}"}, 9, "ends.as: 'gone' is not one of done, refused", "did you mean 'done'?"),
        (
            {"ends": "{as: refused, says: x, function: f}"},
            9,
            "ends.function: only a kernel that died or hangs names a function",
            "use says instead",
        ),
        ({"ends": "{as: done, at: onlin}"}, 9, "ends.at: 'onlin' is not one of", "did you mean 'online'?"),
        ({"when": "{features: {fold-dax: true}}"}, 9, "when.features: unknown key", "did you mean 'folds-dax'?"),
        ({"when": "{features: {modules: y}}"}, 9, "when.features.modules: expected true or false, found 'y'", None),
        ({"when": "{config: {CONFIG_X: y}}"}, 9, "when.config.CONFIG_X: options are named without CONFIG_", "write X"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, str], line: int, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    error = caught.value
    assert f"bugs.yaml:{line}:" in error.message and message in error.message
    assert error.exit_status == 2 and (error.hint is None if hint is None else hint in (error.hint or ""))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("bugs:\n  Some Bug: {}\n", "bugs.yaml:2: bugs.Some Bug: invalid id 'Some Bug'"),
        ("bugs:\n  a: {}\n  a: {}\n", "bugs.yaml:3: bugs: duplicate key 'a'"),
        ("bug:\n  a: {}\n", "bugs.yaml:1: unknown key 'bug'"),
        ("bugs: []\n", "bugs.yaml:1: bugs: expected a mapping, found a list"),
        ("bugs: {\n", "bugs.yaml:2: not YAML"),
    ],
)
def test_a_document_that_is_none(document: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bugs(document, Path("bugs.yaml"))
    assert message in caught.value.message


def _named(steps: Sequence[AnyStep]) -> set[tuple[str, str]]:
    found = set()
    for arch in ARCHES:
        for step in steps_on(steps, arch):
            found |= set() if isinstance(step, Repeat) else {(id, arch) for id in step.bugs}
    return found.union(*(_named(step.steps) for step in steps if not isinstance(step, Step)))


def test_every_bug_of_ours_is_shown_by_a_scenario_that_names_it() -> None:
    named = {(name, id, arch) for name in known_scenarios() for id, arch in _named(load_scenario(name).steps)}
    for bug in known_bugs().values():
        for scenario in bug.scenarios:
            assert any((scenario, bug.id, arch) in named for arch in bug.arches), f"{scenario} does not name {bug.id}"
    assert {id for _, id, _ in named} == set(known_bugs())


def test_riscv64s_uncounted_tables_of_vmemmap_are_those_of_ptes_alone() -> None:
    """An uncounted PMD table is another bug (21f1b85c8912), which v7.3 no longer has."""
    [sign] = known_bugs()["riscv-vmemmap-tables-uncounted"].breaks
    said, end = "27 -> 26 (vmemmap: {} tables that went away were never counted, and were uncounted)", sign.says
    assert end is not None
    for tables in ("1 PTE", "1 PMD or 1 PTE", "1 PMD or 1 PTE or 1 PUD", "1 PTE or 1 PUD"):
        assert end.fullmatch(said.format(tables)) is not None
    for tables in ("1 PMD", "1 PMD and 1 PTE", "1 PMD or 1 PUD", "1 PUD"):
        assert end.fullmatch(said.format(tables)) is None
