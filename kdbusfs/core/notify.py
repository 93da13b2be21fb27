"""Delivery of notifications: collected while a command runs, delivered before it is answered (NOTE-1 to NOTE-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from .delivery import try_deliver
from .metadata import ConnMetadata
from .notifications import Round
from .rights import may_see_notice

if TYPE_CHECKING:
    from .bus import Bus
    from .connection import Connection
    from .match import Match
    from .message import Message

_DELIVERY_UNITS: Final = 3
_LISTED_IN_A_UNIT: Final = 20


def flush(bus: Bus) -> None:
    """Deliver everything that is pending now (NOTE-8).

    Other commands may run meanwhile.  When they have notifications, too, they continue with this one first: the order
    is the same for everybody, and after a flush one's own notifications are delivered.
    """
    notifications = bus.notifications
    last = notifications.noted
    turn = bus.domain.turn
    while notifications.done < last:
        turn.spend(_proceed(bus))


def _proceed(bus: Bus) -> int:
    """Deliver one copy, or take up the next notification.  Returns the units of work."""
    notifications = bus.notifications
    current = notifications.current
    if current is None:
        current = _address(bus, notifications.pending.popleft())
        if current is not None:
            notifications.current = current
            return 2 + len(current.listeners) // _LISTED_IN_A_UNIT
    elif _deliver_one(current):
        return _DELIVERY_UNITS
    notifications.current = None
    notifications.done += 1
    return 1


def _address(bus: Bus, message: Message) -> Round | None:
    """Find the possible receivers of a notification: all monitors, then its addressee or those with matches (MON-1).

    Returns None when there is none.
    """
    domain = bus.domain
    message.seqnum = domain.next_seqnum()
    notice = message.notice
    assert notice is not None
    broadcast = message.dst_id == c.DST_ID_BROADCAST
    listening = bus.listeners.get(notice.kind) if broadcast else None
    if broadcast and not listening and not bus.monitors:
        return None
    receiver = None if broadcast else bus.connections.get(message.dst_id)
    if not broadcast and receiver is None:
        return None
    metadata = ConnMetadata()
    metadata.stamp(message.seqnum, domain.host.clock)
    found = Round(message, metadata, receiver)
    if bus.monitors:
        found.monitors.extend(bus.monitors.values())
    if listening:
        for group in listening.candidates(message, None):
            found.listeners.extend(group.members.items())
    return found


def _deliver_one(current: Round) -> bool:
    """Deliver it to the next receiver, if that still wants it.  Returns False when none is left."""
    message = current.message
    if current.monitors:
        _offer(current, current.monitors.pop())
        return True
    receiver, current.receiver = current.receiver, None
    if receiver is not None:
        try_deliver(receiver, message, None, current.metadata, None)
        return True
    if not current.listeners:
        return False
    listener, entries = current.listeners.pop()
    if listener.active and listener not in current.served and _is_wanted(message, entries):
        current.served.add(listener)
        notice = message.notice
        assert notice is not None
        if may_see_notice(listener, notice):
            _offer(current, listener)
    return True


def _is_wanted(message: Message, entries: list[Match]) -> bool:
    return any(entry.accepts(message, None) for entry in entries)


def _offer(current: Round, receiver: Connection) -> None:
    if receiver.active and not try_deliver(receiver, current.message, None, current.metadata, None):
        receiver.lose()
