# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices of /sys/bus/dax (drivers/dax/bus.c)."""

from __future__ import annotations

import re

from harness.errors import ParseError
from harness.parsers._lines import decimal, numbered
from harness.state import DaxDevice
from harness.units import AddrRange

SOURCE = "/sys/bus/dax/devices"

_LINE = re.compile(r"(dax[0-9]{1,9}\.[0-9]{1,9})/(\w+):(.*)", re.ASCII)
_VALUES = {
    "resource": re.compile(r"0|0x[0-9a-f]{1,16}"),
    "size": re.compile(r"[0-9]+"),
    "align": re.compile(r"[0-9]+"),
    "target_node": re.compile(r"-1|[0-9]{1,6}"),
    "driver": re.compile(r"[A-Za-z_][A-Za-z0-9_-]*"),
    "state": re.compile(r"[a-z_]+"),
}


def parse_dax(text: str) -> tuple[DaxDevice, ...]:
    """Return the dax devices by name.

    ``text`` holds one line per file: ``dax0.0/resource:0x…``, ``/size:`` and ``/align:`` (bytes, decimal),
    ``/target_node:``, ``/driver:`` (absent while unbound). An empty text is a guest without dax devices. Raises
    ParseError for any other line, for a file that comes twice and for a device that lacks one.
    """
    found: dict[str, dict[str, str]] = {}
    first: dict[str, tuple[int, str]] = {}
    for line, row in numbered(SOURCE, text):
        match = _LINE.fullmatch(row)
        if match is None:
            raise ParseError(SOURCE, line, row, "not 'dax<N>.<M>/<file>:<content>'")
        device, name, value = match.groups()
        if name not in _VALUES:
            raise ParseError(SOURCE, line, row, f"no parser for the file {name!r} of a dax device")
        if _VALUES[name].fullmatch(value) is None:
            raise ParseError(SOURCE, line, row, f"not a content of {name!r}")
        first.setdefault(device, (line, row))
        files = found.setdefault(device, {})
        if name in files:
            raise ParseError(SOURCE, line, row, "the same file twice")
        files[name] = value
    return tuple(_freeze(device, found[device], *first[device]) for device in sorted(found, key=_number))


def _number(device: str) -> tuple[int, int]:
    region, _, number = device[len("dax") :].partition(".")
    return int(region), int(number)


def _freeze(device: str, files: dict[str, str], line: int, row: str) -> DaxDevice:
    for name in ("resource", "size", "align", "target_node"):
        if name not in files:
            raise ParseError(SOURCE, line, row, f"{device} has no {name}")
    return DaxDevice(
        name=device,
        range=AddrRange.sized(int(files["resource"], 0), decimal(SOURCE, line, row, files["size"])),
        align=decimal(SOURCE, line, row, files["align"]),
        target_node=int(files["target_node"]),
        driver=files.get("driver"),
        state=files.get("state"),
    )
