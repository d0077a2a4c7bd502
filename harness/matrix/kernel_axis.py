# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels as an axis: a directory means all Images in it."""

from __future__ import annotations

from pathlib import Path

from harness.arch import arch_named
from harness.artifacts.image import read_image, require_arch
from harness.artifacts.kernel_build import load_fragments
from harness.config.places import configs_dir
from harness.config.selector import PURPOSE, is_debian_name, parse_kernel_name
from harness.errors import ConfigError, MemhpError, UsageError
from harness.matrix.matrix_file import Setting, label_of

#: files beside Images that are never Images
_NO_IMAGE = (".config", ".txt", ".map", ".json", ".md")


def expand(setting: Setting, arch: str, source: Path) -> tuple[Setting, ...]:
    """The kernels for ``arch`` of one value: every Image in a directory, otherwise the named kernel.

    Raises ConfigError for a directory without an Image for ``arch``, and for a flavour that ``arch`` lacks.
    """
    folder = Path(setting.value)
    if "/" not in setting.value or not folder.is_dir():
        _check_flavours(setting, arch, source)
        return (setting,)
    found = [
        Setting(f"{setting.text.rstrip('/')}/{path.name}", label_of(path.name), str(path), setting.line)
        for path in sorted(folder.iterdir())
        if _is_for(path, arch)
    ]
    if not found:
        raise ConfigError(
            f"{folder} holds no kernel for {arch}",
            file=source,
            line=setting.line,
            hint="put bare or compressed Images in it, one file each",
        )
    return tuple(found)


def _check_flavours(setting: Setting, arch: str, source: Path) -> None:
    if not is_debian_name(setting.value):
        return
    try:
        name = parse_kernel_name(setting.value)
        load_fragments(arch_named(arch), configs_dir() / "kernels", name.flavours)
    except UsageError as error:
        raise ConfigError(error.message, file=source, line=setting.line, hint=error.hint) from None


def _is_for(path: Path, arch: str) -> bool:
    if path.name.startswith(".") or path.suffix in _NO_IMAGE or not path.is_file():
        return False
    try:
        require_arch(str(path), read_image(path), arch_named(arch))
    except MemhpError:
        return False
    return True


def with_flavour(selector: str | None, flavour: str) -> str | None:
    """The selector of the same purpose-built kernel with one more flavour; None for a kernel with a fixed page size (an
    Image, a package), which is checked once it runs."""
    chosen = selector or PURPOSE
    if not is_debian_name(chosen) or parse_kernel_name(chosen).kind != PURPOSE:
        return None
    return f"{chosen}+{flavour}"
