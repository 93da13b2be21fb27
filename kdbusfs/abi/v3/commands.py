"""The command table of v3: for every request its sizes, its valid flags and where the generic members lie.

Sources: GEN-6, GEN-7, GEN-9, GEN-12, GEN-15.
"""

from __future__ import annotations

from typing import Final

from .. import commands as k
from .. import constants as n
from .. import limits
from . import constants as c
from .layouts import (
    CMD_FREE_OFFSET,
    CMD_RECV_MSG_OFFSET,
    CMD_SEND_MSG_ADDRESS_OFFSET,
    CMD_SEND_REPLY_OFFSET,
)


class Command(k.Command):
    """A command of v3.

    kernel_flags_word, return_flags_word: indices of u64 in the struct; offered goes into kernel_flags;
    resets_first: whether return_flags are cleared before anything else is looked at (GEN-12);
    keeps_offer: whether the struct that travels back of a success has kernel_flags as the client gave them (GEN-13,
    GEN-14).
    """

    __slots__ = ("keeps_offer", "kernel_flags_word", "resets_first", "return_flags_word")

    def __init__(
        self,
        kind: int,
        number: int,
        name: str,
        size: int,
        max_size: int,
        flags: int,
        flags_offset: int = 8,
        *,
        resets_first: bool = False,
        keeps_offer: bool = False,
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
            max_size,
            flags,
            flags_offset,
            message_pointer=message_pointer,
            message_max=limits.MSG_MAX_SIZE,
            tells_flags_at=flags_offset + 8,
            slice_offset_at=slice_offset_at,
            offered=flags | n.FLAG_KERNEL,
            tells_offset_at=tells_offset_at,
            tells_offset_flag=tells_offset_flag,
        )
        self.kernel_flags_word = flags_offset // 8 + 1
        # SEND has kernel_msg_flags between the two.
        self.return_flags_word = self.kernel_flags_word + (2 if kind == k.SEND else 1)
        self.resets_first = resets_first
        self.keeps_offer = keeps_offer


_NAME_MAX: Final = 32 + 16 + limits.NAME_MAX_LEN + 1
# The reference forgets the item header in this limit (GEN-8); names of 240 to 255 characters can be asked for here.
_INFO_MAX: Final = 56 + 16 + limits.NAME_MAX_LEN + 1
_ALL: Final = n.ATTACH_ALL

BUS_MAKE: Final = Command(k.BUS_MAKE, c.CMD_BUS_MAKE, "BUS_MAKE", 32, limits.MAKE_MAX_SIZE, 0x3)
ENDPOINT_MAKE: Final = Command(
    k.ENDPOINT_MAKE, c.CMD_ENDPOINT_MAKE, "ENDPOINT_MAKE", 32, limits.MAKE_MAX_SIZE, 0x3, resets_first=True
)
HELLO: Final = Command(k.HELLO, c.CMD_HELLO, "HELLO", 104, limits.HELLO_MAX_SIZE, 0xF, keeps_offer=True)
SEND: Final = Command(
    k.SEND,
    c.CMD_SEND,
    "SEND",
    72,
    limits.SEND_MAX_SIZE,
    n.SEND_SYNC_REPLY,
    message_pointer=CMD_SEND_MSG_ADDRESS_OFFSET,
    tells_offset_at=CMD_SEND_REPLY_OFFSET,
    tells_offset_flag=n.SEND_SYNC_REPLY,
)
RECV: Final = Command(
    k.RECV, c.CMD_RECV, "RECV", 72, limits.RECV_MAX_SIZE, 0x7, tells_offset_at=CMD_RECV_MSG_OFFSET
)
FREE: Final = Command(k.FREE, c.CMD_FREE, "FREE", 40, limits.CMD_MAX_SIZE, 0, 16, slice_offset_at=CMD_FREE_OFFSET)
NAME_ACQUIRE: Final = Command(
    k.NAME_ACQUIRE, c.CMD_NAME_ACQUIRE, "NAME_ACQUIRE", 32, _NAME_MAX, 0x7, resets_first=True, keeps_offer=True
)
NAME_RELEASE: Final = Command(
    k.NAME_RELEASE, c.CMD_NAME_RELEASE, "NAME_RELEASE", 32, _NAME_MAX, 0, resets_first=True
)
NAME_LIST: Final = Command(k.LIST, c.CMD_NAME_LIST, "NAME_LIST", 48, limits.CMD_MAX_SIZE, 0xF)
CONN_INFO: Final = Command(k.CONN_INFO, c.CMD_CONN_INFO, "CONN_INFO", 56, _INFO_MAX, _ALL)
CONN_UPDATE: Final = Command(k.UPDATE, c.CMD_CONN_UPDATE, "CONN_UPDATE", 32, limits.UPDATE_MAX_SIZE, 0)
BUS_CREATOR_INFO: Final = Command(
    k.BUS_CREATOR_INFO, c.CMD_BUS_CREATOR_INFO, "BUS_CREATOR_INFO", 56, _INFO_MAX, _ALL
)
ENDPOINT_UPDATE: Final = Command(
    k.ENDPOINT_UPDATE, c.CMD_ENDPOINT_UPDATE, "ENDPOINT_UPDATE", 32, limits.UPDATE_MAX_SIZE, 0
)
MATCH_ADD: Final = Command(
    k.MATCH_ADD, c.CMD_MATCH_ADD, "MATCH_ADD", 40, limits.MATCH_MAX_SIZE, n.MATCH_REPLACE, 16
)
MATCH_REMOVE: Final = Command(k.MATCH_REMOVE, c.CMD_MATCH_REMOVE, "MATCH_REMOVE", 40, 40, 0, 16)

_TABLE: Final = (
    BUS_MAKE,
    ENDPOINT_MAKE,
    HELLO,
    SEND,
    RECV,
    FREE,
    NAME_ACQUIRE,
    NAME_RELEASE,
    NAME_LIST,
    CONN_INFO,
    CONN_UPDATE,
    BUS_CREATOR_INFO,
    ENDPOINT_UPDATE,
    MATCH_ADD,
    MATCH_REMOVE,
)

COMMANDS: Final[dict[int, Command]] = {command.number: command for command in _TABLE}
"""Every command but BYEBYE, which takes no argument, by request number."""
