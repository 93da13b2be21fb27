"""Parses the content of a pool: items, metadata, notifications, lists.  Pure: bytes in, typed values out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..abi.v3 import constants as c
from ..abi.v3 import layouts
from ..abi.v3.items import RawItem
from ..base.identity import Creds, Pids
from .raw import Buffer


def walk(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The items in `buffer[start:end]`: type, begin and end of the payload.

    Raises ValueError if an item does not fit.
    """
    if end > len(buffer):
        raise ValueError(f"slice ends at {end} of {len(buffer)} bytes")
    unpack = layouts.ITEM_HEADER.unpack_from
    at = start
    while at < end:
        if end - at < layouts.ITEM_HEADER_SIZE:
            raise ValueError(f"item header at {at} is cut off")
        size, kind = unpack(buffer, at)
        if size < layouts.ITEM_HEADER_SIZE or size > end - at:
            raise ValueError(f"item at {at} has size {size}, but {end - at} bytes are left")
        yield kind, at + layouts.ITEM_HEADER_SIZE, at + size
        at += layouts.align8(size)


def items_of(buffer: Buffer, start: int, end: int) -> list[RawItem]:
    """Copies of the items in `buffer[start:end]`.  Raises ValueError if an item does not fit."""
    return [(kind, bytes(buffer[begin:stop])) for kind, begin, stop in walk(buffer, start, end)]


class Timestamp(NamedTuple):
    """The time of SEND: sequence number in the domain, CLOCK_MONOTONIC and CLOCK_REALTIME in ns."""

    seqnum: int
    monotonic_ns: int
    realtime_ns: int


class OwnedName(NamedTuple):
    """A well-known name and its NAME_* flags."""

    name: str
    flags: int


class Caps(NamedTuple):
    """Capability sets as integers: bit n is capability n."""

    last_cap: int
    inheritable: int
    permitted: int
    effective: int
    bounding: int


class Audit(NamedTuple):
    """Audit session and login uid; 0xFFFFFFFF is "unset"."""

    sessionid: int
    loginuid: int


@dataclass(slots=True)
class Metadata:
    """Metadata of a sender or a connection; None or empty: not delivered."""

    timestamp: Timestamp | None = None
    creds: Creds | None = None
    pids: Pids | None = None
    auxgroups: tuple[int, ...] | None = None
    owned_names: tuple[OwnedName, ...] = ()
    tid_comm: str | None = None
    pid_comm: str | None = None
    exe: str | None = None
    cmdline: str | None = None
    cgroup: str | None = None
    caps: Caps | None = None
    seclabel: str | None = None
    audit: Audit | None = None
    description: str | None = None


def string(payload: bytes) -> str:
    """A NUL-terminated string; bytes after the NUL are ignored."""
    return os.fsdecode(payload.split(b"\0", 1)[0])


def words32(payload: bytes) -> tuple[int, ...]:
    """An array of 32-bit numbers."""
    return tuple(memoryview(payload).cast("I")) if payload else ()


def owned_name(payload: bytes) -> OwnedName:
    """The payload of an OWNED_NAME item."""
    return OwnedName(string(payload[8:]), layouts.U64.unpack_from(payload)[0])


def caps(payload: bytes) -> Caps:
    """The payload of a CAPS item."""
    last_cap, *words = words32(payload)
    count = last_cap // 32 + 1
    if len(words) != 4 * count:
        raise ValueError(f"{len(words)} words of capabilities up to number {last_cap}")
    sets = [sum(word << 32 * i for i, word in enumerate(words[n * count :][:count])) for n in range(4)]
    return Caps(last_cap, *sets)


_METADATA: dict[int, tuple[str, Callable[[bytes], Any]]] = {
    c.ITEM_TIMESTAMP: ("timestamp", lambda payload: Timestamp(*layouts.TIMESTAMP.unpack(payload))),
    c.ITEM_CREDS: ("creds", lambda payload: Creds(*layouts.CREDS.unpack(payload))),
    c.ITEM_PIDS: ("pids", lambda payload: Pids(*layouts.PIDS.unpack(payload))),
    c.ITEM_AUXGROUPS: ("auxgroups", words32),
    c.ITEM_TID_COMM: ("tid_comm", string),
    c.ITEM_PID_COMM: ("pid_comm", string),
    c.ITEM_EXE: ("exe", string),
    c.ITEM_CMDLINE: ("cmdline", string),
    c.ITEM_CGROUP: ("cgroup", string),
    c.ITEM_CAPS: ("caps", caps),
    c.ITEM_SECLABEL: ("seclabel", string),
    c.ITEM_AUDIT: ("audit", lambda payload: Audit(*layouts.AUDIT.unpack(payload))),
    c.ITEM_CONN_DESCRIPTION: ("description", string),
}


def metadata_of(items: Iterable[RawItem]) -> Metadata:
    """The metadata among `items`; other items are ignored."""
    metadata = Metadata()
    names: list[OwnedName] = []
    for kind, payload in items:
        if kind == c.ITEM_OWNED_NAME:
            names.append(owned_name(payload))
        elif kind in _METADATA:
            attribute, decode = _METADATA[kind]
            setattr(metadata, attribute, decode(payload))
    metadata.owned_names = tuple(names)
    return metadata


# Notifications.


class NameChange(NamedTuple):
    """`kind` is ITEM_NAME_ADD, _REMOVE or _CHANGE; flags are NAME_*; id and flags are 0 for no owner."""

    kind: int
    name: str
    old_id: int
    old_flags: int
    new_id: int
    new_flags: int


class IdChange(NamedTuple):
    """`kind` is ITEM_ID_ADD or _REMOVE; `flags` are those of the connection's HELLO."""

    kind: int
    id: int
    flags: int


class NoReply(NamedTuple):
    """`kind` is ITEM_REPLY_TIMEOUT or _DEAD; the message's cookie_reply says which request it was."""

    kind: int


Notification = NameChange | IdChange | NoReply


def notification_of(items: Iterable[RawItem]) -> Notification | None:
    """The notification among the items of a message, if it is one."""
    for kind, payload in items:
        if kind in (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE):
            return NameChange(kind, string(payload[32:]), *layouts.NAME_CHANGE.unpack_from(payload))
        if kind in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE):
            return IdChange(kind, *layouts.ID_CHANGE.unpack(payload))
        if kind in (c.ITEM_REPLY_TIMEOUT, c.ITEM_REPLY_DEAD):
            return NoReply(kind)
    return None


# Results of commands.


class NameInfo(NamedTuple):
    """A record of a name list.  `name` is None in a record of LIST_UNIQUE; `flags` are the name's."""

    id: int
    conn_flags: int
    name: str | None
    flags: int


@dataclass(frozen=True, slots=True)
class Info:
    """Information about a connection, or about a bus and its maker.

    id: of the connection or bus; flags: of its HELLO or BUS_MAKE; name: of the bus, else None.
    """

    id: int
    flags: int
    name: str | None
    items: list[RawItem]
    metadata: Metadata


def _own_size(buffer: Buffer, offset: int, least: int) -> int:
    """The end of a structure that begins with its size.  Raises ValueError if it does not fit."""
    if offset + 8 > len(buffer):
        raise ValueError(f"offset {offset} lies outside of {len(buffer)} bytes")
    size: int = layouts.U64.unpack_from(buffer, offset)[0]
    if size < least or offset + size > len(buffer):
        raise ValueError(f"structure of {size} bytes at {offset} does not fit")
    return offset + size


def bloom_parameters(pool: Buffer, offset: int) -> tuple[int, int]:
    """Size in bytes and number of hashes, from the item list of HELLO at `offset`."""
    for kind, payload in items_of(pool, offset + 8, _own_size(pool, offset, 8)):
        if kind == c.ITEM_BLOOM_PARAMETER:
            size, n_hash = layouts.BLOOM_PARAMETER.unpack(payload)
            return size, n_hash
    raise ValueError("no bloom parameters")


def name_list(pool: Buffer, offset: int) -> list[NameInfo]:
    """The records of NAME_LIST at `offset`.  Raises ValueError if one does not fit."""
    records: list[NameInfo] = []
    end = _own_size(pool, offset, 8)
    at = offset + 8
    while at < end:
        stop = _own_size(pool, at, layouts.NAME_INFO.size)
        _, conn_flags, owner_id = layouts.NAME_INFO.unpack_from(pool, at)
        name, flags = None, 0
        for kind, payload in items_of(pool, at + layouts.NAME_INFO.size, stop):
            if kind == c.ITEM_OWNED_NAME:
                name, flags = owned_name(payload)
        records.append(NameInfo(owner_id, conn_flags, name, flags))
        at = stop
    return records


def info(
    pool: Buffer, offset: int, walker: Callable[[Buffer, int, int], list[RawItem]] = items_of
) -> Info:
    """The result of CONN_INFO or BUS_CREATOR_INFO at `offset`; `walker` parses its items."""
    end = _own_size(pool, offset, layouts.INFO.size)
    _, id, flags = layouts.INFO.unpack_from(pool, offset)
    items = walker(pool, offset + layouts.INFO.size, end)
    name = next((string(payload) for kind, payload in items if kind == c.ITEM_MAKE_NAME), None)
    return Info(id, flags, name, items, metadata_of(items))
