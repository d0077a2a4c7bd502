# SPDX-License-Identifier: GPL-2.0-or-later
"""From words on the command line to what the rooms below understand. Raises UsageError that names the option."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar, cast

from harness.arch import ARCHES, ArchSpec, arch_named
from harness.artifacts.kernel_tree import is_tree
from harness.cli.parser import Arguments
from harness.config.guest import GuestSpec, NodeConfig, find_guest, override
from harness.config.selector import is_debian_name
from harness.errors import UsageError
from harness.scenarios.options import STARTS, RunOptions, Start
from harness.units import parse_size

T = TypeVar("T")

DEFAULT_ARCH = "arm64"
#: guests at a time: each has a QEMU with two vCPUs and some threads of ours
MAX_JOBS = 64
#: field of GuestSpec -> the option that sets it
GUEST_OPTIONS = {
    "kernel": "--kernel",
    "kernel_options": "-K",
    "build_dir": "--build-dir",
    "llvm": "--llvm",
    "own_config": "--own-config",
    "modules": "--modules",
    "initrd": "--initrd",
    "qemu": "--qemu",
    "memory": "--memory",
    "maxmem": "--maxmem",
    "slots": "--slots",
    "ports": "--ports",
    "cpus": "--cpus",
    "nodes": "--node",
    "boot": "--boot",
    "cmdline": "--cmdline",
    "cpu": "--cpu",
    "machine_options": "--machine",
    "random_seed": "--random-seed",
}


def read_size(text: str, option: str) -> int:
    """A size in bytes."""
    try:
        return parse_size(text[:80])
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def read_integer(text: str, option: str) -> int:
    """A whole number."""
    try:
        return int(text[:40], 10)
    except ValueError:
        raise UsageError(f"{option}: {text[:40]!r} is not a whole number") from None


def read_seconds(text: str, option: str) -> float:
    """A time in seconds, more than nothing and less than a day."""
    try:
        value = float(text[:40])
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise UsageError(f"{option}: {text[:40]!r} is not a number of seconds", hint="such as 120, at most 86400")
    return value


def read_file(text: str, option: str) -> Path:
    """A file that is there."""
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"{option}: no such file: {path}", hint="check the path")
    return path


def read_kernel(text: str, option: str) -> str:
    """A path if there is such a file or source tree or it looks like one, else a name of harness.config.selector."""
    path = Path(text).expanduser()
    if path.is_file() or (text and is_tree(path)):
        return str(path.resolve())
    if "/" in text or not is_debian_name(text):
        raise UsageError(
            f"{option}: no such file: {text}",
            hint="an Image, a source tree, debian, debian:SUITE, a linux-image-… package, purpose (memhp list kernels)",
        )
    return text


def read_qemu(text: str, option: str) -> str:
    """The path of a file that is there, else a name of harness.config.selector."""
    path = Path(text).expanduser()
    return text if is_debian_name(text) and not path.is_file() else str(read_file(text, option))


def read_folder(text: str, option: str) -> Path:
    """A directory that is there."""
    path = Path(text).expanduser().resolve()
    if not path.is_dir():
        raise UsageError(f"{option}: no such directory: {path}", hint="check the path")
    return path


def read_build_dir(text: str, option: str) -> Path:
    """A directory that is there or can be made."""
    path = Path(text).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise UsageError(f"{option}: {path} is not a directory", hint="name a directory; it is created if needed")
    return path


_READERS: Mapping[str, Callable[[str, str], object]] = {
    "kernel": read_kernel,
    "initrd": read_file,
    "qemu": read_qemu,
    "modules": read_folder,
    "build_dir": read_build_dir,
    "memory": read_size,
    "maxmem": read_size,
    "slots": read_integer,
    "ports": read_integer,
    "cpus": read_integer,
    "cmdline": lambda text, option: text,
    "cpu": lambda text, option: text,
    "random_seed": read_integer,
}


def guest_of(arguments: Arguments) -> GuestSpec:
    """The guest that the options describe, on top of a guest file if one is named."""
    base = _base(arguments)
    values: dict[str, object] = {
        name: read(text, GUEST_OPTIONS[name])
        for name, read in _READERS.items()
        if (text := getattr(arguments, name, None)) is not None
    }
    machines = [word for word in getattr(arguments, "boot", None) or () if word not in STARTS]
    if machines:
        values["boot"] = machines[-1]
    if getattr(arguments, "kernel_options", None):
        values["kernel_options"] = tuple(arguments.kernel_options)
    values |= {name: True for name in ("llvm", "own_config") if getattr(arguments, name, False)}
    if getattr(arguments, "node", None):
        values["nodes"] = tuple(NodeConfig(read_size(text, "--node")) for text in arguments.node)
    if getattr(arguments, "machine", None):
        values["machine_options"] = tuple(arguments.machine)
    return override(base, values, GUEST_OPTIONS)


def _base(arguments: Arguments) -> GuestSpec:
    named = getattr(arguments, "guest", None)
    if named is None:
        return GuestSpec.default(arguments.arch or DEFAULT_ARCH)
    spec = find_guest(named)
    if arguments.arch not in (None, spec.arch):
        raise UsageError(
            f"--arch {arguments.arch}: the guest {spec.name} is {spec.arch}", hint="leave --arch out with --guest"
        )
    return spec


def arches_of(arguments: Arguments) -> list[ArchSpec]:
    """The architectures that were named, each once; all of them if none was."""
    return [arch_named(name) for name in dict.fromkeys(arguments.arch or ARCHES)]


def guests_of(arguments: Arguments, usual: Iterable[str] = (DEFAULT_ARCH,)) -> list[GuestSpec]:
    """One guest for each architecture that was named, each once; else the one of --guest, or those of ``usual``."""
    names = dict.fromkeys(arguments.arch or ((None,) if getattr(arguments, "guest", None) else usual))
    return [guest_of(argparse.Namespace(**{**vars(arguments), "arch": name})) for name in names]


def read_rounds(text: str | None, option: str = "--rounds") -> int | None:
    """How often the steps of a soak are repeated, None where nobody says."""
    if text is None:
        return None
    rounds = read_integer(text, option)
    if rounds < 1:
        raise UsageError(f"{option}: {rounds} rounds cannot be", hint="at least 1")
    return rounds


def start_of(arguments: Arguments) -> Start:
    """How guests come to life: what ``--boot`` says of that, auto if nothing."""
    said = [word for word in getattr(arguments, "boot", None) or () if word in STARTS]
    return cast(Start, said[-1]) if said else "auto"


def read_start(text: str, option: str) -> Start:
    """How guests come to life."""
    if text not in STARTS:
        raise UsageError(f"{option}: {text[:40]!r} is not known", hint=f"one of {', '.join(STARTS)}")
    return cast(Start, text)


def read_jobs(text: str | None, usual: int = 1) -> int:
    """How many guests work at a time; ``usual`` where nobody says."""
    if text is None:
        return usual
    jobs = read_integer(text, "--jobs")
    if not 1 <= jobs <= MAX_JOBS:
        raise UsageError(f"--jobs: invalid job count: {jobs}", hint=f"from 1 to {MAX_JOBS}")
    return jobs


def bundle_dir_of(arguments: Arguments) -> Path | None:
    """Where bundles are kept, None if the user does not say."""
    chosen = arguments.bundle_dir
    if chosen is not None and Path(chosen).exists() and not Path(chosen).is_dir():
        raise UsageError(f"--bundle-dir: {chosen} is not a directory", hint="name a directory; it is created if needed")
    return None if chosen is None else Path(chosen)


def run_options(arguments: Arguments, jobs: int = 1) -> RunOptions:
    """How to run; ``jobs`` at a time where nobody says."""
    return RunOptions(
        bundle_dir=bundle_dir_of(arguments),
        seed=read_integer(arguments.seed, "--seed"),
        timeout=read_seconds(arguments.timeout, "--timeout"),
        fail_fast=arguments.fail_fast,
        rounds=read_rounds(getattr(arguments, "rounds", None)),
        start=start_of(arguments),
        jobs=read_jobs(arguments.jobs, jobs),
        known_bugs=getattr(arguments, "known_bugs", True),
    )
