# SPDX-License-Identifier: GPL-2.0-or-later
"""pytest plugin: real guests and scenarios as fixtures.

Every pytest in its environment loads it, so it imports the harness only when a test needs it.

Fixtures, each built on the one before:

``memhp_guest_spec``  the guest described by the ``--memhp-*`` options (session; one parameter per ``--memhp-arch``)
``memhp_artifacts``   QEMU, kernel, firmware, guest root: fetched or built (session)
``memhp_guest``       a booted guest: a ``harness.scenarios.session.Session`` (module)
``memhp_run``         ``memhp_run(scenario) -> RunResult``: runs it on a new guest and fails unless it passes
``memhp_scenario``    each scenario in turn: those of the marker, of ``--memhp-scenario``, or all
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from harness.config.guest import GuestSpec
    from harness.scenarios.boot import Parts
    from harness.scenarios.file import Scenario
    from harness.scenarios.result import RunResult
    from harness.scenarios.run_options import RunOptions
    from harness.scenarios.session import Session

#: option, metavar, help; all are optional
_OPTIONS = (
    ("kernel", "K", "kernel under test: an Image, a source tree, debian, debian:SUITE, or purpose (the default)"),
    ("build-dir", "DIR", "build the tree there (O=)"),
    ("modules", "DIR", "the kernel's modules: INSTALL_MOD_PATH, lib/modules/RELEASE, or the built tree"),
    ("initrd", "FILE", "an archive to unpack over the guest's root"),
    ("qemu", "Q", "another qemu-system-*, or debian:SUITE"),
    ("guest", "FILE", "a YAML guest file, or a name of `memhp list guests`"),
    ("bundle-dir", "DIR", "keep every run's bundle there"),
    ("boot", "HOW", "cold, restore (from a snapshot) or auto (the default: restore if possible)"),
    ("rounds", "N", "repeat the steps of a soak N times"),
    ("look", "HOW", "full (the default) or fast: see memhp run --help"),
    ("timeout", "S", "seconds for the boot and each step (default 120)"),
)
_NEEDS_GUEST = {"memhp_artifacts", "memhp_guest", "memhp_run"}

#: the results of a test's runs
RESULTS = pytest.StashKey["list[RunResult]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memhp", "Linux memory hotplug in QEMU guests")
    for name, metavar, text in _OPTIONS:
        group.addoption(f"--memhp-{name}", metavar=metavar, help=text)
    known = "a known bug fails a test like any other bug"
    group.addoption("--memhp-no-known-bugs", action="store_true", help=known)
    group.addoption("--memhp-arch", action="append", metavar="ARCH", help="arm64 (the default); repeatable")
    option = "an option of the tree's configuration: X, X=m, …; repeatable"
    group.addoption("--memhp-kernel-option", action="append", metavar="X=V", help=option)
    group.addoption("--memhp-llvm", action="store_true", help="build the tree with LLVM")
    group.addoption("--memhp-own-config", action="store_true", help="build the tree with its own .config")
    group.addoption("--memhp-scenario", action="append", metavar="NAME", help="only this scenario or file; repeatable")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "memhp_guest: needs a real guest: QEMU, a kernel, a guest root")
    config.addinivalue_line("markers", "memhp_scenario(*names): the scenarios for the fixture memhp_scenario")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "memhp_guest_spec" in metafunc.fixturenames:
        named, arches = metafunc.config.getoption("memhp_guest"), metafunc.config.getoption("memhp_arch")
        chosen = arches or ([None] if named else ["arm64"])
        ids = [Path(named).stem if arch is None else arch for arch in chosen]
        metafunc.parametrize("memhp_guest_spec", chosen, indirect=True, ids=ids, scope="session")
    if "memhp_scenario" in metafunc.fixturenames:
        metafunc.parametrize("memhp_scenario", _scenarios(metafunc), ids=lambda scenario: scenario.name)


def _scenarios(metafunc: pytest.Metafunc) -> list[Scenario]:
    from harness.errors import UsageError
    from harness.scenarios.file import known_scenarios, load_scenario

    marked = [name for mark in metafunc.definition.iter_markers("memhp_scenario") for name in mark.args]
    asked = metafunc.config.getoption("memhp_scenario")
    try:
        if marked and asked:
            return [load_scenario(name) for name in marked if name in asked]
        return [load_scenario(name) for name in marked or asked or known_scenarios()]
    except UsageError as error:
        _refuse(error)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _NEEDS_GUEST & set(getattr(item, "fixturenames", ())):
            item.add_marker("memhp_guest")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        bundles = [run.bundle for run in item.stash.setdefault(RESULTS, []) if run.bundle is not None]
        session = getattr(item, "funcargs", {}).get("memhp_guest")
        if session is not None:
            bundles.append(session.recorder.directory)
        if bundles:
            from harness.report.console_trouble import console_trouble

            report.sections.append(("memhp bundle", "\n".join(str(path) for path in bundles)))
            # Often all that is left of a run in CI.
            for trouble in filter(None, map(console_trouble, bundles)):
                report.sections.append(("serial console, from its first alarm on", trouble))
    return report


def _refuse(error: Exception) -> NoReturn:
    """End the whole session: the options are invalid."""
    pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


def _missing(reason: str) -> NoReturn:
    """Skip because a part is missing, but never in CI, where everything must be available."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _option(config: pytest.Config, name: str) -> str | None:
    value: str | None = config.getoption(f"memhp_{name}")
    return value


@pytest.fixture(scope="session")
def memhp_guest_spec(request: pytest.FixtureRequest) -> GuestSpec:
    """The guest described by the options."""
    from harness.cli.guest_options import READERS
    from harness.config.guest import GuestSpec, find_guest, override
    from harness.errors import UsageError

    config = request.config
    options = tuple(config.getoption("memhp_kernel_option") or ())
    flags = {name: True for name in ("llvm", "own_config") if config.getoption(f"memhp_{name}")}
    try:
        named = _option(config, "guest")
        base = GuestSpec.default(request.param) if named is None else find_guest(named)
        if named is not None and request.param not in (None, base.arch):
            raise UsageError(f"--memhp-arch {request.param}: the guest {base.name} is {base.arch}")
        values = {
            name: read(text, f"--memhp-{name.replace('_', '-')}")
            for name, read in READERS.items()
            if (text := _option(config, name)) is not None
        }
        values |= flags | ({"kernel_options": options} if options else {})
        names = {name: f"--memhp-{name.replace('_', '-')}" for name in values}
        return override(base, values, names | {"kernel_options": "--memhp-kernel-option"})
    except UsageError as error:
        _refuse(error)


@pytest.fixture(scope="session")
def memhp_options(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    """How to run; bundles are kept in ``--memhp-bundle-dir``, or in pytest's temporary directory."""
    from harness.cli.guest_options import read_start
    from harness.cli.values import read_look, read_rounds, read_seconds
    from harness.errors import UsageError
    from harness.scenarios.run_options import RunOptions

    chosen = _option(request.config, "bundle_dir")
    bundles = tmp_path_factory.mktemp("memhp") if chosen is None else Path(chosen)
    try:
        timeout = read_seconds(_option(request.config, "timeout") or "120", "--memhp-timeout")
        start = read_start(_option(request.config, "boot") or "auto", "--memhp-boot")
        look = read_look(_option(request.config, "look") or "full", "--memhp-look")
        said = _option(request.config, "rounds")
        rounds = None if said is None else read_rounds(said, "--memhp-rounds")
    except UsageError as error:
        _refuse(error)
    known = not request.config.getoption("--memhp-no-known-bugs")
    return RunOptions(bundle_dir=bundles, timeout=timeout, start=start, rounds=rounds, known_bugs=known, look=look)


@pytest.fixture(scope="session")
def memhp_artifacts(memhp_guest_spec: GuestSpec) -> Parts:
    """All parts of a guest; skips (fails in CI) if one is unavailable."""
    from harness.errors import ArtefactError, UsageError
    from harness.progress import default_progress
    from harness.qemu.devices.device import kinds_on
    from harness.scenarios.boot import resolve

    try:
        return resolve(memhp_guest_spec, (), default_progress(), kinds=kinds_on(memhp_guest_spec.arch))
    except ArtefactError as error:
        _missing(str(error))
    except UsageError as error:
        _refuse(error)


@pytest.fixture(scope="module")
def memhp_guest(
    request: pytest.FixtureRequest, memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, memhp_options: RunOptions
) -> Iterator[Session]:
    """A booted guest, shared by the tests of a module: change it with ``act``, observe it with ``state``."""
    from harness.errors import MemhpError

    assert memhp_options.bundle_dir is not None
    name = request.module.__name__.rpartition(".")[2]
    directory = memhp_options.bundle_dir / f"{name}-{memhp_guest_spec.name}"
    number = 1
    while directory.exists():
        number += 1
        directory = directory.with_name(f"{name}-{memhp_guest_spec.name}-{number}")
    directory.mkdir(mode=0o700, parents=True)
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(_booted(name, memhp_guest_spec, memhp_artifacts, memhp_options, directory))
        except MemhpError as error:
            pytest.fail(f"{error}\nmemhp bundle: {directory}", pytrace=False)
        yield session


@contextlib.contextmanager
def _booted(name: str, spec: GuestSpec, parts: Parts, options: RunOptions, directory: Path) -> Iterator[Session]:
    from harness.scenarios.record import Recorder
    from harness.scenarios.session import Session
    from harness.scenarios.start import start_guest

    recorder = Recorder(directory)
    recorder.start(name, "", {"guest": spec.name, "seed": options.seed})
    with start_guest(spec, parts, directory, options.timeout, options.start) as guest:
        yield Session(guest, options, recorder)


@pytest.fixture
def memhp_run(
    request: pytest.FixtureRequest, memhp_guest_spec: GuestSpec, memhp_artifacts: Parts, memhp_options: RunOptions
) -> Callable[[Scenario | Path | str], RunResult]:
    """Run a scenario on a freshly booted guest.

    An unmet requirement skips the test and a known bug marks it as xfail, each with the reason; any other verdict but a
    pass fails it, with the findings and the bundle.
    """
    from harness.check import Verdict
    from harness.errors import MemhpError
    from harness.report.terminal_report import findings_text
    from harness.scenarios.file import Scenario, load_scenario
    from harness.scenarios.reporter import SilentReporter
    from harness.scenarios.runner import run_scenarios

    def run(what: Scenario | Path | str) -> RunResult:
        scenario = what if isinstance(what, Scenario) else load_scenario(what)
        try:
            [result] = run_scenarios([scenario], memhp_guest_spec, memhp_options, SilentReporter())
        except MemhpError as error:
            pytest.fail(str(error), pytrace=False)
        request.node.stash.setdefault(RESULTS, []).append(result)
        if result.verdict is Verdict.SKIPPED:
            pytest.skip(result.reason)
        if result.verdict is Verdict.KNOWN:
            pytest.xfail(result.reason)
        if result.verdict is not Verdict.PASS:
            pytest.fail(findings_text(result), pytrace=False)
        return result

    return run
