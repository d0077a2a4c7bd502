# SPDX-License-Identifier: GPL-2.0-or-later
"""The purpose-built kernel: Debian's kernel source, tinyconfig, and the fragments under ``configs/kernels``.

Four and a half minutes on two cores for arm64; needs 2.5 GB of disk while it builds and leaves 20 MB.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ArchSpec
from harness.artifacts.building import HostNeed, clean_environment, host_needs, require_packages, run_step
from harness.artifacts.layouts import LayoutsBuild
from harness.artifacts.toolchain import Toolchain, cross_gcc
from harness.deadline import Deadline
from harness.dotconfig import read_config
from harness.errors import ArtefactError, UsageError
from harness.progress import Progress, Task
from harness.qemu.machine_spec import LAYOUTS

#: the source package of the stable suite's long-term kernel
DEFAULT_SOURCE = "linux-source-6.12"
#: part of the cache key: increase it when the same inputs are built differently
RECIPE = "3"

#: host requirements for building a kernel, besides a compiler for the architecture
HOST_NEEDS = host_needs(
    {"make": "make", "gcc": "cc", "flex": "flex", "bison": "bison", "bc": "bc", "perl": "perl", "xz-utils": "xz"},
    headers={"libc6-dev": "stdio.h", "libssl-dev": "openssl/opensslv.h", "libelf-dev": "libelf.h"},
)

_TOOLS_SECONDS = 60.0
_BUILD_SECONDS = 4 * 3600.0
#: lines that make prints while it builds an Image with these fragments, measured on 6.12
_EXPECTED_LINES = 2000
_OPTION = re.compile(r"CONFIG_(\w+)=(.+)", re.ASCII)
_OPTIONAL = re.compile(r"# optional(?: (?P<when>before|since) (?P<major>\d+)\.(?P<minor>\d+))?")
_ONLY = re.compile(r"# only (?P<when>before|since) (?P<major>\d+)\.(?P<minor>\d+)")
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", re.M)

#: a kernel's major and minor number
Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Fragment:
    """Part of a configuration. Kernel versions know different options: those in a paragraph that begins with
    ``# optional`` may be rejected, with ``# optional before 6.11`` or ``# optional since 7.2`` by those versions only.
    A paragraph that begins with ``# only before 6.9`` applies to those versions only.
    """

    name: str
    text: str

    def text_for(self, version: Version) -> str:
        """The text for a kernel of ``version``: all but the paragraphs for other versions."""
        paragraphs = self.text.split("\n\n")
        kept = [part for part in paragraphs if (only := _ONLY.match(part)) is None or _applies(only, version)]
        return "\n\n".join(kept).rstrip("\n") + "\n"

    def options(self, version: Version) -> dict[str, str | None]:
        """Every option without ``CONFIG_`` and its required final value: ``n`` for one that must be off, None if a
        kernel of ``version`` may have any value."""
        wanted: dict[str, str | None] = {}
        optional = False
        for line in self.text_for(version).splitlines():
            if not line.strip():
                optional = False
            elif (comment := _OPTIONAL.match(line)) is not None:
                optional = comment["when"] is None or _applies(comment, version)
            elif (match := _OPTION.fullmatch(line.strip())) is not None:
                wanted[match[1]] = None if optional else match[2].strip('"')
        return wanted


def _applies(comment: re.Match[str], version: Version) -> bool:
    limit = (int(comment["major"]), int(comment["minor"]))
    return version < limit if comment["when"] == "before" else version >= limit


def version_of(text: str) -> Version:
    """Major and minor number of a kernel or package version such as ``6.12.117-1``; raises ArtefactError."""
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ArtefactError(f"{text!r} is not a kernel version")
    return int(match[1]), int(match[2])


def version_of_tree(source: Path) -> str:
    """The version that a kernel's Makefile gives; raises ArtefactError."""
    makefile = source / "Makefile"
    found = dict(_VERSION.findall(makefile.read_text())) if makefile.is_file() else {}
    if len(found) != 3:
        raise ArtefactError(
            f"{source} is not a kernel source tree: no VERSION, PATCHLEVEL and SUBLEVEL in its Makefile"
        )
    return ".".join(found[name] for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


def is_usual(entry: str, arch: ArchSpec) -> bool:
    """Whether ``entry`` is the cache entry of the kernel that a guest for ``arch`` boots by default."""
    return entry.rpartition("-")[0] == f"{arch.name}-{DEFAULT_SOURCE}"


def known_flavours(arch: ArchSpec, folder: Path) -> dict[str, Path]:
    """The flavours that a kernel for ``arch`` can have, sorted: ``16k`` is ``arm64+16k.config``, ``debug`` is
    ``common+debug.config``."""
    found = {}
    for path in folder.glob("*+*.config"):
        owner, flavour = path.stem.split("+", 1)
        if owner in ("common", arch.name):
            found[flavour] = path
    return dict(sorted(found.items()))


def load_fragments(arch: ArchSpec, folder: Path, flavours: Sequence[str] = ()) -> tuple[Fragment, ...]:
    """The fragments for ``arch`` in the order in which they apply: the common ones, the architecture's, the flavours'.

    Raises UsageError for a flavour that ``arch`` lacks, ArtefactError if a fragment cannot be read.
    """
    known = known_flavours(arch, folder)
    for flavour in flavours:
        if flavour not in known:
            hint = f"known: {', '.join(known) or 'none'}"
            raise UsageError(f"unknown flavour of the {arch.name} kernel: {flavour!r}", hint=hint)
    names = ["common.config", f"{arch.name}.config", *(known[flavour].name for flavour in flavours)]
    try:
        return tuple(Fragment(name, (folder / name).read_text()) for name in names)
    except OSError as error:
        raise ArtefactError(f"cannot read {error.filename}: {error.strerror}") from error


def lost_options(config: Mapping[str, str], fragments: tuple[Fragment, ...], version: Version) -> list[str]:
    """The required options that ``config`` does not set as required, as ``CONFIG_X=y``; later fragments win."""
    wanted = {name: value for fragment in fragments for name, value in fragment.options(version).items()}
    return [
        f"CONFIG_{name}={value}"
        for name, value in wanted.items()
        if value is not None and config.get(name, "n") != value
    ]


def require_tools(arch: ArchSpec, *, cross: bool = True) -> None:
    """Raise ArtefactError, naming what to install, if the host lacks anything for building for ``arch``; with
    ``cross``, the cross compiler as well."""
    compiler = HostNeed(f"gcc-{arch.triplet.replace('_', '-')}", program=f"{arch.triplet}-gcc")
    require_packages("a kernel", (*HOST_NEEDS, compiler) if cross else HOST_NEEDS, Deadline(_TOOLS_SECONDS))


@dataclass(frozen=True, slots=True)
class KernelBuild:
    """One build in ``work``, a scratch folder; every command and its output go to ``log``."""

    arch: ArchSpec
    fragments: tuple[Fragment, ...]
    version: str
    work: Path
    log: Path
    progress: Progress
    chain: Toolchain | None = None

    def run(self, package: Path, out: Path) -> None:
        """Build from the unpacked source ``package`` and leave Image, config and release in ``out``.

        With debug info the unstripped ``vmlinux`` is left there too: debuggers look for it beside the Image. Raises
        ArtefactError for required options that were not accepted, or with the last lines of a failed step.
        """
        deadline = Deadline(_BUILD_SECONDS)
        source, tree = self.unpack(package, deadline), self.work / "build"
        tree.mkdir()
        self.configure(source, tree, deadline, strict=True)
        self.compile(source, tree, out, deadline)

    def compile(self, source: Path, tree: Path, out: Path, deadline: Deadline, *, modules: bool = False) -> None:
        """Build the configured kernel, incrementally, with ``modules`` its modules, too; leave its files in ``out``.

        Those are as for ``run``, and the layouts of the kernel's types if they can be made.
        """
        targets = ["Image", "modules"] if modules else ["Image"]
        with self.progress.task(f"Building the {self.arch.name} kernel {self.version}", _EXPECTED_LINES) as task:
            self._make(source, tree, deadline, f"-j{os.cpu_count() or 1}", *targets, task=task)
        shutil.copyfile(tree / self.arch.image, out / "Image")
        shutil.copyfile(tree / ".config", out / "config")
        shutil.copyfile(tree / "include" / "config" / "kernel.release", out / "release")
        for name in ("vmlinux", "System.map", LAYOUTS):
            (out / name).unlink(missing_ok=True)
        config = read_config((out / "config").read_text())
        if config.get("KALLSYMS_ALL") != "y" and (tree / "System.map").is_file():
            shutil.copyfile(tree / "System.map", out / "System.map")
        if config.get("DEBUG_INFO") == "y":
            shutil.copyfile(tree / "vmlinux", out / "vmlinux")
        if config.get("DEBUG_INFO_BTF") != "y":
            self._make_layouts(tree, out, deadline)

    def _make_layouts(self, tree: Path, out: Path, deadline: Deadline) -> None:
        try:
            LayoutsBuild(self.arch, tree, self.work, self.log, self._environment()).run(out, deadline)
        except ArtefactError as error:
            why = error.message.partition("\n")[0].rstrip(":")
            self.progress.say(f"memhp will see less in this kernel's memory: {why} ({error.hint})")

    def unpack(self, package: Path, deadline: Deadline) -> Path:
        """Unpack the source in ``package`` into ``work``; raises ArtefactError."""
        archives = sorted(package.glob("usr/src/linux-source-*.tar.*"))
        if len(archives) != 1:
            raise ArtefactError(f"the source package holds {len(archives)} archives, expected one")
        source = self.work / "source"
        source.mkdir()
        with self.progress.task("Unpacking the kernel's source"):
            self._run("unpacking", deadline, "tar", "-C", str(source), "--strip-components=1", "-xf", str(archives[0]))
        return source

    def configure(
        self, source: Path, tree: Path, deadline: Deadline, *, strict: bool, more: Sequence[str] = ()
    ) -> None:
        """Configure from the fragments alone, followed by ``more``, lines of a .config.

        Without ``strict``, options that were not accepted are ignored: another version may not know them.
        """
        version = version_of(version_of_tree(source))
        with self.progress.task(f"Configuring the {self.arch.name} kernel {self.version}"):
            self._make(source, tree, deadline, "tinyconfig")
            with (tree / ".config").open("a") as config:
                for fragment in self.fragments:
                    config.write(fragment.text_for(version))
                config.writelines(f"{line}\n" for line in more)
            self.complete(source, tree, deadline)
        if not strict:
            return
        lost = lost_options(read_config((tree / ".config").read_text()), self.fragments, version)
        if lost:
            raise ArtefactError(
                f"kernel {self.version} for {self.arch.name} did not accept {', '.join(lost)}",
                hint="add their dependencies, or put them below a line '# optional' in configs/kernels",
            )

    def complete(self, source: Path, tree: Path, deadline: Deadline) -> None:
        """Let Kconfig complete the .config in ``tree``."""
        self._make(source, tree, deadline, "olddefconfig")

    def _make(self, source: Path, tree: Path, deadline: Deadline, *arguments: str, task: Task | None = None) -> None:
        chain = self.chain or cross_gcc(self.arch)
        # A tree that was configured in place rejects any O=, even its own folder.
        place = () if tree == source else (f"O={tree}",)
        names = (*place, f"ARCH={self.arch.kernel_arch}", *chain.words)
        self._run("make", deadline, "make", "-C", str(source), *names, *arguments, task=task)

    def _run(self, what: str, deadline: Deadline, *command: str, task: Task | None = None) -> None:
        def on_line(line: str) -> None:
            if task is not None:
                task.advance()
                task.update(note=line.strip().rpartition(" ")[2])

        run_step(f"the kernel: {what}", command, self.log, deadline, env=self._environment(), on_line=on_line)

    def _environment(self) -> dict[str, str]:
        return environment(os.environ) | dict(self.chain.env if self.chain else {})


def environment(host: Mapping[str, str]) -> dict[str, str]:
    """The environment of the build, from that of the ``host``: no time, no name."""
    return clean_environment(
        host,
        LC_ALL="C",
        KBUILD_BUILD_TIMESTAMP="1970-01-01",
        KBUILD_BUILD_USER="memhp",
        KBUILD_BUILD_HOST="memhp",
        # Otherwise builds in one folder are numbered, and the Image is not reproducible (init/Makefile, build-version).
        KBUILD_BUILD_VERSION="1",
    )
