"""Notifications of the bus: collected while a command runs, delivered before it is answered (NOTE-1 to NOTE-12)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.values import Notice
from .delivery import try_deliver
from .message import Message
from .metadata import ConnMetadata
from .rights import may_see_notice

if TYPE_CHECKING:
    from .connection import Connection
    from .domain import Domain
    from .match import Match
    from .match_index import MatchIndex


_DELIVERY_UNITS: Final = 3
_LISTED_IN_A_UNIT: Final = 20


class _Delivery:
    """A notification on its way: whom it has still to be brought to, the last first to be taken.

    listeners: connections that have matches which may accept, with these; they are asked when it is their turn, so that
    those count that they have then (MATCH-1).
    """

    __slots__ = ("_served", "listeners", "message", "metadata", "monitors", "receiver")

    def __init__(self, message: Message, metadata: ConnMetadata, receiver: Connection | None) -> None:
        self.message = message
        self.metadata = metadata
        self.receiver = receiver
        self.monitors: list[Connection] = []
        self.listeners: list[tuple[Connection, list[Match]]] = []
        self._served: set[Connection] = set()

    def deliver_one(self) -> bool:
        """Bring it to the next one, if that still wants it.  Returns False when there is nobody left."""
        if self.monitors:
            self._offer(self.monitors.pop())
            return True
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            try_deliver(receiver, self.message, None, self.metadata, None)
            return True
        if not self.listeners:
            return False
        listener, entries = self.listeners.pop()
        if listener.active and listener not in self._served and self._is_wanted(entries):
            self._served.add(listener)
            notice = self.message.notice
            assert notice is not None
            if may_see_notice(listener, notice):
                self._offer(listener)
        return True

    def _is_wanted(self, entries: list[Match]) -> bool:
        return any(entry.accepts(self.message, None) for entry in entries)

    def _offer(self, receiver: Connection) -> None:
        if receiver.active and not try_deliver(receiver, self.message, None, self.metadata, None):
            receiver.lost += 1


class Notifier:
    """The pending notifications of one bus, in the order of their events (NOTE-6).

    connections, monitors, listeners: of the bus, which is not referred to itself: no cycle is left when it is gone.
    is_over: the bus ends, and nobody is told of anything any more.
    """

    __slots__ = (
        "_connections",
        "_current",
        "_domain",
        "_done",
        "_listeners",
        "_monitors",
        "_noted",
        "_pending",
        "is_over",
    )

    def __init__(
        self,
        domain: Domain,
        connections: dict[int, Connection],
        monitors: dict[int, Connection],
        listeners: dict[int, MatchIndex],
    ) -> None:
        self.is_over = False
        self._domain = domain
        self._connections = connections
        self._monitors = monitors
        self._listeners = listeners
        self._pending: deque[Message] = deque()
        self._current: _Delivery | None = None
        self._noted = 0
        self._done = 0

    def id_change(self, kind: int, conn_id: int, flags: int) -> None:
        """ID_ADD or ID_REMOVE (LAY-18)."""
        if kind == c.ITEM_ID_ADD:
            notice = Notice(kind, new_id=conn_id, new_flags=flags)
        else:
            notice = Notice(kind, old_id=conn_id, old_flags=flags)
        self._note(Message(dst_id=c.DST_ID_BROADCAST, notice=notice))

    def name_change(
        self, kind: int, old_id: int, old_flags: int, new_id: int, new_flags: int, name: bytes
    ) -> None:
        """NAME_ADD, NAME_REMOVE or NAME_CHANGE (LAY-20)."""
        notice = Notice(kind, old_id, old_flags, new_id, new_flags, name)
        self._note(Message(dst_id=c.DST_ID_BROADCAST, notice=notice))

    def reply(self, kind: int, requester_id: int, cookie: int) -> None:
        """REPLY_TIMEOUT or REPLY_DEAD, to the requester alone (NOTE-3, LAY-19)."""
        self._note(Message(dst_id=requester_id, cookie_reply=cookie, notice=Notice(kind)))

    def flush(self) -> None:
        """Deliver everything that is pending (NOTE-8).

        Others may be served in there.  Where they have something to tell, too, they go on with this first: the order
        is one for all, and whoever has flushed finds its own delivered.
        """
        last = self._noted
        turn = self._domain.turn
        while self._done < last:
            turn.spend(self._proceed())

    def drop(self) -> None:
        """The bus ends: there is nobody left to tell."""
        self.is_over = True
        self._pending.clear()
        self._current = None
        self._done = self._noted

    def _note(self, message: Message) -> None:
        if not self.is_over:
            self._noted += 1
            self._pending.append(message)

    def _proceed(self) -> int:
        """Deliver one copy, or take up the next notification.  Gives back the units of work."""
        current = self._current
        if current is None:
            message = self._pending.popleft()
            current = self._address(message)
            if current is not None:
                self._current = current
                return 2 + len(current.listeners) // _LISTED_IN_A_UNIT
        elif current.deliver_one():
            return _DELIVERY_UNITS
        self._current = None
        self._done += 1
        return 1

    def _address(self, message: Message) -> _Delivery | None:
        """Find out who may want a notification: all monitors, then its addressee or those who have matches (MON-1).

        Returns None when there is nobody.
        """
        domain = self._domain
        message.seqnum = domain.next_seqnum()
        notice = message.notice
        assert notice is not None
        broadcast = message.dst_id == c.DST_ID_BROADCAST
        listening = self._listeners.get(notice.kind) if broadcast else None
        if broadcast and not listening and not self._monitors:
            return None
        receiver = None if broadcast else self._connections.get(message.dst_id)
        if not broadcast and receiver is None:
            return None
        metadata = ConnMetadata()
        metadata.collect(c.ATTACH_TIMESTAMP, None, domain.host.clock, message.seqnum)
        found = _Delivery(message, metadata, receiver)
        if self._monitors:
            found.monitors.extend(self._monitors.values())
        if listening:
            for group in listening.candidates(message, None):
                found.listeners.extend(group.members.items())
        return found
