# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a matrix's guests, fetched and built once before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import InfraError, MemhpError
from harness.matrix.cells import Cell
from harness.matrix.workers import scenario_of
from harness.progress import Progress
from harness.scenarios.boot import Resolver
from harness.scenarios.file import load_scenario


def prepare(cells: Sequence[Cell], progress: Progress) -> dict[str, str]:
    """Fetch or build every part that ``cells`` need.

    Returns the reason for each cell whose parts are unavailable, by id: a kernel that does not build only fails the
    cells that boot it. An unmet requirement is not a reason; the cell's run names it.
    """
    broken: dict[str, str] = {}
    resolver = Resolver(progress)
    for cell in cells:
        try:
            found = resolver.resolve(cell.guest, load_scenario(scenario_of(cell)).needs)
        except MemhpError as error:
            broken[cell.id] = str(error)
        else:
            if isinstance(found, InfraError):
                broken[cell.id] = str(found)
    return broken
