"""The system calls of the client: ioctl(2) and mmap(2) on memory with a known and fixed address.

`fcntl.ioctl` and `mmap` of the standard library are not usable.  The former copies small arguments to a buffer that
may not be aligned to 8 bytes.  The latter refuses files whose size is reported as 0, as that of endpoints is.
"""

from __future__ import annotations

import errno as _errno
import mmap as _mmap
import os
import select
from typing import Any, Final, Protocol

from cffi import FFI

Buffer = bytes | bytearray | memoryview

_ffi: Final = FFI()
# ioctl is not declared as variadic, because cffi prepares a variadic call again each time.  On Linux the third argument
# is in the same register either way.
_ffi.cdef(
    """
    int ioctl(int fd, unsigned long number, uintptr_t argument);
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset);
    int munmap(void *address, size_t size);
    """
)
_libc: Final[Any] = _ffi.dlopen(None)
_MAP_FAILED: Final = _ffi.cast("void *", -1)


class Block:
    """A copy of `data` at an 8-aligned `address`, which is valid as long as the object lives."""

    __slots__ = ("_memory", "address", "view", "words")

    def __init__(self, data: Buffer) -> None:
        size = len(data)
        self._memory: Any = _ffi.new("uint64_t[]", (size + 7) // 8 or 1)
        self.address = int(_ffi.cast("uintptr_t", self._memory))
        self.view = memoryview(_ffi.buffer(self._memory, size))
        self.view[:] = data
        # The members of commands, all of which are 64-bit words.
        self.words: Any = self._memory


def pin(data: Buffer) -> tuple[int, object]:
    """The address of the bytes of `data`, and an object that keeps them at this address while it lives."""
    pinned: Any = _ffi.from_buffer(data)
    return int(_ffi.cast("uintptr_t", pinned)), pinned


def look(address: int, size: int) -> memoryview:
    """A writable view of `size` bytes of this process' memory at `address`: for fakes and for tests of pointers."""
    return memoryview(_ffi.buffer(_ffi.cast("char *", address), size))


def ioctl(fd: int, number: int, address: int) -> int:
    """Issue one ioctl with `address` as its argument; returns 0 or the errno.  Releases the GIL."""
    if _libc.ioctl(fd, number, address) < 0:
        return _ffi.errno
    return 0


def raw_ioctl(fd: int, number: int, argument: Buffer | int, *, misalign: int = 0) -> tuple[int, bytes]:
    """Issue any command with any bytes; returns (0 or the errno, the bytes after the call).

    `argument` is first copied to memory that is `misalign` bytes off 8-byte alignment.  An integer is passed as the
    address itself; then the returned bytes are empty.  Nothing is checked, and an interrupted call is not repeated.
    """
    if isinstance(argument, int):
        return ioctl(fd, number, argument), b""
    block = Block(bytes(misalign) + bytes(argument))
    error = ioctl(fd, number, block.address + misalign)
    return error, bytes(block.view[misalign:])


def map_memory(
    fd: int,
    size: int,
    *,
    protection: int = _mmap.PROT_READ,
    flags: int = _mmap.MAP_SHARED,
    offset: int = 0,
) -> memoryview:
    """mmap(2) of `fd` as a view.  The map is removed when no view of it is left.

    The view is read-only unless `protection` allows writing.  Raises OSError.
    """
    address = _libc.mmap(_ffi.NULL, size, protection, flags, fd, offset)
    if address == _MAP_FAILED:
        error = _ffi.errno
        raise OSError(error, os.strerror(error), "mmap")
    owned = _ffi.gc(address, lambda pointer: _libc.munmap(pointer, size))
    view = memoryview(_ffi.buffer(owned, size))
    return view if protection & _mmap.PROT_WRITE else view.toreadonly()


class System(Protocol):
    """The system calls that the client uses; tests replace them by a fake."""

    def open(self, path: str) -> int:
        """A descriptor of the file at `path`, close-on-exec.  Raises OSError."""

    def close(self, fd: int) -> None:
        """Close it."""

    def ioctl(self, fd: int, number: int, address: int) -> int:
        """0 or the errno."""

    def map_pool(self, fd: int, size: int) -> memoryview:
        """The pool of a connection, read-only.  Raises OSError."""

    def poll(self, fd: int, events: int, timeout: float | None) -> int:
        """Wait up to `timeout` seconds (None: no limit) for `events`; returns those that occurred, or 0."""


class Linux:
    """The real system calls."""

    __slots__ = ()

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, number: int, address: int) -> int:
        return ioctl(fd, number, address)

    def map_pool(self, fd: int, size: int) -> memoryview:
        return map_memory(fd, size)

    def poll(self, fd: int, events: int, timeout: float | None) -> int:
        poller = select.poll()
        poller.register(fd, events)
        # Rounded up: a wait that ends early would look like a timeout.
        ready = poller.poll(None if timeout is None else int(max(timeout, 0.0) * 1000 + 0.999))
        return ready[0][1] if ready else 0


LINUX: Final = Linux()


def issue(system: System, fd: int, number: int, command: Buffer) -> tuple[int, Block]:
    """Issue a command, again after each signal; returns 0 or the errno, and the struct after the call.

    A synchronous SEND that is issued again waits for the same reply (SYNC-3).
    """
    block = Block(command)
    while True:
        error = system.ioctl(fd, number, block.address)
        if error != _errno.EINTR:
            return error, block


def check(error: int, name: str) -> None:
    """Raise an OSError that names the command, unless `error` is 0."""
    if error:
        raise OSError(error, os.strerror(error), name)
