# SPDX-License-Identifier: GPL-2.0-or-later
"""From command-line arguments to guests and run options. Raises UsageError that names the option."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from harness.arch import ARCHES, ArchSpec, arch_named
from harness.artifacts.kernel_tree import is_tree
from harness.check import CATALOGUE
from harness.check.required import Demand
from harness.cli.command_arguments import GUEST_OPTIONS, GuestArguments, RunningArguments
from harness.config.guest import GuestSpec, NodeConfig, find_guest, override
from harness.config.selector import is_debian_name
from harness.errors import UsageError
from harness.scenarios.run_options import STARTS, RunOptions, Start

DEFAULT_ARCH = "arm64"


def read_file(text: str, option: str) -> Path:
    """An existing file."""
    path = Path(os.path.expanduser(text)).resolve()
    if not path.is_file():
        raise UsageError(f"{option}: no such file: {path}", hint="check the path")
    return path


def read_kernel(text: str, option: str) -> str:
    """The path of an existing file or source tree, else a name of harness.config.selector."""
    path = Path(os.path.expanduser(text))
    if path.is_file() or (text and is_tree(path)):
        return str(path.resolve())
    if "/" in text or not is_debian_name(text):
        raise UsageError(
            f"{option}: no such file: {text}",
            hint="an Image, a source tree, debian, debian:SUITE, a linux-image-… package, purpose (memhp list kernels)",
        )
    return text


def read_qemu(text: str, option: str) -> str:
    """The path of an existing file, else a name of harness.config.selector."""
    path = Path(os.path.expanduser(text))
    return text if is_debian_name(text) and not path.is_file() else str(read_file(text, option))


def read_folder(text: str, option: str) -> Path:
    """An existing directory."""
    path = Path(os.path.expanduser(text)).resolve()
    if not path.is_dir():
        raise UsageError(f"{option}: no such directory: {path}", hint="check the path")
    return path


def read_build_dir(text: str, option: str) -> Path:
    """A directory that exists or can be created."""
    path = Path(os.path.expanduser(text)).resolve()
    _require_no_file(path, option)
    return path


def _require_no_file(path: Path, option: str) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{option}: {path} is not a directory", hint="name a directory; it is created if needed")


def read_start(text: str, option: str) -> Start:
    """How guests start."""
    if text not in STARTS:
        raise UsageError(f"{option}: unknown value {text[:40]!r}", hint=f"one of {', '.join(STARTS)}")
    return cast(Start, text)


#: field of GuestSpec -> what reads its option, and resolves names of files
READERS: Mapping[str, Callable[[str, str], object]] = {
    "kernel": read_kernel,
    "initrd": read_file,
    "qemu": read_qemu,
    "modules": read_folder,
    "build_dir": read_build_dir,
}


def with_files(values: Mapping[str, object]) -> dict[str, object]:
    """Options by field of GuestSpec, with the names of files resolved; raises UsageError for one that is missing."""
    return {
        name: READERS[name](cast(str, value), GUEST_OPTIONS[name]) if name in READERS else value
        for name, value in values.items()
    }


def guest_of(arguments: GuestArguments, arch: str | None) -> GuestSpec:
    """The guest that the options describe, based on the guest file if one is given."""
    base = _base(arguments.guest, arch)
    values = with_files(arguments.given)
    machines = [word for word in arguments.boot if word not in STARTS]
    values.pop("boot", None)
    if machines:
        values["boot"] = machines[-1]
    if arguments.nodes:
        values["nodes"] = tuple(NodeConfig(size) for size in arguments.nodes)
    return override(base, values, GUEST_OPTIONS)


def _base(named: str | None, arch: str | None) -> GuestSpec:
    if named is None:
        return GuestSpec.default(arch or DEFAULT_ARCH)
    spec = find_guest(named)
    if arch not in (None, spec.arch):
        raise UsageError(f"--arch {arch}: the guest {spec.name} is {spec.arch}", hint="remove --arch, or --guest")
    return spec


def arches_of(names: Sequence[str]) -> list[ArchSpec]:
    """The named architectures without duplicates; all of them if none is named."""
    return [arch_named(name) for name in dict.fromkeys(names or ARCHES)]


def guests_of(
    arguments: GuestArguments, arches: Sequence[str], usual: Iterable[str] = (DEFAULT_ARCH,)
) -> list[GuestSpec]:
    """One guest for each named architecture; if none is named, that of --guest, or those of ``usual``."""
    names: dict[str | None, None] = dict.fromkeys(arches or ((None,) if arguments.guest else usual))
    return [guest_of(arguments, name) for name in names]


def start_of(arguments: GuestArguments) -> Start:
    """How guests start: the last such value of ``--boot``, else auto."""
    given = [word for word in arguments.boot if word in STARTS]
    return cast(Start, given[-1]) if given else "auto"


def bundle_dir_of(chosen: Path | None) -> Path | None:
    """Where bundles are kept, None for the default."""
    if chosen is not None:
        _require_no_file(chosen, "--bundle-dir")
    return chosen


def run_options(
    arguments: RunningArguments, *, start: Start = "auto", rounds: int | None = None, jobs: int = 1
) -> RunOptions:
    """How to run; ``jobs`` is the default number of parallel guests."""
    return RunOptions(
        bundle_dir=bundle_dir_of(arguments.bundle_dir),
        seed=arguments.seed,
        timeout=arguments.timeout,
        fail_fast=arguments.fail_fast,
        rounds=rounds,
        start=start,
        jobs=jobs if arguments.jobs is None else arguments.jobs,
        known_bugs=arguments.known_bugs,
        demand=demand_of(arguments),
        look=arguments.look,
    )


def demand_of(arguments: RunningArguments) -> Demand | None:
    """What must be observed, and what need not be; None if that depends on the kernel alone."""
    require, allowed = arguments.require, arguments.allow_unobserved
    for option, names in (("--require", require), ("--allow-unobserved", allowed)):
        unknown = [name for name in names if name not in CATALOGUE]
        if unknown:
            raise UsageError(f"{option}: unknown invariant {unknown[0]!r}", hint="memhp list invariants")
    both = sorted(set(require) & set(allowed))
    if both:
        raise UsageError(
            f"{', '.join(both)} cannot be both required and unobserved", hint="remove it from one of the lists"
        )
    return Demand(frozenset(require), frozenset(allowed)) if require or allowed else None
