# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JSON, described by ``schema.json`` beside this file.

``version`` increases when a field changes its meaning or is removed; new fields may appear at any time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

from harness import __version__
from harness.check import CATALOGUE, CheckResult, Finding
from harness.codec import Codec, override
from harness.report.tally import Tally, exit_status, overall, tally
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import RunResult, StepResult
from harness.state import Unknown

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
    # Many steps have equal maps, in a soak above all: each map is written once.
    seen = dict.fromkeys(step.memory for step in run.steps if step.memory is not None)
    maps = {found: number for number, found in enumerate(seen)}
    value: dict[str, Any] = CODEC.dump(run)
    for id, bug in value["known_bugs"].items():
        bug["met"] = id in run.met
    for entry, step in zip(value["steps"], run.steps, strict=True):
        entry["map"] = None if step.memory is None else maps[step.memory]
    return value | {"invariants": _tallies(tally([run])), "maps": [CODEC.dump(found) for found in maps]}


def _plain(value: object) -> object:
    """``value`` as JSON types; paths and other objects become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_plain(part) for part in value]
    return str(value)


def _status(value: Any, _: type) -> str:
    if value not in ("pass", "fail", "not-observed"):
        raise ValueError(f"{str(value)[:40]!r} is not a check status")
    return str(value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Bug:
    title: str


def _codec() -> Codec:
    codec = Codec()
    codec.register_unstructure_hook(float, lambda seconds: round(seconds, 6))
    codec.describe(Finding)
    codec.describe(Unknown)
    codec.describe(CheckResult, since=("note",), status=override(struct_hook=_status))
    codec.describe(MemoryMap)
    codec.describe(
        StepResult,
        since=("bugs", "unseen"),
        # The memory is in the run's maps; ``stops`` has no meaning after the run.
        memory=override(omit=True),
        stops=override(omit=True),
        bugs=override(rename="known_bugs"),
        unseen=override(rename="known_bugs_unseen"),
    )
    codec.describe(
        RunResult,
        since=("unknown", "bugs", "left"),
        family=override(omit=True),
        lacks=override(omit=True),
        left=override(rename="steps_left"),
        facts=override(unstruct_hook=_plain),
        bugs=override(
            rename="known_bugs",
            struct_hook=lambda bugs, _: {id: bug.title for id, bug in codec.structure(bugs, dict[str, _Bug]).items()},
            unstruct_hook=lambda bugs: {id: {"title": title} for id, title in bugs.items()},
        ),
    )
    return codec


#: reads and writes a run's result
CODEC = _codec()
