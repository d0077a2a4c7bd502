# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line's arguments: a frozen dataclass for each command, which harness.cli.parser fills.

Numbers and sizes are parsed. Names of files, kernels and QEMUs are as given: harness.cli.guest_options resolves them.
Options that were not given are None, empty or False, unless the parser has a default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: field of GuestSpec and of GuestArguments -> the option that sets it
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
#: the formats of reports: fields of ReportArguments
REPORTS = ("json", "junit", "ktap", "kcidb", "html")


def is_given(value: object) -> bool:
    """True for the value of an option that was given and has no default."""
    return value is not None and value is not False and value != ()


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of every command."""

    color: str


@dataclass(frozen=True, kw_only=True)
class GuestArguments(Arguments):
    """A guest without its architecture. Sizes are in bytes; ``boot`` has both boot methods and ways to start."""

    guest: str | None
    kernel: str | None
    kernel_options: tuple[str, ...]
    build_dir: str | None
    llvm: bool
    own_config: bool
    modules: str | None
    initrd: str | None
    qemu: str | None
    memory: int | None
    maxmem: int | None
    slots: int | None
    ports: int | None
    cpus: int | None
    nodes: tuple[int, ...]
    boot: tuple[str, ...]
    cmdline: str | None
    cpu: str | None
    machine_options: tuple[str, ...]
    random_seed: int | None

    @property
    def given(self) -> dict[str, object]:
        """The guest's options that were given, by the field of GuestSpec that each sets."""
        values = {name: getattr(self, name) for name in GUEST_OPTIONS}
        return {name: value for name, value in values.items() if is_given(value)}


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Arguments):
    """The target of each report; ``-`` is standard output."""

    json: str | None
    junit: str | None
    ktap: str | None
    kcidb: str | None
    html: str | None
    kcidb_origin: str

    @property
    def reports(self) -> dict[str, str]:
        """The requested reports and their targets."""
        return {name: target for name in REPORTS if (target := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class RunningArguments(ReportArguments):
    """How to run; ``timeout`` in seconds."""

    bundle_dir: Path | None
    seed: int
    timeout: float
    jobs: int | None
    fail_fast: bool
    known_bugs: bool
    require: tuple[str, ...]
    allow_unobserved: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(Arguments):
    """memhp doctor."""

    arches: tuple[str, ...]
    verify: bool
    json: bool


@dataclass(frozen=True, kw_only=True)
class FetchArguments(Arguments):
    """memhp fetch."""

    parts: tuple[str, ...]
    arches: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ListArguments(Arguments):
    """memhp list."""

    what: str
    arches: tuple[str, ...]
    json: bool


@dataclass(frozen=True, kw_only=True)
class RunArguments(GuestArguments, RunningArguments):
    """memhp run. ``keep_for`` in seconds; ``shard``, ``list`` and ``results`` belong to ``matrix``."""

    arches: tuple[str, ...]
    scenarios: tuple[str, ...]
    all: bool
    rounds: int | None
    bisect: bool
    keep: bool
    keep_for: float
    matrix: str | None
    shard: str | None
    list: bool
    results: Path | None
    history: str | None


@dataclass(frozen=True, kw_only=True)
class MergeArguments(ReportArguments):
    """memhp merge."""

    directories: tuple[Path, ...]
    output: Path
    history: str | None


@dataclass(frozen=True, kw_only=True)
class DemoArguments(RunningArguments):
    """memhp demo."""

    arches: tuple[str, ...]
    qemu: str | None


@dataclass(frozen=True, kw_only=True)
class ShellArguments(GuestArguments):
    """memhp shell."""

    arch: str | None
    lines: tuple[str, ...]
    bundle_dir: Path | None
    timeout: float
    known_bugs: bool


@dataclass(frozen=True, kw_only=True)
class AttachArguments(Arguments):
    """memhp attach."""

    bundle: str | None
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReplayArguments(ReportArguments):
    """memhp replay."""

    bundle: Path
    bundle_dir: Path | None
    timeout: float
    known_bugs: bool


@dataclass(frozen=True, kw_only=True)
class CollectArguments(GuestArguments):
    """memhp collect."""

    arch: str | None
    output: Path
    timeout: float


@dataclass(frozen=True, kw_only=True)
class CheckArguments(ReportArguments):
    """memhp check."""

    directory: Path


@dataclass(frozen=True, kw_only=True)
class TableArguments(GuestArguments):
    """Common to memhp ptdump and memhp sections: a saved snapshot, two of them, or a guest to boot."""

    arch: str | None
    directory: Path | None
    state: int | None
    range: tuple[str, ...]
    diff: tuple[str, ...]
    json: bool
    timeout: float


@dataclass(frozen=True, kw_only=True)
class PtdumpArguments(TableArguments):
    """memhp ptdump."""

    region: str | None


@dataclass(frozen=True, kw_only=True)
class SectionsArguments(TableArguments):
    """memhp sections."""


@dataclass(frozen=True, kw_only=True)
class CmdlineArguments(GuestArguments):
    """memhp cmdline."""

    arch: str | None


@dataclass(frozen=True, kw_only=True)
class BenchArguments(GuestArguments):
    """memhp bench."""

    arches: tuple[str, ...]
    name: str
    rounds: int
    json: str | None
    timeout: float


@dataclass(frozen=True, kw_only=True)
class SelftestArguments(GuestArguments):
    """memhp selftest."""

    arches: tuple[str, ...]
    kernels: bool
    only: tuple[str, ...]
    list: bool
    json: str | None
    timeout: float
