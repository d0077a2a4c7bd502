# SPDX-License-Identifier: GPL-2.0-or-later
"""A private APT: packages of any Debian suite and architecture, verified and unpacked, without root."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.deadline import Deadline
from harness.errors import ArtefactError, InfraError
from harness.progress import Progress

#: Debian's stable suite: what QEMU, firmware, kernels and guest userland come from; MEMHP_SUITE overrides
DEFAULT_SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: package lists younger than this are not fetched again
FRESH_SECONDS = 24 * 3600
_APT_SECONDS = 1800.0
_FIELD = re.compile(r"^([A-Za-z-]+):\s*(.*)$")
_LINE = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)$")
#: suites of Debian itself; third-party repositories name theirs otherwise
_RELEASES = frozenset(
    {"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"} | {"bullseye", "bookworm", "trixie", "forky"}
)


def mirrors(root: Path = Path("/etc/apt")) -> Iterator[str]:
    """Archives of Debian itself that the machine's own APT sources name, in their order."""
    files = [root / "sources.list", *sorted((root / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        entries = _deb822(text) if file.suffix == ".sources" else _one_line(text)
        for uri, suites, components in entries:
            if suites & _RELEASES and "main" in components:
                yield uri.rstrip("/")


def _one_line(text: str) -> Iterator[tuple[str, set[str], set[str]]]:
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match is not None:
            yield match[1], {match[2]}, set(match[3].split())


def _deb822(text: str) -> Iterator[tuple[str, set[str], set[str]]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            match = _FIELD.match(line)
            if match is not None:
                last = match[1].lower()
                fields[last] = match[2]
            elif line[:1].isspace() and last:
                fields[last] += f" {line.strip()}"
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            for uri in fields.get("uris", "").split():
                yield uri, set(fields.get("suites", "").split()), set(fields.get("components", "").split())


def choose_mirror(environ: Mapping[str, str] = os.environ, root: Path = Path("/etc/apt")) -> str:
    """MEMHP_MIRROR, else the first Debian archive among the machine's sources; raises ArtefactError."""
    if environ.get("MEMHP_MIRROR"):
        return environ["MEMHP_MIRROR"].rstrip("/")
    for mirror in mirrors(root):
        return mirror
    raise ArtefactError(
        f"no Debian archive stands in {root}/sources.list or sources.list.d",
        hint="set MEMHP_MIRROR to the URL of a Debian mirror",
    )


@dataclass(frozen=True, slots=True)
class Package:
    """A downloaded package file."""

    name: str
    version: str
    path: Path


class PrivateApt:
    """APT with a state of its own below ``root``, for one Debian architecture (``amd64``, ``arm64``, ``riscv64``)."""

    def __init__(self, root: Path, arch: str, *, mirror: str, suite: str = "", environ: Mapping[str, str] = os.environ):
        self.arch = arch
        self.suite = suite or environ.get("MEMHP_SUITE") or DEFAULT_SUITE
        self.mirror = mirror
        self.root = root / f"{self.suite}-{arch}"

    def _options(self) -> list[str]:
        settings = {
            "Dir": str(self.root),
            "Dir::State": str(self.root),
            "Dir::State::status": str(self.root / "status"),
            "Dir::State::lists": str(self.root / "lists"),
            "Dir::Cache": str(self.root / "cache"),
            "Dir::Etc": str(self.root / "etc"),
            "Dir::Etc::sourcelist": str(self.root / "etc" / "sources.list"),
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::parts": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::Etc::trusted": str(KEYRING),
            "Dir::Etc::trustedparts": "-",
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Install-Recommends": "false",
            "APT::Get::Assume-Yes": "true",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
        }
        if os.geteuid() == 0:
            settings["APT::Sandbox::User"] = "root"
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def _apt(self, program: str, *arguments: str, check: bool = True, cwd: Path | None = None) -> proc.Completed:
        command = [program, *self._options(), *arguments]
        try:
            return proc.run(command, deadline=Deadline(_APT_SECONDS), env=self._environment(), check=check, cwd=cwd)
        except InfraError as error:
            raise ArtefactError(f"APT could not do `{program} {' '.join(arguments)}`: {error.message}") from error

    def _environment(self) -> dict[str, str]:
        # APT_CONFIG replaces the machine's own configuration file, whose hooks are not ours to run.
        return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "APT_CONFIG": os.devnull}

    def _prepare(self) -> None:
        if shutil.which("apt-get") is None:
            raise ArtefactError("this machine has no apt-get", hint="memhp fetches its parts with APT: use Debian")
        if not KEYRING.is_file():
            raise ArtefactError(f"{KEYRING} is missing", hint="sudo apt-get install debian-archive-keyring")
        for part in ("lists/partial", "cache/archives/partial", "etc/preferences.d"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        lines = [f"{kind} [signed-by={KEYRING}] {self.mirror} {self.suite} main\n" for kind in ("deb", "deb-src")]
        (self.root / "etc" / "sources.list").write_text("".join(lines))

    def update(self, progress: Progress) -> None:
        """Fetch the package lists unless they are fresh; old ones serve where the network does not.

        Raises ArtefactError if there are no lists and none can be had.
        """
        self._prepare()
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stamp = self.root / "updated"
            wanted = f"{self.mirror} {self.suite}\n"
            known = stamp.is_file() and stamp.read_text() == wanted
            if known and time.time() - stamp.stat().st_mtime < FRESH_SECONDS:
                return
            with progress.task(f"Fetching Debian's {self.suite} package lists for {self.arch}"):
                done = self._apt("apt-get", "-q", "update", "-o", "APT::Update::Error-Mode=any", check=False)
            if done.returncode == 0:
                stamp.write_text(wanted)
            elif not known:
                raise ArtefactError(
                    f"cannot fetch the package lists of {self.suite} from {self.mirror}:\n{proc.tail(done.stderr)}",
                    hint="check the network, or set MEMHP_MIRROR to a mirror that answers",
                )

    def version(self, package: str, progress: Progress) -> str:
        """The candidate version of ``package``; raises ArtefactError if the suite has none."""
        self.update(progress)
        shown = self._apt("apt-cache", "policy", package).stdout.decode(errors="replace")
        match = re.search(r"^\s*Candidate: (\S+)$", shown, re.MULTILINE)
        if match is None or match[1] == "(none)":
            raise ArtefactError(
                f"{self.suite} has no package {package} for {self.arch}", hint="see `apt-cache search` for its name"
            )
        return match[1]

    def source_version(self, source: str, progress: Progress) -> str:
        """The newest version of a source package; raises ArtefactError if the suite has none."""
        self.update(progress)
        shown = self._apt("apt-cache", "showsrc", "--only-source", source, check=False).stdout.decode(errors="replace")
        versions = re.findall(r"^Version: (\S+)$", shown, re.MULTILINE)
        if not versions:
            raise ArtefactError(f"{self.suite} has no source package {source}")
        newest: str = versions[0]
        for other in versions[1:]:
            newer = ["dpkg", "--compare-versions", other, "gt", newest]
            if proc.run(newer, deadline=Deadline(60), check=False).returncode == 0:
                newest = other
        return newest

    def depends(self, package: str, progress: Progress) -> list[str]:
        """Names of the packages that ``package`` depends on directly."""
        self.update(progress)
        shown = self._apt("apt-cache", "depends", "--important", package).stdout.decode(errors="replace")
        return re.findall(r"^\s*\|?(?:Pre)?Depends: ([^<\s]+)$", shown, re.MULTILINE)

    def search(self, pattern: str, progress: Progress) -> list[str]:
        """Names of all packages that match the regular expression ``pattern``."""
        self.update(progress)
        shown = self._apt("apt-cache", "search", "--names-only", pattern).stdout.decode(errors="replace")
        return [line.split(" - ", 1)[0] for line in shown.splitlines()]

    def closure(self, packages: Sequence[str], progress: Progress) -> list[Package]:
        """What installing ``packages`` into an empty system takes, sorted; nothing is downloaded."""
        self.update(progress)
        shown = self._apt("apt-get", "-q", "--simulate", "install", *packages).stdout.decode(errors="replace")
        rows = re.findall(r"^Inst (\S+) \((\S+) .*\[(\S+)\]\)", shown, re.MULTILINE)
        return [self._package(name.split(":")[0], version, arch) for name, version, arch in sorted(rows)]

    def _package(self, name: str, version: str, arch: str) -> Package:
        file = f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
        return Package(name, version, self.root / "cache" / "archives" / file)

    def download(self, packages: Sequence[str], progress: Progress, *, dependencies: bool = True) -> list[Package]:
        """Download packages (and all they depend on) and return their files; APT checks the signatures."""
        wanted = self.closure(packages, progress)
        if not dependencies:
            wanted = [package for package in wanted if package.name in packages]
        with (self.root / "lock").open("w") as lock, progress.task(f"Fetching {' '.join(packages[:4])} ({self.arch})"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if dependencies:
                self._apt("apt-get", "-q", "--download-only", "install", *packages)
            else:
                names = [f"{package.name}={package.version}" for package in wanted]
                self._apt("apt-get", "-q", "download", *names, cwd=self.root / "cache" / "archives")
        missing = [package.path.name for package in wanted if not package.path.is_file()]
        if missing:
            raise ArtefactError(f"APT did not leave {', '.join(missing)} in {self.root}/cache/archives")
        return wanted

    def source(self, source: str, version: str, target: Path, progress: Progress) -> Path:
        """Download a source package into ``target`` and return its .dsc; APT checks the signatures."""
        self.update(progress)
        with progress.task(f"Fetching the source of {source} {version}"):
            self._apt("apt-get", "-q", "--download-only", "source", f"{source}={version}", cwd=target)
        found = sorted(target.glob("*.dsc"))
        if len(found) != 1:
            raise ArtefactError(f"APT left {len(found)} .dsc files of {source} in {target}, one was wanted")
        return found[0]


def unpack(packages: Sequence[Package], target: Path, progress: Progress) -> None:
    """Unpack package files below ``target``, running none of their scripts."""
    target.mkdir(parents=True, exist_ok=True)
    with progress.task("Unpacking packages", len(packages)) as task:
        for package in packages:
            proc.run(["dpkg-deb", "-x", str(package.path), str(target)], deadline=Deadline(_APT_SECONDS))
            task.advance()
