"""The notifications of a bus that are not delivered yet, in the order of their events (NOTE-6)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..abi import constants as c
from ..abi.values import Notice
from .message import Message

if TYPE_CHECKING:
    from .connection import Connection
    from .match import Match
    from .metadata import ConnMetadata


class Round:
    """A notification that is being delivered, with its remaining receivers; the lists are consumed from their end.

    listeners: connections with the matches that may accept; they are evaluated when it is their turn, so that the
    matches of that moment count (MATCH-1).  served: listeners that have got it.
    """

    __slots__ = ("listeners", "message", "metadata", "monitors", "receiver", "served")

    def __init__(self, message: Message, metadata: ConnMetadata, receiver: Connection | None) -> None:
        self.message = message
        self.metadata = metadata
        self.receiver = receiver
        self.monitors: list[Connection] = []
        self.listeners: list[tuple[Connection, list[Match]]] = []
        self.served: set[Connection] = set()


class Notifications:
    """The pending notifications of one bus.  `notify.flush` delivers them.

    pending: oldest first; current: the one that is being delivered; noted, done: how many there ever were, and how many
    of them are delivered; is_over: the bus is ending, and nothing is delivered any more.
    """

    __slots__ = ("current", "done", "is_over", "noted", "pending")

    def __init__(self) -> None:
        self.pending: deque[Message] = deque()
        self.current: Round | None = None
        self.noted = 0
        self.done = 0
        self.is_over = False

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

    def drop(self) -> None:
        """The bus is ending: drop everything."""
        self.is_over = True
        self.pending.clear()
        self.current = None
        self.done = self.noted

    def _note(self, message: Message) -> None:
        if not self.is_over:
            self.noted += 1
            self.pending.append(message)
