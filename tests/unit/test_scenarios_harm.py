# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp check`` of a bundle that came to harm: the verdict that a run with such snapshots has, never a better one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from selftest_scenes import BUNDLES, scenes_of

from harness.check import Evidence, Verdict, run_all
from harness.errors import MemhpError
from harness.model.boot_layout import boot_layout
from harness.model.memory_model import MemoryModel
from harness.scenarios.outcome import Outcome
from harness.scenarios.recheck import recheck
from harness.scenarios.record import VERDICT, Recorder, load_run
from harness.scenarios.verdict import evidence_of
from harness.selftest.catalogue import CATALOGUE
from harness.selftest.corruption import TextCorruption
from harness.selftest.scene import Inapplicable

HARMS: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "garbled": lambda path: path.write_bytes(bytes(byte ^ 0x15 for byte in path.read_bytes())),
}
BUNDLE, STORY = BUNDLES / "arm64-dimm", "arm64-story"
#: harms that change nothing: of files that no check reads, of an empty one, of a log that may be empty, of sources that
#: this bundle allows to be unobserved, of the verdict of a run whose steps are all there
HARMLESS = {
    *(f"{name} {harm}" for name in ("scenario.yaml", "parameters.txt", "absent.txt", "status.txt") for harm in HARMS),
    *("dax.txt emptied", "dax.txt garbled", "dmesg.txt emptied", "vmstat.txt deleted", "backends.json deleted"),
    f"{VERDICT} deleted",
}


def short(folder: Path) -> Path:
    """A bundle whose run ended after two steps."""
    bundle = Path(shutil.copytree(BUNDLE, folder / "bundle"))
    for number in ("003", "004", "005"):
        shutil.rmtree(bundle / "states" / number)
    (bundle / VERDICT).write_text(json.dumps({"verdict": "pass", "reason": "", "steps": 2}))
    return bundle


@pytest.mark.parametrize("where", [".", "facts", "states/000", "states/002"])
def test_no_harm_to_a_file_makes_a_verdict(where: str, tmp_path: Path) -> None:
    bundle = short(tmp_path)
    healthy, harmless = recheck(bundle), set()
    assert healthy.verdict is Verdict.PASS
    for path in sorted(path for path in (bundle / where).iterdir() if path.is_file()):
        whole = path.read_bytes()
        for harm, do in HARMS.items():
            do(path)
            try:
                result = recheck(bundle)
            except MemhpError:
                # It cannot be read: no verdict, and the reason is told.
                continue
            finally:
                path.write_bytes(whole)
            if result.verdict is Verdict.PASS:
                harmless.add(f"{path.name} {harm}")
                assert (result.steps, result.bugs) == (healthy.steps, healthy.bugs), f"{path} {harm}"
            # What is not there is no finding.
            assert harm != "deleted" or result.verdict is not Verdict.FAIL, f"{path}"
    assert harmless <= HARMLESS


@functools.cache
def corrupted() -> dict[str, tuple[int, Evidence]]:
    """A step's number and its evidence with a corruption, one of each source at each step; by the corruption's name."""
    found: dict[tuple[str, int], tuple[str, Evidence]] = {}
    for item in CATALOGUE:
        if not isinstance(item, TextCorruption):
            continue
        for number, scene in enumerate(scenes_of(STORY)):
            with contextlib.suppress(Inapplicable):
                found.setdefault((item.target, number), (item.name, item.edit(scene)))
                break
    return {name: (number, evidence) for (_, number), (name, evidence) in found.items()}


@pytest.mark.parametrize("name", corrupted())
def test_a_corruption_is_judged_as_in_the_run(name: str, tmp_path: Path) -> None:
    number, evidence = corrupted()[name]
    bundle = Path(shutil.copytree(BUNDLES / STORY, tmp_path / "bundle"))
    for later in range(number + 1, len(scenes_of(STORY))):
        shutil.rmtree(bundle / "states" / f"{later:03d}")
    recorder, title = Recorder(bundle), "boot"
    if number:
        step = load_run(bundle).steps[-1]
        reports = {key: getattr(evidence, key) for key in ("slopes", "unread", "dumps", "alarms")}
        lists = {key: list(getattr(evidence, key)) for key in ("unplugs", "resizes", "touches", "offlines")}
        reports["ending"] = "failed" if evidence.failed else step.outcome.ending
        outcome, title = dataclasses.replace(step.outcome, **reports, **lists), step.title
        for action in step.actions:
            recorder.note_action(number, action)
        recorder.save_step(number, title, step.expect, outcome, evidence.observed)
    else:
        recorder.save_boot(evidence.observed)
        # The boot is compared with itself.
        layout = boot_layout(evidence.layout.machine, evidence.layout.facts, evidence.observed)
        evidence = evidence_of(MemoryModel(layout), Outcome(), evidence.observed)
    assert recheck(bundle).steps[number].checks == tuple(run_all(evidence, title))
