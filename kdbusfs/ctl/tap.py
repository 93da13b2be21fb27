"""A monitor connection that takes messages from the bus before anything else is done with them.

The bus keeps 256 messages for a monitor, and 32 of one user: with thousands of messages a second its queue has to be
emptied every few milliseconds.  So a thread does nothing else, and what is received lies in the pool, which is bigger
by far, until it was handled.

One thread has one RECV a turn with the bus, every sender one SEND; with several busy senders that is not enough, and a
RECV that first has to report losses brings no message.  Helper threads then issue more of them at a time.  They put
down what they got in no order: `Order` restores it.
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
_ALONE: Final = 24  # messages in a row from which on helpers are called
_HELD_MAX: Final = 65536  # messages
_LAST: Final = 2 * CONN_MAX_MSGS  # of which a queue holds one half; the other are reports of losses
_FREED_AT_ONCE: Final = 16
_DONE_MAX: Final = 4096  # messages that helpers leave to be given back
_OVERHEAD: Final = 64  # bytes of padding that a message may take beside its size
_PAUSE: Final = 0.001  # seconds
_NAP: Final = 0.1  # seconds until the end is noticed at the latest
_NEVER: Final = 1 << 62

_RECV: Final = bytes(encode.command(c.CMD_RECV, 0, 0, 0, 0))
_FREE: Final = bytes(encode.command(c.CMD_FREE, 0))
_DROPPED: Final = CMD_RECV_DROPPED_OFFSET // 8
_OFFSET: Final = _DROPPED + 1
_RETURN_FLAGS: Final = CMD_RECV_MSG_RETURN_FLAGS_OFFSET // 8
_FREE_OFFSET: Final = 1
assert len(_RECV) == CMD_RECV.size


class Taken(NamedTuple):
    """What one RECV brought.  horizon: every RECV with a smaller ticket may have brought something older;
    lost: for a report of losses, which has no offset.
    """

    horizon: int
    offset: int
    return_flags: int
    lost: int


class Receiver:
    """Issues RECV and FREE, each thread with memory of its own.  Gives errno, as the system does."""

    def __init__(self, fd: int, ioctl: Callable[[int, int, int], int] = raw.ioctl) -> None:
        self._fd = fd
        self._ioctl = ioctl
        self._recv = raw.Block(_RECV)
        self._free = raw.Block(_FREE)

    def recv(self) -> int:
        """0, EAGAIN, EOVERFLOW (`lost` says how many), ECONNRESET, or what else went wrong."""
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
    """Puts what several threads received into the order of the bus.

    Each takes a ticket before its RECV and notes what it brought with a second one, the horizon.  Whatever is older
    than that was asked for before the horizon; so once no ticket below it is out, everything older has been noted.
    """

    def __init__(self, threads: int) -> None:
        self._tickets = itertools.count(1)
        self._out = [_NEVER] * threads
        self._noted: deque[Taken] = deque()

    def __len__(self) -> int:
        return len(self._noted)

    def begin(self, thread: int) -> None:
        """The thread is about to issue RECV."""
        self._out[thread] = next(self._tickets)

    def note(self, offset: int, return_flags: int, lost: int = 0) -> None:
        """Something came."""
        self._noted.append(Taken(next(self._tickets), offset, return_flags, lost))

    def end(self, thread: int) -> None:
        """The RECV is over, and what it brought is noted."""
        self._out[thread] = _NEVER

    def collect(self, place: Callable[[Taken], None]) -> int:
        """`place` everything that was noted; the horizon up to which nothing can be missing any more."""
        self._empty(place)
        settled = min(self._out)
        last = next(self._tickets)
        self._empty(place)
        return min(settled, last)

    def _empty(self, place: Callable[[Taken], None]) -> None:
        noted = self._noted
        while noted:
            place(noted.popleft())


class Tap:
    """`connection` has to be a monitor.

    keep: how many bytes of each memfd are read; helpers: threads beside the caller's; ended: whether the bus is gone;
    lost, received: messages so far.  Only one thread may use it, beside those that it starts.
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
        self._room = connection.pool_size // 3  # the bus refuses what is more than half of what is free
        self._receiver = Receiver(connection.fd, ioctl)
        self._freer = Receiver(connection.fd, ioctl)
        self.order = Order(helpers + 1)
        self._unsettled: list[tuple[int, int, Observed | Missing]] = []  # sequence number, horizon, what it is
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
        """Let a thread take what comes, from now on."""
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the bus is gone.  Raises OSError for any other failure of RECV."""
        if self._error not in (0, errno.ECONNRESET):
            raise OSError(self._error, os.strerror(self._error), "RECV")
        return self._error != 0

    def __len__(self) -> int:
        """How many messages and gaps wait to be handled, as far as they were settled."""
        return len(self._backlog) + len(self._unsettled)

    def close(self) -> None:
        """End the threads, and take what the queue holds: `settle` gives the rest of what has come.  Idempotent."""
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
        """One RECV, noted in `order`: its errno.  For the helpers too."""
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
        """Empty the queue as far as there is room, and call helpers if much is in it."""
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
            if self.owes_much:
                self.free_one(self._receiver)

    def settle(self) -> bool:
        """Move what can have no predecessor any more to the backlog, in order; whether anything has come."""
        before = len(self._unsettled)
        horizon = self.order.collect(self._place)
        unsettled = self._unsettled
        if not unsettled:
            return False
        came = len(unsettled) > before
        newest = max((number for number, noted, _ in unsettled if noted <= horizon), default=-1)
        if newest >= 0:
            unsettled.sort(key=lambda entry: entry[:2])
            count = sum(1 for number, _, _ in unsettled if number <= newest)
            self._backlog.extend(each for _, _, each in unsettled[:count])
            del unsettled[:count]
        return came

    def _place(self, taken: Taken) -> None:
        """Where losses belong is not known better than by when they were told."""
        if taken.lost:
            self.lost += taken.lost
            self._unsettled.append((self._newest, taken.horizon, Missing(taken.lost)))
            return
        self.received += 1
        observed = self._observe(Message(self._connection.pool, taken.offset, taken.return_flags, None))
        with self._lock:
            self._held += observed.cost
        timestamp = observed.message.metadata.timestamp
        if timestamp is not None:
            self._newest = max(self._newest, timestamp.seqnum)
        number = self._newest if timestamp is None else timestamp.seqnum
        self._unsettled.append((number, taken.horizon, observed))

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
        """The beginning of a memfd, which is closed: thousands of messages may wait."""
        with part.file:
            if not part.file.installed:
                return b""
            return os.pread(part.file.fileno(), min(part.size, self._keep), part.start)

    # Handling

    def take(self) -> Observed | Missing | None:
        """The oldest that waits; None where nothing does.  `done` has to follow for messages."""
        return self._backlog.popleft() if self._backlog else None

    def done(self, observed: Observed) -> None:
        """Nothing of the message is needed any more."""
        self._done.append(observed)

    def tidy(self) -> bool:
        """Give some slices back to the pool; whether there are more."""
        for _ in range(_FREED_AT_ONCE):
            if not self.free_one(self._freer):
                return False
        return bool(self._done)

    def free_one(self, receiver: Receiver) -> bool:
        """Give one slice back; whether there was one.  For the helpers too."""
        try:
            observed = self._done.popleft()
        except IndexError:
            return False
        receiver.free(observed.message.offset)  # that the bus is gone says RECV
        with self._lock:
            self._held -= observed.cost
        return True

    @property
    def owes_much(self) -> bool:
        """Whether more slices wait to be given back than can be left to quiet moments."""
        return len(self._done) > _DONE_MAX or self._held > self._room // 2

    def wait(self, timeout: float) -> None:
        """Return when something has come, or after `timeout` seconds."""
        if self._unsettled:
            timeout = min(timeout, _PAUSE)
        if self._arrived.wait(timeout):
            self._arrived.clear()


class _Helper:
    """A thread that receives beside the tap's own until the queue is empty, whenever it is called."""

    def __init__(self, tap: Tap, number: int) -> None:
        self._tap = tap
        self._number = number
        self._called = threading.Event()
        self._thread: threading.Thread | None = None
        self._ending = False

    def wake(self) -> None:
        """Call it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"receiver-{self._number}", daemon=True)
            self._thread.start()
        if not self._called.is_set():
            self._called.set()

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._ending = True
        if self._thread is not None:
            self._called.set()
            self._thread.join()

    def _run(self) -> None:
        tap = self._tap
        receiver = Receiver(tap.fd, tap.ioctl)
        while True:
            self._called.wait()
            self._called.clear()  # first, so that no call is missed
            if self._ending:
                return
            while tap.wants_more and tap.receive(self._number, receiver) in (0, errno.EOVERFLOW):
                if tap.owes_much:
                    tap.free_one(receiver)


class _Closer:
    """Closes descriptors that came with messages, in a thread of its own: they may belong to a file system whose server
    is silent, and close(2) waits for it.
    """

    def __init__(self) -> None:
        self._files: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self, fd: int) -> None:
        """Have `fd` closed soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="closer", daemon=True)
            self._thread.start()
        self._files.put(fd)

    def _run(self) -> None:
        while True:
            try:
                os.close(self._files.get())
            except OSError:
                pass  # what a file system says at the end of a file is of no interest here
