# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be typed at the prompt: a line is either a step of a scenario or one of the other commands.

A step is turned into the text that it has in a scenario file (``plug dimm 1G`` becomes
``- plug-dimm: {id: dimm0, size: 1G}``), so that what is tried out here and what is run from a file are read by the same
reader, and refused with the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from harness.config.verbs import DAX_STATES, EXPECTATIONS, LOADS, ONLINE_TYPES, POLICIES
from harness.config.yaml import suggest
from harness.errors import UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """One command as help tells of it; ``words`` are what can follow its name, for completion."""

    name: str
    usage: str
    summary: str
    words: tuple[str, ...] = ()


_STEPS = (
    Command(
        "plug",
        "plug dimm|vmem|pmem SIZE [ID] [node=N] [slot=N] [address=A|top] [requested=SIZE] [block=SIZE] [backing=B]",
        "hot-add a pc-dimm, a virtio-mem device with room for SIZE, or a virtio-pmem device",
        ("dimm", "vmem", "pmem"),
    ),
    Command("unplug", "unplug ID [by=qemu|guest]", "hot-remove a device"),
    Command("resize", "resize ID SIZE [wait=false]", "ask a virtio-mem device for another size"),
    Command("settle", "settle ID", "wait for a resize that nobody waited for"),
    Command(
        "online",
        "online ID|boot|32-39,42 [kernel|movable|default] [first=N|last=N]",
        "bring memory blocks online",
        ("boot", *ONLINE_TYPES),
    ),
    Command(
        "offline",
        "offline ID|boot|32-39,42 [first=N|last=N] [attempts=N] [patience=SECONDS]",
        "take memory blocks offline",
        ("boot",),
    ),
    Command("auto-online", "auto-online POLICY", "set what becomes of memory that is added", POLICIES),
    Command("touch", "touch SIZE [ID]", "allocate, write and read back memory; some of it must lie in device ID"),
    Command("fill", "fill LEAVE", "allocate, write and read back all free memory but this much, and give it back"),
    Command(
        "pmem",
        "pmem ID raw|devdax|kmem [map=mem|dev] [align=SIZE]",
        "put a virtio-pmem device into a mode; kmem makes it system RAM, devdax takes it back",
        ("raw", "devdax", "kmem"),
    ),
    Command(
        "dax-state",
        "dax-state ID STATE [patience=SECONDS]",
        "write to the state of a device that kmem has: remove its memory, or add it again",
        DAX_STATES,
    ),
    Command(
        "kmem-fault",
        "kmem-fault ID [step=N] [of=slab|pages] [memmap=own]",
        "make it system RAM while one allocation after the other fails",
    ),
    Command("load", "load KIND [ID] [cpus=N …]", "start a load that goes round while steps are done", tuple(LOADS)),
    Command("unload", "unload ID", "end a load"),
    Command("hold", "hold DEVICE [ID] [pages=N]", "have a process hold pages of a device, so that they cannot move"),
    Command("occupy", "occupy SIZE DEVICE [ID]", "have a process keep so much of a device in use"),
    Command("release", "release ID", "let go of held or occupied pages, which must be as they were"),
    Command(
        "fail-notifier",
        "fail-notifier going-online|going-offline|none",
        "have the kernel's memory notifiers fail at an event",
        ("going-online", "going-offline", "none"),
    ),
    Command("dump", "dump", "compare what a crash dump would hold with /proc/iomem"),
    Command("reboot", "reboot", "reset the machine with all that is plugged"),
    Command("check", "check", "look, and check every invariant"),
    Command("-", "- VERB: {…}", "a step as it stands in a scenario file, such as one of parallel"),
)

_OTHERS = (
    Command("iomem", "iomem", "show /proc/iomem"),
    Command("blocks", "blocks", "show the memory blocks"),
    Command("zones", "zones", "show the zones"),
    Command("sections", "sections [START-END]", "show mem_section, as the host reads it"),
    Command("ptdump", "ptdump [START-END|REGION]", "show the page tables, as the host reads them"),
    Command("devices", "devices", "show QEMU's memory devices"),
    Command("map", "map", "draw the physical address space"),
    Command(
        "diff", "diff [NAME]", "show what is different from snapshot NAME (the last one; the boot, if there is none)"
    ),
    Command("log", "log [N]", "show the last N lines of the guest's kernel log (default 20)"),
    Command("console", "console [N|follow]", "show the last N lines of its console (default 20); or as they come"),
    Command("events", "events [N]", "show the last N QMP events (default 20)"),
    Command("ssh", "ssh [COMMAND]", "a shell in the guest, or one command"),
    Command("qmp", "qmp NAME|{…}", "say something to QEMU; it is not part of a saved scenario"),
    Command("snapshot", "snapshot NAME", "keep the guest as it is now, memory included"),
    Command("restore", "restore NAME", "go back to a snapshot"),
    Command("drgn", "drgn [VMLINUX]", "open drgn on the guest's memory"),
    Command("save", "save FILE", "write the steps so far as a scenario for memhp run"),
    Command("help", "help [COMMAND]", "show this"),
    Command("detach", "detach", "leave the guest to its keeper; for a guest of memhp attach alone"),
    Command("quit", "quit", "end the guest and leave"),
)

STEPS: Mapping[str, Command] = {command.name: command for command in _STEPS}
COMMANDS: Mapping[str, Command] = {command.name: command for command in (*_STEPS, *_OTHERS)}
#: other names, as people type them
ALIASES = {"exit": "quit", "?": "help", "dmesg": "log"}
#: names of loads that people know from elsewhere
_LOAD_ALIASES = {"ptdump-loop": "ptdump"}
_KINDS = {"dimm": "plug-dimm", "vmem": "plug-virtio-mem", "pmem": "plug-pmem"}
#: verbs that take their words as they are: positional arguments by name
_PLAIN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "unplug": ("unplug", ("id",)),
    "resize": ("resize", ("id", "to")),
    "settle": ("settle", ("id",)),
    "auto-online": ("auto-online", ("policy",)),
    "unload": ("unload", ("id",)),
    "release": ("release", ("id",)),
    "fill": ("fill", ("leave",)),
    "kmem-fault": ("kmem-fault", ("id",)),
    "dax-state": ("dax-state", ("id", "state")),
    "fail-notifier": ("fail-notifier", ("event",)),
    "dump": ("dump", ()),
    "reboot": ("reboot", ()),
    "check": ("check", ()),
    "touch": ("touch", ("size", "device")),
}
_OPTIONAL = {("touch", "device")}

# Nothing that means anything to YAML.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BLOCKS = re.compile(r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*")
#: memory blocks that one line may name
MAX_BLOCKS = 65536


@dataclass(frozen=True, slots=True)
class Known:
    """What the words of a line can mean: ``devices`` maps ids to their kind or, for virtio-pmem, to its mode."""

    devices: Mapping[str, str]
    loads: Collection[str] = ()
    held: Collection[str] = ()


def split(line: str) -> tuple[str, str]:
    """The command that ``line`` names, and the rest; ("", "") for an empty line or a comment. Raises UsageError."""
    text = line.strip()
    if not text or text.startswith("#"):
        return "", ""
    if text.startswith("- "):
        return "-", text
    name, _, rest = text.partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        raise UsageError(f"no command {name[:40]!r}", hint=f"{suggest(name, COMMANDS)} (help shows them all)")
    return name, rest.strip()


def step_text(name: str, rest: str, known: Known) -> str:
    """The step, as in a scenario file, that command ``name`` means with the words of ``rest``. Raises UsageError."""
    if name == "-":
        return rest
    words, named = _read_words(name, rest)
    expect = named.pop("expect", None)
    if expect is not None and expect not in EXPECTATIONS:
        raise UsageError(f"{expect!r} is no ending", hint=f"known: {', '.join(EXPECTATIONS)}")
    verb, args = _TRANSLATORS[name](words, known) if name in _TRANSLATORS else _plain(name, words)
    for key, value in named.items():
        if key in args:
            raise UsageError(f"duplicate argument: {key}", hint=STEPS[name].usage)
        args[key] = value
    body = ", ".join(f"{key}: {value}" for key, value in args.items())
    ending = "" if expect is None else f"\n  expect: {expect}"
    return f"- {verb}: {{{body}}}{ending}"


def _read_words(name: str, rest: str) -> tuple[list[str], dict[str, str]]:
    words: list[str] = []
    named: dict[str, str] = {}
    for word in rest.split():
        key, equals, value = word.partition("=")
        if equals:
            if key in named:
                raise UsageError(f"duplicate argument: {key}", hint=STEPS[name].usage)
            if not _WORD.fullmatch(key) or not _WORD.fullmatch(value):
                raise UsageError(f"{word[:80]!r} is invalid", hint=STEPS[name].usage)
            named[key] = value
        elif _WORD.fullmatch(word) or _BLOCKS.fullmatch(word):
            words.append(word)
        else:
            raise UsageError(f"{word[:80]!r} is invalid", hint=STEPS[name].usage)
    return words, named


def _plain(name: str, words: Sequence[str]) -> tuple[str, dict[str, str]]:
    verb, order = _PLAIN[name]
    needed = [key for key in order if (name, key) not in _OPTIONAL]
    _count(name, words, len(needed), len(order))
    return verb, dict(zip(order, words, strict=False))


def _count(name: str, words: Sequence[str], least: int, most: int) -> None:
    if not least <= len(words) <= most:
        which = "too few" if len(words) < least else "too many"
        raise UsageError(f"{name}: {which} words", hint=STEPS[name].usage)


def _fresh(prefix: str, taken: Collection[str]) -> str:
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def _plug(words: Sequence[str], known: Known) -> tuple[str, dict[str, str]]:
    _count("plug", words, 2, 3)
    kind, size = words[:2]
    if kind not in _KINDS:
        raise UsageError(f"plug: {kind!r} is no kind of device", hint=suggest(kind, _KINDS))
    id = words[2] if len(words) == 3 else _fresh(kind, known.devices)
    return _KINDS[kind], {"id": id, "max" if kind == "vmem" else "size": size}


def _blocks(name: str, words: Sequence[str], known: Known, most: int) -> dict[str, str]:
    _count(name, words, 1, most)
    what = words[0]
    if what == "boot":
        return {"boot": "true"}
    if what in known.devices or not _BLOCKS.fullmatch(what):
        return {"device": what}
    numbers: list[int] = []
    for piece in what.split(","):
        first, _, last = piece.partition("-")
        start, end = int(first), int(last or first)
        if end < start or end - start >= MAX_BLOCKS - len(numbers):
            raise UsageError(
                f"{name}: {piece} is no range of memory blocks", hint=f"such as 32-39, {MAX_BLOCKS} at most"
            )
        numbers += range(start, end + 1)
    return {"blocks": f"[{', '.join(map(str, numbers))}]"}


def _online(words: Sequence[str], known: Known) -> tuple[str, dict[str, str]]:
    args = _blocks("online", words, known, 2)
    return "online", args | ({"type": words[1]} if len(words) == 2 else {})


def _offline(words: Sequence[str], known: Known) -> tuple[str, dict[str, str]]:
    return "offline", _blocks("offline", words, known, 1)


def _pmem(words: Sequence[str], known: Known) -> tuple[str, dict[str, str]]:
    _count("pmem", words, 2, 2)
    id, mode = words
    if mode == "kmem" or (mode == "devdax" and known.devices.get(id) == "kmem"):
        return mode, {"id": id}
    return "namespace", {"id": id, "mode": mode}


def _load(words: Sequence[str], known: Known) -> tuple[str, dict[str, str]]:
    _count("load", words, 1, 2)
    kind = _LOAD_ALIASES.get(words[0], words[0])
    return "load", {"id": words[1] if len(words) == 2 else _fresh(kind, known.loads), "kind": kind}


def _hold(words: Sequence[str], known: Known) -> tuple[str, dict[str, str]]:
    _count("hold", words, 1, 2)
    return "hold", {"id": words[1] if len(words) == 2 else _fresh("held", known.held), "device": words[0]}


def _occupy(words: Sequence[str], known: Known) -> tuple[str, dict[str, str]]:
    _count("occupy", words, 2, 3)
    id = words[2] if len(words) == 3 else _fresh("data", known.held)
    return "occupy", {"id": id, "device": words[1], "size": words[0]}


_TRANSLATORS: Mapping[str, Callable[[Sequence[str], Known], tuple[str, dict[str, str]]]] = {
    "plug": _plug,
    "online": _online,
    "offline": _offline,
    "pmem": _pmem,
    "load": _load,
    "hold": _hold,
    "occupy": _occupy,
}


def help_lines(name: str = "") -> list[str]:
    """What ``help`` prints: all commands, or one. Raises UsageError."""
    if name:
        command = COMMANDS[split(name)[0]]
        lines = [command.usage, f"  {command.summary}"]
        return [*lines, f"  words: {', '.join(command.words)}"] if command.words else lines
    width = max(len(command.name) for command in COMMANDS.values())
    rows = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values()]
    return [
        "Steps (checked; part of what save writes; expect=refused and the like say how one is meant to end):",
        *rows[: len(_STEPS)],
        "Looking and the rest:",
        *rows[len(_STEPS) :],
        "help COMMAND tells how one is written; Tab completes.",
    ]


def completions(before: str, known: Known) -> list[str]:
    """The words that can follow ``before``, the text left of the cursor, its last word begun or empty."""
    words = before.split()
    if not words or (len(words) == 1 and not before.endswith(" ")):
        start = words[0] if words else ""
        return [name for name in COMMANDS if name.startswith(start) and name != "-"]
    start = "" if before.endswith(" ") else words[-1]
    name = ALIASES.get(words[0], words[0])
    command = COMMANDS.get(name)
    if command is None:
        return []
    found = list(COMMANDS) if name == "help" else list(command.words)
    if name in (
        "unplug",
        "resize",
        "settle",
        "online",
        "offline",
        "touch",
        "pmem",
        "kmem-fault",
        "dax-state",
        "hold",
        "occupy",
    ):
        found += known.devices
    if name == "unload":
        found += known.loads
    if name == "release":
        found += known.held
    return [word for word in found if word.startswith(start) and word != "-"]
