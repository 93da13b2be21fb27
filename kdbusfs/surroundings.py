"""The memory that the machine and control groups leave to the daemon, and its OOM score."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from kdbusfs.base import mountinfo

OOM_SCORE = -900
"""As in the systemd units: the OOM killer should prefer other processes to the daemon that serves all users."""

OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")

_UNLIMITED = 1 << 62  # cgroup v1 reports a huge number for "no limit"


def protect_from_oom() -> None:
    """Lower the OOM score of this process.

    Does nothing if it is as low already, or without CAP_SYS_RESOURCE.  Children would inherit it; there are none.
    """
    with contextlib.suppress(OSError, ValueError):
        if int(OOM_SCORE_FILE.read_text()) > OOM_SCORE:
            OOM_SCORE_FILE.write_text(str(OOM_SCORE))


def memory_total(proc: Path = Path("/proc")) -> int:
    """Bound of the memory for connections of all users together, in bytes.

    It is 3/4 of what is available now: the machine's memory, or the lowest limit of the daemon's control groups, minus
    what the daemon uses itself.  The rest is for memory that no account counts.  One user gets half of that
    (base/account.py).  Later changes of limits are ignored.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    limit = min([page * os.sysconf("SC_PHYS_PAGES"), *_group_limits(proc)])
    own = page * int((proc / "self/statm").read_text().split()[1])
    return max(limit - own, limit // 8) * 3 // 4


def _group_limits(proc: Path) -> Iterator[int]:
    """The memory limits of the daemon's control groups and their visible ancestors."""
    with contextlib.suppress(OSError):
        groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
        for mount in mountinfo.parse((proc / "self/mountinfo").read_text(errors="surrogateescape")):
            is_v1 = mount.type == "cgroup" and mount.option("memory") is not None
            if not is_v1 and mount.type != "cgroup2":
                continue
            for _, controllers, path in groups:
                if "memory" in controllers.split(",") if is_v1 else not controllers:
                    yield from _limits_up(Path(mount.path), os.path.relpath(path, mount.root))


def _limits_up(point: Path, path: str) -> Iterator[int]:
    """The limits of group `path` and of its ancestors, up to the mount point of the hierarchy."""
    group = point
    if path.split("/")[0] == "..":  # not below the mount point
        path = "."
    directories = [group, *((group := group / part) for part in path.split("/") if part != ".")]
    for directory in directories:
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limit = int((directory / name).read_text())
                if limit < _UNLIMITED:
                    yield limit
