# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest at a prompt: does what a line says, shows what it changed, and keeps a record."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.text import Text

from harness.check import Verdict
from harness.cli.tables import Snapshot, dump_of, read_range, sections_of, shape_of
from harness.config.guest import GuestSpec
from harness.config.plan import Plan
from harness.config.verbs import LOADS
from harness.deadline import Deadline
from harness.errors import ConfigError, QmpRefused, UsageError
from harness.model.devices import Dimm, Pmem, VirtioMem
from harness.report.ptdump import render, select
from harness.report.sections import render_sections, within
from harness.report.terminal import finding_lines
from harness.report.text import WORDS, clean, invariants_line, seconds
from harness.scenarios.file import Step, needs_of, parse_step
from harness.scenarios.outcome import Outcome
from harness.scenarios.requirements import require_arch, require_boot, require_config, require_host
from harness.scenarios.result import StepResult
from harness.scenarios.runner import require_loads, work_of
from harness.scenarios.session import Session
from harness.shell import terminal, views
from harness.shell.lines import STEPS, Known, help_lines, split, step_text
from harness.shell.saved import Story
from harness.state import GuestState
from harness.units import AddrRange

if TYPE_CHECKING:
    from harness.shell.snapshots import Saved

_SOURCE = Path("line")
#: stands for the steps that led here
_NOW = Step("check", {}, 0)
_FEW = 20
#: QMP commands that change nothing
_HARMLESS = ("query-", "qom-get", "qom-list", "device-list-properties", "qmp_capabilities")


@dataclass(frozen=True, slots=True)
class Kept:
    """A state to compare with: the guest as it was when it was called ``name``."""

    name: str
    state: GuestState


class Leave(Exception):
    """The person has had enough; ``keep`` leaves the guest to its keeper."""

    def __init__(self, keep: bool = False) -> None:
        super().__init__(keep)
        self.keep = keep


def _fail(step: Step, name: str | None, message: str, hint: str | None) -> NoReturn:
    raise UsageError(message if name is None else f"{name}: {message}", hint=hint)


def plan_of(session: Session, spec: GuestSpec) -> Plan[Step]:
    """What later steps have to make sense after: the devices, loads and held pages that the guest has now."""
    plan: Plan[Step] = Plan(spec, _fail)
    for device in session.model.devices.values():
        args: dict[str, Any] = {"id": device.id, "size": device.range.size, "node": 0}
        # A refused step is one that need not have been possible.
        if isinstance(device, Dimm):
            args |= {"slot": device.slot, "address": None, "node": device.node}
            plan.follow(_NOW, "plug-dimm", args, "refused")
        elif isinstance(device, VirtioMem):
            args |= {"max": device.range.size, "block": device.block_size, "requested": device.requested}
            plan.follow(_NOW, "plug-virtio-mem", args, "refused")
        else:
            plan.follow(_NOW, "plug-pmem", args, "refused")
            if device.mode != "raw":
                plan.follow(_NOW, "namespace", {"id": device.id, "mode": "devdax"}, "done")
            if device.mode == "kmem":
                plan.follow(_NOW, "kmem", {"id": device.id}, "done")
    for id in session.loads:
        plan.follow(_NOW, "load", {"id": id, "kind": next(iter(LOADS))}, "done")
    for id in session.held:
        plan.follow(_NOW, "hold", {"id": id, "device": next(iter(session.model.devices))}, "done")
    return plan


class Explorer:
    """Runs lines on ``session``; everything is shown on ``console``.

    ``worst`` is the worst verdict so far: a step that the guest refused counts as passed, since it is shown as refused
    and saved as such. ``saved`` and ``folder`` are ``harness.shell.snapshots``'. ``resources`` are closed at the end.
    ``record`` is the file of the bundle that has the steps. ``interactive`` tells that a person sits at a terminal, so
    that commands that want one can be had.
    """

    def __init__(
        self,
        session: Session,
        spec: GuestSpec,
        console: Console,
        *,
        interactive: bool,
        record: str = "scenario.yaml",
    ) -> None:
        self.session = session
        self.spec = spec
        self.console = console
        self.interactive = interactive
        self.attached = record != "scenario.yaml"
        self.resources = contextlib.ExitStack()
        self.saved: dict[str, Saved] = {}
        self.folder: Path | None = None
        self.restores = 0
        self._file = record
        self.worst = Verdict.PASS
        self.story = Story(spec, session.guest.facts.release)
        self.plan = plan_of(session, spec)
        self.kept = [Kept("the boot", session.state)]

    @property
    def block_size(self) -> int:
        """Bytes in a memory block of this guest."""
        return self.session.layout.block_size

    def known(self) -> Known:
        """What the words of a line can mean now."""
        devices = self.session.model.devices
        modes = {id: device.mode if isinstance(device, Pmem) else "" for id, device in devices.items()}
        return Known(modes, tuple(self.session.loads), tuple(self.session.held))

    def examine_boot(self) -> None:
        """Check the guest as it was found."""
        self._tell_step(self.session.check_boot())

    def do(self, line: str) -> None:
        """Do what ``line`` says.

        Raises UsageError for an invalid request, Leave at its end, InfraError if the guest or QEMU is lost.
        """
        name, rest = split(line)
        if not name:
            return
        if name in STEPS:
            self._step(step_text(name, rest, self.known()))
        else:
            _OTHERS[name](self, rest)
        self._record()

    def _step(self, text: str) -> None:
        step = self._read(text)
        wanted = None if "\n  expect:" not in text and not step.expect_on else step.expect
        trial = copy.deepcopy(self.plan)
        self._follow(trial, step, step.expect)
        ending: list[str] = []
        work = work_of(step)

        def watched(session: Session, deadline: Deadline) -> Outcome:
            outcome = work(session, deadline)
            ending.append(outcome.ending)
            return outcome

        result = self.session.act(step.title, watched, wanted, step.bugs)
        came_to = ending[0] if ending else "done"
        self._follow(self.plan, step, came_to)
        self.story.add(text, step, came_to)
        self._tell_step(result, came_to)

    def _read(self, text: str) -> Step:
        try:
            step = parse_step(text, _SOURCE).on(self.spec.arch)
        except ConfigError as error:
            raise UsageError(error.message.partition(": ")[2] or error.message, hint=error.hint) from None
        if step.verb == "repeat":
            raise UsageError("a repeat cannot be typed here", hint="save the steps, and write it into the file")
        self._require(step)
        return step

    def _require(self, step: Step) -> None:
        """Refuse what this kernel cannot do before anything is tried."""
        facts, needs = self.session.guest.facts, needs_of([step])
        require_arch(needs, self.spec.arch)
        require_host(needs)
        require_boot(needs, self.spec.boot)
        require_config(needs, facts.config, f"the kernel {facts.release}")
        require_loads([step], facts.config)

    def _follow(self, plan: Plan[Step], step: Step, expect: str) -> None:
        if step.verb == "parallel":
            plan.check_side_by_side([(part, part.verb, part.args) for part in step.args["steps"]])
            for part in step.args["steps"]:
                plan.follow(part, part.verb, part.args, part.expect)
        else:
            plan.follow(step, step.verb, step.args, expect)

    def look(self, title: str, work: Callable[[Session, Deadline], Outcome] | None = None) -> StepResult:
        """Do something that no scenario can say, or nothing, and check; it is shown like any step."""
        result = self.session.act(title, work or (lambda session, deadline: Outcome()), None)
        self._tell_step(result)
        return result

    def _tell_step(self, result: StepResult, ending: str = "done") -> None:
        if result.verdict not in (Verdict.PASS, Verdict.KNOWN) and self.worst is not Verdict.FAIL:
            self.worst = result.verdict
        style = {Verdict.PASS: "green", Verdict.FAIL: "bold red"}.get(result.verdict, "yellow")
        word = ending if result.verdict is Verdict.PASS and ending != "done" else WORDS[result.verdict]
        told = f"  {clean(result.title)}  {seconds(result.seconds)}, {invariants_line(result.checks)}"
        self.say(Text.assemble((word, "yellow" if word == ending else style), told))
        if result.note:
            self.say(Text(f"  {clean(result.note)}", style="dim" if ending == "done" else "yellow"))
        for change in result.changes:
            self.say(Text("  ").append_text(views.change_line(change, self.block_size)))
        for check in result.checks:
            if check.status == "fail":
                self.say(*finding_lines(check))

    def say(self, *lines: Text | str) -> None:
        """Show lines; text of a guest must have been cleaned."""
        for line in lines:
            self.console.print(line)

    def _record(self) -> None:
        """The bundle's scenario is always what was done so far: a replay or a crash finds it whole."""
        self.session.recorder.directory.joinpath(self._file).write_text(self.story.text("shell"))

    def snapshot_of_now(self) -> Snapshot:
        """The latest snapshot, for the printers of tables."""
        session = self.session
        return Snapshot("now", session.layout.machine.arch, session.guest.facts, session.state)


def _no_words(name: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{name} takes no words", hint=f"{name} alone")


def _view(name: str, show: Callable[[Explorer], Iterable[Text]]) -> Callable[[Explorer, str], None]:
    def view(explorer: Explorer, rest: str) -> None:
        _no_words(name, rest)
        explorer.say(*show(explorer))

    return view


def _range_of(rest: str) -> list[AddrRange]:
    try:
        return [read_range(rest)] if rest else []
    except UsageError as error:
        raise UsageError(error.message.removeprefix("--range: "), hint=error.hint) from None


def _ptdump(explorer: Explorer, rest: str) -> None:
    is_range = rest[:1].isdigit() and "-" in rest
    dump = select(
        dump_of(explorer.snapshot_of_now()), None if is_range else rest or None, _range_of(rest) if is_range else []
    )
    for line in render(dump):
        explorer.say(Text(clean(line.rstrip("\n"))))


def _sections(explorer: Explorer, rest: str) -> None:
    now = explorer.snapshot_of_now()
    shape = shape_of(now)
    for line in render_sections(within(sections_of(now), shape, _range_of(rest)), shape):
        explorer.say(Text(clean(line.rstrip("\n"))))


def _diff(explorer: Explorer, rest: str) -> None:
    found = [kept for kept in explorer.kept if not rest or kept.name == rest]
    if not found:
        known = ", ".join(kept.name for kept in explorer.kept[1:]) or "none yet"
        raise UsageError(f"there is no snapshot {rest[:40]!r}", hint=f"known: {known}")
    since = found[-1]
    lines = views.changes(since.state, explorer.session.state, explorer.block_size)
    explorer.say(Text(f"since {clean(since.name)}:", style="bold"), *(lines or [Text("  no difference", style="dim")]))


def _number(rest: str, name: str) -> int:
    if not rest:
        return _FEW
    if not rest.isdecimal() or not 0 < int(rest[:9]) < 100_000:
        raise UsageError(f"{name}: {rest[:40]!r} is no number of lines", hint=f"such as {name} 50")
    return int(rest)


def _log(explorer: Explorer, rest: str) -> None:
    command = f"dmesg | tail -n {_number(rest, 'log')}"
    said = explorer.session.guest.shell.must(command, deadline=explorer.session.deadline(), limit=1 << 22)
    explorer.say(*(Text(clean(line)) for line in said.decode(errors="replace").splitlines()))


def _console(explorer: Explorer, rest: str) -> None:
    console = explorer.session.guest.console
    if rest == "follow":
        terminal.follow(console, lambda line: explorer.say(Text(clean(line))))
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
            explorer.say(*(Text(clean(line)) for line in stream.decode(errors="replace").splitlines()))
        if done.status:
            explorer.say(Text(f"status {done.status}", style="yellow"))
    else:
        if not explorer.interactive:
            raise UsageError("ssh needs a terminal", hint="ssh COMMAND runs one command")
        explorer.say(Text("a shell in the guest; Ctrl-D leaves it", style="dim"))
        terminal.converse(shell, deadline)
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
        explorer.say(*(Text(clean(line)) for line in json.dumps(answer, indent=1, sort_keys=True).splitlines()))
        return Outcome()

    if name.startswith(_HARMLESS):
        ask(explorer.session, explorer.session.deadline())
        return
    explorer.story.remark(f"qmp {clean(rest)}")
    explorer.look(f"qmp {name}", ask)


def read_qmp(text: str) -> tuple[str, Mapping[str, Any]]:
    """The command and the arguments that ``query-status`` or ``{"execute": …, "arguments": {…}}`` means."""
    if not text:
        raise UsageError("qmp: what?", hint='qmp query-status, or qmp {"execute": "query-status"}')
    if not text.startswith("{"):
        name, _, rest = text.partition(" ")
        return name, _object(rest) if rest else {}
    message = _object(text)
    command, arguments = message.get("execute"), message.get("arguments", {})
    if not isinstance(command, str) or not isinstance(arguments, dict) or set(message) - {"execute", "arguments"}:
        raise UsageError("this is no QMP command", hint='{"execute": "query-status", "arguments": {}}')
    return command, arguments


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"this is no JSON: {error}", hint='such as {"execute": "query-status"}') from None
    if not isinstance(value, dict):
        raise UsageError("this is no JSON object", hint='such as {"execute": "query-status"}')
    return value


def _save(explorer: Explorer, rest: str) -> None:
    if not rest:
        raise UsageError("save: no file was named", hint="save story.yaml")
    path = Path(rest).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{rest[:80]} is no YAML file by its name", hint=f"save {rest[:80]}.yaml")
    story = explorer.story
    story.save(path)
    explorer.say(Text(f"{story.steps} steps in {clean(path)}; memhp run {clean(path)} -a {explorer.spec.arch}"))
    if story.gaps:
        explorer.say(Text(f"{story.gaps} things that no scenario can say are left out, see the file", style="yellow"))


def _help(explorer: Explorer, rest: str) -> None:
    explorer.say(*(Text(line) for line in help_lines(rest)))


def _quit(explorer: Explorer, rest: str) -> None:
    raise Leave


def _detach(explorer: Explorer, rest: str) -> None:
    _no_words("detach", rest)
    if not explorer.attached:
        raise UsageError("there is no keeper to leave this guest to", hint="memhp run --keep has one")
    raise Leave(keep=True)


def _drgn(explorer: Explorer, rest: str) -> None:
    from harness.shell.drgn import open_drgn

    open_drgn(explorer, Path(rest) if rest else None)


def _snapshot(explorer: Explorer, rest: str) -> None:
    from harness.shell.snapshots import take

    take(explorer, rest)


def _restore(explorer: Explorer, rest: str) -> None:
    from harness.shell.snapshots import restore

    restore(explorer, rest)


_OTHERS: Mapping[str, Callable[[Explorer, str], None]] = {
    "iomem": _view("iomem", lambda explorer: views.iomem(explorer.session.state)),
    "blocks": _view("blocks", lambda explorer: views.blocks(explorer.session.state, explorer.block_size)),
    "zones": _view("zones", lambda explorer: views.zones(explorer.session.state)),
    "devices": _view("devices", lambda explorer: views.devices(explorer.session.state)),
    "map": _view("map", lambda explorer: views.draw_map(explorer.session.state, explorer.block_size)),
    "sections": _sections,
    "ptdump": _ptdump,
    "diff": _diff,
    "log": _log,
    "console": _console,
    "events": _events,
    "ssh": _ssh,
    "qmp": _qmp,
    "snapshot": _snapshot,
    "restore": _restore,
    "drgn": _drgn,
    "save": _save,
    "help": _help,
    "detach": _detach,
    "quit": _quit,
}
