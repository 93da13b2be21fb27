"""The reader threads: one owns the core, and a client that blocks it is left with that thread alone.

The reader waits for clients in one place only: an access to a client's memory may fault a page of a file whose file
system is slow (a disk, a network) or never answers (a FUSE server).  Such a copy cannot be cancelled: the thread is in
the kernel until the page arrives.  To copy in another thread or process would slow down every message.  So the reader
copies itself, and is *preempted* when a copy takes too long.

- One thread *owns* the core: it reads /dev/fuse, and no other thread touches the domain, the open files or the deferred
  calls.  No lock is needed, because ownership changes only where the owner permits it: in an access to client memory,
  and between two requests.
- An access is framed by kfs_access_begin and kfs_access_end (native/access.c): two atomic additions.  A watchdog looks
  at the counter every KFS_LOOK_MS while there are accesses, and sleeps otherwise.
- When an access has lasted KFS_PATIENCE_MS and its thread sleeps, the watchdog gives the core to a *spare*: a thread
  that waits for that, with a channel (buffers, a request, a caller) of its own, because the kernel may still write into
  the buffers of the preempted one.  The new owner first publishes what the other had not published yet, and starts the
  next spare.
- The preempted thread continues when its page arrives.  First, still in C, it gets the core back: it queues, wakes the
  owner by the event descriptor, and the owner hands over between two requests and becomes a spare (or ends, if there
  are KFS_SPARES_MAX).  The request then continues, is answered with its result, and its thread is the reader.  It may
  be preempted again.

The owner of a long turn, such as a broadcast to a thousand receivers, *yields*: when the turn has lasted KFS_TURN_US
and begins another access, or reports work (`ports.Turn`), it gives the core to a spare and queues like a preempted
thread.  The spare serves others for as long, or until there is no request, and passes the core back.  A user may have
KFS_YIELDED_PER_UID commands that have yielded; the user's next ones wait unread (held.c).

For the core this means that other commands may have run *inside* a copy or a `Turn.spend`: connections may have ended,
queues may have filled, an awaited reply may have arrived.  What it has checked before, it checks again; a channel does
the same with its slot.  An interrupt for a stuck request is kept for it (`Requests.interrupt`).

A killed client cannot end before its request is answered.  If the client itself serves the page that its reader waits
for, that is a deadlock: the server's descriptor is closed with the last thread of the process.  So a request whose
thread has a fatal signal pending while its reader is stuck is *abandoned*: it is answered at once with EINTR, by the
owner when FUSE_INTERRUPT arrives, or by the watchdog, which looks every KFS_DYING_MS (the kernel reports the first
signal only, which may have been harmless).  The client ends, its files are closed, its page fails, and the stuck thread
returns.  From then on every access of that request returns ECANCELED, in Python `AbandonedError`, which is passed on
everywhere, so that the command changes nothing more.  Nothing else is answered.

A stuck thread costs memory and a kernel thread, and each preemption delays everybody by KFS_PATIENCE_MS.  So there are
bounds by the uid of the request: KFS_STUCK_PER_UID threads for one, KFS_STUCK_MAX in all.  A uid at its bound, or one
that causes KFS_PREEMPTIONS_MAX preemptions within KFS_PREEMPTIONS_MS, is *blocked* for KFS_BLOCKED_MS: its memory is
not accessed, and a command that needs it fails with EFAULT.  At the bound of all threads that holds for everybody.

At the end of the service stuck threads stay; one that returns waits for the end of the process, by a fatal signal or
regularly.  A page that a FUSE server has begun to serve delays even that: the process then stays, without mount,
descriptors or work, until the server answers or ends.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ..host.threads import new_thread
from ..native._native import lib
from .channel import OWNER, Channel

log = logging.getLogger(__name__)

SPARES: Final[int] = lib.KFS_SPARES
_LAST_SPARES: Final = 2
"""With no more spares than that the owner waits for new ones: it must know whether it has a successor."""
_ALL_SIGNALS: Final = signal.valid_signals()
_RETRY_FIRST: Final = 0.05  # s, then twice as long each time
_RETRY_LAST: Final = 1.0


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Threads that are started meanwhile have all signals blocked: the main thread waits for signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Readers:
    """The threads that own the core in turn.

    channel: of the mount; every thread makes one of its own. serve: called by a thread that becomes the owner for the
    first time; the thread ends when it returns. fail: called by a thread that cannot become the owner, with the reason.
    """

    __slots__ = ("_attention", "_channel", "_ended", "_fail", "_lock", "_number", "_serve", "_starving", "_threads")

    def __init__(
        self, channel: Channel, serve: Callable[[Channel], None], fail: Callable[[Exception], None]
    ) -> None:
        self._channel = channel
        self._serve = serve
        self._fail = fail
        self._lock = threading.Lock()
        self._number = 0
        self._threads: set[threading.Thread] = set()
        self._starving = False
        self._ended = threading.Event()
        self._attention = threading.Event()  # the end, or threads to be started

    def start(self) -> None:
        """Start a thread, which becomes the owner if there is none, and else a spare.

        Raises RuntimeError, MemoryError.
        """
        with self._lock:
            self._start()

    def _start(self) -> None:
        self._number += 1
        thread = new_thread(f"kdbusfs-reader-{self._number}", self._run)
        with signals_blocked():
            thread.start()
        self._threads.add(thread)

    def ask_for_spares(self) -> None:
        """Ensure that there are spares, for a new owner: at once if few are left, else by the thread that waits in
        `watch`.
        """
        spares = self._channel.owners()["spares"]
        if spares <= _LAST_SPARES:
            self.refill()
        elif spares < SPARES:
            self._attention.set()

    def refill(self) -> bool:
        """Start spares until there are SPARES.

        Returns False if the system refuses to start threads, by a limit or for lack of memory.  `watch` then tries
        again, and until that succeeds the last reader accesses no client memory.
        """
        owners = self._channel.owners()
        with self._lock:
            try:
                while len(self._threads) < 1 + SPARES + owners["stuck"] + owners["yielded"]:
                    self._start()
            except (RuntimeError, MemoryError) as fault:
                if not self._starving:
                    log.error("no spare reader can be started (%s), %d are left", fault, owners["spares"])
                    self._starving = True
                    self._channel.starve(True)
                    self._attention.set()
                return False
            if self._starving:
                log.info("there are spare readers again")
                self._starving = False
                self._channel.starve(False)
        return True

    def watch(self) -> None:
        """Start spares when they are asked for, until the end.  Failed starts are retried at growing intervals."""
        while not self._ended.is_set():
            self._attention.wait()
            self._attention.clear()
            pause = _RETRY_FIRST
            while not self._ended.is_set() and not self.refill():
                self._ended.wait(pause)
                pause = min(2 * pause, _RETRY_LAST)

    def end(self) -> None:
        """Make `watch` return."""
        self._ended.set()
        self._attention.set()

    def join(self, patience: float) -> bool:
        """Wait for the threads after the end.  Returns False if some are stuck after `patience` seconds."""
        limit = time.monotonic() + patience
        while True:
            with self._lock:
                self._threads = {thread for thread in self._threads if thread.is_alive()}
                left = len(self._threads)
            owners = self._channel.owners()
            if left <= owners["stuck"] + owners["yielded"] or time.monotonic() >= limit:
                return left == 0
            time.sleep(0.001)

    def _run(self) -> None:
        if self._ended.is_set():
            # the channel may be closed by now
            with self._lock:
                self._threads.discard(threading.current_thread())
            return
        try:
            channel = self._channel.for_thread()
        except MemoryError as fault:
            self._fail(fault)
            return
        try:
            try:
                kind = channel.take()
            except OSError as fault:
                self._fail(fault)
                return
            if kind == OWNER:
                self._serve(channel)
        finally:
            channel.close()
            with self._lock:
                self._threads.discard(threading.current_thread())
