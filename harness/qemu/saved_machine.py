# SPDX-License-Identifier: GPL-2.0-or-later
"""A saved machine as files in one folder.

::

    state                   what QEMU migrates: devices, vCPUs, ROMs and flash
    NAME.pages, NAME.map    the pages of the RAM backend NAME that are not all zeros, and where they belong

QEMU's migration stream does not contain RAM: it is in files that QEMU shares with us (capability x-ignore-shared,
migration/ram.c), so that it can be copied while QEMU starts, and the host can read it as before.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from harness.bounded import MAX_SMALL, load_json, read_file
from harness.deadline import Deadline
from harness.errors import QemuError
from harness.qemu.qmp import QmpSession
from harness.units import AddrRange, merge_ranges

STATE = "state"
#: unit in which zeros are left out
PAGE = 4096

_WORDS = PAGE // 8
#: bytes searched for zeros at a time
_CHUNK = 16 << 20


def migrate(qmp: QmpSession, file: Path, *, incoming: bool = False, with_memory: bool, deadline: Deadline) -> None:
    """Have QEMU write its machine to ``file``, or (``incoming``) restore the machine that another QEMU wrote.

    ``with_memory``, the file includes memory, each page at a fixed offset (mapped-ram: the file does not grow with
    time); otherwise all memory is in shared files. Raises QemuError, QmpRefused, DeadlineExpired.
    """
    # A QEMU restored one way may be saved the other way, so x-ignore-shared is always set, on or off.
    wanted = {"events": True, "x-ignore-shared": not with_memory} | ({"mapped-ram": True} if with_memory else {})
    said = [{"capability": name, "state": state} for name, state in wanted.items()]
    qmp.execute("migrate-set-capabilities", {"capabilities": said}, deadline=deadline)
    mark = qmp.seq
    qmp.execute("migrate-incoming" if incoming else "migrate", {"uri": f"file:{file}"}, deadline=deadline)
    done = "restored" if incoming else "saved"
    event = qmp.wait_event(
        lambda event: event.name == "MIGRATION" and event.data["status"] in ("completed", "failed"),
        since=mark,
        deadline=deadline,
        awaited=f"the machine to be {done}",
    )
    if event.data["status"] == "failed":
        reason = qmp.execute("query-migrate", deadline=deadline).get("error-desc", "no reason given")
        raise QemuError(f"QEMU's machine cannot be {done}: {reason}")


def pack(fd: int, directory: Path, name: str) -> None:
    """Write the pages of the file ``fd`` that are not all zeros to NAME.pages, and their offsets to NAME.map.

    The map is a JSON object: ``size`` of the file in bytes, and ``runs``, pairs of start and end.
    """
    size = os.fstat(fd).st_size
    runs: list[AddrRange] = []
    with (directory / f"{name}.pages").open("wb") as out, mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory:
        for start, end in _data(fd, size):
            words = np.frombuffer(memory, "<u8", (end - start) // 8, start).reshape(-1, _WORDS)
            for first, last in _live(words):
                out.write(words[first:last].data)
                runs.append(AddrRange(start + first * PAGE, start + last * PAGE))
            # As long as a view exists, the mapping cannot be closed.
            del words
    joined = [(run.start, run.end) for run in merge_ranges(runs)]
    (directory / f"{name}.map").write_text(json.dumps({"size": size, "runs": joined}) + "\n")


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of ``fd`` that have pages; reading a hole would allocate some."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            # ENXIO: no data up to the end.
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), start + _CHUNK)
        yield start, at


def _live(words: np.ndarray[tuple[int, int], np.dtype[np.uint64]]) -> Iterator[tuple[int, int]]:
    """Runs of rows that are not all zeros."""
    flags = np.zeros(len(words) + 2, dtype=np.int8)
    flags[1:-1] = words.any(axis=1)
    edges = np.flatnonzero(np.diff(flags)).tolist()
    yield from zip(edges[::2], edges[1::2], strict=True)


def unpack(directory: Path, name: str, fd: int) -> None:
    """Write what ``pack`` saved into the empty file ``fd``. Raises QemuError if its size or a part is wrong."""
    try:
        kept = load_json(read_file(directory / f"{name}.map", MAX_SMALL))
        size, runs = int(kept["size"]), [AddrRange(start, end) for start, end in kept["runs"]]
        with (directory / f"{name}.pages").open("rb") as pages:
            length = os.fstat(pages.fileno()).st_size
            if size != os.fstat(fd).st_size or length != sum(run.size for run in runs):
                raise QemuError(f"the saved memory of {name} does not match this machine, or is incomplete")
            if not runs:
                return
            with mmap.mmap(pages.fileno(), length, prot=mmap.PROT_READ) as data, memoryview(data) as view:
                at = 0
                for run in runs:
                    _write(fd, view[at : at + run.size], run.start)
                    at += run.size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QemuError(f"the saved memory of {name} cannot be read: {error}") from error


def _write(fd: int, data: memoryview, at: int) -> None:
    with data:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], at + done)


def new_memory(sizes: Mapping[str, int]) -> dict[str, int]:
    """Create one empty memfd of the given size for each backend; the caller closes them."""
    found: dict[str, int] = {}
    try:
        for name, size in sizes.items():
            found[name] = os.memfd_create(f"memhp-{name}", os.MFD_CLOEXEC)
            os.ftruncate(found[name], size)
    except BaseException:
        for fd in found.values():
            os.close(fd)
        raise
    return found


def copy_sparse(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target`` (created anew, mode 0600), with holes where it has holes or zeros."""
    zeros = bytes(1 << 16)
    target.unlink(missing_ok=True)
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as reader, os.fdopen(out, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        for start, end in _data(reader.fileno(), size):
            reader.seek(start)
            writer.seek(start)
            while (left := end - reader.tell()) > 0 and (chunk := reader.read(min(len(zeros), left))):
                if chunk == zeros[: len(chunk)]:
                    writer.seek(len(chunk), os.SEEK_CUR)
                else:
                    writer.write(chunk)
        writer.truncate(size)
