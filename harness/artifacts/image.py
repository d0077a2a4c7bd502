# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads kernel images: their packing, their architecture, and their embedded configuration."""

from __future__ import annotations

import errno
import lzma
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from harness import proc
from harness.arch import ARCHES, ArchSpec
from harness.bounded import MAX_CONFIG, gunzip, read_file
from harness.deadline import Deadline
from harness.dotconfig import read_config
from harness.errors import ArtefactError, InfraError, UsageError
from harness.units import format_size

#: maximum size of an image in bytes, packed or not; one with KASAN and all debug options has 100 MB
LIMIT = proc.MAX_OUTPUT
#: bytes; the kernel's build takes a dictionary of 32 MB for xz (scripts/xz_wrap.sh, v6.12)
_LZMA_MEMORY = 256 << 20

#: kernel/configs.c
_CONFIG_START = b"IKCFG_ST"
_CONFIG_END = b"IKCFG_ED"
#: init/version-timestamp.c
_BANNER = re.compile(rb"Linux version (\d[\w.+~-]*) \(")
_UNPACK_SECONDS = 120.0


def read_image(path: Path) -> bytes:
    """The bare Image in a file, unpacked if zboot or compressed; raises UsageError if it cannot be read or unpacked."""
    try:
        data = read_file(path, LIMIT)
    except OSError as error:
        large = error.errno == errno.EFBIG
        hint = "give the Image that the build writes to arch/*/boot, not its vmlinux" if large else "check the path"
        raise UsageError(f"cannot read the kernel {path}: {error.strerror}", hint=hint) from error
    try:
        return decompress(_payload(data))
    except (ValueError, EOFError, OSError, lzma.LZMAError, InfraError) as error:
        raise UsageError(f"cannot unpack {path}: {error}") from error


def _payload(data: bytes) -> bytes:
    """The payload of an EFI zboot image (drivers/firmware/efi/libstub/zboot-header.S); anything else unchanged."""
    if data[:2] != b"MZ" or data[4:8] != b"zimg":
        return data
    offset, size = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12))
    if not 64 <= offset < offset + size <= len(data):
        raise ValueError("its zboot header points outside the file")
    return data[offset : offset + size]


def decompress(data: bytes) -> bytes:
    """Unpack gzip, xz, lzma or zstd, recognised by their first bytes; anything else unchanged.

    Raises ValueError, lzma.LZMAError or InfraError for damaged data or more than LIMIT bytes, ArtefactError without a
    zstd program.
    """
    if data[:2] == b"\x1f\x8b":
        return gunzip(data, LIMIT)
    if data[:6] == b"\xfd7zXZ\0" or data[:3] == b"\x5d\0\0":
        packed = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
        found = packed.decompress(data, LIMIT + 1)
        if len(found) > LIMIT:
            raise ValueError(f"it is larger than {format_size(LIMIT)}")
        if not packed.eof:
            raise ValueError("it ends too early")
        return found
    if data[:4] == b"\x28\xb5\x2f\xfd":
        if shutil.which("zstd") is None:
            raise ArtefactError("cannot unpack zstd: this machine lacks zstd", hint="sudo apt-get install zstd")
        done = proc.run(["zstd", "-dcq"], stdin=data, deadline=Deadline(_UNPACK_SECONDS), check=False)
        # The kernel's build appends the size, which zstd reports as an error after unpacking everything.
        if done.returncode != 0 and not done.stdout:
            raise ValueError(proc.tail(done.stderr, lines=1))
        return done.stdout
    return data


def require_arch(name: str, data: bytes, arch: ArchSpec) -> None:
    """Raise UsageError unless ``data`` is an Image for ``arch``; ``name`` is the user's name for it."""
    for other in ARCHES.values():
        offset, magic = other.image_magic
        if data[offset : offset + len(magic)] != magic:
            continue
        if other is arch:
            return
        raise UsageError(
            f"{name} is a kernel for {other.name}, but the guest is {arch.name}",
            hint=f"use -a {other.name}, or give a kernel for {arch.name}",
        )
    kind = "a vmlinux (ELF)" if data[:4] == b"\x7fELF" else "not a kernel Image"
    raise UsageError(
        f"{name} is {kind}: memhp needs a bare or compressed Image", hint=f"the kernel build writes it to {arch.image}"
    )


def embedded_config(data: bytes) -> Mapping[str, str] | None:
    """The configuration embedded by CONFIG_IKCONFIG=y; None if there is none, or it is damaged."""
    start = data.find(_CONFIG_START)
    end = data.find(_CONFIG_END, start)
    if start < 0 or end < 0:
        return None
    try:
        text = gunzip(data[start + len(_CONFIG_START) : end], MAX_CONFIG)
    except ValueError:
        return None
    return read_config(text.decode("utf-8", "replace"))


def release_of(data: bytes) -> str | None:
    """The release in an Image's version banner, None if there is none."""
    match = _BANNER.search(data)
    return None if match is None else match[1].decode()
