# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts and BTF members that memhp looks for in a kernel image."""

from __future__ import annotations

from test_kmem_btf import Writer

from harness.kmem.btf import image_marks
from harness.state import NotObserved

BANNER = b"\0Linux version 7.3.4 (memhp)\0"


def test_texts_are_found_in_a_bare_image() -> None:
    assert image_marks(BANNER + b"one\0", ["one", "two"], ["zone.x"]) == {"one": True, "two": False}


def test_a_packed_image_tells_nothing() -> None:
    found = image_marks(b"\x1f\x8b\x08 one", ["one"], [])
    assert isinstance(found, NotObserved) and "packed" in found.reason


def test_members_are_found_in_btf_and_left_out_where_it_has_no_such_structure() -> None:
    writer = Writer()
    word = writer.int()
    writer.struct("zone", 8, ("name", word, 0))
    found = image_marks(BANNER + writer.blob(), [], ["zone.name", "zone.tails", "other.name"])
    assert found == {"zone.name": True, "zone.tails": False}
