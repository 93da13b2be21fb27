"""Items as every ABI has them: what their payloads have to be like, and the making of items for a pool.

Kinds are those of the core: an ABI that numbers them otherwise translates first.  Sources: ITEM-4 to ITEM-11, LAY-6.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EINVAL, ENAMETOOLONG
from struct import Struct
from typing import Final

from ..base.errors import CommandError
from ..base.words import I32, U64, align8
from . import constants as c
from .layouts import (
    BLOOM_PARAMETER,
    ID_CHANGE,
    ITEM_HEADER,
    ITEM_HEADER_SIZE,
    MEMFD,
    PIDS,
    POLICY_ACCESS,
    VEC,
)
from .limits import SYSNAME_MAX_LEN

Check = Callable[[bytes], None]
"""Raises CommandError for a payload of the wrong shape."""

RawItem = tuple[int, bytes]
"""One item of a client's list: its type and its payload without header and padding."""

_SYSNAME_ANYWHERE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_SYSNAME_INSIDE = _SYSNAME_ANYWHERE | frozenset(b"-.")


def check_exact(size: int) -> Check:
    def check(payload: bytes) -> None:
        if len(payload) != size:
            raise CommandError(EINVAL, f"payload of {len(payload)} bytes, {size} expected")

    return check


def check_multiple(unit: int) -> Check:
    def check(payload: bytes) -> None:
        if len(payload) % unit:
            raise CommandError(EINVAL, f"payload of {len(payload)} bytes is no multiple of {unit}")

    return check


def check_vec(payload: bytes) -> None:
    if len(payload) != VEC.size or VEC.unpack(payload)[0] == 0:
        raise CommandError(EINVAL, "vector of wrong length or size 0")


def check_memfd(payload: bytes) -> None:
    if len(payload) != MEMFD.size:
        raise CommandError(EINVAL, "memfd item of wrong length")
    _, size, fd, _ = MEMFD.unpack(payload)
    if size == 0:
        raise CommandError(EINVAL, "memfd of size 0")
    if fd < 0:
        raise CommandError(EBADF, "negative memfd")


def check_at_least(size: int) -> Check:
    def check(payload: bytes) -> None:
        if len(payload) < size:
            raise CommandError(EINVAL, f"payload of {len(payload)} bytes, at least {size} expected")

    return check


def check_string(payload: bytes) -> None:
    if not payload or payload.find(0) != len(payload) - 1:
        raise CommandError(EINVAL, "not one NUL-terminated string")


def check_sysname(payload: bytes) -> None:
    if len(payload) < 2:
        raise CommandError(EINVAL, "empty name")
    if len(payload) > SYSNAME_MAX_LEN + 1:
        raise CommandError(ENAMETOOLONG, "name of more than 63 characters")
    check_string(payload)
    name = payload[:-1]
    if (
        name[0] not in _SYSNAME_ANYWHERE
        or name[-1] not in _SYSNAME_ANYWHERE
        or not _SYSNAME_INSIDE.issuperset(name)
    ):
        raise CommandError(EINVAL, "character that a name may not have there")


def check_name_change(payload: bytes) -> None:
    if len(payload) < 32:
        raise CommandError(EINVAL, "name change of wrong length")
    if len(payload) > 32:
        check_string(payload[32:])


CHECKS: Final[dict[int, Check]] = {
    c.ITEM_PAYLOAD_VEC: check_vec,  # ITEM-4
    c.ITEM_PAYLOAD_OFF: check_vec,
    c.ITEM_PAYLOAD_MEMFD: check_memfd,  # ITEM-5
    c.ITEM_FDS: check_multiple(4),  # ITEM-6
    c.ITEM_CANCEL_FD: check_exact(4),
    c.ITEM_BLOOM_PARAMETER: check_exact(16),  # ITEM-7
    c.ITEM_BLOOM_FILTER: check_at_least(8),
    c.ITEM_MAKE_NAME: check_sysname,  # ITEM-8
    c.ITEM_CONN_DESCRIPTION: check_sysname,
    c.ITEM_ATTACH_FLAGS_SEND: check_exact(8),  # ITEM-9
    c.ITEM_ATTACH_FLAGS_RECV: check_exact(8),
    c.ITEM_ID: check_exact(8),
    c.ITEM_TIMESTAMP: check_exact(24),
    c.ITEM_AUDIT: check_exact(8),
    c.ITEM_POLICY_ACCESS: check_exact(24),
    c.ITEM_AUXGROUPS: check_multiple(4),
    c.ITEM_NAME: check_string,  # ITEM-10
    c.ITEM_DST_NAME: check_string,
    c.ITEM_PID_COMM: check_string,
    c.ITEM_TID_COMM: check_string,
    c.ITEM_EXE: check_string,
    c.ITEM_CMDLINE: check_string,
    c.ITEM_CGROUP: check_string,
    c.ITEM_SECLABEL: check_string,
    c.ITEM_NAME_ADD: check_name_change,  # ITEM-11
    c.ITEM_NAME_REMOVE: check_name_change,
    c.ITEM_NAME_CHANGE: check_name_change,
    c.ITEM_ID_ADD: check_exact(16),
    c.ITEM_ID_REMOVE: check_exact(16),
    c.ITEM_REPLY_TIMEOUT: check_exact(0),
    c.ITEM_REPLY_DEAD: check_exact(0),
}
"""The rule for the payload of each kind of item; CREDS have the width of the ABI."""


STRINGS: Final = frozenset(
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
NUMBERS: Final[dict[int, Struct]] = {
    c.ITEM_PAYLOAD_VEC: VEC,
    c.ITEM_PAYLOAD_OFF: VEC,
    c.ITEM_PAYLOAD_MEMFD: MEMFD,
    c.ITEM_CANCEL_FD: I32,
    c.ITEM_BLOOM_PARAMETER: BLOOM_PARAMETER,
    c.ITEM_ATTACH_FLAGS_SEND: U64,
    c.ITEM_ATTACH_FLAGS_RECV: U64,
    c.ITEM_ID: U64,
    c.ITEM_PIDS: PIDS,
    c.ITEM_POLICY_ACCESS: POLICY_ACCESS,
    c.ITEM_ID_ADD: ID_CHANGE,
    c.ITEM_ID_REMOVE: ID_CHANGE,
}
"""The members of a payload, by kind."""


def make_item(kind: int, payload: bytes) -> bytes:
    """An item with its exact size in the header, padded with zero bytes to a multiple of 8 (LAY-6)."""
    size = ITEM_HEADER_SIZE + len(payload)
    return ITEM_HEADER.pack(size, kind) + payload + bytes(align8(size) - size)
