# SPDX-License-Identifier: GPL-2.0-or-later
"""The grammar of the prompt: a line is either a scenario step or one of the other commands.

A step is translated into its text in a scenario file (``plug dimm 1G`` becomes
``- plug-dimm: {id: dimm0, size: 1G}``), so that prompt and file share the reader and its error messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from harness.check.findings import EXPECTATIONS
from harness.config.arguments import parameters
from harness.config.yaml import suggest
from harness.errors import UsageError
from harness.scenarios.verbs import VERBS
from harness.scenarios.verbs.verb import Known, Verb


@dataclass(frozen=True, slots=True)
class Command:
    """The help of one command: ``overview`` are its (label, summary) lines; ``words`` can follow it."""

    usage: str
    overview: tuple[tuple[str, str], ...]
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Slot:
    """One word after a command: literally ``text`` if ``read`` is None, else a value for which ``text`` is the label.

    ``arguments`` are the verb's arguments that it can set, ``choices`` examples of what can be typed.
    """

    text: str
    arguments: tuple[str, ...] = ()
    read: Callable[[str, Known], Mapping[str, str]] | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False


def _slots(verb: type[Verb]) -> list[_Slot]:
    return [_slot(verb, word) for word in verb.line.form.split()[1:]]


def _slot(verb: type[Verb], word: str) -> _Slot:
    if word[0] not in "<[":
        return _Slot(word, choices=(word,))
    name, optional = word[1:-1], word[0] == "["
    if name in verb.line.words:
        special = verb.line.words[name]
        return _Slot(special.label, special.arguments, special.read, special.choices, optional)
    argument = parameters(verb)[name].argument
    return _Slot(argument.label, (name,), lambda text, known: {name: text}, argument.choices, optional)


def _usage(command: str, verbs: Sequence[type[Verb]]) -> str:
    """One line for all ``verbs`` of a command; alternatives in the same place are separated by |."""
    columns = zip(*map(_slots, verbs), strict=True)
    words = [command]
    for column in columns:
        text = "|".join(dict.fromkeys(part for slot in column for part in slot.text.split("|")))
        words.append(f"[{text}]" if column[0].optional else text)
    named: dict[str, str] = {}
    for verb in verbs:
        placed = {name for slot in _slots(verb) for name in slot.arguments}
        for name, known in parameters(verb).items():
            if name not in placed:
                named.setdefault(name, f"[{name}={known.argument.label}]")
    return " ".join([*words, *named.values()])


def _command(command: str, verbs: Sequence[type[Verb]]) -> Command:
    overview = []
    for verb in verbs:
        literal = [slot.text for slot in _slots(verb) if slot.read is None]
        overview.append((" ".join([command, *literal]), verb.summary))
    words = dict.fromkeys(word for verb in verbs for slot in _slots(verb) for word in slot.choices)
    return Command(_usage(command, verbs), tuple(overview), tuple(words))


def _other(usage: str, summary: str, words: tuple[str, ...] = ()) -> Command:
    return Command(usage, ((usage.partition(" ")[0], summary),), words)


_OTHERS = (
    _other("- VERB: {…}", "a step as in a scenario file, for example parallel"),
    _other("iomem", "show /proc/iomem"),
    _other("blocks", "show the memory blocks"),
    _other("zones", "show the zones"),
    _other("sections [START-END]", "show mem_section as read by the host"),
    _other("ptdump [START-END|REGION]", "show the page tables as read by the host"),
    _other("devices", "show QEMU's memory devices"),
    _other("map", "draw the physical address space"),
    _other("diff [NAME]", "show the differences from snapshot NAME (default: the last one, or the boot)"),
    _other("log [N]", "show the last N lines of the guest's kernel log (default 20)"),
    _other("console [N|follow]", "show the last N lines of its console (default 20), or follow it"),
    _other("events [N]", "show the last N QMP events (default 20)"),
    _other("ssh [COMMAND]", "a shell in the guest, or one command"),
    _other("qmp NAME|{…}", "send a QMP command; it is not part of a saved scenario"),
    _other("snapshot NAME", "save the guest, including its memory"),
    _other("restore NAME", "go back to a snapshot"),
    _other("drgn [VMLINUX]", "open drgn on the guest's memory"),
    _other("save FILE", "write the steps so far as a scenario for memhp run"),
    _other("help [COMMAND]", "show this"),
    _other("detach", "leave the guest to its keeper (only in memhp attach)"),
    _other("quit", "end the guest and leave"),
)

#: the verbs of each command
STEPS: Mapping[str, Sequence[type[Verb]]] = {
    command: [verb for verb in VERBS.values() if verb.line.command == command]
    for command in (verb.line.command for verb in VERBS.values())
} | {"-": []}
COMMANDS: Mapping[str, Command] = {name: _command(name, verbs) for name, verbs in STEPS.items() if verbs} | {
    command.overview[0][0]: command for command in _OTHERS
}
#: alternative names
ALIASES = {"exit": "quit", "?": "help", "dmesg": "log"}

# No character that is special in YAML.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBERS = re.compile(r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*")


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
        raise UsageError(f"unknown command {name[:40]!r}", hint=f"{suggest(name, COMMANDS)} (help shows them all)")
    return name, rest.strip()


def step_text(name: str, rest: str, known: Known) -> str:
    """The step of command ``name`` with the words of ``rest``, as in a scenario file. Raises UsageError."""
    if name == "-":
        return rest
    words, named = _read_words(name, rest)
    expect = named.pop("expect", None)
    if expect is not None and expect not in EXPECTATIONS:
        raise UsageError(f"invalid value of expect: {expect!r}", hint=f"known: {', '.join(EXPECTATIONS)}")
    says = named.pop("says", None)
    verb = _matching_verb(name, words, known)
    args = _positional(verb, words, known)
    for key, value in named.items():
        if key in args:
            raise UsageError(f"duplicate argument: {key}", hint=COMMANDS[name].usage)
        args[key] = value
    body = ", ".join(f"{key}: {value}" for key, value in args.items())
    ending = "".join(f"\n  {key}: {text}" for key, text in (("expect", expect), ("says", says)) if text is not None)
    return f"- {verb.name}: {{{body}}}{ending}"


def _read_words(name: str, rest: str) -> tuple[list[str], dict[str, str]]:
    words: list[str] = []
    named: dict[str, str] = {}
    for word in rest.split():
        key, equals, value = word.partition("=")
        if equals:
            if key in named:
                raise UsageError(f"duplicate argument: {key}", hint=COMMANDS[name].usage)
            if not _WORD.fullmatch(key) or not _WORD.fullmatch(value):
                raise UsageError(f"{word[:80]!r} is invalid", hint=COMMANDS[name].usage)
            named[key] = value
        elif _WORD.fullmatch(word) or _NUMBERS.fullmatch(word):
            words.append(word)
        else:
            raise UsageError(f"{word[:80]!r} is invalid", hint=COMMANDS[name].usage)
    return words, named


def _matching_verb(name: str, words: Sequence[str], known: Known) -> type[Verb]:
    """The verb of command ``name`` that fits these words; of several, the one with the most literal words."""
    slots = {verb.name: _slots(verb) for verb in STEPS[name]}
    least = min(sum(not slot.optional for slot in form) for form in slots.values())
    if not least <= len(words) <= max(map(len, slots.values())):
        which = "too few" if len(words) < least else "too many"
        raise UsageError(f"{name}: {which} words", hint=COMMANDS[name].usage)
    fitting = []
    for verb in STEPS[name]:
        pairs = [(slot.text, word) for slot, word in zip(slots[verb.name], words, strict=False) if slot.read is None]
        in_mode = not verb.line.mode or verb.line.mode in (known.devices.get(word) for word in words)
        if in_mode and all(text == word for text, word in pairs):
            fitting.append((len(pairs), verb))
    if not fitting:
        texts = [slot.text for form in slots.values() for slot in form if slot.read is None]
        raise UsageError(f"{name}: {words[0]!r} is not one of {', '.join(texts)}", hint=suggest(words[0], texts))
    return max(fitting, key=lambda pair: pair[0])[1]


def _positional(verb: type[Verb], words: Sequence[str], known: Known) -> dict[str, str]:
    """The arguments set by ``words``, in the order of a scenario file, including a generated id if there is none."""
    found: dict[str, str] = {}
    for slot, word in zip(_slots(verb), words, strict=False):
        if slot.read is None:
            continue
        try:
            found |= slot.read(word, known)
        except UsageError as error:
            raise UsageError(f"{verb.line.command}: {error.message}", hint=error.hint) from None
    order = parameters(verb)
    if verb.line.fresh and "id" not in found:
        found["id"] = _fresh(verb.line.fresh.format(**found), known.ids(order["id"].argument.names))
    return {name: found[name] for name in order if name in found}


def _fresh(prefix: str, taken: Collection[str]) -> str:
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def help_lines(name: str = "") -> list[str]:
    """The help of all commands, or of one. Raises UsageError."""
    if name:
        command = COMMANDS[split(name)[0]]
        several = len(command.overview) > 1
        lines = [f"  {label}: {summary}" if several else f"  {summary}" for label, summary in command.overview]
        return [command.usage, *lines, *([f"  words: {', '.join(command.words)}"] if command.words else [])]
    width = max(len(label) for command in COMMANDS.values() for label, _ in command.overview)
    steps = [(label, summary.partition("; ")[0]) for name in STEPS for label, summary in COMMANDS[name].overview]
    others = [row for name in COMMANDS if name not in STEPS for row in COMMANDS[name].overview]
    return [
        "Steps (checked, and written by save; expect=refused says=EBUSY and the like set the expected outcome):",
        *(f"  {label:<{width}}  {summary}" for label, summary in steps),
        "Other commands:",
        *(f"  {label:<{width}}  {summary}" for label, summary in others),
        "help COMMAND shows its syntax; Tab completes.",
    ]


def completions(before: str, known: Known) -> list[str]:
    """The words that can complete ``before``, the text left of the cursor."""
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
    for verb in STEPS.get(name, ()):
        named = [slot_name for slot in _slots(verb) for slot_name in slot.arguments]
        arguments = [parameters(verb)[one].argument for one in named]
        found += [id for one in arguments if one.names and not one.new for id in known.ids(one.names)]
    return [word for word in dict.fromkeys(found) if word.startswith(start) and word != "-"]
