"""The thread that issued a command: its credentials, namespaces, memory and descriptors.

Once FUSE has read a request, the kernel keeps the thread in its ioctl until the reply, even if it is killed.  So its
thread id cannot be reused while the request is open, deferred requests included.  The pidfd is a second check: memory
and descriptors are accessed only while it reports that the thread is alive.
"""

from __future__ import annotations

import os
from errno import EACCES, ENOTTY, EPERM, ESRCH
from typing import TYPE_CHECKING, Any, Final

from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import NO_ID, Creds, Pids
from kdbusfs.base.ports import Caller, Memory, ProcessMetadata
from kdbusfs.native._native import ffi, lib
from kdbusfs.native.calls import payload

from . import metadata as meta
from .credentials import CAP_IPC_OWNER, Status
from .memory import PoolMemory
from .namespaces import Maps, NamespaceReader, Namespaces
from .proc import fail

if TYPE_CHECKING:
    from kdbusfs.base.handle import Handle
    from kdbusfs.base.ports import Reader

    from .files import Descriptors, LinuxFile

_PID_LIMIT: Final = 1 << 22  # the kernel's greatest pid_max
_VECTORS: Final = 128
_COPIED_AT_ONCE: Final = 1 << 19
"""Bytes that a turn copies before it can yield: the pages of a new pool take 0.5 ms for each MiB."""
_ids: Final[Any] = ffi.new("uint32_t[11]")
_identity: Final[Any] = ffi.new("uint64_t[3]")
_unpack: Final[Any] = ffi.unpack
_make_ids: Final = Creds._make
_payload: Final[Any] = lib.kfs_client_payload
_write: Final[Any] = lib.kfs_client_write
_read: Final[Any] = lib.kfs_client_read
_from_buffer: Final[Any] = ffi.from_buffer
_IOCTL_32BIT: Final = 1 << 3  # FUSE_IOCTL_32BIT

Root = tuple[int, int, int]
"""Device, inode and mount of a root directory."""


def root_of(tid: int) -> Root | None:
    """Identity of the thread's root directory; None if the daemon may not see it.  Raises CommandError(ESRCH)."""
    r: int = lib.kfs_proc_root(tid, _identity)
    if r == 0:
        return (_identity[0], _identity[1], _identity[2])
    error = fail(r, "root")
    if error.errno == ESRCH:
        raise error
    return None


class LinuxCaller(Caller):
    """ports.Caller for thread `tid`.  One object is reused for all requests (`reset`); `defer` makes a copy.

    Values are read lazily and cached for the request.
    """

    __slots__ = (
        "_channel",
        "_descriptors",
        "_ids",
        "_maps",
        "_numbers",
        "_owned",
        "_pid_ns",
        "_pidfd",
        "_root",
        "_status",
        "_user_ns",
        "_vectors",
        "namespaces",
        "own_root",
        "tid",
    )

    def __init__(self, namespaces: Namespaces, descriptors: Descriptors, own_root: Root | None) -> None:
        self.namespaces = namespaces
        self.own_root = own_root
        self._descriptors = descriptors
        self._owned = False
        self._pidfd = -1
        self._vectors: Any = None
        self._channel: Any = None
        self.reset(0, -1)

    def reset(self, tid: int, pidfd: int = -1) -> None:
        """Represent thread `tid` from now on.

        pidfd: from kfs_thread_open, owned by the caller of this method.  If it is -1, one is opened when it is needed,
        and closed at the next reset.
        """
        if self._owned:
            self._owned = False
            os.close(self._pidfd)
        self.tid = tid
        self._pidfd = pidfd
        self._ids: Creds | None = None
        self._numbers: Pids | None = None
        self._status: Status | None = None
        self._user_ns = 0
        self._pid_ns = 0
        self._root: Root | bool | None = False
        self._maps: Maps | None = None

    def close(self) -> None:
        """Close an own pidfd."""
        self.reset(0, -1)

    def __del__(self) -> None:
        if self._owned:
            os.close(self._pidfd)

    def view(self, users: Reader | None = None) -> NamespaceReader:
        """A snapshot of the thread's namespaces and root directory.  Raises CommandError(ESRCH)."""
        users = users or self.view_users()
        assert isinstance(users, NamespaceReader)
        return users.with_others(self.pid_ns, self.root)

    def view_users(self) -> NamespaceReader:
        """The same of its user namespace alone.  Raises CommandError(ESRCH)."""
        if self.user_ns == self.namespaces.user:
            return self.namespaces.own_users
        return NamespaceReader(self.namespaces, self.user_ns, self._foreign_maps(), self.user_chain)

    @property
    def user_chain(self) -> tuple[tuple[int, int], ...]:
        """Its user namespace and those around it; see `ports.Reader`.  Raises CommandError(ESRCH)."""
        return self.namespaces.user_chain(self.tid)

    def defer(self) -> LinuxCaller:
        """A copy that is valid until the ioctl is answered.  It opens no pidfd until it is used."""
        caller = LinuxCaller(self.namespaces, self._descriptors, self.own_root)
        caller.tid = self.tid
        return caller

    @property
    def pidfd(self) -> int:
        """A pidfd of the thread, or of its process if the kernel has no thread pidfds (native/thread.c).  Only `tid`
        and the pidfd together identify the thread.

        Raises CommandError(ESRCH, EMFILE).  ESRCH also for thread 0: FUSE reports 0 for a thread that is not in the
        daemon's pid namespace.
        """
        if self._pidfd < 0:
            fd: int = lib.kfs_thread_open(self.tid)
            if fd < 0:
                raise CommandError(-fd, "pidfd")
            self._pidfd = fd
            self._owned = True
        return self._pidfd

    # Credentials

    def _load(self) -> Creds:
        r: int = lib.kfs_thread_ids(self.pidfd, self.tid, _ids)
        if r == 0:
            values = _unpack(_ids, 11)
            self._ids = ids = _make_ids(values[:8])
            self._numbers = Pids(values[8], values[9], values[10])
            return ids
        if r != -ENOTTY:
            raise fail(r, "credentials")
        # The kernel has no ids by pidfd: read /proc, then check that the thread id was not reused meanwhile.
        status = self.status()
        r = lib.kfs_thread_is_alive(self._pidfd, self.tid)
        if r != 1:
            raise fail(r or -ESRCH, "credentials")
        self._ids = ids = status.ids()
        self._numbers = Pids(*status.numbers(b"Tgid"), *status.numbers(b"Pid"), *status.numbers(b"PPid"))
        return ids

    def ids(self) -> Creds:
        """Its credentials now (POL-13).  Raises CommandError(ESRCH)."""
        ids = self._ids
        return ids if ids is not None else self._load()

    def pids(self) -> Pids:
        """Its ids in the daemon's pid namespace.  Raises CommandError(ESRCH)."""
        if self._numbers is None:
            self._load()
        assert self._numbers is not None
        return self._numbers

    def status(self) -> Status:
        """/proc/TID/status, cached for the request.  Raises CommandError(ESRCH)."""
        status = self._status
        if status is None:
            self._status = status = meta.status_of(self.tid)
        return status

    @property
    def user(self) -> int:
        """Its real uid, which limits are accounted to (BUS-7, HELLO-13, QUO-3)."""
        return self.ids().uid

    def groups(self) -> tuple[int, ...]:
        """Its supplementary groups now, in kernel order."""
        return self.status().groups()

    def has_ipc_owner(self) -> bool:
        """Whether it has CAP_IPC_OWNER in effect in the domain's user namespace (PRIV-1, NS-2).

        The domain's user namespace is the daemon's.  A capability is valid in the thread's namespace and its
        descendants, so one of a child namespace does not count.  FUSE rejects threads of ancestor namespaces; they get
        False, too, because the daemon cannot verify that relation.
        """
        r: int = lib.kfs_thread_capability(self.tid, CAP_IPC_OWNER)
        if r < 0:
            raise fail(r, "capabilities")
        return r == 1 and self.user_ns == self.namespaces.user

    # Namespaces

    @property
    def user_ns(self) -> int:
        """Identity of its user namespace.  Raises CommandError(ESRCH)."""
        if not self._user_ns:
            self._user_ns = self.namespaces.user_of(self.tid)
        return self._user_ns

    @property
    def pid_ns(self) -> int:
        """Identity of its pid namespace.  Raises CommandError(ESRCH)."""
        if not self._pid_ns:
            self._pid_ns = self.namespaces.pid_of(self.tid)
        return self._pid_ns

    @property
    def root(self) -> Root | None:
        """Identity of its root directory; None, which no metadata has, if it is not visible."""
        if self._root is False:
            self._root = root_of(self.tid)
        return self._root  # type: ignore[return-value]

    def _foreign_maps(self) -> Maps | None:
        """The id maps of its user namespace; None for the daemon's own, whose ids are the global ones."""
        user_ns = self.user_ns
        if user_ns == self.namespaces.user:
            return None
        if self._maps is None:
            self._maps = self.namespaces.maps_of(self.tid, user_ns)
        return self._maps

    def uid_from_global(self, uid: int) -> int:
        """`uid` as the caller sees it; the overflow id where unmapped; NO_ID stays NO_ID (META-6)."""
        return self.namespaces.shown_uid(self._foreign_maps(), uid)

    def gid_from_global(self, gid: int) -> int:
        """The same for a gid."""
        return self.namespaces.shown_gid(self._foreign_maps(), gid)

    def gids_from_global(self, gids: tuple[int, ...]) -> bytes:
        """Many gids as `gid_from_global` has them, as packed u32."""
        return self.namespaces.shown_gids(self._foreign_maps(), gids)

    def maps_uid(self, uid: int) -> bool:
        """Whether the global `uid` is mapped in the caller's user namespace."""
        maps = self._foreign_maps()
        return maps is None or maps.uid.to_inside(uid) is not None

    def uid_to_global(self, uid: int) -> int | None:
        """A uid of the caller's user namespace as a global one; None where unmapped (POL-2, NS-4)."""
        if not 0 <= uid < NO_ID:
            return None
        maps = self._foreign_maps()
        return uid if maps is None else maps.uid.to_outside(uid)

    def gid_to_global(self, gid: int) -> int | None:
        """The same for a gid."""
        if not 0 <= gid < NO_ID:
            return None
        maps = self._foreign_maps()
        return gid if maps is None else maps.gid.to_outside(gid)

    def domain_uid(self, uid: int) -> int | None:
        """A global uid in the domain's user namespace; None if unmapped (BUS-5)."""
        # Global ids are those of the daemon's namespace, which is also the domain's.
        return uid if 0 <= uid < NO_ID else None

    def pids_of(self, pid: int) -> dict[int, int] | None:
        """The ids of `pid` of the caller's pid namespace, by namespace; None if there is no such process (HELLO-11)."""
        if not 0 < pid <= _PID_LIMIT:
            return None
        try:
            found = self.namespaces.global_pid(self.tid, pid)
            if found is None:
                return None
            return meta.numbers_of(found, self.namespaces.pid_chain(found)) or None
        except CommandError as error:
            if error.errno in (ESRCH, EPERM, EACCES):
                return None
            raise

    def collect(self, metadata: ProcessMetadata, kinds: int) -> None:
        """Add those of `kinds` (ATTACH_* bits) that `metadata` lacks; see metadata.collect."""
        meta.collect(self, metadata, kinds)

    # Memory and descriptors

    def write(self, address: int, data: bytes) -> None:
        """Store `data` in the caller's memory.  Raises CommandError: EFAULT, ESRCH, EPERM (ptrace access denied)."""
        pidfd = self._pidfd
        r: int = _write(pidfd if pidfd >= 0 else self.pidfd, self.tid, address, data, len(data))
        if r < 0:
            raise fail(r, "client memory")

    def come_by(self, channel: Any) -> None:
        """Its requests come by this channel (struct kfs_channel)."""
        self._channel = channel

    @property
    def is_compat(self) -> bool:
        """Whether its program is of 32 bits, for the request that its channel has now; unknown of others: False."""
        return self._channel is not None and bool(self._channel.ioctl_flags & _IOCTL_32BIT)

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of the caller's memory.  Raises CommandError: EFAULT, ESRCH, EPERM."""
        data = bytearray(size)
        pidfd = self._pidfd
        r: int = _read(pidfd if pidfd >= 0 else self.pidfd, self.tid, address, _from_buffer(data), size)
        if r < 0:
            raise fail(r, "client memory")
        return bytes(data)

    def thread_ids(self) -> dict[int, Pids]:
        """Its numbers by pid namespace in which it is visible.  Raises CommandError(ESRCH)."""
        return meta.pids_in(self)

    def security_context(self) -> bytes | None:
        """What a security module labels it with; None where there is none.  Raises CommandError(ESRCH)."""
        return meta.security_label(self)

    def handle_of(self, fd: int) -> Handle | None:
        """The open file of the same mount that its descriptor `fd` refers to; None for any other file.

        Raises CommandError: EBADF, also for an O_PATH descriptor; ESRCH.
        """
        return self._descriptors.handle_of(self.tid, fd)

    def copy_payload(self, memory: Memory, offset: int, vectors: list[tuple[int, int]]) -> None:
        """Copy (address, size) vectors of the client into `memory` at `offset`; address 0 stands for zero bytes.

        Each byte is copied once.  Raises CommandError: EFAULT if any byte is unreadable, ESRCH, EPERM, ENOMEM.
        """
        assert isinstance(memory, PoolMemory)
        if len(vectors) == 1:
            address, size = vectors[0]
            if address:
                self._copy_vector(memory, offset, address, size)
                return
        while len(vectors) > _VECTORS:
            offset = self._copy_vectors(memory, offset, vectors[:_VECTORS])
            vectors = vectors[_VECTORS:]
        self._copy_vectors(memory, offset, vectors)

    def _copy_vector(self, memory: PoolMemory, offset: int, address: int, size: int) -> None:
        """Hot path: a single vector."""
        mapping = memory.mapped(offset + size)
        pidfd = self._pidfd
        done = 0
        while size - done > _COPIED_AT_ONCE:
            r = payload(
                pidfd if pidfd >= 0 else self.pidfd,
                self.tid,
                mapping.address,
                offset + done,
                address + done,
                _COPIED_AT_ONCE,
            )
            if r < 0:
                raise fail(r, "payload")
            done += _COPIED_AT_ONCE
        r = payload(
            pidfd if pidfd >= 0 else self.pidfd, self.tid, mapping.address, offset + done, address + done, size - done
        )
        if r < 0:
            raise fail(r, "payload")
        memory.written(offset, size)

    def _copy_vectors(self, memory: PoolMemory, offset: int, vectors: list[tuple[int, int]]) -> int:
        """Copy at most _VECTORS vectors; returns the offset behind them."""
        # Own array and a reference to the mapping: the reader can be preempted in the copy (fuse.ownership).
        array = self._vectors
        if array is None:
            array = self._vectors = ffi.new("uint64_t[]", 2 * _VECTORS)
        i = 0
        end = offset
        for address, size in vectors:
            array[i] = address
            array[i + 1] = size
            end += size
            i += 2
        mapping = memory.mapped(end)
        pidfd = self._pidfd
        r: int = _payload(
            pidfd if pidfd >= 0 else self.pidfd, self.tid, memory.fd, mapping.base, offset, array, len(vectors)
        )
        if r < 0:
            raise fail(r, "payload")
        memory.written(offset, end - offset)
        return end

    def take_file(self, fd: int) -> LinuxFile:
        """The caller's descriptor `fd`, pinned.  Raises CommandError: EBADF, EMFILE at the limits, ESRCH, EPERM."""
        return self._descriptors.take(self.tid, self.pidfd, fd, self.user)


__all__ = ["LinuxCaller", "Root", "root_of"]
