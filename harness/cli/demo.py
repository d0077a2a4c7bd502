# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp demo``: the main job on every architecture, what needs no building first."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

from harness.arch import arch_named
from harness.artifacts.cache import Cache
from harness.artifacts.kernel import kernel
from harness.cli.options import arches_of, read_file, run_options
from harness.cli.parser import Arguments
from harness.cli.reports import check_reports
from harness.cli.running import finish, open_reporter, run_all
from harness.config.guest import GuestSpec
from harness.config.scenario import Scenario, known_scenarios, load_scenario
from harness.errors import UnsupportedError, UsageError
from harness.report.terminal import TerminalReporter
from harness.scenarios.abilities import require_config
from harness.scenarios.options import RunOptions
from harness.scenarios.result import RunResult

#: what Debian's own kernels can do, shown before anything is built
FIRST_SCENARIOS = ("virtio-mem-resize", "pmem-kmem")


def demo(arguments: Arguments) -> int:
    """memhp demo: what needs no building first, then everything; side by side where all is built."""
    check_reports(arguments)
    options = run_options(arguments)
    guests = _guests(arguments)
    every = [load_scenario(name) for name in known_scenarios()]
    results: list[RunResult] = []
    with open_reporter(arguments) as reporter:
        built = [is_built(guest.arch) for guest in guests]
        if all(built):
            results += _side_by_side(guests, every, options, reporter, arguments.color)
        else:
            for guest, ready in zip(guests, built, strict=True):
                if not ready:
                    results += _start_with_stock_kernel(guest, options, reporter)
                results += run_all(every, guest, options, reporter)
        return finish(arguments, reporter, results)


def _guests(arguments: Arguments) -> list[GuestSpec]:
    guests = [GuestSpec.default(arch.name) for arch in arches_of(arguments)]
    if arguments.qemu is None:
        return guests
    if len(guests) > 1:
        raise UsageError("--qemu serves one architecture", hint="name it with -a")
    return [guests[0].with_fields({"qemu": read_file(arguments.qemu, "--qemu")})]


def _start_with_stock_kernel(guest: GuestSpec, options: RunOptions, reporter: TerminalReporter) -> list[RunResult]:
    _headline(reporter, f"{guest.arch}, Debian's own kernel: no kernel to compile")
    stock = guest.with_fields({"kernel": "debian", "name": f"{guest.arch}-debian"})
    results = run_all(for_stock_kernel(guest, reporter), stock, options, reporter)
    _headline(reporter, f"{guest.arch}, the purpose-built kernel: built once, then every scenario")
    build_kernel(guest, reporter)
    return results


def _side_by_side(
    guests: Sequence[GuestSpec],
    scenarios: Sequence[Scenario],
    options: RunOptions,
    reporter: TerminalReporter,
    color: str,
) -> list[RunResult]:
    """The first architecture is shown as it goes, the others when it is done: one guest leaves a core idle.

    The threads are daemons: if the user has enough, the process ends, and QEMU with it.
    """
    if color == "auto":
        color = "never" if reporter.console.no_color else "always"
    others = [_Background(guest, scenarios, options, color) for guest in guests[1:]]
    results = run_all(scenarios, guests[0], options, reporter)
    for other in others:
        reporter.phase(f"{other.guest.arch} is still at it")
        results += other.wait()
        reporter.rest()
        reporter.console.file.write(other.shown.getvalue())
    return results


class _Background:
    """Runs scenarios on another guest in a thread of its own; ``shown`` gets what the terminal would."""

    def __init__(self, guest: GuestSpec, scenarios: Sequence[Scenario], options: RunOptions, color: str) -> None:
        self.guest = guest
        self.shown = io.StringIO()
        self._done: queue.SimpleQueue[list[RunResult] | BaseException] = queue.SimpleQueue()
        reporter = TerminalReporter(self.shown, io.StringIO(), color=color)

        def work() -> None:
            try:
                self._done.put(run_all(scenarios, guest, options, reporter))
            except BaseException as error:
                self._done.put(error)

        threading.Thread(target=work, name=f"demo-{guest.arch}", daemon=True).start()

    def wait(self) -> list[RunResult]:
        done = self._done.get()
        if isinstance(done, BaseException):
            raise done
        return done


def for_stock_kernel(guest: GuestSpec, reporter: TerminalReporter) -> list[Scenario]:
    """The scenarios that Debian's kernel for this architecture has the options for."""
    image = kernel(arch_named(guest.arch), "debian", reporter.progress)
    able = []
    for scenario in (load_scenario(name) for name in FIRST_SCENARIOS):
        with contextlib.suppress(UnsupportedError):
            require_config(scenario.needs, image.config, image.origin)
            able.append(scenario)
    return able


def is_built(arch: str) -> bool:
    """True if the cache has a purpose-built kernel: nobody has to be kept waiting for it."""
    found = Cache.default().entries(full=False)
    return any(entry.kind == "kernel" and entry.path.name.startswith(f"{arch}-") for entry in found)


def build_kernel(guest: GuestSpec, reporter: TerminalReporter) -> None:
    """Have the purpose-built kernel."""
    kernel(arch_named(guest.arch), None, reporter.progress)


def _headline(reporter: TerminalReporter, text: str) -> None:
    reporter.rest()
    reporter.console.print(f"── {text}", style="bold")


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {"demo": demo}
