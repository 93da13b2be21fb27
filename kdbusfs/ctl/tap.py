"""A monitor connection that receives messages before it processes any.

A monitor's queue holds 256 messages, 32 of one user.  At thousands of messages a second it overflows within
milliseconds, so one thread only receives.  Received messages stay in the pool, which is far larger, until they are
processed.

The daemon serves one RECV of this thread for one SEND of each sender.  Several busy senders outrun that, and a RECV
that reports losses returns no message.  Helper threads then issue more RECVs at a time.  They record messages in no
order; `Order` sorts them.
"""

from __future__ import annotations

import errno
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from kdbusfs.abi.limits import CONN_MAX_MSGS
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.layouts import CMD_RECV, CMD_RECV_DROPPED_OFFSET, CMD_RECV_MSG_RETURN_FLAGS_OFFSET
from kdbusfs.client import Message, ReceivedMemfd, Zero, encode, raw

from .observed import Kind, Missing, Observed, kind_of

if TYPE_CHECKING:
    from kdbusfs.client import Connection

DEFAULT_POOL: Final = 64 << 20
"""Bytes of a monitor's pool."""

_HELPERS: Final = 7
_ALONE: Final = 24  # messages in a row after which helpers are woken
_HELD_MAX: Final = 65536  # messages
_LAST: Final = 2 * CONN_MAX_MSGS  # RECVs at the end: each queued message may come with a report of losses
_FREED_AT_ONCE: Final = 16
_DONE_MAX: Final = 4096  # processed messages that may wait for FREE
_OVERHEAD: Final = 64  # bytes of padding in the pool for each message, at most
_PAUSE: Final = 0.001  # seconds
_NAP: Final = 0.1  # seconds between two checks whether to stop
_NEVER: Final = 1 << 62

_RECV: Final = bytes(encode.command(c.CMD_RECV, 0, 0, 0, 0))
_FREE: Final = bytes(encode.command(c.CMD_FREE, 0))
_DROPPED: Final = CMD_RECV_DROPPED_OFFSET // 8
_OFFSET: Final = _DROPPED + 1
_RETURN_FLAGS: Final = CMD_RECV_MSG_RETURN_FLAGS_OFFSET // 8
_FREE_OFFSET: Final = 1
assert len(_RECV) == CMD_RECV.size


class Taken(NamedTuple):
    """The result of one RECV.

    horizon: ticket; a RECV with a smaller one may have returned an older message.  lost: messages that the bus dropped,
    for a report of losses, which has no offset.
    """

    horizon: int
    offset: int
    return_flags: int
    lost: int


class Receiver:
    """Issues RECV and FREE.  Not shared by threads: each has its own buffers.  Methods return 0 or an errno."""

    def __init__(self, fd: int, ioctl: Callable[[int, int, int], int] = raw.ioctl) -> None:
        self._fd = fd
        self._ioctl = ioctl
        self._recv = raw.Block(_RECV)
        self._free = raw.Block(_FREE)

    def recv(self) -> int:
        """RECV.  Returns 0, EAGAIN, EOVERFLOW (`lost` has the count), ECONNRESET, or another errno."""
        block = self._recv
        while True:
            block.view[:] = _RECV
            error = self._ioctl(self._fd, c.CMD_RECV, block.address)
            if error != errno.EINTR:
                return error

    @property
    def lost(self) -> int:
        return int(self._recv.words[_DROPPED])

    @property
    def offset(self) -> int:
        return int(self._recv.words[_OFFSET])

    @property
    def return_flags(self) -> int:
        return int(self._recv.words[_RETURN_FLAGS])

    def free(self, offset: int) -> int:
        block = self._free
        while True:
            block.view[:] = _FREE
            block.words[_FREE_OFFSET] = offset
            error = self._ioctl(self._fd, c.CMD_FREE, block.address)
            if error != errno.EINTR:
                return error


class Order:
    """Restores the order of messages that several threads receive.

    A thread takes a ticket before its RECV and records the message with a second ticket, its horizon.  An older message
    can only come from a RECV that began before the horizon.  Invariant: once no RECV with a ticket below a horizon is
    in flight, every older message has been recorded.
    """

    def __init__(self, threads: int) -> None:
        self._tickets = itertools.count(1)
        self._out = [_NEVER] * threads
        self._noted: deque[Taken] = deque()

    def __len__(self) -> int:
        return len(self._noted)

    def begin(self, thread: int) -> None:
        """Thread number `thread` is about to issue a RECV."""
        self._out[thread] = next(self._tickets)

    def note(self, offset: int, return_flags: int, lost: int = 0) -> None:
        """Record a message, or a report of `lost` messages."""
        self._noted.append(Taken(next(self._tickets), offset, return_flags, lost))

    def end(self, thread: int) -> None:
        """The RECV returned, and its result is recorded."""
        self._out[thread] = _NEVER

    def collect(self, place: Callable[[Taken], None]) -> int:
        """Call `place` with every recorded result.  Returns the horizon below which no message can be missing."""
        self._empty(place)
        in_flight = min(self._out)
        last = next(self._tickets)
        self._empty(place)
        return min(in_flight, last)

    def _empty(self, place: Callable[[Taken], None]) -> None:
        noted = self._noted
        while noted:
            place(noted.popleft())


class Tap:
    """Receives from `connection`, which must be a monitor, in threads of its own.

    keep: bytes of each memfd that are read; helpers: number of helper threads; ended: whether the bus is gone; lost,
    received: messages so far.  Only one thread beside its own may call it.
    """

    def __init__(
        self,
        connection: Connection,
        keep: int,
        *,
        helpers: int = _HELPERS,
        ioctl: Callable[[int, int, int], int] = raw.ioctl,
    ) -> None:
        self._connection = connection
        self._keep = keep
        self.ioctl = ioctl
        self.fd = connection.fd
        self._room = connection.pool_size // 3  # a message may take at most half of the free pool
        self._receiver = Receiver(connection.fd, ioctl)
        self._freer = Receiver(connection.fd, ioctl)
        self.order = Order(helpers + 1)
        self._unordered: list[tuple[int, int, Observed | Missing]] = []  # sequence number, horizon, what it is
        self._newest = 0
        self._backlog: deque[Observed | Missing] = deque()
        self._done: deque[Observed] = deque()
        self._held = 0
        self._lock = threading.Lock()
        self._error = 0
        self._closer = _Closer()
        self._helpers = [_Helper(self, number + 1) for number in range(helpers)]
        self._thread: threading.Thread | None = None
        self._arrived = threading.Event()
        self._stopped = False
        self.lost = 0
        self.received = 0

    def start(self) -> None:
        """Start to receive."""
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the bus is gone.  Raises OSError for any other failure of RECV."""
        if self._error not in (0, errno.ECONNRESET):
            raise OSError(self._error, os.strerror(self._error), "RECV")
        return self._error != 0

    def __len__(self) -> int:
        """Number of messages and gaps that wait to be processed."""
        return len(self._backlog) + len(self._unordered)

    def close(self) -> None:
        """Stop the threads and drain the queue; `order_received` then returns the rest.  Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._thread is not None:
            self._thread.join()
        for helper in self._helpers:
            helper.end()
        for _ in range(_LAST):
            if self._error or self.receive(0, self._receiver) not in (0, errno.EOVERFLOW):
                break

    # Taking from the queue

    def receive(self, thread: int, receiver: Receiver) -> int:
        """One RECV, recorded in `order`; returns its errno.  Called by helpers too."""
        order = self.order
        order.begin(thread)
        try:
            error = receiver.recv()
            if error == 0:
                order.note(receiver.offset, receiver.return_flags)
            elif error == errno.EOVERFLOW:
                order.note(0, 0, receiver.lost)
            elif error != errno.EAGAIN:
                self._error = error
            return error
        finally:
            order.end(thread)

    @property
    def wants_more(self) -> bool:
        """Whether there is room for more messages."""
        return (
            not self._error
            and not self._stopped
            and self._held < self._room
            and len(self._backlog) + len(self._done) + len(self.order) < _HELD_MAX
        )

    def _run(self) -> None:
        while not self._error and not self._stopped:
            if not self.wants_more:
                if not self.free_one(self._receiver):
                    time.sleep(_PAUSE)
                continue
            try:
                if self._connection.wait(_NAP):
                    self.drain()
            except ConnectionResetError:
                self._error = self._error or errno.ECONNRESET
            except OSError as error:
                self._error = error.errno or errno.EIO
            self._arrived.set()
        self._arrived.set()

    def drain(self) -> None:
        """Receive until the queue is empty or there is no room; wake the helpers if the queue is long."""
        in_a_row = 0
        while self.wants_more:
            error = self.receive(0, self._receiver)
            if error not in (0, errno.EOVERFLOW):
                return
            in_a_row += 1
            if in_a_row == _ALONE or error:
                for helper in self._helpers:
                    helper.wake()
            if not self._arrived.is_set():
                self._arrived.set()
            if self.must_free:
                self.free_one(self._receiver)

    def order_received(self) -> bool:
        """Move messages that no older one can follow to the backlog, sorted.  Returns whether any was received."""
        before = len(self._unordered)
        horizon = self.order.collect(self._place)
        unordered = self._unordered
        if not unordered:
            return False
        came = len(unordered) > before
        newest = max((number for number, noted, _ in unordered if noted <= horizon), default=-1)
        if newest >= 0:
            unordered.sort(key=lambda entry: entry[:2])
            count = sum(1 for number, _, _ in unordered if number <= newest)
            self._backlog.extend(each for _, _, each in unordered[:count])
            del unordered[:count]
        return came

    def _place(self, taken: Taken) -> None:
        """Add a result to the unordered ones.  Losses are placed where the bus reported them: it tells no more."""
        if taken.lost:
            self.lost += taken.lost
            self._unordered.append((self._newest, taken.horizon, Missing(taken.lost)))
            return
        self.received += 1
        observed = self._observe(Message(self._connection.pool, taken.offset, taken.return_flags, None))
        with self._lock:
            self._held += observed.cost
        timestamp = observed.message.metadata.timestamp
        if timestamp is not None:
            self._newest = max(self._newest, timestamp.seqnum)
        number = self._newest if timestamp is None else timestamp.seqnum
        self._unordered.append((number, taken.horizon, observed))

    def _observe(self, message: Message) -> Observed:
        parts: list[tuple[int, bytes | memoryview | None]] = []
        cost = message.size + _OVERHEAD
        for part in message.payload:
            if isinstance(part, memoryview):
                parts.append((len(part), part))
                cost += len(part)
            elif isinstance(part, Zero):
                parts.append((part.size, None))
            else:
                kept = self._read(part)
                parts.append((part.size, kept))
                cost += len(kept)
        for file in message.fds:
            if file.installed:
                self._closer.close(file.take())
        kind = kind_of(message)
        return Observed(
            message=message,
            kind=kind,
            parts=parts,
            descriptors=len(message.fds),
            received_ns=time.time_ns(),
            notification=message.notification if kind is Kind.NOTIFICATION else None,
            raw=self._connection.pool[message.offset : message.offset + message.size],
            cost=cost,
        )

    def _read(self, part: ReceivedMemfd) -> bytes:
        """The first bytes of a memfd.  Closes it, because thousands of messages may wait."""
        with part.file:
            if not part.file.installed:
                return b""
            return os.pread(part.file.fileno(), min(part.size, self._keep), part.start)

    # Processing

    def take(self) -> Observed | Missing | None:
        """The oldest message or gap, or None.  Call `done` when a message has been processed."""
        return self._backlog.popleft() if self._backlog else None

    def done(self, observed: Observed) -> None:
        """The message is processed; its slice may be freed."""
        self._done.append(observed)

    def tidy(self) -> bool:
        """FREE some slices.  Returns whether there are more."""
        for _ in range(_FREED_AT_ONCE):
            if not self.free_one(self._freer):
                return False
        return bool(self._done)

    def free_one(self, receiver: Receiver) -> bool:
        """FREE one slice.  Returns whether there was one.  Called by helpers too."""
        try:
            observed = self._done.popleft()
        except IndexError:
            return False
        receiver.free(observed.message.offset)  # an error here repeats what RECV reports
        with self._lock:
            self._held -= observed.cost
        return True

    @property
    def must_free(self) -> bool:
        """Whether so many slices wait for FREE that it cannot be left to idle time."""
        return len(self._done) > _DONE_MAX or self._held > self._room // 2

    def wait(self, timeout: float) -> None:
        """Return when a message was received, or after `timeout` seconds."""
        if self._unordered:
            timeout = min(timeout, _PAUSE)
        if self._arrived.wait(timeout):
            self._arrived.clear()


class _Helper:
    """A further receiving thread.  Each `wake` lets it receive until the queue is empty."""

    def __init__(self, tap: Tap, number: int) -> None:
        self._tap = tap
        self._number = number
        self._called = threading.Event()
        self._thread: threading.Thread | None = None
        self._ending = False

    def wake(self) -> None:
        """Let it receive; start the thread if there is none yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"receiver-{self._number}", daemon=True)
            self._thread.start()
        if not self._called.is_set():
            self._called.set()

    def end(self) -> None:
        """Stop the thread and join it."""
        self._ending = True
        if self._thread is not None:
            self._called.set()
            self._thread.join()

    def _run(self) -> None:
        tap = self._tap
        receiver = Receiver(tap.fd, tap.ioctl)
        while True:
            self._called.wait()
            self._called.clear()  # before the work, so that no wake-up is lost
            if self._ending:
                return
            while tap.wants_more and tap.receive(self._number, receiver) in (0, errno.EOVERFLOW):
                if tap.must_free:
                    tap.free_one(receiver)


class _Closer:
    """Closes received descriptors in a thread of its own: close(2) blocks while a FUSE server does not answer."""

    def __init__(self) -> None:
        self._files: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self, fd: int) -> None:
        """Queue `fd` to be closed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="closer", daemon=True)
            self._thread.start()
        self._files.put(fd)

    def _run(self) -> None:
        while True:
            try:
                os.close(self._files.get())
            except OSError:
                pass  # an error of the file system at close concerns its writer only
