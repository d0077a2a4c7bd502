# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be said on the command line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from harness import __version__
from harness.bench import BENCHES, DEFAULT_ROUNDS
from harness.errors import UsageError

Arguments = argparse.Namespace

EPILOG = """\
exit status of run, check, collect, replay, shell, attach and demo:
  0  all passed
  1  the kernel under test broke an invariant
  2  usage or configuration error; or every scenario was skipped for a missing ability
  3  no verdict: infrastructure failed, or the guest refused a step that the scenario needs
doctor ends with 3 if anything is missing, bench with 1 if what it timed gave wrong results, selftest with 1 if a
corruption was not named by the right invariant.

first line to try: memhp run -a arm64 --kernel path/to/Image
"""

_PARTS = ("qemu", "firmware", "guest-root", "kernel", "debian-kernel")
_LISTS = ("scenarios", "invariants", "guests", "kernels", "support")


#: argparse's own words, quotes around the choices depending on Python's version
_CHOICE = re.compile(r"argument (?P<where>.*?): invalid choice: '(?P<word>.*)' \(choose from (?P<known>.*)\)", re.S)


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print a page of usage and exit."""

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


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Parse the command line; raises UsageError. ``--help`` and ``--version`` print and raise SystemExit."""
    return build_parser().parse_args(list(words))


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

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        made.allow_abbrev = False
        _common(made, top=False)
        return made

    doctor = add("doctor", "show what is there, what is missing and the command that mends it")
    _arches(doctor)
    doctor.add_argument("--verify", action="store_true", help="hash every byte of the cache")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    fetch = add("fetch", "fetch or build every part now: QEMU, firmware, guest root, kernels")
    fetch.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)}; none: all of them")
    _arches(fetch)
    listing = add("list", "list scenarios, invariants, guests, kernels, or what is supported: support runs every cell")
    listing.add_argument("what", choices=_LISTS, help="what to list")
    _arches(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    run = add("run", "run scenarios on a guest and check the kernel's state after every step")
    run.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="a name, or a YAML file; none: all of them")
    run.add_argument("--all", action="store_true", help="all scenarios (the default)")
    _guest(run)
    _running(run)
    _keeping(run)
    _reports(run)
    shell = add("shell", "boot a guest and poke at it at a prompt; every step is checked")
    shell.add_argument("-c", dest="lines", action="append", metavar="LINES", help="do these instead, parted by ';'")
    shell.add_argument("--bundle-dir", metavar="DIR", help="where the session is recorded (default: memhp-runs)")
    shell.add_argument("--timeout", default="120", metavar="S", help="seconds for the boot and each step (default 120)")
    _guest(shell)
    attach = add("attach", "the prompt of shell on a guest that `run --keep` has left")
    attach.add_argument("bundle", nargs="?", metavar="BUNDLE", help="the run's bundle (none: the newest kept guest)")
    attach.add_argument("-c", dest="lines", action="append", metavar="LINES", help="do these instead, parted by ';'")
    replay = add("replay", "run what a bundle recorded once more: same steps, same guest, same kernel")
    replay.add_argument("bundle", metavar="BUNDLE", help="the directory of a run, or of a session of shell")
    replay.add_argument("--bundle-dir", metavar="DIR", help="keep the bundle there even if it passes")
    replay.add_argument(
        "--timeout", default="120", metavar="S", help="seconds for the boot and each step (default 120)"
    )
    _reports(replay)
    collect = add("collect", "boot a guest and save one snapshot of its state")
    collect.add_argument("-o", "--output", required=True, metavar="DIR", help="directory to create")
    collect.add_argument("--timeout", default="120", metavar="S", help="seconds for the boot (default 120)")
    _guest(collect)
    check = add("check", "check a saved run or snapshot again; no VM needed")
    check.add_argument("directory", metavar="DIR", help="a bundle of run, or what collect wrote")
    _reports(check)
    tables = add("ptdump", "print a snapshot's page tables, or a guest's, like the kernel's own file; or what changed")
    tables.add_argument("--region", metavar="NAME", help="only below this marker: its name, or how it begins")
    _tables(tables, "virtual addresses; all runs that touch them (--diff: what changed inside of them)")
    _tables(add("sections", "print a snapshot's memory sections, or a guest's; or what changed"), "physical addresses")
    bench = add("bench", "measure how long things take, next to the guest doing the same itself")
    _bench(bench)
    selftest = add("selftest", "break a live, paused guest on purpose, and what is collected; every lie must be named")
    _selftest(selftest)
    cmdline = add("cmdline", "print QEMU's command line, an option a line, fit for a shell")
    _guest(cmdline)
    demo = add("demo", "show the main job: Debian's kernel first, then the purpose-built one with every scenario")
    _arches(demo)
    demo.add_argument("--qemu", metavar="PATH", help="another qemu-system-*")
    _running(demo)
    _reports(demo)
    return parser


_KERNELS = "an Image, debian, a linux-image-… package, or purpose (the default: built once from Debian's source)"


def _common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    # Given before or after the command: the later parser must not reset what the earlier one found.
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


def _arches(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "-a", "--arch", action="append", metavar="ARCH", help="arm64 or riscv64; repeatable, none: both"
    )


def _tables(parser: argparse.ArgumentParser, ranges: str) -> None:
    parser.add_argument("directory", nargs="?", metavar="DIR", help="a bundle of run, what collect wrote, a states/NNN")
    parser.add_argument("--state", metavar="N", help="which snapshot of DIR (default: the last one)")
    parser.add_argument("--range", action="append", metavar="START-END", help=f"only these {ranges} (repeatable)")
    pair = "compare two saved snapshots: two directories, or with DIR two of its states by number"
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help=pair)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--timeout", default="120", metavar="S", help="seconds for the boot of a guest (default 120)")
    _guest(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {what}" for name, what in BENCHES.items())
    parser.add_argument("name", choices=BENCHES, metavar="NAME", help=names)
    rounds = f"rounds that count (default {DEFAULT_ROUNDS})"
    parser.add_argument("--rounds", default=str(DEFAULT_ROUNDS), metavar="N", help=rounds)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (-: standard output)")
    limit = "seconds for the boot and each step (default 120)"
    parser.add_argument("--timeout", default="120", metavar="S", help=limit)
    _guest(parser)


def _selftest(parser: argparse.ArgumentParser) -> None:
    names = "only corruptions with such a name (* and ? as in a shell; repeatable)"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=names)
    parser.add_argument(
        "--list", action="store_true", help="print the corruptions and who must name them; no VM needed"
    )
    parser.add_argument("--json", metavar="FILE", help="write every trial as JSON (-: standard output)")
    limit = "seconds for the boot and each step (default 120)"
    parser.add_argument("--timeout", default="120", metavar="S", help=limit)
    _guest(parser, several=True)


def _guest(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    group = parser.add_argument_group("guest")
    if several:
        _arches(group)
    else:
        group.add_argument("-a", "--arch", metavar="ARCH", help="arm64 (the default) or riscv64")
    group.add_argument("--guest", metavar="FILE", help="a YAML guest file, or a name of `memhp list guests`")
    group.add_argument("--kernel", metavar="K", help=_KERNELS)
    group.add_argument("--initrd", metavar="FILE", help="an archive to unpack over the guest's root")
    group.add_argument("--qemu", metavar="PATH", help="another qemu-system-*")
    group.add_argument("--memory", metavar="SIZE", help="boot memory (default 1G)")
    group.add_argument("--maxmem", metavar="SIZE", help="boot memory and all memory devices (default 16G)")
    group.add_argument("--slots", metavar="N", help="DIMM slots (default 8)")
    group.add_argument("--ports", metavar="N", help="hot-plug ports for virtio devices (default 4)")
    group.add_argument("--cpus", metavar="N", help="CPUs (default 2)")
    group.add_argument("--node", action="append", metavar="SIZE", help="a NUMA node with SIZE of the boot memory")
    group.add_argument("--boot", metavar="HOW", help="acpi (through EDK2) or dt (device tree)")
    group.add_argument("--cmdline", metavar="ARGS", help="more arguments for the kernel")
    group.add_argument("--cpu", metavar="MODEL", help="QEMU's -cpu")
    group.add_argument("--machine", action="append", metavar="K=V", help="an option for QEMU's -machine (repeatable)")


def _running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--bundle-dir", metavar="DIR", help="keep every run's bundle there, not only of failed runs")
    group.add_argument("--seed", default="0", metavar="N", help="seed of everything random (default 0)")
    group.add_argument("--timeout", default="120", metavar="S", help="seconds for the boot and each step (default 120)")
    ending = group.add_mutually_exclusive_group()
    ending.add_argument("--keep-going", dest="fail_fast", action="store_false", help="run all, come what may (default)")
    ending.add_argument("--fail-fast", action="store_true", help="stop after the first scenario that does not pass")
    parser.set_defaults(fail_fast=False)


def _keeping(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a guest that fails")
    keep = "leave the first guest that fails running for `memhp attach`, and end the run there"
    group.add_argument("--keep", action="store_true", help=keep)
    group.add_argument("--keep-for", default="3600", metavar="S", help="seconds until it is ended (default 3600)")


def _reports(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reports")
    group.add_argument("--json", metavar="FILE", help="write the results as JSON (-: standard output)")
    group.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML (-: standard output)")
