"""Python's cyclic garbage collector, kept out of the turns of the core.

Left to itself it runs inside whatever allocates, and looks at every object there is: 15 ms with 900 connections.  What
the daemon makes for clients leaves no cycles (`tests/model/test_garbage.py`), so there is little for it to find: what
pyfuse3, trio and the standard library make.  Therefore it is off, and a thread of its own has it look at the young
objects when there are enough of them, but never at so many that it takes long.  Those that survive are looked at again
only when the mount has been idle for a while, and those from before `begin` never.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Final

from .threads import new_thread

YOUNG: Final = 2000
"""So many young objects are worth a look."""
TOO_MANY: Final = 20_000
"""A look takes up to 0.15 us for each object, and the interpreter's lock all that time."""

_INTERVAL: Final = 10.0  # s
_QUIET: Final = 1.0  # s without a request: the mount is idle
_BETWEEN_FULL: Final = 600.0  # s


class Collector:
    """Looks for cyclic garbage when that disturbs nobody.

    requests: gives the number of requests that have come so far.
    collections, longest_us: how often objects were looked at since `begin`, and how long that has taken at most.
    """

    __slots__ = (
        "_due",
        "_full_at",
        "_is_over",
        "_requests",
        "_seen",
        "_started_ns",
        "_thread",
        "_unseen",
        "collections",
        "longest_us",
    )

    def __init__(self, requests: Callable[[], int]) -> None:
        self._requests = requests
        self._due = threading.Event()
        self._is_over = False
        self._full_at = 0.0
        self._seen = 0
        self._started_ns = 0
        self._thread: threading.Thread | None = None
        self._unseen = False
        self.collections = 0
        self.longest_us = 0

    def begin(self) -> None:
        """Everything is imported and mounted: from now on objects are looked at by this, and by nothing else.

        Where the system gives no thread, all stays as Python has it.
        """
        try:
            thread = new_thread("kdbusfs-garbage", self._run)
            thread.start()
        except (RuntimeError, MemoryError):
            return
        self._thread = thread
        gc.disable()
        gc.collect()
        gc.freeze()
        self._full_at = time.monotonic()
        gc.callbacks.append(self._measure)

    def close(self) -> None:
        """End the thread; nothing is collected any more."""
        self._is_over = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()
            gc.callbacks.remove(self._measure)

    def notice(self) -> None:
        """Something was done that may leave garbage.  For the reader: it only asks for a number."""
        if gc.get_count()[0] >= YOUNG:
            self._due.set()

    def figures(self) -> dict[str, object]:
        """For the statistics of the mount."""
        return {"collections": self.collections, "longest_collection_us": self.longest_us}

    def look_at_young(self) -> None:
        """Have the young objects looked at; if they are too many they are set aside unseen, which takes no time."""
        if gc.get_count()[0] <= TOO_MANY:
            gc.collect(0)
        else:
            gc.freeze()
            self._unseen = True

    def look_at_all(self) -> None:
        """Have all objects since `begin` looked at, unless they are too many.

        Where some were set aside unseen those from before are looked at with them, once.
        """
        if len(gc.get_objects(1)) + len(gc.get_objects(2)) > TOO_MANY:
            return
        if self._unseen:
            gc.unfreeze()
        gc.collect()
        if self._unseen:
            gc.freeze()
            self._unseen = False

    def _run(self) -> None:
        while True:
            self._due.wait(_INTERVAL)
            if self._is_over:
                return
            self._due.clear()
            if gc.get_count()[0]:
                self.look_at_young()
            if self._is_idle():
                self.look_at_all()

    def _is_idle(self) -> bool:
        """Whether it is long since all objects were looked at, requests have come since, and none comes now."""
        now = time.monotonic()
        came = self._requests()
        if now - self._full_at < _BETWEEN_FULL or came == self._seen:
            return False
        if self._due.wait(_QUIET) or self._requests() != came:
            return False
        self._full_at = now
        self._seen = came
        return True

    def _measure(self, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic_ns()
        if phase == "start":
            self._started_ns = now
            return
        self.collections += 1
        self.longest_us = max(self.longest_us, (now - self._started_ns) // 1000)
