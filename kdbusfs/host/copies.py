"""What the page cache of a client's file has of a pool, where that file does not have the memory itself.

The daemon's memory is the truth, and nothing that a client does to its copy comes back.  A file has copies where the
kernel refuses passthrough, and where the descriptor of a connection could not be swapped at HELLO: then what the client
opened stays, and must not reach the memory, because it may be open for writing.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from typing import Any, Final

from kdbusfs.native._native import ffi

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


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


class Copies:
    """The inodes that have copies of one pool, by node id, and which pages of those are out of date.

    Pages that the kernel has no copy of it asks for with READ, so an inode begins with none.
    """

    __slots__ = ("changed", "nodeids")

    def __init__(self) -> None:
        self.nodeids: set[int] = set()
        self.changed = PageSet()

    def written(self, offset: int, size: int) -> None:
        """`size` bytes of the pool from `offset` on are other ones now."""
        if self.nodeids:
            self.changed.add(offset, size)

    def remove(self, nodeid: int) -> None:
        """The inode is nobody's any more."""
        self.nodeids.discard(nodeid)
        if not self.nodeids:
            self.changed.clear()

    def rows(self, parts: list[tuple[int, int]], size: int, base: Any) -> list[tuple[int, int, int, Any]]:
        """`parts` of a pool of `size` bytes that is mapped at `base`, for every inode, as kfs_store has them."""
        return [
            (nodeid, offset, min(length, size - offset), base + offset)
            for offset, length in parts
            for nodeid in self.nodeids
        ]


def size_of(nodeid: int, size: int, last: bytes) -> Stores:
    """What tells the kernel that inode `nodeid`, which it knows as empty, has `size` bytes, `last` being the last one.

    The page is not complete by that, and is asked for when somebody looks at it.
    """
    data = ffi.from_buffer(last)
    return Stores(ffi.new("struct kfs_store[]", [(nodeid, size - 1, 1, data)]), 1, 0, (data, last))
