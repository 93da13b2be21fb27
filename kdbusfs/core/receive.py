"""RECV and FREE (RECV-1 to RECV-19, FREE-1 to FREE-5)."""

from __future__ import annotations

from errno import EAGAIN, ENOMSG, EOVERFLOW
from typing import TYPE_CHECKING

from ..abi import constants as c
from ..abi.commands import FREE
from ..base.errors import CommandError
from .delivery import discard
from .notify import flush
from .sync import end_request

if TYPE_CHECKING:
    from ..base.call import Call
    from .connection import Connection
    from .queue import QueueEntry


def recv(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_RECV: 0, -EAGAIN or -EOVERFLOW.

    Raises CommandError: ENOMSG (nothing as urgent), ENOBUFS (no room for the message slice; it stays queued).
    """
    family = connection.family
    rules = family.rules
    priority = family.decode_recv(call)
    flags = call.flags
    queue = connection.queue
    if flags & c.RECV_USE_PRIORITY:
        entry = queue.most_urgent()
        if entry is not None and entry.message.priority > priority:
            if rules.lost_with_message:
                return _nothing(connection, call)
            raise CommandError(ENOMSG, "no message of that priority")
    else:
        entry = queue.oldest()
    if entry is None:
        return _nothing(connection, call) if rules.lost_with_message else -EAGAIN
    if flags & c.RECV_DROP:
        _drop(connection, entry)
        lost = connection.traffic.report_lost() if rules.lost_with_message else 0
        family.received(call, lost, connection.pool.size if rules.empty_at_end else 0, 0)
        return 0
    lost = 0
    if connection.traffic.lost:
        if not rules.lost_with_message:
            family.received(call, connection.traffic.report_lost(), 0, 0)
            return -EOVERFLOW
        lost = connection.traffic.lost
    delivery = connection.delivery
    peek = bool(flags & c.RECV_PEEK)
    offset, size, call.installation = delivery.install(connection, entry, call.caller, with_files=not peek)
    if not peek:
        delivery.take_out(connection, entry)
        discard(connection, entry)
        if not queue.count:
            connection.wake()
    if lost:
        lost = connection.traffic.report_lost()
        connection.wake()
    family.received(call, lost, offset, size)
    return 0


def _nothing(connection: Connection, call: Call) -> int:
    """L-93, L-94: there is no message, or none as urgent; lost messages are reported all the same."""
    lost = connection.traffic.report_lost()
    if lost:
        connection.wake()
    connection.family.received(call, lost, connection.pool.size, 0)
    return -EAGAIN


def _drop(connection: Connection, entry: QueueEntry) -> None:
    """RECV-5; the request ends for its sender, because there will be no reply (REP-10)."""
    tracker = entry.tracker
    connection.delivery.take_out(connection, entry)
    connection.wake()
    if tracker is not None and tracker.is_linked and not tracker.has_outcome:
        end_request(tracker)
    discard(connection, entry)
    flush(connection.bus)


def free(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_FREE.  Raises CommandError: EINVAL (any item), ENXIO (no published slice at that offset)."""
    family = connection.family
    offset = family.decode_free(call)
    # L-92: nothing may be given back.
    if offset != connection.pool.size or not family.rules.empty_at_end:
        connection.pool.free(offset)
    family.done(FREE, call)
    return 0
