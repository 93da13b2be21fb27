"""Delivery as the last kdbus has it: a message lies in one slice, laid out with its metadata at SEND (L-73 to L-100).

What RECV publishes is that slice.  The quota counts bytes, messages and descriptors of each user (`ShareQuota`).
"""

from __future__ import annotations

from errno import ECOMM
from typing import TYPE_CHECKING

from librt.strings import BytesWriter

from ..abi import constants as c
from ..base.call import Installation
from ..base.errors import CommandError
from .delivery import Delivery
from .grants import granted_kinds
from .metadata import export
from .queue import QueueEntry
from .share_quota import ShareQuota
from .split_delivery import copy_payload

if TYPE_CHECKING:
    from ..base.pool import Slice
    from ..base.ports import Caller, ProcessMetadata, Reader
    from .connection import Connection
    from .message import Message
    from .metadata import ConnMetadata


class WholeDelivery(Delivery):
    """One slice for each message, from SEND on."""

    __slots__ = ("_quota",)

    def __init__(self) -> None:
        self._quota = ShareQuota()

    @property
    def accounted(self) -> int:
        """Bytes of all that counts: what is queued, and replies that no SEND has taken up (L-77, L-80)."""
        return self._quota.size

    def has_room(self, receiver: Connection) -> bool:
        """There is no limit for the whole queue (L-70); `make_entry` checks that of the user."""
        return True

    def make_entry(
        self,
        receiver: Connection,
        message: Message,
        process: ProcessMetadata | None,
        metadata: ConnMetadata | None,
        source: Connection | None,
        caller: Caller | None,
    ) -> QueueEntry:
        """L-70.  Raises CommandError in this order: ECONNRESET, ECOMM, ENOBUFS, EMFILE, EXFULL, EFAULT."""
        receiver.check_active()
        resources = message.resources
        if resources is not None and resources.files and not self._takes_files(receiver):
            raise CommandError(ECOMM, "receiver takes no descriptors")
        kinds = granted_kinds(receiver, source, process) if source is not None else c.ATTACH_TIMESTAMP  # L-120
        head, places = _lay_out(receiver, message, process, metadata, kinds)
        entry = QueueEntry(message, None, process, metadata)
        entry.head_size = len(head)
        entry.fd_offsets = places
        if source is not None:
            entry.agreed = source.attach_flags_send
        self._quota.take(receiver.pool.size, entry)
        try:
            entry.payload = self._fill(receiver, entry, head, caller)
        except CommandError:
            self._quota.give_back(entry)  # L-79
            raise
        if resources is not None:
            resources.retain()
        return entry

    def charge(self, receiver: Connection, entry: QueueEntry, source: Connection) -> None:
        """No effect: `make_entry` has charged it."""

    def give_back(self, entry: QueueEntry) -> None:
        """L-77."""
        self._quota.give_back(entry)

    def take_out(self, receiver: Connection, entry: QueueEntry) -> None:
        receiver.queue.remove(entry)
        self._quota.give_back(entry)

    def adopt_payload(self, receiver: Connection, entry: QueueEntry, source: Connection) -> bool:
        """Move the whole message; one that is not laid out yet is laid out here (L-81).

        It is charged here before the charge there is given back, so that it is not lost without need.
        """
        message = entry.message
        if message.has_files and not self._takes_files(receiver):
            return False
        moved = QueueEntry(message, None, entry.proc_meta, entry.conn_meta)
        head = b""
        if entry.head_size:
            moved.head_size, moved.fd_offsets = entry.head_size, entry.fd_offsets
        else:
            kinds = receiver.attach_flags_recv & (entry.agreed | receiver.family.rules.basic_metadata)
            head, moved.fd_offsets = _lay_out(receiver, message, entry.proc_meta, entry.conn_meta, kinds)
            moved.head_size = len(head)
        try:
            self._quota.take(receiver.pool.size, moved)
        except CommandError:
            return False
        part = self._copy(receiver, moved, head, entry, source)
        if part is None:
            self._quota.give_back(moved)
            return False
        source.delivery.give_back(entry)
        if entry.payload is not None:
            source.pool.release(entry.payload)
        entry.payload = part
        entry.head_size, entry.fd_offsets = moved.head_size, moved.fd_offsets
        entry.user, entry.charged = moved.user, moved.charged
        return True

    def install(
        self, receiver: Connection, entry: QueueEntry, reader: Reader, *, with_files: bool
    ) -> tuple[int, int, Installation | None]:
        """Publish the slice, as it is (L-97).  RECV and PEEK give the same offset."""
        message = entry.message
        part = entry.payload
        assert part is not None
        pool = receiver.pool
        pool.show(part)
        resources = message.resources
        if not entry.fd_offsets or not with_files or resources is None:
            return part.offset, part.size, None
        # The places of memfds come first, the numbers of files (L-91).  A monitor may take memfds alone (L-124).
        memfds = len(resources.memfds)
        places = entry.fd_offsets
        wanted = [*zip(resources.memfds, places[:memfds], strict=True)]
        if receiver.accepts_files:
            wanted = [*zip(resources.files, places[memfds:], strict=True), *wanted]
        if not wanted:
            return part.offset, part.size, None
        entries = [(file, pool.memory, part.offset + offset) for file, offset in wanted]
        family = receiver.family
        return (
            part.offset,
            part.size,
            Installation(entries, resources.retain(), family.received_flags_offset, family.incomplete_files),
        )

    def _takes_files(self, receiver: Connection) -> bool:
        """L-124: a monitor gets the message, and -1 for each descriptor."""
        return receiver.accepts_files or receiver.is_monitor

    def _fill(self, receiver: Connection, entry: QueueEntry, head: bytes, caller: Caller | None) -> Slice:
        """The slice of the message, with everything in it.  Other commands may run during the copy.

        Raises CommandError: EXFULL, ENOBUFS (memory of the user), EFAULT, ECONNRESET.
        """
        pool = receiver.pool
        message = entry.message
        part = pool.allocate(len(head) + message.payload_size)
        try:
            pool.memory.store(part.offset, head)
            if message.payload_size:
                assert caller is not None
                caller.copy_payload(pool.memory, part.offset + len(head), message.vectors)
                # Check again: the receiver may have left its bus during the copy, and its queue is emptied only once.
                receiver.check_active()
        except CommandError:
            pool.release(part)
            raise
        return part

    def _copy(
        self, receiver: Connection, moved: QueueEntry, head: bytes, entry: QueueEntry, source: Connection
    ) -> Slice | None:
        """The slice of a message that is queued at `source`; None where it does not fit, or is not there any more."""
        pool = receiver.pool
        size = moved.message.payload_size
        try:
            part = pool.allocate(moved.head_size + size)
        except CommandError:
            return None
        try:
            if head:
                pool.memory.store(part.offset, head)
                skipped = len(head)
            else:
                size += moved.head_size
                skipped = 0
            if copy_payload(receiver, part.offset + skipped, size, entry, source, 0):
                return part
        except CommandError:
            pass
        pool.release(part)
        return None


def _lay_out(
    receiver: Connection,
    message: Message,
    process: ProcessMetadata | None,
    metadata: ConnMetadata | None,
    kinds: int,
) -> tuple[bytes, list[int]]:
    """The message without its payload, with those of `kinds` that there are (L-83, L-100), and where descriptors go."""
    family = receiver.family
    shown = b""
    if process is not None or metadata is not None:
        assert receiver.reader is not None
        shown = export(process, metadata, kinds, receiver.reader, family)
    writer = BytesWriter()
    places = family.write_message(writer, message, 0, shown)
    return writer.getvalue(), places
