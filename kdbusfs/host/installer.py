"""Installs descriptors in clients that block in an ioctl, and closes those that the daemon got from others.

Both can take as long as the client or a strange file system pleases, so neither is done by the reader.  Every
user has a thread of his own for each of the two, started when there is work and ending when there was none
for a second: who makes it wait keeps nobody waiting but himself.  How a descriptor gets into a client stands
in native/inject.c.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, cast

from kdbusfs.base.errors import CommandError
from kdbusfs.base.ports import Caller
from kdbusfs.native import _native

from .copies import Stores
from .store_memory import Storer
from .threads import new_thread

MAX_WORKERS: Final = 256
"""Threads of one installer."""
MAX_QUEUED: Final = 1024
"""Jobs that wait for one user's thread."""

_log: Final = logging.getLogger(__name__)

_IDLE: Final = 1.0  # seconds
_LIMBO_POLL: Final = 0.05
_DYING_POLL: Final = 0.05
_REST: Final = -1  # among a worker's jobs: there is nothing to wait for
_FLAGS: Final = struct.Struct("=Q")
_NOTIFY_INVAL_ENTRY: Final = 3
_ROOT: Final = 1  # node id
_INVAL_ENTRY: Final = struct.Struct("=IiQQII")  # fuse_out_header, fuse_notify_inval_entry_out; then the name
_ANSWER: Final = struct.Struct("=IiQ")  # fuse_out_header
_REPLY: Final = struct.Struct("=IiQiIII")  # fuse_out_header, fuse_ioctl_out


class _Lib(Protocol):
    def kfs_tracer_new(self) -> Any: ...
    def kfs_tracer_free(self, tracer: Any) -> int: ...
    def kfs_tracer_sweep(self, tracer: Any, dead: Any) -> int: ...
    def kfs_inject(self, tracer: Any, injection: Any) -> int: ...
    def kfs_is_dying(self, tid: int) -> int: ...


class _Ffi(Protocol):
    NULL: Any

    def new(self, declaration: str, value: object = None) -> Any: ...
    def from_buffer(self, declaration: str, value: object) -> Any: ...


_lib: Final = cast(_Lib, _native.lib)
_ffi: Final = cast(_Ffi, _native.ffi)


class Job:
    """The answer to one ioctl, and what its thread is to be given before it goes on.

    tid: the thread, blocked in the request `unique`; user: real uid whose thread does the job;
    result: what the ioctl returns, 0 or -errno; out: the struct that travels back with it;
    entries: (descriptor of the daemon, `int32_t *` for the client's number), installed in this order;
    address: of the command struct in the client's memory;
    flags_offset: of the return flags (u64) in that struct, or -1; they become `incomplete_flags` when an entry fails
    (RECV-14), in `out` if they are in there, and in the client's memory otherwise;
    writes: (address, bytes) to be stored in the client's memory before the answer; where that fails the ioctl returns
    the errno; caller: the client, for the writes and flags that do not travel back in `out`; None: there are none;
    swap: path of a file to take the place of the descriptor that the ioctl was made with, opened read-only;
    swapped_node: the node id that descriptor is of, on the same mount; with any other file at its number, which a
    sibling has put there meanwhile, nothing is swapped;
    unswapped: what shows the client its pool in the file that it has, where nothing is swapped; None: nothing;
    stores: what has to be stored in the page cache of the client before its answer; None: nothing;
    context: the submitter's own; it keeps descriptors and pointers of `entries` valid until the end.

    When finished, every entry's int32 has a number (the lowest free ones, close-on-exec: LAY-16) or -errno,
    and the client has its answer.  installed: how many entries have a number; swapped: whether it took place;
    error: 0 or the errno of what went wrong first, for statistics: the ioctl returns `result` all the same;
    abandoned: the client was killed before its turn, and is answered.
    """

    __slots__ = (
        "abandoned",
        "address",
        "caller",
        "context",
        "entries",
        "error",
        "flags_offset",
        "incomplete_flags",
        "installed",
        "out",
        "result",
        "stores",
        "swap",
        "swapped",
        "swapped_node",
        "tid",
        "unique",
        "unswapped",
        "user",
        "writes",
    )

    def __init__(
        self,
        *,
        tid: int,
        user: int,
        unique: int,
        result: int,
        out: bytes | bytearray | memoryview,
        entries: list[tuple[int, Any]],
        address: int = 0,
        flags_offset: int = -1,
        incomplete_flags: int = 0,
        caller: Caller | None = None,
        writes: Sequence[tuple[int, bytes]] = (),
        swap: str | None = None,
        swapped_node: int = 0,
        unswapped: Stores | None = None,
        stores: Stores | None = None,
        context: object = None,
    ) -> None:
        self.tid = tid
        self.user = user
        self.unique = unique
        self.result = result
        self.out = out
        self.entries = entries
        self.address = address
        self.flags_offset = flags_offset
        self.incomplete_flags = incomplete_flags
        self.caller = caller
        self.writes = writes
        self.swap = swap
        self.swapped_node = swapped_node
        self.unswapped = unswapped
        self.stores = stores
        self.context = context
        self.installed = 0
        self.swapped = False
        self.error = 0
        self.abandoned = False

    def reply(self) -> bytearray:
        """The whole answer as /dev/fuse takes it."""
        head = _REPLY.pack(_REPLY.size + len(self.out), 0, self.unique, self.result, 0, 0, 0)
        return bytearray(head) + self.out

    @property
    def tells_incomplete(self) -> bool:
        """Whether the client is to be told of entries that fail."""
        return bool(self.entries) and self.flags_offset >= 0

    def write(self) -> None:
        """Store `writes` in the client's memory."""
        if self.caller is not None:
            try:
                for address, data in self.writes:
                    self.caller.write(address, data)
            except CommandError as fault:
                self.result = -fault.errno

    def reply_without(self, error: int) -> bytearray:
        """The whole answer where every entry has failed with `error`."""
        for _, slot in self.entries:
            slot[0] = -error
        reply = self.reply()
        if self.tells_incomplete:
            at = _REPLY.size + self.flags_offset
            if at + _FLAGS.size <= len(reply):
                _FLAGS.pack_into(reply, at, self.incomplete_flags)
            elif self.caller is not None:
                # The ioctl has taken effect: its result stays, whatever the client's memory is like.
                with contextlib.suppress(CommandError):
                    self.caller.write(self.address + self.flags_offset, _FLAGS.pack(self.incomplete_flags))
        return reply


def _close(fd: int) -> int:
    """Close `fd` if it is one; gives what to remember instead."""
    if fd >= 0:
        os.close(fd)
    return -1


class _Worker:
    """A user's queue, and the thread that works on it."""

    __slots__ = ("busy", "queue", "thread")

    def __init__(self) -> None:
        self.queue: SimpleQueue[Job | int | None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.busy = False


class Installer:
    """The threads that do jobs for the clients of one mount.

    fuse_fd: /dev/fuse of the mount; event_fd: an eventfd, written to whenever a job is finished;
    storer: what answers a job with stores that gets no descriptors.
    All methods are for the reader, but `rest` and `forget_name`.  None of them waits, except `rest` and `close`.
    """

    def __init__(
        self,
        fuse_fd: int,
        event_fd: int,
        *,
        max_workers: int = MAX_WORKERS,
        max_queued: int = MAX_QUEUED,
        storer: Storer | None = None,
    ) -> None:
        self._storer = storer
        self._fuse_fd = fuse_fd
        self._event_fd = event_fd
        self._max_workers = max_workers
        self._max_queued = max_queued
        self._lock = threading.Lock()
        self._installing: dict[int, _Worker] = {}
        self._closing: dict[int, _Worker] = {}
        self._waiting: deque[int] = deque()  # users whose closing has no thread yet
        self._running = 0
        self._finished: deque[Job] = deque()
        self._queued: dict[int, Job] = {}  # those not begun yet, by unique
        self._interrupted: set[int] = set()  # of them, those whose client got a signal
        self._watching = False
        self._end = 0.0
        self.tids: frozenset[int] = frozenset()
        """Ids of the threads that do jobs: who may open the file of a swap."""

    def submit(self, job: Job) -> None:
        """Have `job` done.  It turns up in `finished` in any case.

        Beyond the bounds (threads of all users together, jobs of this one) its ioctl is answered at once, without
        descriptors: every entry is -EAGAIN, and nothing is swapped.  The reader does not wait for the client's memory
        then: an ioctl with `writes` returns -EAGAIN, and flags that do not travel back stay as they are.
        """
        with self._lock:
            worker = self._installing.get(job.user)
            if worker is None:
                worker = _Worker()
                if self._start(worker, self._install_loop, job.user):
                    self._installing[job.user] = worker
            accepted = worker.thread is not None and not self._end and worker.queue.qsize() < self._max_queued
            if accepted:
                self._queued[job.unique] = job
                worker.queue.put(job)
        if not accepted:
            job.caller = None
            if job.writes:
                job.result = -errno.EAGAIN
            self._answer_without(job, errno.EAGAIN)

    def finished(self) -> list[Job]:
        """The jobs that were finished since the last time, in that order."""
        if self._waiting:
            with self._lock:
                self._start_waiting()
        jobs = []
        while self._finished:
            jobs.append(self._finished.popleft())
        return jobs

    def interrupt(self, unique: int) -> None:
        """A signal came for the client of ioctl `unique`.

        If it is killed while its job waits for another one of its user, which may be for ever, it gets its answer: it
        could not end without.  What it was killed by may come later than the signal that the kernel tells of.
        """
        with self._lock:
            if unique not in self._queued:
                return
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
            with self._lock:
                self._watching = left = not self._answer_dying()

    def _answer_dying(self) -> bool:
        """With the lock held: answer the interrupted clients that were killed.  Whether none is left to be watched."""
        for unique in list(self._interrupted):
            job = self._queued.get(unique)
            if job is not None and not _lib.kfs_is_dying(job.tid):
                continue
            self._interrupted.discard(unique)
            if job is not None:
                del self._queued[unique]
                job.abandoned = True
                with contextlib.suppress(OSError):
                    os.write(self._fuse_fd, _ANSWER.pack(_ANSWER.size, -errno.EINTR, unique))
        return not self._interrupted

    def close_later(self, user: int, fd: int) -> None:
        """Close `fd`, which came from `user`: close(2) may block for as long as its file system likes."""
        with self._lock:
            worker = self._closing.get(user)
            if worker is None:
                worker = self._closing[user] = _Worker()
                self._waiting.append(user)
            worker.queue.put(fd)
            self._start_waiting()

    def closing(self, user: int) -> int:
        """How many descriptors of `user` are still to be closed: what to refuse more of them by."""
        worker = self._closing.get(user)
        return 0 if worker is None else worker.queue.qsize() + worker.busy

    def rest(self, timeout: float = 0.5) -> None:
        """Have the threads that have nothing to do end now, and wait for that; for a thread beside the reader."""
        with self._lock:
            workers = [*self._installing.values(), *self._closing.values()]
            for worker in workers:
                worker.queue.put(_REST)
        for worker in workers:
            if worker.thread is not None:
                worker.thread.join(timeout)

    def close(self, timeout: float = 3.0) -> bool:
        """Finish what was submitted and end the threads; False if some still run after `timeout` seconds.

        Those have a client that does not stop or a file system that does not answer; the process can end.
        """
        with self._lock:
            self._end = time.monotonic() + timeout
            workers = [*self._installing.values(), *self._closing.values()]
            for worker in workers:
                worker.queue.put(None)
        threads = [worker.thread for worker in workers if worker.thread is not None]
        for thread in threads:
            thread.join(max(0.0, self._end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _start(self, worker: _Worker, loop: Any, user: int) -> bool:
        """Start the worker's thread; False where there are too many.  With the lock held."""
        if self._running >= self._max_workers or self._end:
            return False
        thread = new_thread(f"user-{user}", loop, worker, user)
        try:
            thread.start()
        except RuntimeError:
            return False
        worker.thread = thread
        self._running += 1
        return True

    def _start_waiting(self) -> None:
        while self._waiting and self._start(
            self._closing[self._waiting[0]], self._close_loop, self._waiting[0]
        ):
            self._waiting.popleft()

    def _retire(self, workers: dict[int, _Worker], user: int) -> bool:
        """Take an idle worker off the list, unless something was put in its queue just now."""
        with self._lock:
            if not workers[user].queue.empty():
                return False
            del workers[user]
            self._running -= 1
            return True

    def _finish(self, job: Job) -> None:
        self._finished.append(job)
        os.eventfd_write(self._event_fd, 1)

    def _answer_without(self, job: Job, error: int) -> None:
        """Answer the ioctl with all entries failed; where the client is gone meanwhile, that is all."""
        reply = job.reply_without(error)
        job.error = error
        stores = job.stores if job.unswapped is None else job.unswapped
        if stores is not None and self._storer is not None and self._storer.send(stores, reply):
            self._finish(job)
            return
        try:
            os.write(self._fuse_fd, reply)
        except OSError as fault:
            job.error = job.error or fault.errno or errno.EIO
        self._finish(job)

    def _do(self, tracer: Any, injection: Any, job: Job) -> None:
        swap = -1
        error = 0
        if job.swap is not None:
            try:
                swap = os.open(job.swap, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as fault:
                error = fault.errno or errno.EIO
        try:
            job.write()
            if tracer == _ffi.NULL or (swap < 0 and not job.entries):
                swap = _close(swap)
                self._answer_without(job, error if tracer != _ffi.NULL else errno.ENOMEM)
                return
            reply = job.reply()
            buffer = _ffi.from_buffer("unsigned char[]", reply)
            files = _ffi.new("int[]", [fd for fd, _ in job.entries])
            slots = _ffi.new("int32_t *[]", [slot for _, slot in job.entries])
            injection.tid = job.tid
            injection.reply = buffer
            injection.reply_len = len(reply)
            injection.count = len(job.entries)
            injection.files = files
            injection.slots = slots
            injection.swap, swap = swap, -1  # kfs_inject closes it
            injection.swapped_node = job.swapped_node
            injection.flags_address = job.address + job.flags_offset if job.tells_incomplete else 0
            injection.incomplete_flags = job.incomplete_flags
            stores = job.stores
            injection.stores = _ffi.NULL if stores is None else stores.array
            injection.store_count = 0 if stores is None else stores.count
            injection.slot_stores = 0 if stores is None else stores.slots
            unswapped = job.unswapped
            injection.unswapped = _ffi.NULL if unswapped is None else unswapped.array
            injection.unswapped_count = 0 if unswapped is None else unswapped.count
            failure = -_lib.kfs_inject(tracer, injection)
            if not injection.answered:
                self._answer_without(job, failure)
                return
            job.error = failure or error
            job.installed = injection.installed
            job.swapped = bool(injection.swapped)
        except Exception:
            _log.exception("installing descriptors failed")
            swap = _close(swap)
            self._answer_without(job, errno.EIO)
            return
        finally:
            if job.swap is not None:
                self.forget_name(os.fsencode(os.path.basename(job.swap)))
        self._finish(job)

    def forget_name(self, name: bytes) -> None:
        """Have the kernel forget a name in the root: it means nothing any more.

        This takes the lock of the root directory, and whoever holds that may wait for the reader: it is no call for
        the reader itself.
        """
        size = _INVAL_ENTRY.size + len(name) + 1
        notice = _INVAL_ENTRY.pack(size, _NOTIFY_INVAL_ENTRY, 0, _ROOT, len(name), 0) + name + b"\0"
        with contextlib.suppress(OSError):
            os.write(self._fuse_fd, notice)

    def _install_loop(self, worker: _Worker, user: int) -> None:
        tracer = _lib.kfs_tracer_new()
        injection = _ffi.new("struct kfs_injection *")
        injection.fuse_fd = self._fuse_fd
        dead = _ffi.new("int *")
        tid = threading.get_native_id()
        with self._lock:
            self.tids |= {tid}
        living = 0  # threads in limbo: a tracer that ends lets go of them as they are
        ending = False
        idle_from = time.monotonic()
        while not (ending and (not living or time.monotonic() > self._end)):
            try:
                job = worker.queue.get(timeout=_LIMBO_POLL if living or dead[0] else _IDLE)
            except Empty:
                idle = time.monotonic() - idle_from >= _IDLE
                if idle and not living and self._retire(self._installing, user):
                    break
            else:
                ending = ending or job is None
                if isinstance(job, Job):
                    with self._lock:
                        self._queued.pop(job.unique, None)
                    if job.abandoned:
                        self._finish(job)
                    else:
                        self._do(tracer, injection, job)
                elif job == _REST and not living and self._retire(self._installing, user):
                    break
                idle_from = time.monotonic()
            if injection.held or living or dead[0]:
                injection.held = 0
                living = _lib.kfs_tracer_sweep(tracer, dead)
        with self._lock:
            self.tids -= {tid}
        if tracer != _ffi.NULL:
            _lib.kfs_tracer_free(tracer)

    def _close_loop(self, worker: _Worker, user: int) -> None:
        while True:
            try:
                fd = worker.queue.get(timeout=_IDLE)
            except Empty:
                if self._retire(self._closing, user):
                    return
                continue
            if not isinstance(fd, int):
                return
            if fd == _REST:
                if self._retire(self._closing, user):
                    return
                continue
            worker.busy = True
            with contextlib.suppress(OSError):  # of the file's own system; the descriptor is gone
                os.close(fd)
            worker.busy = False
