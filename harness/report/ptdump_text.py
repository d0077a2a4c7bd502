# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables in the format of the kernel's /sys/kernel/debug/kernel_page_tables.

arch/arm64/mm/ptdump.c, arch/riscv/mm/ptdump.c, mm/ptdump.c and mm/pagewalk.c (v6.12). A ``Dump`` comes from the host's
walk (``notepage.dump_tables``) or from the guest's own file (``read_dump``); ``render`` writes both as the kernel does,
byte for byte.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.arch.architecture import ArchSpec
from harness.arch.markers import MarkerSet
from harness.errors import InfraError, UsageError
from harness.parsers.ptdump import parse_ptdump
from harness.report.text import clean
from harness.units import TOP, AddrRange, merge_ranges


@dataclass(frozen=True, slots=True)
class Run:
    """Equal entries below one marker (``region``): ``level`` and ``attrs`` as in ``state.Mapping``, empty if unmapped.

    ``physical`` is the physical address of its first byte, None if unknown.
    """

    range: AddrRange
    level: str
    attrs: tuple[str, ...]
    physical: int | None
    region: str


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump line by line: the name of a marker, or a run.

    ``pieces`` are the mapped runs; in a dump from the host's walk (``exact``) each piece is also physically
    contiguous. ``addresses`` maps names of markers to their addresses, as far as known.
    """

    arch: str
    lines: tuple[str | Run, ...]
    pieces: tuple[Run, ...] = field(repr=False)
    exact: bool
    addresses: Mapping[str, int]

    @property
    def runs(self) -> Iterator[Run]:
        """The runs, including unmapped ones (only arm64 prints those)."""
        return (line for line in self.lines if isinstance(line, Run))

    @property
    def regions(self) -> tuple[str, ...]:
        """The markers that were printed."""
        return tuple(line for line in self.lines if isinstance(line, str))


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of attributes: ``words`` maps its attributes to their printed form.

    ``blank`` is printed if there is none of them; None prints nothing.
    """

    blank: str | None
    words: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DumpFormat:
    """How one architecture's note_page prints.

    ``physical``: lines have the physical address of the run's start. ``holes``: unmapped runs are printed too.
    ``first`` and ``further``: how many markers it can pass at the first entry, and at the end of a run.
    """

    physical: bool
    holes: bool
    first: int
    further: int
    columns: tuple[_Column, ...]


def _words(blank: str | None, *words: str) -> _Column:
    return _Column(blank, {word.strip(): word for word in words})


_FORMATS = {
    "arm64": DumpFormat(
        physical=False,
        holes=True,
        first=1,
        further=2,
        columns=(
            _words(" ", "F"),
            _words("   ", "USR"),
            _words(None, "ro", "RW"),
            _words(None, "NX", "x "),
            _words("   ", "SHD"),
            _words("  ", "AF"),
            _words("  ", "NG"),
            _words("   ", "CON"),
            _words("   ", "BLK"),
            _words("   ", "UXN"),
            _words("  ", "GP"),
            _words(None, "DEVICE/nGnRnE", "DEVICE/nGnRE", "MEM/NORMAL-NC", "MEM/NORMAL", "MEM/NORMAL-TAGGED"),
        ),
    ),
    "riscv64": DumpFormat(
        physical=True,
        holes=False,
        first=0,
        further=sys.maxsize,
        columns=(
            _words(".", "N"),
            _words("  ..  ", "MT(NC)", "MT(IO)", "MT(??)"),
            _words("  ..  ", "RSW(1)", "RSW(2)", "RSW(3)"),
            *(_words(".", letter) for letter in "DAGUXWRV"),
        ),
    ),
}


def dump_format(arch: str) -> DumpFormat:
    """The format of the architecture ``arch``; raises InfraError for an unknown one."""
    if arch not in _FORMATS:
        raise InfraError(f"unknown page-table dump format of {arch}")
    return _FORMATS[arch]


_LINE = re.compile(r"0x([0-9a-f]{16})-0x([0-9a-f]{16})   (?: 0x([0-9a-f]{16}) )? {0,8}[0-9]+[KMGTPE] ([A-Z0-9]{3})(.*)")


def read_dump(text: str, arch: ArchSpec, places: MarkerSet | None = None) -> Dump:
    """The guest's own dump, with its markers at ``places``. Raises ParseError as ``parse_ptdump`` does."""
    mappings = iter(parse_ptdump(text, arch).mappings)
    form = dump_format(arch.name)
    lines: list[str | Run] = []
    region = ""
    for row in text.splitlines():
        match = _LINE.fullmatch(row)
        if match is None:
            region = row.removeprefix("---[ ").removesuffix(" ]---")
            lines.append(region)
            continue
        start, end, physical, level, attributes = match.groups()
        attrs = next(mappings).attrs if attributes or not form.holes else ()
        extent = AddrRange(int(start, 16), int(end, 16) or TOP)
        lines.append(Run(extent, level, attrs, None if physical is None else int(physical, 16), region))
    pieces = tuple(line for line in lines if isinstance(line, Run) and line.attrs)
    known = {} if places is None else {name: address for address, name in places.markers}
    return Dump(arch.name, tuple(lines), pieces, False, known)


def select(dump: Dump, region: str | None, ranges: Sequence[AddrRange]) -> Dump:
    """The part of ``dump`` below the marker ``region`` that overlaps ``ranges``; without either, the whole dump.

    ``region`` is a marker's name or a prefix of it, ignoring case. With ``ranges``, markers without a remaining run
    are dropped, and ``pieces`` are cut to the ranges. Raises UsageError for a region that is not in the dump.
    """
    name = None if region is None else _marker_named(dump, region)
    chosen = {run for run in dump.runs if name in (None, run.region) and _touches(run, ranges)}
    filled = {run.region for run in chosen}
    lines = tuple(
        line
        for line in dump.lines
        if line in chosen or (isinstance(line, str) and (line == name if name else not ranges or line in filled))
    )
    pieces = tuple(piece for run in dump.pieces if name in (None, run.region) for piece in _within(run, dump, ranges))
    return replace(dump, lines=lines, pieces=pieces)


def _marker_named(dump: Dump, wanted: str) -> str:
    for name in dump.regions:
        if name.lower() == wanted.lower():
            return name
    for name in dump.regions:
        if wanted and name.lower().startswith(wanted.lower()):
            return name
    known = ", ".join(repr(name[:80]) for name in dump.regions)
    raise UsageError(f"--region: unknown marker {wanted[:80]!r}", hint=f"known: {known}")


def _touches(run: Run, ranges: Sequence[AddrRange]) -> bool:
    return not ranges or any(run.range.overlaps(place) for place in ranges)


def _within(run: Run, dump: Dump, ranges: Sequence[AddrRange]) -> Iterator[Run]:
    if not ranges:
        yield run
        return
    for place in merge_ranges(ranges):
        shared = run.range.intersect(place)
        if shared is not None:
            yield clip(run, shared, exact=dump.exact)


def clip(run: Run, part: AddrRange, *, exact: bool) -> Run:
    """``run`` cut to ``part``; ``exact`` as in its dump."""
    # The guest's own dump gives the physical address of a run's start only.
    known = run.physical is not None and (exact or part.start == run.range.start)
    physical = run.physical + part.start - run.range.start if known and run.physical is not None else None
    return replace(run, range=part, physical=physical)


def render(dump: Dump) -> Iterator[str]:
    """The lines of ``dump`` as the kernel prints them, with newlines. Raises InfraError as ``format_run`` does."""
    shown: dict[tuple[str, ...], str] = {}
    for line in dump.lines:
        yield (
            f"---[ {clean(line)} ]---\n"
            if isinstance(line, str)
            else f"{format_run(line, dump_format(dump.arch), shown)}\n"
        )


def format_run(run: Run, form: DumpFormat, shown: dict[tuple[str, ...], str]) -> str:
    """The kernel's line for ``run``, without newline; ``shown`` caches columns between calls.

    An unknown physical address is a dash. Raises InfraError for an attribute without a column.
    """
    attributes = shown.get(run.attrs)
    if attributes is None:
        attributes = shown[run.attrs] = _attributes(run.attrs, form)
    physical = ""
    if form.physical:
        physical = f" {'-' if run.physical is None else format(run.physical, '#018x'):>18} "
    extent = f"{run.range.start:#018x}-{run.range.end % TOP:#018x}"
    return f"{extent}   {physical}{_size(run.range.size)} {run.level}{attributes}"


def _attributes(attrs: tuple[str, ...], form: DumpFormat) -> str:
    if not attrs:
        return ""
    words = by_column(attrs, form)
    texts = [
        column.blank if word is None else column.words[word] for column, word in zip(form.columns, words, strict=True)
    ]
    return "".join(f" {text}" for text in texts if text is not None)


def by_column(attrs: tuple[str, ...], form: DumpFormat) -> list[str | None]:
    """The word of each column, None for a blank one; raises InfraError for an attribute without a column."""
    found: list[str | None] = []
    left = list(attrs)
    for column in form.columns:
        found.append(left.pop(0) if left and left[0] in column.words else None)
    if left:
        raise InfraError(f"the kernel's dump has no column for the attribute {left[0][:80]!r} at this position")
    return found


def _size(size: int) -> str:
    units = "KMGTPE"
    amount = size >> 10
    while not amount & 1023 and len(units) > 1:
        amount, units = amount >> 10, units[1:]
    return f"{amount:9d}{units[0]}"


def run_to_json(run: Run) -> dict[str, object]:
    """A run as JSON; addresses are hexadecimal strings, since they do not fit into a double."""
    return {
        "start": hex(run.range.start),
        "end": hex(run.range.end),
        "region": run.region,
        "mapped": bool(run.attrs),
        "level": run.level,
        "attributes": list(run.attrs),
        "physical": None if run.physical is None else hex(run.physical),
    }


def dump_to_json(dump: Dump) -> dict[str, object]:
    """Markers and runs as JSON; an unknown address of a marker is None."""
    addresses = {name: hex(address) for name, address in dump.addresses.items()}
    return {
        "markers": [{"name": name, "address": addresses.get(name)} for name in dump.regions],
        "runs": [run_to_json(run) for run in dump.runs],
    }
