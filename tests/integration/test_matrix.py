# SPDX-License-Identifier: GPL-2.0-or-later
"""A small matrix on real guests of both architectures, interrupted and resumed; a bisection with a real git."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import kcidb_io
import pytest

from harness.arch import ARCHES
from harness.artifacts.cache import cache_root
from harness.artifacts.kernel import kernel
from harness.errors import ArtefactError
from harness.progress import default_progress
from harness.scenarios.boot import Parts

pytestmark = [pytest.mark.memhp_guest, pytest.mark.either_arch]

MATRIX = """
name: tiny
grids:
  - axes:
      arch: [arm64, riscv64]
      cpus: [1, 2]
      kaslr: 5
      scenario: ./one-dimm.yaml
"""
SCENARIO = """
name: one-dimm
steps:
  - auto-online: {policy: offline}
  - plug-dimm: {id: dimm0, size: 256M}
  - unplug: {id: dimm0}
"""
GOOD = "name: goal\nsteps:\n  - plug-dimm: {id: d, size: 256M}\n  - online: {device: d, type: movable}\n"
#: expects a refusal that the kernel does not give: the verdict is FAIL
BAD = f"{GOOD}    expect: refused\n    says: EBUSY\n"


def memhp(*words: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", *words]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def kernels() -> None:
    """Provide the kernels of both architectures; if they are unavailable, skip the test, or fail it in CI."""
    try:
        for arch in ARCHES.values():
            kernel(arch, None, default_progress())
    except ArtefactError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.mark.usefixtures("kernels")
def test_an_interrupted_matrix_repeats_nothing_that_finished(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(MATRIX)
    (tmp_path / "one-dimm.yaml").write_text(SCENARIO)
    words = ("run", "--matrix", "tiny.yaml", "-j", "2", "--results", "night")
    with memhp(*words, cwd=tmp_path) as first:
        assert first.stdout is not None and first.stderr is not None
        assert first.stdout.readline().startswith("[1/4] pass")
        first.send_signal(signal.SIGINT)
        said = first.stderr.read()
        assert first.wait(300) == 130
    assert "of 4 cells done, results in night; the same command continues there" in said
    results = tmp_path / "night" / "cells"
    stamps = {path: path.stat().st_mtime_ns for path in results.glob("*/*/cell.json")}
    assert 1 <= len(stamps) < 4

    with memhp(*words, cwd=tmp_path) as second:
        out, err = second.communicate(timeout=1800)
    assert second.returncode == 0, out + err
    assert out.count("kept from an earlier start") == len(stamps)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}, "finished cells must not be written again"
    assert "PASSED  4 scenarios: 4 passed" in out

    runs = json.loads((tmp_path / "night" / "results.json").read_text())["runs"]
    places = {run["guest"]: run["facts"]["va_bits"] for run in runs}
    assert places.keys() == {f"{arch}.seed-5.{cpus}cpus" for arch in ("arm64", "riscv64") for cpus in (1, 2)}
    kcidb_io.schema.LATEST.validate(json.loads((tmp_path / "night" / "kcidb.json").read_text()))
    page = (tmp_path / "night" / "report.html").read_text()
    assert 'aria-label="physical memory before"' in page and "bundles/" in page


def test_the_same_seed_puts_the_kernel_at_the_same_place(
    tmp_path: Path, memhp_artifacts: Parts, request: pytest.FixtureRequest
) -> None:
    arch = request.getfixturevalue("memhp_guest_spec").arch
    notes = []
    for number in range(2):
        with memhp("collect", "-a", arch, "--random-seed", "5", "-o", f"c{number}", cwd=tmp_path) as collecting:
            out, err = collecting.communicate(timeout=900)
        assert collecting.returncode == 0, out + err
        note = (tmp_path / f"c{number}" / "facts" / "vmcoreinfo.txt").read_text()
        notes.append([line for line in note.splitlines() if "voffset" in line or "KERNELOFFSET" in line])
    assert notes[0] == notes[1]


@pytest.mark.long
def test_git_finds_the_first_bad_commit_past_one_that_does_not_boot(tmp_path: Path, memhp_artifacts: Parts) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    arch = "arm64" if memhp_artifacts.kernel.image.read_bytes()[56:60] == b"ARM\x64" else "riscv64"
    # Hide git's configuration but not the cache: with an empty cache memhp would build QEMU.
    home = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "MEMHP_CACHE": str(cache_root())}

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
        done = subprocess.run(command, cwd=tree, env=home, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tree = tmp_path / "tree"
    tree.mkdir()
    git("init", "-q")
    image = memhp_artifacts.kernel.image.read_bytes()
    commits = ((image, GOOD), (image, GOOD), (b"broken", GOOD), (image, GOOD), (image, BAD))
    for number, (content, goal) in enumerate(commits):
        (tree / "Image").write_bytes(content)
        (tree / "goal.yaml").write_text(goal)
        (tree / "number").write_text(str(number))
        git("add", ".")
        git("commit", "-q", "-m", f"commit {number}")
    git("bisect", "start", "HEAD", "HEAD~4")
    said = git(
        *("bisect", "run", sys.executable, "-m", "harness", "run", "./goal.yaml", "-a", arch),
        *("--kernel", "./Image", "--bisect", "--bundle-dir", str(tmp_path / "bundles")),
    )
    assert "is the first bad commit" in said and "commit 4" in said.partition("is the first bad commit")[2]
    assert "git bisect skip" in git("bisect", "log"), "the broken kernel must have been skipped"
