"""Reads of /proc."""

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
    """The CommandError for `result`, a negative errno of an access to a thread.

    ENOENT in /proc means that the thread is gone; ECANCELED, that it was killed meanwhile (native/access.c).
    """
    if result == -ECANCELED:
        return AbandonedError(what)
    return CommandError(ESRCH if result == -ENOENT else -result, what)


def read(tid: int, name: bytes, limit: int, partial: bool = False, at_once: bool = False) -> bytes:
    """The text of /proc/TID/`name`, at most `limit` bytes of it.

    partial: the first `limit` bytes suffice; otherwise a longer file is read again in full.
    at_once: allocate `limit` bytes at once, because the kernel takes long to produce the text; unused pages are free.
    Raises CommandError: ESRCH if the thread is gone (or has no such file), or the errno of the read.
    """
    size = limit if at_once else min(limit, _SIZE)
    # A buffer of its own: read(2) may block on a client while another reader runs (re-entrant).
    buffer = _new("char[]", size)
    n: int = lib.kfs_proc_read(tid, name, buffer, size)
    while n == size and size < limit:
        # Read again from the start: a continued read may show another state.
        size = limit if partial else min(limit, size * 8)
        buffer = _new("char[]", size)
        n = lib.kfs_proc_read(tid, name, buffer, size)
    if n < 0:
        raise fail(n, name.decode())
    text: bytes = _unpack(buffer, n)
    return text


def link(tid: int, name: bytes) -> bytes:
    """The target of link /proc/TID/`name`.  Raises CommandError; ENOENT if it has none or the thread is gone."""
    buffer = _new("char[]", _LINK_MAX)
    n: int = lib.kfs_proc_link(tid, name, buffer, _LINK_MAX)
    if n < 0:
        raise CommandError(-n, name.decode())
    text: bytes = _unpack(buffer, n)
    return text


@cache
def setting(name: str) -> int:
    """A constant number in /proc/sys."""
    return int(Path("/proc/sys", name).read_bytes())
