# SPDX-License-Identifier: GPL-2.0-or-later
"""Typed lines become the text of a scenario's step, or are refused with a hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.arguments import parameters
from harness.errors import ConfigError, UsageError
from harness.model.devices.device import KINDS as MODELLED
from harness.qemu.devices.device import KINDS
from harness.scenarios.file import parse_step
from harness.scenarios.verbs import VERBS
from harness.scenarios.verbs.verb import Known, Verb
from harness.shell.commands import read_qmp
from harness.shell.lines import COMMANDS, STEPS, completions, help_lines, split, step_text
from harness.shell.prompt import open_history, split_commands, state_dir

KNOWN = Known({"dimm0": "", "vmem0": "", "pmem0": "devdax", "pmem1": "kmem"}, ("ptdump0",), ("held0",))

#: the words of ``plug``: one for each kind of device
PLUGS = [verb.line.form.split()[1] for verb in STEPS["plug"]]


def typed(line: str) -> str:
    return step_text(*split(line), KNOWN)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("plug dimm 1G", "- plug-dimm: {id: dimm1, size: 1G}"),
        ("plug dimm 1G big node=1 address=top", "- plug-dimm: {id: big, size: 1G, node: 1, address: top}"),
        ("plug vmem 4G", "- plug-virtio-mem: {id: vmem1, max: 4G}"),
        ("plug pmem 512M p", "- plug-pmem: {id: p, size: 512M}"),
        ("resize vmem0 1536M", "- resize: {id: vmem0, to: 1536M}"),
        ("resize vmem0 0 wait=false", "- resize: {id: vmem0, to: 0, wait: false}"),
        ("settle vmem0", "- settle: {id: vmem0}"),
        ("online 32-34,40 movable", "- online: {blocks: [32, 33, 34, 40], type: movable}"),
        ("online dimm0 kernel last=2", "- online: {device: dimm0, type: kernel, last: 2}"),
        ("offline boot last=1", "- offline: {boot: true, last: 1}"),
        ("unplug dimm0 expect=refused says=EBUSY", "- unplug: {id: dimm0}\n  expect: refused\n  says: EBUSY"),
        ("auto-online online_movable", "- auto-online: {policy: online_movable}"),
        ("touch 64M dimm0", "- touch: {device: dimm0, size: 64M}"),
        ("touch 64M", "- touch: {size: 64M}"),
        ("pmem pmem0 kmem", "- kmem: {id: pmem0}"),
        ("pmem pmem0 devdax map=dev", "- namespace: {id: pmem0, mode: devdax, map: dev}"),
        ("pmem pmem1 devdax", "- devdax: {id: pmem1}"),
        ("load ptdump-loop", "- load: {id: ptdump1, kind: ptdump}"),
        ("load ptdump x cpus=2", "- load: {id: x, kind: ptdump, cpus: 2}"),
        ("unload ptdump0", "- unload: {id: ptdump0}"),
        ("hold dimm0", "- hold: {id: held1, device: dimm0}"),
        ("hold dimm0 x pages=4", "- hold: {id: x, device: dimm0, pages: 4}"),
        ("occupy 64M dimm0", "- occupy: {id: data0, device: dimm0, size: 64M}"),
        ("release held0", "- release: {id: held0}"),
        ("offline dimm0 patience=2 attempts=3", "- offline: {device: dimm0, patience: 2, attempts: 3}"),
        ("plug dimm 1G backing=thp", "- plug-dimm: {id: dimm1, size: 1G, backing: thp}"),
        ("fill 64M", "- fill: {leave: 64M}"),
        ("kmem-fault pmem0 step=3", "- kmem-fault: {id: pmem0, step: 3}"),
        ("kmem-fault pmem0 memmap=own", "- kmem-fault: {id: pmem0, memmap: own}"),
        ("fail-notifier going-online", "- fail-notifier: {event: going-online}"),
        ("dump", "- dump: {}"),
        ("reboot", "- reboot: {}"),
        ("  check  ", "- check: {}"),
        ("- parallel: [{check: {}}]", "- parallel: [{check: {}}]"),
    ],
)
def test_a_line_is_a_step_of_a_scenario(line: str, text: str) -> None:
    assert typed(line) == text
    if "parallel" not in text:
        parse_step(text, Path("line"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plgu dimm 1G", "unknown command 'plgu'\n  hint: did you mean 'plug'?"),
        ("plug", f"plug: too few words\n  hint: plug {'|'.join(PLUGS)} SIZE"),
        ("plug dimm 1G a b", "plug: too many words"),
        ("plug dim 1G", f"plug: 'dim' is not one of {', '.join(PLUGS)}\n  hint: did you mean 'dimm'?"),
        ("plug dimm {x}", "'{x}' is invalid"),
        ("plug dimm 1G slot=", "'slot=' is invalid"),
        ("plug dimm 1G slot=1 slot=2", "duplicate argument: slot"),
        ("plug dimm 1G size=2G", "duplicate argument: size"),
        ("online 9-3", "online: 9-3 is not a range of memory blocks\n  hint: for example 32-39"),
        ("online 0-99999999", "not a range of memory blocks"),
        ("unplug dimm0 expect=never", "invalid value of expect: 'never'\n  hint: known: done, refused"),
    ],
)
def test_what_cannot_be_meant_is_refused(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        typed(line)
    assert message in str(caught.value)


def test_a_step_must_be_one() -> None:
    with pytest.raises(ConfigError, match="expected one step, found 2"):
        parse_step("- check: {}\n- check: {}", Path("line"))


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_every_verb_has_a_short_form(verb: type[Verb]) -> None:
    """The shortest line that its form allows, made of what is known of its arguments."""
    line = [word for word in verb.line.form.split() if word[0] != "["]
    for place, word in enumerate(line):
        if word[0] == "<":
            special, argument = verb.line.words.get(word[1:-1]), parameters(verb).get(word[1:-1])
            choices = special.choices if special is not None else argument.argument.choices if argument else ()
            ids = list(KNOWN.ids(argument.argument.names)) if argument and argument.argument.names else []
            ids = [id for id in ids if verb.line.mode in ("", KNOWN.devices.get(id))]
            line[place] = (*choices, *ids, "128M")[0]
    assert parse_step(typed(" ".join(line)), Path("line")).verb == verb.name


def test_every_kind_of_device_can_be_plugged() -> None:
    assert set(KINDS) == MODELLED
    assert len(PLUGS) == len(KINDS) and set(COMMANDS["plug"].words) == set(PLUGS)


def test_comments_and_empty_lines_are_nothing() -> None:
    assert split("") == split("  # plug dimm 1G") == ("", "")
    assert split("exit") == ("quit", "") and split("dmesg 5") == ("log", "5")


def test_help_knows_every_command() -> None:
    text = "\n".join(help_lines())
    assert all(f"  {name} " in text for name in COMMANDS)
    assert help_lines("plug")[0].startswith(f"plug {'|'.join(PLUGS)} SIZE")
    assert {"dimm", "vmem", "pmem"} <= set(PLUGS)
    with pytest.raises(UsageError, match="unknown command 'nothing'"):
        help_lines("nothing")


def test_completion() -> None:
    assert completions("onl", KNOWN) == ["online"]
    assert "plug" in completions("", KNOWN) and "-" not in completions("", KNOWN)
    assert completions("online d", KNOWN) == ["default", "dimm0"]
    assert completions("pmem pmem0 k", KNOWN) == ["kmem"]
    assert completions("unload ", KNOWN) == ["ptdump0"]
    assert completions("help unp", KNOWN) == ["unplug"]
    assert completions("nothing x", KNOWN) == []
    assert set(STEPS) <= set(COMMANDS)


def test_lines_of_one_word_of_the_command_line() -> None:
    assert split_commands("plug dimm 1G; check") == ["plug dimm 1G", " check"]
    assert split_commands('qmp {"a": "x;y", "b": [1;2]}; quit') == ['qmp {"a": "x;y", "b": [1;2]}', " quit"]


def test_qmp_takes_a_name_or_an_object() -> None:
    assert read_qmp("query-status") == ("query-status", {})
    assert read_qmp('qom-get {"path": "/"}') == ("qom-get", {"path": "/"})
    assert read_qmp('{"execute": "stop"}') == ("stop", {})
    for text, message in [
        ("", "qmp needs a command"),
        ("{", "invalid JSON"),
        ("x [1]", "not a JSON object"),
        ('{"run": "stop"}', "invalid QMP command"),
        ('{"execute": "stop", "id": 1}', "invalid QMP command"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_qmp(text)


def test_the_history_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_dir() == tmp_path / "state" / "memhp"
    history = open_history()
    history.append_string("plug dimm 1G")
    path = state_dir() / "history"
    assert "plug dimm 1G" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    path.unlink()
    path.mkdir()
    assert type(open_history()).__name__ == "InMemoryHistory"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_dir() == Path.home() / ".local" / "state" / "memhp"
