"""The ends of files that were closed: each user's come one after the other (CLOSE-1, FS-24, FS-25).

An end may be long: a bus of a thousand connections, a connection that many wait for.  Others are served meanwhile, and
may close files as well.  Those of the same user wait here until the one before is over: an observer sees a user's ends
in the order of the closes, and only one thread at a time is busy with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Ends:
    """What is to be done for files that are closed, by the uid of their users."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Callable[[], None]]] = {}

    def __len__(self) -> int:
        """How many users' ends are under way."""
        return len(self._waiting)

    def begin(self, user: int, end: Callable[[], None]) -> None:
        """Carry out `end`, or have it carried out by whoever is busy with an earlier one of `user`.

        Raises what an `end` raises, after those that waited for it.
        """
        waiting = self._waiting.get(user)
        if waiting is not None:
            waiting.append(end)
            return
        waiting = self._waiting[user] = deque((end,))
        fault: Exception | None = None
        while waiting:
            try:
                waiting.popleft()()
            except Exception as error:
                fault = error
        del self._waiting[user]
        if fault is not None:
            raise fault
