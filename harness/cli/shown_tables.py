# SPDX-License-Identifier: GPL-2.0-or-later
"""Common to ``memhp ptdump`` and ``memhp sections``: choosing snapshots, printing tables or their changes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.arch import ArchSpec, arch_named
from harness.bounded import MAX_SMALL, load_json, read_file
from harness.cli.command_arguments import TableArguments
from harness.cli.guest_options import guest_of, start_of
from harness.cli.output import print_json
from harness.cli.values import STATE_NUMBER, read_state
from harness.collect.snapshot_folder import load_facts, load_state
from harness.errors import InfraError, UsageError
from harness.progress import default_progress
from harness.report.observed import Observed, read_range
from harness.report.text import clean, tell
from harness.scenarios.file import SNAPSHOT
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.run_options import RunOptions
from harness.scratch import private_directory
from harness.units import AddrRange

_BUNDLE_HINT = "a bundle of memhp run, a snapshot of memhp collect, or one of its states/NNN"
#: maximum size of the facts' meta.json


def about(snapshot: Observed) -> dict[str, object]:
    """The identity of a snapshot, for JSON."""
    return {"snapshot": snapshot.label, "arch": snapshot.arch.name, "kernel": snapshot.facts.release}


def print_tables(arguments: TableArguments, value: Callable[[], object], lines: Iterable[str]) -> None:
    """Print ``lines``, or ``value`` as JSON."""
    if arguments.json:
        print_json(value())
    else:
        sys.stdout.writelines(lines)


def print_changes(
    arguments: TableArguments, snapshots: Sequence[Observed], rows: list[dict[str, object]], lines: Iterable[str]
) -> None:
    """Print the changes between two snapshots."""
    old, new = snapshots
    if old.state.boot_id != new.state.boot_id:
        tell("the two snapshots are of different boots: their addresses may not be comparable")
    if not rows:
        tell("no difference")
    heads = [f"--- {clean(old.label)}\n", f"+++ {clean(new.label)}\n"] if rows else []
    value = {"old": about(old), "new": about(new), "changes": rows}
    print_tables(arguments, lambda: value, [*heads, *lines])


def ranges_of(arguments: TableArguments) -> list[AddrRange]:
    """The ranges of --range; raises UsageError."""
    try:
        return [read_range(text) for text in arguments.range]
    except UsageError as error:
        raise UsageError(f"--range: {error.message}", hint=error.hint) from None


@contextlib.contextmanager
def chosen_snapshots(arguments: TableArguments) -> Iterator[list[Observed]]:
    """The requested snapshot, or the two to compare."""
    where = arguments.directory
    guest = bool(arguments.given or arguments.guest or arguments.arch)
    if where is not None and guest:
        raise UsageError("a snapshot's directory and options of a guest exclude each other", hint=_BUNDLE_HINT)
    if arguments.diff:
        yield _to_compare(arguments, where, guest)
    elif where is not None:
        yield [load_snapshot(where, arguments.state)]
    elif not guest:
        raise UsageError(
            "name a snapshot's directory or a guest to boot",
            hint=f"DIR: {_BUNDLE_HINT}; or a guest, such as -a arm64",
        )
    elif arguments.state is not None:
        raise UsageError("--state: a guest booted here has only one snapshot", hint="remove --state")
    else:
        with _booted(arguments) as snapshot:
            yield [snapshot]


def _to_compare(arguments: TableArguments, where: Path | None, guest: bool) -> list[Observed]:
    if guest:
        raise UsageError("--diff compares saved snapshots, not guests to boot", hint="memhp collect saves one")
    if arguments.state is not None:
        raise UsageError("--state and --diff exclude each other", hint="DIR --diff 0 3 compares two states of DIR")
    if where is None:
        found = [load_snapshot(Path(name), None) for name in arguments.diff]
    else:
        found = [load_snapshot(where, number) for number in [read_state(text, "--diff") for text in arguments.diff]]
    if found[0].arch is not found[1].arch:
        raise UsageError(f"--diff: one snapshot is of {found[0].arch.name}, the other of {found[1].arch.name}")
    return found


def load_snapshot(directory: Path, number: int | None) -> Observed:
    """The snapshot ``number`` of the bundle ``directory`` (None: its last one), or the snapshot ``directory`` itself.

    Raises UsageError if it is neither or has no such snapshot, and ParseError for a source that cannot be parsed.
    """
    if not directory.is_dir():
        raise UsageError(f"no directory {directory}", hint=_BUNDLE_HINT)
    if (directory / "states").is_dir():
        chosen, facts = _state_of(directory, number), directory / "facts"
    else:
        chosen = directory
        places = [above / "facts" for above in directory.resolve().parents[:3] if (above / "facts").is_dir()]
        if not (directory / "meta.json").is_file() or not places:
            raise UsageError(f"{directory} is neither a bundle nor a snapshot with facts next to it", hint=_BUNDLE_HINT)
        if number is not None:
            raise UsageError(f"--state: {directory} is one snapshot, not a bundle of them", hint="remove --state")
        facts = places[0]
    arch = _arch_of(facts)
    read = load_facts(facts, arch)
    return Observed(str(chosen), arch, read, load_state(chosen, read))


def _state_of(bundle: Path, number: int | None) -> Path:
    entries = [path for path in (bundle / "states").iterdir() if STATE_NUMBER.fullmatch(path.name)]
    found = {int(path.name): path for path in entries if (path / "meta.json").is_file()}
    if not found:
        raise UsageError(f"{bundle} holds no snapshot", hint="the run ended before the guest was up")
    if number is None:
        return found[max(found)]
    if number not in found:
        known = ", ".join(str(other) for other in sorted(found))
        why = "that step has no snapshot" if any(int(path.name) == number for path in entries) else "no such state"
        raise UsageError(f"{bundle} has no snapshot {number}: {why}", hint=f"known: {known}")
    return found[number]


def _arch_of(facts: Path) -> ArchSpec:
    """The architecture of saved facts, which ``load_facts`` requires."""
    path = facts / "meta.json"
    try:
        meta: Any = load_json(read_file(path, MAX_SMALL))
    except OSError as error:
        raise UsageError(f"no saved facts in {facts}: {error.strerror}", hint=_BUNDLE_HINT) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=_BUNDLE_HINT) from None
    name = meta.get("arch") if isinstance(meta, dict) else None
    if not isinstance(name, str):
        raise UsageError(f"{path} names no architecture", hint=_BUNDLE_HINT)
    return arch_named(name[:80])


@contextlib.contextmanager
def _booted(arguments: TableArguments) -> Iterator[Observed]:
    """The snapshot of a guest booted for it, by a run without steps."""
    guest = guest_of(arguments, arguments.arch)
    from harness.scenarios.runner import run_scenarios

    with private_directory() as scratch:
        options = RunOptions(scratch, timeout=arguments.timeout, start=start_of(arguments))
        progress = default_progress()
        with progress.task(f"Taking one snapshot of {clean(guest.name)}"):
            [result] = run_scenarios([SNAPSHOT], guest, options, SilentReporter(), progress)
        if result.bundle is None or not (result.bundle / "states" / "000" / "meta.json").is_file():
            raise InfraError(clean(result.reason) or "the guest gave no snapshot", hint=result.hint)
        found = load_snapshot(result.bundle, None)
        yield Observed(result.guest, found.arch, found.facts, found.state)
