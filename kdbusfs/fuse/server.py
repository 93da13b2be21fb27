"""The reader's loop: one thing after the other, until the mount is gone or the daemon is told to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from .channel import (
    EVENT,
    GONE,
    INTERRUPT,
    IOCTL,
    NOTHING,
    TIMER,
    TREE,
    Amendments,
    Channel,
    check,
    lib,
)
from .requests import Domain as RequestsDomain
from .requests import Faults, Requests

log = logging.getLogger(__name__)

_LINGER_NS: Final = 2_000_000_000
"""How long a stopped server goes on for the sake of descriptors that are being installed."""


class Domain(RequestsDomain, Protocol):
    """What the loop needs of the core's domain."""

    def next_deadline(self) -> int:
        """CLOCK_MONOTONIC ns of the next thing to expire; 0: none."""

    def expire(self, now: int) -> None:
        """Whatever is due at `now` is."""

    def shutdown(self) -> None:
        """Everything ends."""


class Wakeup:
    """What ends the reader's wait from outside.

    event_fd: an eventfd that any thread may write.  signal_fd: gets a byte for every signal, so that one that
    arrives on the way into a wait ends it too.
    """

    __slots__ = ("_signal_writer", "_signals", "event_fd")

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._signals, self._signal_writer = socket.socketpair()
        self._signals.setblocking(False)
        self._signal_writer.setblocking(False)

    @property
    def signal_fd(self) -> int:
        """The end to wait on."""
        return self._signals.fileno()

    def wake(self) -> None:
        """End the wait.  May be called by any thread and by signal handlers."""
        os.eventfd_write(self.event_fd, 1)

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Meanwhile signals end the wait, too.  Has no effect in a thread that gets none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.event_fd)
        self._signals.close()
        self._signal_writer.close()


class Server:
    """Drives a channel.  `on_event` are called when the event descriptor was written."""

    __slots__ = (
        "_amendments",
        "_channel",
        "_domain",
        "_faults",
        "_limit",
        "_on_event",
        "_requests",
        "_stopping",
        "_wakeup",
    )

    def __init__(
        self,
        channel: Channel,
        amendments: Amendments,
        requests: Requests,
        domain: Domain,
        wakeup: Wakeup,
        *,
        faults: Faults,
        on_event: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._channel = channel
        self._amendments = amendments
        self._requests = requests
        self._domain = domain
        self._wakeup = wakeup
        self._faults = faults
        self._on_event = on_event
        self._stopping = False
        self._limit = 0

    def stop(self) -> None:
        """Let `run` return soon.  May be called by any thread and by signal handlers."""
        self._stopping = True
        self._wakeup.wake()

    def run(self) -> bool:
        """Serve until the mount is gone or `stop`.  Then the domain is shut down and every call answered.

        Returns False when the channel failed: the reason is in the log.
        """
        try:
            with self._wakeup.catching_signals():
                return self._serve()
        except OSError as fault:
            log.error("the mount cannot be served any longer: %s", fault)
            return False
        finally:
            self._shut_down()

    def _serve(self) -> bool:
        step = lib.kfs_channel_step
        native = self._channel.native
        ioctl = self._requests.ioctl
        next_deadline = self._domain.next_deadline
        answer = NOTHING
        while True:
            deadline = next_deadline() if not self._stopping else self._linger()
            if deadline < 0:
                self._channel.flush(answer)
                return True
            kind = step(native, deadline, answer)
            if kind == IOCTL:
                answer = ioctl()
                continue
            answer = NOTHING
            if kind == GONE:
                return True
            if kind < 0:
                check(kind)
            self._other(kind)

    def _linger(self) -> int:
        """Until when a stopped server goes on; -1 when it ends now."""
        if not self._limit:
            self._requests.announce_answers()
        if not self._requests.answering:
            return -1
        now = time.monotonic_ns()
        if not self._limit:
            self._limit = now + _LINGER_NS
        return self._limit if now < self._limit else -1

    def _other(self, kind: int) -> None:
        try:
            if kind == TREE:
                self._amendments.apply()
            elif kind == INTERRUPT:
                self._requests.interrupt()
            elif kind == TIMER:
                self._domain.expire(time.monotonic_ns())
            elif kind == EVENT:
                self._requests.finish_jobs()
                for action in self._on_event:
                    action()
        except Exception:
            self._faults.report("a request failed unexpectedly")
        self._drain()

    def _drain(self) -> None:
        try:
            self._requests.drain()
        except Exception:
            self._faults.report("an effect of a command failed unexpectedly")

    def _shut_down(self) -> None:
        try:
            self._domain.shutdown()
        except Exception:
            self._faults.report("the domain does not end as it should")
        self._drain()
        self._requests.finish_jobs()
        self._requests.abandon()
        self._channel.flush(NOTHING)
