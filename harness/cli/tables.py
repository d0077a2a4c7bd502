# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp ptdump`` and ``memhp sections``: a snapshot's page tables and memory sections, and what changed in them."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.arch import ArchSpec, arch_named
from harness.cli.options import GUEST_OPTIONS, guest_of, read_seconds, start_of
from harness.cli.parser import Arguments
from harness.collect.store import load_facts, load_state
from harness.errors import InfraError, UsageError
from harness.report.observed import Observed, dump_of, read_range, sections_of, shape_of
from harness.report.ptdump import dump_to_json, render, select
from harness.report.sections import (
    compare_sections,
    render_section_changes,
    render_sections,
    section_change_to_json,
    section_to_json,
    within,
)
from harness.report.tablediff import change_to_json, compare, render_changes
from harness.report.text import clean, tell
from harness.scenarios.file import SNAPSHOT
from harness.scratch import private_directory
from harness.units import AddrRange

_NUMBER = re.compile(r"[0-9]{1,9}")
_BUNDLE_HINT = "a bundle of memhp run, what memhp collect wrote, or one of its states/NNN"
#: no facts' meta.json is larger
_MAX_META = 1 << 20


def ptdump(arguments: Arguments) -> int:
    """memhp ptdump."""
    ranges = _ranges(arguments)
    with _chosen(arguments) as snapshots:
        dumps = [select(dump_of(snapshot), arguments.region, ranges) for snapshot in snapshots]
        if len(dumps) == 1:
            [dump], [snapshot] = dumps, snapshots
            source = {"source": "host" if dump.exact else "guest"}
            _print(arguments, lambda: _about(snapshot) | source | dump_to_json(dump), render(dump))
            return 0
        arch = snapshots[0].arch.name
        changes = compare(*dumps)
        rows = [change_to_json(change, arch) for change in changes]
        _print_changes(arguments, snapshots, rows, render_changes(changes, arch))
    return 0


def sections(arguments: Arguments) -> int:
    """memhp sections."""
    ranges = _ranges(arguments)
    with _chosen(arguments) as snapshots:
        shape = shape_of(snapshots[-1])
        found = [within(sections_of(snapshot), shape, ranges) for snapshot in snapshots]
        if len(found) == 1:
            rows = {"sections": [section_to_json(section, shape) for section in found[0]]}
            _print(arguments, lambda: _about(snapshots[0]) | rows, render_sections(found[0], shape))
            return 0
        changes = compare_sections(*found)
        lines = render_section_changes(changes, shape)
        _print_changes(arguments, snapshots, [section_change_to_json(change, shape) for change in changes], lines)
    return 0


def _about(snapshot: Observed) -> dict[str, object]:
    return {"snapshot": snapshot.label, "arch": snapshot.arch.name, "kernel": snapshot.facts.release}


def _print(arguments: Arguments, value: Callable[[], object], lines: Iterable[str]) -> None:
    if arguments.json:
        sys.stdout.write(json.dumps(value(), indent=1) + "\n")
    else:
        sys.stdout.writelines(lines)


def _print_changes(
    arguments: Arguments, snapshots: Sequence[Observed], rows: list[dict[str, object]], lines: Iterable[str]
) -> None:
    old, new = snapshots
    if old.state.boot_id != new.state.boot_id:
        tell("the two snapshots are of different boots: addresses need not mean the same")
    if not rows:
        tell("no difference")
    heads = [f"--- {clean(old.label)}\n", f"+++ {clean(new.label)}\n"] if rows else []
    value = {"old": _about(old), "new": _about(new), "changes": rows}
    _print(arguments, lambda: value, [*heads, *lines])


def _ranges(arguments: Arguments) -> list[AddrRange]:
    try:
        return [read_range(text) for text in arguments.range or ()]
    except UsageError as error:
        raise UsageError(f"--range: {error.message}", hint=error.hint) from None


@contextlib.contextmanager
def _chosen(arguments: Arguments) -> Iterator[list[Observed]]:
    """The snapshot that was asked for, or the two to compare."""
    where = None if arguments.directory is None else Path(arguments.directory)
    guest = any(getattr(arguments, name, None) is not None for name in _GUEST)
    if where is not None and guest:
        raise UsageError("a snapshot's directory and options of a guest exclude each other", hint=_BUNDLE_HINT)
    if arguments.diff is not None:
        yield _to_compare(arguments, where, guest)
    elif where is not None:
        yield [load_snapshot(where, arguments.state)]
    elif not guest:
        raise UsageError(
            "neither a snapshot's directory nor a guest to boot was named",
            hint=f"DIR: {_BUNDLE_HINT}; or a guest, such as -a arm64",
        )
    elif arguments.state is not None:
        raise UsageError("--state: a guest that is booted here has one snapshot", hint="leave --state out")
    else:
        with _booted(arguments) as snapshot:
            yield [snapshot]


_GUEST = ("arch", "guest", "node", "machine", *GUEST_OPTIONS)


def _to_compare(arguments: Arguments, where: Path | None, guest: bool) -> list[Observed]:
    if guest:
        raise UsageError("--diff compares saved snapshots, not guests to boot", hint="memhp collect saves one")
    if arguments.state is not None:
        raise UsageError("--state and --diff exclude each other", hint="DIR --diff 0 3 compares two states of DIR")
    if where is None:
        found = [load_snapshot(Path(name), None) for name in arguments.diff]
    else:
        for number in arguments.diff:
            _state_number(number, "--diff")
        found = [load_snapshot(where, number) for number in arguments.diff]
    if found[0].arch is not found[1].arch:
        raise UsageError(f"--diff: one snapshot is of {found[0].arch.name}, the other of {found[1].arch.name}")
    return found


def _state_number(text: str, option: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise UsageError(f"{option}: {text[:80]!r} is not the number of a state", hint="such as 0, the booted guest")
    return int(text)


def load_snapshot(directory: Path, state: str | None) -> Observed:
    """The snapshot of a bundle with the number ``state`` (None: its last one), or the one that ``directory`` itself is.

    Raises UsageError for what is neither, or has no such snapshot; ParseError for a source that is not understood.
    """
    number = None if state is None else _state_number(state, "--state")
    if not directory.is_dir():
        raise UsageError(f"no directory {directory}", hint=_BUNDLE_HINT)
    if (directory / "states").is_dir():
        chosen, facts = _state_of(directory, number), directory / "facts"
    else:
        chosen = directory
        places = [above / "facts" for above in directory.resolve().parents[:2] if (above / "facts").is_dir()]
        if not (directory / "meta.json").is_file() or not places:
            raise UsageError(f"{directory} is no bundle, and no snapshot with facts next to it", hint=_BUNDLE_HINT)
        if number is not None:
            raise UsageError(f"--state: {directory} is one snapshot, not a bundle of them", hint="leave --state out")
        facts = places[0]
    arch = _arch_of(facts)
    read = load_facts(facts, arch)
    return Observed(str(chosen), arch, read, load_state(chosen, read))


def _state_of(bundle: Path, number: int | None) -> Path:
    entries = [path for path in (bundle / "states").iterdir() if _NUMBER.fullmatch(path.name)]
    found = {int(path.name): path for path in entries if (path / "meta.json").is_file()}
    if not found:
        raise UsageError(f"{bundle} holds no snapshot", hint="its run ended before the guest was up")
    if number is None:
        return found[max(found)]
    if number not in found:
        known = ", ".join(str(other) for other in sorted(found))
        why = "that step has no snapshot" if any(int(path.name) == number for path in entries) else "no such state"
        raise UsageError(f"{bundle} has no snapshot {number}: {why}", hint=f"known: {known}")
    return found[number]


def _arch_of(facts: Path) -> ArchSpec:
    """The architecture that saved facts are of, which ``load_facts`` wants to be told."""
    path = facts / "meta.json"
    try:
        with path.open("rb") as file:
            meta: Any = json.loads(file.read(_MAX_META))
    except OSError as error:
        raise UsageError(f"no saved facts in {facts}: {error.strerror}", hint=_BUNDLE_HINT) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=_BUNDLE_HINT) from None
    name = meta.get("arch") if isinstance(meta, dict) else None
    if not isinstance(name, str):
        raise UsageError(f"{path} names no architecture", hint=_BUNDLE_HINT)
    return arch_named(name[:80])


@contextlib.contextmanager
def _booted(arguments: Arguments) -> Iterator[Observed]:
    """The one snapshot of a guest that is booted for it, by a run without steps."""
    guest = guest_of(arguments)
    timeout = read_seconds(arguments.timeout, "--timeout")
    from harness.progress import default_progress
    from harness.scenarios.options import RunOptions
    from harness.scenarios.reporter import SilentReporter
    from harness.scenarios.runner import run_scenarios

    with private_directory() as scratch:
        options, progress = RunOptions(scratch, timeout=timeout, start=start_of(arguments)), default_progress()
        with progress.task(f"Taking one snapshot of {clean(guest.name)}"):
            [result] = run_scenarios([SNAPSHOT], guest, options, SilentReporter(), progress)
        if result.bundle is None or not (result.bundle / "states" / "000" / "meta.json").is_file():
            raise InfraError(clean(result.reason) or "the guest gave no snapshot", hint=result.hint)
        found = load_snapshot(result.bundle, None)
        yield Observed(result.guest, found.arch, found.facts, found.state)


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {"ptdump": ptdump, "sections": sections}
