# SPDX-License-Identifier: GPL-2.0-or-later
"""What is shown of a bundle's serial console."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report.console_trouble import SHOWN, console_trouble

OOPS = "[    8.557065] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000"


def told(tmp_path: Path, *lines: str) -> list[str]:
    (tmp_path / "console.log").write_bytes("".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape"))
    return console_trouble(tmp_path).splitlines()


def test_an_oops_is_shown_with_what_came_before_it(tmp_path: Path) -> None:
    lines = (*(f"[    {at}.000000] line" for at in range(9)), OOPS, "[    8.557974] Oops [#1]", "epc : foo+0x2/0x4")
    assert told(tmp_path, *lines) == [f"| {line}" for line in lines[7:]]


def test_no_alarm_no_lines(tmp_path: Path) -> None:
    assert told(tmp_path, "[    1.000000] harmless") == []
    (tmp_path / "console.log").unlink()
    assert console_trouble(tmp_path) == ""


def test_a_flood_is_cut(tmp_path: Path) -> None:
    assert len(told(tmp_path, OOPS, *("x" * 100_000 for _ in range(50)), *(f"{at}" for at in range(500)))) == SHOWN


@pytest.mark.parametrize("line", ["::error file=a::b", "\x1b[2J\x07", "\x9b31m", "##vso[task.setvariable]x"])
def test_no_line_of_a_guest_is_a_command(line: str, tmp_path: Path) -> None:
    shown = told(tmp_path, OOPS, line)
    assert len(shown) == 2 and all(row.startswith("| ") and row.isprintable() for row in shown)
