"""The Linux host of a domain: makes callers and pools, and holds their shared state."""

from __future__ import annotations

import mmap
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from kdbusfs.base import ports

from .caller import LinuxCaller, root_of
from .files import MAX_PER_USER, Closer, Descriptors, LinuxFile
from .memory import KeptBackings, Passthrough, PoolMemory
from .namespaces import Namespaces
from .turn import LinuxTurn
from .watch import LinuxWatch, Watcher


class LinuxClock:
    """ports.Clock."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic_ns)
    realtime = staticmethod(time.time_ns)


class LinuxHost:
    """ports.Host, and further services for the FUSE side.

    fuse_fd: the /dev/fuse for backing ids, -1 for pools without; event_fd: an eventfd that is signalled when
    `cancelled` has tokens; closer: closes passed descriptors in other threads;
    max_descriptors: bound of passed descriptors for one user; kept_backings: where backing ids are noted.
    """

    def __init__(
        self,
        fuse_fd: int = -1,
        event_fd: int = -1,
        closer: Closer | None = None,
        max_descriptors: int = MAX_PER_USER,
        kept_backings: KeptBackings | None = None,
    ) -> None:
        self.clock = LinuxClock()
        self.turn = LinuxTurn()
        self.page_size = mmap.PAGESIZE
        self._passthrough = Passthrough(fuse_fd)
        self._passthrough.kept = kept_backings
        self.namespaces = Namespaces()
        self.descriptors = Descriptors(closer, max_descriptors)
        self._root = root_of(os.getpid())
        self._watcher = Watcher(event_fd)

    def random_uuid(self) -> bytes:
        """16 bytes of a random UUID, version 4 (BUS-9)."""
        return uuid.uuid4().bytes

    def caller(self, tid: int, pidfd: int = -1) -> LinuxCaller:
        """The caller for thread `tid`.

        pidfd: of the thread, still owned by the caller of this method, or -1.
        """
        caller = LinuxCaller(self.namespaces, self.descriptors, self._root)
        caller.reset(tid, pidfd)
        return caller

    def memory(self) -> PoolMemory:
        """A new pool; it has no memory until `resize`."""
        return PoolMemory(self._passthrough)

    def watch(self, file: ports.File, token: Any) -> LinuxWatch:
        """Report `token` in `cancelled` when `file` becomes readable.  Takes ownership of the file.

        Raises CommandError(EINVAL), without taking the file, if it cannot be polled, or if poll could block in its
        file system.
        """
        assert isinstance(file, LinuxFile)
        return self._watcher.add(file, token)

    def cancelled(self) -> list[Any]:
        """Tokens of watched files that became readable; call it when `event_fd` is signalled."""
        return self._watcher.drain()

    def set_own_device(self, device: int) -> None:
        """Set the st_dev of the own mount, which identifies its files (SEND-16)."""
        self.descriptors.own_device = (os.major(device), os.minor(device))

    def close(self) -> None:
        """Stop the helper threads."""
        self._watcher.close()


if TYPE_CHECKING:
    _host: type[ports.Host] = LinuxHost
    _clock: type[ports.Clock] = LinuxClock
    _caller: type[ports.Caller] = LinuxCaller
    _memory: type[ports.Memory] = PoolMemory
    _file: type[ports.File] = LinuxFile
    _cancellation: type[ports.Cancellation] = LinuxWatch
