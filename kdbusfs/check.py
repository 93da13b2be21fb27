"""`kdbusfs --check`: the features of this machine, the consequences, and a test of a domain; as a table or as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from kdbusfs.cli import run_daemon
from kdbusfs.diagnosis import restrictions
from kdbusfs.failure import EXIT_OK, exit_code_of
from kdbusfs.fuse.features import Feature, features
from kdbusfs.fuse.mount import UNMOUNT_PATIENCE, Mount, check_privilege, unmount, visible_mount
from kdbusfs.fuse.mount_error import MountError
from kdbusfs.host import mounting
from kdbusfs.host.confinement import (
    CAP_DAC_READ_SEARCH,
    CAP_SYS_ADMIN,
    CAP_SYS_NICE,
    CAP_SYS_PTRACE,
    CAP_SYS_RESOURCE,
    Confinement,
    confinement,
    container_options,
)
from kdbusfs.options import MountOptions
from kdbusfs.starter import start
from kdbusfs.surroundings import memory_total

_CAPABILITIES = {
    "CAP_SYS_ADMIN": (CAP_SYS_ADMIN, "nothing can be mounted"),
    "CAP_SYS_PTRACE": (CAP_SYS_PTRACE, "only clients of the daemon's own user and group are served"),
    "CAP_DAC_READ_SEARCH": (CAP_DAC_READ_SEARCH, "behind closed directories clients can write to their own pools"),
    "CAP_SYS_NICE": (CAP_SYS_NICE, "on a busy machine calls wait longer for their turn"),
    "CAP_SYS_RESOURCE": (CAP_SYS_RESOURCE, "the hard limit of open files holds"),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A domain that was mounted and used: the exit code of its start, and its messages."""

    exit_code: int
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """All results."""

    kernel: str
    features: list[Feature]
    limits: dict[str, str]
    found: Confinement
    trial: Trial


def check(as_json: bool) -> int:
    """Print the report.  Returns the exit code that the start of a domain has here."""
    report = examine()
    print(as_data(report) if as_json else as_table(report))
    return report.trial.exit_code


def examine() -> Report:
    """Test everything.  Mounts are invisible to other processes, if a mount namespace can be made for them."""
    with _places() as (first, second):
        system = os.uname()
        trial = _try(first)
        found = confinement()
        mountable = second if found.has(CAP_SYS_ADMIN) else None
        return Report(
            f"{system.sysname} {system.release} {system.machine}", features(mountable), _limits(found), found, trial
        )


@contextlib.contextmanager
def _places() -> Iterator[tuple[str, str]]:
    """Two directories: the tested daemon may still be unmounting at one while the other is used."""
    with contextlib.suppress(OSError):
        mounting.enter_new_mount_namespace()
        mounting.mount("none", "/", flags=mounting.MS_REC | mounting.MS_PRIVATE)
    with tempfile.TemporaryDirectory(prefix="kdbusfs-check-") as place:
        first, second = os.path.join(place, "1"), os.path.join(place, "2")
        os.mkdir(first)
        os.mkdir(second)
        yield first, second


def _try(place: str) -> Trial:
    """Start a daemon as `kdbusfs` does, and end it; its standard error is captured."""
    options = MountOptions()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            check_privilege()
            code = start(lambda announcer: run_daemon("check", place, options, announcer), place, options.subtype)
        except MountError as fault:
            code = exit_code_of(fault)
            os.write(2, f"kdbusfs: {fault}\n".encode())
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        entry = visible_mount(place)
        if entry is not None:
            unmount(Mount(place, entry.device), UNMOUNT_PATIENCE)
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    return Trial(code, [line.removeprefix("kdbusfs: ") for line in lines])


def _limits(found: Confinement) -> dict[str, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    overcommit = {0: "heuristic", 1: "always", 2: "strict"}
    return {
        "open files (ulimit -n)": f"{soft}, at most {'any' if hard == resource.RLIM_INFINITY else hard}",
        "memory for all connections": f"{memory_total() >> 20} MiB, for those of one user half of it",
        "memory overcommit": overcommit.get(-1 if found.overcommit is None else found.overcommit, "unknown"),
    }


def _modules(found: Confinement) -> dict[str, str]:
    """The security modules that can refuse the daemon's operations, and whether they confine this process."""
    return {
        "Yama": "is not there" if found.yama is None else f"ptrace_scope {found.yama}",
        "AppArmor": "does not confine" if found.apparmor is None else f"profile '{found.apparmor}'",
        "SELinux": "does not enforce" if found.selinux is None else f"context '{found.selinux}'",
        "seccomp": "no filter" if not found.seccomp else "a filter: clients with one get no descriptors",
        "user namespace": "not the initial one: pools are copied" if found.user_namespace else "the initial one",
        "container": _container(found),
    }


def _container(found: Confinement) -> str:
    if not found.container:
        return "no sign of one"
    options = " ".join(container_options(found))
    return f"yes; to do all it lacks {options}" if options else "yes, and it has what a daemon needs"


def as_table(report: Report) -> str:
    """Format the report for people."""
    found = report.found
    rows = [("kernel", "", report.kernel), ("", "", "")]
    for feature in report.features:
        rows.append((feature.name, _yes(feature.works), "" if feature.works else feature.without))
    rows.append(("", "", ""))
    for name, (number, without) in _CAPABILITIES.items():
        rows.append((name, _yes(found.has(number)), "" if found.has(number) else without))
    rows.append(("", "", ""))
    rows += [(name, "", text) for name, text in {**report.limits, **_modules(found)}.items()]
    rows.append(("", "", ""))
    works = report.trial.exit_code == EXIT_OK
    rows.append(("a domain", _yes(works), "was mounted and used" if works else "cannot be mounted here"))
    rows += [("", "", line) for line in report.trial.said]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows)


def _yes(works: bool | None) -> str:
    return "not tried" if works is None else "yes" if works else "no"


def as_data(report: Report) -> str:
    """Format the report for programs, as JSON."""
    found = report.found
    return json.dumps(
        {
            "kernel": report.kernel,
            "features": [asdict(feature) for feature in report.features],
            "capabilities": {name: found.has(number) for name, (number, _) in _CAPABILITIES.items()},
            "limits": report.limits,
            "security": _modules(found),
            "restrictions": restrictions(found).warnings,
            "works": report.trial.exit_code == EXIT_OK,
            "exit_code": report.trial.exit_code,
            "said": report.trial.said,
        },
        indent=1,
    )
