# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plugin, run by pytester; boots and runs are replaced, everything else is real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Import before pytester saves sys.modules: it drops modules loaded later, and numpy must not be loaded twice.
import harness.check
import harness.report.terminal_report  # noqa: F401
from harness.scenarios.file import known_scenarios

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
STAND_INS = """
import contextlib, sys, types
from pathlib import Path
sys.path.insert(0, {unit!r})
import report_samples
from harness.errors import ArtefactError, InfraError, UsageError

boot = types.ModuleType("harness.scenarios.boot")
start = types.ModuleType("harness.scenarios.start")
runner = types.ModuleType("harness.scenarios.runner")
session = types.ModuleType("harness.scenarios.session")
record = types.ModuleType("harness.scenarios.record")
ASKED = []

def resolve(spec, needs, progress, *, kinds=None):
    if spec.kernel == "debian:none":
        raise ArtefactError("no kernel for you", hint="fetch one")
    if spec.kernel == "debian:riscv":
        raise UsageError("that is a riscv64 kernel")
    return "parts"

@contextlib.contextmanager
def start_guest(spec, parts, directory, timeout, start):
    if spec.kernel == "debian:dead":
        raise InfraError("QEMU died", hint="look")
    yield "guest"

class Recorder:
    def __init__(self, directory):
        self.directory = directory
    def start(self, *words):
        (self.directory / "started").touch()

class Session:
    def __init__(self, guest, options, recorder):
        self.guest, self.recorder = guest, recorder

def run_scenarios(scenarios, guest, options, reporter):
    ASKED.append((scenarios, guest, options))
    if guest.kernel == "debian:wrong":
        raise UsageError("cannot be run")
    return [{{"debian:fail": report_samples.BAD, "debian:skip": report_samples.SKIPPED,
             "debian:infra": report_samples.INFRA, "debian:refused": report_samples.REFUSED,
             }}.get(guest.kernel, report_samples.GOOD)]

boot.resolve, start.start_guest = resolve, start_guest
runner.run_scenarios, session.Session, record.Recorder = run_scenarios, Session, Recorder
for module in (boot, start, runner, session, record):
    sys.modules[module.__name__] = module
"""

TEST = """
def test_it(memhp_scenario, memhp_run):
    assert memhp_run(memhp_scenario).scenario == "dimm-cycle"
"""


@pytest.fixture
def outer(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("CI", raising=False)
    # If memhp is installed, its entry point loads the plugin, and loading it twice is an error.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(STAND_INS.format(unit=str(Path(__file__).parent)))
    return pytester


def run(outer: pytest.Pytester, *words: str) -> pytest.RunResult:
    return outer.runpytest_inprocess(
        "-p", "harness.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers", *words
    )


def test_ids_are_readable_and_options_choose(outer: pytest.Pytester) -> None:
    outer.makepyfile(TEST)
    found = run(outer, "--collect-only", "-q")
    found.stdout.fnmatch_lines(["*::test_it?arm64-dimm-cycle?", "*::test_it?arm64-virtio-mem-resize?"])
    found = run(
        outer, "--collect-only", "-q", "--memhp-scenario", "pmem-kmem", "--memhp-arch=arm64", "--memhp-arch=riscv64"
    )
    assert [line.rpartition("::")[2] for line in found.outlines if "::" in line] == [
        "test_it[arm64-pmem-kmem]",
        "test_it[riscv64-pmem-kmem]",
    ]
    found = run(outer, "--collect-only", "-q", "--memhp-guest", "numa", "--memhp-scenario", "dimm-cycle")
    found.stdout.fnmatch_lines(["*::test_it?numa-dimm-cycle?"])


def test_a_marker_names_the_scenarios(outer: pytest.Pytester) -> None:
    outer.makepyfile("import pytest\n@pytest.mark.memhp_scenario('dimm-cycle', 'pmem-kmem')" + TEST)
    names = [line for line in run(outer, "--collect-only", "-q").outlines if "::" in line]
    assert [name.rpartition("[")[2] for name in names] == ["arm64-dimm-cycle]", "arm64-pmem-kmem]"]
    names = run(outer, "--collect-only", "-q", "--memhp-scenario", "pmem-kmem").outlines
    assert [name.rpartition("[")[2] for name in names if "::" in name] == ["arm64-pmem-kmem]"]


def test_tests_that_need_a_guest_are_marked(outer: pytest.Pytester) -> None:
    outer.makepyfile(TEST + "def test_plain():\n    pass\n")
    found = run(outer, "-m", "not memhp_guest")
    found.assert_outcomes(passed=1, deselected=len(known_scenarios()))


def test_a_pass(outer: pytest.Pytester) -> None:
    outer.makepyfile(TEST)
    run(outer, "--memhp-scenario", "dimm-cycle").assert_outcomes(passed=1)


def test_a_broken_invariant_shows_findings_and_bundle(outer: pytest.Pytester) -> None:
    outer.makepyfile(TEST)
    found = run(outer, "--memhp-scenario", "dimm-cycle", "--memhp-kernel", "debian:fail")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(
        ["*FAIL dimm-cycle on arm64*", "*BLK-1 broken*", "*expected  offline", "*observed  online"]
    )
    found.stdout.fnmatch_lines(["*- memhp bundle -*", "memhp-runs/1"])
    assert "Traceback" not in found.stdout.str()


@pytest.mark.parametrize(
    ("kernel", "outcome", "message"),
    [
        ("skip", {"skipped": 1}, "*debian has no CONFIG_X*"),
        ("infra", {"failed": 1}, "*no verdict dimm-cycle on arm64*"),
        ("refused", {"failed": 1}, "*refused dimm-cycle on arm64*"),
        ("wrong", {"failed": 1}, "*cannot be run*"),
        ("none", {"skipped": 1}, "*no kernel for you*"),
    ],
)
def test_other_verdicts(outer: pytest.Pytester, kernel: str, outcome: dict[str, int], message: str) -> None:
    outer.makepyfile(TEST)
    found = run(outer, "-rs", "--memhp-scenario", "dimm-cycle", "--memhp-kernel", f"debian:{kernel}")
    found.assert_outcomes(**outcome)
    found.stdout.fnmatch_lines([message])


def test_in_ci_a_missing_part_is_a_failure(outer: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    outer.makepyfile(TEST)
    found = run(outer, "--memhp-scenario", "dimm-cycle", "--memhp-kernel", "debian:none")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*no kernel for you*", "*hint: fetch one*"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memhp-arch", "x86"], "*unknown architecture 'x86'*"),
        (["--memhp-kernel", "./no"], "*--memhp-kernel: no such file: ./no*"),
        (["--memhp-initrd", "no"], "*--memhp-initrd: no such file: *"),
        (["--memhp-qemu", "no"], "*--memhp-qemu: no such file: *"),
        (["--memhp-guest", "nmua"], "*unknown guest 'nmua'*"),
        (["--memhp-guest", "numa", "--memhp-arch", "riscv64"], "*--memhp-arch riscv64: the guest numa is arm64*"),
        (["--memhp-rounds", "0"], "*--memhp-rounds: invalid number of rounds: 0*"),
        (["--memhp-look", "short"], "*--memhp-look: unknown look 'short'*"),
        (["--memhp-timeout", "0"], "*--memhp-timeout: '0' is not a number of seconds*"),
        (["--memhp-kernel", "debian:X"], "*--memhp-kernel: debian:X: 'X' is not the name of a Debian suite*"),
        (["--memhp-kernel-option", "A-B"], "*--memhp-kernel-option: 'A-B' is not a kernel option*"),
        (["--memhp-modules", "/no"], "*--memhp-modules: no such directory: /no*"),
        (["--memhp-kernel", "debian:riscv"], "*that is a riscv64 kernel*"),
    ],
)
def test_wrong_options_end_the_session(outer: pytest.Pytester, words: list[str], message: str) -> None:
    outer.makepyfile(TEST)
    found = run(outer, "--memhp-scenario", "dimm-cycle", *words)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stdout.fnmatch_lines([message])


def test_an_unknown_scenario_is_a_collection_error(outer: pytest.Pytester) -> None:
    outer.makepyfile(TEST)
    found = run(outer, "--memhp-scenario", "dimm-cycel")
    assert found.ret != 0
    found.stdout.fnmatch_lines(["*unknown scenario 'dimm-cycel'*", "*did you mean 'dimm-cycle'?*"])


def test_a_shared_guest_and_its_bundle(outer: pytest.Pytester, tmp_path: Path) -> None:
    outer.makepyfile(
        """
        def test_one(memhp_guest):
            assert memhp_guest.guest == "guest"
            assert (memhp_guest.recorder.directory / "started").exists()
        def test_two(memhp_guest):
            (memhp_guest.recorder.directory / "console.log").write_text("[    1.000000] Oops [#1]\\n::error::x\\n")
            raise AssertionError("on purpose")
        """
    )
    for number in ("", "-2"):
        found = run(outer, "--memhp-bundle-dir", str(tmp_path / "b"))
        found.assert_outcomes(passed=1, failed=1)
        found.stdout.fnmatch_lines(["*- memhp bundle -*", f"{tmp_path}/b/*-arm64{number}"])
        found.stdout.fnmatch_lines(
            ["*- serial console, from its first alarm on -*", "| ?    1.000000? Oops ?#1?", "| ::error::x"]
        )


def test_a_guest_that_does_not_boot(outer: pytest.Pytester) -> None:
    outer.makepyfile("def test_one(memhp_guest):\n    pass\n")
    found = run(outer, "--memhp-kernel", "debian:dead")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*QEMU died*", "*hint: look*", "*memhp bundle: *"])


def test_the_plugin_costs_nothing_where_nobody_asks_for_it() -> None:
    code = (
        "import sys, harness.pytest_plugin; print(*sorted(name for name in sys.modules if name.startswith('harness')))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=300, check=True)
    assert found.stdout.decode().split() == ["harness", "harness.pytest_plugin"]
