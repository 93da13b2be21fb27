"""Threads that work for users, one for each user that has work: work that blocks delays only its own user."""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar

from .threads import new_thread

MAX_THREADS: Final = 256
"""Maximum of threads that work for users, of all kinds together."""
IDLE: Final = 1.0
"""Seconds after which a thread without work ends."""

Work = TypeVar("Work")


class Sign(enum.Enum):
    """Returned instead of work."""

    NOTHING = "no work came in time"
    REST = "end now if there is no work"
    END = "finish the work there is, and end"


class UserThread(Generic[Work]):
    """A user's queue, and the thread that works on it."""

    __slots__ = ("_threads", "is_busy", "queue", "thread", "user")

    def __init__(self, threads: UserThreads[Work], user: int) -> None:
        self._threads = threads
        self.user = user
        self.queue: SimpleQueue[Work | Sign] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.is_busy = False

    def next(self, timeout: float) -> Work | Sign:
        """The next piece of work; waits up to `timeout` seconds."""
        try:
            return self.queue.get(timeout=timeout)
        except Empty:
            return Sign.NOTHING

    def retire(self) -> bool:
        """Whether the thread may end: no, if work was queued just now."""
        return self._threads.retire(self)


class Pool:
    """Bounds the threads of all kinds together, and ends them.

    lock: protects the queues of all threads.
    """

    __slots__ = ("_kinds", "_maximum", "_running", "end", "lock")

    def __init__(self, maximum: int = MAX_THREADS) -> None:
        self.lock = threading.RLock()
        self.end = 0.0
        """CLOCK_MONOTONIC seconds from which on nobody waits for the threads; 0.0: they continue."""
        self._maximum = maximum
        self._running = 0
        self._kinds: list[UserThreads[object]] = []

    def add(self, kind: UserThreads[Work]) -> None:
        """Add `kind` to the pool."""
        self._kinds.append(kind)  # type: ignore[arg-type]

    def start(self, thread: threading.Thread) -> bool:
        """With the lock held: start `thread`; False if there are too many, or the system refuses."""
        if self._running >= self._maximum or self.end:
            return False
        try:
            thread.start()
        except RuntimeError:
            return False
        self._running += 1
        return True

    def ended(self) -> None:
        """With the lock held: a thread ends; another one may start."""
        self._running -= 1
        for kind in self._kinds:
            kind.start_waiting()

    def rest(self, timeout: float = 0.5) -> None:
        """End the threads that have no work, and wait for that; not for the reader."""
        self._tell(Sign.REST, time.monotonic() + timeout)

    def close(self, timeout: float = 3.0) -> bool:
        """Finish all work and end all threads.

        Returns False if some still run after `timeout` seconds: their client does not stop, or a file system does not
        answer.  The process can end nevertheless.
        """
        self.end = time.monotonic() + timeout
        return self._tell(Sign.END, self.end)

    def _tell(self, sign: Sign, limit: float) -> bool:
        with self.lock:
            found = [thread for kind in self._kinds for thread in kind.threads()]
            for each in found:
                each.queue.put(sign)
        threads = [each.thread for each in found if each.thread is not None]
        for thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


class UserThreads(Generic[Work]):
    """The threads of one kind.

    name: of a thread, with {} for the uid; run: the function of a thread.
    """

    __slots__ = ("_by_user", "_name", "_pool", "_run", "_waiting")

    def __init__(self, pool: Pool, name: str, run: Callable[[UserThread[Work]], None]) -> None:
        self._pool = pool
        self._name = name
        self._run = run
        self._by_user: dict[int, UserThread[Work]] = {}
        self._waiting: deque[UserThread[Work]] = deque()
        pool.add(self)

    def of(self, user: int) -> UserThread[Work] | None:
        """The thread of `user`, running or about to start; None if there is none."""
        return self._by_user.get(user)

    def threads(self) -> list[UserThread[Work]]:
        """All of them."""
        return list(self._by_user.values())

    def get(self, user: int) -> UserThread[Work] | None:
        """With the lock held: the running thread of `user`, started if necessary; None if that is impossible."""
        found = self._by_user.get(user)
        if found is None:
            found = UserThread(self, user)
            if not self._start(found):
                return None
            self._by_user[user] = found
        return found

    def get_later(self, user: int) -> UserThread[Work]:
        """With the lock held: the thread of `user`, which starts as soon as possible."""
        found = self._by_user.get(user)
        if found is None:
            found = self._by_user[user] = UserThread(self, user)
            self._waiting.append(found)
        return found

    def start_waiting(self) -> None:
        """With the lock held: start the threads that could not be started before."""
        while self._waiting and self._start(self._waiting[0]):
            self._waiting.popleft()

    def retire(self, thread: UserThread[Work]) -> bool:
        """See `UserThread.retire`."""
        with self._pool.lock:
            if not thread.queue.empty():
                return False
            del self._by_user[thread.user]
            self._pool.ended()
            return True

    def _start(self, wanted: UserThread[Work]) -> bool:
        thread = new_thread(self._name.format(wanted.user), self._run, wanted)
        if not self._pool.start(thread):
            return False
        wanted.thread = thread
        return True
