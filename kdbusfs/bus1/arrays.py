"""Arrays of a command in its client's memory."""

from __future__ import annotations

from errno import EFAULT, EMSGSIZE
from struct import Struct
from typing import TYPE_CHECKING, Final

from ..base.errors import AbandonedError, CommandError
from . import abi

if TYPE_CHECKING:
    from ..base.ports import Caller, Turn

_ADDRESS_END: Final = 1 << 56
"""Behind every address that any process can have."""
_VEC: Final = Struct("<QQ")
_COMPAT_VEC: Final = Struct("<II")
_LENGTH_MAX: Final = (1 << 63) - 1
_COMPAT_LENGTH_MAX: Final = (1 << 31) - 1
_UNITS_OF_A_READ: Final = 2
_AT_ONCE: Final = 4096
"""Ids that are read in one piece."""
_IDS_A_UNIT: Final = 32
"""So many are unpacked in a microsecond."""



def read(caller: Caller, address: int, size: int) -> bytes:
    """`size` bytes at `address`.  Raises CommandError(EFAULT); others may be served meanwhile."""
    if not size:
        return b""
    if address + size > _ADDRESS_END:
        raise CommandError(EFAULT, "outside of the address space")
    return caller.read(address, size)


def read_ids(caller: Caller, address: int, count: int, turn: Turn) -> list[int]:
    """As many of `count` u64 as can be read: who comes to the next one has an EFAULT (B1-SEND-3, B1-HAND-5)."""
    found: list[int] = []
    while len(found) < count:
        at = address + 8 * len(found)
        some = min(count - len(found), _AT_ONCE)
        try:
            found += Struct(f"<{some}Q").unpack(read(caller, at, 8 * some))
            turn.spend(_UNITS_OF_A_READ + some // _IDS_A_UNIT)
        except AbandonedError:
            raise
        except CommandError as error:
            if error.errno != EFAULT:
                raise
            break
    while len(found) < count:
        try:
            found.append(int.from_bytes(read(caller, address + 8 * len(found), 8), "little"))
        except AbandonedError:
            raise
        except CommandError:
            break
        turn.spend(_UNITS_OF_A_READ)
    return found


def read_all_ids(caller: Caller, address: int, count: int, turn: Turn) -> list[int]:
    """`count` u64.  Raises CommandError(EFAULT)."""
    found: list[int] = []
    while len(found) < count:
        some = min(count - len(found), _AT_ONCE)
        found += Struct(f"<{some}Q").unpack(read(caller, address + 8 * len(found), 8 * some))
        turn.spend(_UNITS_OF_A_READ + some // _IDS_A_UNIT)
    return found


def read_numbers(caller: Caller, address: int, count: int) -> list[int]:
    """`count` int32.  Raises CommandError(EFAULT)."""
    return list(Struct(f"<{count}i").unpack(read(caller, address, 4 * count)))


def read_vectors(caller: Caller, address: int, count: int) -> list[tuple[int, int]]:
    """The (address, size) of `count` struct iovec, without empty ones (B1-SEND-6).

    Raises CommandError: EFAULT, EMSGSIZE.
    """
    is_compat = caller.is_compat
    layout = _COMPAT_VEC if is_compat else _VEC
    longest = _COMPAT_LENGTH_MAX if is_compat else _LENGTH_MAX
    vectors: list[tuple[int, int]] = []
    total = 0
    for base, size in layout.iter_unpack(read(caller, address, layout.size * count)):
        if size > longest:
            raise CommandError(EMSGSIZE, "vector")
        total += size
        if total > abi.BYTES_MAX:
            raise CommandError(EMSGSIZE, "vectors together")
        if size:
            if not base or base + size > _ADDRESS_END:
                raise CommandError(EFAULT, "vector outside of the address space")
            vectors.append((base, size))
    return vectors
