"""Items: the walk over a client's item list with its checks, and the making of items for a pool.

Sources: ITEM-1 to ITEM-12; kdbus.txt section on items.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EINVAL, ENAMETOOLONG
from struct import Struct
from typing import Final

from ...base.errors import CommandError
from ...base.words import I32, U64, align8, u64
from .. import constants as c
from ..limits import SYSNAME_MAX_LEN
from ..values import Item
from .layouts import (
    BLOOM_PARAMETER,
    CREDS,
    ID_CHANGE,
    ITEM_HEADER,
    ITEM_HEADER_SIZE,
    MEMFD,
    NAME_CHANGE,
    PIDS,
    POLICY_ACCESS,
    VEC,
    VEC_ITEM_SIZE,
)

RawItem = tuple[int, bytes]
"""One item of a client's list: its type and its payload without header and padding."""

_SYSNAME_ANYWHERE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_SYSNAME_INSIDE = _SYSNAME_ANYWHERE | frozenset(b"-.")


def _check_exact(size: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) != size:
            raise CommandError(EINVAL, f"payload of {len(payload)} bytes, {size} expected")

    return check


def _check_multiple(unit: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) % unit:
            raise CommandError(EINVAL, f"payload of {len(payload)} bytes is no multiple of {unit}")

    return check


def _check_vec(payload: bytes) -> None:
    if len(payload) != VEC.size or VEC.unpack(payload)[0] == 0:
        raise CommandError(EINVAL, "vector of wrong length or size 0")


def _check_memfd(payload: bytes) -> None:
    if len(payload) != MEMFD.size:
        raise CommandError(EINVAL, "memfd item of wrong length")
    _, size, fd, _ = MEMFD.unpack(payload)
    if size == 0:
        raise CommandError(EINVAL, "memfd of size 0")
    if fd < 0:
        raise CommandError(EBADF, "negative memfd")


def _check_at_least(size: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) < size:
            raise CommandError(EINVAL, f"payload of {len(payload)} bytes, at least {size} expected")

    return check


def _check_string(payload: bytes) -> None:
    if not payload or payload.find(0) != len(payload) - 1:
        raise CommandError(EINVAL, "not one NUL-terminated string")


def _check_sysname(payload: bytes) -> None:
    if len(payload) < 2:
        raise CommandError(EINVAL, "empty name")
    if len(payload) > SYSNAME_MAX_LEN + 1:
        raise CommandError(ENAMETOOLONG, "name of more than 63 characters")
    _check_string(payload)
    name = payload[:-1]
    if (
        name[0] not in _SYSNAME_ANYWHERE
        or name[-1] not in _SYSNAME_ANYWHERE
        or not _SYSNAME_INSIDE.issuperset(name)
    ):
        raise CommandError(EINVAL, "character that a name may not have there")


def _check_name_change(payload: bytes) -> None:
    if len(payload) < 32:
        raise CommandError(EINVAL, "name change of wrong length")
    if len(payload) > 32:
        _check_string(payload[32:])


_CHECKS: dict[int, Callable[[bytes], None]] = {
    c.ITEM_PAYLOAD_VEC: _check_vec,  # ITEM-4
    c.ITEM_PAYLOAD_OFF: _check_vec,
    c.ITEM_PAYLOAD_MEMFD: _check_memfd,  # ITEM-5
    c.ITEM_FDS: _check_multiple(4),  # ITEM-6
    c.ITEM_CANCEL_FD: _check_exact(4),
    c.ITEM_BLOOM_PARAMETER: _check_exact(16),  # ITEM-7
    c.ITEM_BLOOM_FILTER: _check_at_least(8),
    c.ITEM_MAKE_NAME: _check_sysname,  # ITEM-8
    c.ITEM_CONN_DESCRIPTION: _check_sysname,
    c.ITEM_ATTACH_FLAGS_SEND: _check_exact(8),  # ITEM-9
    c.ITEM_ATTACH_FLAGS_RECV: _check_exact(8),
    c.ITEM_ID: _check_exact(8),
    c.ITEM_TIMESTAMP: _check_exact(24),
    c.ITEM_CREDS: _check_exact(32),
    c.ITEM_AUDIT: _check_exact(8),
    c.ITEM_POLICY_ACCESS: _check_exact(24),
    c.ITEM_AUXGROUPS: _check_multiple(4),
    c.ITEM_NAME: _check_string,  # ITEM-10
    c.ITEM_DST_NAME: _check_string,
    c.ITEM_PID_COMM: _check_string,
    c.ITEM_TID_COMM: _check_string,
    c.ITEM_EXE: _check_string,
    c.ITEM_CMDLINE: _check_string,
    c.ITEM_CGROUP: _check_string,
    c.ITEM_SECLABEL: _check_string,
    c.ITEM_NAME_ADD: _check_name_change,  # ITEM-11
    c.ITEM_NAME_REMOVE: _check_name_change,
    c.ITEM_NAME_CHANGE: _check_name_change,
    c.ITEM_ID_ADD: _check_exact(16),
    c.ITEM_ID_REMOVE: _check_exact(16),
    c.ITEM_REPLY_TIMEOUT: _check_exact(0),
    c.ITEM_REPLY_DEAD: _check_exact(0),
}


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


_STRINGS: Final = frozenset(
    (
        c.ITEM_MAKE_NAME,
        c.ITEM_CONN_DESCRIPTION,
        c.ITEM_NAME,
        c.ITEM_DST_NAME,
        c.ITEM_SECLABEL,
        c.ITEM_PID_COMM,
        c.ITEM_TID_COMM,
        c.ITEM_EXE,
        c.ITEM_CMDLINE,
        c.ITEM_CGROUP,
    )
)
_NUMBERS: Final = {
    c.ITEM_PAYLOAD_VEC: VEC,
    c.ITEM_PAYLOAD_OFF: VEC,
    c.ITEM_PAYLOAD_MEMFD: MEMFD,
    c.ITEM_CANCEL_FD: I32,
    c.ITEM_BLOOM_PARAMETER: BLOOM_PARAMETER,
    c.ITEM_ATTACH_FLAGS_SEND: U64,
    c.ITEM_ATTACH_FLAGS_RECV: U64,
    c.ITEM_ID: U64,
    c.ITEM_CREDS: CREDS,
    c.ITEM_PIDS: PIDS,
    c.ITEM_POLICY_ACCESS: POLICY_ACCESS,
    c.ITEM_ID_ADD: ID_CHANGE,
    c.ITEM_ID_REMOVE: ID_CHANGE,
}
_NAME_CHANGES: Final = frozenset((c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE))
_OTHERS: Final = frozenset((c.ITEM_BLOOM_MASK, c.ITEM_OWNED_NAME, *_CHECKS))
"""Types whose payload goes up as it is, or not at all."""


def _decode(kind: int, payload: bytes) -> Item:
    """The item in the core's vocabulary, which v3 shares."""
    size = len(payload)
    if kind in _STRINGS:
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


def make_item(kind: int, payload: bytes) -> bytes:
    """An item with its exact size in the header, padded with zero bytes to a multiple of 8 (LAY-6)."""
    size = ITEM_HEADER_SIZE + len(payload)
    return ITEM_HEADER.pack(size, kind) + payload + bytes(align8(size) - size)
