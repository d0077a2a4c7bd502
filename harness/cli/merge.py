# SPDX-License-Identifier: GPL-2.0-or-later
"""``memhp merge``."""

from __future__ import annotations

from harness.cli.command_arguments import MergeArguments
from harness.cli.matrix import earlier_nights, finish_matrix
from harness.cli.results import check_reports, results_stream
from harness.matrix.history import book_of_store
from harness.matrix.results_store import merge as merge_stores
from harness.matrix.results_store import read_store


def run(arguments: MergeArguments) -> int:
    """memhp merge."""
    check_reports(arguments)
    target = arguments.output
    # Before anything is written: it may be damaged.
    history = earlier_nights(arguments.history, read_store(arguments.directories[0]).name, target)
    store = merge_stores(arguments.directories, target)
    out = results_stream(arguments)
    return finish_matrix(arguments, book_of_store(store, history), target, out)
