"""Builds messages as in a monitor's pool, with fake names for their connections."""

from __future__ import annotations

from struct import pack

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import RawItem, make_item
from kdbusfs.abi.v3.layouts import ID_CHANGE, MSG, MSG_SIZE, NAME_CHANGE, TIMESTAMP, VEC
from kdbusfs.client import Message
from kdbusfs.ctl.observed import Kind, Observed, kind_of
from kdbusfs.ctl.peers import Peers, Process

REALTIME = 1_700_000_000_123_456_789


def message_bytes(
    *items: RawItem,
    flags: int = 0,
    priority: int = 0,
    dst: int = 2,
    src: int = 1,
    payload_type: int = c.PAYLOAD_DBUS,
    cookie: int = 7,
    reply_to: int = 0,
) -> bytes:
    """struct kdbus_msg with items."""
    body = b"".join(make_item(kind, payload) for kind, payload in items)
    return MSG.pack(MSG_SIZE + len(body), flags, priority, dst, src, payload_type, cookie, reply_to) + body


def stamp(seqnum: int = 1, realtime: int = REALTIME) -> RawItem:
    return c.ITEM_TIMESTAMP, TIMESTAMP.pack(seqnum, 5_000, realtime)


def name_change(kind: int, old: int, new: int, name: str) -> RawItem:
    return kind, NAME_CHANGE.pack(old, 0, new, 0) + name.encode() + b"\0"


def id_change(kind: int, id: int, flags: int = 0) -> RawItem:
    return kind, ID_CHANGE.pack(id, flags)


def dst_name(name: bytes) -> RawItem:
    return c.ITEM_DST_NAME, name + b"\0"


def observe(payload: bytes = b"", *items: RawItem, kept: int | None = None, fds: int = 0, **header: int) -> Observed:
    """A message with `payload` in one vector; `kept`: as a memfd of which only so many bytes were kept."""
    vector = [(c.ITEM_PAYLOAD_OFF, VEC.pack(len(payload), 4096))] if payload else []
    passed = [(c.ITEM_FDS, pack("<i", -1) * fds)] if fds else []
    raw = message_bytes(*items, *vector, *passed, **header)
    pool = memoryview(raw.ljust(4096, b"\0") + payload)  # where the vector says
    message = Message(pool, 0, 0, None)
    kind = kind_of(message)
    return Observed(
        message=message,
        kind=kind,
        parts=[(len(payload), payload if kept is None else payload[:kept])] if payload else [],
        descriptors=fds,
        received_ns=REALTIME + 1,
        notification=message.notification if kind is Kind.NOTIFICATION else None,
        raw=pool[: len(raw)],
        cost=len(raw) + len(payload),
    )


class FakePeers(Peers):
    """Names by id; every connection is process 100 + id of user 1000."""

    def __init__(self, names: dict[int, list[str]] | None = None, comm: str = "some-program") -> None:
        self.by_id = names or {}
        self.comm = comm

    def names(self, id: int) -> list[str]:
        return self.by_id.get(id, [])

    def owner(self, name: str) -> int | None:
        return next((id for id, names in self.by_id.items() if name in names), None)

    def process(self, id: int) -> Process:
        return Process(100 + id, 1000, self.comm)
