"""Items: the walk over a client's list, in which a command says which kinds it accepts (L-12, L-19 to L-23)."""

from __future__ import annotations

from collections.abc import Iterable
from errno import EINVAL
from struct import Struct
from typing import Final

from ...base.errors import CommandError
from ...base.identity import NO_ID
from ...base.words import U64, u64
from .. import constants as n
from ..items import CHECKS, NUMBERS, STRINGS, Check, check_exact, check_multiple
from ..items import RawItem as RawItem
from ..items import make_item as make_item
from ..values import Item
from . import constants as c
from .layouts import CREDS, ITEM_HEADER_SIZE, NAME_CHANGE, PIDS, VEC, VEC_ITEM_SIZE

_CHECKS: Final[dict[int, Check]] = {
    **CHECKS,
    n.ITEM_CREDS: check_exact(CREDS.size),
    n.ITEM_PIDS: check_exact(PIDS.size),  # L-22
    n.ITEM_NEGOTIATE: check_multiple(8),  # L-15
    n.ITEM_DST_ID: check_exact(8),
}
_NUMBERS: Final[dict[int, Struct]] = {**NUMBERS, n.ITEM_DST_ID: U64}
_NAME_CHANGES: Final = frozenset((n.ITEM_NAME_ADD, n.ITEM_NAME_REMOVE, n.ITEM_NAME_CHANGE))

NUMBER_OF: Final[dict[int, int]] = {kind: number for number, kind in c.NEUTRAL.items()}
"""The numbers of the kinds that the core numbers otherwise."""


class Accepted:
    """Which kinds a command accepts, once or any number of times (L-12).  NEGOTIATE is among them.

    kinds: what the core calls each number that is accepted.
    """

    __slots__ = ("kinds", "once")

    def __init__(self, once: Iterable[int] = (), many: Iterable[int] = ()) -> None:
        self.once = frozenset((n.ITEM_NEGOTIATE, *once))
        self.kinds = {NUMBER_OF.get(kind, kind): kind for kind in (*self.once, *many)}


class Decoded:
    """What a list of items says.

    asked: where the types lie that NEGOTIATE asks about: offset and end in the struct, or 0 and 0.
    """

    __slots__ = ("asked_at", "asked_end", "items")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.asked_at = 0
        self.asked_end = 0


def decode_items(data: bytes, start: int, end: int, accepted: Accepted) -> Decoded:
    """The items in `data[start:end]` as the core knows them, each checked before the next one is looked at (L-12).

    Raises CommandError: EINVAL, EBADF (negative memfd), ENAMETOOLONG (names of buses, endpoints, descriptions).
    """
    found = Decoded()
    items = found.items
    seen: set[int] = set()
    kinds = accepted.kinds
    at = start
    while at < end:
        if end - at < ITEM_HEADER_SIZE:
            raise CommandError(EINVAL, "item header cut off")
        size = u64(data, at)
        if size < ITEM_HEADER_SIZE or size > end - at:
            raise CommandError(EINVAL, "item does not fit")
        kind = kinds.get(u64(data, at + 8), n.ITEM_UNKNOWN)
        if kind == n.ITEM_PAYLOAD_VEC and size == VEC_ITEM_SIZE and u64(data, at + ITEM_HEADER_SIZE):
            # What nearly every message has.
            items.append(Item(kind, VEC.size, b"", (u64(data, at + 16), u64(data, at + 24))))
        else:
            items.append(_decode(kind, data[at + ITEM_HEADER_SIZE : at + size]))
            if kind in accepted.once:
                if kind in seen:
                    raise CommandError(EINVAL, "item given twice")
                seen.add(kind)
            if kind == n.ITEM_NEGOTIATE:
                found.asked_at, found.asked_end = at + ITEM_HEADER_SIZE, at + size
        at += (size + 7) & ~7
    return found


def _decode(kind: int, payload: bytes) -> Item:
    """Raises CommandError for a kind that is not accepted, and for a payload of the wrong shape."""
    if kind == n.ITEM_UNKNOWN:
        raise CommandError(EINVAL, "item that this command does not take")
    check = _CHECKS.get(kind)
    if check is not None:
        check(payload)
    size = len(payload)
    if kind in STRINGS:
        return Item(kind, size, payload[:-1])
    if kind == n.ITEM_CREDS:
        return Item(kind, size, b"", tuple(_id(value) for value in CREDS.unpack(payload)))
    layout = _NUMBERS.get(kind)
    if layout is not None:
        return Item(kind, size, b"", layout.unpack(payload))
    if kind == n.ITEM_FDS:
        return Item(kind, size, b"", Struct(f"<{size // 4}i").unpack(payload))
    if kind == n.ITEM_BLOOM_FILTER:
        return Item(kind, size, payload[8:], U64.unpack_from(payload))
    if kind in _NAME_CHANGES:
        # Compiled, a slice may not end before it begins: without a name there is no NUL to leave out.
        text = payload[NAME_CHANGE.size : -1] if size > NAME_CHANGE.size else b""
        return Item(kind, size, text, NAME_CHANGE.unpack_from(payload), has_text=size > NAME_CHANGE.size)
    return Item(kind, size, payload)


def _id(value: int) -> int:
    """A u64 uid or gid of CREDS: its lower half counts, and 0xFFFFFFFF alone is "none"; all ones are no id (L-20)."""
    lower = value & 0xFFFFFFFF
    return value if lower == NO_ID else lower
