# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's settings for building a kernel tree: options, folder, compiler, configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

_OPTION = re.compile(r"(?:CONFIG_)?([A-Za-z0-9_]+)(?:=(.*))?", re.DOTALL)
#: values that a configuration does not quote
_PLAIN = re.compile(r"[ymn]|-?\d+|0[xX][0-9a-fA-F]+")
_EXAMPLE = "for example -K DEBUG_VM, -K VIRTIO_MEM=m, -K NR_CPUS=8 or -K LOCALVERSION=-mine"


@dataclass(frozen=True, slots=True)
class KernelOption:
    """One option of a kernel's configuration: ``name`` without ``CONFIG_``, ``value`` unquoted, ``n`` for off."""

    name: str
    value: str
    quoted: bool = False

    @property
    def line(self) -> str:
        """The line of a .config that sets it."""
        if not self.quoted:
            return f"CONFIG_{self.name}={self.value}"
        text = self.value.replace("\\", "\\\\").replace('"', '\\"')
        return f'CONFIG_{self.name}="{text}"'

    def is_in(self, value: str | None) -> bool:
        """Whether ``value``, its value in a configuration (None: off or absent), is the wanted one."""
        have = "n" if value is None else value
        if have == self.value or (self.quoted and not self.value and value is None):
            return True
        numbers = [_number(text) for text in (have, self.value)]
        return not self.quoted and numbers[0] is not None and numbers[0] == numbers[1]


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def parse_kernel_option(text: str) -> KernelOption:
    """``X``, ``X=y``, ``X=m``, ``X=n``, ``X=16``, ``X=text`` or ``X="text"``, with or without ``CONFIG_``.

    Raises UsageError.
    """
    match = _OPTION.fullmatch(text)
    if match is None or not text.isprintable():
        raise UsageError(f"{text[:80]!r} is not a kernel option", hint=_EXAMPLE)
    value = "y" if match[2] is None else match[2]
    if len(value) > 1 and value[0] == value[-1] == '"':
        return KernelOption(match[1], value[1:-1], quoted=True)
    return KernelOption(match[1], value, quoted=_PLAIN.fullmatch(value) is None)


@dataclass(frozen=True, slots=True)
class OwnBuild:
    """The settings of ``-K``, ``--build-dir``, ``--llvm`` and ``--own-config``.

    ``build_dir`` None: a folder in the cache, or the tree itself if it is configured in place and ``own_config`` uses
    its .config.
    """

    options: tuple[KernelOption, ...] = ()
    build_dir: Path | None = None
    llvm: bool = False
    own_config: bool = False

    @property
    def said(self) -> list[str]:
        """The command line options that were given."""
        pairs = (
            ("-K", self.options),
            ("--build-dir", self.build_dir),
            ("--llvm", self.llvm),
            ("--own-config", self.own_config),
        )
        return [name for name, value in pairs if value]
