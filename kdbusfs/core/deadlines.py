"""The deadlines of requests (REP-4, SYNC-3)."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from .reply import newest_first

if TYPE_CHECKING:
    from .connection import Connection
    from .reply import Tracker

_COMPACT_FROM: Final = 1024


class Deadlines:
    """The connections whose requests have deadlines, each with the earliest of them.

    A heap of connections.  An entry stays when the request with that deadline is answered, so that most requests
    need no change of the heap; the connection then comes up once too early.  It has 128 requests at most, so all of
    them are checked when it comes up.
    """

    __slots__ = ("_heap", "_number", "_roomy")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Connection]] = []
        self._number = 0
        self._roomy = _COMPACT_FROM

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, tracker: Tracker) -> None:
        """Arm the deadline of `tracker`, in place of an earlier one."""
        self._number += 1
        tracker.alarm = self._number
        self._file(tracker.requester, tracker.deadline_ns)

    def _file(self, connection: Connection, deadline_ns: int) -> None:
        if connection.requests.alarm and connection.requests.alarm_ns <= deadline_ns:
            return
        self._number += 1
        connection.requests.alarm = self._number
        connection.requests.alarm_ns = deadline_ns
        heapq.heappush(self._heap, (deadline_ns, self._number, connection))
        if len(self._heap) > self._roomy:
            self._compact()

    def next(self) -> int:
        """The earliest deadline of a linked tracker, or one before it; 0 when there is none."""
        heap = self._heap
        while heap:
            deadline, number, connection = heap[0]
            if connection.requests.alarm == number:
                if connection.requests.trackers:
                    return deadline
                connection.requests.alarm = 0
            heapq.heappop(heap)
        return 0

    def pop(self, now: int) -> Connection | None:
        """Take out a connection which may have trackers whose deadline is not after `now`; None when there is none.

        The caller checks it with `expired`.
        """
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, number, connection = heapq.heappop(heap)
            if connection.requests.alarm == number:
                connection.requests.alarm = 0
                return connection
        return None

    def expired(self, connection: Connection, now: int) -> list[Tracker]:
        """The trackers whose deadline is not after `now`, newest request first (NOTE-10).

        The connection comes up again for its others.
        """
        due: list[Tracker] = []
        earliest = 0
        for tracker in connection.requests.trackers:
            if not tracker.alarm:
                continue  # its SEND is still at work
            if tracker.deadline_ns <= now:
                due.append(tracker)
            elif not earliest or tracker.deadline_ns < earliest:
                earliest = tracker.deadline_ns
        if earliest:
            self._file(connection, earliest)
        return newest_first(due)

    def _compact(self) -> None:
        self._heap = [item for item in self._heap if item[2].requests.alarm == item[1]]
        heapq.heapify(self._heap)
        self._roomy = max(_COMPACT_FROM, 2 * len(self._heap))
