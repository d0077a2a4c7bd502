# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel built from the user's own source tree, with the project's options: what a bisection boots.

The tree itself is not written to. What was built stays in the cache, so that the next commit builds only what changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts.cache import Cache, hold_lock
from harness.artifacts.image import parse_config
from harness.artifacts.kernel_build import KernelBuild, load_fragments, require_tools
from harness.artifacts.modules import builtin_archive
from harness.artifacts.store import configs
from harness.config.parts import KernelImage
from harness.deadline import Deadline
from harness.errors import ArtefactError
from harness.progress import Progress

_TOOLS_SECONDS = 60.0


def is_tree(path: Path) -> bool:
    """True for a kernel's source tree."""
    return (path / "Kconfig").is_file() and (path / "Makefile").is_file()


def tree_kernel(arch: ArchSpec, source: Path, progress: Progress) -> KernelImage:
    """Build the tree ``source`` for ``arch``, as it stands now; raises ArtefactError if it does not build."""
    require_tools(arch, Deadline(_TOOLS_SECONDS))
    source = source.resolve()
    cache = Cache.default()
    place = cache.root / "trees" / f"{arch.name}-{hashlib.sha256(str(source).encode()).hexdigest()[:16]}"
    build, out = place / "build", place / "out"
    what = f"the {arch.name} kernel of {source}"
    try:
        for folder in (cache.root / "locks", build, out):
            folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(cache.root / "locks" / f"tree-{place.name}", what, progress):
            job = KernelBuild(
                arch, load_fragments(arch, configs("kernels")), f"of {source}", place, place / "log", progress
            )
            job.log.write_bytes(b"")
            job.make(source, build, out, strict=False)
            config = parse_config((out / "config").read_text())
            release = (out / "release").read_text().strip()
            (out / "modules.cpio.gz").write_bytes(builtin_archive(release, config))
    except OSError as error:
        raise ArtefactError(f"cannot build {what}: {error.strerror}", hint="see MEMHP_CACHE") from error
    return KernelImage(out / "Image", f"built from {source}", release, config, out / "modules.cpio.gz")
