"""Notifications of the bus: collected while a command runs, delivered before it is answered (NOTE-1 to NOTE-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..abi import constants as c
from ..abi.values import Notice
from .message import Message
from .metadata import ConnMetadata

if TYPE_CHECKING:
    from .bus import Bus


class Notifier:
    """The pending notifications of one bus, in the order of their events (NOTE-6)."""

    __slots__ = ("_bus", "_pending")

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
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
        bus = self._bus
        message.seqnum = bus.domain.next_seqnum()
        notice = message.notice
        assert notice is not None
        receivers = bus.listeners.get(notice.kind)
        if not receivers and not bus.monitors and message.dst_id == c.DST_ID_BROADCAST:
            return
        metadata = ConnMetadata()
        metadata.collect(c.ATTACH_TIMESTAMP, None, bus.domain.host.clock, message.seqnum)
        if message.dst_id == c.DST_ID_BROADCAST:
            bus.broadcast_notification(message, metadata)
            return
        receiver = bus.connections.get(message.dst_id)
        if receiver is not None:
            bus.eavesdrop_notification(message, metadata)
            receiver.try_deliver(message, None, metadata, source=None)
