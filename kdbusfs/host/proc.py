"""Reads below /proc."""

from __future__ import annotations

from errno import ECANCELED, ENOENT, ESRCH
from functools import cache
from pathlib import Path
from typing import Any, Final

from kdbusfs.base.errors import AbandonedError, CommandError
from kdbusfs.native._native import ffi, lib

_SIZE: Final = 16384
_LINK_MAX: Final = 4096
_new: Final[Any] = ffi.new_allocator(should_clear_after_alloc=False)
_unpack: Final[Any] = ffi.unpack


def fail(result: int, what: str) -> CommandError:
    """The error for the negative errno `result` of a call on a thread.

    No entry in /proc means no thread; ECANCELED, that it was killed during an access (native/ownership.c).
    """
    if result == -ECANCELED:
        return AbandonedError(what)
    return CommandError(ESRCH if result == -ENOENT else -result, what)


def read(tid: int, name: bytes, limit: int, partial: bool = False, at_once: bool = False) -> bytes:
    """The text of /proc/TID/`name`, at most `limit` bytes of it.

    `partial`: the first `limit` bytes are enough; otherwise a file that may be longer is read again in full.
    `at_once`: the buffer has room for all of it, because the kernel may take long to write it; what is not
    written to costs nothing.
    Raises CommandError: ESRCH when the thread is gone (or has no such file), or the errno of the read.
    """
    size = limit if at_once else min(limit, _SIZE)
    # Of this call alone: while the text of one client is awaited, others are read (fuse.ownership).
    buffer = _new("char[]", size)
    n: int = lib.kfs_proc_read(tid, name, buffer, size)
    while n == size and size < limit:
        # Built anew rather than continued: a second read may show another state.
        size = limit if partial else min(limit, size * 8)
        buffer = _new("char[]", size)
        n = lib.kfs_proc_read(tid, name, buffer, size)
    if n < 0:
        raise fail(n, name.decode())
    text: bytes = _unpack(buffer, n)
    return text


def link(tid: int, name: bytes) -> bytes:
    """What link /proc/TID/`name` shows.  Raises CommandError; ENOENT where it leads nowhere or the thread is
    gone.
    """
    buffer = _new("char[]", _LINK_MAX)
    n: int = lib.kfs_proc_link(tid, name, buffer, _LINK_MAX)
    if n < 0:
        raise CommandError(-n, name.decode())
    text: bytes = _unpack(buffer, n)
    return text


@cache
def setting(name: str) -> int:
    """A number below /proc/sys that does not change while the kernel runs."""
    return int(Path("/proc/sys", name).read_bytes())
