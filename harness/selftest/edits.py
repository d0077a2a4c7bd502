# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies in collected text are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from harness.check import Evidence
from harness.selftest.corruption import TextCorruption
from harness.selftest.scene import Inapplicable, Scene
from harness.units import AddrRange

#: another text for a source
Edit = Callable[[Scene, str], str]


def source(name: str, target: str, summary: str, *broken: str, edit: Edit) -> TextCorruption:
    """A corruption of the source ``target`` as it was collected."""

    def apply(scene: Scene) -> Evidence:
        before = scene.text(target)
        after = edit(scene, before)
        if after == before:
            raise Inapplicable(f"{target} is like that already")
        return scene.with_sources({target: after.encode()})

    return TextCorruption(name, target, summary, frozenset(broken), apply)


def replace(text: str, pattern: str, by: str) -> str:
    """Replace the first match of ``pattern``, in which ^ and $ are ends of lines. Raises Inapplicable for none."""
    after, hits = re.subn(pattern, by, text, count=1, flags=re.MULTILINE)
    if not hits:
        raise Inapplicable(f"no line is like {pattern}")
    return after


def replaced(pattern: str, by: str) -> Edit:
    """``replace``, wherever that is."""
    return lambda scene, text: replace(text, pattern, by)


def added_to(pattern: str, by: int) -> Edit:
    """Add ``by`` to the number that group 2 of ``pattern`` finds behind group 1."""

    def edit(scene: Scene, text: str) -> str:
        match = re.search(pattern, text, re.MULTILINE)
        if match is None:
            raise Inapplicable(f"no line is like {pattern}")
        return f"{text[: match.start(2)]}{int(match[2]) + by}{text[match.end(2) :]}"

    return edit


def appended(line: str) -> Edit:
    """One line more."""
    return lambda scene, text: f"{text}{line}\n"


def in_json(change: Callable[[Scene, Any], Any]) -> Edit:
    """Change what a JSON source says."""
    return lambda scene, text: json.dumps(change(scene, json.loads(text)))


def inclusive(where: AddrRange) -> str:
    """A range as /proc/iomem prints it."""
    return f"{where.start:08x}-{where.end - 1:08x}"
