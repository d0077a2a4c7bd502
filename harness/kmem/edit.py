# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes to the memory of a paused guest, and restores every byte. Nothing else in memhp writes there.

::

    with machine.paused(deadline), MemoryEditor(regions) as editor:
        with editor.undone():
            editor.write_word(address, entry)
            ...                                 # observe the guest
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.errors import InfraError
from harness.kmem.physical_memory import OutsideMemory, Region
from harness.units import AddrRange

WORD = 8


@dataclass(frozen=True, slots=True)
class _Edit:
    address: int
    before: bytes
    after: bytes


class MemoryEditor:
    """Opens the files that back a guest's memory for writing; ``undo`` reverts all writes.

    The guest must be paused while anything is edited. Leaving the ``with`` statement undoes all remaining edits and
    closes the files. Raises InfraError for a file that cannot be opened for writing or is too short for its region.
    """

    def __init__(self, regions: Iterable[Region]) -> None:
        self._files: list[tuple[Region, int]] = []
        self._edits: list[_Edit] = []
        try:
            for region in regions:
                self._files.append((region, _open(region)))
        except BaseException:
            self._close()
            raise

    def read(self, address: int, size: int) -> bytes:
        """The ``size`` bytes at physical ``address``, all in one region. Raises OutsideMemory."""
        fd, offset = self._find(address, size)
        data = os.pread(fd, size, offset)
        if len(data) != size:
            raise OutsideMemory(address, size)
        return data

    def read_word(self, address: int) -> int:
        """The 64-bit little-endian word at physical ``address``. Raises OutsideMemory."""
        return int.from_bytes(self.read(address, WORD), "little")

    def write(self, address: int, data: bytes) -> None:
        """Put ``data`` at physical ``address``; it must lie in one region. Raises OutsideMemory, InfraError."""
        before = self.read(address, len(data))
        # Recorded first: a partial write must be undone as well.
        self._edits.append(_Edit(address, before, bytes(data)))
        self._put(address, data)

    def write_word(self, address: int, value: int) -> None:
        """Put a 64-bit little-endian word at physical ``address``, see ``write``."""
        self.write(address, value.to_bytes(WORD, "little"))

    def undo(self) -> None:
        """Restore the previous content, the last edit first.

        Raises InfraError after restoring everything if someone else has written to an edited place meanwhile: then the
        guest was not paused.
        """
        changed: list[AddrRange] = []
        while self._edits:
            edit = self._edits[-1]
            if self.read(edit.address, len(edit.after)) != edit.after:
                changed.append(AddrRange.sized(edit.address, len(edit.after)))
            self._put(edit.address, edit.before)
            self._edits.pop()
        if changed:
            places = ", ".join(map(str, changed))
            raise InfraError(
                f"the guest's memory changed where it was edited: {places}",
                hint="the guest must be paused while its memory is edited",
            )

    @contextlib.contextmanager
    def undone(self) -> Iterator[MemoryEditor]:
        """Undo on leaving the block, also after an exception."""
        try:
            yield self
        finally:
            self.undo()

    def close(self) -> None:
        """Undo all remaining edits and close the files."""
        try:
            self.undo()
        finally:
            self._close()

    def __enter__(self) -> MemoryEditor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, address: int, size: int) -> tuple[int, int]:
        wanted = AddrRange.sized(address, size)
        for region, fd in self._files:
            if region.range.covers(wanted):
                return fd, region.offset + address - region.range.start
        raise OutsideMemory(address, size)

    def _put(self, address: int, data: bytes) -> None:
        fd, offset = self._find(address, len(data))
        try:
            done = os.pwrite(fd, data, offset)
        except OSError as error:
            raise InfraError(f"cannot write to the guest's memory at {address:#x}: {error.strerror}") from None
        if done != len(data):
            raise InfraError(f"only {done} of {len(data)} bytes could be written to the guest's memory at {address:#x}")

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop()[1])


def _open(region: Region) -> int:
    try:
        fd = os.open(region.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise InfraError(
            f"cannot write to the guest's memory {region.range}: {error.strerror}: {region.path}"
        ) from None
    if os.fstat(fd).st_size < region.offset + region.range.size:
        os.close(fd)
        raise InfraError(f"{region.path} is too short for the guest's memory {region.range}")
    return fd
