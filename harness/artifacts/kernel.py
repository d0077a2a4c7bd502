# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that a guest boots: the user's Image, a Debian kernel, or the purpose-built one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts import kernel_build
from harness.artifacts.apt import fingerprints, unpack
from harness.artifacts.apt_words import Package
from harness.artifacts.cache import Cache, hash_file, scratch
from harness.artifacts.debian import find_source, find_stock
from harness.artifacts.image import embedded_config, read_image, release_of, require_arch
from harness.artifacts.kconfig_check import require_bootable
from harness.artifacts.kernel_tree import is_tree, tree_kernel
from harness.artifacts.modules import (
    BUILT_IN,
    WANTED,
    absent_drivers,
    builtin_archive,
    find_modules,
    modules_archive,
    release_tree,
)
from harness.config.guest import GuestSpec
from harness.config.guest_parts import KernelImage
from harness.config.own_build import OwnBuild
from harness.config.places import configs_dir
from harness.config.selector import DEBIAN, IMAGE_PREFIX, PURPOSE, DebianName, is_debian_name, parse_kernel_name
from harness.dotconfig import read_config
from harness.errors import ArtefactError, InfraError, UsageError
from harness.progress import Progress

#: part of the cache key: increase it when the same package is unpacked differently
RECIPE = "2"

#: possible paths of a package's kernel, configuration and modules below its root; since Debian's linux 6.16-1 all three
#: are in one folder
_IMAGES = ("boot/vmlinu[xz]-*", "usr/lib/modules/*/vmlinu[xz]")
_CONFIGS = ("boot/config-{}", "usr/lib/modules/{}/config")
_TREES = ("usr/lib/modules/*/", "lib/modules/*/")


def kernel_of(spec: GuestSpec, arch: ArchSpec, progress: Progress) -> KernelImage:
    """The kernel that a guest boots: ``kernel`` with the guest's settings for building it and for its modules."""
    return kernel(arch, spec.kernel, progress, spec.build, spec.modules)


def kernel(
    arch: ArchSpec, selector: str | None, progress: Progress, build: OwnBuild | None = None, modules: Path | None = None
) -> KernelImage:
    """The kernel named by ``selector``: a name of ``harness.config.selector`` (None: ``purpose``), the path of an
    Image, or that of a source tree, which is built according to ``build``. ``modules`` is the path of an Image's or
    tree's modules.

    Raises UsageError for anything but a kernel for ``arch`` that can boot a guest, ArtefactError if it cannot be
    fetched or built.
    """
    chosen = PURPOSE if selector is None else selector
    build = build or OwnBuild()
    path = Path(chosen)
    tree = not is_debian_name(chosen) and is_tree(path)
    if build.said and not tree:
        raise UsageError(
            f"{', '.join(build.said)}: these options need a kernel source tree, and --kernel {chosen} is not one",
            hint="--kernel path/to/linux",
        )
    if modules is not None and is_debian_name(chosen):
        hint = "omit --modules: memhp fetches or builds them with the kernel"
        raise UsageError(f"--modules: --kernel {chosen} brings its own modules", hint=hint)
    if tree:
        image = tree_kernel(arch, path, progress, build, modules)
    elif not is_debian_name(chosen):
        image = own_kernel(arch, path, progress, modules)
    else:
        name = parse_kernel_name(chosen)
        found = purpose_kernel if name.kind == PURPOSE else debian_kernel
        image = found(arch, name, progress)
    if image.usable is not None:
        change = "enable these options"
        remedy = f"{change} and build it again" if tree or modules else f"use another kernel, or {change}"
        require_bootable(arch, image.usable, f"--kernel {chosen}", remedy)
    return image


def purpose_kernel(arch: ArchSpec, name: DebianName, progress: Progress) -> KernelImage:
    """The kernel built from a Debian kernel source package and the project's fragments, cached once built."""
    flavours: Sequence[str] = name.flavours
    fragments = kernel_build.load_fragments(arch, configs_dir() / "kernels", flavours)
    debian, source = find_source(name, kernel_build.DEFAULT_SOURCE, progress)
    packages = debian.closure([source], progress, dependencies=False)
    version = packages[0].version
    inputs = {
        "recipe": f"{RECIPE} {kernel_build.RECIPE}",
        **{fragment.name: fragment.text_for(kernel_build.version_of(version)) for fragment in fragments},
        **fingerprints(packages),
    }
    cache = Cache()
    entry = "+".join((source, *flavours))
    log = cache.root / "logs" / f"kernel-{arch.name}-{entry}.log"

    def build(out: Path) -> None:
        kernel_build.require_tools(arch)
        work = scratch(out)
        unpack(debian.download([source], progress, dependencies=False), work / "package", progress)
        log.parent.mkdir(exist_ok=True)
        log.write_bytes(b"")
        job = kernel_build.KernelBuild(arch, fragments, version, work, log, progress)
        job.run(work / "package", out)
        config = read_config((out / "config").read_text())
        release = (out / "release").read_text().strip()
        (out / "modules.cpio.gz").write_bytes(builtin_archive(release, config))
        log.unlink()

    kind = "".join(f" +{flavour}" for flavour in flavours)
    what = f"the purpose-built {arch.name} kernel {version}{kind}"
    path = cache.get("kernel", f"{arch.name}-{entry}", inputs, build, progress, what=what)
    return _from_cache(path, f"purpose-built from {source} {version}{kind}")


def debian_kernel(arch: ArchSpec, name: DebianName, progress: Progress) -> KernelImage:
    """A stock Debian kernel with the modules that a guest needs."""
    source, names = find_stock(arch, name, progress)
    packages = source.closure(names, progress, dependencies=False)
    inputs = {"recipe": RECIPE, "modules": " ".join(WANTED), **fingerprints(packages)}
    first = next(package for package in packages if package.name == names[0])

    def build(out: Path) -> None:
        work = scratch(out)
        unpack(source.download(names, progress, dependencies=False), work, progress)
        with progress.task("Packing the modules that a guest needs"):
            take_apart(arch, first, work, out)

    what = f"Debian's {first.name}"
    path = Cache().get("debian-kernel", f"{arch.name}-{first.name}", inputs, build, progress, what=what)
    return _from_cache(path, f"Debian's {first.name} {first.version}")


def own_kernel(arch: ArchSpec, path: Path, progress: Progress, modules: Path | None = None) -> KernelImage:
    """The user's own Image; a compressed one is unpacked into the cache, because the firmware only boots bare Images.

    Raises UsageError if the file is missing, is not an Image or is one for another architecture, and for ``modules``
    that do not match it.
    """
    if not path.is_file():
        raise UsageError(
            f"no such kernel: {path}",
            hint=f"give a path to an Image, '{DEBIAN}', '{PURPOSE}', or a package {IMAGE_PREFIX}…",
        )
    data = read_image(path)
    require_arch(str(path), data, arch)
    config, release = embedded_config(data), release_of(data)
    packed = path.stat().st_size != len(data)
    found = None if modules is None else find_modules(modules, release)
    archive = None
    if found is not None:
        archive = modules_archive(found, config)
    elif config is not None and release is not None:
        archive = builtin_archive(release, config)
    inputs = {"recipe": RECIPE, "image": hash_file(path), "drivers": " ".join(BUILT_IN)}
    if found is not None and archive is not None:
        inputs["modules"] = hashlib.sha256(archive).hexdigest()

    def build(out: Path) -> None:
        if packed:
            (out / "Image").write_bytes(data)
        if archive is not None:
            (out / "modules.cpio.gz").write_bytes(archive)

    place = Cache().get("own-kernel", arch.name, inputs, build, progress, what=f"the parts of {path}")
    archived = None if archive is None else place / "modules.cpio.gz"
    absent = frozenset() if config is None else absent_drivers(config, found)
    if packed:
        return KernelImage(place / "Image", str(path), release, config, archived, absent, path.absolute())
    return KernelImage(path.absolute(), str(path), release, config, archived, absent)


def take_apart(arch: ArchSpec, package: Package, tree: Path, out: Path) -> None:
    """Extract Image, config, release and modules archive from an unpacked kernel package, or all of its parts together.

    Raises ArtefactError if it does not hold exactly one kernel for ``arch``.
    """
    images = sorted(path for pattern in _IMAGES for path in tree.glob(pattern))
    trees = sorted(path for pattern in _TREES for path in tree.glob(pattern) if path.is_dir())
    if len(images) != 1 or len(trees) != 1:
        raise ArtefactError(
            f"{package.name} holds {len(images)} kernels and {len(trees)} sets of modules, expected one of each",
            hint=f"name another package, or '{DEBIAN}'",
        )
    data = read_image(images[0])
    require_arch(package.name, data, arch)
    release = trees[0].name
    config = next((path for place in _CONFIGS if (path := tree / place.format(release)).is_file()), None)
    if config is None:
        raise ArtefactError(f"{package.name} holds no configuration of {release}", hint="name another package")
    (out / "Image").write_bytes(data)
    (out / "config").write_bytes(config.read_bytes())
    (out / "release").write_text(f"{release}\n")
    found = release_tree(trees[0], package.name)
    (out / "modules.cpio.gz").write_bytes(modules_archive(found, read_config(config.read_text())))


def _from_cache(path: Path, origin: str) -> KernelImage:
    try:
        config = read_config((path / "config").read_text())
        release = (path / "release").read_text().strip()
    except OSError as error:
        raise InfraError(f"cannot read {path}: {error.strerror}") from error
    return KernelImage(path / "Image", origin, release, config, path / "modules.cpio.gz")
