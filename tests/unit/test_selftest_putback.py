# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers of the patches that reintroduce real bugs."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigError, UsageError
from harness.selftest.putback import chosen_bugs, known_bugs, load_bug

HEADER = """\
# SPDX-License-Identifier: GPL-2.0-only
takes-back: '123456789abc ("mm: fix it")'
part: half of it
breaks: >-
  This
  and that.
arch: [riscv64]
cpu: rv64,sv57=off
scenarios: [dimm-cycle]
named-by: [MEM-2, LOG-1]
"""
DIFF = """\
--- a/mm/one.c
+++ b/mm/one.c
@@ -1 +1 @@
-fixed
+broken
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "some-bug.patch"
    path.write_text(text)
    return path


def test_a_patch_says_what_it_is(tmp_path: Path) -> None:
    bug = load_bug(written(tmp_path, f"{HEADER}---\n{DIFF}"))
    assert (bug.name, bug.takes_back, bug.part) == ("some-bug", '123456789abc ("mm: fix it")', "half of it")
    assert (bug.breaks, bug.arches, bug.cpu) == ("This and that.", ("riscv64",), "rv64,sv57=off")
    assert [scenario.name for scenario in bug.scenarios] == ["dimm-cycle"]
    assert (bug.named_by, bug.diff, bug.files) == (("MEM-2", "LOG-1"), DIFF, ("mm/one.c",))


def test_what_is_said_of_a_bug_is_no_part_of_its_content(tmp_path: Path) -> None:
    one = load_bug(written(tmp_path, f"{HEADER}---\n{DIFF}"))
    other = load_bug(written(tmp_path, f"{HEADER.replace('half', 'most')}---\n{DIFF}"))
    changed = load_bug(written(tmp_path, f"{HEADER}---\n{DIFF.replace('broken', 'worse')}"))
    assert one.content == other.content != changed.content


def test_a_scenario_may_lie_beside_the_patch(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nsteps: [check: {}]\n")
    bug = load_bug(written(tmp_path, f"{HEADER.replace('dimm-cycle', 'mine.yaml')}---\n{DIFF}"))
    assert [scenario.name for scenario in bug.scenarios] == ["mine"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("---\n---", "---", r"some-bug\.patch: no line '---' between header and diff"),
        ("riscv64", "riscv", r"some-bug\.patch:7: arch\[0\]: 'riscv' is not one of arm64, riscv64"),
        ("MEM-2", "MEM-9", r"some-bug\.patch:10: named-by\[0\]: .*MEM-9"),
        ("[MEM-2, LOG-1]", "[]", r"some-bug\.patch:10: named-by: "),
        ("dimm-cycle", "dimm-cycles", r"some-bug\.patch:9: scenarios\[0\]: unknown scenario 'dimm-cycles'"),
        ("cpu:", "cpus:", r"some-bug\.patch:8: .*cpus"),
        ("takes-back: '123456789abc (\"mm: fix it\")'\n", "", r"takes-back"),
        ("+++ b/mm/one.c", "+++ b/mm/two.c", r"some-bug\.patch:12: no patch that changes files"),
        (
            "a/mm/one.c\n+++ b/mm/one.c",
            "a/../one.c\n+++ b/../one.c",
            r"some-bug\.patch:12: no patch that changes files",
        ),
        (DIFF, "", r"some-bug\.patch:12: no patch that changes files"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = f"{HEADER}---\n{DIFF}"
    old = old.replace("---\n---", "---\n--- a")
    new = "--- a" if old.startswith("---\n") else new
    assert old in text
    with pytest.raises(ConfigError, match=said):
        load_bug(written(tmp_path, text.replace(old, new)))


def test_the_bugs_of_the_project() -> None:
    bugs = known_bugs()
    names = [bug.name for bug in bugs]
    assert len(names) >= 12 and names == sorted(set(names))
    for arch in ("arm64", "riscv64"):
        assert sum(arch in bug.arches for bug in bugs) >= 8
        assert all(bug.arches == (arch,) for bug in bugs if bug.name.startswith(f"{arch}-"))
    # A changed header rebuilds everything: ten minutes instead of half a minute.
    assert [name for bug in bugs for name in bug.files if not name.endswith(".c")] == []


def test_some_are_chosen_by_name() -> None:
    bugs = known_bugs()
    assert chosen_bugs(bugs, []) == bugs
    assert {bug.name.split("-")[0] for bug in chosen_bugs(bugs, ["riscv64-*"])} == {"riscv64"}
    assert [bug.name for bug in chosen_bugs(bugs, [bugs[-1].name, bugs[0].name])] == [bugs[0].name, bugs[-1].name]


def test_a_name_that_no_bug_has() -> None:
    with pytest.raises(UsageError, match="--only: no kernel bug is called 'kmem-resource-leakd'") as caught:
        chosen_bugs(known_bugs(), ["kmem-resource-leakd"])
    assert caught.value.hint == "did you mean kmem-resource-leaked?"
