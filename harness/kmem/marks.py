# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence in a kernel's image of what the kernel does: texts it prints, members of its structures."""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import ParseError
from harness.kmem.btf import Btf, find_btf
from harness.state import NotObserved

#: in every unpacked kernel (linux_banner, init/version.c)
_BANNER = b"Linux version "


def image_marks(image: bytes, texts: Iterable[str], members: Iterable[str]) -> dict[str, bool] | NotObserved:
    """Whether each of ``texts`` is in a bare (unpacked) Image, and each ``structure.member`` in its BTF.

    Members are omitted if the image has no readable BTF. Not observed for anything but a bare image.
    """
    if _BANNER not in image:
        return NotObserved("the kernel's image is packed and cannot be searched")
    found = {text: text.encode() in image for text in texts}
    blob = find_btf(image)
    try:
        btf = None if blob is None else Btf(blob)
    except ParseError:
        return found
    for name in members if btf is not None else ():
        structure, _, member = name.partition(".")
        assert btf is not None
        if btf.size(structure) is not None:
            found[name] = btf.member(structure, member) is not None
    return found
