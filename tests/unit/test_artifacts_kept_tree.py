# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel tree in which patches are built one after another, and which is restored after each of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from harness.arch import ARCHES, ARM64
from harness.artifacts.kept_tree import KeptTree, kept_tree, place_of, version_of_tree
from harness.errors import ArtefactError, ConfigError
from harness.progress import SilentProgress
from harness.selftest.putback import KernelBug, known_bugs, load_bug

QUIET = SilentProgress()

#: the package that the project's patches apply to
SOURCE = "linux-source-7.3"

#: a kernel whose Image is one of its source files; ``made`` records the builds
TOY = """\
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 4
tinyconfig:
\techo '# tiny' > $(O)/.config
olddefconfig:
\techo configured >> $(O)/made
Image:
\techo built >> $(O)/made
\tmkdir -p $(O)/arch/arm64/boot $(O)/include/config
\tcp mm/one.c $(O)/arch/arm64/boot/Image
\techo 7.3.4-hp > $(O)/include/config/kernel.release
"""
ONE = "one\ntwo\nthree\nfixed\nfive\nsix\nseven\n"
DIFF = """\
--- a/mm/one.c
+++ b/mm/one.c
@@ -1,7 +1,7 @@
 one
 two
 three
-fixed
+broken
 five
 six
 seven
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a kept tree that has its source."""
    monkeypatch.setenv("MEMHP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.artifacts.kept_tree.require_tools", lambda arch: None)
    monkeypatch.setattr("harness.artifacts.kept_tree.load_fragments", lambda arch, folder: ())
    place = place_of(ARM64, SOURCE)
    (place / "source" / "mm").mkdir(parents=True)
    (place / "source" / "Makefile").write_text(TOY)
    (place / "source" / "mm" / "one.c").write_text(ONE)
    return place


def a_bug(folder: Path, diff: str = DIFF, name: str = "some") -> KernelBug:
    header = "takes-back: x\nbreaks: y\narch: [arm64]\nscenarios: [dimm-cycle]\nnamed-by: [MEM-2]\n"
    path = folder / f"{name}.patch"
    path.write_text(f"{header}---\n{diff}")
    return load_bug(path)


def made(place: Path) -> list[str]:
    return (place / "build" / "made").read_text().split()


def test_a_patch_is_built_and_taken_back(tree: Path, tmp_path: Path) -> None:
    bug = a_bug(tmp_path)
    with kept_tree(ARM64, SOURCE, QUIET) as kept:
        assert kept.version == "7.3.4"
        assert kept.image(None).read_text() == ONE
        image = kept.image(bug)
        assert image.read_text() == ONE.replace("fixed", "broken")
        assert (tree / "source" / "mm" / "one.c").read_text() == ONE
        assert not (tree / "pristine").exists()
        assert image.with_name("release").read_text() == "7.3.4-hp\n"
    assert made(tree) == ["configured", "built", "built"]


def test_what_was_built_is_not_built_again_until_it_changes(tree: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with kept_tree(ARM64, SOURCE, QUIET) as kept:
            kept.image(a_bug(tmp_path))
    assert made(tree) == ["configured", "built"]
    with kept_tree(ARM64, SOURCE, QUIET) as kept:
        assert "worse" in kept.image(a_bug(tmp_path, DIFF.replace("broken", "worse"))).read_text()
    assert made(tree) == ["configured", "built", "built"]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("-fixed", "-mended", r"Hunk #1 FAILED at 1"),
        # patch would accept this hunk with fuzz
        (" seven", " eight", r"Hunk #1 FAILED at 1"),
        ("one.c", "two.c", r"there is no mm/two\.c"),
    ],
)
def test_a_patch_that_does_not_apply_is_named(tree: Path, tmp_path: Path, old: str, new: str, why: str) -> None:
    bug = a_bug(tmp_path, DIFF.replace(old, new))
    said = rf"(?s)some\.patch: does not apply to linux-source-7\.3 7\.3\.4: .*{why}"
    with kept_tree(ARM64, SOURCE, QUIET) as kept, pytest.raises(ConfigError, match=said):
        kept.image(bug)
    assert sorted(path.name for path in (tree / "source").rglob("*")) == ["Makefile", "mm", "one.c"]
    assert (tree / "source" / "mm" / "one.c").read_text() == ONE


def test_a_build_that_fails_leaves_no_patch(tree: Path, tmp_path: Path) -> None:
    (tree / "source" / "Makefile").write_text(TOY.replace("\tcp ", "\tgrep -q fixed mm/one.c\n\tcp "))
    with kept_tree(ARM64, SOURCE, QUIET) as kept:
        with pytest.raises(ArtefactError, match=r"kernel: make exited with status 2"):
            kept.image(a_bug(tmp_path))
        assert (tree / "source" / "mm" / "one.c").read_text() == ONE
        assert kept.image(None).read_text() == ONE


def test_whoever_was_killed_at_work_is_cleaned_up_after(tree: Path, tmp_path: Path) -> None:
    bug = a_bug(tmp_path)
    with kept_tree(ARM64, SOURCE, QUIET) as kept:
        kept._keep(bug)
        kept._apply(bug)
    assert (tree / "source" / "mm" / "one.c").read_text() != ONE
    before = (tree / "source" / "mm" / "one.c").stat().st_mtime_ns
    with kept_tree(ARM64, SOURCE, QUIET) as kept:
        assert (tree / "source" / "mm" / "one.c").read_text() == ONE
        assert (tree / "source" / "mm" / "one.c").stat().st_mtime_ns > before, "make must notice the change"
        assert kept.image(None).read_text() == ONE


def test_a_tree_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is not a kernel source tree"):
        version_of_tree(tmp_path)


def kernel_source(arch: str) -> KeptTree:
    """The real tree; skips the test if it was not built on this machine."""
    place = place_of(ARCHES[arch], SOURCE)
    if not (place / "source" / "Makefile").is_file():
        pytest.skip(f"no {place}: memhp selftest --kernels makes it")
    return KeptTree(ARCHES[arch], SOURCE, place, (), QUIET)


@pytest.mark.parametrize("bug", known_bugs(), ids=lambda bug: bug.name)
def test_the_projects_patches_apply(bug: KernelBug, tmp_path: Path) -> None:
    kept = kernel_source(bug.arches[0])
    for name in bug.files:
        # Another process may be using that tree right now.
        before = kept.place / "pristine" / name
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((before if before.is_file() else kept.source / name).read_bytes())
    command = ["patch", "-p1", "--fuzz=0", "--forward", "--batch"]
    done = subprocess.run(command, cwd=tmp_path, input=bug.diff, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    # patch accepts an offset, but these patches must apply to exactly this source.
    assert re.search(r"offset", done.stdout) is None, done.stdout
