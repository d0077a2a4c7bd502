# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices of /sys/bus/dax (drivers/dax/bus.c)."""

from __future__ import annotations

import re

from harness.parsers._lines import decimal, numbered
from harness.parsers.notes import STRICT, Notes
from harness.state import DaxDevice
from harness.units import AddrRange

SOURCE = "/sys/bus/dax/devices"

_LINE = re.compile(r"(dax[0-9]{1,9}\.[0-9]{1,9})/([^/:]+):(.*)", re.ASCII)
_VALUES = {
    "resource": re.compile(r"0|0x[0-9a-f]{1,16}"),
    "size": re.compile(r"[0-9]{1,20}"),
    "align": re.compile(r"[0-9]{1,20}"),
    "target_node": re.compile(r"-1|[0-9]{1,6}"),
    "driver": re.compile(r"[A-Za-z_][A-Za-z0-9_-]*"),
    "state": re.compile(r"[!-~]+"),
}
_NEEDED = ("resource", "size", "align", "target_node")


def parse_dax(text: str, notes: Notes = STRICT) -> tuple[DaxDevice, ...]:
    """Return the dax devices by name.

    ``text`` holds one line per file: ``dax0.0/resource:0x…``, ``/size:`` and ``/align:`` (bytes, decimal),
    ``/target_node:``, ``/driver:`` (absent while unbound), ``/state:`` where the kernel has it. An empty text is a
    guest without dax devices. Other files and other lines are unknown. Other content, a second line in a file, and a
    device that lacks a file (which is omitted) are garbled. Raises ParseError for a number beyond 64 bits.
    """
    found: dict[str, dict[str, str]] = {}
    first: dict[str, tuple[int, str]] = {}
    for line, row in numbered(SOURCE, text, notes):
        match = _LINE.fullmatch(row)
        if match is None:
            notes.add_unknown(SOURCE, "line", row)
            continue
        device, name, value = match.groups()
        if name not in _VALUES:
            notes.add_unknown(SOURCE, "file of a dax device", f"{name}:{value}")
            continue
        first.setdefault(device, (line, row))
        files = found.setdefault(device, {})
        if _VALUES[name].fullmatch(value) is None:
            notes.add_garbled(SOURCE, line, row, f"not valid content of {name!r}")
        elif name in files:
            notes.add_garbled(SOURCE, line, row, "the same file twice")
        else:
            files[name] = value
    devices = (_freeze(device, found[device], *first[device], notes) for device in sorted(found, key=_number))
    return tuple(device for device in devices if device is not None)


def _number(device: str) -> tuple[int, int]:
    region, _, number = device[len("dax") :].partition(".")
    return int(region), int(number)


def _freeze(device: str, files: dict[str, str], line: int, row: str, notes: Notes) -> DaxDevice | None:
    lacking = [name for name in _NEEDED if name not in files]
    if lacking:
        notes.add_garbled(SOURCE, line, row, f"{device} has no {lacking[0]}")
        return None
    return DaxDevice(
        name=device,
        range=AddrRange.sized(int(files["resource"], 0), decimal(SOURCE, line, row, files["size"])),
        align=decimal(SOURCE, line, row, files["align"]),
        target_node=int(files["target_node"]),
        driver=files.get("driver"),
        state=files.get("state"),
    )
