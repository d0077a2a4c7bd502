# SPDX-License-Identifier: GPL-2.0-or-later
"""Input of the prompt: a terminal, with history and completion, or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from harness.config.places import user_dir
from harness.shell.explorer import Explorer
from harness.shell.lines import completions


def state_dir() -> Path:
    """The folder of the history: ``memhp`` below ``$XDG_STATE_HOME`` or ``~/.local/state``."""
    return user_dir("XDG_STATE_HOME", ".local/state")


def open_history() -> History:
    """The history in a private file; in memory only if that file cannot be written."""
    path = state_dir() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


class _Words(Completer):
    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        start = "" if before.endswith(" ") or not before.split() else before.split()[-1]
        for word in completions(before, self._explorer.known()):
            yield Completion(word, -len(start))


def _toolbar(explorer: Explorer) -> Callable[[], str]:
    def text() -> str:
        session = explorer.session
        devices = ", ".join(session.model.devices) or "no memory devices"
        loads = f" | loads: {', '.join(session.loads)}" if session.loads else ""
        return f" {session.guest.facts.release} | {devices}{loads} | step {session.number}"

    return text


def typed_lines(explorer: Explorer, closing: str) -> Iterator[str]:
    """Lines typed at the terminal; the end of input becomes the line ``closing``."""
    prompt: PromptSession[str] = PromptSession(
        f"memhp {explorer.spec.arch}> ",
        history=open_history(),
        completer=_Words(explorer),
        complete_while_typing=False,
        bottom_toolbar=_toolbar(explorer),
    )
    while True:
        try:
            yield prompt.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            yield closing
            return


def given_lines(texts: Iterable[str], stream: TextIO | None = None) -> Iterator[str]:
    """The lines of ``stream``, or without it those of ``texts``, which ``;`` separates."""
    if stream is not None:
        yield from stream
        return
    for text in texts:
        yield from split_commands(text)


def split_commands(text: str) -> list[str]:
    """The lines of ``-c``, separated by ``;`` outside of brackets and quotes, which belong to JSON or YAML."""
    found, depth, quoted, start = [], 0, False, 0
    for at, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif not quoted and char in "{[":
            depth += 1
        elif not quoted and char in "}]":
            depth -= 1
        elif char == ";" and not quoted and depth <= 0:
            found.append(text[start:at])
            start = at + 1
    return [*found, text[start:]]


def at_a_terminal() -> bool:
    """True if standard input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()
