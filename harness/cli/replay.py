# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp replay``: a bundle may come from somebody else, so that nothing of this host is used because it says so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from harness.cli.command_arguments import GUEST_OPTIONS, ReplayArguments, is_given
from harness.cli.guest_options import bundle_dir_of, with_files
from harness.cli.results import check_reports, finish, open_reporter, run_all
from harness.config.guest import GuestSpec, override
from harness.config.selector import is_debian_name
from harness.errors import UsageError
from harness.report.text import clean
from harness.scenarios.boot import Parts, Resolver
from harness.scenarios.replay import changed_parts, read_replay
from harness.scenarios.run_options import RunOptions

#: options of QEMU's virt boards (hw/arm/virt.c, hw/riscv/virt.c, QEMU 10.0) that only shape the guest; others, such as
#: dumpdtb=FILE, make QEMU read or write files
_HARMLESS = frozenset(
    {"aclint", "acpi", "aia", "aia-guests", "compact-highmem", "default-bus-bypass-iommu", "dtb-randomness"}
    | {"gic-version", "highmem", "highmem-ecam", "highmem-mmio", "highmem-redists", "hmat", "iommu", "iommu-sys", "its"}
    | {"mte", "ras", "secure", "virtualization"}
)
#: others may name a file of the host for the kernel's build to read, or a command: its Makefiles expand $(shell …)
_HARMLESS_KERNEL_OPTION = re.compile(r"\w+(=[\w.+-]*)?", re.ASCII)
_HOST_FIELDS = ("kernel", "kernel_options", "build_dir", "modules", "initrd", "qemu", "machine_options")


def run(arguments: ReplayArguments) -> int:
    """memhp replay."""
    check_reports(arguments)
    bundles = bundle_dir_of(arguments.bundle_dir)
    recorded = read_replay(arguments.bundle)
    given = {name: value for name in _HOST_FIELDS if is_given(value := getattr(arguments, name))}
    require_given(arguments.bundle, recorded.guest, given)
    guest = override(recorded.guest, with_files(given), GUEST_OPTIONS)
    options = RunOptions(
        bundles,
        recorded.seed,
        arguments.timeout,
        rounds=recorded.rounds,
        start=recorded.start,
        known_bugs=arguments.known_bugs,
        demand=recorded.demand,
        look=recorded.look,
    )
    with open_reporter(arguments) as reporter:
        parts = Resolver(reporter.progress).resolve(guest, recorded.scenario.needs)
        # Otherwise the run tells what is missing.
        for what in changed_parts(recorded, guest, parts, given) if isinstance(parts, Parts) else ():
            reporter.progress.say(f"not as in the recorded run: {clean(what)}")
        return finish(arguments, reporter, run_all([recorded.scenario], [guest], options, reporter))


def require_given(bundle: Path, guest: GuestSpec, given: dict[str, object]) -> None:
    """Raise UsageError if ``guest``, as recorded in ``bundle``, uses something of the host that is not ``given``."""
    missing = [(name, value) for name, value in _of_the_host(guest) if name not in given]
    if not missing:
        return
    what = " ".join(f"{GUEST_OPTIONS[name]} {shlex.quote(value)}" for name, value in missing)
    raise UsageError(
        f"{bundle} was recorded with {what}, which replay only takes from the command line",
        hint=f"if you trust the bundle: memhp replay {shlex.quote(str(bundle))} {what}",
    )


def _of_the_host(guest: GuestSpec) -> Iterator[tuple[str, str]]:
    for name in ("kernel", "qemu"):
        value = getattr(guest, name)
        if value is not None and not is_debian_name(value):
            yield name, value
    for name in ("build_dir", "modules", "initrd"):
        if getattr(guest, name) is not None:
            yield name, str(getattr(guest, name))
    # Options that are given replace all recorded ones.
    if not all(map(_HARMLESS_KERNEL_OPTION.fullmatch, guest.kernel_options)):
        yield from (("kernel_options", text) for text in guest.kernel_options)
    if not {text.partition("=")[0] for text in guest.machine_options} <= _HARMLESS:
        yield from (("machine_options", text) for text in guest.machine_options)
