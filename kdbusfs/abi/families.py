"""The families that a mount serves, and which of them a file speaks that has not been pinned to one yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..base.words import align8, u64
from .family import Family
from .last.family import Last
from .v3.family import V3

if TYPE_CHECKING:
    from ..base.call import Call

FAMILIES: Final[tuple[Family, ...]] = (V3(), Last())

SHARED_BUS_MAKE: Final = 0x40189500
"""BUS_MAKE of kdbus v1 as well as of the last kdbus: struct and items tell which one is meant (L-1)."""

_SIZE: Final = 24
_FLAG_NEGOTIATE: Final = 1 << 63
_ITEM_HEADER: Final = 16


def is_bus_make_of_v1(data: bytes) -> bool:
    """Whose BUS_MAKE the struct in `data` is.  Where nothing tells, most programs mean the last kdbus.

    The items are walked without being judged: whoever turns out to be meant does that.
    """
    length = len(data)
    if length < _SIZE or u64(data, 8) & _FLAG_NEGOTIATE:
        return False
    at = _SIZE
    while length - at >= _ITEM_HEADER:
        size = u64(data, at)
        kind = u64(data, at + 8)
        if (kind == 7 and size == 32) or kind in (0xB, 0xC):
            return False  # BLOOM_PARAMETER, MAKE_NAME, ATTACH_FLAGS_SEND
        if (kind == 5 and size == 32) or kind == 9:
            return True  # BLOOM_PARAMETER and MAKE_NAME of v1
        if size < _ITEM_HEADER or size > length - at:
            return False
        at += align8(size)
    return False


def find(file_kind: int, call: Call) -> Family | None:
    """The family whose command `call` is, on a file of `file_kind` (`commands.CONTROL_FILE`, ...) that speaks none yet.

    The whole request tells.  What two families number alike is told apart by the kind of file, or by the family that
    was there first.  A command that none has on such a file belongs to who has it on another.
    """
    number = call.number
    if number == SHARED_BUS_MAKE and is_bus_make_of_v1(call.data):
        for family in FAMILIES:
            if family.name == "v1":
                return family
    for family in FAMILIES:
        if family.find(number) >= 0:
            return family
    return None
