"""Who somebody is: the ids of struct kdbus_creds and kdbus_pids, in their order there."""

from __future__ import annotations

from typing import NamedTuple


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
