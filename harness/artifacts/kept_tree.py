# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel tree that is kept between builds, so that a patch only rebuilds the files it changes.

::

    ROOT/trees/ARCH-SOURCE/source/     Debian's source with the current patch applied
    ROOT/trees/ARCH-SOURCE/build/      make's output
    ROOT/trees/ARCH-SOURCE/pristine/   the originals of the files that the current patch changes: if there are any when
                                       a tree is opened, an earlier build was interrupted
    ROOT/trees/ARCH-SOURCE/images/     the Image of each patch, and of the unpatched source
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.arch import ArchSpec
from harness.artifacts.apt import unpack
from harness.artifacts.building import PATCH
from harness.artifacts.cache import Cache, hold_lock, remove_tree
from harness.artifacts.debian import find_source
from harness.artifacts.kernel_build import (
    Fragment,
    KernelBuild,
    load_fragments,
    require_tools,
    version_of,
    version_of_tree,
)
from harness.config.places import configs_dir
from harness.config.selector import PURPOSE, parse_kernel_name
from harness.deadline import Deadline
from harness.errors import ArtefactError, ConfigError
from harness.progress import Progress

#: part of an Image's key: increase it when the same inputs are built differently
RECIPE = "1"

_PATCH_SECONDS = 60.0
_BUILD_SECONDS = 4 * 3600.0
_CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Patch:
    """A change of a kernel's source: ``diff`` is a unified diff for ``patch -p1``, which changes ``files`` of the tree.

    ``source`` is its file.
    """

    name: str
    source: Path
    diff: str
    files: tuple[str, ...]

    @property
    def content(self) -> str:
        """SHA-256 of the diff alone."""
        return hashlib.sha256(self.diff.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class KeptTree:
    """One tree, locked while it is open; ``package`` is its source package."""

    arch: ArchSpec
    package: str
    place: Path
    fragments: tuple[Fragment, ...]
    progress: Progress

    @property
    def source(self) -> Path:
        """The kernel's source."""
        return self.place / "source"

    @property
    def version(self) -> str:
        """The kernel's version, such as 7.3.4. Raises ArtefactError without a Makefile that gives it."""
        try:
            return version_of_tree(self.source)
        except ArtefactError as error:
            raise ArtefactError(error.message, hint=f"remove {self.place}: the next run recreates it") from error

    def image(self, bug: Patch | None) -> Path:
        """The Image with ``bug`` put back, or unpatched; built unless cached. Raises ConfigError, ArtefactError."""
        name = _CLEAN if bug is None else bug.name
        out = self.place / "images" / name
        wanted = self._key(bug)
        if not _says(out / "key", wanted):
            remove_tree(out)
            out.mkdir(parents=True)
            with self._patched(bug):
                self._build(name, out)
            (out / "key").write_text(wanted)
        return out / "Image"

    def restore(self) -> None:
        """Restore the files that a patch has changed, if any."""
        pristine = self.place / "pristine"
        for path in sorted(pristine.rglob("*")):
            target = self.source / path.relative_to(pristine)
            # The file needs a new time stamp, or make would not rebuild it.
            if path.is_file() and target.read_bytes() != path.read_bytes():
                target.write_bytes(path.read_bytes())
        remove_tree(pristine)

    @contextlib.contextmanager
    def _patched(self, bug: Patch | None) -> Iterator[None]:
        if bug is None:
            yield
            return
        self._keep(bug)
        try:
            self._apply(bug)
            yield
        finally:
            self.restore()

    def _keep(self, bug: Patch) -> None:
        coming = self.place / "pristine.new"
        remove_tree(coming)
        for name in bug.files:
            if not (self.source / name).is_file():
                raise self._misfit(bug, f"there is no {name}")
            (coming / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source / name, coming / name)
        coming.rename(self.place / "pristine")

    def _apply(self, bug: Patch) -> None:
        command = [*PATCH, "--reject-file=-"]
        deadline = Deadline(_PATCH_SECONDS)
        done = proc.run(command, cwd=self.source, stdin=bug.diff.encode(), deadline=deadline, check=False)
        if done.returncode != 0:
            raise self._misfit(bug, proc.tail(done.stdout, lines=10) or proc.tail(done.stderr, lines=10))

    def _misfit(self, bug: Patch, why: str) -> ConfigError:
        message = f"does not apply to {self.package} {self.version}: {why}"
        return ConfigError(message, file=bug.source, hint="bring it up to date with that source")

    def _build(self, name: str, out: Path) -> None:
        log = self.place / "log"
        log.write_bytes(b"")
        job = KernelBuild(self.arch, self.fragments, f"{self.version} ({name})", self.place, log, self.progress)
        build, configured = self.place / "build", hashlib.sha256(self._options().encode()).hexdigest()
        build.mkdir(exist_ok=True)
        deadline = Deadline(_BUILD_SECONDS)
        if not _says(self.place / "configured", configured):
            job.configure(self.source, build, deadline, strict=True)
            (self.place / "configured").write_text(configured)
        job.compile(self.source, build, out, deadline)

    def _options(self) -> str:
        return "".join(fragment.text_for(version_of(self.version)) for fragment in self.fragments)

    def _key(self, bug: Patch | None) -> str:
        parts = (RECIPE, self.version, self._options(), "" if bug is None else bug.content)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _says(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def place_of(arch: ArchSpec, package: str) -> Path:
    """The folder of a source package's tree."""
    return Cache().root / "trees" / f"{arch.name}-{package}"


@contextlib.contextmanager
def kept_tree(arch: ArchSpec, package: str, progress: Progress) -> Iterator[KeptTree]:
    """The locked tree of Debian's source ``package``, unpatched; raises ArtefactError without it or build tools."""
    require_tools(arch)
    place, what = place_of(arch, package), f"the {arch.name} tree of {package}"
    tree = KeptTree(arch, package, place, load_fragments(arch, configs_dir() / "kernels"), progress)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with hold_lock(Cache().root / "locks" / f"tree-{place.name}", what, progress):
            if not tree.source.is_dir():
                _unpack(tree)
            tree.restore()
            yield tree
    except OSError as error:
        raise ArtefactError(
            f"cannot keep {what}: {error.strerror}: {error.filename}", hint="see MEMHP_CACHE"
        ) from error


def _unpack(tree: KeptTree) -> None:
    coming = tree.place / "coming"
    remove_tree(coming)
    coming.mkdir()
    debian, package = find_source(parse_kernel_name(f"{PURPOSE}:{tree.package}"), tree.package, tree.progress)
    unpack(debian.download([package], tree.progress, dependencies=False), coming / "package", tree.progress)
    job = KernelBuild(tree.arch, tree.fragments, tree.package, coming, tree.place / "log", tree.progress)
    job.unpack(coming / "package", Deadline(_BUILD_SECONDS)).rename(tree.source)
    remove_tree(coming)
