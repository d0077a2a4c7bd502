# SPDX-License-Identifier: GPL-2.0-or-later
"""Results read back from JSON: the inverse of ``harness.report.json``.

The file may come from another machine: every field is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.report.json import CODEC, FORMAT, VERSION
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import RunResult

#: results larger than this are refused
MAX_BYTES = 256 << 20
_HINT = "name a file written by memhp run --json"


def load_results(path: Path) -> list[RunResult]:
    """The runs in the file ``path``, written by ``memhp run --json``.

    Raises UsageError, naming the file, if it cannot be read, is not such a file, or has another version.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB", hint="is this the right file?")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=_HINT) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{path} contains no memhp results", hint=_HINT)
    if value.get("version") != VERSION:
        shown = repr(value.get("version"))[:20]
        hint = "use the memhp that wrote it"
        raise UsageError(f"{path} was written by version {shown} of the schema, this memhp reads {VERSION}", hint=hint)
    try:
        runs = CODEC.load(value["runs"], list[dict[str, Any]])
        return [_run(run) for run in runs]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}", hint="run it again") from None


def _run(value: Mapping[str, Any]) -> RunResult:
    run = CODEC.load(value, RunResult)
    maps = dict(enumerate(CODEC.load(value.get("maps", []), list[MemoryMap])))
    places = [CODEC.load(step.get("map"), int | None) for step in value["steps"]]
    steps = (
        step if place is None else dataclasses.replace(step, memory=maps[place])
        for step, place in zip(run.steps, places, strict=True)
    )
    return dataclasses.replace(run, steps=tuple(steps))
