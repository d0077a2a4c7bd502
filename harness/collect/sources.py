# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be read of a guest: the sources' names, what a kernel lacks if one is missing, and how they are framed.

guest-scripts/collect and the agent print sources between markers that no source can contain.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from typing import Literal, cast

from harness.errors import GuestError

#: sources of guest-scripts/collect that change while the kernel runs
STATE_SOURCES = (
    "boot_id",
    "uptime",
    "iomem",
    "blocks",
    "auto_online",
    "meminfo",
    "zoneinfo",
    "slabinfo",
    "dax",
    "dmesg",
    "vmstat",
    "ptdump",
)
#: sources that do not change
FACT_SOURCES = ("release", "cmdline", "auxv", "block_size", "config", "kcore", "parameters", "settings")

#: raw name of the list of sources that were not read: lines of ``name reason``
ABSENT = "absent"
#: sources from QEMU and the console, stored as JSON
HOST_SOURCES = ("devices", "backends", "console")

#: why a source is missing
MISSING = {
    "iomem": "this kernel has no /proc/iomem",
    "blocks": "this kernel has no CONFIG_MEMORY_HOTPLUG",
    "auto_online": "this kernel has no CONFIG_MEMORY_HOTPLUG",
    "block_size": "this kernel has no CONFIG_MEMORY_HOTPLUG",
    "meminfo": "this kernel has no /proc/meminfo",
    "vmstat": "this kernel has no /proc/vmstat",
    "zoneinfo": "this kernel has no /proc/zoneinfo",
    "slabinfo": "this kernel has no CONFIG_SLUB_DEBUG",
    "ptdump": "this kernel has no CONFIG_PTDUMP_DEBUGFS",
    "dmesg": "this kernel has no CONFIG_PRINTK",
    "kcore": "this kernel has no CONFIG_PROC_KCORE",
}

Status = Literal["ok", "missing", "failed", "lost"]

_HEADER = re.compile(rb"(begin|end|done) ([a-z_0-9]{1,40})(?: (ok|missing|failed|lost)(?: (.*))?)?")
#: longest line accepted as a marker
_MAX_HEADER = 400


@dataclass(frozen=True, slots=True)
class Frame:
    """One source: its bytes, and whether they are complete.

    ``status``: ok; missing (no such file); failed (reading stopped, ``detail`` says why); lost (some lines of the
    kernel log were overwritten before they were read).
    """

    name: str
    status: Status
    data: bytes
    detail: str = ""

    def followed_by(self, later: Frame) -> Frame:
        """Both parts of a source as one; some of it is lost if some of either is."""
        if later.status not in ("ok", "lost"):
            return later
        status: Status = "lost" if "lost" in (self.status, later.status) else "ok"
        return replace(later, status=status, data=self.data + later.data)


def new_boundary() -> str:
    """A marker that nothing in a guest can guess."""
    return secrets.token_hex(16)


def parse_frames(stream: bytes, boundary: str) -> dict[str, Frame]:
    """The frames of ``stream`` by name; raises GuestError if it is truncated or has anything out of place."""
    before, *parts = stream.split(b"\n@@" + boundary.encode() + b" ")
    if before or not parts:
        raise _garbled("it does not begin with a source", before or stream)
    frames: dict[str, Frame] = {}
    opened: str | None = None
    content = b""
    for number, part in enumerate(parts, 1):
        verb, name, status, detail, rest = _read_header(part)
        if verb == "begin" and opened is None:
            opened, content = name, rest
        elif verb == "end" and opened == name and status is not None and not rest:
            if name in frames:
                raise _garbled(f"duplicate source {name}", part)
            frames[name] = Frame(name, status, content, detail)
            opened = None
        elif verb == "done" and opened is None and number == len(parts) and not rest and name == str(len(frames)):
            return frames
        else:
            raise _garbled(f"a marker is out of place after {', '.join(frames) or 'nothing'}", part)
    raise _garbled(f"it is truncated after {', '.join(frames) or 'nothing'}", stream[-200:])


def _read_header(part: bytes) -> tuple[str, str, Status | None, str, bytes]:
    header, newline, rest = part.partition(b"\n")
    match = _HEADER.fullmatch(header)
    if match is None or not newline or len(header) > _MAX_HEADER:
        raise _garbled("an invalid marker", part)
    status = None if match[3] is None else cast(Status, match[3].decode())
    detail = "" if match[4] is None else match[4].decode(errors="replace")
    return match[1].decode(), match[2].decode(), status, detail, rest


def _garbled(why: str, shown: bytes) -> GuestError:
    return GuestError(
        f"cannot parse the output of the guest's collector: {why}: {shown[:200].decode(errors='replace')!r}"
    )
