"""The storer: updates the copies that clients have of their pools (copies.py), then replies to their commands.

Passthrough (FUSE_DEV_IOC_BACKING_OPEN) needs CAP_SYS_ADMIN in the initial user namespace.  Without it, stale pages are
written to the page cache of the client's inode (FUSE_NOTIFY_STORE) before the reply that names their offset.  The
kernel requests pages that it lacks with READ.

A store can block on a READ request, so the reader never stores: that would be a deadlock.  native/store.c explains why
no client can block the thread that does.  Whole pages are stored from the mapping, so that the kernel need not read
first, and content only becomes newer.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from kdbusfs.native._native import ffi, lib

from .copies import Stores, size_of
from .memory import PoolMemory


class Storer:
    """The thread that updates copies and then replies.

    event_fd: an eventfd that is signalled when a job is done after `announce`.
    """

    __slots__ = ("_kept", "_lock", "_native")

    def __init__(self, fuse_fd: int, event_fd: int) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, object]] = deque()
        self._native = lib.kfs_storer_new(fuse_fd, event_fd)
        if self._native == ffi.NULL:
            raise MemoryError

    def take(self, memory: Any, slots: list[int]) -> Stores | None:
        """The stores that `memory` needs; None for other kinds of memory.  See PoolMemory.take_stores."""
        return memory.take_stores(slots) if isinstance(memory, PoolMemory) else None

    def size_of(self, memory: Any, nodeid: int) -> Stores | None:
        """The store that sets the size of inode `nodeid` to that of `memory`."""
        return size_of(nodeid, memory.size, memory.last_byte()) if isinstance(memory, PoolMemory) else None

    def answer(self, stores: Stores, unique: int, result: int, out: bytes | bytearray) -> bool:
        """Reply to ioctl `unique` after the stores.  Returns False if it cannot be queued.  For any thread."""
        with self._lock:
            self._let_go()
            number: int = lib.kfs_storer_submit(
                self._native, stores.array, stores.count, unique, result, ffi.from_buffer(out), len(out)
            )
            if number < 0:
                return False
            self._kept.append((number, stores.mapping))
        return True

    @property
    def jobs(self) -> int:
        """Number of replies that are pending."""
        with self._lock:
            self._let_go()
            return len(self._kept)

    def announce(self) -> None:
        """Signal `event_fd` for each finished job from now on."""
        lib.kfs_storer_announce(self._native)

    def close(self) -> None:
        """Stop the thread; if it is blocked in the kernel, it ends with the process."""
        native, self._native = self._native, ffi.NULL
        if native != ffi.NULL:
            lib.kfs_storer_free(native)

    def _let_go(self) -> None:
        done = lib.kfs_storer_done(self._native)
        while self._kept and self._kept[0][0] <= done:
            self._kept.popleft()
