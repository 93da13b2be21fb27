"""The command table of the last ABI: for every request its size, its valid flags and its items (L-7, L-18)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .. import commands as k
from .. import constants as n
from . import constants as c
from .items import Accepted
from .layouts import (
    CMD_FLAGS_OFFSET,
    CMD_FREE_OFFSET,
    CMD_RECV_MSG_OFFSET,
    CMD_RETURN_FLAGS_OFFSET,
    CMD_SEND_MSG_ADDRESS_OFFSET,
    CMD_SEND_REPLY_OFFSET,
)

MAX_SIZE: Final = 32768
"""Of every command and every message (L-10)."""


class Command(k.Command):
    """A command of the last ABI; accepted: its items; mandatory: kinds that have to be there unless it negotiates."""

    __slots__ = ("accepted", "mandatory")

    def __init__(
        self,
        kind: int,
        number: int,
        name: str,
        size: int,
        flags: int = 0,
        *,
        once: Iterable[int] = (),
        many: Iterable[int] = (),
        mandatory: tuple[int, ...] = (),
        message_pointer: int = 0,
        slice_offset_at: int = 0,
        tells_offset_at: int = 0,
        tells_offset_flag: int = 0,
    ) -> None:
        super().__init__(
            kind,
            number,
            name,
            size,
            MAX_SIZE,
            flags | c.FLAG_NEGOTIATE,
            CMD_FLAGS_OFFSET,
            message_pointer=message_pointer,
            message_max=MAX_SIZE,
            tells_flags_at=CMD_RETURN_FLAGS_OFFSET,
            slice_offset_at=slice_offset_at,
            tells_offset_at=tells_offset_at,
            tells_offset_flag=tells_offset_flag,
        )
        self.accepted = Accepted((*once, *mandatory), many)
        self.mandatory = mandatory


_MAKE: Final = n.MAKE_ACCESS_GROUP | n.MAKE_ACCESS_WORLD
_POLICY: Final = (n.ITEM_NAME, n.ITEM_POLICY_ACCESS)

BUS_MAKE: Final = Command(
    k.BUS_MAKE,
    c.CMD_BUS_MAKE,
    "BUS_MAKE",
    24,
    _MAKE,
    once=(n.ITEM_ATTACH_FLAGS_SEND,),
    mandatory=(n.ITEM_MAKE_NAME, n.ITEM_BLOOM_PARAMETER),
)
ENDPOINT_MAKE: Final = Command(
    k.ENDPOINT_MAKE, c.CMD_ENDPOINT_MAKE, "ENDPOINT_MAKE", 24, _MAKE, mandatory=(n.ITEM_MAKE_NAME,)
)
ENDPOINT_UPDATE: Final = Command(k.ENDPOINT_UPDATE, c.CMD_ENDPOINT_UPDATE, "ENDPOINT_UPDATE", 24, many=_POLICY)
HELLO: Final = Command(
    k.HELLO,
    c.CMD_HELLO,
    "HELLO",
    96,
    n.HELLO_ACCEPT_FD | n.HELLO_SPECIAL,
    once=(n.ITEM_NAME, n.ITEM_CREDS, n.ITEM_PIDS, n.ITEM_SECLABEL, n.ITEM_CONN_DESCRIPTION),
    many=(n.ITEM_POLICY_ACCESS,),
)
UPDATE: Final = Command(
    k.UPDATE,
    c.CMD_UPDATE,
    "UPDATE",
    24,
    once=(n.ITEM_ATTACH_FLAGS_SEND, n.ITEM_ATTACH_FLAGS_RECV),
    many=_POLICY,
)
BYEBYE: Final = Command(k.BYEBYE, c.CMD_BYEBYE, "BYEBYE", 24)
FREE: Final = Command(k.FREE, c.CMD_FREE, "FREE", 32, slice_offset_at=CMD_FREE_OFFSET)
CONN_INFO: Final = Command(k.CONN_INFO, c.CMD_CONN_INFO, "CONN_INFO", 56, once=(n.ITEM_NAME,))
BUS_CREATOR_INFO: Final = Command(k.BUS_CREATOR_INFO, c.CMD_BUS_CREATOR_INFO, "BUS_CREATOR_INFO", 56)
LIST: Final = Command(k.LIST, c.CMD_LIST, "LIST", 40, 0xF)
SEND: Final = Command(
    k.SEND,
    c.CMD_SEND,
    "SEND",
    56,
    n.SEND_SYNC_REPLY,
    once=(n.ITEM_CANCEL_FD,),
    message_pointer=CMD_SEND_MSG_ADDRESS_OFFSET,
    tells_offset_at=CMD_SEND_REPLY_OFFSET,
    tells_offset_flag=n.SEND_SYNC_REPLY,
)
RECV: Final = Command(
    k.RECV,
    c.CMD_RECV,
    "RECV",
    64,
    n.RECV_PEEK | n.RECV_DROP | n.RECV_USE_PRIORITY,
    tells_offset_at=CMD_RECV_MSG_OFFSET,
)
NAME_ACQUIRE: Final = Command(
    k.NAME_ACQUIRE,
    c.CMD_NAME_ACQUIRE,
    "NAME_ACQUIRE",
    24,
    n.NAME_REPLACE_EXISTING | n.NAME_ALLOW_REPLACEMENT | n.NAME_QUEUE,
    mandatory=(n.ITEM_NAME,),
)
NAME_RELEASE: Final = Command(k.NAME_RELEASE, c.CMD_NAME_RELEASE, "NAME_RELEASE", 24, mandatory=(n.ITEM_NAME,))
MATCH_ADD: Final = Command(
    k.MATCH_ADD,
    c.CMD_MATCH_ADD,
    "MATCH_ADD",
    32,
    n.MATCH_REPLACE,
    many=(
        n.ITEM_BLOOM_MASK,
        n.ITEM_NAME,
        n.ITEM_ID,
        n.ITEM_DST_ID,
        n.ITEM_NAME_ADD,
        n.ITEM_NAME_REMOVE,
        n.ITEM_NAME_CHANGE,
        n.ITEM_ID_ADD,
        n.ITEM_ID_REMOVE,
    ),
)
MATCH_REMOVE: Final = Command(k.MATCH_REMOVE, c.CMD_MATCH_REMOVE, "MATCH_REMOVE", 32)

MESSAGE: Final = Accepted(
    once=(n.ITEM_FDS, n.ITEM_BLOOM_FILTER, n.ITEM_DST_NAME),
    many=(n.ITEM_PAYLOAD_VEC, n.ITEM_PAYLOAD_MEMFD),
)
"""The items of a message (L-52)."""

COMMANDS: Final[dict[int, Command]] = {
    command.number: command
    for command in (
        BUS_MAKE,
        ENDPOINT_MAKE,
        ENDPOINT_UPDATE,
        HELLO,
        UPDATE,
        BYEBYE,
        FREE,
        CONN_INFO,
        BUS_CREATOR_INFO,
        LIST,
        SEND,
        RECV,
        NAME_ACQUIRE,
        NAME_RELEASE,
        MATCH_ADD,
        MATCH_REMOVE,
    )
}
"""Every command by request number."""
