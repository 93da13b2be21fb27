"""Brings the copies that clients have of their pools up to date (copies.py), and answers them after that.

FUSE_DEV_IOC_BACKING_OPEN takes CAP_SYS_ADMIN in the initial user namespace.  Without it a pool is still a memfd
of the daemon, and what is written to it is put into the page cache of the client's inode (FUSE_NOTIFY_STORE)
before the command is answered that tells the client where to look.  Pages that were never stored, or that the
kernel has dropped, it asks for with READ.

A store may wait for the answer to a READ, so the reader never makes one; native/store.c has the reasons why
nobody can keep the thread that does.  Whole pages are stored, from the mapping: the kernel takes them without
reading first, and content only ever gets newer.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from kdbusfs.native._native import ffi, lib

from .copies import Stores, size_of
from .memory import PoolMemory


class Storer:
    """The thread that brings the clients' copies up to date and then answers them.

    event_fd: an eventfd that is written to when a job is done after `announce`.
    """

    __slots__ = ("_kept", "_lock", "_native")

    def __init__(self, fuse_fd: int, event_fd: int) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, object]] = deque()
        self._native = lib.kfs_storer_new(fuse_fd, event_fd)
        if self._native == ffi.NULL:
            raise MemoryError

    def take(self, memory: Any, slots: list[int]) -> Stores | None:
        """What `memory`, of whatever kind, needs to have stored; see PoolMemory.take_stores."""
        return memory.take_stores(slots) if isinstance(memory, PoolMemory) else None

    def size_of(self, memory: Any, nodeid: int) -> Stores | None:
        """What tells the kernel that inode `nodeid` is as long as `memory`."""
        return size_of(nodeid, memory.size, memory.last_byte()) if isinstance(memory, PoolMemory) else None

    def answer(self, stores: Stores, unique: int, result: int, out: bytes | bytearray) -> bool:
        """Answer ioctl `unique` after the stores; False, with nothing done, when that cannot be.  For any thread."""
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
        """How many answers are not given yet."""
        with self._lock:
            self._let_go()
            return len(self._kept)

    def announce(self) -> None:
        """From now on the event descriptor tells when a job is done."""
        lib.kfs_storer_announce(self._native)

    def close(self) -> None:
        """End the thread; one that still waits for the kernel ends with the process."""
        native, self._native = self._native, ffi.NULL
        if native != ffi.NULL:
            lib.kfs_storer_free(native)

    def _let_go(self) -> None:
        done = lib.kfs_storer_done(self._native)
        while self._kept and self._kept[0][0] <= done:
            self._kept.popleft()
