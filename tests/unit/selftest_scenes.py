# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of recorded runs, as scenes for corruptions."""

from __future__ import annotations

import functools
from pathlib import Path

from harness.model.boot_layout import boot_layout
from harness.model.memory_model import MemoryModel
from harness.scenarios.outcome import Outcome
from harness.scenarios.record import load_run
from harness.scenarios.verdict import evidence_of
from harness.selftest.scene import Scene

BUNDLES = Path(__file__).parent / "fixtures" / "bundles"


@functools.cache
def scenes_of(name: str) -> tuple[Scene, ...]:
    """The boot and all steps of a recorded run."""
    run = load_run(BUNDLES / name)
    model = MemoryModel(boot_layout(run.shape, run.facts, run.boot))
    scenes = [Scene("boot", evidence_of(model, Outcome(), run.boot))]
    for step in run.steps:
        for action in step.actions:
            model.apply(action)
        if step.state is not None:
            scenes.append(Scene(step.title, evidence_of(model, step.outcome, step.state, scenes[-1].evidence.observed)))
    return tuple(scenes)
