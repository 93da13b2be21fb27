"""A message as a monitor received it, and its kind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Message, Notification


class Kind(StrEnum):
    """The kinds of messages, selected by --kind.

    A reply carries the cookie of a request; a signal goes to one connection, a broadcast to all with a match; a
    notification comes from the bus itself; any other message is plain.
    """

    REQUEST = "request"
    REPLY = "reply"
    MESSAGE = "message"
    SIGNAL = "signal"
    BROADCAST = "broadcast"
    NOTIFICATION = "notification"


MESSAGE_FLAGS: Final = {
    c.MSG_EXPECT_REPLY: "expect-reply",
    c.MSG_NO_AUTO_START: "no-auto-start",
    c.MSG_SIGNAL: "signal",
}
NOTIFICATIONS: Final = {
    c.ITEM_NAME_ADD: "NameAdd",
    c.ITEM_NAME_REMOVE: "NameRemove",
    c.ITEM_NAME_CHANGE: "NameChange",
    c.ITEM_ID_ADD: "IdAdd",
    c.ITEM_ID_REMOVE: "IdRemove",
    c.ITEM_REPLY_TIMEOUT: "ReplyTimeout",
    c.ITEM_REPLY_DEAD: "ReplyDead",
}
"""Names of notifications, by item type."""


def kind_of(message: Message) -> Kind:
    """The kind of a message."""
    if message.src_id == c.SRC_ID_KERNEL:
        return Kind.NOTIFICATION
    if message.flags & c.MSG_EXPECT_REPLY:
        return Kind.REQUEST
    if message.dst_id == c.DST_ID_BROADCAST:
        return Kind.BROADCAST
    if message.flags & c.MSG_SIGNAL:
        return Kind.SIGNAL
    return Kind.REPLY if message.cookie_reply else Kind.MESSAGE


@dataclass(slots=True)
class Observed:
    """A message that the monitor received.

    parts: payload parts, each with its full size and the bytes that were kept, None for zeros; descriptors: number of
    passed descriptors; received_ns: time of RECV, CLOCK_REALTIME; notification: decoded, if it is one; raw: struct
    kdbus_msg with its items, in the pool; cost: bytes that it takes in the pool and in memory, approximately.
    """

    message: Message
    kind: Kind
    parts: list[tuple[int, bytes | memoryview | None]]
    descriptors: int
    received_ns: int
    notification: Notification | None
    raw: memoryview
    cost: int

    @property
    def size(self) -> int:
        """Bytes of payload that were sent."""
        return sum(size for size, _ in self.parts)

    @property
    def time_ns(self) -> int:
        """Time of SEND, or of RECV if the sender hides that.  CLOCK_REALTIME."""
        timestamp = self.message.metadata.timestamp
        return self.received_ns if timestamp is None else timestamp.realtime_ns

    @property
    def is_incomplete(self) -> bool:
        """Whether some of its descriptors could not be installed."""
        return bool(self.message.return_flags & c.RECV_RETURN_INCOMPLETE_FDS)

    def payload(self, limit: int) -> bytes:
        """The first `limit` bytes of the payload, up to the first byte that was not kept."""
        found: list[bytes] = []
        for size, kept in self.parts:
            piece = bytes(min(size, limit)) if kept is None else bytes(kept[:limit])
            found.append(piece)
            limit -= len(piece)
            if len(piece) < size:
                break
        return b"".join(found)


@dataclass(frozen=True, slots=True)
class Missing:
    """The bus dropped `count` messages here: the monitor's queue or pool was full."""

    count: int
