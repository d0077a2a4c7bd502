# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's command line, split and matched as the kernel does it (lib/{cmdline,kstrtox}.c, kernel/params.c)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.state import NotObserved

_SPACES = " \t\n\v\f\r"


@dataclass(frozen=True, slots=True)
class BootWords:
    """``words`` are (name, value) in order; the value is None for a word without ``=``."""

    words: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, text: str) -> BootWords:
        """The words of a command line up to ``--``; the rest belongs to init (parse_args, kernel/params.c)."""
        return cls(tuple(_split(text)))

    def values(self, name: str) -> tuple[str | None, ...]:
        """The values of ``name``, in order; dashes and underscores are equivalent (parameq, kernel/params.c)."""
        wanted = _plain(name)
        return tuple(value for word, value in self.words if _plain(word) == wanted)

    def chosen(self, name: str, known: tuple[str, ...]) -> str | None:
        """The last value of ``name`` that is one of ``known``: the kernel warns about any other and ignores it."""
        return next((value for value in reversed(self.values(name)) if value in known), None)

    def switch(self, name: str, default: bool | NotObserved, *, bare: bool | None = None) -> bool | NotObserved:
        """The meaning of the last valid value of ``name``, ``default`` if there is none.

        ``bare`` is the meaning of the name alone: None if the kernel ignores it. Not observed for a value that only
        some kernels accept.
        """
        for value in reversed(self.values(name)):
            state = bare if value is None else _as_bool(value)
            if state is None and value is not None and value[:1].lower() in _RECENT:
                return NotObserved(
                    f"unknown whether this kernel accepts {name}={value[:40]}: v6.12 does not, v7.2 does"
                )
            if state is not None:
                return state
        return default


#: first letters of enable and disable, which kstrtobool accepts in v7.2, but not in v6.12
_RECENT = ("e", "d")


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _as_bool(text: str) -> bool | None:
    """kstrtobool: the first letter decides, or the first two."""
    word = text.lower()
    if word[:1] in ("y", "t", "1") or word[:2] == "on":
        return True
    return False if word[:1] in ("n", "f", "0") or word[:2] == "of" else None


def _split(text: str) -> Iterator[tuple[str, str | None]]:
    """next_arg: a quote may open a word or be inside it, and spaces between two quotes do not end it."""
    rest = text.lstrip(_SPACES)
    while rest:
        word, rest = _first_word(rest)
        name, equals, value = word.partition("=") if word.find("=") > 0 else (word, "", "")
        if name == "--" and not equals:
            return
        if equals and value.startswith('"'):
            value = value[1:].removesuffix('"')
        yield name, value if equals else None
        rest = rest.lstrip(_SPACES)


def _first_word(text: str) -> tuple[str, str]:
    quoted = text.startswith('"')
    start = int(quoted)
    inside, end = quoted, len(text)
    for at in range(start, len(text)):
        if text[at] in _SPACES and not inside:
            end = at
            break
        if text[at] == '"':
            inside = not inside
    word = text[start:end]
    return (word.removesuffix('"') if quoted else word), text[end:]
