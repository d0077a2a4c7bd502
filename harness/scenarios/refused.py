# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the refusals of a step are those that its scenario means.

An answer (an errno, a text of QEMU's) is a refusal's own. Where there is none, or another one, the kernel's log may
tell, but a line counts only for the memory that it names: "unaligned hotplug range: start 0x.., size 0x.."
(check_hotplug_memory_range), "Hotplug memory [0x..-0x..] exceeds .." (mhp_range_allowed), "[.. ..] splits a leaf entry"
(can_unmap_without_split, arm64, v7.3). A line that names none, as that of a failed allocation, cannot be told apart: it
counts only if all refusals of the step are alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from harness.scenarios.outcome import Outcome, Rejection
from harness.state import DmesgLine
from harness.units import AddrRange

#: [0x140000000-0x147ffffff], [mem 0x0140000000-0x0147ffffff]; without the hyphen, the end is exclusive
_RANGE = re.compile(r"\[(?:mem )?(?:0x)?([0-9a-f]{7,16})([- ])(?:0x)?([0-9a-f]{7,16})\]")
_START = re.compile(r"\bstart 0x([0-9a-f]{1,16}), size 0x([0-9a-f]{1,16})\b")
_BLOCK = re.compile(r"\bmemory[0-9]+\b")
_WARNING = 4


def other_refusal(outcome: Outcome, log: Sequence[DmesgLine]) -> str | None:
    """What was said at a refusal that ``outcome.says`` does not mean; None if all are meant, "" if nothing was said.

    ``log`` is the kernel's of the step. Beside refusals that only the log explains, a line of warning level or above
    about other memory counts, too.
    """

    def meant(said: str) -> bool:
        return any(text in said for text in outcome.says)

    refusals = outcome.refusals or [Rejection(outcome.note)]
    others = [refusal for refusal in refusals if outcome.says and not meant(refusal.said)]
    unexplained = _unexplained(others, refusals, [line.text for line in log if meant(line.text)])
    if unexplained is not None:
        return unexplained.said
    return next(_elsewhere(refusals, [line for line in log if not meant(line.text)]), None) if others else None


def explained(outcome: Outcome, lines: Sequence[str]) -> bool:
    """Whether ``lines`` of the kernel's log, those of a known bug, explain every refusal."""
    return _unexplained(outcome.refusals, outcome.refusals, lines) is None


def _unexplained(some: Sequence[Rejection], among: Sequence[Rejection], lines: Sequence[str]) -> Rejection | None:
    alike = len({_BLOCK.sub("", refusal.said) for refusal in among}) == 1
    return next((one for one in some if not any(_explains(line, one, alike) for line in lines)), None)


def _explains(line: str, refusal: Rejection, alike: bool) -> bool:
    place = _place(line)
    if place is None or refusal.place is None:
        return alike
    return place.overlaps(refusal.place)


def _elsewhere(refusals: Sequence[Rejection], log: Sequence[DmesgLine]) -> Iterator[str]:
    """Warnings about memory that none of ``refusals`` is about, if that is known of all of them."""
    places = [refusal.place for refusal in refusals if refusal.place is not None]
    if len(places) < len(refusals):
        return
    for line in log:
        place = _place(line.text) if line.level is not None and line.level <= _WARNING else None
        if place is not None and not any(place.overlaps(mine) for mine in places):
            yield line.text


def _place(line: str) -> AddrRange | None:
    """The first physical range that ``line`` names."""
    if (found := _START.search(line)) is not None:
        start, size = (int(text, 16) for text in found.groups())
        return AddrRange.sized(start, size) if size else None
    if (found := _RANGE.search(line)) is not None:
        start, end = int(found[1], 16), int(found[3], 16) + (found[2] == "-")
        return AddrRange(start, end) if start < end else None
    return None
