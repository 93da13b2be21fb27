"""User and pid namespaces: their identity, the translation of ids, and the chain of pid namespaces of a
thread.
"""

from __future__ import annotations

import os
from errno import EACCES, ENOTTY, EPERM, ESRCH
from pathlib import Path
from typing import NamedTuple

from kdbusfs.core.ports import NO_ID
from kdbusfs.native._native import ffi, lib

from .proc import fail, read, setting

MAX_PID_LEVELS = 32  # the kernel's own limit
MAX_CACHED = 256  # user namespaces whose maps are kept
MAX_MAP_SIZE = 65536  # bytes of a uid_map; 340 extents take 11 KiB


class Extent(NamedTuple):
    """`length` ids from `inside` on are those from `outside` on in the daemon's namespace."""

    inside: int
    outside: int
    length: int


IdMap = tuple[Extent, ...]


def parse_id_map(text: bytes) -> IdMap:
    """The extents of a uid_map or gid_map, as read by the daemon; what the daemon's namespace lacks is left
    out.
    """
    rows = (Extent(*map(int, line.split())) for line in text.splitlines())
    return tuple(row for row in rows if row.outside != NO_ID)


def to_outside(extents: IdMap, inside: int) -> int | None:
    """The global id of `inside`; None where unmapped."""
    for extent in extents:
        if 0 <= inside - extent.inside < extent.length:
            return extent.outside + inside - extent.inside
    return None


def to_inside(extents: IdMap, outside: int) -> int | None:
    """The id that the namespace has for the global `outside`; None where unmapped."""
    for extent in extents:
        if 0 <= outside - extent.outside < extent.length:
            return extent.inside + outside - extent.outside
    return None


class Maps(NamedTuple):
    """The two id maps of a user namespace."""

    uid: IdMap
    gid: IdMap


class Namespaces:
    """The daemon's own namespaces, which are the domain's, and what is known of those of clients.

    A namespace is identified by the number that the kernel never gives to another one.  Kernels without
    NS_GET_ID only have the inode number, which may be used again once a namespace is gone: there no map is
    kept from one request to the next.

    has_labels: False once the kernel has said that none of its security modules labels threads, which stays so.
    owner: uid and gid of what belongs to root elsewhere: files of an id that is not mapped cannot be written to.
    """

    __slots__ = (
        "_cached",
        "_own_pid_inode",
        "_own_user_inode",
        "_unique",
        "_word",
        "has_labels",
        "overflow_gid",
        "overflow_uid",
        "owner",
        "pid",
        "user",
    )

    def __init__(self) -> None:
        self._word = ffi.new("uint64_t *")
        self._cached: dict[int, Maps] = {}
        self._unique = True
        self.has_labels = True
        self._own_user_inode, self.user = self._own("ns/user")
        self._own_pid_inode, self.pid = self._own("ns/pid")
        self.owner = (self._root_or(os.geteuid(), "uid_map"), self._root_or(os.getegid(), "gid_map"))
        self.overflow_uid = setting("kernel/overflowuid")
        self.overflow_gid = setting("kernel/overflowgid")

    @staticmethod
    def _root_or(other: int, name: str) -> int:
        """0, or `other` in a namespace that has no such id."""
        return 0 if to_outside(parse_id_map(Path("/proc/self", name).read_bytes()), 0) is not None else other

    def _own(self, name: str) -> tuple[int, int]:
        fd = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.fstat(fd).st_ino, self._identity(fd)
        finally:
            os.close(fd)

    def _identity(self, fd: int) -> int:
        if self._unique:
            r: int = lib.kfs_namespace_id(fd, self._word)
            if r == 0:
                return int(self._word[0])
            if r != -ENOTTY:
                raise fail(r, "namespace id")
            self._unique = False
        return os.fstat(fd).st_ino

    def _inode(self, tid: int, name: bytes) -> int:
        r: int = lib.kfs_namespace_inode(tid, name, self._word)
        if r < 0:
            raise fail(r, "namespace")
        return int(self._word[0])

    def _foreign(self, tid: int, name: bytes) -> int:
        fd: int = lib.kfs_namespace_open(tid, name)
        if fd < 0:
            raise fail(fd, "namespace")
        try:
            return self._identity(fd)
        finally:
            os.close(fd)

    def user_of(self, tid: int) -> int:
        """Identity of the thread's user namespace.  Raises KdbusError(ESRCH, EPERM)."""
        if self._inode(tid, b"ns/user") == self._own_user_inode:
            return self.user
        return self._foreign(tid, b"ns/user")

    def pid_of(self, tid: int) -> int:
        """Identity of the thread's pid namespace.  Raises KdbusError(ESRCH, EPERM)."""
        if self._inode(tid, b"ns/pid") == self._own_pid_inode:
            return self.pid
        return self._foreign(tid, b"ns/pid")

    def maps_of(self, tid: int, user_ns: int) -> Maps:
        """The maps of the foreign namespace `user_ns`, in which thread `tid` lives.  Raises
        KdbusError(ESRCH).
        """
        maps = self._cached.get(user_ns)
        if maps is None:
            maps = Maps(
                parse_id_map(read(tid, b"uid_map", MAX_MAP_SIZE)),
                parse_id_map(read(tid, b"gid_map", MAX_MAP_SIZE)),
            )
            # A map is written once; until then everything is unmapped.
            if self._unique and maps.uid and maps.gid:
                if len(self._cached) >= MAX_CACHED:
                    del self._cached[next(iter(self._cached))]
                self._cached[user_ns] = maps
        return maps

    def pid_chain(self, tid: int) -> tuple[int, ...]:
        """The pid namespaces in which the thread has a number, from the daemon's own inwards.

        Raises KdbusError(ESRCH), also for a thread that is not below the daemon's namespace.
        """
        if self._inode(tid, b"ns/pid") == self._own_pid_inode:
            return (self.pid,)
        fd: int = lib.kfs_namespace_open(tid, b"ns/pid")
        chain: list[int] = []
        while fd >= 0:
            try:
                chain.append(self._identity(fd))
                if chain[-1] == self.pid:
                    return tuple(reversed(chain))
                parent = lib.kfs_namespace_parent(fd) if len(chain) <= MAX_PID_LEVELS else -EPERM
            finally:
                os.close(fd)
            fd = parent
        raise fail(-ESRCH if fd in (-EPERM, -EACCES) else fd, "pid namespace")

    def global_pid(self, tid: int, pid: int) -> int | None:
        """The daemon's number for `pid` of the pid namespace of thread `tid`; None where there is no such
        process.
        """
        if self._inode(tid, b"ns/pid") == self._own_pid_inode:
            return pid
        fd: int = lib.kfs_namespace_open(tid, b"ns/pid")
        if fd < 0:
            raise fail(fd, "pid namespace")
        try:
            found: int = lib.kfs_namespace_pid(fd, pid)
        finally:
            os.close(fd)
        # Kernels before 6.11 cannot tell (ENOTTY); there a number of a child namespace is refused.
        return found if found > 0 else None
