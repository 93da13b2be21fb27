"""Connections: delivery into their queue and pool, their rights, their end."""

from __future__ import annotations

from collections.abc import Callable
from errno import EALREADY, EBUSY, ECOMM, ECONNRESET, ENOBUFS, EPIPE, EXFULL
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter

from ..abi import constants as c
from ..abi.limits import CONN_MAX_MSGS, CONN_MAX_MSGS_UNACCOUNTED
from ..abi.values import OwnedNames
from ..base.call import Installation
from ..base.errors import AbandonedError, CommandError
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

_REPLIES_IN_A_LOOK: Final = 256
_REPLIES_OF_A_CONNECTION: Final = 100
"""Units of work that ending all requests of one connection takes."""
_COPIED_AT_ONCE: Final = 1 << 16
_BYTES_IN_A_UNIT: Final = 512
"""Of a pool that has to get its pages first."""


class Connection:
    """One connection to a bus, from HELLO to BYEBYE or the last close.

    family: the ABI that it speaks, in which it gets its messages;
    names: well-known names it owns, in order of acquisition, and name_changes: how often they changed;
    waiting_for: names it is queued for;
    replies: trackers of its own requests; owed: trackers of requests that it has to answer;
    request_count: slots taken by its requests (REP-3); alarm, alarm_ns: of `Deadlines`;
    lost: broadcasts it could not take since it last was told, lost_before: and those that it was told of;
    sent, received: messages that it sent and that others queued for it or answered it with, with the bytes of their
    payload;
    is_ending: it has left its bus, and others are served before all effects of that are there; when_ended: what to do
    then;
    metadata: of its maker at HELLO, or what it faked; credentials: of its maker, for passive checks (POL-14).
    """

    __slots__ = (
        "accepts_files",
        "activator_of",
        "active",
        "alarm",
        "alarm_ns",
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
        "is_ending",
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
        "when_ended",
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
        self.is_ending = False
        self.when_ended: Callable[[], None] | None = None
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
        self.alarm = 0
        self.alarm_ns = 0
        self.lost = 0
        self.lost_before = 0
        self.sent = 0
        self.sent_bytes = 0
        self.received = 0
        self.received_bytes = 0

    def check_active(self) -> None:
        """Raises CommandError(ECONNRESET) when it left the bus, be it while the command at hand was held up."""
        if not self.active:
            raise CommandError(ECONNRESET, "disconnected")

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
        Raises CommandError in the order of SEND-45: ENOBUFS (queue full), ECONNRESET, ECOMM, EXFULL, ENOBUFS (pool),
        EFAULT, ENOBUFS (quota).
        """
        queue = self.queue
        if queue.count >= CONN_MAX_MSGS:
            raise CommandError(ENOBUFS, "queue full")
        entry = self.make_entry(message, process, metadata, caller)
        # Looked at again: others may have been served during the copy (`Caller.copy_payload`).
        if queue.count >= CONN_MAX_MSGS:
            self.discard(entry)
            raise CommandError(ENOBUFS, "queue full")
        if reply is not None and not reply.requester.active:
            # Nobody would ever take the tracker out again.
            self.discard(entry)
            raise CommandError(ECONNRESET, "requester is gone")
        if queue.count >= CONN_MAX_MSGS_UNACCOUNTED and source is not None:
            try:
                queue.quota.take(source.user)
            except CommandError:
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
        if self.queue.count >= CONN_MAX_MSGS:
            return False
        try:
            self.deliver(message, process, metadata, source, caller)
        except AbandonedError:
            raise
        except CommandError:
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

        Raises CommandError: ECONNRESET, ECOMM, EXFULL, ENOBUFS, EFAULT.
        """
        self.check_active()
        resources = message.resources
        if resources is not None and resources.files and not self.accepts_files:
            raise CommandError(ECOMM, "receiver takes no descriptors")
        payload: Slice | None = None
        size = message.payload_size
        if size:
            pool = self.pool
            available = pool.size - pool.busy
            if available // 2 < size < available:
                raise CommandError(EXFULL, "more than half of the receiver's free pool")
            payload = pool.allocate(size)
            assert caller is not None
            try:
                caller.copy_payload(pool.memory, payload.offset, message.vectors)
            except CommandError:
                pool.release(payload)
                raise
            if not self.active:
                # It left the bus during the copy, with its queue emptied for good.
                pool.release(payload)
                raise CommandError(ECONNRESET, "receiver is gone")
        if resources is not None:
            resources.retain()
        return QueueEntry(message, payload, process, metadata)

    def install(
        self, entry: QueueEntry, reader: Reader, *, with_files: bool
    ) -> tuple[int, int, Installation | None]:
        """Make and publish the message slice of `entry` as `reader` may see it (LAY-1 to LAY-6, META-2).

        Gives back its offset and size in the pool, and the descriptors to install.  The entry keeps its payload.
        Raises CommandError(ENOBUFS) when the pool has no room; nothing has happened then.
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
        flags_offset = family.received_flags_offset
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

    def owed_by_name(self) -> dict[int, list[Reply]]:
        """The trackers of the requests that it has to answer, by the id of the name that they were sent to.

        Others may be served meanwhile.
        """
        found: dict[int, list[Reply]] = {}
        turn = self.bus.domain.turn
        for count, reply in enumerate(list(self.owed)):
            found.setdefault(reply.name_id, []).append(reply)
            if not count % _REPLIES_IN_A_LOOK:
                turn.spend(_REPLIES_IN_A_LOOK // 8)
        return found

    def take_over_messages(self, source: Connection, name_id: int, owed: list[Reply] | None = None) -> None:
        """Move what is queued at `source` here, with the reply obligations (ACT-4 to ACT-6, NAME-17).

        name_id: only messages to that name; 0: all.  owed: the obligations that may have to move; None: all.  What
        cannot move counts as lost and does not stop the rest.

        Others may be served meanwhile.  They find each message either there or here, with its tracker; what comes in
        there moves, too, but no more than twice what a queue has room for.  It ends when this connection does.
        """
        turn = self.bus.domain.turn
        left = 2 * CONN_MAX_MSGS
        found = True
        while found and left > 0:
            found = False
            for entry in source.queue.entries():
                if (not name_id or entry.message.name_id == name_id) and entry.queue is source.queue and self.active:
                    found = True
                    left -= 1
                    self._take_over(entry, source)
        for reply in list(source.owed) if owed is None else owed:
            if self.active and (not name_id or reply.name_id == name_id):
                self._take_over_reply(reply, source)
            turn.spend()
        self.wake()
        source.wake()

    def _take_over_reply(self, reply: Reply, source: Connection) -> None:
        if reply in source.owed and reply.requester not in (self, source):
            reply.move(self)

    def _take_over(self, entry: QueueEntry, source: Connection) -> None:
        """Move one message.  It stays where it was if one of the two ends, or somebody else takes it, meanwhile."""
        fits = self.accepts_files or not entry.message.has_files
        if fits and entry.payload is not None:
            fits = self._take_over_payload(entry, entry.payload, source)
        if entry.queue is not source.queue or not self.active:
            return
        source.queue.remove(entry)
        if not fits:
            self.lost += 1
            source.discard(entry)
            return
        if entry.reply is not None:
            self._take_over_reply(entry.reply, source)
        self.queue.add(entry)
        self.received += 1
        self.received_bytes += entry.message.payload_size + entry.message.memfd_size
        self.wake()

    def _take_over_payload(self, entry: QueueEntry, old: Slice, source: Connection) -> bool:
        """Copy the payload of a queued message into the own pool, in pieces; whether the message has it there now.

        No more than the message has is copied: behind it are bytes of other messages to `source`.
        """
        pool = self.pool
        turn = self.bus.domain.turn
        try:
            new = pool.allocate(old.size)
        except CommandError:
            return False
        done = 0
        whole = entry.message.payload_size
        while done < whole:
            size = min(_COPIED_AT_ONCE, whole - done)
            try:
                pool.memory.copy_from(new.offset + done, size, source.pool.memory, old.offset + done)
            except CommandError:
                pool.release(new)
                return False
            done += size
            turn.spend(1 + size // _BYTES_IN_A_UNIT)
            if entry.queue is not source.queue or not self.active:
                pool.release(new)
                return False
        entry.payload = new
        source.pool.release(old)
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
        """BYE-1 to BYE-3.  Raises CommandError: EALREADY, EBUSY."""
        if not self.active:
            raise CommandError(EALREADY, "disconnected already")
        if len(self.queue):
            raise CommandError(EBUSY, "messages in the queue")
        self.disconnect()

    def disconnect(self) -> None:
        """Leave the bus, with every effect on others before this returns (CLOSE-2).  Idempotent.

        Others may be served meanwhile.  From the first moment on they find nobody with this id, and a connection that
        answers every command with ECONNRESET; names, trackers and notifications follow, in this order.
        """
        if not self.active:
            return
        bus = self.bus
        self.active = False
        self.is_ending = True
        self.wake()
        for reply in [reply for reply in self.replies if reply.call is not None]:
            finish(reply, ECONNRESET)
        bus.policy.remove(self)
        bus.remove_connection(self)
        if bus.active:
            bus.names.remove_connection(self)
            bus.notifier.flush()
        unread = self._discard_queue()
        for reply in list(self.replies):
            forget(reply)
        bus.domain.turn.spend(_REPLIES_OF_A_CONNECTION)
        if bus.active:
            self._end_owed(unread)
            self.matches.clear(bus)
            if not self.is_monitor:
                bus.notifier.id_change(c.ITEM_ID_REMOVE, self.id, self.flags)
            bus.notifier.flush()
        if not bus.active:
            self._vanish()
        self.is_ending = False
        if self.when_ended is not None:
            self.when_ended()

    def _vanish(self) -> None:
        """The bus ends as well: nobody is told, and what belongs to the bus goes with it.

        Whoever waits for a reply from here leaves it, too, and takes its trackers along; only blocked calls end now.
        """
        self.bus.names.forget_connection(self)
        owed = self.owed
        while owed:
            reply, _ = owed.popitem()
            if reply.sync:
                fail(reply, EPIPE)
            self.bus.domain.turn.spend()
        self.matches.forget(self.user.account)

    def _discard_queue(self) -> list[Reply]:
        """Gives the trackers of the unread requests, oldest first: they are reported before others (REP-12)."""
        unread: list[Reply] = []
        turn = self.bus.domain.turn
        entry = self.queue.oldest()
        while entry is not None:
            self.queue.remove(entry)
            if entry.reply is not None:
                unread.append(entry.reply)
            self.discard(entry)
            turn.spend(2 + (len(entry.message.resources.files) if entry.message.resources is not None else 0))
            entry = self.queue.oldest()
        return unread

    def _end_owed(self, unread: list[Reply]) -> None:
        """Tell those who wait for a reply that there will be none (REP-11), each the newest request first."""
        for reply in unread:
            if reply in self.owed:
                self._end_reply(reply)
        self.bus.notifier.flush()
        owed = self.owed
        while owed:
            last, _ = owed.popitem()
            owed[last] = None
            for reply in newest_first([reply for reply in last.requester.replies if reply in owed]):
                self._end_reply(reply)
            self.bus.domain.turn.spend(_REPLIES_OF_A_CONNECTION)
            self.bus.notifier.flush()

    def _end_reply(self, reply: Reply) -> None:
        if reply.sync:
            fail(reply, EPIPE)
        else:
            self.bus.notifier.reply(c.ITEM_REPLY_DEAD, reply.requester.id, reply.cookie)
            reply.unlink()

    def close(self) -> None:
        """The last file of the connection is closed and it has left its bus: the pool goes too (FREE-5)."""
        self.pool.close(self.bus.domain.turn)
        # What is left of it refers to nothing that refers back: no cycles for the garbage collector.
        self.handle = None
        self.when_ended = None
        self.user.connections -= 1
        domain = self.bus.domain
        domain.credentials.give_back(self.credentials)
        self.user.account.uncharge(held_bytes(self.metadata))
        domain.users.forget_if_idle(self.user.account)
