# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots as directories: one plain file per source, so that a person can read or edit it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.arch import ArchSpec
from harness.bounded import load_json, read_file
from harness.collect.look import CODEC, parse_parameters, parse_settings, parse_state
from harness.collect.parse_cache import ParseCache
from harness.collect.sources import HOST_SOURCES
from harness.errors import UsageError
from harness.parsers.kernel_config import parse_config
from harness.parsers.vmcoreinfo import parse_vmcoreinfo
from harness.state import GuestState, KernelFacts, NotObserved, Unknown

#: version of the layout of these directories
FORMAT = 1

_META = "meta.json"
#: bytes; no real snapshot is larger
_MAX_FILE = 64 << 20


def save_state(directory: Path, state: GuestState) -> None:
    """Write ``state`` as ``directory``, atomically; it replaces an earlier one.

    Files: a source each (iomem.txt, devices.json, …), absent.txt with the reasons for missing ones, and meta.json.
    """
    save_raw(directory, state.raw, boot_id=state.boot_id, uptime=state.uptime)


def save_raw(directory: Path, raw: Mapping[str, bytes], **meta: str | float) -> None:
    """Write the sources of an unparsable snapshot, as ``save_state`` does; ``load_state`` parses them again."""
    files = {f"{name}.json" if name in HOST_SOURCES else f"{name}.txt": data for name, data in raw.items()}
    _write(directory, files | {_META: _json({"format": FORMAT, "kind": "state", **meta})})


def save_lost(directory: Path, raw: Mapping[str, bytes]) -> None:
    """Write what only the host saw of a guest that was lost (``look_at_lost``), as ``save_state`` does."""
    save_raw(directory, raw, lost=True)


def load_state(directory: Path, facts: KernelFacts, cache: ParseCache | None = None) -> GuestState:
    """Parse the files of a saved snapshot; ``cache`` is as in ``parse_state``.

    That of a lost guest has no boot id, and 0 as its uptime. Raises UsageError (no such snapshot), ParseError.
    """
    lost = _read_meta(directory, "state").get("lost") is True
    raw = {"boot_id": b"", "uptime": b"0"} if lost else {}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".txt", ".json") and path.name != _META:
            raw[path.stem] = _read(path, _MAX_FILE - sum(map(len, raw.values())))
    return parse_state(raw, facts, cache)


def save_facts(directory: Path, facts: KernelFacts) -> None:
    """Write ``facts`` as ``directory``, as ``save_state`` does: meta.json and config, vmcoreinfo, parameters text."""
    meta: dict[str, Any] = {
        "format": FORMAT,
        "kind": "facts",
        "arch": facts.arch,
        "release": facts.release,
        "cmdline": facts.cmdline,
        "page_size": facts.page_size,
        "memory_block_size": facts.memory_block_size,
        "unknown": [asdict(note) for note in facts.unknown],
    }
    parameters = {name.replace(".", "/parameters/", 1): value for name, value in facts.parameters.items()}
    files = {"parameters.txt": _lines(parameters, ":")}
    if facts.config is not None:
        files["config.txt"] = _lines({f"CONFIG_{name}": _quoted(value) for name, value in facts.config.items()}, "=")
    files["settings.txt"] = _lines(facts.files, ":")
    meta["image"] = {} if isinstance(facts.image, NotObserved) else dict(facts.image)
    if isinstance(facts.image, NotObserved):
        meta["no_image"] = facts.image.reason
    if isinstance(facts.vmcoreinfo, NotObserved):
        meta["no_vmcoreinfo"] = facts.vmcoreinfo.reason
    else:
        files["vmcoreinfo.txt"] = _lines(facts.vmcoreinfo, "=")
    _write(directory, files | {_META: _json(meta)})


def load_facts(directory: Path, arch: ArchSpec) -> KernelFacts:
    """Read saved facts of a kernel of ``arch``. Raises UsageError (no such facts, another architecture), ParseError."""
    meta = _read_meta(directory, "facts")
    if meta.get("arch") != arch.name:
        raise UsageError(f"{directory} was recorded on {meta.get('arch')}, not on {arch.name}")

    def text(name: str) -> str | None:
        path = directory / name
        return _read(path).decode(errors="replace") if os.path.lexists(path) else None

    config, note = text("config.txt"), text("vmcoreinfo.txt")
    try:
        return KernelFacts(
            arch=arch.name,
            release=str(meta["release"]),
            cmdline=str(meta["cmdline"]),
            page_size=_power(meta["page_size"], 1 << 16),
            memory_block_size=_power(meta["memory_block_size"], 1 << 40),
            config=None if config is None else parse_config(config),
            vmcoreinfo=NotObserved(str(meta.get("no_vmcoreinfo", "not saved")))
            if note is None
            else parse_vmcoreinfo(note),
            parameters=parse_parameters(text("parameters.txt") or ""),
            unknown=tuple(CODEC.load(meta.get("unknown", []), list[Unknown])),
            files=parse_settings(text("settings.txt") or ""),
            image={str(mark): bool(there) for mark, there in meta["image"].items()}
            if meta.get("image")
            else NotObserved(str(meta.get("no_image", "the kernel's image was not searched when this was saved"))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{directory / _META} is incomplete: {error!r}") from None


def _power(value: object, most: int) -> int:
    if type(value) is not int or not 4096 <= value <= most or value & (value - 1):
        raise ValueError(f"{str(value)[:40]} is not a power of two from 4096 to {most}")
    return value


def _quoted(value: str) -> str:
    if value in ("y", "m") or value.lstrip("-").isdecimal() or value[:2] in ("0x", "0X"):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _lines(values: Mapping[str, str], between: str) -> bytes:
    return "".join(f"{name}{between}{value}\n" for name, value in values.items()).encode()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        fresh.chmod(0o755)
        if directory.exists():
            # A rename cannot replace a directory that has files: move the old one aside, then delete it.
            old = fresh.with_name(f"{fresh.name}.old")
            os.rename(directory, old)
            os.rename(fresh, directory)
            shutil.rmtree(old)
        else:
            os.rename(fresh, directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _read(path: Path, limit: int = _MAX_FILE) -> bytes:
    try:
        return read_file(path, limit)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _read_meta(directory: Path, kind: str) -> dict[str, Any]:
    hint = "name a directory written by memhp run or memhp collect"
    if not os.path.lexists(directory / _META):
        raise UsageError(f"no saved {kind} in {directory}: it has no {_META}", hint=hint)
    try:
        meta = load_json(_read(directory / _META))
    except ValueError as error:
        raise UsageError(f"{directory / _META} is not JSON: {error}", hint=hint) from None
    if not isinstance(meta, dict) or meta.get("kind") != kind or meta.get("format") != FORMAT:
        raise UsageError(f"{directory} holds no {kind} of format {FORMAT}", hint=hint)
    return meta
