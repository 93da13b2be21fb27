"""Schedules Python's cyclic garbage collector outside of the turns of the core.

Automatic collection would run inside any allocation and traverse all objects: 15 ms with 900 connections.  The daemon's
own objects form no cycles (`tests/model/test_garbage.py`); only pyfuse3, trio and the standard library leave garbage.
So automatic collection is off.  A thread collects the young generation when it is large enough, unless it is so large
that collection takes long.  Survivors are collected again only while the mount is idle, objects from before `begin`
never.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Final

from .threads import new_thread

YOUNG: Final = 2000
"""Young objects from which on a collection is worthwhile."""
TOO_MANY: Final = 20_000
"""Largest collection: it takes up to 0.15 us for each object, and holds the GIL meanwhile."""

_INTERVAL: Final = 10.0  # s
_QUIET: Final = 1.0  # s without a request: the mount is idle
_BETWEEN_FULL: Final = 600.0  # s


class Collector:
    """Runs collections when they delay no request.

    requests: returns the number of requests so far.  collections, longest_us: number of collections since `begin`, and
    the longest one.
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
        """Take over collection: call it when everything is imported and mounted.

        If no thread can be started, automatic collection stays on.
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
        """Stop the thread; nothing is collected any more."""
        self._is_over = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()
            gc.callbacks.remove(self._measure)

    def notice(self) -> None:
        """Call after work that may leave garbage.  Cheap: for the reader."""
        if gc.get_count()[0] >= YOUNG:
            self._due.set()

    def statistics(self) -> dict[str, object]:
        """Values for the statistics of the mount."""
        return {"collections": self.collections, "longest_collection_us": self.longest_us}

    def look_at_young(self) -> None:
        """Collect the young generation; if it is too large, freeze it instead, which takes no time."""
        if gc.get_count()[0] <= TOO_MANY:
            gc.collect(0)
        else:
            gc.freeze()
            self._unseen = True

    def look_at_all(self) -> None:
        """Collect all objects made since `begin`, unless they are too many.

        If some were frozen, those from before `begin` are collected with them, once.
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
        """Whether a full collection is due: the last one is long ago, requests came since, and the mount is idle."""
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
