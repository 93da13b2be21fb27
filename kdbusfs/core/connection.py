"""Connections: delivery into their queue and pool, their rights, their end."""

from __future__ import annotations

from errno import EALREADY, EBUSY, ECOMM, ECONNRESET, ENOBUFS, EPIPE, EXFULL
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter

from ..abi import constants as c
from ..abi.limits import CONN_MAX_MSGS, CONN_MAX_MSGS_UNACCOUNTED
from ..abi.values import OwnedNames
from ..base.call import Installation
from ..base.errors import AbandonedError, KdbusError
from .match import MatchDb
from .metadata import export, held_bytes
from .names import NAME_COST
from .queue import Queue, QueueEntry
from .reply import newest_first
from .sync import fail, finish, forget

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..abi.values import Notice
    from ..base.ports import Caller, ProcessMetadata, Reader
    from .endpoint import Endpoint
    from .handle import EndpointHandle
    from .message import Message
    from .metadata import ConnMetadata
    from .names import NameEntry
    from .policy import PinnedCredentials, Subject
    from .pool import Pool, Slice
    from .quota import User
    from .reply import Reply

_READY_TO_SEND: Final = POLLOUT | POLLWRNORM
_READY_TO_RECEIVE: Final = POLLIN | POLLRDNORM | _READY_TO_SEND
DEAD: Final = POLLERR | POLLHUP


class Connection:
    """One connection to a bus, from HELLO to BYEBYE or the last close.

    family: the ABI that it speaks, in which it gets its messages;
    names: well-known names it owns, in order of acquisition, and name_changes: how often they changed;
    waiting_for: names it is queued for;
    replies: trackers of its own requests; owed: trackers of requests that it has to answer;
    request_count: slots taken by its requests (REP-3); lost: broadcasts it could not take since it last was told,
    lost_before: and those that it was told of;
    sent, received: messages that it sent and that others queued for it or answered it with, with the bytes of their
    payload;
    metadata: of its maker at HELLO, or what it faked; credentials: of its maker, for passive checks (POL-14).
    """

    __slots__ = (
        "accepts_files",
        "activator_of",
        "active",
        "attach_flags_recv",
        "attach_flags_send",
        "bus",
        "credentials",
        "description",
        "endpoint",
        "faked",
        "family",
        "flags",
        "handle",
        "id",
        "is_activator",
        "is_monitor",
        "is_ordinary",
        "is_policy_holder",
        "lost",
        "lost_before",
        "matches",
        "metadata",
        "name_changes",
        "names",
        "owed",
        "owned_names",
        "pool",
        "privileged",
        "queue",
        "received",
        "received_bytes",
        "replies",
        "request_count",
        "sent",
        "sent_bytes",
        "user",
        "waiting_for",
    )

    def __init__(
        self,
        handle: EndpointHandle,
        family: Family,
        conn_id: int,
        flags: int,
        attach_flags: tuple[int, int],
        description: bytes | None,
        metadata: ProcessMetadata,
        credentials: PinnedCredentials,
        user: User,
        pool: Pool,
        *,
        faked: bool,
    ) -> None:
        endpoint: Endpoint = handle.endpoint
        self.handle: EndpointHandle | None = handle
        self.family = family
        self.endpoint = endpoint
        self.bus = endpoint.bus
        self.id = conn_id
        self.flags = flags
        self.accepts_files = bool(flags & c.HELLO_ACCEPT_FD)
        self.is_activator = bool(flags & c.HELLO_ACTIVATOR)
        self.is_monitor = bool(flags & c.HELLO_MONITOR)
        self.is_policy_holder = bool(flags & c.HELLO_POLICY_HOLDER)
        self.is_ordinary = not flags & c.HELLO_SPECIAL
        self.attach_flags_send, self.attach_flags_recv = attach_flags
        self.description = description
        self.metadata = metadata
        self.credentials = credentials
        self.user = user
        self.pool = pool
        self.faked = faked
        self.privileged = handle.privileged
        self.active = False
        self.queue = Queue()
        self.matches = MatchDb()
        self.names: dict[bytes, NameEntry] = {}
        self.name_changes = 0
        self.owned_names: OwnedNames | None = None
        self.waiting_for: dict[bytes, NameEntry] = {}
        self.activator_of: NameEntry | None = None
        self.replies: list[Reply] = []
        self.owed: dict[Reply, None] = {}
        self.request_count = 0
        self.lost = 0
        self.lost_before = 0
        self.sent = 0
        self.sent_bytes = 0
        self.received = 0
        self.received_bytes = 0

    def check_active(self) -> None:
        """Raises KdbusError(ECONNRESET) when it left the bus, be it while the command at hand was held up."""
        if not self.active:
            raise KdbusError(ECONNRESET, "disconnected")

    # Names

    def own(self, entry: NameEntry) -> None:
        """Note that a name is its own now, as the last one that it got."""
        self.names[entry.name] = entry
        self.name_changes += 1
        self.owned_names = None
        self.user.account.add(NAME_COST)

    def disown(self, entry: NameEntry) -> None:
        del self.names[entry.name]
        self.name_changes += 1
        self.owned_names = None
        self.user.account.uncharge(NAME_COST)

    def names_now(self) -> OwnedNames:
        """The names with their flags (META-15); made anew only when they have changed."""
        names = self.owned_names
        if names is None:
            names = self.owned_names = OwnedNames([(entry.flags, name) for name, entry in self.names.items()])
        return names

    # Readiness

    def poll(self) -> int:
        """POLL-2, POLL-3."""
        if not self.active:
            return DEAD
        return _READY_TO_RECEIVE if self.queue.count else _READY_TO_SEND

    def wake(self) -> None:
        """Have the pollers look again."""
        handle = self.handle
        if handle is not None:
            self.bus.domain.changed.append(handle)

    # Delivery

    def deliver(
        self,
        message: Message,
        process: ProcessMetadata | None,
        metadata: ConnMetadata | None,
        source: Connection | None,
        caller: Caller | None = None,
        reply: Reply | None = None,
    ) -> None:
        """Queue `message`, of connection `source` or of the bus itself (None).

        caller: the sending thread, which the payload is copied from; reply: the tracker of a request, linked with it.
        Raises KdbusError in the order of SEND-45: ENOBUFS (queue full), ECONNRESET, ECOMM, EXFULL, ENOBUFS (pool),
        EFAULT, ENOBUFS (quota).
        """
        queue = self.queue
        if queue.count >= CONN_MAX_MSGS:
            raise KdbusError(ENOBUFS, "queue full")
        entry = self.make_entry(message, process, metadata, caller)
        # Looked at again: others may have been served during the copy (`Caller.copy_payload`).
        if queue.count >= CONN_MAX_MSGS:
            self.discard(entry)
            raise KdbusError(ENOBUFS, "queue full")
        if reply is not None and not reply.requester.active:
            # Nobody would ever take the tracker out again.
            self.discard(entry)
            raise KdbusError(ECONNRESET, "requester is gone")
        if queue.count >= CONN_MAX_MSGS_UNACCOUNTED and source is not None:
            try:
                queue.quota.take(source.user)
            except KdbusError:
                self.discard(entry)
                raise
            entry.user = source.user
        if reply is not None:
            entry.reply = reply.retain()
            reply.link()
        queue.add(entry)
        self.received += 1
        self.received_bytes += message.payload_size + message.memfd_size
        self.wake()

    def try_deliver(
        self,
        message: Message,
        process: ProcessMetadata | None,
        metadata: ConnMetadata | None,
        source: Connection | None,
        caller: Caller | None = None,
    ) -> bool:
        """Deliver where nobody hears of a failure; whether it succeeded.  Raises AbandonedError."""
        try:
            self.deliver(message, process, metadata, source, caller)
        except AbandonedError:
            raise
        except KdbusError:
            return False
        return True

    def make_entry(
        self,
        message: Message,
        process: ProcessMetadata | None,
        metadata: ConnMetadata | None,
        caller: Caller | None,
    ) -> QueueEntry:
        """An entry for this connection with the payload in its pool, in no queue yet (POOL-9).

        Raises KdbusError: ECONNRESET, ECOMM, EXFULL, ENOBUFS, EFAULT.
        """
        self.check_active()
        resources = message.resources
        if resources is not None and resources.files and not self.accepts_files:
            raise KdbusError(ECOMM, "receiver takes no descriptors")
        payload: Slice | None = None
        size = message.payload_size
        if size:
            pool = self.pool
            available = pool.size - pool.busy
            if available // 2 < size < available:
                raise KdbusError(EXFULL, "more than half of the receiver's free pool")
            payload = pool.allocate(size)
            assert caller is not None
            try:
                caller.copy_payload(pool.memory, payload.offset, message.vectors)
            except KdbusError:
                pool.release(payload)
                raise
            if not self.active:
                # It left the bus during the copy, with its queue emptied for good.
                pool.release(payload)
                raise KdbusError(ECONNRESET, "receiver is gone")
        if resources is not None:
            resources.retain()
        return QueueEntry(message, payload, process, metadata)

    def install(
        self, entry: QueueEntry, reader: Reader, *, with_files: bool
    ) -> tuple[int, int, Installation | None]:
        """Make and publish the message slice of `entry` as `reader` may see it (LAY-1 to LAY-6, META-2).

        Gives back its offset and size in the pool, and the descriptors to install.  The entry keeps its payload.
        Raises KdbusError(ENOBUFS) when the pool has no room; nothing has happened then.
        """
        message = entry.message
        family = self.family
        payload = entry.payload
        metadata = b""
        if entry.proc_meta is not None or entry.conn_meta is not None:
            mask = self.attach_flags_recv & self.bus.domain.attach_flags_mask
            metadata = export(entry.proc_meta, entry.conn_meta, mask, reader, family)
        writer = BytesWriter()
        places = family.write_message(writer, message, payload.offset if payload is not None else 0, metadata)
        size = len(writer)
        pool = self.pool
        part = pool.put(writer.getvalue())
        pool.publish(part, payload)
        resources = message.resources
        if not places or not with_files or resources is None:
            return part.offset, size, None
        files = resources.memfds + resources.files
        entries = [
            (file, pool.memory, part.offset + place) for file, place in zip(files, places, strict=True)
        ]
        flags_offset = family.receive_flags_offset
        return (
            part.offset,
            size,
            Installation(entries, resources.retain(), flags_offset, family.incomplete_files),
        )

    def discard(self, entry: QueueEntry) -> None:
        """Give back all that a queue entry holds; it is in no queue any more."""
        payload = entry.payload
        if payload is not None:
            self.pool.release(payload)
            entry.payload = None
        resources = entry.message.resources
        if resources is not None:
            resources.release()
        reply = entry.reply
        if reply is not None:
            reply.drop()
            entry.reply = None

    def take_over_messages(self, source: Connection, name_id: int) -> None:
        """Move what is queued at `source` here, with the reply obligations (ACT-4 to ACT-6, NAME-17).

        name_id: only messages to that name; 0: all.  What cannot move counts as lost and does not stop the rest.
        """
        for reply in list(source.owed):
            if reply.requester in (self, source) or (name_id and reply.name_id != name_id):
                continue
            reply.move(self)
        for entry in source.queue.entries():
            if name_id and entry.message.name_id != name_id:
                continue
            source.queue.remove(entry)
            if not self._take_over(entry, source):
                self.lost += 1
                source.discard(entry)
        self.wake()
        source.wake()

    def _take_over(self, entry: QueueEntry, source: Connection) -> bool:
        if entry.message.has_files and not self.accepts_files:
            return False
        old = entry.payload
        if old is not None:
            try:
                new = self.pool.allocate(old.size)
            except KdbusError:
                return False
            try:
                # No more than the message has: behind it are bytes of other messages to `source`.
                size = entry.message.payload_size
                self.pool.memory.copy_from(new.offset, size, source.pool.memory, old.offset)
            except KdbusError:
                self.pool.release(new)
                return False
            entry.payload = new
            source.pool.release(old)
        self.queue.add(entry)
        self.received += 1
        self.received_bytes += entry.message.payload_size + entry.message.memfd_size
        return True

    # Rights.  `subject` is the calling thread for what it does itself, the HELLO credentials otherwise.

    def may_own(self, name: bytes, subject: Subject) -> bool:
        """POL-9."""
        custom = self.endpoint.policy
        if custom is not None and custom.level(subject, name) < c.POLICY_OWN:
            return False
        return self.privileged or self.bus.policy.level(subject, name) >= c.POLICY_OWN

    def may_talk(self, peer: Connection, subject: Subject | None = None) -> bool:
        """POL-10."""
        if subject is None:
            subject = self.credentials
        custom = self.endpoint.policy
        if custom is not None and not custom.grants_any(subject, peer.names, c.POLICY_TALK):
            return False
        if self.privileged or subject.ids().euid == peer.credentials.ids().uid:
            return True
        return self.bus.policy.grants_any(subject, peer.names, c.POLICY_TALK)

    def may_see_name(self, name: bytes, subject: Subject | None = None) -> bool:
        """POL-17: only custom endpoints hide names."""
        custom = self.endpoint.policy
        return custom is None or custom.level(subject or self.credentials, name) >= c.POLICY_SEE

    def may_see(self, peer: Connection, subject: Subject) -> bool:
        """POL-17: a peer is visible through any of its names."""
        custom = self.endpoint.policy
        return custom is None or custom.grants_any(subject, peer.names, c.POLICY_SEE)

    def may_see_notice(self, notice: Notice) -> bool:
        """NOTE-5."""
        if self.endpoint.policy is None:
            return True
        return bool(notice.name) and self.may_see_name(notice.name)

    # The end

    def byebye(self) -> None:
        """BYE-1 to BYE-3.  Raises KdbusError: EALREADY, EBUSY."""
        if not self.active:
            raise KdbusError(EALREADY, "disconnected already")
        if len(self.queue):
            raise KdbusError(EBUSY, "messages in the queue")
        self.disconnect()

    def disconnect(self) -> None:
        """Leave the bus, with every effect on others before this returns (CLOSE-2).  Idempotent."""
        if not self.active:
            return
        bus = self.bus
        self.active = False
        self.wake()
        for reply in [reply for reply in self.replies if reply.call is not None]:
            finish(reply, ECONNRESET)
        bus.policy.remove(self)
        bus.remove_connection(self)
        bus.names.remove_connection(self)
        bus.notifier.flush()
        unread = self._discard_queue()
        for reply in list(self.replies):
            forget(reply)
        for reply in (*unread, *newest_first(self.owed)):
            if reply not in self.owed:
                continue
            if not reply.sync:
                bus.notifier.reply(c.ITEM_REPLY_DEAD, reply.requester.id, reply.cookie)
                reply.unlink()
            else:
                fail(reply, EPIPE)
        self.matches.clear()
        if not self.is_monitor:
            bus.notifier.id_change(c.ITEM_ID_REMOVE, self.id, self.flags)
        bus.notifier.flush()

    def _discard_queue(self) -> list[Reply]:
        """Gives the trackers of the unread requests, oldest first: they are reported before others (REP-12)."""
        unread: list[Reply] = []
        for entry in self.queue.entries():
            self.queue.remove(entry)
            if entry.reply is not None:
                unread.append(entry.reply)
            self.discard(entry)
        return unread

    def close(self) -> None:
        """The last file of the connection is closed: the pool goes too (FREE-5)."""
        self.disconnect()
        self.pool.close(self.bus.domain.turn)
        # What is left of it refers to nothing that refers back: no cycles for the garbage collector.
        self.handle = None
        self.user.connections -= 1
        domain = self.bus.domain
        domain.credentials.give_back(self.credentials)
        self.user.account.uncharge(held_bytes(self.metadata))
        domain.users.forget_if_idle(self.user.account)
