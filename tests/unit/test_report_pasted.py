# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that are shown for pasting into a shell: whatever a path is called, it is one word of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from report_samples import GOOD

import harness
from harness.matrix.history import _entry
from harness.matrix.results_store import Done, Planned, Store
from harness.report.text import clean, pasted


@pytest.mark.parametrize("word", ["a b", "$(touch x)", "`x`", "; rm -rf ~", "'", "-x", "\x1b[2J$(x)"])
def test_what_is_shown_for_pasting_is_one_word(word: str) -> None:
    assert shlex.split(f"memhp check {pasted(word)}") == ["memhp", "check", clean(word)]


def test_the_command_that_repeats_a_cell_is_quoted(tmp_path: Path) -> None:
    id = "a$(touch x) 'b'/dimm-cycle"
    store = Store(tmp_path, "m", "d", (Planned(id, {}, "d", 1.0),), "2026-11-21T00:00:00+00:00")
    entry = _entry(store, Done(id, "d", 1.0, store.created, GOOD), {})
    base = f"cells/{id}"
    assert shlex.split(entry.replay) == ["memhp", "run", f"{base}/scenario.yaml", "--guest", f"{base}/guest.yaml"]


def test_no_command_names_a_path_unquoted() -> None:
    """Fields of commands in messages are quoted, but for architectures and what is no command."""
    harmless = {
        "explorer.spec.arch",
        "self._spec.arch",
        "_printable(self._kernel)",
        "proc.describe_status(status)",
        "what",
    }
    root, wrong = Path(harness.__file__).parent, []
    for path in root.rglob("*.py"):
        for command in re.findall(r"memhp (?:run|check|replay|attach|shell|merge) [^\"\n]*", path.read_text("utf-8")):
            for field in re.findall(r"{([^{}]*)}", command):
                if not field.startswith(("pasted(", "shlex.quote(")) and field not in harmless:
                    wrong.append(f"{path}: {command}")
    assert wrong == []
