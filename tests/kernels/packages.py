"""Kernels as Debian packages them: which package a version like 6.1 means, and its files.

The packages come from the mirror that this machine's own apt uses, from all suites that have kernels, through an apt of
its own: neither the sources nor the packages of the machine change.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY_SUITES = ("bullseye-security", "bookworm-security", "trixie-security")
NEWEST = "newest"
ARCHITECTURES = ("amd64", "arm64")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DOWNLOAD_PATIENCE = 900.0  # seconds

_IMAGE = re.compile(r"linux-image-(\d+\.\d+[0-9.]*(?:-\d+|\+deb[0-9+.]*))-(amd64|arm64)")


class MissingError(Exception):
    """Something that the virtual machines need is not to be had; the message says what."""


@dataclass(frozen=True)
class Kernel:
    """A kernel package, unpacked into `directory`."""

    release: str  # as uname -r prints it
    architecture: str  # as Debian names it
    directory: Path

    @property
    def image(self) -> Path:
        """What qemu boots."""
        places = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "boot/vmlinux-*")
        for place in places:
            for found in sorted(self.directory.glob(place)):
                return found
        raise MissingError(f"no kernel image in {self.directory}")

    @property
    def module_base(self) -> Path:
        """The directory that has lib/modules in it, as `modprobe -d` takes it."""
        merged = self.directory / "usr"
        return merged if (merged / "lib/modules").is_dir() else self.directory


def parse_wanted(word: str) -> tuple[str, str]:
    """`6.1` or `6.18-arm64`: the version and the architecture.  Raises MissingError."""
    version, _, architecture = word.partition("-")
    architecture = architecture or "amd64"
    if architecture not in ARCHITECTURES or not (version == NEWEST or re.fullmatch(r"\d+(\.\d+)+", version)):
        raise MissingError(f"not a kernel: {word!r} (like 6.1, 6.18-arm64, {NEWEST})")
    return version, architecture


def choose(version: str, architecture: str, names: Iterable[str]) -> str:
    """The newest release among package names that `version` means: 6.1 is any 6.1.N.  Raises MissingError."""
    found = []
    for name in names:
        match = _IMAGE.fullmatch(name)
        if match and match[2] == architecture and (version == NEWEST or _is_of(match[1], version)):
            found.append(match[1])
    if not found:
        raise MissingError(f"no suite has a package of Linux {version} for {architecture}")
    return f"{max(found, key=_sort_key)}-{architecture}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _is_of(release: str, version: str) -> bool:
    wanted = _numbers(version)
    return _numbers(release)[: len(wanted)] == wanted


def _sort_key(release: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    upstream, _, rest = release.replace("+", "-", 1).partition("-")
    return _numbers(upstream), _numbers(rest)


def mirror(suite: str) -> str:
    """Where this machine's apt gets `suite` from.  Raises MissingError."""
    targets = _output("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(SUITE)")
    for line in targets.splitlines():
        address, *names = line.split()
        if suite in names:
            return address
    raise MissingError(f"this machine's apt has no source with the suite {suite}")


class Archive:
    """Kernel packages below `store`: `debs` as downloaded, `kernels` unpacked."""

    def __init__(self, store: Path) -> None:
        self._apt = store / "apt"
        self._debs = store / "debs"
        self._kernels = store / "kernels"
        self._names: list[str] | None = None

    def _options(self) -> list[str]:
        settings = {
            "Dir::State::Lists": self._apt / "lists",
            "Dir::State::Status": "/dev/null",
            "Dir::Cache": self._apt / "cache",
            "Dir::Etc::SourceList": self._apt / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "APT::Architectures::": "arm64",
        }
        return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetch the lists of packages, unless they are there.  Raises MissingError."""
        if (self._apt / "updated").exists():
            return
        for directory in (self._apt / "lists/partial", self._apt / "cache/archives/partial", self._debs):
            directory.mkdir(parents=True, exist_ok=True)
        plain, security = mirror("bookworm"), mirror("bookworm-security")
        lines = [f"deb [signed-by={KEYRING}] {plain} {suite} main\n" for suite in SUITES]
        lines += [f"deb [signed-by={KEYRING}] {security} {suite} main\n" for suite in SECURITY_SUITES]
        (self._apt / "sources.list").write_text("".join(lines))
        _output("apt-get", *self._options(), "-qq", "update")
        (self._apt / "updated").touch()

    def names(self) -> list[str]:
        """The names of all packages of kernels that the suites have."""
        if self._names is None:
            found = _output("apt-cache", *self._options(), "search", "--names-only", "^linux-(image|binary|modules)-")
            self._names = [line.split()[0] for line in found.splitlines()]
        return self._names

    def get(self, wanted: str) -> Kernel:
        """The kernel that a word of KERNELS means, downloaded and unpacked.  Raises MissingError."""
        self.update()
        version, architecture = parse_wanted(wanted)
        release = choose(version, architecture, self.names())
        kernel = Kernel(release, architecture, self._kernels / release)
        if not kernel.directory.exists():
            self._unpack(kernel)
        return kernel

    def _unpack(self, kernel: Kernel) -> None:
        # Newer kernels are split: the image package has nothing but dependencies then.
        parts = [f"linux-{part}-{kernel.release}" for part in ("image", "binary", "modules")]
        present = [name for name in parts if name in self.names()]
        qualified = [f"{name}:{kernel.architecture}" for name in present]
        _output("apt-get", *self._options(), "-q", "download", *qualified, cwd=self._debs)
        partial = kernel.directory.with_name(kernel.directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in present:
            for package in self._debs.glob(f"{name}_*_{kernel.architecture}.deb"):
                _output("dpkg-deb", "-x", str(package), str(partial))
        base = Kernel(kernel.release, kernel.architecture, partial).module_base
        _output("depmod", "-b", str(base), kernel.release)
        partial.rename(kernel.directory)


def _output(*command: str, cwd: Path | None = None) -> str:
    try:
        ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DOWNLOAD_PATIENCE)
    except FileNotFoundError:
        raise MissingError(f"{command[0]} is not installed") from None
    if ended.returncode != 0:
        last = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
        raise MissingError(f"{command[0]}: {' '.join(last) or ended.returncode}")
    return ended.stdout
