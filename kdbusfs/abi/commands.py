"""The commands of kdbus by their meaning, independent of the request numbers of an ABI."""

from __future__ import annotations

from typing import Final

BUS_MAKE: Final = 0
ENDPOINT_MAKE: Final = 1
ENDPOINT_UPDATE: Final = 2
HELLO: Final = 3
BYEBYE: Final = 4
UPDATE: Final = 5
SEND: Final = 6
RECV: Final = 7
FREE: Final = 8
NAME_ACQUIRE: Final = 9
NAME_RELEASE: Final = 10
LIST: Final = 11
CONN_INFO: Final = 12
BUS_CREATOR_INFO: Final = 13
MATCH_ADD: Final = 14
MATCH_REMOVE: Final = 15
COUNT: Final = 16

# Kinds of files.  A command is identified by the kind of file and the request number.
CONTROL_FILE: Final = 1
ENDPOINT_FILE: Final = 0


class Command:
    """What an ABI declares of a command for whoever reads it from a client (the channel).

    file: the kind of file that takes it; kind: one of the numbers above; number: of the request, 32 bits;
    name: as in the header, without KDBUS_CMD_;
    size: bytes of the fixed struct, which is also the least legal size; max_size: the greatest legal size;
    flags: mask of valid flags; flags_offset: of the flags in the struct;
    message_pointer: offset of the address of a message, 0: there is none; message_max: the greatest legal size of that;
    slice_offset_at: of a FREE, offset of the slice's offset; tells_flags_at: of what is stored: offered, unless that is
    0, then the return flags;
    tells_offset_at: offset in the struct that travels back of where a slice of the pool is, 0: not told; with
    `tells_offset_flag` only if the client has set that flag.
    """

    __slots__ = (
        "file",
        "flags",
        "flags_offset",
        "kind",
        "max_size",
        "message_max",
        "message_pointer",
        "name",
        "number",
        "offered",
        "size",
        "slice_offset_at",
        "tells_flags_at",
        "tells_offset_at",
        "tells_offset_flag",
    )

    def __init__(
        self,
        kind: int,
        number: int,
        name: str,
        size: int,
        max_size: int,
        flags: int,
        flags_offset: int,
        *,
        message_pointer: int = 0,
        message_max: int = 0,
        slice_offset_at: int = 0,
        tells_flags_at: int = 0,
        offered: int = 0,
        tells_offset_at: int = 0,
        tells_offset_flag: int = 0,
    ) -> None:
        self.file = CONTROL_FILE if kind == BUS_MAKE else ENDPOINT_FILE
        self.kind = kind
        self.number = number
        self.name = name
        self.size = size
        self.max_size = max_size
        self.flags = flags
        self.flags_offset = flags_offset
        self.message_pointer = message_pointer
        self.message_max = message_max
        self.tells_flags_at = tells_flags_at
        self.slice_offset_at = slice_offset_at
        self.offered = offered
        self.tells_offset_at = tells_offset_at
        self.tells_offset_flag = tells_offset_flag
