# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp demo``: typical scenarios on every architecture, first those that need no kernel build."""

from __future__ import annotations

import contextlib

from harness.arch import arch_named
from harness.artifacts.cache import Cache
from harness.artifacts.kernel import kernel
from harness.artifacts.kernel_build import is_usual
from harness.cli.command_arguments import DemoArguments
from harness.cli.guest_options import arches_of, read_qemu, run_options
from harness.cli.results import check_reports, finish, open_reporter, run_all
from harness.config.guest import GuestSpec
from harness.errors import UnsupportedError, UsageError
from harness.report.terminal_report import TerminalReporter
from harness.scenarios.file import Scenario, load_scenario
from harness.scenarios.requirements import require_config
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions

#: run on Debian's own kernel, before anything is built
FIRST_SCENARIOS = ("virtio-mem-resize", "pmem-kmem")
#: one of each kind; ``memhp run --all`` runs all scenarios
SCENARIOS = (
    *("dimm-cycle", "dimm-migrate", "dimm-refused", "virtio-mem-resize", "pmem-kmem", "memmap-on-memory"),
    *("partial-tables", "sub-section", "numa"),
)


def run(arguments: DemoArguments) -> int:
    """memhp demo: FIRST_SCENARIOS if no kernel is built yet, then SCENARIOS; in parallel, unless --jobs is given."""
    check_reports(arguments)
    guests = _guests(arguments)
    options = run_options(arguments, jobs=len(guests))
    chosen = [load_scenario(name) for name in SCENARIOS]
    results: list[RunResult] = []
    with open_reporter(arguments) as reporter:
        for guest in guests:
            if not is_built(guest.arch):
                results += _start_with_stock_kernel(guest, options, reporter)
        return finish(arguments, reporter, [*results, *run_all(chosen, guests, options, reporter)])


def _guests(arguments: DemoArguments) -> list[GuestSpec]:
    guests = [GuestSpec.default(arch.name) for arch in arches_of(arguments.arches)]
    if arguments.qemu is None:
        return guests
    if len(guests) > 1:
        raise UsageError("--qemu needs a single architecture", hint="name it with -a")
    return [guests[0].with_fields({"qemu": read_qemu(arguments.qemu, "--qemu")})]


def _start_with_stock_kernel(guest: GuestSpec, options: RunOptions, reporter: TerminalReporter) -> list[RunResult]:
    _headline(reporter, f"{guest.arch}, Debian's own kernel: no kernel to compile")
    stock = guest.with_fields({"kernel": "debian", "name": f"{guest.arch}-debian"})
    results = run_all(for_stock_kernel(guest, reporter), [stock], options, reporter)
    _headline(reporter, f"{guest.arch}, the purpose-built kernel: built once, then more scenarios")
    build_kernel(guest, reporter)
    return results


def for_stock_kernel(guest: GuestSpec, reporter: TerminalReporter) -> list[Scenario]:
    """The scenarios whose kernel options Debian's kernel for this architecture has."""
    image = kernel(arch_named(guest.arch), "debian", reporter.progress)
    able = []
    for scenario in (load_scenario(name) for name in FIRST_SCENARIOS):
        with contextlib.suppress(UnsupportedError):
            require_config(scenario.needs, image.config, image.origin)
            able.append(scenario)
    return able


def is_built(arch: str) -> bool:
    """True if the cache has the purpose-built kernel."""
    found = Cache().entries(full=False)
    return any(entry.kind == "kernel" and is_usual(entry.path.name, arch_named(arch)) for entry in found)


def build_kernel(guest: GuestSpec, reporter: TerminalReporter) -> None:
    """Build the purpose-built kernel, unless it is cached."""
    kernel(arch_named(guest.arch), None, reporter.progress)


def _headline(reporter: TerminalReporter, text: str) -> None:
    reporter.rest()
    reporter.console.print(f"── {text}", style="bold")
