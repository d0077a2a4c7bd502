# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JSON, as ``schema.json`` beside this file describes them.

``version`` grows when a field changes its meaning or goes away; new fields may come at any time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

from harness import __version__
from harness.check import CATALOGUE
from harness.report.tally import Tally, exit_status, overall, tally
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import RunResult, StepResult

FORMAT = "memhp-results"
VERSION = 1


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the results."""
    return cast(dict[str, Any], json.loads(files("harness.report").joinpath("schema.json").read_text("utf-8")))


def results_to_json(runs: Sequence[RunResult]) -> dict[str, object]:
    """All runs of one command as a JSON object."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "memhp": __version__,
        "verdict": overall(runs).value,
        "exit_status": exit_status(runs),
        "invariants": _tallies(tally(runs)),
        "runs": [_run(run) for run in runs],
    }


def dumps(value: object) -> str:
    """``value`` as text, ASCII only, with a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def _tallies(counts: Mapping[str, Tally]) -> dict[str, object]:
    return {
        name: {
            "statement": CATALOGUE[name].statement if name in CATALOGUE else "",
            "pass": count.passed,
            "fail": count.failed,
            "known": count.known,
            "not_observed": count.not_observed,
            "reasons": count.reasons,
            "notes": count.notes,
        }
        for name, count in counts.items()
    }


def _run(run: RunResult) -> dict[str, object]:
    # Most steps leave the memory as another one did, those of a soak above all: each map is written once.
    seen = dict.fromkeys(step.memory for step in run.steps if step.memory is not None)
    maps = {found: number for number, found in enumerate(seen)}
    return {
        "scenario": run.scenario,
        "guest": run.guest,
        "arch": run.arch,
        "verdict": run.verdict.value,
        "reason": run.reason,
        "hint": run.hint,
        "started": run.started,
        "seconds": round(run.seconds, 6),
        "boot_seconds": round(run.boot_seconds, 6),
        "seed": run.seed,
        "known_bugs": {id: {"title": title, "met": id in run.met} for id, title in run.bugs.items()},
        "steps_left": run.left,
        "bundle": None if run.bundle is None else str(run.bundle),
        "facts": _plain(run.facts),
        "invariants": _tallies(tally([run])),
        "maps": [_map(found) for found in maps],
        "unknown": [dataclasses.asdict(note) for note in run.unknown],
        "steps": [_step(step, maps) for step in run.steps],
    }


def _map(found: MemoryMap) -> dict[str, object]:
    return {
        "iomem": [[depth, where.start, where.end, name] for depth, where, name in found.iomem],
        "blocks": [[where.start, where.end, text] for where, text in found.blocks],
    }


def _step(step: StepResult, maps: Mapping[MemoryMap, int]) -> dict[str, object]:
    return {
        "number": step.number,
        "title": step.title,
        "verdict": step.verdict.value,
        "seconds": round(step.seconds, 6),
        "guest_seconds": round(step.guest_seconds, 6),
        "note": step.note,
        "known_bugs": list(step.bugs),
        "known_bugs_unseen": list(step.unseen),
        "changes": list(step.changes),
        "map": None if step.memory is None else maps[step.memory],
        "checks": [
            {
                "invariant": check.invariant,
                "status": check.status,
                "reason": check.reason,
                "note": check.note,
                "findings": [dataclasses.asdict(finding) for finding in check.findings],
            }
            for check in step.checks
        ],
    }


def _plain(value: object) -> object:
    """JSON-able whatever a fact is made of: paths and the like as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_plain(part) for part in value]
    return str(value)
