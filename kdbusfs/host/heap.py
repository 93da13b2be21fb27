"""Returns free heap memory to the system after clients have released much of it.

malloc keeps free blocks inside its heaps: dictionaries and lists, about half of the memory that commands hold.
Python's allocator for small objects returns an arena of 1 MiB once it is empty; long-lived objects and Python's free
lists prevent that.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Final

from kdbusfs.native._native import lib

from .threads import new_thread

STEP: Final = 4 << 20
"""Bytes that accounts must have released before the heap is trimmed: trimming takes time, and may delay others."""

_PAUSE: Final = 0.2  # seconds


def _clear_free_lists() -> None:
    """Clear Python's free lists of tuples and others: each entry can pin an arena.

    Only a full collection does that; with all objects frozen it takes no time.
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()


class Heap:
    """Trims the heap.  used: returns the bytes that the accounts of all users hold now."""

    __slots__ = ("_most", "_trimming", "_used")

    def __init__(self, used: Callable[[], int]) -> None:
        self._used = used
        self._most = 0  # since the last time
        self._trimming = False

    def look(self) -> None:
        """Call after memory was released.  For the reader; a thread does the work."""
        used = self._used()
        if used > self._most:
            self._most = used
        elif not self._trimming and self._most - used >= STEP:
            self._trimming = True
            try:
                new_thread("kdbusfs-heap", self._trim).start()
            except (RuntimeError, MemoryError):
                self._trimming = False

    def _trim(self) -> None:
        while self._most - self._used() >= STEP:
            self._most = self._used()
            _clear_free_lists()
            lib.kfs_heap_trim()
            time.sleep(_PAUSE)
        self._trimming = False
