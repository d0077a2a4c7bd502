# SPDX-License-Identifier: GPL-2.0-or-later
"""Every corruption of collected text, on recorded runs of both architectures: the right invariant must break."""

from __future__ import annotations

from dataclasses import replace

import pytest
from selftest_scenes import scenes_of

from harness.check import CATALOGUE as INVARIANTS
from harness.check import Verdict
from harness.errors import InfraError, UsageError
from harness.scenarios.result import StepResult
from harness.selftest import collected, corrupt_reports
from harness.selftest.catalogue import CATALOGUE, chosen
from harness.selftest.corruption import Case, MemoryCorruption, TextCorruption, source
from harness.selftest.scene import Inapplicable, Scene, broken
from harness.selftest.story import require_done
from harness.selftest.trial import INAPPLICABLE, MISSED, NAMED, try_text

TEXT = (*corrupt_reports.CORRUPTIONS, *collected.CORRUPTIONS)
ARCHES = ("arm64", "riscv64")
#: corruptions that do not apply to the recorded guests, and why
NOTHING = {
    "arm64": {"dump-contiguous-lost": "no line matches  CON "},
    "riscv64": {
        "dump-untagged": "riscv64 lacks this attribute",
        "dump-contiguous-lost": "riscv64 lacks this attribute",
    },
}


@pytest.mark.parametrize("item", TEXT, ids=lambda item: item.name)
@pytest.mark.parametrize("arch", ARCHES)
def test_named_and_forgotten(arch: str, item: TextCorruption) -> None:
    trial = try_text(item, scenes_of(f"{arch}-story"))
    if item.name in NOTHING[arch]:
        assert (trial.status, trial.reason) == (INAPPLICABLE, NOTHING[arch][item.name])
    else:
        assert (trial.status, trial.reason) == (NAMED, "")
        assert item.broken == trial.wanted <= trial.named


@pytest.mark.parametrize("arch", ARCHES)
def test_the_recordings_are_sound(arch: str) -> None:
    for scene in scenes_of(f"{arch}-story"):
        assert broken(scene.results) == set(), scene.title


def test_names_are_unique_and_targets_real() -> None:
    names = [item.name for item in CATALOGUE]
    assert len(names) == len(set(names))
    assert all(item.broken and item.broken <= set(INVARIANTS) for item in CATALOGUE)


def test_every_invariant_has_to_name_something() -> None:
    assert {invariant for item in CATALOGUE for invariant in item.broken} == set(INVARIANTS)


def test_both_kinds_are_many() -> None:
    memory = [item for item in CATALOGUE if isinstance(item, MemoryCorruption)]
    assert len(memory) >= 40 and len(CATALOGUE) - len(memory) >= 40


def test_chosen() -> None:
    assert chosen([]) == CATALOGUE
    assert [item.name for item in chosen(["zone-*", "policy"])] == [
        "policy",
        "zone-managed",
        "zone-present",
        "zone-spanned",
        "zone-start",
        "zone-twice",
        "zone-rubbish",
    ]


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="--only: no corruption is called 'zone-managd'") as caught:
        chosen(["zone-managd"])
    assert caught.value.hint == "did you mean zone-managed?"
    with pytest.raises(UsageError) as caught:
        chosen(["§"])
    assert caught.value.hint == "memhp selftest --list"


def test_a_lie_that_nobody_sees_is_missed() -> None:
    item = source("meminfo", Case("idle", "", "MEM-1", lambda scene, text: text.replace("MemFree: ", "MemFree:  ")))
    trial = try_text(item, scenes_of("arm64-story"))
    assert (trial.status, trial.reason) == (MISSED, "MEM-1 did not name it; nothing did")
    assert trial.where == "meminfo of step 'unplug gone'"


def test_a_lie_that_the_wrong_invariant_names_is_missed() -> None:
    [item] = chosen(["total-less"])
    wrong = TextCorruption(item.name, item.target, item.summary, frozenset({"ZON-1"}), item.edit)  # type: ignore[arg-type]
    trial = try_text(wrong, scenes_of("arm64-story"))
    assert (trial.status, trial.reason) == (MISSED, "ZON-1 did not name it; only MEM-1, XCK-5 did")


def test_an_edit_that_changes_nothing_is_no_corruption() -> None:
    item = source("meminfo", Case("nothing", "", "MEM-1", lambda scene, text: text))
    trial = try_text(item, scenes_of("arm64-story"))
    assert (trial.status, trial.reason) == (INAPPLICABLE, "meminfo is already like that")


def test_a_source_that_was_not_observed() -> None:
    item = source("mounts", Case("nothing", "", "MEM-2", lambda scene, text: ""))
    trial = try_text(item, scenes_of("arm64-story"))
    assert (trial.status, trial.reason) == (INAPPLICABLE, "mounts was not observed")


def test_an_invariant_that_sees_nothing_cannot_be_asked() -> None:
    # Recorded without a look from the host.
    [item] = chosen(["zone-managed"])
    only_host = TextCorruption(item.name, item.target, item.summary, frozenset({"SEC-1"}), item.edit)  # type: ignore[arg-type]
    trial = try_text(only_host, scenes_of("arm64-dimm"))
    assert trial.status == INAPPLICABLE
    assert trial.reason.startswith("SEC-1 is not observed: ")


def test_a_step_that_shows_a_known_bug_is_left_out() -> None:
    *_, other, last = scenes_of("arm64-story")
    [item] = chosen(["total-less"])
    assert isinstance(item, TextCorruption)
    trial = try_text(item, [other, Scene("a known bug", item.edit(last))])
    assert (trial.status, trial.where) == (NAMED, f"{item.target} of step {other.title!r}")


def test_known_bugs_do_not_end_the_selftest() -> None:
    known = StepResult(7, "namespace pmem1", Verdict.KNOWN, 1.0, 0.5, (), "dax1.0; known bug uncounted")
    for result in (known, replace(known, verdict=Verdict.PASS)):
        require_done(result)
    for result in (replace(known, stops=True), replace(known, verdict=Verdict.FAIL)):
        with pytest.raises(InfraError, match=r"before any corruption: step 7 \(namespace pmem1\): dax1"):
            require_done(result)


def test_no_scene_at_all() -> None:
    trial = try_text(TEXT[0], ())
    assert (trial.status, trial.reason) == (INAPPLICABLE, "no step was recorded")


@pytest.mark.parametrize(
    ("find", "reason"),
    [
        (Scene.online, "no memory block of hot-added memory is online"),
        (Scene.offline, "no memory block of hot-added memory is offline"),
        (Scene.removed, "nothing was removed"),
        (Scene.self_hosted, "no memmap lies on its own device"),
        (Scene.partial_section, "every hot-added section is whole"),
        (lambda scene: scene.device("dimm"), "no dimm is plugged"),
        (lambda scene: scene.block("going-offline", hot=False), "no memory block of boot memory is going-offline"),
    ],
)
def test_a_fresh_boot_has_nothing_to_aim_at(find: object, reason: str) -> None:
    assert callable(find)
    with pytest.raises(Inapplicable, match=f"^{reason}$"):
        find(scenes_of("arm64-story")[0])
