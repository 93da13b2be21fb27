"""Items: the walk over a client's item list with its checks, and the making of items for a pool.

Sources: ITEM-1 to ITEM-12; kdbus.txt section on items.
"""

from __future__ import annotations

from errno import EINVAL
from struct import Struct
from typing import Final

from ...base.errors import CommandError
from ...base.words import U64, u64
from .. import constants as c
from ..items import CHECKS as _COMMON_CHECKS
from ..items import NUMBERS, STRINGS, check_exact
from ..items import RawItem as RawItem
from ..items import make_item as make_item
from ..values import Item
from .layouts import CREDS, ITEM_HEADER_SIZE, NAME_CHANGE, VEC, VEC_ITEM_SIZE

_CHECKS = {**_COMMON_CHECKS, c.ITEM_CREDS: check_exact(CREDS.size)}
_NUMBERS: Final = {**NUMBERS, c.ITEM_CREDS: CREDS}


def check_items(data: bytes, start: int, end: int) -> None:
    """The items in `data[start:end]`, checked one after the other (ITEM-1 to ITEM-11).  Unknown types pass (ITEM-3).

    Raises CommandError: EINVAL, EBADF (negative memfd), ENAMETOOLONG (names of buses, endpoints, descriptions).
    """
    at = start
    while at < end:
        if end - at < ITEM_HEADER_SIZE:
            raise CommandError(EINVAL, "item header cut off")
        size = u64(data, at)
        if size < ITEM_HEADER_SIZE or size > end - at:
            raise CommandError(EINVAL, "item does not fit")
        kind = u64(data, at + 8)
        # What nearly every message has: a vector of the right length that is not empty.
        if kind != c.ITEM_PAYLOAD_VEC or size != VEC_ITEM_SIZE or not u64(data, at + ITEM_HEADER_SIZE):
            check = _CHECKS.get(kind)
            if check is not None:
                check(data[at + ITEM_HEADER_SIZE : at + size])
        at += (size + 7) & ~7
    # An unpadded last item is fine: a walk in steps of 8 that ends past `end` ends at ALIGN8 of it (ITEM-1).


def parse_items(data: bytes, start: int, end: int) -> list[RawItem]:
    """The items in `data[start:end]`, after `check_items`, which raises what is wrong with them."""
    check_items(data, start, end)
    items: list[RawItem] = []
    at = start
    while at < end:
        size = u64(data, at)
        items.append((u64(data, at + 8), data[at + ITEM_HEADER_SIZE : at + size]))
        at += (size + 7) & ~7
    return items


_NAME_CHANGES: Final = frozenset((c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE))
_OTHERS: Final = frozenset((c.ITEM_BLOOM_MASK, c.ITEM_OWNED_NAME, *_CHECKS))
"""Types whose payload goes up as it is, or not at all."""


def _decode(kind: int, payload: bytes) -> Item:
    """The item in the core's vocabulary, which v3 shares."""
    size = len(payload)
    if kind in STRINGS:
        return Item(kind, size, payload[:-1])
    layout = _NUMBERS.get(kind)
    if layout is not None:
        return Item(kind, size, b"", layout.unpack(payload) if size == layout.size else ())
    if kind == c.ITEM_FDS:
        return Item(kind, size, b"", Struct(f"<{size // 4}i").unpack(payload))
    if kind == c.ITEM_BLOOM_FILTER:
        return Item(kind, size, payload[8:], U64.unpack_from(payload))
    if kind in _NAME_CHANGES:
        # Compiled, a slice may not end before it begins: without a name there is no NUL to leave out.
        text = payload[NAME_CHANGE.size : -1] if size > NAME_CHANGE.size else b""
        return Item(kind, size, text, NAME_CHANGE.unpack_from(payload), has_text=size > NAME_CHANGE.size)
    return Item(kind if kind in _OTHERS else c.ITEM_UNKNOWN, size, payload)


def decode_items(data: bytes, start: int, end: int) -> list[Item]:
    """The items in `data[start:end]` as the core knows them, after `check_items`, which raises."""
    check_items(data, start, end)
    items: list[Item] = []
    at = start
    while at < end:
        size = u64(data, at)
        kind = u64(data, at + 8)
        if kind == c.ITEM_PAYLOAD_VEC:  # what nearly every message has
            vector = (u64(data, at + 16), u64(data, at + 24))
            items.append(Item(kind, VEC.size, b"", vector))
        else:
            items.append(_decode(kind, data[at + ITEM_HEADER_SIZE : at + size]))
        at += (size + 7) & ~7
    return items
