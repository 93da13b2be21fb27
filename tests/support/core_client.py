"""Clients of the core without a mount: they build command structs in a FakeProcess and read pools back."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack_from
from typing import TypedDict, Unpack

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.commands import COMMANDS
from kdbusfs.abi.v3.items import RawItem, make_item
from kdbusfs.base.call import PENDING, Call, Installation
from kdbusfs.core.connection import Connection
from kdbusfs.core.domain import Domain
from kdbusfs.core.handle import ControlHandle, EndpointHandle

from .fake_host import FakeCaller, FakeHost, FakeMemory, FakeProcess

POOL_SIZE = 1 << 20


def walk_items(data: bytes | bytearray, start: int, end: int) -> list[RawItem]:
    """The items that the core wrote to `data[start:end]`, which must fill it exactly, with zeros as padding."""
    items: list[RawItem] = []
    while start < end:
        size, kind = unpack_from("<QQ", data, start)
        assert size >= 16
        items.append((kind, bytes(data[start + 16 : start + size])))
        padded = (size + 7) & ~7
        assert not any(data[start + size : start + padded])
        start += padded
    assert start == end
    return items


@dataclass
class Received:
    """A received message, parsed from the pool."""

    offset: int
    size: int
    return_flags: int
    header: tuple[int, ...]
    items: list[RawItem]
    installation: Installation | None

    def __getattr__(self, name: str) -> int:
        names = ("size", "flags", "priority", "dst_id", "src_id", "payload_type", "cookie", "cookie_reply")
        if name in names:
            return self.header[names.index(name)]
        raise AttributeError(name)

    def item(self, kind: int) -> bytes:
        (payload,) = [payload for item_kind, payload in self.items if item_kind == kind]
        return payload

    def kinds(self) -> list[int]:
        return [kind for kind, _ in self.items]


class MessageFields(TypedDict, total=False):
    """Members of struct kdbus_msg, and its items."""

    dst: int
    flags: int
    priority: int
    src: int
    payload_type: int
    cookie: int
    cookie_reply: int
    items: bytes


class HelloFields(TypedDict, total=False):
    """Arguments of Client.hello."""

    flags: int
    send: int
    recv: int
    pool_size: int
    items: bytes
    free: bool


class Client:
    """A file of a process, with one method for each command; results are 0, -errno or PENDING."""

    def __init__(self, world: World, process: FakeProcess, handle: ControlHandle | EndpointHandle) -> None:
        self.world = world
        self.process = process
        self.handle = handle
        self.id = 0
        self.last: bytes = b""
        self._last_call: Call | None = None

    @property
    def last_call(self) -> Call:
        """The last command; there must have been one."""
        assert self._last_call is not None, "no command yet"
        return self._last_call

    @last_call.setter
    def last_call(self, call: Call) -> None:
        self._last_call = call

    @property
    def endpoint(self) -> EndpointHandle:
        """The handle, which must be that of an endpoint file."""
        assert isinstance(self.handle, EndpointHandle)
        return self.handle

    @property
    def memory(self) -> FakeMemory:
        """The memory of the pool."""
        memory = self.endpoint.memory
        assert isinstance(memory, FakeMemory)
        return memory

    # Raw commands

    def call(self, number: int, fixed: bytes, items: bytes = b"", *, size: int | None = None) -> Call:
        """A Call as the channel would make it; fills in the size, the first u64 of the struct."""
        whole = bytearray(fixed + items)
        whole[:8] = pack("<Q", len(whole) if size is None else size)
        call = Call()
        call.number = number
        call.address = self.process.place(bytes(whole))
        call.data = bytes(whole)
        call.command = memoryview(whole)
        call.words = call.command[: len(fixed) // 8 * 8].cast("Q")
        call.error = 0
        call.message = None
        call.message_error = 0
        call.caller = FakeCaller(self.process)
        call.tag = 0
        call.result = 0
        call.installation = None
        return call

    def run(self, call: Call) -> int:
        result = self.handle.ioctl(call)
        self.last_call = call
        self.last = bytes(call.command)
        return result

    def command(self, number: int, fixed: bytes, items: bytes = b"") -> int:
        return self.run(self.call(number, fixed, items))

    def in_memory(self, offset: int) -> int:
        """The u64 at `offset` of the last command's struct in the client's own memory."""
        return int.from_bytes(self.process.read(self.last_call.address + offset, 8), "little")

    def out(self, offset: int) -> int:
        """The u64 at `offset` of the struct that is copied out."""
        value: int = unpack_from("<Q", self.last, offset)[0]
        return value

    # Commands

    def hello(
        self,
        *,
        flags: int = c.HELLO_ACCEPT_FD,
        send: int = c.ATTACH_ALL,
        recv: int = 0,
        pool_size: int = POOL_SIZE,
        items: bytes = b"",
        free: bool = True,
    ) -> int:
        fixed = pack("<QQQQQQQQQQQ16s", 0, flags, 0, 0, send, recv, 0, 0, pool_size, 0, 0, b"")
        result = self.command(c.CMD_HELLO, fixed, items)
        if result == 0:
            self.id = self.out(56)
            if free:
                self.free(self.out(72))
        return result

    def byebye(self) -> int:
        call = self.call(c.CMD_BYEBYE, bytes(8))
        return self.run(call)

    def message(
        self,
        *,
        dst: int = c.DST_ID_NAME,
        flags: int = 0,
        priority: int = 0,
        src: int = 0,
        payload_type: int = c.PAYLOAD_DBUS,
        cookie: int = 1,
        cookie_reply: int = 0,
        items: bytes = b"",
    ) -> bytes:
        header = pack("<QqQQQQQ", flags, priority, dst, src, payload_type, cookie, cookie_reply)
        return pack("<Q", 64 + len(items)) + header + items

    def send(self, *, send_flags: int = 0, send_items: bytes = b"", **message: Unpack[MessageFields]) -> int:
        body = self.message(**message)
        return self.send_raw(body, send_flags=send_flags, send_items=send_items)

    def send_raw(self, body: bytes, *, send_flags: int = 0, send_items: bytes = b"") -> int:
        address = self.process.place(body)
        fixed = pack("<QQQQQQQQQ", 0, send_flags, 0, 0, 0, address, 0, 0, 0)
        call = self.call(c.CMD_SEND, fixed, send_items)
        call.message = bytes(body)
        return self.run(call)

    def vec(self, data: bytes) -> bytes:
        return make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", len(data), self.process.place(data)))

    def recv(self, *, flags: int = 0, priority: int = 0) -> int:
        return self.command(c.CMD_RECV, pack("<QQQQqQQQQ", 0, flags, 0, 0, priority, 0, 0, 0, 0))

    def receive(self, *, flags: int = 0, priority: int = 0) -> Received:
        """RECV, which must succeed; returns the parsed message."""
        result = self.recv(flags=flags, priority=priority)
        assert result == 0, result
        return self.read_message(*unpack_from("<QQQ", self.last, 48))

    def last_message(self) -> Received:
        """The message that the last command, a RECV or synchronous SEND, returned."""
        return self.read_message(*unpack_from("<QQQ", self.last_call.returned(72), 48))

    @property
    def connection(self) -> Connection:
        connection = self.endpoint.connection
        assert connection is not None
        return connection

    def read_message(self, offset: int, size: int, return_flags: int) -> Received:
        data = self.pool[offset : offset + size]
        header = unpack_from("<QQqQQQQQ", data)
        items = walk_items(data, 64, size)
        return Received(offset, size, return_flags, header, items, self.last_call.installation)

    def payloads(self, message: Received) -> list[bytes | None]:
        """The bytes of its PAYLOAD_OFF items; None for zeros."""
        result: list[bytes | None] = []
        for kind, payload in message.items:
            if kind == c.ITEM_PAYLOAD_OFF:
                size, offset = unpack_from("<QQ", payload)
                result.append(None if offset == c.U64_MAX else bytes(self.pool[offset : offset + size]))
        return result

    @property
    def pool(self) -> bytearray:
        return self.memory.data

    def free(self, offset: int) -> int:
        return self.command(c.CMD_FREE, pack("<QQQQQ", 0, offset, 0, 0, 0))

    def acquire(self, name: bytes, flags: int = 0) -> int:
        return self.command(c.CMD_NAME_ACQUIRE, pack("<QQQQ", 0, flags, 0, 0), make_item(c.ITEM_NAME, name + b"\0"))

    def release_name(self, name: bytes) -> int:
        return self.command(c.CMD_NAME_RELEASE, bytes(32), make_item(c.ITEM_NAME, name + b"\0"))

    def add_match(self, cookie: int, items: bytes = b"", flags: int = 0) -> int:
        return self.command(c.CMD_MATCH_ADD, pack("<QQQQQ", 0, cookie, flags, 0, 0), items)

    def remove_match(self, cookie: int) -> int:
        return self.command(c.CMD_MATCH_REMOVE, pack("<QQQQQ", 0, cookie, 0, 0, 0))

    def conn_info(self, *, id: int = 0, name: bytes | None = None, flags: int = 0) -> int:
        items = make_item(c.ITEM_NAME, name + b"\0") if name is not None else b""
        return self.command(c.CMD_CONN_INFO, pack("<QQQQQQQ", 0, flags, 0, 0, id, 0, 0), items)

    def list_names(self, flags: int) -> list[tuple[int, int, bytes | None, int]]:
        """(owner id, connection flags, name, name flags) of each record."""
        assert self.command(c.CMD_NAME_LIST, pack("<QQQQQQ", 0, flags, 0, 0, 0, 0)) == 0
        offset, size = unpack_from("<QQ", self.last, 32)
        data = self.pool[offset : offset + size]
        assert unpack_from("<Q", data)[0] == size
        records = []
        at = 8
        while at < size:
            record, conn_flags, owner = unpack_from("<QQQ", data, at)
            name, name_flags = None, 0
            if record > 24:
                ((kind, payload),) = walk_items(data, at + 24, at + record)
                assert kind == c.ITEM_OWNED_NAME
                name_flags = unpack_from("<Q", payload)[0]
                name = payload[8:].rstrip(b"\0")
            records.append((owner, conn_flags, name, name_flags))
            at += record
        assert self.free(offset) == 0
        return records

    def update(self, items: bytes = b"") -> int:
        return self.command(c.CMD_CONN_UPDATE, bytes(32), items)

    def make_endpoint(self, name: bytes, flags: int = 0, items: bytes = b"") -> int:
        named = make_item(c.ITEM_MAKE_NAME, name + b"\0")
        return self.command(c.CMD_ENDPOINT_MAKE, pack("<QQQQ", 0, flags, 0, 0), named + items)

    def update_endpoint(self, items: bytes = b"") -> int:
        return self.command(c.CMD_ENDPOINT_UPDATE, bytes(32), items)

    def close(self) -> None:
        self.handle.release()


class World:
    """A domain with one bus, and helpers to add clients."""

    def __init__(self, *, bus_flags: int = c.MAKE_ACCESS_WORLD, bloom: int = 64, required: int = 0) -> None:
        self.host = FakeHost()
        self.domain = Domain(self.host)
        self.owner = FakeProcess(uid=1000)
        self.control = self.open_control(self.owner)
        assert self.make_bus(self.control, b"1000-test", bus_flags, bloom, required) == 0

    def open_control(self, process: FakeProcess) -> Client:
        return Client(self, process, self.domain.open_control(FakeCaller(process)))

    def make_bus(
        self, control: Client, name: bytes, flags: int = 0, bloom: int = 64, required: int = 0, extra: bytes = b""
    ) -> int:
        items = make_item(c.ITEM_MAKE_NAME, name + b"\0")
        items += make_item(c.ITEM_BLOOM_PARAMETER, pack("<QQ", bloom, 1))
        items += make_item(c.ITEM_ATTACH_FLAGS_RECV, pack("<Q", required))
        return control.command(c.CMD_BUS_MAKE, pack("<QQQQ", 0, flags, 0, 0), items + extra)

    def open(self, process: FakeProcess | None = None, *, endpoint: str = "bus", bus: str = "1000-test") -> Client:
        process = process or self.owner
        node = self.domain.buses[bus].endpoints[endpoint]
        handle = self.domain.open_endpoint(node, FakeCaller(process), FakeMemory())
        return Client(self, process, handle)

    def connect(
        self, process: FakeProcess | None = None, *, endpoint: str = "bus", **hello: Unpack[HelloFields]
    ) -> Client:
        client = self.open(process, endpoint=endpoint)
        result = client.hello(**hello)
        assert result == 0, result
        return client


Pair = tuple[Client, Client]
Trio = tuple[Client, Client, Client]

__all__ = [
    "COMMANDS",
    "PENDING",
    "POOL_SIZE",
    "Client",
    "FakeProcess",
    "HelloFields",
    "MessageFields",
    "Pair",
    "Received",
    "Trio",
    "World",
]
