"""The ids of a thread."""

from __future__ import annotations

from typing import Final, NamedTuple

NO_ID: Final = 0xFFFFFFFF
"""A uid or gid that is "none" (META-6)."""


class Creds(NamedTuple):
    """The user and group ids of a thread; 0xFFFFFFFF is "none"."""

    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int


class Pids(NamedTuple):
    """Thread group, thread, and thread group of the parent, as one pid namespace numbers them; 0: not visible there."""

    pid: int
    tid: int
    ppid: int


NO_PIDS: Final = Pids(0, 0, 0)
"""Sentinel for a process that is not visible."""
