"""The Linux host of a domain: makes callers and pools, and keeps what they share."""

from __future__ import annotations

import mmap
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from kdbusfs.base import ports

from .caller import LinuxCaller, root_of
from .files import MAX_PER_USER, Closer, Descriptors, LinuxFile
from .memory import Passthrough, PoolMemory
from .namespaces import Namespaces
from .turn import LinuxTurn
from .watch import LinuxWatch, Watcher


class LinuxClock:
    """ports.Clock."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic_ns)
    realtime = staticmethod(time.time_ns)


class LinuxHost:
    """ports.Host, and what the FUSE side needs of Linux beside it.

    fuse_fd: the /dev/fuse for backing ids, -1 for pools without; event_fd: an eventfd that is written to when
    `cancelled` has tokens; closer: closes passed descriptors in other threads;
    max_descriptors: how many passed descriptors are held for one user.
    """

    def __init__(
        self,
        fuse_fd: int = -1,
        event_fd: int = -1,
        closer: Closer | None = None,
        max_descriptors: int = MAX_PER_USER,
    ) -> None:
        self.clock = LinuxClock()
        self.turn = LinuxTurn()
        self.page_size = mmap.PAGESIZE
        self._passthrough = Passthrough(fuse_fd)
        self.namespaces = Namespaces()
        self.descriptors = Descriptors(closer, max_descriptors)
        self._root = root_of(os.getpid())
        self._watcher = Watcher(event_fd)

    def random_uuid(self) -> bytes:
        """16 bytes of a random UUID, version 4 (BUS-9)."""
        return uuid.uuid4().bytes

    def caller(self, tid: int, pidfd: int = -1) -> LinuxCaller:
        """The caller for thread `tid`; with a pidfd of the thread that stays the giver's, or -1."""
        caller = LinuxCaller(self.namespaces, self.descriptors, self._root)
        caller.reset(tid, pidfd)
        return caller

    def memory(self) -> PoolMemory:
        """A pool without a size, and without memory."""
        return PoolMemory(self._passthrough)

    def watch(self, file: ports.File, token: Any) -> LinuxWatch:
        """Have `cancelled` give `token` when `file` gets readable.

        Raises CommandError(EINVAL), and leaves the file to its owner, for one that cannot be polled, or whose
        answer its file system could hold back.
        """
        assert isinstance(file, LinuxFile)
        return self._watcher.add(file, token)

    def cancelled(self) -> list[Any]:
        """The tokens of watched files that got readable; asked for when `event_fd` was written."""
        return self._watcher.drain()

    def set_own_device(self, device: int) -> None:
        """The st_dev of the own mount, by which its files are known (SEND-16)."""
        self.descriptors.own_device = (os.major(device), os.minor(device))

    def close(self) -> None:
        """End what runs beside the reader."""
        self._watcher.close()


if TYPE_CHECKING:
    _host: type[ports.Host] = LinuxHost
    _clock: type[ports.Clock] = LinuxClock
    _caller: type[ports.Caller] = LinuxCaller
    _memory: type[ports.Memory] = PoolMemory
    _file: type[ports.File] = LinuxFile
    _cancellation: type[ports.Cancellation] = LinuxWatch
