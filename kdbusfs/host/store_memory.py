"""Pools where the kernel refuses passthrough: every client reads copies in the page cache of its file.

FUSE_DEV_IOC_BACKING_OPEN takes CAP_SYS_ADMIN in the initial user namespace.  Without it a pool is still a memfd
of the daemon, and what is written to it is put into the page cache of the client's inode (FUSE_NOTIFY_STORE)
before the command is answered that tells the client where to look.  Pages that were never stored, or that the
kernel has dropped, it asks for with READ.

A store may wait for the answer to a READ, so the reader never makes one; native/store.c has the reasons why
nobody can keep the thread that does.  Whole pages are stored, from the mapping: the kernel takes them without
reading first, and content only ever gets newer.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from errno import EINVAL, ENOTTY, EOPNOTSUPP, EPERM
from struct import Struct
from typing import Any, Final

from kdbusfs.native._native import ffi, lib

from .memory import PoolMemory

PASSTHROUGH_REFUSED: Final = frozenset((EPERM, ENOTTY, EOPNOTSUPP, EINVAL))
"""What BACKING_OPEN says where there is no passthrough: no privilege, an old kernel, one built without it."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_REPLY: Final = Struct("=IiQiIII")  # fuse_out_header, fuse_ioctl_out


class PageSet:
    """Pages of a pool, as disjoint parts in order: as many at most as there are pages with others between."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, offset: int, size: int) -> None:
        """The pages of `size` bytes from `offset` on."""
        if size <= 0:
            return
        start = offset // _PAGE
        end = -(-(offset + size) // _PAGE)
        # Parts that touch the new one become one with it.
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def parts(self) -> list[tuple[int, int]]:
        """(offset, size) in bytes."""
        return [(a * _PAGE, (b - a) * _PAGE) for a, b in zip(self._starts, self._ends, strict=True)]

    def clear(self) -> None:
        self._starts.clear()
        self._ends.clear()


class Stores:
    """What has to be stored before an answer: a native array of `count`, and what keeps its data mapped.

    The first `slots` of them are of pages that get the numbers of descriptors.
    """

    __slots__ = ("array", "count", "mapping", "slots")

    def __init__(self, array: Any, count: int, slots: int, mapping: object) -> None:
        self.array = array
        self.count = count
        self.slots = slots
        self.mapping = mapping


class StoredMemory(PoolMemory):
    """A pool that clients have copies of, in the inodes `nodeids`."""

    __slots__ = ("_changed", "_copies", "_is_size_told")

    def __init__(self) -> None:
        super().__init__()
        self._copies: set[int] = set()
        self.nodeids = self._copies
        self._changed = PageSet()
        self._is_size_told = True

    def seal(self) -> None:
        super().seal()
        self._is_size_told = False

    def written(self, offset: int, size: int) -> None:
        super().written(offset, size)
        self._changed.add(offset, size)

    def read(self, offset: int, size: int) -> bytes:
        """For a READ of the kernel's: a page that it has no copy of."""
        return os.pread(self.fd, size, offset) if self.fd >= 0 else b""

    def take_stores(self, slots: list[int]) -> Stores | None:
        """All that was changed since the last time; None: the copies are up to date.

        slots: offsets of int32 that will be written later, and whose pages go first.
        Raises KdbusError(ENOMEM); then they are still to be taken.
        """
        if not (self._changed or slots) and self._is_size_told:
            return None
        if not self._copies or self.fd < 0:
            # Nobody has a copy: what is opened later begins with none.
            self._changed.clear()
            self._is_size_told = True
            return None
        numbered = PageSet()
        for offset in slots:
            numbered.add(offset, 4)
        first, rest = numbered.parts(), self._changed.parts()
        end = max((offset + size for offset, size in first + rest), default=1)
        mapping = self.mapped(min(end, self.size))
        base = mapping.base
        rows = [
            (nodeid, offset, min(size, self.size - offset), base + offset)
            for part in (first, rest)
            for offset, size in part
            for nodeid in self._copies
        ]
        tail = self._tail() if not self._is_size_told else None
        if tail is not None:
            data = ffi.from_buffer(tail)
            rows += [(nodeid, self.size - len(tail), len(tail), data) for nodeid in self._copies]
        self._changed.clear()
        self._is_size_told = True
        array = ffi.new("struct kfs_store[]", rows)
        return Stores(array, len(rows), len(first) * len(self._copies), (mapping, tail))

    def _tail(self) -> mmap.mmap | None:
        """The last page, for a store at the end of a file that the kernel knows as empty: that tells it the size.

        Mapped by itself: most of a pool is never used.
        """
        start = (self.size - 1) // _PAGE * _PAGE
        try:
            return mmap.mmap(self.fd, self.size - start, prot=mmap.PROT_READ, offset=start)
        except OSError:
            # What matters only to a client that cannot be given a descriptor of a file with that size.
            return None


class Storer:
    """The thread that brings the clients' copies up to date and then answers them.

    `is_needed` is False until the host finds that there is no passthrough.  event_fd: an eventfd that is written
    to when a job is done after `announce`.
    """

    __slots__ = ("_kept", "_lock", "_native", "_when_needed", "is_needed")

    def __init__(self, fuse_fd: int, event_fd: int) -> None:
        self.is_needed = False
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, object]] = deque()
        self._when_needed: Callable[[], object] = bool
        self._native = lib.kfs_storer_new(fuse_fd, event_fd)
        if self._native == ffi.NULL:
            raise MemoryError

    def when_needed(self, action: Callable[[], None]) -> None:
        """Have `action` called when there turns out to be no passthrough."""
        self._when_needed = action

    def need(self) -> None:
        """There is none."""
        self.is_needed = True
        self._when_needed()

    def take(self, memory: Any, slots: list[int]) -> Stores | None:
        """What `memory`, of whatever kind, needs to have stored; see StoredMemory.take_stores."""
        return memory.take_stores(slots) if isinstance(memory, StoredMemory) else None

    def answer(self, stores: Stores, unique: int, result: int, out: bytes | bytearray) -> bool:
        """Answer the ioctl `unique` after the stores; False, with nothing done, when that cannot be."""
        return self.send(stores, _REPLY.pack(_REPLY.size + len(out), 0, unique, result, 0, 0, 0) + out)

    def send(self, stores: Stores, reply: bytes | bytearray) -> bool:
        """The same with a whole answer.  For any thread."""
        with self._lock:
            self._let_go()
            number: int = lib.kfs_storer_submit(
                self._native, stores.array, stores.count, ffi.from_buffer(reply), len(reply)
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
        native, self._native = self._native, None
        if native is not None:
            lib.kfs_storer_free(native)

    def _let_go(self) -> None:
        done = lib.kfs_storer_done(self._native)
        while self._kept and self._kept[0][0] <= done:
            self._kept.popleft()
