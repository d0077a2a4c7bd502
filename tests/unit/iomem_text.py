# SPDX-License-Identifier: GPL-2.0-or-later
"""Inverse of the /proc/iomem parser: entries back to the kernel's text."""

from __future__ import annotations

from collections.abc import Iterable

from harness.state import IomemEntry


def render_iomem(entries: Iterable[IomemEntry]) -> str:
    """The text of /proc/iomem that ``parse_iomem`` turns into ``entries``, byte for byte.

    Raises ValueError for an empty range at address 0, which /proc/iomem cannot express.
    """
    out: list[str] = []
    stack = [(entry, 0) for entry in reversed(tuple(entries))]
    while stack:
        entry, depth = stack.pop()
        if not entry.range.end:
            raise ValueError(f"iomem cannot express the empty range of {entry.name!r}")
        out.append(f"{'  ' * depth}{entry.range.start:08x}-{entry.range.end - 1:08x} : {entry.name}\n")
        stack.extend((child, depth + 1) for child in reversed(entry.children))
    return "".join(out)
