"""The reader's loop: one event after the other, until the mount has gone or the daemon has to stop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ..base.ports import ServedDomain
from ..native.calls import step
from .channel import (
    END,
    EVENT,
    FORGET,
    GONE,
    INTERRUPT,
    IOCTL,
    NOTHING,
    OWNER,
    RELEASE,
    TIMER,
    TREE,
    Amendments,
    Channel,
    check,
)
from .error_log import ErrorLog
from .ownership import Readers
from .requests import Requests

log = logging.getLogger(__name__)

LINGER_NS: Final = 2_000_000_000
"""How long a stopped server continues for descriptors that are being installed."""

_END_PATIENCE: Final = 2.0
"""Seconds that the reader threads may take to end; those that are stuck never do."""


class Tree(Protocol):
    """The requests that the loop passes to the tree without pyfuse3."""

    def close_file(self, fh: int) -> object:
        """The last descriptor of `fh` is closed."""

    def forget_nodes(self, nodes: list[tuple[int, int]]) -> None:
        """The kernel forgets lookups: node ids, each with a count."""


class Wakeup:
    """Ends the reader's wait from outside: an eventfd that any thread may write."""

    __slots__ = ("event_fd",)

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def wake(self) -> None:
        """End the wait.  Any thread and any signal handler may call it."""
        os.eventfd_write(self.event_fd, 1)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.event_fd)


class Server:
    """Serves a mount.

    Callbacks: `on_event` after the event descriptor was written, `on_release` after a file was closed, `on_tree` after
    the tree has answered a request, `on_shutdown` after the domain was shut down. channel, requests: of the mount; each
    reader thread makes its own (fuse.ownership). tree: gets the requests that need no answer of pyfuse3.
    """

    __slots__ = (
        "_amendments",
        "_channel",
        "_domain",
        "_errors",
        "_failure",
        "_is_owned",
        "_limit",
        "_linger_ns",
        "_on_event",
        "_on_release",
        "_on_shutdown",
        "_on_tree",
        "_readers",
        "_requests",
        "_served",
        "_stopping",
        "_tree",
        "_wakeup",
        "has_stuck_readers",
    )

    def __init__(
        self,
        channel: Channel,
        amendments: Amendments,
        requests: Requests,
        domain: ServedDomain,
        wakeup: Wakeup,
        tree: Tree,
        *,
        errors: ErrorLog,
        on_event: Sequence[Callable[[], None]] = (),
        on_release: Callable[[], None] = lambda: None,
        on_tree: Callable[[], None] = lambda: None,
        on_shutdown: Callable[[], None] = lambda: None,
        linger_ns: int = LINGER_NS,
    ) -> None:
        self._channel = channel
        self._amendments = amendments
        self._requests = requests
        self._domain = domain
        self._wakeup = wakeup
        self._tree = tree
        self._errors = errors
        self._on_event = on_event
        self._on_release = on_release
        self._on_shutdown = on_shutdown
        self._on_tree = on_tree
        self._linger_ns = linger_ns
        self._readers = Readers(channel, self._read, self._fail)
        self._is_owned = False
        self._failure: Exception | None = None
        self._served = False
        self._stopping = False
        self._limit = 0
        self.has_stuck_readers = False
        """Whether threads are left after `run`, so that the process has to be ended by os._exit."""

    def stop(self) -> None:
        """Make `run` return soon.  Any thread and any signal handler may call it."""
        self._stopping = True
        self._wakeup.wake()

    def run(self) -> bool:
        """Serve until the mount has gone or `stop`.  Then shut down the domain, and answer every call.

        The calling thread waits, and starts readers: in the main thread Python's signal handlers run meanwhile.
        Returns False if the channel failed: the reason is in the log.  Raises the error that kept it from serving at
        all: OSError, MemoryError, RuntimeError.
        """
        self._readers.start()
        self._readers.watch()
        if self._failure is not None:
            raise self._failure
        self.has_stuck_readers = not self._readers.join(_END_PATIENCE)
        return self._served

    def _fail(self, fault: Exception) -> None:
        """A reader cannot begin.  If there are other readers they continue; else serving is impossible."""
        if self._is_owned:
            log.error("a spare reader cannot begin: %s", fault)
        else:
            self._failure = fault
            self._readers.end()

    def _read(self, channel: Channel) -> None:
        """Run a reader thread, from when it first owns the core."""
        self._is_owned = True
        try:
            requests = self._requests.for_thread(channel)
            try:
                if not self._take_turns(channel, requests):
                    return
            finally:
                requests.leave()
        except Exception:
            log.exception("a reader failed unexpectedly")
        channel.end()
        self._readers.end()

    def _take_turns(self, channel: Channel, requests: Requests) -> bool:
        """Serve whenever this thread owns the core.  Returns False if the others continue without it."""
        try:
            served = self._serve(channel, requests)
        except OSError as fault:
            log.error("the mount cannot be served any longer: %s", fault)
            served = False
        if served is None:
            return False
        self._served = served
        self._shut_down(channel, requests)
        return True

    def _serve(self, channel: Channel, requests: Requests) -> bool | None:
        """Returns whether the service ended regularly; None if it continues without this thread."""
        address = channel.address
        next_deadline = self._domain.next_deadline
        answer = NOTHING
        self._other(OWNER, channel, requests)
        while True:
            deadline = next_deadline() if not self._stopping else self._linger()
            if deadline < 0:
                channel.flush(answer)
                return True
            kind = step(address, deadline, answer)
            if kind == IOCTL:
                answer = requests.ioctl()
                continue
            answer = NOTHING
            if kind == GONE:
                return True
            if kind == END:
                return None
            if kind < 0:
                check(kind)
            self._other(kind, channel, requests)

    def _linger(self) -> int:
        """Until when a stopped server continues, CLOCK_MONOTONIC ns; -1: it ends now."""
        if not self._limit:
            self._requests.announce_answers()
        if not self._requests.is_answering:
            return -1
        now = time.monotonic_ns()
        if not self._limit:
            self._limit = now + self._linger_ns
        return self._limit if now < self._limit else -1

    def _other(self, kind: int, channel: Channel, requests: Requests) -> None:
        try:
            requests.tell_freed()
            if kind == TREE:
                self._amendments.apply(channel)
                self._on_tree()
            elif kind == RELEASE:
                self._tree.close_file(channel.released)
                self._on_release()
            elif kind == FORGET:
                self._tree.forget_nodes(channel.forgotten)
            elif kind == INTERRUPT:
                requests.interrupt()
            elif kind == TIMER:
                self._domain.expire(time.monotonic_ns())
            elif kind == EVENT:
                requests.finish_jobs()
                for action in self._on_event:
                    action()
            elif kind == OWNER:
                self._readers.ask_for_spares()
        except Exception:
            self._errors.report("a request failed unexpectedly")
        self._drain(requests)

    def _drain(self, requests: Requests) -> None:
        try:
            requests.drain()
        except Exception:
            self._errors.report("an effect of a command failed unexpectedly")

    def _shut_down(self, channel: Channel, requests: Requests) -> None:
        try:
            self._domain.shutdown()
            self._on_shutdown()
        except Exception:
            self._errors.report("the domain does not end as it should")
        self._drain(requests)
        requests.finish_jobs()
        requests.abandon()
        channel.flush(NOTHING)
