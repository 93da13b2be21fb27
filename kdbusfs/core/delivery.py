"""Delivery: how a message gets into the queue and the pool of a receiver (SEND-45, BC-2, MON-3).

The sequence is the same for every ABI family and stands in `deliver`.  What differs by family (admission, quota, what
lies in the pool, when it is laid out) is the object `Connection.delivery`, a subclass of `Delivery`.
"""

from __future__ import annotations

from errno import ECONNRESET, ENOBUFS
from typing import TYPE_CHECKING

from ..base.errors import AbandonedError, CommandError

if TYPE_CHECKING:
    from ..base.call import Installation
    from ..base.ports import Caller, ProcessMetadata, Reader
    from .connection import Connection
    from .message import Message
    from .metadata import ConnMetadata
    from .queue import QueueEntry
    from .reply import Tracker


class Delivery:
    """How one connection takes messages.  The receiver's family chooses the subclass, at HELLO.

    The object holds the quota of one receiver.  It does not refer to the connection, which would be a reference cycle:
    every method gets it as `receiver`.
    """

    __slots__ = ()

    def has_room(self, receiver: Connection) -> bool:
        """Whether the queue takes another message.  Asked before the payload is copied, and again after."""
        raise NotImplementedError

    def make_entry(
        self,
        receiver: Connection,
        message: Message,
        process: ProcessMetadata | None,
        metadata: ConnMetadata | None,
        source: Connection | None,
        caller: Caller | None,
    ) -> QueueEntry:
        """A queue entry with the payload in the receiver's pool; it is in no queue yet.

        source: the sending connection, None for the bus itself; caller: the thread that the payload is copied from.
        Other commands may run during the copy.  Raises CommandError with an errno of the receiver's family.
        """
        raise NotImplementedError

    def charge(self, receiver: Connection, entry: QueueEntry, source: Connection) -> None:
        """Account `entry`, which is about to be queued, to the user of `source` where a quota applies.

        Raises CommandError(ENOBUFS).
        """
        raise NotImplementedError

    def take_out(self, receiver: Connection, entry: QueueEntry) -> None:
        """Remove `entry` from the queue and give its quota back."""
        raise NotImplementedError

    def give_back(self, entry: QueueEntry) -> None:
        """Give back what is accounted for `entry`, which goes elsewhere or nowhere.  Idempotent."""
        raise NotImplementedError

    def adopt_payload(self, receiver: Connection, entry: QueueEntry, source: Connection) -> bool:
        """Move the payload of `entry`, queued at `source`, into the receiver's pool, and what is accounted for it.

        False, with nothing changed, when it does not fit.
        Other commands may run meanwhile: False also when the entry left the queue of `source`, or the receiver its bus.
        """
        raise NotImplementedError

    def install(
        self, receiver: Connection, entry: QueueEntry, reader: Reader, *, with_files: bool
    ) -> tuple[int, int, Installation | None]:
        """Publish the message of `entry` to the client, as `reader` may see it.

        Returns the offset and size of the slice in the pool, and the descriptors to install.  The entry keeps its
        payload.  Raises CommandError when the pool has no room; nothing has happened then.
        """
        raise NotImplementedError


def deliver(
    receiver: Connection,
    message: Message,
    process: ProcessMetadata | None,
    metadata: ConnMetadata | None,
    source: Connection | None,
    caller: Caller | None = None,
    tracker: Tracker | None = None,
) -> None:
    """Queue `message`, of connection `source` or of the bus itself (None), at `receiver`.

    caller: the sending thread, which the payload is copied from; tracker: of a request, linked on success.
    Raises CommandError in the order of SEND-45: ENOBUFS (queue full), ECONNRESET, ECOMM, EXFULL, ENOBUFS (pool),
    EFAULT, ENOBUFS (quota).
    """
    delivery = receiver.delivery
    if not delivery.has_room(receiver):
        raise CommandError(ENOBUFS, "queue full")
    entry = delivery.make_entry(receiver, message, process, metadata, source, caller)
    try:
        # Check again: other commands may have run during the copy (`Caller.copy_payload`).
        if not delivery.has_room(receiver):
            raise CommandError(ENOBUFS, "queue full")
        if tracker is not None and not tracker.requester.active:
            # Its disconnect has passed: the tracker would never be unlinked.
            raise CommandError(ECONNRESET, "requester is gone")
        if source is not None:
            delivery.charge(receiver, entry, source)
    except CommandError:
        discard(receiver, entry)
        raise
    if tracker is not None:
        entry.tracker = tracker.retain()
        tracker.link()
    receiver.queue.add(entry)
    receiver.traffic.count_received(message)
    receiver.wake()


def try_deliver(
    receiver: Connection,
    message: Message,
    process: ProcessMetadata | None,
    metadata: ConnMetadata | None,
    source: Connection | None,
    caller: Caller | None = None,
) -> bool:
    """Deliver; failures are swallowed, True on success.  Raises AbandonedError."""
    if not receiver.delivery.has_room(receiver):
        return False  # most failures, without the cost of an exception
    try:
        deliver(receiver, message, process, metadata, source, caller)
    except AbandonedError:
        raise
    except CommandError:
        return False
    return True


def discard(receiver: Connection, entry: QueueEntry) -> None:
    """Release everything that a queue entry holds; it is in no queue any more."""
    if entry.user is not None:
        receiver.delivery.give_back(entry)
    payload = entry.payload
    if payload is not None:
        receiver.pool.release(payload)
        entry.payload = None
    resources = entry.message.resources
    if resources is not None:
        resources.release()
    tracker = entry.tracker
    if tracker is not None:
        tracker.release()
        entry.tracker = None
