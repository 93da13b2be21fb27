"""The effects of closed files: one after the other for each user (CLOSE-1, FS-24, FS-25).

An end may be long: a bus of a thousand connections, a connection with many requesters.  Other commands run meanwhile,
and may close files, too.  Files of the same user wait here until the previous end is over: an observer sees the ends
of one user in the order of the closes, and only one thread at a time works on them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Ends:
    """Pending ends of closed files, by the uid of their users."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Callable[[], None]]] = {}

    def __len__(self) -> int:
        """The number of users with an end that is running."""
        return len(self._waiting)

    def begin(self, user: int, end: Callable[[], None]) -> None:
        """Run `end` now, or after the ends of `user` that are running already.

        Raises what an `end` raises, after the others have run.
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
