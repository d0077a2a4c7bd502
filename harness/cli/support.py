# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp list support``: runs each combination of memory device, architecture and boot method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from harness.check import Verdict
from harness.cli.command_arguments import ListArguments
from harness.cli.guest_options import arches_of
from harness.cli.output import print_columns, print_json
from harness.config.guest import BOOTS, GuestSpec
from harness.progress import default_progress
from harness.qemu.devices.device import KINDS
from harness.report.tally import exit_status
from harness.scenarios.file import load_scenario
from harness.scenarios.reporter import SilentReporter
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions
from harness.scenarios.runner import run_scenarios


@dataclass(frozen=True, slots=True)
class SupportCell:
    """One combination: ``works`` is yes, no (not supported; see ``reason``), or FAILED (see ``reason``)."""

    device: str
    arch: str
    boot: str
    works: str
    scenario: str
    reason: str


def show_support(arguments: ListArguments) -> int:
    """Run every cell and print the table; returns the exit status of the runs, unsupported cells excluded."""
    cells: list[SupportCell] = []
    results: list[RunResult] = []
    guests = [
        GuestSpec.default(arch.name).with_fields({"boot": boot, "name": f"{arch.name}-{boot}"})
        for arch in arches_of(arguments.arches)
        for boot in BOOTS
    ]
    progress = default_progress()
    with progress.task("Running every cell") as task:
        for number, guest in enumerate(guests):
            for part, kind in enumerate(KINDS.values()):
                note = f"{kind.name}, {guest.arch}, {guest.boot}"
                task.update(done=number * len(KINDS) + part, total=len(guests) * len(KINDS), note=note)
                result = run_cell(guest, kind.proof)
                results.append(result)
                cells.append(read_cell(kind.name, guest, result))
    if arguments.json:
        print_json([asdict(cell) for cell in cells])
    else:
        print_columns(table(cells))
    return exit_status([result for result in results if result.verdict is not Verdict.SKIPPED])


def run_cell(guest: GuestSpec, scenario: str) -> RunResult:
    """Run one scenario on one guest; the bundle is kept if it does not pass."""
    [result] = run_scenarios([load_scenario(scenario)], guest, RunOptions(), SilentReporter())
    return result


def read_cell(device: str, guest: GuestSpec, result: RunResult) -> SupportCell:
    """The cell that a run's result describes."""
    works = {Verdict.PASS: "yes", Verdict.KNOWN: "yes", Verdict.SKIPPED: "no"}.get(result.verdict, "FAILED")
    # A known bug does not count: the device did everything that was requested.
    reason = "" if result.verdict is Verdict.PASS else result.reason
    if result.bundle is not None and works == "FAILED":
        reason = f"{reason} (bundle: {result.bundle})"
    return SupportCell(device, guest.arch, guest.boot, works, result.scenario, reason)


def table(cells: Sequence[SupportCell]) -> list[tuple[str, ...]]:
    """A header and a row for each cell, the reason last."""
    rows = [(cell.device, cell.arch, cell.boot, cell.works, cell.scenario, cell.reason or "-") for cell in cells]
    return [("device", "arch", "boot", "works", "proved by", "reason"), *rows]
