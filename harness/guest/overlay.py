# SPDX-License-Identifier: GPL-2.0-or-later
"""The initrd of one run: a cached guest root, optional archives, and a small overlay with keys and guest-scripts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from harness.cpio import CpioEntry, character_device, directory, pack, regular
from harness.errors import UsageError
from harness.guest.identity import Identity

#: directory of the guest-scripts in a guest
SCRIPTS = "usr/lib/memhp"
#: the one script installed elsewhere: as /init
INIT = "init"

# Only what is a real directory in every root: a directory entry would replace a symbolic link of the same name
# (init/initramfs.c, clean_path), and /lib and /bin usually are links.
_DIRECTORIES = ("dev", "etc", "etc/dropbear", "usr", "usr/lib", SCRIPTS)


def overlay(identity: Identity | None, scripts_dir: Path, extra_files: Mapping[str, bytes] | None = None) -> bytes:
    """Return a cpio archive with /init, the keys of ``identity`` and the guest-scripts.

    Without an identity the guest falls asleep at the end of its boot, and waits for one (``harness.guest.identity``).
    ``extra_files`` maps paths in the guest, relative to its root, to contents; their directories must exist there.
    Raises UsageError if ``scripts_dir`` has no ``init``.
    """
    scripts = {path.name: path for path in sorted(scripts_dir.glob("*")) if path.is_file() and not path.suffix}
    if INIT not in scripts:
        raise UsageError(f"no guest-scripts in {scripts_dir}", hint="memhp is incomplete: reinstall it")
    entries: list[CpioEntry] = [directory(path) for path in _DIRECTORIES]
    entries += [
        directory("root", 0o700),
        directory("root/.ssh", 0o700),
        character_device("dev/console", 5, 1),
        regular("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        regular("etc/group", b"root:x:0:\n"),
        regular("etc/shells", b"/bin/sh\n"),
    ]
    if identity is not None:
        entries += [
            regular("etc/dropbear/host_key", identity.host.dropbear, 0o600),
            regular("root/.ssh/authorized_keys", f"{identity.client.public}\n".encode(), 0o600),
        ]
    for name, path in scripts.items():
        entries.append(regular(INIT if name == INIT else f"{SCRIPTS}/{name}", path.read_bytes(), 0o755))
    for name, data in (extra_files or {}).items():
        entries.append(regular(name, data))
    return pack(entries)


def write_initrd(parts: Sequence[Path], overlay: bytes, out: Path) -> None:
    """Write ``parts`` in order, then ``overlay``, to ``out`` (mode 0600), atomically.

    Later archives win. Each part is padded with zeros to a multiple of 4 bytes, where the kernel looks for the next
    archive, whatever the compression of the previous one (init/initramfs.c, unpack_to_rootfs). Raises UsageError if a
    part cannot be read.
    """
    fd, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(fd, "wb") as writer:
            for part in parts:
                _append(part, writer)
            writer.write(overlay)
        os.replace(name, out)
    except BaseException:
        os.unlink(name)
        raise


def _append(part: Path, writer: BinaryIO) -> None:
    try:
        reader = part.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read the initrd {part}: {error.strerror}", hint="check the path") from error
    with reader:
        # Not under the except above: a full disk is not the part's fault.
        shutil.copyfileobj(reader, writer, 1 << 20)
    writer.write(bytes(-writer.tell() % 4))
