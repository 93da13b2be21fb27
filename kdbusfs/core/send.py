"""SEND: from a validated message to its receivers (SEND-28 to SEND-49, BC-1 to BC-4)."""

from __future__ import annotations

from errno import (
    EADDRNOTAVAIL,
    EBADF,
    ECANCELED,
    ECONNRESET,
    EEXIST,
    EINVAL,
    ENXIO,
    EPERM,
    EREMCHG,
    ESRCH,
    ETIMEDOUT,
)
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from ..abi import constants as c
from ..abi.commands import SEND
from ..base.call import PENDING
from ..base.errors import AbandonedError, CommandError
from ..base.ports import ProcessMetadata
from .audience import Audience
from .delivery import deliver, try_deliver
from .examination import examine
from .grants import granted_kinds
from .message import Message, make_message
from .metadata import ConnMetadata, held_bytes
from .names import forward
from .reply import DONE, Tracker, find_interrupted, find_tracker
from .rights import may_talk
from .sync import answer, finish, take_reply, wait

if TYPE_CHECKING:
    from ..abi.values import Item
    from ..base.call import Call
    from ..base.ports import Cancellation
    from .connection import Connection

_SIGN_BIT: Final = 1 << 63
_UNITS_OF_A_COPY: Final = 2


class CancelToken:
    """Connects a watched CANCEL_FD with the blocked SEND.

    The descriptor may become readable before the SEND blocks, during a copy (a race): the SEND then ends at once.
    """

    __slots__ = ("is_cancelled", "tracker")

    def __init__(self) -> None:
        self.is_cancelled = False
        self.tracker: Tracker | None = None

    def cancelled(self) -> None:
        """The descriptor became readable (SYNC-1)."""
        self.is_cancelled = True
        if self.tracker is not None and self.tracker.call is not None:
            finish(self.tracker, ECANCELED)

    def block(self, tracker: Tracker) -> None:
        """The SEND blocks now."""
        self.tracker = tracker
        if self.is_cancelled:
            finish(tracker, ECANCELED)


@mypyc_attr(acyclic=True, free_list_len=1)
class Outgoing:
    """A message that is being sent, with the metadata that all its receivers share (META-4).

    charged: bytes of the process' metadata that the sender's account was charged with.
    """

    __slots__ = ("call", "charged", "message", "metadata", "process", "source")

    def __init__(self, source: Connection, call: Call, message: Message) -> None:
        self.source = source
        self.call = call
        self.message = message
        self.charged = 0
        self.process: ProcessMetadata | None = None
        self.metadata: ConnMetadata | None = None

    def collect(self, receiver: Connection) -> None:
        """Gather what this receiver wants and the sender agrees to (META-2).

        The domain's mask counts when a message is received (MASK-1); kinds that are read from the process are not
        gathered while it hides them.  Raises CommandError when a kind cannot be gathered.
        """
        source = self.source
        domain = source.bus.domain
        if receiver.family.rules.basic_metadata:
            kinds = self._granted(receiver)
        else:
            kinds = source.attach_flags_send & receiver.attach_flags_recv
            kinds &= domain.attach_flags_mask | ~c.ATTACH_PROCESS
        if not kinds:
            return
        if kinds & c.ATTACH_PROCESS and not source.faked:  # META-18
            if self.process is None:
                self.process = ProcessMetadata()
            process = self.process
            known = process.collected
            try:
                self.call.caller.collect(process, kinds & c.ATTACH_PROCESS)
            finally:
                if process.collected != known:
                    self._charge(held_bytes(process))
        if kinds & ~c.ATTACH_PROCESS:
            if self.metadata is None:
                self.metadata = ConnMetadata()
            if kinds & c.ATTACH_TIMESTAMP:
                self.metadata.stamp(self.message.seqnum, domain.host.clock)
            if source.describe(self.metadata, kinds):
                assert self.message.resources is not None
                self.message.resources.charge(self.metadata.names_cost)

    def _granted(self, receiver: Connection) -> int:
        """L-103, L-104: some kinds depend on whether the receiver sees the pid of the sender."""
        source = self.source
        kinds = granted_kinds(receiver, source, self.process)
        if kinds == receiver.attach_flags_recv or source.faked:
            return kinds
        if self.process is None:
            self.process = ProcessMetadata()
        self.call.caller.collect(self.process, c.ATTACH_PIDS)
        return granted_kinds(receiver, source, self.process)

    def _charge(self, size: int) -> None:
        resources = self.message.resources
        assert resources is not None
        resources.charge(size - self.charged)
        self.charged = size

    def offer(self, receiver: Connection) -> None:
        """Deliver a copy; a failure counts as lost at the receiver (BC-2, MON-3)."""
        try:
            self.collect(receiver)
        except AbandonedError:
            raise
        except CommandError:
            pass  # a copy that lacks metadata is better than none (SEND-39)
        if not try_deliver(
            receiver, self.message, self.process, self.metadata, self.source, self.call.caller
        ):
            receiver.lose()


def send(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_SEND: 0, or PENDING for a synchronous call that waits for its reply.

    Raises CommandError with the errno of the row of SEND-1's order that fails first.
    """
    sent = connection.family.decode_send(call)
    sync = bool(call.flags & c.SEND_SYNC_REPLY)
    account = connection.user.account
    bloom_size = connection.bus.bloom_size
    items = sent.command_items
    token = CancelToken() if items else None
    late = connection.family.rules.examines_late
    cancellation: Cancellation | None = None
    if late and token is not None:
        cancellation = _watch_cancel_fd(connection, call, items, token, always=True)
    try:
        if late:
            message = examine(sent, call.caller, connection.id, bloom_size, account, sync=sync)
        else:
            message = make_message(sent, call.caller, connection.id, bloom_size, account)
    except CommandError:
        if cancellation is not None:
            cancellation.close()
        raise
    assert message.resources is not None
    waits = False
    try:
        if not late and token is not None:
            cancellation = _watch_cancel_fd(connection, call, items, token, always=False)
        message.user = connection.user
        message.seqnum = connection.bus.domain.next_seqnum()
        outgoing = Outgoing(connection, call, message)
        if message.dst_id == c.DST_ID_BROADCAST:
            _broadcast(outgoing)
            result = 0
        else:
            result = _unicast(outgoing, token, cancellation, sync=sync)
            waits = result == PENDING
    finally:
        message.resources.release()
        if cancellation is not None and not waits:
            cancellation.close()
    if result == 0:
        connection.family.done(SEND, call)
    return result


def _watch_cancel_fd(
    connection: Connection, call: Call, items: list[Item], token: CancelToken, *, always: bool
) -> Cancellation | None:
    """SEND-29, SEND-30; L-51 `always`, also without SYNC_REPLY.  Raises CommandError: EINVAL, EEXIST, EBADF."""
    sync = call.flags & c.SEND_SYNC_REPLY
    watched: Cancellation | None = None
    try:
        for item in items:
            if item.kind != c.ITEM_CANCEL_FD:
                raise CommandError(EINVAL, "item that no SEND may have")
            if not sync and not always:
                continue
            if watched is not None:
                raise CommandError(EEXIST, "second CANCEL_FD")
            watched = _watch(connection, call, item.numbers[0], token)
    except CommandError:
        if watched is not None:
            watched.close()
        raise
    return watched


def _watch(connection: Connection, call: Call, fd: int, token: CancelToken) -> Cancellation:
    if fd < 0:
        raise CommandError(EBADF, "negative CANCEL_FD")
    file = call.caller.take_file(fd)
    try:
        if file.is_path:
            raise CommandError(EBADF, "O_PATH descriptor as CANCEL_FD")
        return connection.bus.domain.host.watch(file, token)
    except CommandError:
        file.close()
        raise


def _broadcast(outgoing: Outgoing) -> None:
    """Monitors first, then every ordinary connection that wants it and may hear the sender (BC-1, BC-3).

    The receivers are determined before the first copy.  Other commands may run all the time: connections appear,
    leave, and change their matches.
    """
    source = outgoing.source
    bus = source.bus
    turn = bus.domain.turn
    receivers = bus.user_listeners.receivers(outgoing.message, source)
    _show_monitors(outgoing)
    audience = Audience(source)
    for receiver in receivers:
        # L-64: some families deliver to the sender, too.
        if receiver is source and not source.family.rules.hears_itself:
            continue
        if receiver.active and audience.admits(receiver):
            outgoing.offer(receiver)
            audience.work += _UNITS_OF_A_COPY
        work, audience.work = audience.work, 0
        turn.spend(1 + work)
    source.traffic.count_sent(outgoing.message)


def _show_monitors(outgoing: Outgoing) -> None:
    """MON-1.  Other commands may run meanwhile."""
    bus = outgoing.source.bus
    if bus.monitors:
        for monitor in list(bus.monitors.values()):
            outgoing.offer(monitor)
            bus.domain.turn.spend(_UNITS_OF_A_COPY)


def _unicast(
    outgoing: Outgoing, token: CancelToken | None, cancellation: Cancellation | None, *, sync: bool
) -> int:
    source, message, call = outgoing.source, outgoing.message, outgoing.call
    rules = source.family.rules
    if sync:
        if source.requests.trackers:
            tracker = find_interrupted(source, None if rules.resumes_any else message.address, message.cookie)
            if tracker is not None:
                return _resume(tracker, message.timeout_ns, call, token, cancellation)
        if rules.refuses_late:
            _check_deadline(source, message.timeout_ns)
    receiver = _find_receiver(outgoing)
    outgoing.collect(receiver)
    request: Tracker | None = None
    awaited: Tracker | None = None
    if message.flags & c.MSG_EXPECT_REPLY:
        if not may_talk(source, receiver, call.caller):
            raise CommandError(EPERM, "may not talk to the receiver")
        request = Tracker(receiver, source, message, is_blocking=sync)
    elif message.flags & c.MSG_SIGNAL and rules.drops_signals:
        return _signal(outgoing, receiver)
    elif message.flags & c.MSG_SIGNAL:
        if not receiver.matches.accept_signal(message, source) or not may_talk(receiver, source):
            raise CommandError(EPERM, "receiver does not want the signal, or may not talk to the sender")
    elif message.cookie_reply:
        awaited = _consume_tracker(source, receiver, message.cookie_reply)
    elif not may_talk(source, receiver, call.caller):
        raise CommandError(EPERM, "may not talk to the receiver")

    _show_monitors(outgoing)
    if awaited is not None:
        answer(awaited, message, outgoing.process, outgoing.metadata, call.caller)
        source.traffic.count_sent(message)
        return 0
    try:
        deliver(receiver, message, outgoing.process, outgoing.metadata, source, call.caller, request)
    except CommandError:
        if request is not None:
            request.release()
        raise
    source.traffic.count_sent(message)
    name = message.dst_name
    if name is not None and name not in receiver.names:
        forward(receiver, name)
    if request is None:
        return 0
    return _expect(request, call, token, cancellation)


def _signal(outgoing: Outgoing, receiver: Connection) -> int:
    """L-65: a receiver without a match, or without room, does not get it; no error is reported."""
    source, message = outgoing.source, outgoing.message
    _show_monitors(outgoing)
    if receiver.matches.accept_signal(message, source) and may_talk(receiver, source):
        try_deliver(receiver, message, outgoing.process, outgoing.metadata, source, outgoing.call.caller)
    source.traffic.count_sent(message)
    return 0


def _check_deadline(source: Connection, deadline_ns: int) -> None:
    """L-68.  Raises CommandError(ETIMEDOUT)."""
    if deadline_ns & _SIGN_BIT or deadline_ns <= source.bus.domain.host.clock.monotonic():
        raise CommandError(ETIMEDOUT, "deadline is in the past")


def _find_receiver(outgoing: Outgoing) -> Connection:
    """SEND-33 to SEND-36.  Raises CommandError: ENXIO, ESRCH, EREMCHG, EADDRNOTAVAIL."""
    message = outgoing.message
    bus = outgoing.source.bus
    name = message.dst_name
    if name is None:
        receiver = bus.connections.get(message.dst_id)
        if receiver is None or not receiver.is_ordinary:
            raise CommandError(ENXIO, "no ordinary connection has that id")
        return receiver
    entry = bus.names.find(name)
    if entry is None:
        raise CommandError(ESRCH, "nobody owns the name")
    if message.dst_id not in (c.DST_ID_NAME, entry.owner.id):
        raise CommandError(EREMCHG, "name is owned by another id")
    if message.flags & c.MSG_NO_AUTO_START and entry.owner.is_activator:
        raise CommandError(EADDRNOTAVAIL, "name is owned by an activator")
    message.name_id = entry.id
    return entry.owner


def _consume_tracker(source: Connection, receiver: Connection, cookie: int) -> Tracker | None:
    """The right to reply (SEND-42, REP-7): the tracker of a blocked SEND, or None where the reply is queued.

    Raises CommandError (EPERM; EBADSLT L-66) when `source` owes no such reply.
    """
    tracker = find_tracker(source, receiver, cookie)
    if tracker is None:
        raise CommandError(source.family.rules.no_tracker, "no such reply is expected")
    if tracker.is_blocking:
        return tracker
    tracker.unlink()
    return None


def _expect(request: Tracker, call: Call, token: CancelToken | None, cancellation: Cancellation | None) -> int:
    """The request is queued: arm its deadline, and block if it is synchronous (REP-4, REP-5, REP-18)."""
    if not request.is_blocking:
        if request.is_linked:
            request.requester.bus.domain.deadlines.add(request)
        request.release()
        return 0
    # Check again: other commands may have run since the request was queued (`names.forward`).
    if request.has_outcome or request.failure:
        return _take_result(request, call)
    if request.state == DONE:
        request.release()
        raise CommandError(ECONNRESET, "requester is gone")
    return _block(request, call, token, cancellation)


def _block(request: Tracker, call: Call, token: CancelToken | None, cancellation: Cancellation | None) -> int:
    """Block until the deadline, which is a signed number here.  Raises CommandError(ETIMEDOUT) when it is over."""
    domain = request.requester.bus.domain
    deadline = request.deadline_ns
    if deadline & _SIGN_BIT or deadline <= domain.host.clock.monotonic():
        request.unlink()
        request.release()
        raise CommandError(ETIMEDOUT, "deadline is in the past")
    domain.deadlines.add(request)
    wait(request, call, cancellation)
    if token is not None:
        token.block(request)
    return PENDING


def _resume(
    tracker: Tracker, deadline_ns: int, call: Call, token: CancelToken | None, cancellation: Cancellation | None
) -> int:
    """The ioctl was restarted: block again, or return the outcome (SYNC-2, SYNC-4).

    deadline_ns: of the restarted SEND; after EINTR a program may extend its time (SYNC-3).
    """
    if tracker.has_outcome:
        return _take_result(tracker, call)
    tracker.deadline_ns = deadline_ns
    return _block(tracker, call, token, cancellation)


def _take_result(tracker: Tracker, call: Call) -> int:
    """The result of a SEND whose outcome arrived while it did not block.  Raises CommandError for a failure."""
    failure = tracker.failure
    tracker.unlink()
    result = take_reply(tracker, call) if tracker.reply is not None else -failure
    tracker.release()
    if result:
        raise CommandError(-result, "delivery of the reply failed")
    return 0
