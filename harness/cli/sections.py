# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp sections``: a snapshot's memory sections, or their changes."""

from __future__ import annotations

from harness.cli.command_arguments import SectionsArguments
from harness.cli.shown_tables import about, chosen_snapshots, print_changes, print_tables, ranges_of
from harness.report.observed import sections_of, shape_of
from harness.report.section_table import (
    compare_sections,
    render_section_changes,
    render_sections,
    section_change_to_json,
    section_to_json,
    within,
)


def run(arguments: SectionsArguments) -> int:
    """memhp sections."""
    ranges = ranges_of(arguments)
    with chosen_snapshots(arguments) as snapshots:
        shape = shape_of(snapshots[-1])
        found = [within(sections_of(snapshot), shape, ranges) for snapshot in snapshots]
        if len(found) == 1:
            rows = {"sections": [section_to_json(section, shape) for section in found[0]]}
            print_tables(arguments, lambda: about(snapshots[0]) | rows, render_sections(found[0], shape))
            return 0
        changes = compare_sections(*found)
        lines = render_section_changes(changes, shape)
        print_changes(arguments, snapshots, [section_change_to_json(change, shape) for change in changes], lines)
    return 0
