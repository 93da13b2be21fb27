"""`make test-kernels`: boots kernels in turn, tries the project with each, and prints a table.

Words of KERNELS: 6.1 (the newest 6.1.N that the mirror has), 6.18-arm64, newest.  One machine runs at a time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import results
from .disks import PROJECT, SELFTESTS, Disks
from .machine import KVM, TCG, Machine, kvm_works
from .packages import Archive, Kernel, MissingError
from .results import Result
from .trials import Trials, clock, slowness

DEFAULT_KERNELS = "6.1 6.12 5.10 6.18 newest 6.18-arm64"
DEFAULT_TRIALS = "demo selftests calls operations mount hellos"
BASELINE = "6.18"
_PROGRAMS = {
    "amd64": {"qemu-system-x86_64": "qemu-system-x86"},
    "arm64": {"qemu-system-aarch64": "qemu-system-arm", "qemu-aarch64-static": "qemu-user-static"},
}
_ALL_PROGRAMS = {
    "qemu-img": "qemu-utils", "mmdebstrap": "mmdebstrap", "modprobe": "kmod", "cpio": "cpio",
    "mke2fs": "e2fsprogs", "zstd": "zstd", "git": "git", "unshare": "util-linux", "arch-test": "arch-test",
}  # fmt: skip


def install_programs(architectures: set[str]) -> None:
    """Install what is missing, as root on Debian; otherwise MissingError names it."""
    programs = dict(_ALL_PROGRAMS)
    for architecture in architectures:
        programs.update(_PROGRAMS[architecture])
    packages = sorted({package for program, package in programs.items() if not shutil.which(program)})
    if not packages:
        return
    say(f"installing {' '.join(packages)}")
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=subprocess.DEVNULL, timeout=900)
    missing = sorted({package for program, package in programs.items() if not shutil.which(program)})
    if missing:
        raise MissingError(f"missing, by their Debian packages: {' '.join(missing)}")


def say(line: str) -> None:
    """One line of progress."""
    print(f"{clock()} {line}", flush=True)


class Session:
    """One run of the program: its kernels, disks and results below `store`."""

    def __init__(self, store: Path, trials: list[str], selection: str, arguments: str) -> None:
        self._store = store
        self._archive = Archive(store)
        self._trials = trials
        self._selection = selection
        self._arguments = arguments
        self._accelerators: dict[str, str] = {}

    def prepare(self, kernels: list[str]) -> list[tuple[str, Kernel, Disks]]:
        """Download and build what the machines need, before the first of them starts."""
        found = []
        for wanted in kernels:
            kernel = self._archive.get(wanted)
            say(f"{wanted} is {kernel.release}")
            found.append((wanted, kernel, Disks(self._store, kernel.architecture)))
        for architecture, (kernel, disks) in {
            kernel.architecture: (kernel, disks) for _, kernel, disks in found
        }.items():
            say(f"{architecture}: the root and the tree")
            disks.make_root()
            disks.make_tree()
            self._accelerators[architecture] = KVM if kvm_works(self._store, kernel, disks) else TCG
            say(f"{architecture}: {self._accelerators[architecture]}")
        return found

    def run(self, wanted: str, kernel: Kernel, disks: Disks) -> Result:
        """All trials with one kernel; what is known is saved after each."""
        say(f"{kernel.release}: booting")
        accelerator = self._accelerators[kernel.architecture]
        with Machine(self._store, kernel, disks, accelerator, self._arguments) as machine:
            release, hardware = machine.run("uname -rm", patience=60.0).output.split()
            result = self._earlier(release) or Result(wanted, release, hardware, accelerator)
            result.wanted, result.slowness, result.commit = wanted, slowness(machine), _commit()
            say(f"{release}: {accelerator}, slower by {result.slowness:.1f}")
            trials = Trials(machine, self._store / "logs" / release, result.slowness, self._selection)
            for name in self._trials:
                if name == "calls":
                    result.microseconds = trials.calls()
                    say(f"{release}: {result.microseconds}")
                elif name == "selftests" and not disks.has_selftests:
                    say(f"{release}: {name} are not there: {SELFTESTS}")
                elif name != "hellos" or disks.architecture == "arm64" or self._trials == ["hellos"]:
                    outcome = trials.names()[name]()
                    result.trials[name] = outcome
                    say(f"{release}: {name}: {results.summary(outcome)}, {outcome.seconds:.0f} s")
                result.save(self._store / "results")
        return result

    def _earlier(self, release: str) -> Result | None:
        path = self._store / "results" / f"{release}.json"
        return results.load(path) if path.exists() else None


def _commit() -> str:
    described = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    return subprocess.run(described, capture_output=True, text=True, timeout=30).stdout.strip()


def saved(store: Path) -> list[Result]:
    """All results, oldest kernel first."""
    found = [results.load(path) for path in (store / "results").glob("*.json")]
    return sorted(found, key=lambda each: (each.machine != "x86_64", results.version_key(each.release)))


def main() -> int:
    """Exit code 1 if anything failed, 2 if something that is needed is missing."""
    environ = os.environ.get
    parser = argparse.ArgumentParser(prog="make test-kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path(environ("KERNELS_DIRECTORY") or PROJECT / "build/kernels"))
    parser.add_argument("--kernels", default=environ("KERNELS") or DEFAULT_KERNELS)
    parser.add_argument("--trials", default=environ("KERNELS_TRIALS") or DEFAULT_TRIALS)
    parser.add_argument("--select", default=environ("KERNELS_SELECT", ""), help="tests, as pytest -k takes it")
    parser.add_argument("--append", default=environ("KERNELS_APPEND", ""), help="arguments for the kernel")
    parser.add_argument("--docs", action="store_true", help="writes the table into docs/kernels.md, and ends")
    arguments = parser.parse_args()
    store = arguments.store.resolve()
    if arguments.docs:
        results.write_document(saved(store), BASELINE)
        return 0
    if os.geteuid() != 0:
        print("the virtual machines' disks are made by root", file=sys.stderr)
        return 2
    store.mkdir(parents=True, exist_ok=True)
    session = Session(store, arguments.trials.split(), arguments.select, arguments.append)
    ran = []
    try:
        kernels = arguments.kernels.split()
        install_programs({"arm64" if word.endswith("-arm64") else "amd64" for word in kernels})
        for wanted, kernel, disks in session.prepare(kernels):
            ran.append(session.run(wanted, kernel, disks))
    except MissingError as error:
        print(error, file=sys.stderr)
        return 2
    print(results.table(ran, BASELINE))
    return 1 if any(outcome.failed for result in ran for outcome in result.trials.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
