# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JSON, described by ``schema.json`` beside this file.

``version`` increases when a field changes its meaning or is removed; new fields may appear at any time.
A file that is read may come from another machine: every field is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from harness import __version__
from harness.bounded import load_json, read_file
from harness.check import CATALOGUE, CheckResult, Finding
from harness.codec import Codec, override
from harness.errors import UsageError
from harness.report.tally import Tally, exit_status, overall, tally
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import RunResult, StepResult
from harness.state import Unknown

FORMAT = "memhp-results"
VERSION = 1


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the results."""
    return cast(dict[str, Any], json.loads(files("harness.report").joinpath("schema.json").read_text("utf-8")))


def results_to_json(runs: Sequence[RunResult], named: bool = False, missing: bool = False) -> dict[str, object]:
    """All runs of one command as a JSON object; ``named`` and ``missing`` are as in ``overall``."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "memhp": __version__,
        "verdict": overall(runs, named, missing).value,
        "exit_status": exit_status(runs, named, missing),
        "invariants": _tallies(tally(runs)),
        "runs": [_run(run) for run in runs],
    }


def dumps(value: object) -> str:
    """``value`` as text, ASCII only, with a newline at the end."""
    # JSON has # in strings alone. ``##`` may begin a command of a CI system (see ``clean``).
    return json.dumps(value, indent=2, ensure_ascii=True).replace("##", "#\\u0023") + "\n"


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
    distinct = dict.fromkeys(step.memory for step in run.steps if step.memory is not None)
    maps = {found: number for number, found in enumerate(distinct)}
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
        since=("bugs", "unseen", "look"),
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


#: larger results are refused; those of a run of ``scenarios.file.MAX_STEPS`` steps have 700 MB and 27 million values
MAX_BYTES = 800 << 20
MAX_RESULT_VALUES = 32 << 20
_HINT = "name a file written by memhp run --json"


def load_results(path: Path) -> list[RunResult]:
    """The runs in the file ``path``, written by ``memhp run --json``.

    Raises UsageError, naming the file, if it cannot be read, is not such a file, or has another version.
    """
    try:
        value = load_json(read_file(path, MAX_BYTES), MAX_RESULT_VALUES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=_HINT) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{path} contains no memhp results", hint=_HINT)
    if value.get("version") != VERSION:
        shown = repr(value.get("version"))[:20]
        hint = "use the memhp that wrote it"
        raise UsageError(f"{path} was written by version {shown} of the schema, this memhp reads {VERSION}", hint=hint)
    try:
        runs = CODEC.load(value["runs"], list[dict[str, Any]])
        return [_read_run(run) for run in runs]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}", hint="run it again") from None


def _read_run(value: Mapping[str, Any]) -> RunResult:
    run = CODEC.load(value, RunResult)
    maps = dict(enumerate(CODEC.load(value.get("maps", []), list[MemoryMap])))
    places = [CODEC.load(step.get("map"), int | None) for step in value["steps"]]
    steps = (
        step if place is None else dataclasses.replace(step, memory=maps[place])
        for step, place in zip(run.steps, places, strict=True)
    )
    return dataclasses.replace(run, steps=tuple(steps))
