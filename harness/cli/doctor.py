# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp doctor``."""

from __future__ import annotations

import dataclasses
import sys

from harness.artifacts.doctor import diagnose
from harness.cli.command_arguments import DoctorArguments
from harness.cli.guest_options import arches_of
from harness.cli.output import print_columns, print_json
from harness.progress import default_progress
from harness.qemu import probe


def run(arguments: DoctorArguments) -> int:
    """memhp doctor."""
    rows = diagnose(default_progress(), verify=arguments.verify, able=probe.able, arches=arches_of(arguments.arches))
    if arguments.json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print_columns([(row.status, row.name, row.detail) for row in rows])
        mends = [row.mend for row in rows if row.mend]
        if mends:
            sys.stdout.write("\nto fix it:\n" + "".join(f"  {mend}\n" for mend in dict.fromkeys(mends)))
    return 0 if all(row.status == "ok" for row in rows) else 3
