"""Bookkeeping of pool pages that are copied to the page cache of a client's inode.

A file has such copies if it cannot map the pool's memory: the kernel refuses passthrough, or the descriptor could not
be swapped at HELLO, and the client's own one may be writable.  The daemon's memory is authoritative; the client's
changes to its copy never reach it.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from typing import Any, Final

from kdbusfs.native._native import ffi

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class PageSet:
    """A set of pages of a pool, as sorted disjoint ranges."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, offset: int, size: int) -> None:
        """Add the pages of bytes [offset, offset + size)."""
        if size <= 0:
            return
        start = offset // _PAGE
        end = -(-(offset + size) // _PAGE)
        # Merge ranges that touch the new one.
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def parts(self) -> list[tuple[int, int]]:
        """The ranges as (offset, size) in bytes."""
        return [(a * _PAGE, (b - a) * _PAGE) for a, b in zip(self._starts, self._ends, strict=True)]

    def clear(self) -> None:
        self._starts.clear()
        self._ends.clear()


class Stores:
    """Stores that must precede a reply: a native array of `count`, and the mapping that keeps their data valid.

    The first `slots` are pages that receive the numbers of installed descriptors.
    """

    __slots__ = ("array", "count", "mapping", "slots")

    def __init__(self, array: Any, count: int, slots: int, mapping: object) -> None:
        self.array = array
        self.count = count
        self.slots = slots
        self.mapping = mapping


class Copies:
    """The inodes with copies of one pool, by node id, and their stale pages.

    The kernel requests pages that it lacks with READ, so a new inode has no stale page.
    """

    __slots__ = ("changed", "nodeids")

    def __init__(self) -> None:
        self.nodeids: set[int] = set()
        self.changed = PageSet()

    def written(self, offset: int, size: int) -> None:
        """Bytes [offset, offset + size) of the pool have changed: mark their pages stale."""
        if self.nodeids:
            self.changed.add(offset, size)

    def remove(self, nodeid: int) -> None:
        """Forget an inode that is not open any more."""
        self.nodeids.discard(nodeid)
        if not self.nodeids:
            self.changed.clear()

    def rows(self, parts: list[tuple[int, int]], size: int, base: Any) -> list[tuple[int, int, int, Any]]:
        """The kfs_store array for `parts` of a pool of `size` bytes, mapped at `base`, for every inode."""
        return [
            (nodeid, offset, min(length, size - offset), base + offset)
            for offset, length in parts
            for nodeid in self.nodeids
        ]


def size_of(nodeid: int, size: int, last: bytes) -> Stores:
    """A store of the byte `last` at the end, which sets the size of an empty inode to `size` in the kernel.

    The page stays incomplete, so the kernel requests it on access.
    """
    data = ffi.from_buffer(last)
    return Stores(ffi.new("struct kfs_store[]", [(nodeid, size - 1, 1, data)]), 1, 0, (data, last))
