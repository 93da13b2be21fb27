"""Descriptors that clients pass: taken, inspected, bounded for each user, and closed without blocking the reader.

A passed file may be on a FUSE file system whose hostile server never answers.  So the reader uses only system calls
that the kernel answers by itself, and leaves close(2), which sends FLUSH, to a `closer`.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EBADF, EMFILE, ENFILE, ENOENT
from typing import TYPE_CHECKING, Any, Final, Protocol

from kdbusfs.base import mountinfo
from kdbusfs.base.errors import CommandError
from kdbusfs.native._native import ffi, lib

from .proc import fail, read

if TYPE_CHECKING:
    from kdbusfs.base.handle import Handle

AF_UNIX: Final = 1
CONTROL_INO: Final = 2
BUS_TYPE: Final = b"fuse.kdbusfs"
MAX_PER_USER: Final = 16384
MAX_FDINFO: Final = 4096
MAX_MOUNTINFO: Final = 1 << 18  # bytes of a mountinfo file that are searched
INLINE_CLOSE_MAX: Final = 64 << 20  # bytes; freeing a larger memfd would exceed a turn of the reader
_INT_MAX: Final = (1 << 31) - 1
_PRIVATE: Final = b"/.kdbusfs/"


class Closer(Protocol):
    """Closes descriptors in threads that may block (host.closer)."""

    def close_later(self, user: int, fd: int) -> None:
        """Close `fd`, which came from `user`."""

    def closing(self, user: int) -> int:
        """Number of descriptors of `user` that wait to be closed."""


class InlineCloser:
    """Closes at once: for processes that receive no files of hostile clients."""

    __slots__ = ()

    def close_later(self, user: int, fd: int) -> None:
        # the error is the file system's reply to FLUSH; the descriptor is closed in any case
        with suppress(OSError):
            os.close(fd)

    def closing(self, user: int) -> int:
        return 0


_facts: Final[Any] = ffi.new("struct kfs_file *")
_type: Final[Any] = ffi.new("char[]", 64)
_node: Final[Any] = ffi.new("struct kfs_file_node *")
_mount_id: Final[Any] = ffi.new("uint64_t *")


class Facts:
    """Facts about a descriptor that the kernel has without asking a file system (`struct kfs_file`)."""

    __slots__ = ("device", "domain", "flags", "inode", "mode")

    def __init__(self, fd: int) -> None:
        r: int = lib.kfs_file_look(fd, _facts)
        if r < 0:
            raise fail(r, "passed file")
        self.flags: int = _facts.flags
        self.domain: int = _facts.domain
        self.mode: int = _facts.mode
        self.device: tuple[int, int] = (_facts.major, _facts.minor)
        self.inode: int = _facts.inode


class Descriptors:
    """Client descriptors held by the daemon, counted for each user until close(2) has returned.

    All users together may hold 3/4 of RLIMIT_NOFILE; one user half of that, and at most `per_user`.
    own_device: of the own mount; find_handle: gives the open file of one of its node ids.
    """

    __slots__ = ("_closer", "_closing", "_held", "_per_user", "_total", "_total_held", "find_handle", "own_device")

    def __init__(self, closer: Closer | None = None, per_user: int = MAX_PER_USER) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._total = (soft if soft != resource.RLIM_INFINITY else 1 << 20) * 3 // 4
        self._per_user = min(per_user, self._total // 2)
        self._held: dict[int, int] = {}
        self._closing: dict[int, int] = {}  # of those held: how many the closer had when last checked
        self._total_held = 0
        self._closer: Closer = closer if closer is not None else InlineCloser()
        self.own_device: tuple[int, int] | None = None
        self.find_handle: Callable[[int], Handle | None] = lambda nodeid: None

    def held(self, user: int) -> int:
        """Number of descriptors held for `user`, including those that are being closed."""
        self._uncount_closed(user)
        return self._held.get(user, 0)

    def take(self, tid: int, pidfd: int, fd: int, user: int) -> LinuxFile:
        """Take descriptor `fd` of thread `tid`, accounted to `user`.

        Raises CommandError: EBADF; EMFILE at the limits; ESRCH, EPERM if the thread cannot be accessed.
        """
        if not 0 <= fd <= _INT_MAX:
            raise CommandError(EBADF, "no descriptor number")
        held = self.held(user)
        if self._total_held >= self._total:
            for other in tuple(self._closing):
                self._uncount_closed(other)
        if held >= self._per_user or self._total_held >= self._total:
            raise CommandError(EMFILE, "too many descriptors in flight")
        own: int = lib.kfs_thread_take(pidfd, tid, fd)
        if own < 0:
            if own == -ENFILE:
                own = -EMFILE
            raise fail(own, "descriptor")
        self._held[user] = held + 1
        self._total_held += 1
        return LinuxFile(self, own, user, tid)

    def handle_of(self, tid: int, fd: int) -> Handle | None:
        """The open file of the own mount that descriptor `fd` of thread `tid` refers to; None for any other file.

        Neither the file's server is asked, nor is the file held.  Raises CommandError: EBADF, also for an O_PATH
        descriptor; ESRCH.
        """
        r: int = lib.kfs_file_node(tid, fd, _node)
        if r == -ENOENT:
            raise CommandError(EBADF, "not open")
        if r < 0:
            raise fail(r, "descriptor")
        device, nodeid = (_node.major, _node.minor), _node.nodeid
        flags = read(tid, b"fdinfo/%d" % fd, MAX_FDINFO).partition(b"flags:\t")[2].partition(b"\n")[0]
        if not flags or int(flags, 8) & os.O_PATH:
            raise CommandError(EBADF, "opened with O_PATH")
        return self.find_handle(nodeid) if device == self.own_device else None

    def close(self, user: int, fd: int, inline: bool) -> None:
        """Close a taken descriptor: at once if `inline`, else in the closer."""
        if inline:
            os.close(fd)
            self._forget(user, 1)
        else:
            self._closing[user] = self._closing.get(user, 0) + 1
            self._closer.close_later(user, fd)

    def _uncount_closed(self, user: int) -> None:
        """Uncount the descriptors that the closer has closed since the last check."""
        before = self._closing.get(user, 0)
        if not before:
            return
        left = self._closer.closing(user)
        if left >= before:
            return
        if left:
            self._closing[user] = left
        else:
            del self._closing[user]
        self._forget(user, before - left)

    def _forget(self, user: int, count: int) -> None:
        self._total_held -= count
        left = self._held[user] - count
        if left:
            self._held[user] = left
        else:
            del self._held[user]


class LinuxFile:
    """ports.File."""

    __slots__ = ("_descriptors", "_facts", "_seals", "_seals_known", "fd", "tid", "user")

    def __init__(self, descriptors: Descriptors, fd: int, user: int, tid: int) -> None:
        self._descriptors = descriptors
        self._facts: Facts | None = None
        self._seals: int | None = None
        self._seals_known = False
        self.fd = fd
        self.user = user
        self.tid = tid

    @property
    def facts(self) -> Facts:
        """Facts about the file, cached."""
        facts = self._facts
        if facts is None:
            self._facts = facts = Facts(self.fd)
        return facts

    @property
    def is_bus_file(self) -> bool:
        """Whether it is an endpoint file of any kdbusfs mount (SEND-16).  Valid only while its sender waits.

        The own mount is identified by its device.  Mounts of other daemons are found only in the mount namespaces of
        the sender and of the daemon; a file of any other one passes.
        """
        return self.facts.inode != CONTROL_INO and self._is_of_a_mount()

    @property
    def is_control(self) -> bool:
        """Whether it is the `control` file of such a mount (L-60)."""
        return self.facts.inode == CONTROL_INO and self._is_of_a_mount()

    def _is_of_a_mount(self) -> bool:
        facts = self.facts
        if facts.flags & os.O_PATH or facts.device[0] != 0:
            return False
        # The kind is 0 (unknown) if a FUSE file system denies access to the daemon.
        if stat.S_IFMT(facts.mode) not in (0, stat.S_IFREG):
            return False
        if facts.device != self._descriptors.own_device and (
            self.seals() is not None or not _is_bus_mount(self.fd, self.tid)
        ):
            return False
        return _PRIVATE not in os.fsencode(os.readlink(f"/proc/self/fd/{self.fd}"))

    @property
    def is_unix_socket(self) -> bool:
        """Whether it is an AF_UNIX socket, not opened with O_PATH (SEND-16)."""
        return self.facts.domain == AF_UNIX

    @property
    def is_path(self) -> bool:
        """Whether it was opened with O_PATH."""
        return bool(self.facts.flags & os.O_PATH)

    def seals(self) -> int | None:
        """Its F_SEAL_* bits; None if the file does not support seals (SEND-13)."""
        if not self._seals_known:
            r: int = lib.kfs_file_seals(self.fd)
            self._seals = r if r >= 0 else None
            self._seals_known = True
        return self._seals

    def size(self) -> int:
        """Its size in bytes.  Raises CommandError(EBADF) unless it supports seals: others could block."""
        if self.seals() is None:
            raise CommandError(EBADF, "size of a file that cannot be sealed")
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        """Release it; call once.  Only memfds are closed at once."""
        fd = self.fd
        if fd < 0:
            return
        self.fd = -1
        inline = self._seals is not None and os.fstat(fd).st_size <= INLINE_CLOSE_MAX
        self._descriptors.close(self.user, fd, inline)


def _is_bus_mount(fd: int, tid: int) -> bool:
    own = os.getpid()
    for process in (tid, own):
        r: int = lib.kfs_file_mount(fd, process, _type, 64)
        if r < 0:
            continue
        found: bytes = ffi.string(_type)
        if r == 1 or found != b"fuse":
            return found == BUS_TYPE
    # The kernel reports no subtype before 6.13.
    mount = _mount_of(fd)
    if mount is None:
        return False
    for process in (own, tid):
        try:
            kind = mountinfo.type_of(read(process, b"mountinfo", MAX_MOUNTINFO), mount)
        except CommandError:
            continue
        if kind is not None:
            return kind == BUS_TYPE
    return False


def _mount_of(fd: int) -> bytes | None:
    r: int = lib.kfs_file_mount_id(fd, _mount_id)
    return b"%d" % _mount_id[0] if r == 0 else None
