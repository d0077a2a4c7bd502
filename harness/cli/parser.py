# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line parser: from words to a dataclass of harness.cli.command_arguments. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from harness import __version__
from harness.bench import BENCHES, DEFAULT_BENCH, DEFAULT_ROUNDS
from harness.cli import command_arguments as into
from harness.cli.command_arguments import Arguments
from harness.cli.values import (
    read_bench_rounds,
    read_integer,
    read_jobs,
    read_names,
    read_rounds,
    read_seconds,
    read_size,
    read_state,
)
from harness.errors import UsageError

EPILOG = """\
exit status of run, merge, check, collect, replay, shell, attach and demo:
  0  all passed, or only reproduced known bugs (memhp list bugs)
  1  the kernel under test broke an invariant
  2  usage or configuration error; or every scenario was skipped for an unmet requirement
  3  no verdict: infrastructure failed, or the guest refused a step that the scenario needs
run --bisect ends with 0 or 1 for a verdict, 125 for a kernel that cannot be built or booted (or gave no verdict), and
128 for a usage error, which ends a bisection.
doctor ends with 3 if anything is missing, bench with 1 if a timed operation gave wrong results, selftest with 1 if the
right invariant did not name a corruption (--kernels: a kernel bug).

first line to try: memhp run -a arm64 --kernel path/to/Image
"""

_PARTS = ("qemu", "firmware", "guest-root", "kernel", "debian-kernel")
_LISTS = ("scenarios", "verbs", "invariants", "bugs", "guests", "kernels", "support")


#: argparse's message; quotes around the choices depend on Python's version
_CHOICE = re.compile(r"argument (?P<where>.*?): invalid choice: '(?P<word>.*)' \(choose from (?P<known>.*)\)", re.S)


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        choice = _CHOICE.fullmatch(message)
        if choice is None:
            raise UsageError(message, hint=f"{self.prog} --help")
        known = re.findall(r"[\w-]+", choice["known"])
        near = difflib.get_close_matches(choice["word"], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"{choice['where']}: {choice['word']!r} is not known", hint=hint)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            near = difflib.get_close_matches(rest[0].split("=")[0], list(self._option_string_actions), n=1)
            hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help"
            raise UsageError(f"{self.prog} does not know {rest[0]!r}", hint=hint)
        return found, rest


class WrongBisection(UsageError):
    """The request is invalid for every commit: the exit status ends ``git bisect run``."""

    exit_status = 128


def parse_arguments(words: Sequence[str]) -> tuple[str, Arguments]:
    """The command's name and its arguments; raises UsageError.

    ``--help`` and ``--version`` print and raise SystemExit.
    """
    try:
        found = vars(build_parser().parse_args(list(words)))
    except UsageError as error:
        if "--bisect" not in words:
            raise
        raise WrongBisection(error.message, hint=error.hint) from None
    kind: type[Arguments] = found["kind"]
    values: dict[str, Any] = {field.name: found[field.name] for field in fields(kind)}
    frozen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return found["command"], kind(**frozen)


def build_parser() -> argparse.ArgumentParser:
    """The whole parser."""
    parser = _Parser(
        prog="memhp",
        description="Drive Linux memory hotplug in QEMU guests and prove the kernel's state after every step.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"memhp {__version__}")
    _common(parser, top=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, kind: type[Arguments], summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        made.allow_abbrev = False
        made.set_defaults(kind=kind)
        _common(made, top=False)
        return made

    for chapter in (_setting_up, _running_them, _at_a_prompt, _looking, _measuring):
        chapter(add)
    return parser


_Add = Callable[[str, type[Arguments], str], argparse.ArgumentParser]


def _setting_up(add: _Add) -> None:
    doctor = add("doctor", into.DoctorArguments, "show what is present, what is missing and the commands that fix it")
    _arches(doctor)
    doctor.add_argument("--verify", action="store_true", help="hash every byte of the cache")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    fetch = add("fetch", into.FetchArguments, "fetch or build every part now: QEMU, firmware, guest root, kernels")
    fetch.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)}; default: all")
    _arches(fetch)
    lists = (
        "list scenarios, verbs, invariants, known bugs, guests, kernels, or supported devices (by running every cell)"
    )
    listing = add("list", into.ListArguments, lists)
    listing.add_argument("what", choices=_LISTS, help="what to list")
    _arches(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")


def _running_them(add: _Add) -> None:
    run = add("run", into.RunArguments, "run scenarios on a guest and check the kernel's state after every step")
    run.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="a name, or a YAML file; default: all")
    run.add_argument("--all", action="store_true", help="all scenarios (the default)")
    _guest(run, several="repeatable, none: arm64")
    _running(run, jobs="1; of a matrix, one for each CPU")
    _value(
        run,
        "--rounds",
        read=read_rounds,
        metavar="N",
        help="repeat the steps of a soak N times (default: as in the scenario)",
    )
    run.add_argument("--bisect", action="store_true", help="use the exit status for git bisect run: see memhp --help")
    _keeping(run)
    _matrix(run)
    _reports(run)
    merge = add("merge", into.MergeArguments, "merge the results of a matrix's shards")
    merge.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="results of memhp run --matrix --shard")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory to create")
    _history(merge)
    _reports(merge)
    demo = add(
        "demo",
        into.DemoArguments,
        "show what memhp does: Debian's kernel first, then the purpose-built one with every scenario",
    )
    _arches(demo)
    demo.add_argument("--qemu", metavar="Q", help="another qemu-system-*, or debian:SUITE")
    _running(demo, jobs="one for each architecture")
    _reports(demo)


def _at_a_prompt(add: _Add) -> None:
    shell = add("shell", into.ShellArguments, "start a guest with an interactive prompt; every step is checked")
    _lines(shell)
    shell.add_argument(
        "--bundle-dir", type=Path, metavar="DIR", help="where the session is recorded (default: memhp-runs)"
    )
    _timeout(shell)
    _known_bugs(shell)
    _guest(shell)
    attach = add("attach", into.AttachArguments, "open the prompt of shell on a guest kept by `run --keep`")
    attach.add_argument("bundle", nargs="?", metavar="BUNDLE", help="the run's bundle (default: the newest kept guest)")
    _lines(attach)
    replay = add("replay", into.ReplayArguments, "repeat the run of a bundle: same steps, same guest, same kernel")
    replay.add_argument("bundle", type=Path, metavar="BUNDLE", help="the directory of a run, or of a session of shell")
    replay.add_argument("--bundle-dir", type=Path, metavar="DIR", help="keep the bundle there even if it passes")
    _timeout(replay)
    _known_bugs(replay)
    _reports(replay)


def _looking(add: _Add) -> None:
    collect = add("collect", into.CollectArguments, "start a guest and save one snapshot of its state")
    collect.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory to create")
    _timeout(collect, "the boot")
    _guest(collect)
    check = add("check", into.CheckArguments, "check a saved run or snapshot again, without a VM")
    check.add_argument("directory", type=Path, metavar="DIR", help="a bundle of run, or a snapshot of collect")
    _reports(check)
    tables = add(
        "ptdump",
        into.PtdumpArguments,
        "print a snapshot's or a guest's page tables in the kernel's own format; or their differences",
    )
    tables.add_argument("--region", metavar="NAME", help="only below this marker: its name or a prefix")
    _tables(tables, "virtual addresses; all runs that overlap them (--diff: changes inside them)")
    _tables(
        add(
            "sections", into.SectionsArguments, "print a snapshot's or a guest's memory sections; or their differences"
        ),
        "physical addresses",
    )
    cmdline = add(
        "cmdline", into.CmdlineArguments, "print QEMU's command line, one option per line, quoted for a shell"
    )
    _guest(cmdline)


def _measuring(add: _Add) -> None:
    bench = add("bench", into.BenchArguments, "measure the harness's times beside the guest's own share")
    _bench(bench)
    selftest = add(
        "selftest",
        into.SelftestArguments,
        "corrupt a live, paused guest and the collected text on purpose; every corruption must be named",
    )
    _selftest(selftest)


_KERNELS = (
    "an Image, a kernel source tree to build, debian, debian:SUITE, debian:VERSION, a linux-image-… package, or purpose"
    " (the default: built once from Debian's source; see memhp list kernels)"
)


def _common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    # Allowed before and after the command: the second parser must not reset the first one's values.
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto" if top else argparse.SUPPRESS,
        help="colour; auto: on a terminal, unless NO_COLOR is set",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        default=False if top else argparse.SUPPRESS,
        help="show a traceback with every error",
    )


def _value(parser: argparse._ActionsContainer, *names: str, read: Callable[[str, str], object], **more: Any) -> None:
    """Add an option whose value ``read`` parses; it gets the option's name for its errors."""
    parser.add_argument(*names, type=lambda text: read(text, names[-1]), **more)


def _arches(parser: argparse._ActionsContainer, several: str = "repeatable, none: both") -> None:
    parser.add_argument(
        "-a", "--arch", dest="arches", action="append", default=[], metavar="ARCH", help=f"arm64 or riscv64; {several}"
    )


def _timeout(parser: argparse._ActionsContainer, what: str = "the boot and each step") -> None:
    _value(parser, "--timeout", read=read_seconds, default=120.0, metavar="S", help=f"seconds for {what} (default 120)")


def _lines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        dest="lines",
        action="append",
        default=[],
        metavar="LINES",
        help="run these lines instead, separated by ';'",
    )


def _tables(parser: argparse.ArgumentParser, ranges: str) -> None:
    parser.add_argument(
        "directory", nargs="?", type=Path, metavar="DIR", help="a bundle of run, a snapshot of collect, or a states/NNN"
    )
    _value(parser, "--state", read=read_state, metavar="N", help="which snapshot of DIR (default: the last one)")
    parser.add_argument(
        "--range", action="append", default=[], metavar="START-END", help=f"only these {ranges} (repeatable)"
    )
    pair = "compare two saved snapshots: two directories, or with DIR two of its states by number"
    parser.add_argument("--diff", nargs=2, default=[], metavar=("A", "B"), help=pair)
    parser.add_argument("--json", action="store_true", help="print JSON")
    _timeout(parser, "the boot of a guest")
    _guest(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {what}" for name, what in BENCHES.items())
    parser.add_argument("name", nargs="?", default=DEFAULT_BENCH, choices=BENCHES, metavar="NAME", help=names)
    rounds = f"number of counted rounds (default {DEFAULT_ROUNDS})"
    _value(parser, "--rounds", read=read_bench_rounds, default=DEFAULT_ROUNDS, metavar="N", help=rounds)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (-: standard output)")
    _timeout(parser)
    _guest(parser, several="repeatable, none: both")


def _selftest(parser: argparse.ArgumentParser) -> None:
    kernels = "instead of corruptions: build kernels with one real bug each put back (configs/kernels/bugs), and run "
    kernels += "the scenarios that must show it"
    parser.add_argument("--kernels", action="store_true", help=kernels)
    names = "only corruptions or bugs with matching names (* and ? as in a shell; repeatable)"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=names)
    parser.add_argument(
        "--list", action="store_true", help="list them with the invariants that must name them; no VM needed"
    )
    parser.add_argument("--json", metavar="FILE", help="write every trial as JSON (-: standard output)")
    _timeout(parser)
    _guest(parser, several="repeatable, none: both")


def _guest(parser: argparse.ArgumentParser, *, several: str = "") -> None:
    group = parser.add_argument_group("guest")
    if several:
        _arches(group, several)
    else:
        group.add_argument("-a", "--arch", metavar="ARCH", help="arm64 (the default) or riscv64")
    group.add_argument("--guest", metavar="FILE", help="a YAML guest file, or a name of `memhp list guests`")
    group.add_argument("--kernel", metavar="K", help=_KERNELS)
    options = "an option of the tree's configuration: X, X=m, X=n, X=16, X=text (repeatable)"
    group.add_argument("-K", dest="kernel_options", action="append", default=[], metavar="X=V", help=options)
    group.add_argument("--build-dir", metavar="DIR", help="build the tree there (O=), reusing existing objects")
    group.add_argument("--llvm", action="store_true", help="build the tree with LLVM")
    own = "build the tree with its own .config (that of --build-dir, if given), unchanged"
    group.add_argument("--own-config", action="store_true", help=own)
    modules = "where the kernel's modules are: an INSTALL_MOD_PATH, a lib/modules/RELEASE, or the tree it was built in"
    group.add_argument("--modules", metavar="DIR", help=modules)
    group.add_argument("--initrd", metavar="FILE", help="an archive to unpack over the guest's root")
    qemu = "another qemu-system-*, debian (with memhp's patches if necessary), or debian:SUITE (unpatched)"
    group.add_argument("--qemu", metavar="Q", help=qemu)
    _value(group, "--memory", read=read_size, metavar="SIZE", help="boot memory (default 1G)")
    _value(group, "--maxmem", read=read_size, metavar="SIZE", help="boot memory and all memory devices (default 16G)")
    _value(group, "--slots", read=read_integer, metavar="N", help="DIMM slots (default 8)")
    _value(group, "--ports", read=read_integer, metavar="N", help="hot-plug ports for virtio devices (default 4)")
    _value(group, "--cpus", read=read_integer, metavar="N", help="CPUs (default 2)")
    _value(
        group,
        "--node",
        dest="nodes",
        read=read_size,
        action="append",
        default=[],
        metavar="SIZE",
        help="a NUMA node with SIZE of the boot memory",
    )
    boot = "acpi (through EDK2) or dt (device tree); cold, restore (from a snapshot) or auto (restore if possible)"
    group.add_argument("--boot", action="append", default=[], metavar="HOW", help=f"{boot}; repeatable")
    group.add_argument("--cmdline", metavar="ARGS", help="more arguments for the kernel")
    group.add_argument("--cpu", metavar="MODEL", help="QEMU's -cpu")
    _value(
        group,
        "--random-seed",
        read=read_integer,
        metavar="N",
        help="seed for QEMU's random choices for the guest, such as KASLR",
    )
    group.add_argument(
        "--machine",
        dest="machine_options",
        action="append",
        default=[],
        metavar="K=V",
        help="an option for QEMU's -machine (repeatable)",
    )


def _running(parser: argparse.ArgumentParser, jobs: str) -> None:
    group = parser.add_argument_group("running")
    group.add_argument(
        "--bundle-dir", type=Path, metavar="DIR", help="keep every run's bundle there, not only of failed runs"
    )
    _value(group, "--seed", read=read_integer, default=0, metavar="N", help="seed of everything random (default 0)")
    _timeout(group)
    _value(group, "-j", "--jobs", read=read_jobs, metavar="N", help=f"N guests at a time (default: {jobs})")
    ending = group.add_mutually_exclusive_group()
    ending.add_argument(
        "--keep-going", dest="fail_fast", action="store_false", help="run all scenarios in any case (default)"
    )
    ending.add_argument("--fail-fast", action="store_true", help="stop after the first scenario that does not pass")
    parser.set_defaults(fail_fast=False)
    require = "invariants (LIN-1,XCK-1) that must be observed for a verdict, whatever the kernel can show"
    allow = "invariants that may go unobserved although the kernel can show them"
    _value(group, "--require", read=read_names, default=(), metavar="LIST", help=require)
    _value(group, "--allow-unobserved", read=read_names, default=(), metavar="LIST", help=allow)
    _known_bugs(group)


def _known_bugs(parser: argparse._ActionsContainer) -> None:
    help = "treat a known bug of the kernel under test like any other (memhp list bugs)"
    parser.add_argument("--no-known-bugs", dest="known_bugs", action="store_false", help=help)


def _matrix(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("matrix")
    group.add_argument("--matrix", metavar="FILE", help="run every cell of a matrix file, such as configs/nightly.yaml")
    group.add_argument("--shard", metavar="I/N", help="only part I (from 1) of N")
    group.add_argument("--list", action="store_true", help="show the cells and the expected time, run nothing")
    results = (
        "where results are kept; a second start continues there (default: memhp-results/NAME-TIME, the latest one "
    )
    results += "if it is unfinished)"
    group.add_argument("--results", type=Path, metavar="DIR", help=results)
    _history(group)


def _history(parser: argparse._ActionsContainer) -> None:
    history = "directory with the results of earlier nights, for the report's trends and expected times"
    parser.add_argument("--history", metavar="DIR", help=history)


def _keeping(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a guest that fails")
    keep = "keep the first failing guest running for `memhp attach`, and end the run"
    group.add_argument("--keep", action="store_true", help=keep)
    _value(
        group,
        "--keep-for",
        read=read_seconds,
        default=3600.0,
        metavar="S",
        help="seconds until it ends (default 3600)",
    )


def _reports(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reports")
    group.add_argument("--json", metavar="FILE", help="write the results as JSON (-: standard output)")
    group.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML (-: standard output)")
    group.add_argument("--ktap", metavar="FILE", help="write the results as KTAP (-: standard output)")
    group.add_argument("--kcidb", metavar="FILE", help="write the results as KCIDB JSON (-: standard output)")
    origin = "the name of the CI system in KCIDB, such as my_lab (default memhp)"
    group.add_argument("--kcidb-origin", default="memhp", metavar="NAME", help=origin)
    group.add_argument("--html", metavar="FILE", help="write the results as one HTML page (-: standard output)")
