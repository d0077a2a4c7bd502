# SPDX-License-Identifier: GPL-2.0-or-later
"""Results read back from JSON: the inverse of ``harness.report.json``.

What is read was written by another process, perhaps on another machine: every field is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harness.check import CheckResult, Finding, Verdict
from harness.errors import UsageError
from harness.report.json import FORMAT, VERSION
from harness.scenarios.memorymap import MemoryMap
from harness.scenarios.result import RunResult, StepResult
from harness.state import Unknown
from harness.units import AddrRange

T = TypeVar("T")

#: results larger than this are refused
MAX_BYTES = 256 << 20


def load_results(path: Path) -> list[RunResult]:
    """The runs in the file ``path`` that ``memhp run --json`` wrote.

    Raises UsageError, naming the file, for what cannot be read, is no such file, or has another version.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="what memhp run --json wrote") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB", hint="is this the right file?")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="what memhp run --json wrote") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{path} holds no results of memhp", hint="what memhp run --json wrote")
    if value.get("version") != VERSION:
        shown = repr(value.get("version"))[:20]
        hint = "use the memhp that wrote it"
        raise UsageError(f"{path} was written by version {shown} of the schema, this memhp reads {VERSION}", hint=hint)
    try:
        return [_run(run) for run in _list(value["runs"])]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}", hint="run it again") from None


def _of(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise TypeError(f"{str(value)[:40]!r} is not of the type {kind.__name__}")
    return value


def _list(value: Any) -> Sequence[Any]:
    return _of(list, value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    return float(value)


def _maybe(read: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else read(value)


def _text(value: Any) -> str:
    return _of(str, value)


def _run(value: Mapping[str, Any]) -> RunResult:
    maps = [_map(one) for one in _list(value.get("maps", []))]
    return RunResult(
        scenario=_text(value["scenario"]),
        guest=_text(value["guest"]),
        arch=_text(value["arch"]),
        verdict=Verdict(value["verdict"]),
        reason=_text(value["reason"]),
        hint=_maybe(_text, value["hint"]),
        seconds=_number(value["seconds"]),
        boot_seconds=_number(value["boot_seconds"]),
        steps=tuple(_step(step, maps) for step in _list(value["steps"])),
        facts=_of(dict, value["facts"]),
        bundle=_maybe(lambda text: Path(_text(text)), value["bundle"]),
        started=_text(value["started"]),
        seed=_of(int, value["seed"]),
        unknown=tuple(_unknown(note) for note in _list(value.get("unknown", []))),
        bugs={id: _text(bug["title"]) for id, bug in _of(dict, value.get("known_bugs", {})).items()},
        left=_of(int, value.get("steps_left", 0)),
    )


def _unknown(value: Mapping[str, Any]) -> Unknown:
    return Unknown(_text(value["source"]), _text(value["kind"]), _text(value["example"]), _of(int, value["count"]))


def _step(value: Mapping[str, Any], maps: Sequence[MemoryMap]) -> StepResult:
    index = _maybe(lambda number: _of(int, number), value.get("map"))
    if index is not None and index < 0:
        raise ValueError(f"there is no map {index}")
    return StepResult(
        number=_of(int, value["number"]),
        title=_text(value["title"]),
        verdict=Verdict(value["verdict"]),
        seconds=_number(value["seconds"]),
        guest_seconds=_number(value["guest_seconds"]),
        checks=tuple(_check(check) for check in _list(value["checks"])),
        note=_text(value["note"]),
        changes=tuple(_text(line) for line in _list(value["changes"])),
        memory=None if index is None else maps[index],
        bugs=tuple(_text(id) for id in _list(value.get("known_bugs", []))),
        unseen=tuple(_text(id) for id in _list(value.get("known_bugs_unseen", []))),
    )


def _check(value: Mapping[str, Any]) -> CheckResult:
    names = ("invariant", "where", "expected", "observed", "source", "step")
    status = value["status"]
    if status not in ("pass", "fail", "not-observed"):
        raise ValueError(f"{str(status)[:40]!r} is no status of a check")
    return CheckResult(
        invariant=_text(value["invariant"]),
        status=status,
        findings=tuple(Finding(*(_text(found[name]) for name in names)) for found in _list(value["findings"])),
        reason=_text(value["reason"]),
        note=_text(value.get("note", "")),
    )


def _map(value: Mapping[str, Any]) -> MemoryMap:
    return MemoryMap(
        iomem=tuple(
            (_of(int, depth), AddrRange(_of(int, start), _of(int, end)), _text(name))
            for depth, start, end, name in _list(value["iomem"])
        ),
        blocks=tuple(
            (AddrRange(_of(int, start), _of(int, end)), _text(text)) for start, end, text in _list(value["blocks"])
        ),
    )
