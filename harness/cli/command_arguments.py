# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line's arguments: a frozen dataclass for each command, whose fields say how they are typed.

harness.cli.parser makes the parser of them and fills them. A command's docstring is its help. Numbers and sizes are
parsed. Names of files, kernels and QEMUs are as given: harness.cli.guest_options resolves them. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from harness.bench import BENCHES, DEFAULT_BENCH, DEFAULT_ROUNDS
from harness.cli.options import option
from harness.cli.values import (
    read_bench_rounds,
    read_integer,
    read_jobs,
    read_look,
    read_names,
    read_rounds,
    read_seconds,
    read_size,
    read_state,
)
from harness.scenarios.run_options import Look

_KERNELS = (
    "an Image, a kernel source tree to build, debian, debian:SUITE, debian:VERSION, a linux-image-… package, or purpose"
    " (the default: built once from Debian's source; see memhp list kernels)"
)


def _arches(several: str = "repeatable, none: both", **more: Any) -> Any:
    return option("-a --arch ARCH", f"arm64 or riscv64; {several}", many=True, **more)


def _arch() -> Any:
    return option("-a --arch ARCH", "arm64 (the default) or riscv64", group="guest")


def _timeout(what: str = "the boot and each step") -> Any:
    return option("--timeout S", f"seconds for {what} (default 120)", read=read_seconds, default=120.0)


def _known_bugs() -> Any:
    help = "treat a known bug of the kernel under test like any other (memhp list bugs)"
    return option("--no-known-bugs", help, action="store_false", default=True)


def _jobs(usual: str) -> Any:
    return option("-j --jobs N", f"N guests at a time (default: {usual})", read=read_jobs)


def _lines() -> Any:
    return option("-c LINES", "run these lines instead, separated by ';'", many=True)


def _history() -> Any:
    help = "directory with the results of earlier nights, for the report's trends and expected times"
    return option("--history DIR", help)


def _ranges(which: str) -> Any:
    return option("--range START-END", f"only these {which} (repeatable)", many=True)


def _report(name: str, what: str) -> Any:
    return option(f"--{name} FILE", f"write the results as {what} (-: standard output)")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of every command."""

    color: str


@dataclass(frozen=True, kw_only=True)
class GuestArguments(Arguments):
    """A guest without its architecture. Sizes are in bytes; ``boot`` has both boot methods and ways to start."""

    GROUP: ClassVar = "guest"
    guest: str | None = option("--guest FILE", "a YAML guest file, or a name of `memhp list guests`")
    kernel: str | None = option("--kernel K", _KERNELS)
    kernel_options: tuple[str, ...] = option(
        "-K X=V", "an option of the tree's configuration: X, X=m, X=n, X=16, X=text (repeatable)", many=True
    )
    build_dir: str | None = option("--build-dir DIR", "build the tree there (O=), reusing existing objects")
    llvm: bool = option("--llvm", "build the tree with LLVM")
    own_config: bool = option(
        "--own-config", "build the tree with its own .config (that of --build-dir, if given), unchanged"
    )
    modules: str | None = option(
        "--modules DIR",
        "where the kernel's modules are: an INSTALL_MOD_PATH, a lib/modules/RELEASE, or the tree it was built in",
    )
    initrd: str | None = option("--initrd FILE", "an archive to unpack over the guest's root")
    qemu: str | None = option(
        "--qemu Q", "another qemu-system-*, debian (with memhp's patches if necessary), or debian:SUITE (unpatched)"
    )
    memory: int | None = option("--memory SIZE", "boot memory (default 1G)", read=read_size)
    maxmem: int | None = option("--maxmem SIZE", "boot memory and all memory devices (default 16G)", read=read_size)
    slots: int | None = option("--slots N", "DIMM slots (default 8)", read=read_integer)
    ports: int | None = option("--ports N", "hot-plug ports for virtio devices (default 4)", read=read_integer)
    cpus: int | None = option("--cpus N", "CPUs (default 2)", read=read_integer)
    nodes: tuple[int, ...] = option(
        "--node SIZE", "a NUMA node with SIZE of the boot memory", read=read_size, many=True
    )
    boot: tuple[str, ...] = option(
        "--boot HOW",
        "acpi (through EDK2) or dt (device tree); cold, restore (from a snapshot) or auto (restore if possible);"
        " repeatable",
        many=True,
    )
    cmdline: str | None = option("--cmdline ARGS", "more arguments for the kernel")
    cpu: str | None = option("--cpu MODEL", "QEMU's -cpu")
    random_seed: int | None = option(
        "--random-seed N", "seed for QEMU's random choices for the guest, such as KASLR", read=read_integer
    )
    machine_options: tuple[str, ...] = option("--machine K=V", "an option for QEMU's -machine (repeatable)", many=True)

    @property
    def given(self) -> dict[str, object]:
        """The guest's options that were given, by the field of GuestSpec that each sets."""
        values = {name: getattr(self, name) for name in GUEST_OPTIONS}
        return {name: value for name, value in values.items() if is_given(value)}


#: field of GuestSpec and of GuestArguments -> the option that sets it
GUEST_OPTIONS: Mapping[str, str] = {
    known.name: known.metadata["flags"][0] for known in fields(GuestArguments) if known.name not in ("color", "guest")
}


def is_given(value: object) -> bool:
    """True for the value of an option that was given and has no default."""
    return value is not None and value is not False and value != ()


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Arguments):
    """The target of each report; ``-`` is standard output."""

    GROUP: ClassVar = "reports"
    json: str | None = _report("json", "JSON")
    junit: str | None = _report("junit", "JUnit XML")
    ktap: str | None = _report("ktap", "KTAP")
    kcidb: str | None = _report("kcidb", "KCIDB JSON")
    kcidb_origin: str = option(
        "--kcidb-origin NAME", "the name of the CI system in KCIDB, such as my_lab (default memhp)", default="memhp"
    )
    html: str | None = _report("html", "one HTML page")

    @property
    def reports(self) -> dict[str, str]:
        """The requested reports and their targets."""
        names = ("json", "junit", "ktap", "kcidb", "html")
        return {name: target for name in names if (target := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class RunningArguments(Arguments):
    """How to run."""

    GROUP: ClassVar = "running"
    bundle_dir: Path | None = option(
        "--bundle-dir DIR", "keep every run's bundle there, not only of failed runs", type=Path
    )
    seed: int = option("--seed N", "seed of everything random (default 0)", read=read_integer, default=0)
    timeout: float = _timeout()
    jobs: int | None = _jobs("1; of a matrix, one for each CPU")
    fail_fast: bool = option(
        "--fail-fast",
        "stop after the first scenario that does not pass",
        opposite=("--keep-going", "run all scenarios in any case (default)"),
    )
    look: Look = option(
        "--look HOW",
        "full (the default): read every source after every step; fast: leave out the guest's text where the host reads"
        " the same from the guest's memory, but for the first and the last step, refusals and findings",
        read=read_look,
        default="full",
    )
    require: tuple[str, ...] = option(
        "--require LIST",
        "invariants (LIN-1,XCK-1) that must be observed for a verdict, whatever the kernel can show",
        read=read_names,
        default=(),
    )
    allow_unobserved: tuple[str, ...] = option(
        "--allow-unobserved LIST",
        "invariants that may go unobserved although the kernel can show them",
        read=read_names,
        default=(),
    )
    known_bugs: bool = _known_bugs()


@dataclass(frozen=True, kw_only=True)
class KeepingArguments(Arguments):
    """What happens to a failing guest."""

    GROUP: ClassVar = "a guest that fails"
    keep: bool = option("--keep", "keep the first failing guest running for `memhp attach`, and end the run")
    keep_for: float = option("--keep-for S", "seconds until it ends (default 3600)", read=read_seconds, default=3600.0)


@dataclass(frozen=True, kw_only=True)
class MatrixArguments(Arguments):
    """A matrix; the other options belong to ``matrix``."""

    GROUP: ClassVar = "matrix"
    matrix: str | None = option("--matrix FILE", "run every cell of a matrix file, such as configs/nightly.yaml")
    shard: str | None = option("--shard I/N", "only part I (from 1) of N")
    list: bool = option("--list", "show the cells and the expected time, run nothing")
    results: Path | None = option(
        "--results DIR",
        "where results are kept; a second start continues there (default: memhp-results/NAME-TIME, the latest one if it"
        " is unfinished)",
        type=Path,
    )
    history: str | None = _history()


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(Arguments):
    """Show what is present, what is missing and the commands that fix it."""

    arches: tuple[str, ...] = _arches()
    verify: bool = option("--verify", "hash every byte of the cache")
    json: bool = option("--json", "print JSON")


@dataclass(frozen=True, kw_only=True)
class FetchArguments(Arguments):
    """Fetch or build every part now: QEMU, firmware, guest root, kernels."""

    parts: tuple[str, ...] = option(
        "PART", "qemu, firmware, guest-root, kernel, debian-kernel; default: all", nargs="*", default=()
    )
    arches: tuple[str, ...] = _arches()


@dataclass(frozen=True, kw_only=True)
class ListArguments(Arguments):
    """List scenarios, verbs, invariants, known bugs, guests, kernels, or supported devices (by running every cell)."""

    what: str = option(
        "",
        "what to list",
        choices=("scenarios", "verbs", "invariants", "bugs", "guests", "kernels", "support"),
        default=MISSING,
    )
    arches: tuple[str, ...] = _arches()
    json: bool = option("--json", "print JSON")


@dataclass(frozen=True, kw_only=True)
class RunArguments(GuestArguments, RunningArguments, KeepingArguments, MatrixArguments, ReportArguments):
    """Run scenarios on a guest and check the kernel's state after every step."""

    scenarios: tuple[str, ...] = option("SCENARIO", "a name, or a YAML file; default: all", nargs="*", default=())
    all: bool = option("--all", "all scenarios (the default)")
    rounds: int | None = option(
        "--rounds N", "repeat the steps of a soak N times (default: as in the scenario)", read=read_rounds
    )
    bisect: bool = option("--bisect", "use the exit status for git bisect run: see memhp --help")
    arches: tuple[str, ...] = _arches("repeatable, none: arm64", group="guest")


@dataclass(frozen=True, kw_only=True)
class MergeArguments(ReportArguments):
    """Merge the results of a matrix's shards."""

    directories: tuple[Path, ...] = option(
        "DIR", "results of memhp run --matrix --shard", nargs="+", type=Path, default=MISSING
    )
    output: Path = option("-o --output DIR", "directory to create", type=Path, required=True, default=MISSING)
    history: str | None = _history()


@dataclass(frozen=True, kw_only=True)
class DemoArguments(RunningArguments, ReportArguments):
    """Show what memhp does: Debian's kernel first, then the purpose-built one with every scenario."""

    arches: tuple[str, ...] = _arches()
    qemu: str | None = option("--qemu Q", "another qemu-system-*, or debian:SUITE")
    jobs: int | None = _jobs("one for each architecture")


@dataclass(frozen=True, kw_only=True)
class ShellArguments(GuestArguments):
    """Start a guest with an interactive prompt; every step is checked."""

    lines: tuple[str, ...] = _lines()
    bundle_dir: Path | None = option(
        "--bundle-dir DIR", "where the session is recorded (default: memhp-runs)", type=Path
    )
    timeout: float = _timeout()
    known_bugs: bool = _known_bugs()
    arch: str | None = _arch()


@dataclass(frozen=True, kw_only=True)
class AttachArguments(Arguments):
    """Open the prompt of shell on a guest kept by `run --keep`."""

    bundle: str | None = option("BUNDLE", "the run's bundle (default: the newest kept guest)", nargs="?")
    lines: tuple[str, ...] = _lines()


def _as_of_guest(name: str) -> Any:
    """An option that is one of GuestArguments, too."""
    [known] = (known for known in fields(GuestArguments) if known.name == name)
    return field(default=known.default, metadata=known.metadata)


@dataclass(frozen=True, kw_only=True)
class ReplayArguments(ReportArguments):
    """Repeat the run of a bundle: same steps, same guest, same kernel.

    Programs, files, trees and options that could make QEMU use a file are not taken from a bundle: give them again.
    """

    bundle: Path = option("BUNDLE", "the directory of a run, or of a session of shell", type=Path, default=MISSING)
    kernel: str | None = _as_of_guest("kernel")
    kernel_options: tuple[str, ...] = _as_of_guest("kernel_options")
    build_dir: str | None = _as_of_guest("build_dir")
    modules: str | None = _as_of_guest("modules")
    initrd: str | None = _as_of_guest("initrd")
    qemu: str | None = _as_of_guest("qemu")
    machine_options: tuple[str, ...] = _as_of_guest("machine_options")
    bundle_dir: Path | None = option("--bundle-dir DIR", "keep the bundle there even if it passes", type=Path)
    timeout: float = _timeout()
    known_bugs: bool = _known_bugs()


@dataclass(frozen=True, kw_only=True)
class CollectArguments(GuestArguments):
    """Start a guest and save one snapshot of its state."""

    output: Path = option("-o --output DIR", "directory to create", type=Path, required=True, default=MISSING)
    timeout: float = _timeout("the boot")
    arch: str | None = _arch()


@dataclass(frozen=True, kw_only=True)
class CheckArguments(ReportArguments):
    """Check a saved run or snapshot again, without a VM."""

    directory: Path = option("DIR", "a bundle of run, or a snapshot of collect", type=Path, default=MISSING)


@dataclass(frozen=True, kw_only=True)
class TableArguments(GuestArguments):
    """Common to memhp ptdump and memhp sections: a saved snapshot, two of them, or a guest to boot."""

    directory: Path | None = option(
        "DIR", "a bundle of run, a snapshot of collect, or a states/NNN", nargs="?", type=Path
    )
    state: int | None = option("--state N", "which snapshot of DIR (default: the last one)", read=read_state)
    range: tuple[str, ...] = _ranges("physical addresses")
    diff: tuple[str, ...] = option(
        "--diff A B",
        "compare two saved snapshots: two directories, or with DIR two of its states by number",
        nargs=2,
        default=(),
    )
    json: bool = option("--json", "print JSON")
    timeout: float = _timeout("the boot of a guest")
    arch: str | None = _arch()


@dataclass(frozen=True, kw_only=True)
class PtdumpArguments(TableArguments):
    """Print a snapshot's or a guest's page tables in the kernel's own format; or their differences."""

    region: str | None = option("--region NAME", "only below this marker: its name or a prefix")
    range: tuple[str, ...] = _ranges("virtual addresses; all runs that overlap them (--diff: changes inside them)")


@dataclass(frozen=True, kw_only=True)
class SectionsArguments(TableArguments):
    """Print a snapshot's or a guest's memory sections; or their differences."""


@dataclass(frozen=True, kw_only=True)
class CmdlineArguments(GuestArguments):
    """Print QEMU's command line, one option per line, quoted for a shell."""

    arch: str | None = _arch()


@dataclass(frozen=True, kw_only=True)
class BenchArguments(GuestArguments):
    """Measure the harness's times beside those of the guest's kernel."""

    name: str = option(
        "NAME",
        "; ".join(f"{name}: {what}" for name, what in BENCHES.items()),
        nargs="?",
        choices=BENCHES,
        default=DEFAULT_BENCH,
    )
    rounds: int = option(
        "--rounds N",
        f"number of counted rounds (default {DEFAULT_ROUNDS})",
        read=read_bench_rounds,
        default=DEFAULT_ROUNDS,
    )
    json: str | None = option("--json FILE", "write the figures as JSON (-: standard output)")
    timeout: float = _timeout()
    arches: tuple[str, ...] = _arches(group="guest")


@dataclass(frozen=True, kw_only=True)
class SelftestArguments(GuestArguments):
    """Corrupt a live, paused guest and the collected text on purpose; every corruption must be named."""

    kernels: bool = option(
        "--kernels",
        "instead of corruptions: build kernels with one real bug each put back (configs/kernels/bugs), and run the"
        " scenarios that must show it",
    )
    only: tuple[str, ...] = option(
        "--only NAME", "only corruptions or bugs with matching names (* and ? as in a shell; repeatable)", many=True
    )
    list: bool = option("--list", "list them with the invariants that must name them; no VM needed")
    json: str | None = option("--json FILE", "write every trial as JSON (-: standard output)")
    timeout: float = _timeout()
    arches: tuple[str, ...] = _arches(group="guest")


#: command -> its arguments, in the order of the help
COMMANDS: Mapping[str, type[Arguments]] = {
    "doctor": DoctorArguments,
    "fetch": FetchArguments,
    "list": ListArguments,
    "run": RunArguments,
    "merge": MergeArguments,
    "demo": DemoArguments,
    "shell": ShellArguments,
    "attach": AttachArguments,
    "replay": ReplayArguments,
    "collect": CollectArguments,
    "check": CheckArguments,
    "ptdump": PtdumpArguments,
    "sections": SectionsArguments,
    "cmdline": CmdlineArguments,
    "bench": BenchArguments,
    "selftest": SelftestArguments,
}
