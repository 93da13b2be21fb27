"""The command table: for every ioctl its sizes, its valid flags and where the generic fields lie.

Sources: GEN-6, GEN-7, GEN-9, GEN-12, GEN-15.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from . import constants as c
from . import limits
from .layouts import U64


@dataclass(frozen=True, slots=True)
class Command:
    """What every command declares.

    number: the ioctl number; name: as in kdbus.h, without KDBUS_CMD_;
    size: bytes of the fixed struct, which is also the least legal size; max_size: the greatest legal size;
    flags: mask of valid flags; flags_offset, kernel_flags_offset, return_flags_offset: of the generic members;
    copies_out: whether the fixed struct travels back with the answer (`_IOWR`);
    kernel_flags_word, return_flags_word: the same two as indices of u64 in the struct;
    offered, offer: what kernel_flags are set to, as a number and in bytes.
    """

    number: int
    name: str
    size: int
    max_size: int
    flags: int
    flags_offset: int
    copies_out: bool
    kernel_flags_offset: int = field(init=False)
    return_flags_offset: int = field(init=False)
    kernel_flags_word: int = field(init=False)
    return_flags_word: int = field(init=False)
    offered: int = field(init=False)
    offer: bytes = field(init=False)

    def __post_init__(self) -> None:
        # SEND has kernel_msg_flags between the two.
        to_return_flags = 24 if self.number == c.CMD_SEND else 16
        object.__setattr__(self, "kernel_flags_offset", self.flags_offset + 8)
        object.__setattr__(self, "return_flags_offset", self.flags_offset + to_return_flags)
        object.__setattr__(self, "kernel_flags_word", self.kernel_flags_offset // 8)
        object.__setattr__(self, "return_flags_word", self.return_flags_offset // 8)
        object.__setattr__(self, "offered", self.flags | c.FLAG_KERNEL)
        object.__setattr__(self, "offer", U64.pack(self.offered))


_NAME_MAX: Final = 32 + 16 + limits.NAME_MAX_LEN + 1
# The reference forgets the item header in this limit (GEN-8); names of 240 to 255 characters can be asked for here.
_INFO_MAX: Final = 56 + 16 + limits.NAME_MAX_LEN + 1

_TABLE: Final = (
    Command(c.CMD_BUS_MAKE, "BUS_MAKE", 32, limits.MAKE_MAX_SIZE, 0x3, 8, False),
    Command(c.CMD_ENDPOINT_MAKE, "ENDPOINT_MAKE", 32, limits.MAKE_MAX_SIZE, 0x3, 8, False),
    Command(c.CMD_HELLO, "HELLO", 104, limits.HELLO_MAX_SIZE, 0xF, 8, True),
    Command(c.CMD_SEND, "SEND", 72, limits.SEND_MAX_SIZE, c.SEND_SYNC_REPLY, 8, True),
    Command(c.CMD_RECV, "RECV", 72, limits.RECV_MAX_SIZE, 0x7, 8, True),
    Command(c.CMD_FREE, "FREE", 40, limits.CMD_MAX_SIZE, 0, 16, False),
    Command(c.CMD_NAME_ACQUIRE, "NAME_ACQUIRE", 32, _NAME_MAX, 0x7, 8, True),
    Command(c.CMD_NAME_RELEASE, "NAME_RELEASE", 32, _NAME_MAX, 0, 8, False),
    Command(c.CMD_NAME_LIST, "NAME_LIST", 48, limits.CMD_MAX_SIZE, 0xF, 8, True),
    Command(c.CMD_CONN_INFO, "CONN_INFO", 56, _INFO_MAX, c.ATTACH_ALL, 8, True),
    Command(c.CMD_CONN_UPDATE, "CONN_UPDATE", 32, limits.UPDATE_MAX_SIZE, 0, 8, False),
    Command(c.CMD_BUS_CREATOR_INFO, "BUS_CREATOR_INFO", 56, _INFO_MAX, c.ATTACH_ALL, 8, True),
    Command(c.CMD_ENDPOINT_UPDATE, "ENDPOINT_UPDATE", 32, limits.UPDATE_MAX_SIZE, 0, 8, False),
    Command(c.CMD_MATCH_ADD, "MATCH_ADD", 40, limits.MATCH_MAX_SIZE, c.MATCH_REPLACE, 16, False),
    Command(c.CMD_MATCH_REMOVE, "MATCH_REMOVE", 40, 40, 0, 16, False),
)

COMMANDS: Final[dict[int, Command]] = {command.number: command for command in _TABLE}
"""Every command but BYEBYE, which takes no argument, by ioctl number."""
