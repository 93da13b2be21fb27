"""Pools: a memfd for each open endpoint file, passed through to its clients by FUSE.

The daemon maps only what is needed as the target of process_vm_readv and of descriptor numbers, and stores with pwrite
until a page is there: neither a huge pool nor many pools use up its address space, and memory that the kernel cannot
provide is an errno, not a SIGBUS.  What goes to pages that are there is copied to the mapping.
"""

from __future__ import annotations

import fcntl
import os
from errno import EFBIG, EINVAL, EMFILE, ENFILE, ENOMEM, ENOSPC
from typing import Any, Final

from kdbusfs.abi.errors import KdbusError
from kdbusfs.core.ports import Memory
from kdbusfs.native._native import ffi, lib
from kdbusfs.native.calls import address_of, copy

_NAME: Final = "kdbus-conn"  # POOL-6
_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_FIRST: Final = 1 << 16  # bytes of a first mapping
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SIZE_MAX: Final = (1 << 63) - 1
_NO_MEMORY: Final = frozenset((ENOMEM, ENOSPC, EMFILE, ENFILE))
_from_buffer: Final[Any] = ffi.from_buffer
_store: Final[Any] = lib.kfs_store


class Mapping:
    """The first `size` bytes of a memfd; unmapped when the last reference is gone, in whatever thread that
    is.
    """

    __slots__ = ("address", "base", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.size = 0
        out = ffi.new("char **")
        r: int = lib.kfs_map(fd, size, out)
        if r < 0:
            raise KdbusError(ENOMEM, "no address space for a pool")
        self.base = out[0]
        self.address = address_of(self.base)
        self.size = size

    def __del__(self) -> None:
        if self.size:
            lib.kfs_unmap(self.base, self.size)


class PoolMemory(Memory):
    """ports.Memory.  `fuse_fd` is the /dev/fuse that the backing id is for; -1 for a pool without one.

    `backing_id` is what an OPEN answer names; 0 without.  `nodeids` is None: see store_memory.StoredMemory.
    """

    __slots__ = ("_filled", "_fuse_fd", "_mapping", "backing_id", "fd", "nodeids", "size")

    def __init__(self, fuse_fd: int = -1) -> None:
        self.nodeids: set[int] | None = None
        self.size = 0
        self.backing_id = 0
        self._fuse_fd = fuse_fd
        self._mapping: Mapping | None = None
        self._filled = 0  # bytes from the start on whose pages are there
        try:
            self.fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise KdbusError(error.errno or ENOMEM, "memfd") from None
        if fuse_fd >= 0:
            r: int = lib.kfs_backing_open(fuse_fd, self.fd)
            if r < 0:
                os.close(self.fd)
                self.fd = -1
                raise KdbusError(-r, "passthrough backing")
            self.backing_id = r

    def resize(self, size: int) -> None:
        """Give it its size in bytes; again until it is sealed.

        Raises KdbusError: EINVAL for what the kernel refuses, ENOMEM.
        """
        if self.fd < 0 or not 0 < size <= _SIZE_MAX:
            raise KdbusError(EINVAL, "pool size")
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            code = ENOMEM if error.errno in _NO_MEMORY else EINVAL
            raise KdbusError(code, "pool size") from None
        self._mapping = None
        self._filled = 0
        self.size = size

    def seal(self) -> None:
        """The size is final: nobody who gets hold of the memfd can cut pages off that the daemon may touch."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `offset`.  Raises KdbusError(ENOMEM) when the host has no memory for it."""
        size = len(data)
        end = offset + size
        if end > self.size:
            raise KdbusError(ENOMEM, "store beyond the pool")
        mapping = self._mapping
        if type(data) is bytes and end <= self._filled and mapping is not None and end <= mapping.size:
            r = copy(mapping.address, offset, data)
        else:
            r = _store(self.fd, offset, data if type(data) is bytes else _from_buffer(data), size)
        if r < 0:
            raise _store_error(r)
        self.written(offset, size)

    def copy_from(self, offset: int, size: int, source: Memory, source_offset: int) -> None:
        """Move `size` bytes from another pool (ACT-4).  Raises KdbusError(ENOMEM)."""
        assert isinstance(source, PoolMemory)
        if offset + size > self.size:
            raise KdbusError(ENOMEM, "store beyond the pool")
        mapping = source.mapped(source_offset + size)
        r: int = lib.kfs_store(self.fd, offset, mapping.base + source_offset, size)
        if r < 0:
            raise _store_error(r)
        self.written(offset, size)

    def written(self, offset: int, size: int) -> None:
        """`size` bytes from `offset` on have been written to."""
        if offset <= self._filled < offset + size:
            self._filled = -(-(offset + size) // _PAGE) * _PAGE

    def mapped(self, end: int) -> Mapping:
        """The pool, mapped at least up to `end`; valid as long as it is referred to.  Raises
        KdbusError(ENOMEM).
        """
        mapping = self._mapping
        if mapping is None or mapping.size < end:
            mapping = self._map(end)
        return mapping

    def _map(self, end: int) -> Mapping:
        if end > self.size or self.fd < 0:
            raise KdbusError(ENOMEM, "beyond the pool")
        size = max(_FIRST, 1 << (end - 1).bit_length())
        # A mapping may not end beyond the last page; a pool's size need not be a power of two.
        size = min(size, -(-self.size // _PAGE) * _PAGE)
        # The former mapping lives on as long as a job holds it: addresses that were given out stay valid.
        self._mapping = mapping = Mapping(self.fd, size)
        return mapping

    def pin(self, offset: int) -> tuple[Any, object]:
        """An int32 pointer to `offset`, and what keeps it valid as long as it is referred to.

        Works for a thread of its own, also after `close`.  Raises KdbusError(ENOMEM).
        """
        mapping = self.mapped(offset + 4)
        return ffi.cast("int32_t *", mapping.base + offset), mapping

    def close(self) -> None:
        """Forget the backing; the clients' maps keep the memory itself alive (POOL-6)."""
        fd = self.fd
        if fd < 0:
            return
        self.fd = -1
        self._mapping = None
        self._filled = 0
        if self.backing_id:
            # ENOENT and the like can only mean that the connection is gone, with all its ids.
            lib.kfs_backing_close(self._fuse_fd, self.backing_id)
            self.backing_id = 0
        os.close(fd)


def _store_error(result: int) -> KdbusError:
    code = ENOMEM if -result in _NO_MEMORY or result == -EFBIG else -result
    return KdbusError(code, "pool store")
