"""The end of a connection, with all its effects on others (BYE-1 to BYE-3, CLOSE-1 to CLOSE-5, REP-11 to REP-13)."""

from __future__ import annotations

from errno import EALREADY, EBUSY, ECONNRESET, EPIPE
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..base.errors import CommandError
from .delivery import discard
from .metadata import held_bytes
from .names import forget_names, give_up_names
from .notify import flush
from .reply import newest_first
from .sync import conclude, end_request, finish, forget

if TYPE_CHECKING:
    from .connection import Connection
    from .reply import Tracker

_REPLIES_OF_A_CONNECTION: Final = 100
"""Units of `Turn.spend` for ending all requests of one connection."""


def byebye(connection: Connection) -> None:
    """BYE-1 to BYE-3.  Raises CommandError: EALREADY, EBUSY."""
    if not connection.active:
        raise CommandError(EALREADY, "disconnected already")
    if connection.queue.count:
        raise CommandError(EBUSY, "messages in the queue")
    disconnect(connection)


def disconnect(connection: Connection) -> None:
    """Leave the bus, with every effect on others before this returns (CLOSE-2).  Idempotent.

    Other commands may run meanwhile.  From the first moment on its id is unknown to them, and its own commands
    fail with ECONNRESET; names, trackers and notifications follow, in this order.
    """
    if not connection.active:
        return
    bus = connection.bus
    connection.active = False
    connection.is_ending = True
    connection.wake()
    for tracker in [tracker for tracker in connection.requests.trackers if tracker.call is not None]:
        finish(tracker, ECONNRESET)
    bus.policy.remove(connection)
    bus.remove_connection(connection)
    if bus.active:
        give_up_names(connection)
        flush(bus)
    unread = _discard_queue(connection)
    requests = list(connection.requests.trackers)
    for tracker in requests:
        forget(tracker)
    if requests:
        bus.domain.turn.spend(_REPLIES_OF_A_CONNECTION)
    if bus.active:
        _end_owed(connection, unread)
        connection.matches.clear(bus)
        if not connection.is_monitor:
            bus.notifications.id_change(c.ITEM_ID_REMOVE, connection.id, connection.flags)
        flush(bus)
    if not bus.active:
        _vanish(connection)
    connection.is_ending = False
    if connection.when_ended is not None:
        connection.when_ended()


def close(connection: Connection) -> None:
    """The last file of the connection is closed and it has left its bus: the pool goes too (FREE-5)."""
    domain = connection.bus.domain
    connection.pool.close(domain.turn)
    # Break the reference cycles: the garbage collector need not find them.
    connection.handle = None
    connection.when_ended = None
    connection.user.connections -= 1
    domain.credentials.give_back(connection.credentials)
    connection.user.account.uncharge(held_bytes(connection.metadata))
    domain.users.forget_if_idle(connection.user.account)


def _vanish(connection: Connection) -> None:
    """The bus ends as well: no notifications, and the state of the bus is dropped as a whole.

    Requesters that wait for a reply leave the bus, too, with their trackers; only blocked calls end now.
    """
    bus = connection.bus
    forget_names(connection)
    owed = connection.requests.owed
    while owed:
        tracker, _ = owed.popitem()
        if tracker.is_blocking:
            conclude(tracker, EPIPE)
        bus.domain.turn.spend()
    connection.matches.forget(connection.user.account)


def _discard_queue(connection: Connection) -> list[Tracker]:
    """Empty the queue.  Returns the trackers of unread requests, oldest first: they are reported first (REP-12)."""
    unread: list[Tracker] = []
    turn = connection.bus.domain.turn
    queue = connection.queue
    entry = queue.oldest()
    while entry is not None:
        connection.delivery.take_out(connection, entry)
        if entry.tracker is not None:
            unread.append(entry.tracker)
        discard(connection, entry)
        resources = entry.message.resources
        turn.spend(2 + (len(resources.files) if resources is not None else 0))
        entry = queue.oldest()
    return unread


def _end_owed(connection: Connection, unread: list[Tracker]) -> None:
    """End the requests that it has not answered (REP-11), for each requester the newest first."""
    bus = connection.bus
    owed = connection.requests.owed
    for tracker in unread:
        if tracker in owed:
            end_request(tracker)
    flush(bus)
    while owed:
        last, _ = owed.popitem()
        owed[last] = None
        for tracker in newest_first([tracker for tracker in last.requester.requests.trackers if tracker in owed]):
            end_request(tracker)
        bus.domain.turn.spend(_REPLIES_OF_A_CONNECTION)
        flush(bus)
