"""User and pid namespaces: identities, translation of ids, and the chain of pid namespaces of a thread."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from errno import EACCES, ENOTTY, EPERM, ESRCH
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from kdbusfs.base.identity import NO_ID
from kdbusfs.native._native import ffi, lib

from .proc import fail, read, setting

MAX_PID_LEVELS = 32  # the kernel's limit
MAX_USER_LEVELS = 33  # the same
MAX_CACHED = 256  # user namespaces whose maps are cached
MAX_MAP_SIZE = 65536  # bytes of a uid_map; 340 extents take 11 KiB
_EXTENT: Final = Struct("<III")  # struct kfs_extent


class Extent(NamedTuple):
    """Ids [inside, inside + length) of a namespace are [outside, outside + length) in the daemon's."""

    inside: int
    outside: int
    length: int


class IdMap:
    """The extents of a uid_map or gid_map, up to 340, searched by bisection in both directions.

    The kernel ensures that they do not overlap.
    """

    __slots__ = ("_by_inside", "_by_outside", "_inside", "_outside", "_packed")

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._by_inside = sorted(extents)
        self._by_outside = sorted(self._by_inside, key=lambda extent: extent.outside)
        self._inside = [extent.inside for extent in self._by_inside]
        self._outside = [extent.outside for extent in self._by_outside]
        self._packed = b"".join(
            _EXTENT.pack(extent.outside, extent.inside, extent.length) for extent in self._by_outside
        )

    def __len__(self) -> int:
        return len(self._by_inside)

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._by_inside)

    def to_outside(self, inside: int) -> int | None:
        """The global id for `inside`; None if unmapped."""
        at = bisect_right(self._inside, inside) - 1
        if at < 0:
            return None
        extent = self._by_inside[at]
        return extent.outside + inside - extent.inside if inside - extent.inside < extent.length else None

    def to_inside(self, outside: int) -> int | None:
        """The namespace's id for the global `outside`; None if unmapped."""
        at = bisect_right(self._outside, outside) - 1
        if at < 0:
            return None
        extent = self._by_outside[at]
        return extent.inside + outside - extent.outside if outside - extent.outside < extent.length else None

    def all_to_inside(self, ids: bytes, unmapped: int) -> bytes:
        """Translate packed u32 ids; NO_ID stays."""
        translated = bytearray(ids)
        lib.kfs_ids_map(
            ffi.from_buffer("uint32_t[]", translated),
            len(ids) // 4,
            ffi.from_buffer("struct kfs_extent[]", self._packed),
            len(self._by_outside),
            unmapped,
        )
        return bytes(translated)


def parse_id_map(text: bytes) -> IdMap:
    """Parse a map; ids that are unmapped in the daemon's namespace are omitted."""
    rows = [Extent(*map(int, line.split())) for line in text.splitlines()]
    return IdMap(row for row in rows if row.outside != NO_ID)


class Maps(NamedTuple):
    """The two id maps of a user namespace."""

    uid: IdMap
    gid: IdMap


class Namespaces:
    """The daemon's own namespaces, which are the domain's, and a cache of those of clients.

    A namespace is identified by its NS_GET_ID, which is never reused.  Older kernels have only the inode number, which
    may be reused; there no map is cached across requests.

    has_labels: False once the kernel reported that no security module labels threads.
    own_users: a view of the daemon's own user namespace, of no thread.
    owner: uid and gid for files that belong to root otherwise: the kernel refuses writes to files of unmapped ids.
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
        "own_users",
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
        self.own_users = NamespaceReader(self, self.user, None, ((self.user, NO_ID),))
        self._own_pid_inode, self.pid = self._own("ns/pid")
        self.owner = (self._root_or(os.geteuid(), "uid_map"), self._root_or(os.getegid(), "gid_map"))
        self.overflow_uid = setting("kernel/overflowuid")
        self.overflow_gid = setting("kernel/overflowgid")

    @staticmethod
    def _root_or(other: int, name: str) -> int:
        """0, or `other` if 0 is not mapped in this namespace."""
        return 0 if parse_id_map(Path("/proc/self", name).read_bytes()).to_outside(0) is not None else other

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
        """Identity of the thread's user namespace.  Raises CommandError(ESRCH, EPERM)."""
        if self._inode(tid, b"ns/user") == self._own_user_inode:
            return self.user
        return self._foreign(tid, b"ns/user")

    def user_chain(self, tid: int) -> tuple[tuple[int, int], ...]:
        """The user namespaces of the thread, from its own outwards to the daemon's, each with the uid that made it.

        Where the daemon's own is not among those around it, the chain ends before what the daemon may not see.  Raises
        CommandError(ESRCH, EPERM).
        """
        if self._inode(tid, b"ns/user") == self._own_user_inode:
            return self.own_users.user_chain
        fd: int = lib.kfs_namespace_open(tid, b"ns/user")
        if fd < 0:
            raise fail(fd, "namespace")
        chain: list[tuple[int, int]] = []
        while fd >= 0:
            try:
                identity = self._identity(fd)
                owner: int = lib.kfs_namespace_owner(fd) if identity != self.user else NO_ID
                chain.append((identity, owner if owner >= 0 else NO_ID))
                is_last = identity == self.user or len(chain) > MAX_USER_LEVELS
                parent = -1 if is_last else lib.kfs_namespace_parent(fd)
            finally:
                os.close(fd)
            fd = parent
        return tuple(chain)

    def pid_of(self, tid: int) -> int:
        """Identity of the thread's pid namespace.  Raises CommandError(ESRCH, EPERM)."""
        if self._inode(tid, b"ns/pid") == self._own_pid_inode:
            return self.pid
        return self._foreign(tid, b"ns/pid")

    def maps_of(self, tid: int, user_ns: int) -> Maps:
        """The maps of `user_ns`, the namespace of thread `tid`.  Raises CommandError(ESRCH)."""
        maps = self._cached.get(user_ns)
        if maps is None:
            maps = Maps(
                parse_id_map(read(tid, b"uid_map", MAX_MAP_SIZE)),
                parse_id_map(read(tid, b"gid_map", MAX_MAP_SIZE)),
            )
            # A map can be written only once; until then all ids are unmapped.
            if self._unique and maps.uid and maps.gid:
                if len(self._cached) >= MAX_CACHED:
                    del self._cached[next(iter(self._cached))]
                self._cached[user_ns] = maps
        return maps

    def shown_uid(self, maps: Maps | None, uid: int) -> int:
        """A global uid as a namespace with `maps` (None: the daemon's) has it; see `ports.Reader`."""
        if maps is None or uid == NO_ID:
            return uid
        inside = maps.uid.to_inside(uid)
        return self.overflow_uid if inside is None else inside

    def shown_gid(self, maps: Maps | None, gid: int) -> int:
        """The same for a gid."""
        if maps is None or gid == NO_ID:
            return gid
        inside = maps.gid.to_inside(gid)
        return self.overflow_gid if inside is None else inside

    def shown_gids(self, maps: Maps | None, gids: tuple[int, ...]) -> bytes:
        """Many gids in the same way, as packed u32."""
        packed = Struct(f"<{len(gids)}I").pack(*gids)
        return packed if maps is None else maps.gid.all_to_inside(packed, self.overflow_gid)

    def pid_chain(self, tid: int) -> tuple[int, ...]:
        """The pid namespaces of the thread, from the daemon's own inwards.

        Raises CommandError(ESRCH), also for a thread that is not in the daemon's namespace.
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
        """Translate `pid` of the pid namespace of thread `tid` to the daemon's; None if there is no such process."""
        if self._inode(tid, b"ns/pid") == self._own_pid_inode:
            return pid
        fd: int = lib.kfs_namespace_open(tid, b"ns/pid")
        if fd < 0:
            raise fail(fd, "pid namespace")
        try:
            found: int = lib.kfs_namespace_pid(fd, pid)
        finally:
            os.close(fd)
        # Kernels before 6.11 cannot translate (ENOTTY): ids of a child namespace are rejected there.
        return found if found > 0 else None


class NamespaceReader:
    """ports.Reader of a thread that may have ended: a snapshot of its namespaces and root directory.

    maps: of the user namespace, None for the daemon's own; chain: that and those around it.
    """

    __slots__ = ("_maps", "_namespaces", "pid_ns", "root", "user_chain", "user_ns")

    def __init__(
        self, namespaces: Namespaces, user_ns: int, maps: Maps | None, chain: tuple[tuple[int, int], ...]
    ) -> None:
        self._namespaces = namespaces
        self._maps = maps
        self.user_ns = user_ns
        self.user_chain = chain
        self.pid_ns = 0
        self.root: tuple[int, int, int] | None = None

    def with_others(self, pid_ns: int, root: tuple[int, int, int] | None) -> NamespaceReader:
        """The same user namespace with another pid namespace and root directory."""
        reader = NamespaceReader(self._namespaces, self.user_ns, self._maps, self.user_chain)
        reader.pid_ns = pid_ns
        reader.root = root
        return reader

    def uid_from_global(self, uid: int) -> int:
        return self._namespaces.shown_uid(self._maps, uid)

    def gid_from_global(self, gid: int) -> int:
        return self._namespaces.shown_gid(self._maps, gid)

    def gids_from_global(self, gids: tuple[int, ...]) -> bytes:
        return self._namespaces.shown_gids(self._maps, gids)

    def maps_uid(self, uid: int) -> bool:
        return self._maps is None or self._maps.uid.to_inside(uid) is not None
