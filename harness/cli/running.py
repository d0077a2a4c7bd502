# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that end in a verdict: run, check, collect, demo."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.cli.options import arches_of, guest_of, read_file, read_seconds, run_options
from harness.cli.parser import Arguments
from harness.config.guest import GuestSpec
from harness.config.scenario import Scenario, known_scenarios, load_scenario
from harness.errors import InfraError, UnsupportedError, UsageError
from harness.report.files import STDOUT, check_target, write_report
from harness.report.json import dumps, results_to_json
from harness.report.junit import to_junit
from harness.report.tally import exit_status
from harness.report.terminal import TerminalReporter
from harness.scenarios.options import RunOptions
from harness.scenarios.result import RunResult

#: what Debian's own kernel can do, shown before anything is built
FIRST_SCENARIOS = ("virtio-mem-resize", "pmem-kmem")


@contextlib.contextmanager
def _reporter(arguments: Arguments) -> Iterator[TerminalReporter]:
    """Results on standard output, unless a report wants it for itself."""
    reports = [getattr(arguments, name, None) for name in ("json", "junit")]
    out = sys.stderr if STDOUT in reports else sys.stdout
    reporter = TerminalReporter(out, sys.stderr, color=arguments.color)
    try:
        yield reporter
    finally:
        reporter.rest()


def _check_reports(arguments: Arguments) -> None:
    if arguments.json == STDOUT and arguments.junit == STDOUT:
        raise UsageError("--json and --junit both want standard output", hint="give one of them a file")
    for option in ("json", "junit"):
        target = getattr(arguments, option)
        if target is not None:
            check_target(target, f"--{option}")


def _write_reports(arguments: Arguments, results: Sequence[RunResult]) -> None:
    if arguments.json is not None:
        write_report(arguments.json, dumps(results_to_json(results)))
    if arguments.junit is not None:
        write_report(arguments.junit, to_junit(results))


def _finish(arguments: Arguments, reporter: TerminalReporter, results: Sequence[RunResult]) -> int:
    """Summary, reports, exit status. A report that cannot be written does not hide a broken invariant."""
    reporter.summary(results)
    status = exit_status(results)
    try:
        _write_reports(arguments, results)
    except InfraError as error:
        sys.stderr.write(f"memhp: {error}\n")
        return status or error.exit_status
    return status


def chosen_scenarios(arguments: Arguments) -> list[Scenario]:
    """The scenarios that the user named, or all of them; raises UsageError, ConfigError."""
    if arguments.all and arguments.scenarios:
        raise UsageError("--all and named scenarios exclude each other", hint="name them, or leave it at --all")
    names = arguments.scenarios or list(known_scenarios())
    if not names:
        raise UsageError("there are no scenarios", hint="configs/scenarios of the checkout holds them")
    return [load_scenario(name) for name in names]


def run(arguments: Arguments) -> int:
    """memhp run."""
    _check_reports(arguments)
    scenarios, guest, options = chosen_scenarios(arguments), guest_of(arguments), run_options(arguments)
    with _reporter(arguments) as reporter:
        return _finish(arguments, reporter, _run_all(scenarios, guest, options, reporter))


def _run_all(
    scenarios: Sequence[Scenario], guest: GuestSpec, options: RunOptions, reporter: TerminalReporter
) -> list[RunResult]:
    from harness.scenarios.runner import run_scenarios

    return run_scenarios(scenarios, guest, options, reporter, reporter.progress)


def check(arguments: Arguments) -> int:
    """memhp check."""
    _check_reports(arguments)
    directory = Path(arguments.directory)
    if not directory.is_dir():
        raise UsageError(f"no directory {directory}", hint="a bundle of memhp run, or what memhp collect wrote")
    from harness.scenarios.recheck import recheck

    with _reporter(arguments) as reporter:
        result = recheck(directory)
        reporter.run_started(result.scenario, result.guest)
        for step in result.steps:
            reporter.step_finished(step)
        reporter.run_finished(result)
        return _finish(arguments, reporter, [result])


def collect(arguments: Arguments) -> int:
    """memhp collect: a run without steps, whose bundle is what was asked for."""
    target = Path(arguments.output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--output: {target} is there already", hint="name a directory that does not exist yet")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--output: no directory {target.absolute().parent}", hint="create it first")
    guest = guest_of(arguments)
    scenario = Scenario("collect", "collect", "one snapshot of the booted guest", {}, (), (), Path("collect"))
    timeout = read_seconds(arguments.timeout, "--timeout")
    with (
        _reporter(arguments) as reporter,
        tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".memhp-collect-") as scratch,
    ):
        results = _run_all([scenario], guest, RunOptions(Path(scratch), timeout=timeout), reporter)
        bundle = results[0].bundle
        if bundle is None or not (bundle / "states" / "000").is_dir():
            return exit_status(results)
        if target.is_dir():
            target.rmdir()
        shutil.move(bundle, target)
        reporter.console.print(f"saved in {target}; memhp check {target} checks it again")
    return exit_status(results)


def demo(arguments: Arguments) -> int:
    """memhp demo: what needs no building first, then everything."""
    _check_reports(arguments)
    options = run_options(arguments)
    guests = [GuestSpec.default(arch.name) for arch in arches_of(arguments)]
    if arguments.qemu is not None:
        if len(guests) > 1:
            raise UsageError("--qemu serves one architecture", hint="name it with -a")
        guests = [guests[0].with_fields({"qemu": read_file(arguments.qemu, "--qemu")})]
    full = [load_scenario(name) for name in known_scenarios()]
    results: list[RunResult] = []
    with _reporter(arguments) as reporter:
        for guest in guests:
            if not _is_built(guest.arch):
                _headline(reporter, f"{guest.arch}, Debian's own kernel: no kernel to compile")
                stock = guest.with_fields({"kernel": "debian", "name": f"{guest.arch}-debian"})
                results += _run_all(_for_stock_kernel(guest, reporter), stock, options, reporter)
                _headline(reporter, f"{guest.arch}, the purpose-built kernel: built once, then every scenario")
                _build_kernel(guest, reporter)
            results += _run_all(full, guest, options, reporter)
        return _finish(arguments, reporter, results)


def _for_stock_kernel(guest: GuestSpec, reporter: TerminalReporter) -> list[Scenario]:
    """The scenarios that Debian's kernel for this architecture has the options for."""
    from harness.arch import arch_named
    from harness.artifacts.kernel import kernel
    from harness.scenarios.abilities import require_config

    image = kernel(arch_named(guest.arch), "debian", reporter.progress)
    able = []
    for scenario in (load_scenario(name) for name in FIRST_SCENARIOS):
        with contextlib.suppress(UnsupportedError):
            require_config(scenario.needs, image.config, image.origin)
            able.append(scenario)
    return able


def _is_built(arch: str) -> bool:
    """True if the cache has a purpose-built kernel: nobody has to be kept waiting for it."""
    from harness.artifacts.cache import Cache

    found = Cache.default().entries(full=False)
    return any(entry.kind == "kernel" and entry.path.name.startswith(f"{arch}-") for entry in found)


def _build_kernel(guest: GuestSpec, reporter: TerminalReporter) -> None:
    from harness.arch import arch_named
    from harness.artifacts.kernel import kernel

    kernel(arch_named(guest.arch), None, reporter.progress)


def _headline(reporter: TerminalReporter, text: str) -> None:
    reporter.rest()
    reporter.console.print(f"── {text}", style="bold")


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {"run": run, "check": check, "collect": collect, "demo": demo}
