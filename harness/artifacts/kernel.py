# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel a guest boots: the user's Image, one of Debian's, or one built for this purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts import kernel_build
from harness.artifacts.apt import Package, fingerprints, unpack
from harness.artifacts.cache import Cache, hash_file, scratch
from harness.artifacts.debian import find_source, find_stock
from harness.artifacts.image import embedded_config, read_image, release_of, require_arch
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
from harness.artifacts.needs import require_bootable
from harness.artifacts.store import configs
from harness.config.build import OwnBuild
from harness.config.guest import GuestSpec
from harness.config.parts import KernelImage
from harness.config.selector import DEBIAN, IMAGE_PREFIX, PURPOSE, DebianName, is_debian_name, parse_kernel_name
from harness.deadline import Deadline
from harness.dotconfig import read_config
from harness.errors import ArtefactError, InfraError, UsageError
from harness.progress import Progress

#: part of the cache key: raise it when the same package is taken apart differently
RECIPE = "2"

_TOOLS_SECONDS = 60.0
#: where a package's kernel, its configuration and its modules may be, below its root; since Debian's linux 6.16-1 all
#: three are in one folder
_IMAGES = ("boot/vmlinu[xz]-*", "usr/lib/modules/*/vmlinu[xz]")
_CONFIGS = ("boot/config-{}", "usr/lib/modules/{}/config")
_TREES = ("usr/lib/modules/*/", "lib/modules/*/")


def kernel_of(spec: GuestSpec, arch: ArchSpec, progress: Progress) -> KernelImage:
    """The kernel that a guest is to boot: ``kernel`` with what the guest says of building it and of its modules."""
    return kernel(arch, spec.kernel, progress, spec.build, spec.modules)


def kernel(
    arch: ArchSpec,
    selector: str | None,
    progress: Progress,
    build: OwnBuild | None = None,
    modules: Path | None = None,
) -> KernelImage:
    """The kernel that ``selector`` names: a name of ``harness.config.selector`` (None: ``purpose``), or the path of an
    Image, or of a source tree, which is built as ``build`` says. ``modules`` is where those of an Image or a tree are.

    Raises UsageError for what is no kernel for ``arch``, or cannot boot a guest, ArtefactError if it cannot be fetched
    or built.
    """
    chosen = PURPOSE if selector is None else selector
    build = build or OwnBuild()
    path = Path(chosen)
    tree = not is_debian_name(chosen) and is_tree(path)
    if build.said and not tree:
        raise UsageError(
            f"{', '.join(build.said)}: only a kernel source tree is built to order, and --kernel {chosen} is none",
            hint="--kernel path/to/linux",
        )
    if modules is not None and is_debian_name(chosen):
        hint = "leave --modules out: memhp fetches or builds them with the kernel"
        raise UsageError(f"--modules: --kernel {chosen} has modules of its own", hint=hint)
    if tree:
        image = tree_kernel(arch, path, progress, build, modules)
    elif not is_debian_name(chosen):
        image = own_kernel(arch, path, progress, modules)
    else:
        name = parse_kernel_name(chosen)
        found = purpose_kernel if name.kind == PURPOSE else debian_kernel
        image = found(arch, name, progress)
    if image.usable is not None:
        remedy = "build it with what is missing" if tree or modules else "give another kernel, or build it with that"
        require_bootable(arch, image.usable, f"--kernel {chosen}", remedy)
    return image


def purpose_kernel(arch: ArchSpec, name: DebianName, progress: Progress) -> KernelImage:
    """The kernel built from a kernel source package of Debian's and the project's fragments, out of the cache once
    built."""
    flavours: Sequence[str] = name.flavours
    fragments = kernel_build.load_fragments(arch, configs("kernels"), flavours)
    debian, source = find_source(name, kernel_build.DEFAULT_SOURCE, progress)
    packages = debian.closure([source], progress, dependencies=False)
    version = packages[0].version
    inputs = {
        "recipe": f"{RECIPE} {kernel_build.RECIPE}",
        **{fragment.name: fragment.text_for(kernel_build.version_of(version)) for fragment in fragments},
        **fingerprints(packages),
    }
    cache = Cache.default()
    entry = "+".join((source, *flavours))
    log = cache.root / "logs" / f"kernel-{arch.name}-{entry}.log"

    def build(out: Path) -> None:
        kernel_build.require_tools(arch, Deadline(_TOOLS_SECONDS))
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
    """One of Debian's stock kernels, with the modules that a guest needs."""
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
    path = Cache.default().get("debian-kernel", f"{arch.name}-{first.name}", inputs, build, progress, what=what)
    return _from_cache(path, f"Debian's {first.name} {first.version}")


def own_kernel(arch: ArchSpec, path: Path, progress: Progress, modules: Path | None = None) -> KernelImage:
    """The user's own Image; one that is compressed is unpacked into the cache, for the firmware boots bare ones only.

    Raises UsageError if there is no such file, it is no Image, or one of another architecture, and for ``modules`` that
    are not its own.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no kernel {path}",
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

    place = Cache.default().get("own-kernel", arch.name, inputs, build, progress, what=f"what {path} takes")
    return KernelImage(
        image=place / "Image" if packed else path.absolute(),
        origin=str(path),
        release=release,
        config=config,
        modules=None if archive is None else place / "modules.cpio.gz",
        absent=frozenset() if config is None else absent_drivers(config, found),
    )


def take_apart(arch: ArchSpec, package: Package, tree: Path, out: Path) -> None:
    """Keep of an unpacked kernel package, or of all that one's parts together, its bare Image, config, release and the
    modules archive.

    Raises ArtefactError if it does not hold exactly one kernel for ``arch``.
    """
    images = sorted(path for pattern in _IMAGES for path in tree.glob(pattern))
    trees = sorted(path for pattern in _TREES for path in tree.glob(pattern) if path.is_dir())
    if len(images) != 1 or len(trees) != 1:
        raise ArtefactError(
            f"{package.name} holds {len(images)} kernels and {len(trees)} sets of modules, one of each was expected",
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
