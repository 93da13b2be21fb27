"""Installs descriptors in clients that block in an ioctl, and answers the ioctl (REP-15, LAY-16).

That can take as long as the client pleases, so the reader does not do it.  Every user has a thread of its own, which
starts when there is work and ends when there was none for a second: a client that stalls its worker delays only its own
user.  How a descriptor gets into a client is described in native/inject.c.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from kdbusfs.native._native import ffi, lib

from .injection import Tracer
from .job import Job
from .threads import new_thread
from .user_threads import IDLE, Pool, Sign, UserThread, UserThreads

if TYPE_CHECKING:
    from .store_memory import Storer

MAX_QUEUED: Final = 1024
"""The jobs that wait for one user's thread."""

_log: Final = logging.getLogger(__name__)

_SWEEP_INTERVAL: Final = 0.05  # seconds
_DYING_POLL: Final = 0.05
_ROOT: Final = 1  # node id


class Installer:
    """Does jobs for the clients of one mount.

    fuse_fd: /dev/fuse of the mount; event_fd: an eventfd that is written when a job has finished; pool: bounds the
    threads; storer: answers jobs that have stores and no descriptors.  All methods are for the reader, except
    `forget_name`.  None of them blocks.
    """

    def __init__(
        self, pool: Pool, fuse_fd: int, event_fd: int, *, max_queued: int = MAX_QUEUED, storer: Storer | None = None
    ) -> None:
        self._pool = pool
        self._storer = storer
        self._fuse_fd = fuse_fd
        self._event_fd = event_fd
        self._max_queued = max_queued
        self._threads: UserThreads[Job] = UserThreads(pool, "user-{}", self._run)
        self._finished: deque[Job] = deque()
        # Jobs that wait for their turn, or for the memory of their client, by unique.
        self._queued: dict[int, Job] = {}
        self._interrupted: set[int] = set()  # those of them whose client has a signal pending
        self._watching = False
        self.tids: frozenset[int] = frozenset()
        """Ids of the threads that do jobs: they may open the file of a swap."""

    def submit(self, job: Job) -> None:
        """Queue `job`.  It appears in `finished` in any case.

        Beyond the bounds (threads of all users together, jobs of this one) its ioctl is answered at once, without
        descriptors: every entry is -EAGAIN, and nothing is swapped.  The reader must not access the client's memory
        then: an ioctl with `writes` returns -EAGAIN, and flags that do not travel back are not written.
        """
        with self._pool.lock:
            thread = self._threads.get(job.user)
            accepted = thread is not None and not self._pool.end and thread.queue.qsize() < self._max_queued
            if accepted and thread is not None:
                self._queued[job.unique] = job
                thread.queue.put(job)
        if not accepted:
            job.caller = None
            if job.writes:
                job.result = -errno.EAGAIN
            self._answer(job, job.fail(errno.EAGAIN))
            self._finish(job)

    def finished(self) -> list[Job]:
        """The jobs that have finished since the last call, in that order."""
        jobs = []
        while self._finished:
            jobs.append(self._finished.popleft())
        return jobs

    def interrupt(self, unique: int) -> None:
        """A signal is pending for the client of ioctl `unique`.

        A client that is killed while its job waits for another job of its user, or for the client's own memory, perhaps
        for ever, is answered: it could not end otherwise.  The fatal signal may be later than the one that the kernel
        reports.
        """
        with self._pool.lock:
            if unique in self._queued:
                self._watch(unique)

    def _watch(self, unique: int) -> None:
        """With the lock held: see to it that a client which is killed gets its answer."""
        self._interrupted.add(unique)
        if self._answer_dying() or self._watching:
            return
        with contextlib.suppress(RuntimeError):
            new_thread("kdbusfs-killed", self._watch_interrupted).start()
            self._watching = True

    def _watch_interrupted(self) -> None:
        left = True
        while left:
            time.sleep(_DYING_POLL)
            with self._pool.lock:
                self._watching = left = not self._answer_dying()

    def _answer_dying(self) -> bool:
        """With the lock held: answer the interrupted clients that were killed.  Returns whether no more have to be
        watched.
        """
        for unique in list(self._interrupted):
            job = self._queued.get(unique)
            if job is not None and not lib.kfs_is_dying(job.tid):
                continue
            self._interrupted.discard(unique)
            if job is not None:
                del self._queued[unique]
                job.abandoned = True
                lib.kfs_answer_error(self._fuse_fd, unique, -errno.EINTR)
        return not self._interrupted

    def forget_name(self, name: bytes) -> None:
        """Make the kernel forget a name in the root that has become invalid.

        This takes the lock of the root directory, whose holder may wait for the reader: the reader itself must not call
        it (deadlock).
        """
        lib.kfs_notify_entry_gone(self._fuse_fd, _ROOT, name, len(name))

    def _finish(self, job: Job) -> None:
        self._finished.append(job)
        os.eventfd_write(self._event_fd, 1)

    def _answer(self, job: Job, out: bytes) -> None:
        """Answer the ioctl without installing anything; no effect if the client has ended."""
        stores = job.stores if job.unswapped is None else job.unswapped
        if stores is None or self._storer is None or not self._storer.answer(stores, job.unique, job.result, out):
            failure = -lib.kfs_answer_ioctl(self._fuse_fd, job.unique, job.result, ffi.from_buffer(out), len(out))
            job.error = job.error or failure

    def _take(self, job: Job) -> bool:
        """From now on nobody else answers it.  False: its client was killed, and is answered."""
        with self._pool.lock:
            self._queued.pop(job.unique, None)
        return not job.abandoned

    def _fail(self, job: Job) -> None:
        """Answer it with all entries failed.  The client may hold that up, too, unless its thread has ended."""
        if job.caller is not None and job.tells_incomplete and job.error != errno.ESRCH:
            with self._pool.lock:
                self._queued[job.unique] = job
                # The kernel may have told of a signal already, and does not again.
                self._watch(job.unique)
        out = job.fail(job.error)
        if self._take(job):
            self._answer(job, out)

    def _do(self, tracer: Tracer, job: Job) -> None:
        is_answered = False
        try:
            job.write()
            if self._take(job):
                is_answered = tracer.inject(job)
        except Exception:
            _log.exception("installing descriptors failed")
            job.error = errno.EIO
        if not is_answered and not job.abandoned:
            self._fail(job)
        if job.swap is not None:
            self.forget_name(os.fsencode(os.path.basename(job.swap)))
        self._finish(job)

    def _run(self, thread: UserThread[Job]) -> None:
        """Run a user's thread."""
        tracer = Tracer(self._fuse_fd)
        tid = threading.get_native_id()
        with self._pool.lock:
            self.tids |= {tid}
        is_ending = False
        idle_from = time.monotonic()
        while not (is_ending and (not tracer.living or time.monotonic() > self._pool.end)):
            work = thread.next(_SWEEP_INTERVAL if tracer.has_unreleased else IDLE)
            if isinstance(work, Job):
                self._begin(tracer, work)
            elif work is Sign.END:
                is_ending = True
            elif not tracer.living and (work is Sign.REST or time.monotonic() - idle_from >= IDLE) and thread.retire():
                break
            if work is not Sign.NOTHING:
                idle_from = time.monotonic()
            if tracer.has_unreleased:
                tracer.sweep()
        with self._pool.lock:
            self.tids -= {tid}
        tracer.close()

    def _begin(self, tracer: Tracer, job: Job) -> None:
        if job.abandoned:
            self._finish(job)
        else:
            self._do(tracer, job)
