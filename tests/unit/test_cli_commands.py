# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: messages, exit statuses, reports. Runs are replaced, everything around them is real."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
from report_samples import BAD, GOOD, INFRA, REFUSED, SKIPPED

from harness import __version__, proc
from harness.arch import ARCHES
from harness.check import CATALOGUE, Verdict
from harness.check.required import Demand
from harness.cli import demo, main, support
from harness.cli.cmdline import lines_of
from harness.cli.command_arguments import Arguments
from harness.cli.parser import build_parser, parse_arguments
from harness.cli.support import read_cell, table
from harness.config.guest import BOOTS, GuestSpec
from harness.config.guest_parts import KernelImage
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError
from harness.qemu.devices.device import KINDS
from harness.report.terminal_report import TerminalReporter
from harness.scenarios.file import Scenario, known_scenarios, load_scenario
from harness.scenarios.result import RunResult
from harness.scenarios.run_options import RunOptions

PROGRAM = "import sys; from harness.cli import main; sys.exit(main())"
BUNDLE = Path(__file__).parent / "fixtures" / "bundles" / "arm64-dimm"


class Runs:
    """Stands in for harness.scenarios.runner: returns prepared results and records the calls."""

    def __init__(self) -> None:
        self.results: list[RunResult] = [GOOD]
        self.asked: list[tuple[list[str], GuestSpec, RunOptions]] = []
        self.error: BaseException | None = None

    def run_scenarios(
        self, scenarios: Sequence[Scenario], guest: GuestSpec, options: RunOptions, reporter: object, progress: object
    ) -> list[RunResult]:
        self.asked.append(([scenario.name for scenario in scenarios], guest, options))
        if self.error is not None:
            raise self.error
        return self.results


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = ModuleType("harness.scenarios.runner")
    runs = Runs()
    vars(stand_in)["run_scenarios"] = runs.run_scenarios

    def run_pairs(
        pairs: Sequence[tuple[Scenario, GuestSpec]], options: RunOptions, reporter: object, progress: object
    ) -> list[RunResult]:
        results: list[RunResult] = []
        for guest in dict.fromkeys(guest for _, guest in pairs):
            scenarios = [scenario for scenario, other in pairs if other == guest]
            results += vars(stand_in)["run_scenarios"](scenarios, guest, options, reporter, progress)
        return results

    vars(stand_in)["run_pairs"] = run_pairs
    monkeypatch.setitem(sys.modules, "harness.scenarios.runner", stand_in)
    return runs


def complaint(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    assert main(list(words)) == status
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "memhp: the following arguments are required: COMMAND\n  hint: memhp --help\n"),
        (["rnu"], "memhp: COMMAND: 'rnu' is not known\n  hint: did you mean run?\n"),
        (
            ["list", "zzz"],
            "memhp: what: 'zzz' is not known\n"
            "  hint: known: scenarios, verbs, invariants, bugs, guests, kernels, support\n",
        ),
        (["run", "--kernell", "x"], "memhp: memhp run does not know '--kernell'\n  hint: did you mean --kernel?\n"),
        (["run", "--qqq"], "memhp: memhp run does not know '--qqq'\n  hint: memhp run --help\n"),
        (["run", "--color", "red"], "memhp: --color: 'red' is not known\n  hint: known: auto, always, never\n"),
        (["run", "nope"], "memhp: unknown scenario 'nope'\n  hint: known: "),
        (["run", "--all", "dimm-cycle"], "memhp: --all and named scenarios exclude each other\n  hint: name scenarios"),
        (["run", "-a", "x86"], "memhp: unknown architecture 'x86'\n  hint: known: arm64, riscv64\n"),
        (
            ["run", "-a", "riscv64", "--guest", "numa"],
            "memhp: --arch riscv64: the guest numa is arm64\n  hint: remove --arch",
        ),
        (["run", "--guest", "nmua"], "memhp: unknown guest 'nmua'\n  hint: did you mean 'numa'? (memhp list guests)\n"),
        (["run", "--kernel", "./no"], "memhp: --kernel: no such file: ./no\n  hint: an Image, a source tree, debian, "),
        (["run", "--initrd", "no"], "memhp: --initrd: no such file: "),
        (["run", "--qemu", "no"], "memhp: --qemu: no such file: "),
        (["run", "--memory", "1.5G"], "memhp: --memory: '1.5G' is not a size (examples: 512M, 1G, 0x8000000)\n"),
        (
            ["run", "--memory", "1101M"],
            "memhp: --memory: boot memory of 1101M is not a multiple of 2M\n  hint: nearest: 1100M or 1102M",
        ),
        (["run", "--node", "512M"], "memhp: --node: the nodes hold 512M, the guest has 1G\n  hint: the memory of all"),
        (["run", "--kernel", "Image"], "memhp: --kernel: no such file: Image\n  hint: an Image, a source tree"),
        (["run", "--kernel", "debian:X"], "memhp: --kernel: debian:X: 'X' is not the name of a Debian suite\n  hint: "),
        (
            ["run", "--qemu", "debian:7.2"],
            "memhp: --qemu: debian:7.2 does not name a QEMU\n  hint: use debian:SUITE (such as",
        ),
        (["run", "-K", "A-B"], "memhp: -K: 'A-B' is not a kernel option\n  hint: for example -K DEBUG_VM"),
        (["run", "--modules", "/no"], "memhp: --modules: no such directory: /no\n  hint: check the path\n"),
        (["run", "--build-dir", "/dev/null"], "memhp: --build-dir: /dev/null is not a directory\n  hint: name a"),
        (["run", "--cpus", "two"], "memhp: --cpus: 'two' is not a whole number\n"),
        (["run", "--boot", "warm"], "memhp: --boot: unknown boot method 'warm'\n  hint: "),
        (["run", "-j", "0"], "memhp: --jobs: invalid job count: 0\n  hint: from 1 to 64\n"),
        (["run", "--keep", "-j", "2"], "memhp: --keep needs one guest at a time\n  hint: remove --jobs\n"),
        (["run", "--keep", "--matrix", "m.yaml"], "memhp: --keep and --matrix exclude each other\n"),
        (["run", "--keep-for", "0", "--keep"], "memhp: --keep-for: '0' is not a number of seconds\n"),
        (["run", "-j", "x"], "memhp: --jobs: 'x' is not a whole number\n"),
        (["run", "--seed", "x"], "memhp: --seed: 'x' is not a whole number\n"),
        (["run", "--timeout", "0"], "memhp: --timeout: '0' is not a number of seconds\n  hint: such as 120"),
        (["run", "--timeout", "nan"], "memhp: --timeout: 'nan' is not a number of seconds\n"),
        (["run", "--bundle-dir", "/dev/null"], "memhp: --bundle-dir: /dev/null is not a directory\n  hint: name a"),
        (["run", "--kernel", "~no-such-user/Image"], "memhp: --kernel: no such file: ~no-such-user/Image\n"),
        (["run", "--json", "/"], "memhp: --json: / is a directory\n  hint: name a file, or - for standard output\n"),
        (["run", "--junit", "/no/x"], "memhp: --junit: no directory /no\n  hint: create it first\n"),
        (
            ["run", "--json", "-", "--junit", "-"],
            "memhp: --json and --junit both write to standard output\n  hint: give one",
        ),
        (
            ["check", "/no"],
            "memhp: no directory /no\n  hint: name a bundle of memhp run, or a snapshot of memhp collect\n",
        ),
        (["collect"], "memhp: the following arguments are required: -o/--output\n"),
        (["collect", "-o", "/etc"], "memhp: --output: /etc already exists\n  hint: name a directory that does not"),
        (["collect", "-o", "/no/x"], "memhp: --output: no directory /no\n  hint: create it first\n"),
        (["run", "--require", "LIN-9"], "memhp: --require: unknown invariant 'LIN-9'\n  hint: memhp list inv"),
        (
            ["run", "--allow-unobserved", "LIN-1,"],
            "memhp: --allow-unobserved: invalid list of names: 'LIN-1,'\n",
        ),
        (
            ["run", "--require", "LIN-1,XCK-1", "--allow-unobserved", "XCK-1"],
            "memhp: XCK-1 cannot be both required and unobserved\n  hint: remove it",
        ),
        (["run", "--fail-fast", "--keep-going"], "not allowed with argument --fail-fast"),
        (["fetch", "firmwear"], "memhp: unknown part: 'firmwear'\n  hint: known: qemu"),
    ],
)
def test_usage_errors(runs: Runs, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in complaint(capsys, *words)
    assert runs.asked == []


def test_a_wrong_scenario_file_names_file_line_and_key(
    runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nsteps:\n  - plug-dimm: {id: d, size: 100M}\n")
    said = complaint(capsys, "run", str(path))
    assert said.startswith(f"memhp: {path}:3: steps[0].plug-dimm.size: 100M is not a multiple of 128M\n")


def test_no_scenarios_at_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMHP_CONFIGS", str(tmp_path))
    assert "no scenarios found\n  hint: they are in configs/scenarios of the checkout" in complaint(capsys, "run")


@pytest.mark.parametrize(
    ("results", "status"),
    [([GOOD], 0), ([GOOD, BAD, INFRA], 1), ([SKIPPED], 2), ([GOOD, REFUSED], 3), ([INFRA], 3)],
)
def test_exit_status_of_run(
    runs: Runs, capsys: pytest.CaptureFixture[str], results: list[RunResult], status: int
) -> None:
    runs.results = results
    assert main(["run"]) == status
    assert f"{len(results)} scenario" in capsys.readouterr().out


def test_a_named_scenario_that_is_skipped_is_no_success(
    runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs.results = [GOOD, SKIPPED]
    assert main(["run", "dimm-cycle", "numa", "-a", "arm64", "--json", str(tmp_path / "o.json")]) == 2
    captured = capsys.readouterr()
    assert "SKIPPED  2 scenarios: 1 passed, 1 skipped" in captured.out
    assert captured.err.endswith(
        "memhp: dimm-cycle on arm64 was named, but skipped: debian has no CONFIG_X\n  hint: build the kernel with it\n"
    )
    found = json.loads((tmp_path / "o.json").read_text())
    assert (found["verdict"], found["exit_status"]) == ("skipped", 2)
    assert main(["run", "--all", "-a", "arm64"]) == 0
    assert "was named" not in capsys.readouterr().err


def test_options_reach_the_runner(runs: Runs, tmp_path: Path) -> None:
    words = "run virtio-mem-resize -a arm64 --kernel debian --memory 2G --maxmem 8G --slots 4 --ports 2 --cpus 3"
    words += " --boot dt --boot=restore -j 3 --cmdline quiet --cpu max --machine mte=on"
    words += " --seed 5 --timeout 9.5 --fail-fast --node 2G --node 0"
    assert main([*words.split(), "--bundle-dir", str(tmp_path)]) == 0
    [(names, guest, options)] = runs.asked
    assert names == ["virtio-mem-resize"]
    assert (guest.kernel, guest.memory >> 30, guest.maxmem >> 30, guest.slots, guest.ports) == ("debian", 2, 8, 4, 2)
    assert (guest.cpus, guest.boot, guest.cmdline, guest.cpu, guest.machine_options) == (
        3,
        "dt",
        "quiet",
        "max",
        ("mte=on",),
    )
    assert [node.memory for node in guest.nodes] == [2 << 30, 0]
    assert options == RunOptions(bundle_dir=tmp_path, seed=5, timeout=9.5, fail_fast=True, start="restore", jobs=3)
    assert main(["run", "dimm-cycle", "--look=fast"]) == 0 and runs.asked[-1][2].look == "fast"
    assert main(["run", "dimm-cycle", "--look=short"]) == 2
    assert main(["run", "dimm-cycle", "-a", "arm64", "--require", "XCK-1,IOM-4", "--allow-unobserved", "MEM-3"]) == 0
    assert runs.asked[-1][2].demand == Demand(frozenset({"XCK-1", "IOM-4"}), frozenset({"MEM-3"}))


def test_without_names_everything_runs(runs: Runs) -> None:
    assert main(["run"]) == main(["run", "--all"]) == 0
    assert [names for names, _, _ in runs.asked] == [list(known_scenarios())] * 2


def test_reports_are_written(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.results = [BAD]
    assert main(["run", "--json", str(tmp_path / "o.json"), "--junit", str(tmp_path / "o.xml")]) == 1
    assert json.loads((tmp_path / "o.json").read_text())["exit_status"] == 1
    assert (tmp_path / "o.xml").read_text().startswith("<?xml")
    assert "FAILED" in capsys.readouterr().out


def test_json_on_standard_output_is_alone_there(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] == "pass"
    assert "PASSED" in captured.err


def test_a_report_that_fails_does_not_hide_a_broken_invariant(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(target: str, text: str) -> None:
        raise InfraError("cannot write it: No space left on device")

    monkeypatch.setattr("harness.cli.results.write_report", fail)
    for results, status in (([GOOD], 3), ([BAD], 1)):
        runs.results = results
        assert main(["run", "--json", str(tmp_path / "x")]) == status
        assert "memhp: cannot write it: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ArtefactError("no mirror", hint="set one"), 3, "memhp: no mirror\n  hint: set one\n"),
        (KeyboardInterrupt(), 130, "memhp: interrupted\n"),
        (RuntimeError("boom \x1b"), 3, "memhp: internal error: RuntimeError: boom \\x1b\n  hint: --debug shows where"),
    ],
)
def test_errors_while_running(
    runs: Runs, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    runs.error = error
    assert message in complaint(capsys, "run", status=status)
    assert main(["run", "--debug"]) == status
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_unwind_and_are_named(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    cleaned = []

    def killed(*args: object) -> list[RunResult]:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
            raise AssertionError("the signal did not come")
        finally:
            cleaned.append(True)

    vars(sys.modules["harness.scenarios.runner"])["run_scenarios"] = killed
    before = signal.getsignal(number)
    assert f"memhp: ended by {number.name}\n" in complaint(capsys, "run", status=status)
    assert cleaned == [True]
    assert signal.getsignal(number) is before


def test_nohup_is_honoured(runs: Runs) -> None:
    def hung_up(*args: object) -> list[RunResult]:
        os.kill(os.getpid(), signal.SIGHUP)
        return [GOOD]

    vars(sys.modules["harness.scenarios.runner"])["run_scenarios"] = hung_up
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["run"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_status_of_a_child_is_seen_where_sigchld_was_ignored(runs: Runs) -> None:
    seen: list[int] = []

    def make(*args: object) -> list[RunResult]:
        seen.append(proc.run(["sh", "-c", "exit 7"], deadline=Deadline(60), check=False).returncode)
        return [GOOD]

    vars(sys.modules["harness.scenarios.runner"])["run_scenarios"] = make
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert main(["run"]) == 0 and seen == [7]
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_check_shows_every_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = ModuleType("harness.scenarios.recheck")
    vars(stand_in)["recheck"] = lambda directory: BAD if directory == tmp_path else None
    monkeypatch.setitem(sys.modules, "harness.scenarios.recheck", stand_in)
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "BLK-1 broken" in out and "broken: BLK-1" in out


def test_collect_keeps_the_bundle_of_a_run_without_steps(
    runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "snap"

    def collected(
        scenarios: Sequence[Scenario], guest: GuestSpec, options: RunOptions, reporter: object, progress: object
    ) -> list[RunResult]:
        assert [scenario.steps for scenario in scenarios] == [()]
        assert options.bundle_dir is not None
        bundle = options.bundle_dir / "one"
        (bundle / "states" / "000").mkdir(parents=True)
        return [dataclasses.replace(GOOD, bundle=bundle)]

    vars(sys.modules["harness.scenarios.runner"])["run_scenarios"] = collected
    assert main(["collect", "-o", str(target)]) == 0
    assert (target / "states" / "000").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["snap"]
    assert f"memhp check {target}" in capsys.readouterr().out


def test_demo_shows_the_stock_kernel_before_it_builds_one(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(demo, "is_built", lambda arch: False)
    monkeypatch.setattr(demo, "build_kernel", lambda guest, reporter: order.append(f"build after {len(runs.asked)}"))
    first_scenarios = [load_scenario(name) for name in demo.FIRST_SCENARIOS]
    monkeypatch.setattr(demo, "for_stock_kernel", lambda guest, reporter: first_scenarios)
    assert main(["demo", "-a", "arm64"]) == 0
    assert order == ["build after 1"]
    (first, stock, _), (rest, own, _) = runs.asked
    assert (first, stock.kernel, stock.name) == (list(demo.FIRST_SCENARIOS), "debian", "arm64-debian")
    assert (rest, own.kernel) == (list(demo.SCENARIOS), None)
    assert "2 scenarios" in capsys.readouterr().out


def test_demo_goes_straight_to_a_kernel_that_is_built(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "is_built", lambda arch: True)
    assert main(["demo"]) == 0
    assert sorted(guest.arch for _, guest, _ in runs.asked) == sorted(ARCHES)
    assert all(names == list(demo.SCENARIOS) and guest.kernel is None for names, guest, _ in runs.asked)


def test_demo_shows_the_second_architecture_after_the_first(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_scenarios(
        scenarios: Sequence[Scenario], guest: GuestSpec, options: RunOptions, reporter: TerminalReporter, _: object
    ) -> list[RunResult]:
        reporter.run_started("dimm-cycle", guest.name)
        if guest.arch == "riscv64" and runs.error is not None:
            raise runs.error
        return [GOOD]

    monkeypatch.setattr(demo, "is_built", lambda arch: True)
    vars(sys.modules["harness.scenarios.runner"])["run_scenarios"] = run_scenarios
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert 0 <= out.index("dimm-cycle on arm64") < out.index("dimm-cycle on riscv64") < out.index("PASSED")
    runs.error = ArtefactError("no riscv64 kernel")
    assert main(["demo"]) == 3
    assert "memhp: no riscv64 kernel" in capsys.readouterr().err


def test_demo_has_one_qemu_for_one_architecture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "qemu").touch()
    assert main(["demo", "--qemu", str(tmp_path / "qemu")]) == 2
    assert "--qemu needs a single architecture\n  hint: name it with -a" in capsys.readouterr().err


def test_a_stock_kernel_is_shown_with_what_it_has_the_options_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dict.fromkeys(("VIRTIO_PMEM", "BLK_DEV_PMEM", "ZONE_DEVICE", "NVDIMM_DAX", "DEV_DAX", "DEV_DAX_KMEM"), "m")
    image = KernelImage(Path("Image"), "Debian's", None, config, None)
    monkeypatch.setattr(demo, "kernel", lambda arch, selector, progress: image)
    reporter = TerminalReporter(io.StringIO(), io.StringIO(), color="never")
    able = demo.for_stock_kernel(GuestSpec.default("riscv64"), reporter)
    assert [scenario.name for scenario in able] == ["pmem-kmem"]


def run_of(verdict: Verdict, reason: str = "") -> RunResult:
    return RunResult("dimm-cycle", "riscv64-dt", "riscv64", verdict, reason, None, 1.0, 0.5, (), {}, None, "", 0)


def test_a_cell_of_the_support_table_says_what_its_run_said(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = GuestSpec.default("riscv64").with_fields({"boot": "dt"})
    why = "hot-add needs a guest that boots by acpi"
    assert read_cell("pc-dimm", guest, run_of(Verdict.SKIPPED, why)).works == "no"
    assert read_cell("pc-dimm", guest, run_of(Verdict.PASS)).works == "yes"
    known = read_cell("pc-dimm", guest, run_of(Verdict.KNOWN, "step 3 (unplug d): known bug some-id"))
    assert (known.works, known.reason) == ("yes", "step 3 (unplug d): known bug some-id")
    failed = read_cell("pc-dimm", guest, dataclasses.replace(run_of(Verdict.INFRA, "no QEMU"), bundle=Path("b")))
    assert (failed.works, failed.reason) == ("FAILED", "no QEMU (bundle: b)")
    assert table([failed])[1] == ("pc-dimm", "riscv64", "dt", "FAILED", "dimm-cycle", "no QEMU (bundle: b)")


def test_the_support_table_runs_every_cell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[tuple[str, str, str]] = []

    def run_cell(guest: GuestSpec, scenario: str) -> RunResult:
        ran.append((guest.arch, guest.boot, scenario))
        return run_of(Verdict.PASS) if is_possible(guest.arch, guest.boot, scenario) else run_of(Verdict.SKIPPED, why)

    why = "needs acpi"
    monkeypatch.setattr(support, "run_cell", run_cell)
    assert main(["list", "support"]) == 0
    assert set(ran) == set(product(ARCHES, BOOTS, (kind.proof for kind in KINDS.values())))
    assert len(ran) == len(set(ran)) == len(ARCHES) * 2 * len(KINDS)
    assert capsys.readouterr().out.count(" yes ") == sum(is_possible(*cell) for cell in ran)
    assert not is_possible("arm64", "dt", "dimm-cycle") and is_possible("arm64", "acpi", "dimm-cycle")
    assert main(["list", "support", "-a", "arm64", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["arch"] for row in rows} == {"arm64"}
    refused = [cell for cell in set(ran) if cell[0] == "arm64" and not is_possible(*cell)]
    assert [row["reason"] for row in rows if row["works"] == "no"] == [why] * len(refused)


def is_possible(arch: str, boot: str, scenario: str) -> bool:
    """What the device's requirement says of a cell of the support table."""
    [need] = [kind.requirement for kind in KINDS.values() if kind.proof == scenario]
    return need.arch in (None, arch) and need.boot in (None, boot)


def test_the_readme_lists_what_every_device_can_do() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    documented = re.findall(r"^\| (\S+) \| (\S+) \| (acpi|dt) \| (yes|no) \|", text, re.MULTILINE)
    cells = [(arch, boot, kind) for arch in ARCHES for boot in BOOTS for kind in KINDS.values()]
    assert documented == [
        (kind.name, arch, boot, "yes" if is_possible(arch, boot, kind.proof) else "no") for arch, boot, kind in cells
    ]


@pytest.mark.parametrize(("what", "word"), [("scenarios", "dimm-cycle"), ("guests", "numa"), ("kernels", "debian")])
def test_lists(capsys: pytest.CaptureFixture[str], what: str, word: str) -> None:
    assert main(["list", what]) == 0
    assert word in capsys.readouterr().out
    assert main(["list", what, "--json"]) == 0
    assert any(word in row.values() for row in json.loads(capsys.readouterr().out))


def test_every_invariant_is_listed_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "invariants", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == list(CATALOGUE)
    assert all(row["statement"] and row["source"] and row["motive"] for row in rows)


def test_doctor_prints_what_mends_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.artifacts.doctor import DoctorRow
    from harness.cli import doctor

    rows = [
        DoctorRow("apt", "ok", "apt-get", ""),
        DoctorRow("bc", "missing", "no bc", "apt-get install bc"),
    ]
    monkeypatch.setattr(doctor, "diagnose", lambda progress, **options: rows)
    assert main(["doctor"]) == 3
    assert "missing  bc   no bc\n\nto fix it:\n  apt-get install bc\n" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)[1]["mend"] == "apt-get install bc"
    del rows[1]
    assert main(["doctor"]) == 0


def test_a_command_line_for_a_shell() -> None:
    assert lines_of(["qemu", "-L", "/a b", "-nodefaults", "-append", "x=1 y"]) == (
        "qemu \\\n  -L '/a b' \\\n  -nodefaults \\\n  -append 'x=1 y'"
    )


def run_program(*words: str, before: str = "pass") -> subprocess.CompletedProcess[bytes]:
    """memhp with ``words``, in a process that a line of Python, ``before``, prepares; it ends in exec."""
    prepared = f"import os, signal, sys; {before}; os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
    argv = [sys.executable, "-c", prepared, PROGRAM, *words]
    return subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, timeout=300, check=False)


@pytest.mark.parametrize("streams", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_streams_are_empty_ones(streams: tuple[int, ...]) -> None:
    """In particular, status 1 would say that a kernel is broken."""
    closed = "; ".join(f"os.close({number})" for number in streams)
    found = run_program("check", str(BUNDLE), before=closed)
    assert found.returncode == 0
    assert (b"PASSED" in found.stdout) is (1 not in streams)
    assert run_program("nonsense", before=closed).returncode == 2


def test_others_cannot_write_to_what_is_made(tmp_path: Path) -> None:
    assert run_program("check", str(BUNDLE), "--json", str(tmp_path / "new"), before="os.umask(0)").returncode == 0
    assert (tmp_path / "new").stat().st_mode & 0o022 == 0


def test_help_and_version_are_quick_and_import_nothing_heavy() -> None:
    assert run_program("--version").stdout.decode() == f"memhp {__version__}\n"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = run_program("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time: on a busy machine, more of the other time passes.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert found.returncode == 0 and b"exit status of run" in found.stdout
    code = "import sys; from harness.cli.parser import build_parser; build_parser(); print(*sorted(sys.modules))"
    root = str(Path(__file__).parents[2])
    seen = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=300, check=True)
    modules = set(seen.stdout.decode().split())
    assert not modules & {"rich", "yaml", "numpy", "paramiko", "qemu", "asyncio", "harness.check"}


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -c '{PROGRAM}' list invariants --json; echo status $? >&2"
    root = str(Path(__file__).parents[2])
    read, write = os.pipe()
    os.close(read)
    try:
        found = subprocess.run(
            ["sh", "-c", script], cwd=root, stdout=write, stderr=subprocess.PIPE, timeout=300, check=False
        )
    finally:
        os.close(write)
    assert found.stderr == b"status 141\n"


def subparsers() -> dict[str, argparse.ArgumentParser]:
    [commands] = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(commands.choices)


@pytest.mark.parametrize("command", sorted(subparsers()))
def test_every_command_has_a_file_that_takes_what_the_parser_makes(command: str) -> None:
    parser = subparsers()[command]
    kind = parser.get_default("kind")
    assert get_type_hints(import_module(f"harness.cli.{command}").run) == {"arguments": kind, "return": int}
    said = {action.dest for action in parser._actions} - {"help", "debug"}
    assert said == {field.name for field in dataclasses.fields(kind)}, "every option must have a field"
    assert all(value != [] for value in vars(parse_minimal(command)).values()), "frozen arguments must not hold lists"


def parse_minimal(command: str) -> Arguments:
    needed = {"list": ["bugs"], "check": ["d"], "replay": ["d"], "merge": ["d", "-o", "o"], "collect": ["-o", "o"]}
    name, found = parse_arguments([command, *needed.get(command, [])])
    assert name == command
    return found
