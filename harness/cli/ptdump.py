# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp ptdump``: a snapshot's page tables, or their changes."""

from __future__ import annotations

from harness.cli.command_arguments import PtdumpArguments
from harness.cli.shown_tables import about, chosen_snapshots, print_changes, print_tables, ranges_of
from harness.report.observed import dump_of
from harness.report.ptdump_text import dump_to_json, render, select
from harness.report.tablediff import change_to_json, compare, render_changes


def run(arguments: PtdumpArguments) -> int:
    """memhp ptdump."""
    ranges = ranges_of(arguments)
    with chosen_snapshots(arguments) as snapshots:
        dumps = [select(dump_of(snapshot), arguments.region, ranges) for snapshot in snapshots]
        if len(dumps) == 1:
            [dump], [snapshot] = dumps, snapshots
            source = {"source": "host" if dump.exact else "guest"}
            print_tables(arguments, lambda: about(snapshot) | source | dump_to_json(dump), render(dump))
            return 0
        arch = snapshots[0].arch.name
        changes = compare(*dumps)
        rows = [change_to_json(change, arch) for change in changes]
        print_changes(arguments, snapshots, rows, render_changes(changes, arch))
    return 0
