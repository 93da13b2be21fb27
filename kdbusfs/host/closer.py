"""Closes descriptors that came from clients: close(2) may block in their file systems."""

from __future__ import annotations

import contextlib
import os

from .user_threads import IDLE, Pool, Sign, UserThread, UserThreads


class Closer:
    """Closes descriptors in a thread for each user.  No method blocks."""

    __slots__ = ("_pool", "_threads")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._threads: UserThreads[int] = UserThreads(pool, "user-{}-close", self._run)

    def close_later(self, user: int, fd: int) -> None:
        """Close `fd`, which came from `user`."""
        with self._pool.lock:
            self._threads.get_later(user).queue.put(fd)
            self._threads.start_waiting()

    def closing(self, user: int) -> int:
        """Number of descriptors of `user` that wait to be closed, which count against the user's limit."""
        thread = self._threads.of(user)
        return 0 if thread is None else thread.queue.qsize() + thread.is_busy

    def _run(self, thread: UserThread[int]) -> None:
        while True:
            work = thread.next(IDLE)
            if isinstance(work, int):
                thread.is_busy = True
                with contextlib.suppress(OSError):  # the error is the file system's; the descriptor is closed
                    os.close(work)
                thread.is_busy = False
            elif work is Sign.END or thread.retire():
                return
