"""Delivery as v3 has it: payload into the pool at SEND, the message itself at RECV (LAY-1, POOL-9, QUO-1 to QUO-5).

A queued message is a payload slice only.  RECV lays the message out in a slice of its own, because metadata depend on
the reader.  The quota counts messages: the first 16 in a queue are free, then each user may have 16.
"""

from __future__ import annotations

from errno import ECOMM, EXFULL
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter

from ..abi.limits import CONN_MAX_MSGS, CONN_MAX_MSGS_UNACCOUNTED
from ..base.call import Installation
from ..base.errors import CommandError
from .delivery import Delivery
from .metadata import export
from .queue import QueueEntry
from .quota import QueueQuota

if TYPE_CHECKING:
    from ..base.pool import Slice
    from ..base.ports import Caller, ProcessMetadata, Reader
    from .connection import Connection
    from .message import Message
    from .metadata import ConnMetadata

_COPIED_AT_ONCE: Final = 1 << 16
"""Bytes of a payload that are moved from pool to pool before other commands may run."""
_BYTES_IN_A_UNIT: Final = 512
"""Bytes that one unit of `Turn.spend` stands for, when the pool has to get its pages first."""


class SplitDelivery(Delivery):
    """Payload slice at SEND, message slice at RECV."""

    __slots__ = ("_quota",)

    def __init__(self) -> None:
        self._quota = QueueQuota()

    def has_room(self, receiver: Connection) -> bool:
        """QUO-1."""
        return receiver.queue.count < CONN_MAX_MSGS

    def make_entry(
        self,
        receiver: Connection,
        message: Message,
        process: ProcessMetadata | None,
        metadata: ConnMetadata | None,
        source: Connection | None,
        caller: Caller | None,
    ) -> QueueEntry:
        """POOL-9.  Raises CommandError in this order: ECONNRESET, ECOMM, EXFULL, ENOBUFS, EFAULT."""
        receiver.check_active()
        resources = message.resources
        if resources is not None and resources.files and not receiver.accepts_files:
            raise CommandError(ECOMM, "receiver takes no descriptors")
        payload: Slice | None = None
        size = message.payload_size
        if size:
            pool = receiver.pool
            available = pool.size - pool.busy
            if available // 2 < size < available:
                raise CommandError(EXFULL, "more than half of the receiver's free pool")
            payload = pool.allocate(size)
            assert caller is not None
            try:
                caller.copy_payload(pool.memory, payload.offset, message.vectors)
                # Check again: the receiver may have left its bus during the copy, and its queue is emptied only once.
                receiver.check_active()
            except CommandError:
                pool.release(payload)
                raise
        if resources is not None:
            resources.retain()
        entry = QueueEntry(message, payload, process, metadata)
        if source is not None:
            entry.agreed = source.attach_flags_send
        return entry

    def charge(self, receiver: Connection, entry: QueueEntry, source: Connection) -> None:
        """QUO-2, QUO-3."""
        if receiver.queue.count >= CONN_MAX_MSGS_UNACCOUNTED:
            self._quota.take(source.user)
            entry.user = source.user

    def take_out(self, receiver: Connection, entry: QueueEntry) -> None:
        """QUO-4."""
        receiver.queue.remove(entry)
        self.give_back(entry)

    def give_back(self, entry: QueueEntry) -> None:
        user = entry.user
        if user is not None:
            self._quota.give_back(user)
            entry.user = None

    def adopt_payload(self, receiver: Connection, entry: QueueEntry, source: Connection) -> bool:
        """Copy the payload in pieces (ACT-4).

        No more than the message has is copied: behind it are bytes of other messages to `source`.
        """
        if entry.message.has_files and not receiver.accepts_files:
            return False
        old = entry.payload
        if old is None:
            source.delivery.give_back(entry)
            return True
        pool = receiver.pool
        whole = entry.message.payload_size
        new: Slice | None = None
        try:
            new = pool.allocate(whole) if whole else None
            if new is not None and not copy_payload(receiver, new.offset, whole, entry, source, entry.head_size):
                pool.release(new)
                return False
        except CommandError:
            if new is not None:
                pool.release(new)
            return False
        entry.payload = new
        entry.head_size = 0
        source.delivery.give_back(entry)
        source.pool.release(old)
        return True

    def install(
        self, receiver: Connection, entry: QueueEntry, reader: Reader, *, with_files: bool
    ) -> tuple[int, int, Installation | None]:
        """Lay the message out in a slice of its own (LAY-1 to LAY-6, META-2).  Raises CommandError(ENOBUFS)."""
        message = entry.message
        family = receiver.family
        payload = entry.payload
        metadata = b""
        if entry.proc_meta is not None or entry.conn_meta is not None:
            mask = entry.agreed & receiver.attach_flags_recv & receiver.bus.domain.attach_flags_mask
            metadata = export(entry.proc_meta, entry.conn_meta, mask, reader, family)
        writer = BytesWriter()
        fd_offsets = family.write_message(writer, message, payload.offset if payload is not None else 0, metadata)
        size = len(writer)
        pool = receiver.pool
        part = pool.put(writer.getvalue())
        pool.publish(part, payload)
        resources = message.resources
        if not fd_offsets or not with_files or resources is None:
            return part.offset, size, None
        files = resources.memfds + resources.files
        entries = [
            (file, pool.memory, part.offset + offset) for file, offset in zip(files, fd_offsets, strict=True)
        ]
        flags_offset = family.received_flags_offset
        return (
            part.offset,
            size,
            Installation(entries, resources.retain(), flags_offset, family.incomplete_files),
        )


def copy_payload(
    receiver: Connection, offset: int, size: int, entry: QueueEntry, source: Connection, skipped: int
) -> bool:
    """Copy `size` bytes of what is queued at `source`, behind the first `skipped`, into the receiver's pool, in pieces.

    Other commands may run meanwhile: False when the entry left the queue of `source`, or the receiver its bus.
    Raises CommandError(ENOMEM).
    """
    old = entry.payload
    if old is None:
        return True
    turn = receiver.bus.domain.turn
    memory = receiver.pool.memory
    start = old.offset + skipped
    done = 0
    while done < size:
        piece = min(_COPIED_AT_ONCE, size - done)
        memory.copy_from(offset + done, piece, source.pool.memory, start + done)
        done += piece
        turn.spend(1 + piece // _BYTES_IN_A_UNIT)
        if entry.queue is not source.queue or not receiver.active:
            return False
    return True
