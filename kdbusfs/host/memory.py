"""Pools: a memfd for each connection, passed through to its client by FUSE.

The memfd is made at HELLO.  It becomes the passthrough backing of a file that only the daemon can open, and opens
read-only.  Descriptors and mappings that the client made before do not refer to it.

The daemon maps only the part that process_vm_readv and descriptor numbers need.  It writes with pwrite until a page is
allocated, and through the mapping after that.  So large or many pools do not exhaust its address space, and a lack of
memory is an errno instead of a SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
from errno import EFBIG, EINVAL, EMFILE, ENFILE, ENOMEM, ENOSPC, ENOTTY, EOPNOTSUPP, EPERM
from queue import SimpleQueue
from threading import Lock
from typing import Any, Final, Protocol

from kdbusfs.base.errors import CommandError
from kdbusfs.base.ports import Memory
from kdbusfs.native._native import ffi, lib
from kdbusfs.native.calls import address_of, copy

from .copies import Copies, PageSet, Stores
from .threads import new_thread

_NAME: Final = "kdbus-conn"  # POOL-6
_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_FIRST: Final = 1 << 16  # bytes of the first mapping
_BIG: Final = 4 << 20
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SIZE_MAX: Final = (1 << 63) - 1
_NO_MEMORY: Final = frozenset((ENOMEM, ENOSPC, EMFILE, ENFILE))
_REFUSED: Final = frozenset((EPERM, ENOTTY, EOPNOTSUPP, EINVAL))  # no privilege, old kernel, not configured
_from_buffer: Final[Any] = ffi.from_buffer
_store: Final[Any] = lib.kfs_store


class Mapping:
    """A mapping of the first `size` bytes of a memfd; unmapped with the last reference, in any thread."""

    __slots__ = ("address", "base", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.size = 0
        out = ffi.new("char **")
        r: int = lib.kfs_map(fd, size, out)
        if r < 0:
            raise CommandError(ENOMEM, "no address space for a pool")
        self.base = out[0]
        self.address = address_of(self.base)
        self.size = size

    def __del__(self) -> None:
        if self.size:
            lib.kfs_unmap(self.base, self.size)


class _Disposer:
    """Frees large pools in a thread of its own: that takes the kernel 0.2 ms for each MiB."""

    __slots__ = ("_lock", "_queue", "_started")

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[int, Mapping]] = SimpleQueue()
        self._lock = Lock()
        self._started = False

    def take(self, mapping: Mapping, fd: int = -1) -> None:
        """Unmap `mapping` unless others refer to it, and close `fd` if there is one."""
        with self._lock:
            if not self._started:
                self._started = True
                new_thread("kdbusfs-disposer", self._run).start()
        self._queue.put((fd, mapping))

    def _run(self) -> None:
        while True:
            fd, mapping = self._queue.get()
            del mapping
            if fd >= 0:
                os.close(fd)


_disposer: Final = _Disposer()


class KeptBackings(Protocol):
    """A list of registered backing ids that outlives the daemon."""

    def add(self, backing_id: int) -> None: ...

    def remove(self, backing_id: int) -> None: ...


class Passthrough:
    """Registers the pools of one mount as passthrough backings.  fuse_fd: /dev/fuse, or -1.

    is_refused: the kernel gives no backing ids; known after the first attempt; kept: where those that are registered
    are noted, if they may outlive the daemon.
    """

    __slots__ = ("_fuse_fd", "_is_given", "is_refused", "kept")

    def __init__(self, fuse_fd: int) -> None:
        self.kept: KeptBackings | None = None
        self._fuse_fd = fuse_fd
        self._is_given = False
        self.is_refused = fuse_fd < 0

    def open(self, fd: int) -> int:
        """Register `fd`; returns its backing id, or 0 if the kernel gives none.  Raises CommandError."""
        if self.is_refused:
            return 0
        r: int = lib.kfs_backing_open(self._fuse_fd, fd)
        if r >= 0:
            self._is_given = True
            if self.kept is not None:
                self.kept.add(r)
            return r
        if self._is_given or -r not in _REFUSED:
            raise CommandError(ENOMEM if -r in _NO_MEMORY else -r, "passthrough backing")
        self.is_refused = True
        return 0

    def close(self, backing_id: int) -> None:
        """Unregister a backing id."""
        # an error means that the FUSE connection is gone, with all its ids
        lib.kfs_backing_close(self._fuse_fd, backing_id)
        if self.kept is not None:
            self.kept.remove(backing_id)


class PoolMemory(Memory):
    """ports.Memory; has no memory before `resize`.

    backing_id: for the reply to OPEN; 0 if the file has copies instead.
    """

    __slots__ = ("_copies", "_filled", "_mapping", "_passthrough", "backing_id", "fd", "size")

    def __init__(self, passthrough: Passthrough | None = None) -> None:
        self.size = 0
        self.backing_id = 0
        self.fd = -1
        self._passthrough = passthrough
        self._copies: Copies | None = None
        self._mapping: Mapping | None = None
        self._filled = 0  # bytes from the start whose pages are allocated

    def resize(self, size: int) -> None:
        """Allocate fresh memory of `size` bytes.

        Raises CommandError: EINVAL for a size that the kernel rejects, ENOMEM.
        """
        if not 0 < size <= _SIZE_MAX:
            raise CommandError(EINVAL, "pool size")
        self.close()
        try:
            fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            raise CommandError(ENOMEM, "memfd") from None
        try:
            os.ftruncate(fd, size)
            # Nobody who obtains the memfd can truncate pages that the daemon accesses (SIGBUS).
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            if self._passthrough is not None:
                self.backing_id = self._passthrough.open(fd)
        except OSError as error:
            os.close(fd)
            code = ENOMEM if error.errno in _NO_MEMORY else EINVAL
            raise CommandError(code, "pool size") from None
        except CommandError:
            os.close(fd)
            raise
        self.fd = fd
        self.size = size

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`.  Raises CommandError(ENOMEM)."""
        size = len(data)
        end = offset + size
        if end > self.size:
            raise CommandError(ENOMEM, "store beyond the pool")
        mapping = self._mapping
        if type(data) is bytes and end <= self._filled and mapping is not None and end <= mapping.size:
            r = copy(mapping.address, offset, data)
        else:
            r = _store(self.fd, offset, data if type(data) is bytes else _from_buffer(data), size)
        if r < 0:
            raise _store_error(r)
        self.written(offset, size)

    def copy_from(self, offset: int, size: int, source: Memory, source_offset: int) -> None:
        """Copy `size` bytes from another pool (ACT-4).  Raises CommandError(ENOMEM)."""
        assert isinstance(source, PoolMemory)
        if offset + size > self.size:
            raise CommandError(ENOMEM, "store beyond the pool")
        mapping = source.mapped(source_offset + size)
        r: int = lib.kfs_store(self.fd, offset, mapping.base + source_offset, size)
        if r < 0:
            raise _store_error(r)
        self.written(offset, size)

    def written(self, offset: int, size: int) -> None:
        """Bytes [offset, offset + size) were written: update the copies' stale pages."""
        if self._copies is not None:
            self._copies.written(offset, size)
        if offset <= self._filled < offset + size:
            self._filled = -(-(offset + size) // _PAGE) * _PAGE

    def mapped(self, end: int) -> Mapping:
        """A mapping of at least `end` bytes, valid while it is referenced.  Raises CommandError(ENOMEM)."""
        mapping = self._mapping
        if mapping is None or mapping.size < end:
            mapping = self._map(end)
        return mapping

    def _map(self, end: int) -> Mapping:
        if end > self.size or self.fd < 0:
            raise CommandError(ENOMEM, "beyond the pool")
        size = max(_FIRST, 1 << (end - 1).bit_length())
        # The mapping must not extend beyond the last page; a pool's size need not be a power of two.
        size = min(size, -(-self.size // _PAGE) * _PAGE)
        # Jobs may reference the old mapping, so addresses handed out stay valid.
        former, self._mapping = self._mapping, Mapping(self.fd, size)
        if former is not None and former.size >= _BIG:
            _disposer.take(former)
        return self._mapping

    def pin(self, offset: int) -> tuple[Any, object]:
        """An int32 pointer to `offset`, and the object that keeps it valid.

        Other threads may use it, also after `close`.  Raises CommandError(ENOMEM).
        """
        mapping = self.mapped(offset + 4)
        return ffi.cast("int32_t *", mapping.base + offset), mapping

    def close(self) -> None:
        """Release the backing; client mappings keep the memory alive (POOL-6)."""
        fd = self.fd
        if fd < 0:
            return
        self.fd = -1
        mapping, self._mapping = self._mapping, None
        self._filled = 0
        if self.backing_id and self._passthrough is not None:
            self._passthrough.close(self.backing_id)
            self.backing_id = 0
        if mapping is not None and mapping.size >= _BIG:
            _disposer.take(mapping, fd)
        else:
            os.close(fd)

    # Copies

    def copy_to(self, nodeid: int) -> None:
        """Maintain copies in inode `nodeid` from now on."""
        if self._copies is None:
            self._copies = Copies()
        self._copies.nodeids.add(nodeid)

    def forget_copies(self, nodeid: int) -> None:
        """Inode `nodeid` is not open any more: drop its copies."""
        if self._copies is not None:
            self._copies.remove(nodeid)

    def read(self, offset: int, size: int) -> bytes:
        """Data for a READ request, for a page that the kernel lacks."""
        return os.pread(self.fd, size, offset) if self.fd >= 0 else b""

    def last_byte(self) -> bytes:
        """The last byte of the pool."""
        return self.read(self.size - 1, 1) or b"\0"

    def take_stores(self, slots: list[int]) -> Stores | None:
        """Stores for all pages that became stale since the last call; None if there are none.

        slots: offsets of int32 that are written later; their pages come first.
        Raises CommandError(ENOMEM); the pages stay stale then.
        """
        copies = self._copies
        if copies is None or not copies.nodeids or self.fd < 0 or not (copies.changed or slots):
            return None
        numbered = PageSet()
        for offset in slots:
            numbered.add(offset, 4)
        first, rest = numbered.parts(), copies.changed.parts()
        mapping = self.mapped(min(max(offset + size for offset, size in first + rest), self.size))
        rows = copies.rows(first, self.size, mapping.base) + copies.rows(rest, self.size, mapping.base)
        copies.changed.clear()
        slot_rows = len(first) * len(copies.nodeids)
        return Stores(ffi.new("struct kfs_store[]", rows), len(rows), slot_rows, mapping)


def _store_error(result: int) -> CommandError:
    code = ENOMEM if -result in _NO_MEMORY or result == -EFBIG else -result
    return CommandError(code, "pool store")
