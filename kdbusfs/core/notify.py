"""Notifications of the bus: collected while a command runs, delivered before it is answered (NOTE-1 to NOTE-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..abi import constants as c
from ..abi.values import Notice
from .message import Message
from .metadata import ConnMetadata

if TYPE_CHECKING:
    from .connection import Connection
    from .domain import Domain
    from .match_index import MatchIndex


class Notifier:
    """The pending notifications of one bus, in the order of their events (NOTE-6).

    connections, monitors, listeners: of the bus, which is not referred to itself: no cycle is left when it is gone.
    """

    __slots__ = ("_connections", "_domain", "_listeners", "_monitors", "_pending")

    def __init__(
        self,
        domain: Domain,
        connections: dict[int, Connection],
        monitors: dict[int, Connection],
        listeners: dict[int, MatchIndex],
    ) -> None:
        self._domain = domain
        self._connections = connections
        self._monitors = monitors
        self._listeners = listeners
        self._pending: list[Message] = []

    def id_change(self, kind: int, conn_id: int, flags: int) -> None:
        """ID_ADD or ID_REMOVE (LAY-18)."""
        if kind == c.ITEM_ID_ADD:
            notice = Notice(kind, new_id=conn_id, new_flags=flags)
        else:
            notice = Notice(kind, old_id=conn_id, old_flags=flags)
        self._pending.append(Message(dst_id=c.DST_ID_BROADCAST, notice=notice))

    def name_change(
        self, kind: int, old_id: int, old_flags: int, new_id: int, new_flags: int, name: bytes
    ) -> None:
        """NAME_ADD, NAME_REMOVE or NAME_CHANGE (LAY-20)."""
        notice = Notice(kind, old_id, old_flags, new_id, new_flags, name)
        self._pending.append(Message(dst_id=c.DST_ID_BROADCAST, notice=notice))

    def reply(self, kind: int, requester_id: int, cookie: int) -> None:
        """REPLY_TIMEOUT or REPLY_DEAD, to the requester alone (NOTE-3, LAY-19)."""
        self._pending.append(Message(dst_id=requester_id, cookie_reply=cookie, notice=Notice(kind)))

    def flush(self) -> None:
        """Deliver everything that is pending (NOTE-8)."""
        while self._pending:
            pending, self._pending = self._pending, []
            for message in pending:
                self._deliver(message)

    def _deliver(self, message: Message) -> None:
        domain = self._domain
        message.seqnum = domain.next_seqnum()
        notice = message.notice
        assert notice is not None
        is_broadcast = message.dst_id == c.DST_ID_BROADCAST
        listening = self._listeners.get(notice.kind)
        if is_broadcast and not listening and not self._monitors:
            return
        metadata = ConnMetadata()
        metadata.collect(c.ATTACH_TIMESTAMP, None, domain.host.clock, message.seqnum)
        if is_broadcast:
            self._broadcast(message, notice, metadata)
            return
        receiver = self._connections.get(message.dst_id)
        if receiver is not None:
            self._eavesdrop(message, metadata)
            receiver.try_deliver(message, None, metadata, source=None)

    def _broadcast(self, message: Message, notice: Notice, metadata: ConnMetadata) -> None:
        """To all monitors, then to every connection with a match that may see it (NOTE-1 to NOTE-5, NOTE-11)."""
        self._eavesdrop(message, metadata)
        for receiver in self._listeners[notice.kind].receivers(message, None):
            if (
                receiver.active
                and receiver.may_see_notice(notice)
                and not receiver.try_deliver(message, None, metadata, None)
            ):
                receiver.lost += 1

    def _eavesdrop(self, message: Message, metadata: ConnMetadata) -> None:
        """MON-1."""
        for monitor in list(self._monitors.values()):
            if not monitor.try_deliver(message, None, metadata, None):
                monitor.lost += 1
