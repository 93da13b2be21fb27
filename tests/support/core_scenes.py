"""Helpers for tests of the core: requests, signals, files, queues."""

from __future__ import annotations

from errno import EAGAIN
from struct import pack, unpack
from typing import Any, TypedDict, Unpack

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item

from .core_client import Client, Received, World
from .fake_host import FakeFile, FakeProcess, sealed_memfd


class RequestFields(TypedDict, total=False):
    """Optional arguments of a request."""

    priority: int
    src: int
    payload_type: int
    items: bytes
    send_items: bytes


class ReplyFields(TypedDict, total=False):
    """Optional arguments of a reply."""

    flags: int
    priority: int
    src: int
    payload_type: int
    cookie: int
    items: bytes
    send_flags: int
    send_items: bytes


class SignalFields(TypedDict, total=False):
    """Optional arguments of a signal."""

    priority: int
    src: int
    payload_type: int
    cookie: int
    cookie_reply: int
    send_flags: int
    send_items: bytes


FAR = 10**15
"""A deadline that no test reaches, in ns of the fake clock."""


def drain(client: Client) -> list[Received]:
    """Receive and free all queued messages, with their descriptors."""
    messages = []
    while (result := client.recv()) == 0:
        messages.append(client.last_message())
        if messages[-1].installation is not None:
            messages[-1].installation.done()
        assert client.free(messages[-1].offset) == 0
    assert result == -EAGAIN
    return messages


def cookies(client: Client) -> list[int]:
    """Receive and free all queued messages; returns their cookies."""
    return [message.cookie for message in drain(client)]


def request(
    client: Client, dst: int, cookie: int, *, timeout: int = FAR, sync: bool = False, **more: Unpack[RequestFields]
) -> int:
    flags = c.SEND_SYNC_REPLY if sync else 0
    return client.send(
        dst=dst, flags=c.MSG_EXPECT_REPLY, cookie=cookie, cookie_reply=timeout, send_flags=flags, **more
    )


def reply(client: Client, dst: int, to: int, **more: Unpack[ReplyFields]) -> int:
    return client.send(dst=dst, cookie_reply=to, **more)


def bloom(bits: int = 0, generation: int = 0, size: int = 64) -> bytes:
    return make_item(c.ITEM_BLOOM_FILTER, pack("<Q", generation) + bits.to_bytes(size, "little"))


def mask(*bits: int, size: int = 64) -> bytes:
    return make_item(c.ITEM_BLOOM_MASK, b"".join(each.to_bytes(size, "little") for each in bits))


def signal(
    client: Client,
    dst: int = c.DST_ID_BROADCAST,
    *,
    items: bytes = b"",
    bits: int = 0,
    **more: Unpack[SignalFields],
) -> int:
    return client.send(dst=dst, flags=c.MSG_SIGNAL, items=items + bloom(bits), **more)


def id_rule(conn_id: int) -> bytes:
    return make_item(c.ITEM_ID, pack("<Q", conn_id))


def name_rule(name: bytes) -> bytes:
    return make_item(c.ITEM_NAME, name + b"\0")


def dst_name(name: bytes) -> bytes:
    return make_item(c.ITEM_DST_NAME, name + b"\0")


def id_change(kind: int, conn_id: int = c.MATCH_ID_ANY) -> bytes:
    return make_item(kind, pack("<QQ", conn_id, 0))


def name_change(
    kind: int, old: int = c.MATCH_ID_ANY, new: int = c.MATCH_ID_ANY, name: bytes | None = None
) -> bytes:
    return make_item(kind, pack("<QQQQ", old, 0, new, 0) + (name + b"\0" if name is not None else b""))


def pass_files(process: FakeProcess, *files: FakeFile) -> bytes:
    """An FDS item with descriptors of `process` for `files`."""
    numbers = [_open(process, file) for file in files]
    return make_item(c.ITEM_FDS, pack(f"<{len(numbers)}i", *numbers))


def pass_memfd(process: FakeProcess, size: int, *, start: int = 0, file: FakeFile | None = None) -> bytes:
    number = _open(process, file or sealed_memfd(start + size))
    return make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", start, size, number, 0))


def cancel_fd(process: FakeProcess, file: FakeFile) -> bytes:
    return make_item(c.ITEM_CANCEL_FD, pack("<i", _open(process, file)))


def _open(process: FakeProcess, file: FakeFile) -> int:
    number = max(process.files, default=2) + 1
    process.files[number] = file
    return number


def event(message: Received) -> tuple[Any, ...]:
    """A notification as a tuple: its item type, then ids and flags, then the name if it has one."""
    kind, payload = message.items[0]
    if kind in (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE):
        return (kind, *unpack("<QQQQ", payload[:32]), payload[32:].rstrip(b"\0"))
    if kind in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE):
        return (kind, *unpack("<QQ", payload))
    return (kind, message.cookie_reply)


def events(client: Client) -> list[tuple[Any, ...]]:
    """Receive all queued messages; returns them as `event` does."""
    return [event(message) for message in drain(client)]


def observer(world: World) -> Client:
    """A connection with a match for everything."""
    client = world.connect()
    assert client.add_match(1) == 0
    return client


def listening(world: World) -> int:
    """The number of matches in the index of the bus."""
    return sum(len(index) for index in world.domain.buses["1000-test"].listeners.values())


def results(world: World) -> list[int]:
    """The results of the deferred calls that ended since the last call."""
    done = [call.result for call in world.domain.completed]
    world.domain.completed.clear()
    return done


def expire(world: World, now: int) -> None:
    world.host.clock.now = now
    world.domain.expire(now)


def slots(client: Client) -> int:
    """The number of request slots that the connection's trackers occupy."""
    return client.connection.requests.count


def at_rest(client: Client) -> bool:
    """Whether the connection holds no resource of any message: no slice, queue entry, tracker or request slot."""
    connection = client.connection
    return not (
        connection.pool.slices
        or (connection.active and connection.pool.busy)
        or len(connection.queue)
        or connection.requests.trackers
        or connection.requests.owed
        or connection.requests.count
    )
