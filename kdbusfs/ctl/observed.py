"""What a monitor saw: one message of the bus, of which kind it is, between whom, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Message, Notification


class Kind(StrEnum):
    """The kinds of messages, as they are chosen by --kind.

    A reply is a message with the cookie of a request; a signal goes to one connection, a broadcast to whoever has a
    match; a notification comes from the bus itself; everything else is a plain message.
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
"""What each notification is called."""


def kind_of(message: Message) -> Kind:
    """Which kind a message is of."""
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
    """A message as it was taken from the monitor's queue.

    parts: of the payload, each with its full size and what was kept of its bytes, None for zeros; descriptors: how many
    came along; received_ns: when it was taken, CLOCK_REALTIME; notification: what it says if it is one; raw: struct
    kdbus_msg with its items, in the pool; cost: about what it takes there and in memory, in bytes.
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
        """When it was sent, as the bus says; where the sender hides that, when it was taken.  CLOCK_REALTIME."""
        timestamp = self.message.metadata.timestamp
        return self.received_ns if timestamp is None else timestamp.realtime_ns

    @property
    def is_incomplete(self) -> bool:
        """Whether descriptors that belong to it could not be installed."""
        return bool(self.message.return_flags & c.RECV_RETURN_INCOMPLETE_FDS)

    def payload(self, limit: int) -> bytes:
        """The first `limit` bytes of the payload, as far as they were kept without a gap."""
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
    """`count` messages that found no room in the monitor's queue or pool, lost at this place."""

    count: int
