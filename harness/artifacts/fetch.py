# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch or build the parts of guests in advance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.arch import ArchSpec
from harness.config.guest_parts import QemuBinary
from harness.errors import UnsupportedError, UsageError
from harness.progress import Progress

#: what can be fetched, in the order in which a first run needs it
PARTS = ("qemu", "firmware", "guest-root", "kernel", "debian-kernel")

#: for an architecture, the judge of its QEMUs: why a binary is unsuitable, None if it is suitable
Able = Callable[[ArchSpec], Callable[[QemuBinary], str | None]]


def fetch(
    parts: Sequence[str], arches: Sequence[ArchSpec], progress: Progress, *, able: Able
) -> list[tuple[str, str, str]]:
    """Fetch or build every part for every architecture, unless the cache has it.

    Returns (part, architecture, origin and path) for each. Raises UsageError for a part that is not in ``PARTS`` before
    anything is fetched, and whatever fetching a part raises.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UsageError(f"unknown part: {', '.join(map(repr, unknown))}", hint=f"known: {', '.join(PARTS)}")
    wanted = [part for part in PARTS if part in parts]
    return [(part, arch.name, _fetch_one(part, arch, progress, able)) for arch in arches for part in wanted]


def _fetch_one(part: str, arch: ArchSpec, progress: Progress, able: Able) -> str:
    # Imported one by one: fetching a kernel must not need the imports for building QEMU.
    if part == "qemu":
        from harness.artifacts.qemu import debian_qemu, find_qemu

        try:
            binary = find_qemu(arch, explicit=None, able=able(arch), progress=progress)
        except UnsupportedError:
            binary = debian_qemu(arch, progress)
            lack = str(able(arch)(binary)).partition(": run memhp")[0]
            return f"{binary.origin}, which cannot plug memory ({lack}): {binary.argv[-1]}"
        return f"{binary.origin}: {binary.argv[-1]}"
    if part == "firmware":
        from harness.artifacts.firmware import bios, firmware

        return ", ".join(str(path) for path in (bios(arch, progress), firmware(arch, progress).code) if path)
    if part == "guest-root":
        from harness.artifacts.guestroot import guest_root

        return str(guest_root(arch, progress).initrd)
    from harness.artifacts.kernel import kernel

    image = kernel(arch, "debian" if part == "debian-kernel" else None, progress)
    return f"{image.origin}: {image.image}"
