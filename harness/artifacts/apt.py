# SPDX-License-Identifier: GPL-2.0-or-later
"""A private APT: fetches Debian packages of any architecture and release without root and without touching the host's.

APT fetches the packages and checks the archive's signature with Debian's keyring; nothing is ever installed. Of the
machine's own APT configuration, only the settings for reaching a mirror (such as proxies) are used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.artifacts.apt_words import (
    NetworkError,
    NoSuite,
    Package,
    apt_error,
    kept_settings,
    no_package,
    parse_uris,
    watcher,
)
from harness.artifacts.cache import Cache, hash_file, hold_lock
from harness.artifacts.mirror import debian_mirror
from harness.bounded import MAX_SMALL, load_json, read_file, write_file
from harness.deadline import Deadline
from harness.errors import ArtefactError, UsageError
from harness.progress import Progress

#: the default release; ``$MEMHP_SUITE`` overrides it
DEFAULT_SUITE = "trixie"
#: Debian's releases, oldest first
RELEASES = ("bullseye", "bookworm", "trixie", "forky", "duke")
#: suffix of the backports suite
BACKPORTS = "-backports"
#: package lists younger than this are not updated
LISTS_SECONDS = 24 * 3600.0
#: seconds before another update is tried after one that failed for lack of a network
RETRY_SECONDS = 600.0

_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_UPDATE_SECONDS = 300.0
_FETCH_SECONDS = 3600.0
_QUERY_SECONDS = 60.0
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_SUITE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


def default_suite() -> str:
    """The default Debian release; raises UsageError if ``$MEMHP_SUITE`` does not name one."""
    name = os.environ.get("MEMHP_SUITE") or DEFAULT_SUITE
    if not _SUITE_NAME.fullmatch(name):
        raise UsageError(f"MEMHP_SUITE={name!r} is not the name of a Debian release", hint="for example trixie")
    return name


def suites_to_ask(name: str | None = None) -> tuple[str, ...]:
    """The suites to search if none is named: the default release, its backports, the previous release."""
    release = name or default_suite()
    older = RELEASES[max(0, RELEASES.index(release) - 1) : RELEASES.index(release)] if release in RELEASES else ()
    return (release, f"{release}{BACKPORTS}", *older)


def keyring() -> Path:
    """The keys of Debian's archive; raises ArtefactError if the machine has none."""
    for path in _KEYRINGS:
        if path.is_file():
            return path
    raise ArtefactError(
        f"{_KEYRINGS[0]} is missing: packages from Debian's archive cannot be verified",
        hint="sudo apt-get install debian-archive-keyring",
    )


def fingerprints(packages: Iterable[Package]) -> dict[str, str]:
    """The cache-key inputs for a part made from a set of packages."""
    return {f"package {package.path.name}": package.sha256 for package in packages}


def apt(arch: str, suite: str | None = None) -> PrivateApt:
    """APT for one architecture and suite, with its state in the cache; raises ArtefactError without a mirror."""
    return PrivateApt(Cache().root / "apt", arch, suite=suite)


@functools.cache
def host_arch() -> str:
    """Debian's name of the host architecture (amd64, arm64, …)."""
    return proc.run(["dpkg", "--print-architecture"], deadline=Deadline(_QUERY_SECONDS)).stdout.decode().strip()


class PrivateApt:
    """Packages of one Debian architecture (``amd64``, ``arm64``, ``riscv64``) and suite, with states below ``root``.

    Requested packages come from ``suite`` itself; dependencies of backports may come from the underlying release.
    Every method first updates package lists that are a day old; offline, old lists are used. All raise ArtefactError:
    unknown package (NoPackage) or suite (NoSuite), no network and no lists, a signature or hash that does not verify,
    no keyring, a disk error.
    """

    def __init__(self, root: Path, arch: str, *, mirror: str | None = None, suite: str | None = None) -> None:
        self.arch = arch
        self.suite = suite or default_suite()
        self.mirror = mirror or debian_mirror()
        release = self.suite.removesuffix(BACKPORTS)
        suites = [release] if release == self.suite else [release, self.suite]
        self._binaries = _State(root, arch, self.mirror, suites, "deb")
        self._sources = _State(root, arch, self.mirror, suites, "deb-src")

    def closure(self, packages: Sequence[str], progress: Progress, *, dependencies: bool = True) -> list[Package]:
        """``packages`` and all their dependencies on an empty system; nothing is downloaded."""
        return self._binaries.packages(_request(packages, dependencies), progress)

    def download(self, packages: Sequence[str], progress: Progress, *, dependencies: bool = True) -> list[Package]:
        """Download ``packages`` and all their dependencies unless present; every file's hash is checked."""
        return self._binaries.fetch(_request(packages, dependencies), progress, ", ".join(packages))

    def names(self, prefix: str, progress: Progress) -> list[str]:
        """Sorted names of packages that begin with ``prefix``; some may be in another suite or be mere references."""
        self._binaries.update(progress)
        return sorted(self._binaries.ask("apt-cache", ["pkgnames", prefix]).split())

    def depends(self, package: str, progress: Progress) -> list[str]:
        """Names of the packages that the newest version of ``package`` depends on directly."""
        self._binaries.packages(_Request("download", (package,)), progress)
        preferring = _preferring(self._binaries.suites)
        said = self._binaries.ask("apt-cache", ["show", "--no-all-versions", *preferring, package])
        row = re.search(r"^Depends: (.*)$", said, re.MULTILINE)
        return [] if row is None else [name.split()[0] for name in row[1].split(",")]

    def source_version(self, source: str, progress: Progress) -> str:
        """The newest version of a source package, without its epoch."""
        return self._dsc(source, progress).version

    def source(self, source: str, version: str, target: Path, progress: Progress) -> Path:
        """Download the source package that ``source_version`` found into ``target`` and return its .dsc."""
        # Requested without a version: file names lack the epoch that APT would require.
        files = self._sources.fetch(_Request("source", (source,)), progress, f"the source of {source}")
        now = self._dsc(source, progress).version
        if now != version:
            raise ArtefactError(
                f"{source} {version} has just become {now} in the archive's index", hint="run the same command again"
            )
        for file in files:
            shutil.copy(file.path, target)
        return next(target / file.path.name for file in files if file.path.suffix == ".dsc")

    def knows_sources(self) -> bool:
        """Whether lists of source packages are present; without them nothing can have been built."""
        return self._sources.age() is not None

    def _dsc(self, source: str, progress: Progress) -> Package:
        for package in self._sources.packages(_Request("source", (source,)), progress):
            if package.path.suffix == ".dsc":
                return package
        raise ArtefactError(f"the source package {source} of {self.suite} has no .dsc file")


def unpack(packages: Sequence[Package], target: Path, progress: Progress) -> None:
    """Unpack package files over each other below ``target``; none of their scripts run, nothing stays set-user-id."""
    target.mkdir(parents=True, exist_ok=True)
    with progress.task("Unpacking packages", len(packages)) as task:
        for package in packages:
            task.update(note=package.name)
            command = ["dpkg-deb", "--extract", str(package.path), str(target)]
            done = proc.run(command, deadline=Deadline(_FETCH_SECONDS), check=False)
            if done.returncode != 0:
                raise ArtefactError(f"cannot unpack {package.path.name}: {proc.tail(done.stderr)}")
            task.advance()
    for folder, _, names in os.walk(target):
        for name in names:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o7000:
                path.chmod(mode & 0o777)


@dataclass(frozen=True, slots=True)
class _Request:
    """A request to apt-get: ``mode`` is install (with dependencies), download or source."""

    mode: str
    packages: tuple[str, ...]

    def arguments(self, suites: Sequence[str]) -> list[str]:
        """The arguments for apt-get; ``suites`` are those of the state, the requested one last."""
        extra = [] if self.mode == "download" else ["--yes", "--download-only"]
        # APT prefers any other suite over backports (NotAutomatic).
        suffix = f"/{suites[-1]}" if len(suites) > 1 else ""
        return [*extra, *_preferring(suites), self.mode, *(f"{name}{suffix}" for name in self.packages)]


def _preferring(suites: Sequence[str]) -> list[str]:
    return ["-o", f"APT::Default-Release={suites[-1]}"] if len(suites) > 1 else []


def _request(packages: Sequence[str], dependencies: bool) -> _Request:
    for name in packages:
        if not _PACKAGE_NAME.fullmatch(name):
            raise UsageError(f"{name!r} is not the name of a Debian package")
    return _Request("install" if dependencies else "download", tuple(packages))


class _State:
    """One APT state directory: one architecture, one set of suites, binary packages or sources."""

    def __init__(self, root: Path, arch: str, mirror: str, suites: Sequence[str], kind: str) -> None:
        self._arch = arch
        self._mirror = mirror
        self.suites = tuple(suites)
        self._kind = kind
        digest = hashlib.sha256(mirror.encode()).hexdigest()[:8]
        self._name = "-".join([arch, *suites[-1:], *(["src"] if kind == "deb-src" else []), digest])
        self._root = root / self._name

    def packages(self, request: _Request, progress: Progress) -> list[Package]:
        """The files that satisfy ``request``, downloaded or not."""
        self.update(progress)
        with self._explained():
            return self._resolve(request)

    def fetch(self, request: _Request, progress: Progress, what: str) -> list[Package]:
        """Download missing files and verify them; all files in order."""
        files = self.packages(request, progress)
        with self._explained(), hold_lock(self._root / "lock", "the package archive", progress):
            lacking = [file for file in files if not _intact(file)]
            if lacking:
                megabytes = sum(file.size for file in lacking) / 1e6
                with progress.task(f"Downloading {what} ({megabytes:.1f} MB)", 100) as task:
                    self._download(request, watcher(task))
            for file in lacking:
                if not _intact(file):
                    raise ArtefactError(
                        f"{file.path.name} from {self._mirror} does not match the archive's index",
                        hint="the mirror may be syncing: try again in a few minutes",
                    )
        return files

    def age(self) -> float | None:
        """Seconds since the lists were last updated, None if there are none."""
        try:
            return max(0.0, time.time() - (self._root / "updated").stat().st_mtime)
        except OSError:
            return None

    def _resolve(self, request: _Request) -> list[Package]:
        # APT treats an unknown name as a pattern: linux-source-6.1 matches linux-source-6.12.
        for name in request.packages if request.mode != "source" else ():
            if name not in self.ask("apt-cache", ["pkgnames", name]).split():
                raise no_package(name, self.suites[-1])
        # APT omits files that it already has: ask with an empty archive directory.
        nothing = self._root / "nothing"
        words = ["-o", f"Dir::Cache::archives={nothing}", "--print-uris", *request.arguments(self.suites)]
        said = self.ask("apt-get", words, nothing)
        files = parse_uris(said, self._root / "archives")
        if not files:
            raise ArtefactError(f"APT found nothing to fetch for {' '.join(request.packages)}:\n{said[-2000:]}")
        return files

    def ask(self, program: str, arguments: Sequence[str], cwd: Path | None = None) -> str:
        """What APT answers; asking takes most of a second, and the answer is the same as long as the lists are."""
        stamp = (self._root / "updated").read_text()
        asked = hashlib.sha256(repr((program, *arguments)).encode()).hexdigest()[:16]
        memo = self._root / "resolved" / f"{asked}.json"
        try:
            cached = load_json(read_file(memo, MAX_SMALL))
            if cached["lists"] == stamp:
                return str(cached["said"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        said = self._apt(program, arguments, _QUERY_SECONDS, cwd=cwd)
        write_file(memo, json.dumps({"lists": stamp, "said": said}))
        return said

    def update(self, progress: Progress) -> None:
        """Read the package lists again if they are a day old."""
        if self._fresh():
            return
        # The lock creates the folder.
        with self._explained(), hold_lock(self._root / "lock", "the package lists", progress):
            if self._fresh():
                return
            self._prepare()
            tried = self._root / "tried"
            what = "source lists" if self._kind == "deb-src" else f"package lists for {self._arch}"
            # Without this mode APT exits with 0 if a mirror is unreachable.
            arguments = ["-o", "APT::Update::Error-Mode=any", "update"]
            try:
                with progress.task(f"Reading Debian's {what} ({self.suites[-1]})", 100) as task:
                    self._apt("apt-get", arguments, _UPDATE_SECONDS, watcher(task))
            except NoSuite:
                # A misspelt suite leaves nothing behind.
                if self.age() is None:
                    shutil.rmtree(self._root, ignore_errors=True)
                raise
            except NetworkError as error:
                tried.touch()
                age = self.age()
                if age is None:
                    raise
                progress.say(f"{error.message.splitlines()[0]} using package lists {age / 3600:.0f} h old")
                return
            tried.unlink(missing_ok=True)
            (self._root / "updated").write_text(f"{time.time()}\n")
            self._apt("apt-get", ["autoclean"], _QUERY_SECONDS)

    def _fresh(self) -> bool:
        age = self.age()
        if age is None:
            return False
        try:
            return age < LISTS_SECONDS or time.time() - (self._root / "tried").stat().st_mtime < RETRY_SECONDS
        except OSError:
            return False

    def _download(self, request: _Request, on_line: Callable[[str], None]) -> None:
        folder = self._root / "archives"
        try:
            self._apt("apt-get", request.arguments(self.suites), _FETCH_SECONDS, on_line, cwd=folder)
        except NetworkError:
            raise
        except ArtefactError:
            # The mirror may have changed since its lists were read: the next attempt reads them again.
            (self._root / "updated").unlink(missing_ok=True)
            raise

    def _prepare(self) -> None:
        for name in ("lists/partial", "archives/partial", "nothing/partial", "resolved", "preferences.d"):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        rows = [f"{self._kind} [signed-by={keyring()}] {self._mirror} {suite} main\n" for suite in self.suites]
        (self._root / "sources.list").write_text("".join(rows))
        host = proc.run(["apt-config", "dump"], deadline=Deadline(_QUERY_SECONDS), env=_environment({}))
        (self._root / "apt.conf").write_text(self._configuration(host.stdout.decode("utf-8", "replace")))

    def _configuration(self, host: str) -> str:
        here = self._root
        rows = [
            *kept_settings(host),
            f'Dir::State "{here}";',
            f'Dir::State::status "{here}/status";',
            f'Dir::State::lists "{here}/lists";',
            f'Dir::Cache "{here}";',
            f'Dir::Cache::archives "{here}/archives";',
            f'Dir::Etc::sourcelist "{here}/sources.list";',
            f'Dir::Etc::preferencesparts "{here}/preferences.d";',
            *(f'Dir::Etc::{name} "/dev/null";' for name in ("sourceparts", "parts", "main", "preferences")),
            f'APT::Architecture "{self._arch}";',
            f'APT::Architectures {{ "{self._arch}"; }};',
            'APT::Install-Recommends "false";',
            'Acquire::Languages "none";',
            'Acquire::ForceHash "SHA256";',
            'Acquire::Retries "2";',
            'Acquire::http::Timeout "20";',
            'Acquire::https::Timeout "20";',
        ]
        if os.geteuid() == 0:
            # APT's sandbox user may not be allowed to read this folder; nothing in it belongs to other users.
            rows.append('APT::Sandbox::User "root";')
        return "\n".join(rows) + "\n"

    def _apt(
        self,
        program: str,
        arguments: Sequence[str],
        seconds: float,
        on_line: Callable[[str], None] | None = None,
        cwd: Path | None = None,
    ) -> str:
        status = ["-o", "APT::Status-Fd=1"] if on_line is not None else []
        env = _environment({"APT_CONFIG": str(self._root / "apt.conf")})
        command = [program, "-q", *status, *arguments]
        done = proc.run(command, deadline=Deadline(seconds), env=env, cwd=cwd, check=False, on_line=on_line)
        if done.returncode != 0:
            said = proc.tail(done.stderr, lines=12) or proc.tail(done.stdout, lines=12)
            raise apt_error(said, self._mirror, self.suites[-1])
        return done.stdout.decode("utf-8", "replace")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtefactError(
                f"cannot use {self._root}: {error.strerror or error}",
                hint="set MEMHP_CACHE to a writable folder with several GB free",
            ) from error


def _intact(file: Package) -> bool:
    try:
        if file.path.stat().st_size == file.size and hash_file(file.path) == file.sha256:
            return True
        # APT only compares the size and would keep it.
        file.path.unlink()
    except FileNotFoundError:
        pass
    return False


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "APT_CONFIG"}
    return {**kept, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **own}
