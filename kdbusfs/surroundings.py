"""What the machine and the control groups leave to the daemon, and what it does not want to be ended for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

OOM_SCORE = -900
"""As the units have it: whatever a client fills, others than the daemon of everybody's bus should end first."""

OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")

_UNLIMITED = 1 << 62  # version 1 of control groups says a huge number


def protect_from_oom() -> None:
    """Lower the score by which the kernel chooses whom to end when memory runs out, of all our threads at once.

    Nothing where it is as low already, or the daemon may not (CAP_SYS_RESOURCE).  Children inherit it; there are none.
    """
    with contextlib.suppress(OSError, ValueError):
        if int(OOM_SCORE_FILE.read_text()) > OOM_SCORE:
            OOM_SCORE_FILE.write_text(str(OOM_SCORE))


def memory_total(proc: Path = Path("/proc")) -> int:
    """What the connections of all users together may make the daemon hold, in bytes.

    Three quarters of what is left for it now: of the machine's memory, or of the least limit of the control groups that
    it is in, less what the daemon has itself.  The rest is for what no account counts.  One user gets half of that
    (base/account.py).  A limit that changes later is not seen.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    limit = min([page * os.sysconf("SC_PHYS_PAGES"), *_group_limits(proc)])
    own = page * int((proc / "self/statm").read_text().split()[1])
    return max(limit - own, limit // 8) * 3 // 4


def _group_limits(proc: Path) -> Iterator[int]:
    """The memory limits of the daemon's control groups and of those above them, as far as they are to be seen."""
    with contextlib.suppress(OSError):
        groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
        mounts = (proc / "self/mountinfo").read_text().splitlines()
        for mount in mounts:
            before, _, after = mount.partition(" - ")
            kind, _, options = after.split(" ", 2)
            if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and "memory" not in options.split(",")):
                continue
            root, point = (_unescape(text) for text in before.split(" ")[3:5])
            for _, controllers, path in groups:
                if (kind == "cgroup2" and not controllers) or (kind == "cgroup" and "memory" in controllers.split(",")):
                    yield from _limits_up(Path(point), os.path.relpath(path, root))


def _limits_up(point: Path, path: str) -> Iterator[int]:
    """The limits of the group `path`, below the mount point of its hierarchy, and of all above it there."""
    group = point
    if path.split("/")[0] == "..":  # outside of what is mounted
        path = "."
    directories = [group, *((group := group / part) for part in path.split("/") if part != ".")]
    for directory in directories:
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limit = int((directory / name).read_text())
                if limit < _UNLIMITED:
                    yield limit


def _unescape(text: str) -> str:
    """A path as mountinfo writes it."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
