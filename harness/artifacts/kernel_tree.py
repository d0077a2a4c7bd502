# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel built from the user's own source tree, as for a bisection or in daily work.

Without ``--own-config`` it gets the project's options, and the tree itself is not written to. The build output is kept
in a folder of the cache or in ``--build-dir``, so that the next build is incremental.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts.cache import Cache, hash_file, hold_lock
from harness.artifacts.kconfig_check import require_bootable, require_options
from harness.artifacts.kernel_build import KernelBuild, load_fragments, require_tools
from harness.artifacts.modules import WANTED, absent_drivers, built_tree, builtin_archive, find_modules, modules_archive
from harness.artifacts.toolchain import find_toolchain, used_compiler
from harness.config.guest_parts import KernelImage
from harness.config.own_build import OwnBuild
from harness.config.places import configs_dir
from harness.deadline import Deadline
from harness.dotconfig import read_config
from harness.errors import ArtefactError, UsageError
from harness.progress import Progress

#: how many recently built kernels of trees are kept
KEPT = 8
#: marks a build folder that memhp has configured: the .config there is not the user's
MARK = ".memhp"
#: the user's own .config while memhp builds with another one
_ASIDE = ".config.before-memhp"

_BUILD_SECONDS = 4 * 3600.0


def is_tree(path: Path) -> bool:
    """True for a kernel's source tree."""
    return (path / "Kconfig").is_file() and (path / "Makefile").is_file()


def tree_kernel(
    arch: ArchSpec, source: Path, progress: Progress, own: OwnBuild | None = None, modules: Path | None = None
) -> KernelImage:
    """Build the tree ``source`` for ``arch`` in its current state according to ``own``.

    The guest gets the modules in ``modules``, by default those of the build. Raises UsageError before anything is
    compiled if ``own`` cannot be satisfied, ArtefactError if the tree does not build.
    """
    own = own or OwnBuild()
    source = source.resolve()
    cache = Cache()
    chain = find_toolchain(arch, own.llvm, cache.root, source)
    require_tools(arch, cross=not own.llvm)
    what = f"the {arch.name} kernel of {source}"
    try:
        tree, work = _places(arch, source, own, cache)
        # Modules from the same build folder are built with the kernel.
        modules = None if modules is not None and modules.resolve() == tree else modules
        for folder in (cache.root / "locks", tree, work):
            folder.mkdir(parents=True, exist_ok=True)
        lock = hashlib.sha256(str(tree).encode()).hexdigest()[:16]
        with hold_lock(cache.root / "locks" / f"tree-{lock}", what, progress):
            if own.own_config and not own.llvm:
                # kbuild recompiles everything if the compiler's command changes.
                chain = used_compiler(tree, chain)
            fragments = () if own.own_config else load_fragments(arch, configs_dir() / "kernels")
            log = work / "log"
            log.write_bytes(b"")
            build = KernelBuild(arch, fragments, f"of {source}", work, log, progress, chain)
            return _TreeBuild(source, tree, own, modules, build).run(cache)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise ArtefactError(f"cannot build {what}: {error.strerror}{where}", hint="see MEMHP_CACHE") from error


def _places(arch: ArchSpec, source: Path, own: OwnBuild, cache: Cache) -> tuple[Path, Path]:
    """The folders for the build and its log; raises UsageError if it cannot be, or would overwrite the user's files."""
    dirty = (source / ".config").is_file() or (source / "include" / "config").is_dir()
    in_place = own.own_config and own.build_dir is None and (source / ".config").is_file()
    key = hashlib.sha256(str(source if own.build_dir is None else own.build_dir).encode()).hexdigest()[:16]
    kinds = (arch.name, *(["llvm"] if own.llvm else []), *(["own"] if own.own_config else []), key)
    work = cache.root / "trees" / "-".join(kinds)
    tree = source if in_place else (own.build_dir or work / "build")
    if tree == source and not own.own_config:
        raise UsageError(
            f"--build-dir {tree} is the source tree itself, whose .config memhp would overwrite",
            hint="use --own-config to build there with the tree's own .config, or name another folder",
        )
    if tree != source and dirty:
        hint = "use --own-config to build it there with its own .config, or clean it: make mrproper"
        raise UsageError(
            f"--kernel {source} is configured in place: kbuild cannot build it in another folder", hint=hint
        )
    configured, ours = (tree / ".config").is_file(), (tree / MARK).is_file()
    if not own.own_config and configured and own.build_dir is not None and not ours:
        raise UsageError(
            f"--build-dir {tree} has a .config that is not memhp's",
            hint="use --own-config to build with it unchanged, or name an empty folder",
        )
    if own.own_config and not configured:
        raise UsageError(
            f"--own-config: there is no .config in {own.build_dir or source}",
            hint="configure the tree first, or name its build folder: --build-dir DIR",
        )
    if own.own_config and (tree / _ASIDE).exists():
        raise UsageError(
            f"--own-config: a killed build left your own .config at {tree / _ASIDE}",
            hint=f"move it back to .config, or remove it to keep {tree / '.config'}",
        )
    return tree, work


@dataclass(frozen=True, slots=True)
class _TreeBuild:
    """One build of ``source`` in ``tree``."""

    source: Path
    tree: Path
    own: OwnBuild
    modules: Path | None
    build: KernelBuild

    def run(self, cache: Cache) -> KernelImage:
        deadline = Deadline(_BUILD_SECONDS)
        lines = [option.line for option in self.own.options]
        with tempfile.TemporaryDirectory(dir=self.build.work, prefix="out-") as name:
            out = Path(name)
            if self.own.own_config:
                with _own_config(self.tree, lines):
                    self.build.complete(self.source, self.tree, deadline)
                    self._check_and_compile(out, deadline)
            else:
                (self.tree / MARK).touch()
                self.build.configure(self.source, self.tree, deadline, strict=False, more=lines)
                self._check_and_compile(out, deadline)
            return self._keep(out, cache)

    def _check_and_compile(self, out: Path, deadline: Deadline) -> None:
        config = read_config((self.tree / ".config").read_text())
        require_options(self.own.options, config, self.source)
        require_bootable(self.build.arch, config, f"--kernel {self.source}", "-K turns options on")
        self.build.compile(self.source, self.tree, out, deadline, modules=self._builds_modules(config))

    def _builds_modules(self, config: dict[str, str]) -> bool:
        return self.modules is None and bool(absent_drivers(config, None))

    def _keep(self, out: Path, cache: Cache) -> KernelImage:
        """Copy the build output to a place that later builds of the tree do not change while a guest uses it."""
        config = read_config((out / "config").read_text())
        release = (out / "release").read_text().strip()
        found = None
        if self.modules is not None:
            found = find_modules(self.modules, release)
        elif self._builds_modules(config):
            found = built_tree(self.tree, f"--kernel {self.source}")
        archive = builtin_archive(release, config) if found is None else modules_archive(found, config)
        (out / "modules.cpio.gz").write_bytes(archive)
        names = sorted(path.name for path in out.iterdir())
        inputs = {name: hash_file(out / name) for name in names} | {"wanted": " ".join(WANTED)}

        def build(into: Path) -> None:
            for name in names:
                shutil.copyfile(out / name, into / name)
            cache.prune("tree-kernel", KEPT - 1)

        arch = self.build.arch.name
        what = f"the {arch} kernel of {self.source}"
        place = cache.get("tree-kernel", arch, inputs, build, self.build.progress, what=what)
        cache.use(place)
        lacking, origin = absent_drivers(config, found), f"built from {self.source}"
        return KernelImage(place / "Image", origin, release, config, place / "modules.cpio.gz", lacking)


@contextlib.contextmanager
def _own_config(tree: Path, lines: list[str]) -> Iterator[None]:
    """Extend the user's .config in ``tree`` with ``lines``, and restore it afterwards in any case."""
    config, aside = tree / ".config", tree / _ASIDE
    before = config.read_bytes()
    shutil.copy2(config, aside)
    try:
        if lines:
            config.write_bytes(before + "".join(f"{line}\n" for line in lines).encode())
        yield
    finally:
        # With the current time: kbuild must see that its output came from another .config.
        if config.read_bytes() != before:
            config.write_bytes(before)
        aside.unlink()
