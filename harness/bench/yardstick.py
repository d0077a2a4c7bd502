# SPDX-License-Identifier: GPL-2.0-or-later
"""The yardstick of looks: the text collector of commit bcfe9e6, a shell script that is kept beside this file."""

from __future__ import annotations

from pathlib import Path

from harness.collect.sources import new_boundary, parse_frames
from harness.deadline import Deadline
from harness.guest.ssh import Shell

_SCRIPT = Path(__file__).with_name("collect-bcfe9e6.sh")
#: where it keeps its files; the script has that of today's collector
_OWN, _THEIRS = "/run/memhp-bench", "/run/memhp"
#: all that changes while a kernel runs
_SOURCES = "boot_id uptime iomem blocks auto_online meminfo zoneinfo slabinfo dax dmesg counters ptdump"


class Yardstick:
    """The collector, installed in a guest."""

    def __init__(self, shell: Shell, deadline: Deadline) -> None:
        """Install it; raises GuestError, DeadlineExpired."""
        self._shell = shell
        script = _SCRIPT.read_text().replace(f"run={_THEIRS}\n", f"run={_OWN}\n")
        done = shell.run(f"mkdir -p {_OWN} && cat >{_OWN}/collect", stdin=script.encode(), deadline=deadline)
        if done.status != 0:
            raise done.error("the yardstick could not be installed")

    def collect(self, deadline: Deadline) -> None:
        """Collect all text once; raises GuestError, DeadlineExpired."""
        boundary = new_boundary()
        done = self._shell.run(f"busybox sh {_OWN}/collect {boundary} {_SOURCES}", deadline=deadline)
        if done.status != 0:
            raise done.error("the yardstick failed")
        parse_frames(done.stdout, boundary)
