"""The reader's threads: one owns the core, and a client that makes it wait only takes that thread away.

Nothing that the reader does waits for a client, but for one thing.  To read or write a client's memory is to touch
its pages, and those may be of a file whose file system takes its time: a slow disk, a network, or a FUSE server that
never answers.  Such a copy cannot be given up: the thread is in the kernel and comes back when the page does, which
may be never.  And a copy by another thread or process would cost every message what only a few need.

So the reader does its copies itself, and is *preempted* when one lasts too long.

- One thread *owns* the core: it reads /dev/fuse, and nobody else touches the domain, the open files or the deferred
  calls.  That needs no lock, because ownership changes hands only where the owner has said that it may: in an access
  to client memory, and between two requests.
- An access is framed by kfs_access_begin and kfs_access_end (native/access.c): two atomic additions.  A watchdog
  looks at the counter every KFS_LOOK_MS while there are accesses, and sleeps when there are none.
- Once an access has lasted KFS_PATIENCE_MS and its thread is blocked, the watchdog gives the core to a *spare*: a
  thread that waits for just that, with a channel (buffers, a request, a caller) of its own.  The kernel may still
  write into the buffers of the other one.  The new owner first publishes what the other one had not come to yet,
  and starts the next spare.
- The preempted thread goes on whenever its page comes.  Before anything else, still in C, it gets the core back: it
  queues, wakes the owner by the event descriptor, and the owner hands over between two requests and becomes a spare
  (or ends: KFS_SPARES_MAX are enough).  The request then goes on as if nothing had happened, is answered with what it
  has come to, and its thread is the reader.  Should it get stuck again, it is preempted again.

The owner of a turn that takes long, like a broadcast to a thousand, *yields* by itself: when the turn has had
KFS_TURN_US and is about to begin another access, or tells of work that it has done (`ports.Turn`), it gives the core to
a spare and queues like a thread that was preempted.  The spare serves others for as long, or until there is no request,
and passes the core back.  A user may have KFS_YIELDED_PER_UID commands that have; his next ones wait unread (held.c).

For the core this means that others may have been served *inside* a copy or a `Turn.spend`: connections may have gone,
queues may have filled, an awaited reply may have come.  What it has looked at before it looks at again after it; a
channel does the same with its slot.  An interrupt for a request that is stuck is kept for it (`Requests.interrupt`).

A client that is killed cannot end before it has its answer. If the page that its reader waits for is served by the
client itself, then neither ever ends: the server's descriptor is closed with the last thread of the process. So a
request whose thread has a fatal signal pending while its reader is stuck is *abandoned*: it is answered at once with
EINTR, by the owner when FUSE_INTERRUPT comes, or by the watchdog, which looks every KFS_DYING_MS (the kernel tells of
the first signal only, which may have been a harmless one). The client ends, its files are closed, a page of its own
fails, and the stuck thread comes back. It finds that its request was abandoned: every access returns ECANCELED from
then on, in Python `AbandonedError`, which everybody passes on, so that the command changes nothing more. Nothing else
is answered.

A stuck thread costs memory and a kernel thread, and each preemption stalls everybody for KFS_PATIENCE_MS.  So there
are bounds by the uid of the request: KFS_STUCK_PER_UID threads for one, KFS_STUCK_MAX in all.  A uid that is at its
bound, or that causes KFS_PREEMPTIONS_MAX preemptions within KFS_PREEMPTIONS_MS, is *blocked* for KFS_BLOCKED_MS: its
memory is not accessed, and a command that needs it fails with EFAULT.  At the bound of all threads that holds for
everybody.

At the end of the service stuck threads stay where they are; should one come back it waits for the end of the process,
which a fatal signal would bring about as well.  Only a page that a FUSE server has begun to serve holds up even that:
the process then stays, without mount, descriptors or work, until that server answers or ends.
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
"""With so few left the owner waits until there are more: it must know whether it has a successor."""
_ALL_SIGNALS: Final = signal.valid_signals()
_RETRY_FIRST: Final = 0.05  # s, then twice as long each time
_RETRY_LAST: Final = 1.0


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Threads that are started meanwhile get no signals: those are the main thread's, which waits for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Readers:
    """The threads that own the core in turn.

    channel: of the mount; every thread gets one of its own.  serve: called by a thread that has become the owner for
    the first time; when it returns the thread ends.  fail: called by one that cannot become it, with the reason.
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
        """Start a thread, which becomes the owner when there is none, and else a spare.

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
        """Have as many spares again as there should be, soon.  For an owner that has just become it."""
        spares = self._channel.owners()["spares"]
        if spares <= _LAST_SPARES:
            self.refill()
        elif spares < SPARES:
            self._attention.set()

    def refill(self) -> bool:
        """Have as many spares again as there should be.

        False where the system gives no thread, by a limit or for lack of memory.  `watch` tries again then, and who is
        the last accesses no memory of clients.
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
        """Return at the end.  Until then start spares; what cannot be started is tried again at growing intervals."""
        while not self._ended.is_set():
            self._attention.wait()
            self._attention.clear()
            pause = _RETRY_FIRST
            while not self._ended.is_set() and not self.refill():
                self._ended.wait(pause)
                pause = min(2 * pause, _RETRY_LAST)

    def end(self) -> None:
        """Let `watch` return."""
        self._ended.set()
        self._attention.set()

    def join(self, patience: float) -> bool:
        """Wait for the threads after the end; False when some are stuck after `patience` seconds."""
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
            # The channel may be closed by now.
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
