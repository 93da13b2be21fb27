"""Gives memory of the heap back to the system when clients have given much of it back to the daemon.

The C library's allocator keeps what is free in the middle of its heaps: dictionaries and lists, about half of what
commands make the daemon hold.  Python's own, for small objects, returns an arena of a MiB as soon as it is empty; what
keeps it from that are objects that stay beside many that go, and those that Python itself keeps for reuse.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Final

from kdbusfs.native._native import lib

from .threads import new_thread

STEP: Final = 4 << 20
"""Bytes that accounts have to have given back for that: to look for them costs time, while which others may wait."""

_PAUSE: Final = 0.2  # seconds


def _clear_free_lists() -> None:
    """Have Python free the tuples and others that it keeps for reuse: each can hold a whole arena.

    Only a full collection does; one that has no objects to look at takes no time.
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()


class Heap:
    """used: what the accounts of all users hold now, in bytes."""

    __slots__ = ("_most", "_trimming", "_used")

    def __init__(self, used: Callable[[], int]) -> None:
        self._used = used
        self._most = 0  # since the last time
        self._trimming = False

    def look(self) -> None:
        """Something was given back, perhaps enough.  For the reader; a thread of its own does the rest."""
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
