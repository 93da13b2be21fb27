"""Items: the walk over a client's item list with its checks, and the making of items for a pool.

Sources: ITEM-1 to ITEM-12; kdbus.txt section on items.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EEXIST, EINVAL, ENAMETOOLONG

from .constants import (
    ITEM_ATTACH_FLAGS_RECV,
    ITEM_ATTACH_FLAGS_SEND,
    ITEM_AUDIT,
    ITEM_AUXGROUPS,
    ITEM_BLOOM_FILTER,
    ITEM_BLOOM_PARAMETER,
    ITEM_CANCEL_FD,
    ITEM_CGROUP,
    ITEM_CMDLINE,
    ITEM_CONN_DESCRIPTION,
    ITEM_CREDS,
    ITEM_DST_NAME,
    ITEM_EXE,
    ITEM_FDS,
    ITEM_ID,
    ITEM_ID_ADD,
    ITEM_ID_REMOVE,
    ITEM_MAKE_NAME,
    ITEM_NAME,
    ITEM_NAME_ADD,
    ITEM_NAME_CHANGE,
    ITEM_NAME_REMOVE,
    ITEM_PAYLOAD_MEMFD,
    ITEM_PAYLOAD_OFF,
    ITEM_PAYLOAD_VEC,
    ITEM_PID_COMM,
    ITEM_POLICY_ACCESS,
    ITEM_REPLY_DEAD,
    ITEM_REPLY_TIMEOUT,
    ITEM_SECLABEL,
    ITEM_TID_COMM,
    ITEM_TIMESTAMP,
)
from .errors import KdbusError
from .layouts import ITEM_HEADER, ITEM_HEADER_SIZE, MEMFD, VEC, VEC_ITEM_SIZE, align8, u64
from .limits import SYSNAME_MAX_LEN

Item = tuple[int, bytes]
"""One item of a client's list: its type and its payload without header and padding."""

_SYSNAME_ANYWHERE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_SYSNAME_INSIDE = _SYSNAME_ANYWHERE | frozenset(b"-.")


def _check_exact(size: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) != size:
            raise KdbusError(EINVAL, f"payload of {len(payload)} bytes, {size} expected")

    return check


def _check_multiple(unit: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) % unit:
            raise KdbusError(EINVAL, f"payload of {len(payload)} bytes is no multiple of {unit}")

    return check


def _check_vec(payload: bytes) -> None:
    if len(payload) != VEC.size or VEC.unpack(payload)[0] == 0:
        raise KdbusError(EINVAL, "vector of wrong length or size 0")


def _check_memfd(payload: bytes) -> None:
    if len(payload) != MEMFD.size:
        raise KdbusError(EINVAL, "memfd item of wrong length")
    _, size, fd, _ = MEMFD.unpack(payload)
    if size == 0:
        raise KdbusError(EINVAL, "memfd of size 0")
    if fd < 0:
        raise KdbusError(EBADF, "negative memfd")


def _check_at_least(size: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) < size:
            raise KdbusError(EINVAL, f"payload of {len(payload)} bytes, at least {size} expected")

    return check


def _check_string(payload: bytes) -> None:
    if not payload or payload.find(0) != len(payload) - 1:
        raise KdbusError(EINVAL, "not one NUL-terminated string")


def _check_sysname(payload: bytes) -> None:
    if len(payload) < 2:
        raise KdbusError(EINVAL, "empty name")
    if len(payload) > SYSNAME_MAX_LEN + 1:
        raise KdbusError(ENAMETOOLONG, "name of more than 63 characters")
    _check_string(payload)
    name = payload[:-1]
    if (
        name[0] not in _SYSNAME_ANYWHERE
        or name[-1] not in _SYSNAME_ANYWHERE
        or not _SYSNAME_INSIDE.issuperset(name)
    ):
        raise KdbusError(EINVAL, "character that a name may not have there")


def _check_name_change(payload: bytes) -> None:
    if len(payload) < 32:
        raise KdbusError(EINVAL, "name change of wrong length")
    if len(payload) > 32:
        _check_string(payload[32:])


_CHECKS: dict[int, Callable[[bytes], None]] = {
    ITEM_PAYLOAD_VEC: _check_vec,  # ITEM-4
    ITEM_PAYLOAD_OFF: _check_vec,
    ITEM_PAYLOAD_MEMFD: _check_memfd,  # ITEM-5
    ITEM_FDS: _check_multiple(4),  # ITEM-6
    ITEM_CANCEL_FD: _check_exact(4),
    ITEM_BLOOM_PARAMETER: _check_exact(16),  # ITEM-7
    ITEM_BLOOM_FILTER: _check_at_least(8),
    ITEM_MAKE_NAME: _check_sysname,  # ITEM-8
    ITEM_CONN_DESCRIPTION: _check_sysname,
    ITEM_ATTACH_FLAGS_SEND: _check_exact(8),  # ITEM-9
    ITEM_ATTACH_FLAGS_RECV: _check_exact(8),
    ITEM_ID: _check_exact(8),
    ITEM_TIMESTAMP: _check_exact(24),
    ITEM_CREDS: _check_exact(32),
    ITEM_AUDIT: _check_exact(8),
    ITEM_POLICY_ACCESS: _check_exact(24),
    ITEM_AUXGROUPS: _check_multiple(4),
    ITEM_NAME: _check_string,  # ITEM-10
    ITEM_DST_NAME: _check_string,
    ITEM_PID_COMM: _check_string,
    ITEM_TID_COMM: _check_string,
    ITEM_EXE: _check_string,
    ITEM_CMDLINE: _check_string,
    ITEM_CGROUP: _check_string,
    ITEM_SECLABEL: _check_string,
    ITEM_NAME_ADD: _check_name_change,  # ITEM-11
    ITEM_NAME_REMOVE: _check_name_change,
    ITEM_NAME_CHANGE: _check_name_change,
    ITEM_ID_ADD: _check_exact(16),
    ITEM_ID_REMOVE: _check_exact(16),
    ITEM_REPLY_TIMEOUT: _check_exact(0),
    ITEM_REPLY_DEAD: _check_exact(0),
}


def check_items(data: bytes, start: int, end: int) -> None:
    """The items in `data[start:end]`, checked one after the other (ITEM-1 to ITEM-11).  Unknown types pass (ITEM-3).

    Raises KdbusError: EINVAL, EBADF (negative memfd), ENAMETOOLONG (names of buses, endpoints, descriptions).
    """
    at = start
    while at < end:
        if end - at < ITEM_HEADER_SIZE:
            raise KdbusError(EINVAL, "item header cut off")
        size = u64(data, at)
        if size < ITEM_HEADER_SIZE or size > end - at:
            raise KdbusError(EINVAL, "item does not fit")
        kind = u64(data, at + 8)
        # What nearly every message has: a vector of the right length that is not empty.
        if kind != ITEM_PAYLOAD_VEC or size != VEC_ITEM_SIZE or not u64(data, at + ITEM_HEADER_SIZE):
            check = _CHECKS.get(kind)
            if check is not None:
                check(data[at + ITEM_HEADER_SIZE : at + size])
        at += (size + 7) & ~7
    # An unpadded last item is fine: a walk in steps of 8 that ends past `end` ends at ALIGN8 of it (ITEM-1).


def parse_items(data: bytes, start: int, end: int) -> list[Item]:
    """The items in `data[start:end]`, after `check_items`, which raises what is wrong with them."""
    check_items(data, start, end)
    items: list[Item] = []
    at = start
    while at < end:
        size = u64(data, at)
        items.append((u64(data, at + 8), data[at + ITEM_HEADER_SIZE : at + size]))
        at += (size + 7) & ~7
    return items


def find_one(items: list[Item], kind: int) -> bytes | None:
    """The payload of the only item of type `kind`; None where there is none.

    Raises KdbusError(EEXIST) for more than one.
    """
    found: bytes | None = None
    for item_kind, payload in items:
        if item_kind == kind:
            if found is not None:
                raise KdbusError(EEXIST, "item given more than once")
            found = payload
    return found


def make_item(kind: int, payload: bytes) -> bytes:
    """An item with its exact size in the header, padded with zero bytes to a multiple of 8 (LAY-6)."""
    size = ITEM_HEADER_SIZE + len(payload)
    return ITEM_HEADER.pack(size, kind) + payload + bytes(align8(size) - size)
