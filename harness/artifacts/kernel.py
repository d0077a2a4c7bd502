# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel a guest boots: the user's Image, one of Debian's, or one built for this purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts import kernel_build
from harness.artifacts.apt import Package, PrivateApt, fingerprints, unpack
from harness.artifacts.cache import Cache, hash_file, scratch
from harness.artifacts.image import embedded_config, parse_config, read_image, release_of, require_arch
from harness.artifacts.kernel_tree import is_tree, tree_kernel
from harness.artifacts.modules import BUILT_IN, WANTED, builtin_archive, modules_archive
from harness.artifacts.store import apt, configs, host_arch
from harness.config.parts import KernelImage
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError, UsageError
from harness.progress import Progress

#: part of the cache key: raise it when the same package is taken apart differently
RECIPE = "2"

_PURPOSE = "purpose"
_DEBIAN = "debian"
_PACKAGE_PREFIX = "linux-image-"
_TOOLS_SECONDS = 60.0
#: meta-package, then the package of one version, then its unsigned twin
_STEPS = 3


def kernel(arch: ArchSpec, selector: str | None, progress: Progress) -> KernelImage:
    """The kernel that ``selector`` names.

    None or ``purpose``: built from Debian's source of the stable suite's kernel; ``purpose:PACKAGE``: from another
    source package, backports included; either with ``+FLAVOUR``, a fragment more (``purpose+16k``); ``debian``: the
    suite's own kernel; ``linux-image-…``: that package; anything else: the path of an Image, or of a source tree to
    build. Raises UsageError for what is no kernel
    for ``arch``, ArtefactError if it cannot be fetched or built.
    """
    chosen, *flavours = (selector or _PURPOSE).split("+")
    if chosen == _PURPOSE:
        return purpose_kernel(arch, kernel_build.DEFAULT_SOURCE, progress, flavours)
    if chosen.startswith(f"{_PURPOSE}:"):
        return purpose_kernel(arch, chosen.partition(":")[2], progress, flavours)
    assert selector is not None
    if is_tree(Path(selector)):
        return tree_kernel(arch, Path(selector), progress)
    if selector == _DEBIAN or selector.startswith(_PACKAGE_PREFIX):
        return debian_kernel(arch, arch.kernel_package if selector == _DEBIAN else selector, progress)
    return own_kernel(arch, Path(selector), progress)


def purpose_kernel(arch: ArchSpec, source: str, progress: Progress, flavours: Sequence[str] = ()) -> KernelImage:
    """The kernel built from the Debian package ``source`` and the project's fragments, out of the cache once built."""
    if not source.startswith("linux-source-"):
        raise UsageError(
            f"{source!r} is not a kernel source package", hint=f"for example {_PURPOSE}:{kernel_build.DEFAULT_SOURCE}"
        )
    fragments = kernel_build.load_fragments(arch, configs("kernels"), flavours)
    # The release's own kernel is in no backports: it need not read their lists.
    debian = apt(host_arch(), backports=source != kernel_build.DEFAULT_SOURCE)
    packages = debian.closure([source], progress, dependencies=False)
    version = packages[0].version
    inputs = {
        "recipe": f"{RECIPE} {kernel_build.RECIPE}",
        **{fragment.name: fragment.text for fragment in fragments},
        **fingerprints(packages),
    }
    cache = Cache.default()
    name = "+".join((source, *flavours))
    log = cache.root / "logs" / f"kernel-{arch.name}-{name}.log"

    def build(out: Path) -> None:
        kernel_build.require_tools(arch, Deadline(_TOOLS_SECONDS))
        work = scratch(out)
        unpack(debian.download([source], progress, dependencies=False), work / "package", progress)
        log.parent.mkdir(exist_ok=True)
        log.write_bytes(b"")
        job = kernel_build.KernelBuild(arch, fragments, version, work, log, progress)
        job.run(work / "package", out)
        config = parse_config((out / "config").read_text())
        release = (out / "release").read_text().strip()
        (out / "modules.cpio.gz").write_bytes(builtin_archive(release, config))
        log.unlink()

    kind = "".join(f" +{flavour}" for flavour in flavours)
    what = f"the purpose-built {arch.name} kernel {version}{kind}"
    path = cache.get("kernel", f"{arch.name}-{name}", inputs, build, progress, what=what)
    return _from_cache(path, f"purpose-built from {source} {version}{kind}")


def debian_kernel(arch: ArchSpec, package: str, progress: Progress) -> KernelImage:
    """A kernel package of Debian's, or what a meta-package of kernels leads to, with the modules that a guest needs."""
    source, name = _find_package(arch, package, progress)
    packages = source.closure([name], progress, dependencies=False)
    inputs = {"recipe": RECIPE, "modules": " ".join(WANTED), **fingerprints(packages)}

    def build(out: Path) -> None:
        work = scratch(out)
        unpack(source.download([name], progress, dependencies=False), work, progress)
        with progress.task("Packing the modules that a guest needs"):
            take_apart(arch, packages[0], work, out)

    what = f"Debian's {name}"
    path = Cache.default().get("debian-kernel", f"{arch.name}-{name}", inputs, build, progress, what=what)
    return _from_cache(path, f"Debian's {name} {packages[0].version}")


def own_kernel(arch: ArchSpec, path: Path, progress: Progress) -> KernelImage:
    """The user's own Image; one that is compressed is unpacked into the cache, for the firmware boots bare ones only.

    Raises UsageError if there is no such file, it is no Image, or one of another architecture.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no kernel {path}",
            hint=f"give a path to an Image, '{_DEBIAN}', '{_PURPOSE}', or a package {_PACKAGE_PREFIX}…",
        )
    data = read_image(path)
    require_arch(str(path), data, arch)
    config, release = embedded_config(data), release_of(data)
    packed = path.stat().st_size != len(data)
    inputs = {"recipe": RECIPE, "image": hash_file(path), "drivers": " ".join(BUILT_IN)}

    def build(out: Path) -> None:
        if packed:
            (out / "Image").write_bytes(data)
        if config is not None and release is not None:
            (out / "modules.cpio.gz").write_bytes(builtin_archive(release, config))

    place = Cache.default().get("own-kernel", arch.name, inputs, build, progress, what=f"what {path} takes")
    modules = place / "modules.cpio.gz"
    return KernelImage(
        image=place / "Image" if packed else path.absolute(),
        origin=str(path),
        release=release,
        config=config,
        modules=modules if modules.is_file() else None,
    )


def take_apart(arch: ArchSpec, package: Package, tree: Path, out: Path) -> None:
    """Keep of an unpacked kernel package its bare Image, config, release and the modules archive.

    Raises ArtefactError if it does not hold exactly one kernel for ``arch``.
    """
    images = sorted(tree.glob("boot/vmlinu[xz]-*"))
    trees = sorted(path for path in (*tree.glob("usr/lib/modules/*"), *tree.glob("lib/modules/*")) if path.is_dir())
    if len(images) != 1 or len(trees) != 1:
        raise ArtefactError(
            f"{package.name} holds {len(images)} kernels and {len(trees)} sets of modules, one of each was expected",
            hint=f"name another package, or '{_DEBIAN}'",
        )
    data = read_image(images[0])
    require_arch(package.name, data, arch)
    release = trees[0].name
    (out / "Image").write_bytes(data)
    (out / "config").write_bytes((tree / "boot" / f"config-{release}").read_bytes())
    (out / "release").write_text(f"{release}\n")
    (out / "modules.cpio.gz").write_bytes(modules_archive(trees[0]))


def _find_package(arch: ArchSpec, wanted: str, progress: Progress) -> tuple[PrivateApt, str]:
    """The state and the name of the package that really holds the Image.

    A meta-package depends on it. Where Debian signs kernels, an unsigned twin has the same Image.
    """
    source, name = apt(arch.name), wanted
    try:
        source.closure([name], progress, dependencies=False)
    except ArtefactError:
        source = apt(arch.name, backports=True)
        source.closure([name], progress, dependencies=False)
    for _ in range(_STEPS):
        images = [other for other in source.depends(name, progress) if other.startswith(_PACKAGE_PREFIX)]
        if not images:
            break
        name = images[0]
    return source, name


def _from_cache(path: Path, origin: str) -> KernelImage:
    try:
        config: Mapping[str, str] = parse_config((path / "config").read_text())
        release = (path / "release").read_text().strip()
    except OSError as error:
        raise InfraError(f"cannot read {path}: {error.strerror}") from error
    return KernelImage(path / "Image", origin, release, config, path / "modules.cpio.gz")
