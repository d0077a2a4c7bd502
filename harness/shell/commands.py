# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the lines of the prompt until the session ends: scenario steps and the other commands."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from harness.bounded import load_json
from harness.check import Verdict
from harness.deadline import Deadline
from harness.errors import InfraError, MemhpError, QmpRefused, UsageError
from harness.report.observed import dump_of, read_range, sections_of, shape_of
from harness.report.ptdump_text import render, select
from harness.report.section_table import render_sections, within
from harness.report.text import clean, pasted
from harness.scenarios.outcome import Outcome
from harness.scenarios.session import Session
from harness.shell import guest_views, tty
from harness.shell.drgn import open_drgn
from harness.shell.explorer import Explorer, Leave
from harness.shell.lines import STEPS, help_lines, split, step_text
from harness.shell.snapshots import restore, take
from harness.units import AddrRange

_FEW = 20
#: prefixes of QMP commands that change nothing
_HARMLESS = ("query-", "qom-get", "qom-list", "device-list-properties", "qmp_capabilities")


def do(explorer: Explorer, line: str) -> None:
    """Run ``line``.

    Raises UsageError for an invalid request, Leave at the end of the session, InfraError if the guest or QEMU failed.
    """
    name, rest = split(line)
    if not name:
        return
    if name in STEPS:
        explorer.step(step_text(name, rest, explorer.known()))
    else:
        _OTHERS[name](explorer, rest)
    explorer.record()


def _no_words(name: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{name} takes no arguments", hint=name)


def _view(name: str, show: Callable[[Explorer], Iterable[Text]]) -> Callable[[Explorer, str], None]:
    def view(explorer: Explorer, rest: str) -> None:
        _no_words(name, rest)
        explorer.say(*show(explorer))

    return view


def _range_of(rest: str) -> list[AddrRange]:
    return [read_range(rest)] if rest else []


def _ptdump(explorer: Explorer, rest: str) -> None:
    is_range = rest[:1].isdigit() and "-" in rest
    region, ranges = (None, _range_of(rest)) if is_range else (rest or None, [])
    dump = select(dump_of(explorer.snapshot_of_now()), region, ranges)
    explorer.say_text("".join(render(dump)))


def _sections(explorer: Explorer, rest: str) -> None:
    now = explorer.snapshot_of_now()
    shape = shape_of(now)
    explorer.say_text("".join(render_sections(within(sections_of(now), shape, _range_of(rest)), shape)))


def _diff(explorer: Explorer, rest: str) -> None:
    found = [kept for kept in explorer.kept if not rest or kept.name == rest]
    if not found:
        known = ", ".join(kept.name for kept in explorer.kept[1:]) or "none yet"
        raise UsageError(f"unknown snapshot {rest[:40]!r}", hint=f"known: {known}")
    since = found[-1]
    lines = guest_views.changes(since.state, explorer.session.state, explorer.block_size)
    explorer.say(Text(f"since {clean(since.name)}:", style="bold"), *(lines or [Text("  no difference", style="dim")]))


def _number(rest: str, name: str) -> int:
    if not rest:
        return _FEW
    if not rest.isdecimal() or not 0 < int(rest[:9]) < 100_000:
        raise UsageError(f"{name}: invalid number of lines: {rest[:40]!r}", hint=f"for example {name} 50")
    return int(rest)


def _log(explorer: Explorer, rest: str) -> None:
    command = f"dmesg | tail -n {_number(rest, 'log')}"
    said = explorer.session.guest.shell.must(command, deadline=explorer.session.deadline(), limit=1 << 22)
    explorer.say_text(said.decode(errors="replace"))


def _console(explorer: Explorer, rest: str) -> None:
    console = explorer.session.guest.console
    if rest == "follow":
        tty.follow(console, lambda line: explorer.say(Text(clean(line))))
        return
    count = _number(rest, "console")
    explorer.say(*(Text(clean(line.text)) for line in console.lines()[-count:]))


def _events(explorer: Explorer, rest: str) -> None:
    events = explorer.session.guest.machine.qmp.events()
    chosen = events[-_number(rest, "events") :]
    start = events[0].monotonic if events else 0.0
    explorer.say(*(Text(clean(f"{event.monotonic - start:10.3f}  {event}")) for event in chosen))
    if not events:
        explorer.say(Text("no event yet", style="dim"))


def _ssh(explorer: Explorer, rest: str) -> None:
    shell, deadline = explorer.session.guest.shell, explorer.session.deadline()
    if rest:
        done = shell.run(rest, deadline=deadline, limit=1 << 22)
        for stream in (done.stdout, done.stderr):
            explorer.say_text(stream.decode(errors="replace"))
        if done.status:
            explorer.say(Text(f"status {done.status}", style="yellow"))
    else:
        if not explorer.interactive:
            raise UsageError("ssh needs a terminal", hint="ssh COMMAND runs one command")
        explorer.say(Text("a shell in the guest; Ctrl-D leaves it", style="dim"))
        tty.converse(shell, deadline)
    explorer.story.remark(f"ssh {clean(rest)}".strip())
    explorer.look("after ssh")


def _qmp(explorer: Explorer, rest: str) -> None:
    name, arguments = read_qmp(rest)
    qmp = explorer.session.guest.machine.qmp

    def ask(session: Session, deadline: Deadline) -> Outcome:
        try:
            answer = qmp.execute(name, arguments, deadline=deadline)
        except QmpRefused as refusal:
            raise UsageError(refusal.message) from None
        explorer.say_text(json.dumps(answer, indent=1, sort_keys=True))
        return Outcome()

    if name.startswith(_HARMLESS):
        ask(explorer.session, explorer.session.deadline())
        return
    explorer.story.remark(f"qmp {clean(rest)}")
    explorer.look(f"qmp {name}", ask)


def read_qmp(text: str) -> tuple[str, Mapping[str, Any]]:
    """Command and arguments of ``NAME [{…}]`` or ``{"execute": …, "arguments": {…}}``; raises UsageError."""
    if not text:
        raise UsageError("qmp needs a command", hint='qmp query-status, or qmp {"execute": "query-status"}')
    if not text.startswith("{"):
        name, _, rest = text.partition(" ")
        return name, _object(rest) if rest else {}
    message = _object(text)
    command, arguments = message.get("execute"), message.get("arguments", {})
    if not isinstance(command, str) or not isinstance(arguments, dict) or set(message) - {"execute", "arguments"}:
        raise UsageError("invalid QMP command", hint='{"execute": "query-status", "arguments": {}}')
    return command, arguments


def _object(text: str) -> dict[str, Any]:
    try:
        value = load_json(text)
    except ValueError as error:
        raise UsageError(f"invalid JSON: {error}", hint='for example {"execute": "query-status"}') from None
    if not isinstance(value, dict):
        raise UsageError("not a JSON object", hint='for example {"execute": "query-status"}')
    return value


def _save(explorer: Explorer, rest: str) -> None:
    if not rest:
        raise UsageError("save needs a file name", hint="save story.yaml")
    path = Path(os.path.expanduser(rest))
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{rest[:80]} does not end in .yaml or .yml", hint=f"save {rest[:80]}.yaml")
    story = explorer.story
    story.save(path)
    explorer.say(Text(f"{story.steps} steps in {clean(path)}; memhp run {pasted(path)} -a {explorer.spec.arch}"))
    if story.gaps:
        explorer.say(
            Text(
                f"{story.gaps} actions cannot be expressed in a scenario and were omitted, see the file", style="yellow"
            )
        )


def _help(explorer: Explorer, rest: str) -> None:
    explorer.say(*(Text(line) for line in help_lines(rest)))


def _quit(explorer: Explorer, rest: str) -> None:
    raise Leave


def _detach(explorer: Explorer, rest: str) -> None:
    _no_words("detach", rest)
    if not explorer.attached:
        raise UsageError("this guest has no keeper to leave it to", hint="use memhp run --keep")
    raise Leave(keep=True)


def _drgn(explorer: Explorer, rest: str) -> None:
    open_drgn(explorer, Path(rest) if rest else None)


_OTHERS: Mapping[str, Callable[[Explorer, str], None]] = {
    "iomem": _view("iomem", lambda explorer: guest_views.iomem(explorer.session.state)),
    "blocks": _view("blocks", lambda explorer: guest_views.blocks(explorer.session.state, explorer.block_size)),
    "zones": _view("zones", lambda explorer: guest_views.zones(explorer.session.state)),
    "devices": _view("devices", lambda explorer: guest_views.devices(explorer.session.state)),
    "map": _view("map", lambda explorer: guest_views.draw_map(explorer.session.state, explorer.block_size)),
    "sections": _sections,
    "ptdump": _ptdump,
    "diff": _diff,
    "log": _log,
    "console": _console,
    "events": _events,
    "ssh": _ssh,
    "qmp": _qmp,
    "snapshot": take,
    "restore": restore,
    "drgn": _drgn,
    "save": _save,
    "help": _help,
    "detach": _detach,
    "quit": _quit,
}


_STATUS = {Verdict.PASS: 0, Verdict.KNOWN: 0, Verdict.FAIL: 1}


def explore(explorer: Explorer, lines: Iterator[str]) -> tuple[int, bool]:
    """Run the lines; returns the exit status, and whether the guest is to be kept.

    0: nothing was found but known bugs. 1: an invariant was broken. 2: a line of a script was invalid (a person can
    type another one). 3: the guest or the harness failed, which ends the session if QEMU ended or in a script.
    """
    status: int | None = None
    try:
        for line in lines:
            status = _one(explorer, line)
            if status is not None:
                break
    except Leave as leave:
        return _STATUS.get(explorer.worst, 3), leave.keep
    return (_STATUS.get(explorer.worst, 3) if status is None else status), False


def _one(explorer: Explorer, line: str) -> int | None:
    """Run one line; returns the exit status if it ends the session."""
    if not explorer.interactive and line.strip():
        explorer.say(Text(f"> {clean(line.strip())}", style="bold"))
    try:
        do(explorer, line)
    except KeyboardInterrupt:
        if not explorer.interactive:
            raise
        explorer.say(Text("interrupted; use check to see the guest's state", style="yellow"))
    except UsageError as error:
        _complain(explorer, error)
        return None if explorer.interactive else error.exit_status
    except InfraError as error:
        _complain(explorer, error)
        if not explorer.interactive or not explorer.session.guest.machine.alive:
            # A broken invariant takes precedence.
            return _STATUS[Verdict.FAIL] if explorer.worst is Verdict.FAIL else error.exit_status
        explorer.worst = explorer.worst if explorer.worst is Verdict.FAIL else Verdict.INFRA
    return None


def _complain(explorer: Explorer, error: MemhpError) -> None:
    explorer.say(Text(clean(error.message, limit=20_000, newlines=True), style="red"))
    if error.hint:
        explorer.say(Text(f"  hint: {clean(error.hint, newlines=True)}"))
