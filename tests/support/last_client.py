"""Clients of the core that speak the last ABI of kdbus; those of core_client speak v3."""

from __future__ import annotations

from struct import pack, unpack_from

from kdbusfs.abi.last import constants as c
from kdbusfs.abi.last.items import RawItem, make_item
from kdbusfs.base.call import Call
from kdbusfs.client.dialect import LAST
from kdbusfs.core.handle import EndpointHandle

from .core_client import POOL_SIZE, Client, Received, World, walk_items
from .fake_host import FakeCaller, FakeFile, FakeMemory, FakeProcess, sealed_memfd

FAR = 10**15
"""A deadline that no test reaches, in ns of the fake clock."""
NOTHING = POOL_SIZE
"""The offset that means "no slice" (L-92)."""


class LastClient(Client):
    """The same methods, with the structs of August 2015."""

    def hello(
        self,
        *,
        flags: int = c.HELLO_ACCEPT_FD,
        send: int = c.ATTACH_ANY,
        recv: int = 0,
        pool_size: int = POOL_SIZE,
        items: bytes = b"",
        free: bool = True,
    ) -> int:
        fixed = pack("<QQQQQQQQQQ16s", 0, flags, 0, send, recv, 0, 0, pool_size, 0, 0, b"")
        result = self.command(c.CMD_HELLO, fixed, items)
        if result == 0:
            self.id = self.out(48)
            if free and not flags & c.HELLO_POLICY_HOLDER:
                assert self.free(self.out(64)) == 0
        return result

    def simple(self, number: int, flags: int = 0, items: bytes = b"") -> int:
        """A command of struct kdbus_cmd."""
        return self.command(number, pack("<QQQ", 0, flags, 0), items)

    def byebye(self) -> int:
        return self.simple(c.CMD_BYEBYE)

    def send_raw(self, body: bytes, *, send_flags: int = 0, send_items: bytes = b"") -> int:
        address = self.process.place(body)
        call = self.call(c.CMD_SEND, pack("<QQQQQQQ", 0, send_flags, 0, address, 0, 0, 0), send_items)
        call.message = bytes(body)
        return self.run(call)

    def vec(self, data: bytes) -> bytes:
        return make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", len(data), self.process.place(data)))

    def recv(self, *, flags: int = 0, priority: int = 0) -> int:
        return self.command(c.CMD_RECV, pack("<QQQqQQQQ", 0, flags, 0, priority, 0, 0, 0, 0))

    @property
    def lost(self) -> int:
        """The number of lost messages that the last RECV reported; its flag must agree."""
        lost = self.out(32)
        assert self.out(16) == (c.RECV_RETURN_DROPPED_MSGS if lost else 0)
        return lost

    def receive(self, *, flags: int = 0, priority: int = 0) -> Received:
        result = self.recv(flags=flags, priority=priority)
        assert result == 0, result
        return self.read_message(*unpack_from("<QQQ", self.last, 40))

    def last_message(self) -> Received:
        """The message that the last command, a RECV or synchronous SEND, returned."""
        call = self.last_call
        at = 40 if call.number == c.CMD_RECV else 32
        struct = call.fixed if call.fixed is not None else self.last
        return self.read_message(*unpack_from("<QQQ", struct, at))

    def read_message(self, offset: int, size: int, return_flags: int) -> Received:
        """L-83, L-88: `size` is of the slice, the header has that of the message."""
        data = self.pool[offset : offset + size]
        header = unpack_from("<QQqQQQQQ", data)
        end = header[0]
        assert end <= size
        assert size % 8 == 0
        padded = end + -end % 8
        items = walk_items(data, 64, padded)
        assert end == padded - (-len(items[-1][1]) % 8 if items else 0)
        return Received(offset, size, return_flags, header, items, self.last_call.installation)

    def payloads(self, message: Received) -> list[bytes | None]:
        """L-85, L-86: the bytes of its PAYLOAD_OFF items; None for zeros."""
        result: list[bytes | None] = []
        for kind, payload in message.items:
            if kind == c.ITEM_PAYLOAD_OFF:
                size, at = unpack_from("<QQ", payload)
                if at == c.U64_MAX:
                    result.append(None)
                    continue
                assert at >= message.header[0]
                assert at + size <= message.size
                result.append(bytes(self.pool[message.offset + at : message.offset + at + size]))
        return result

    def free(self, offset: int) -> int:
        return self.command(c.CMD_FREE, pack("<QQQQ", 0, 0, 0, offset))

    def acquire(self, name: bytes, flags: int = 0) -> int:
        return self.simple(c.CMD_NAME_ACQUIRE, flags, name_item(name))

    def acquired(self, name: bytes, flags: int = 0) -> int:
        """NAME_ACQUIRE, which must succeed; returns its return flags (L-107)."""
        result = self.acquire(name, flags)
        assert result == 0, result
        assert self.out(8) == flags
        return self.out(16)

    def release_name(self, name: bytes) -> int:
        return self.simple(c.CMD_NAME_RELEASE, 0, name_item(name))

    def add_match(self, cookie: int, items: bytes = b"", flags: int = 0) -> int:
        return self.command(c.CMD_MATCH_ADD, pack("<QQQQ", 0, flags, 0, cookie), items)

    def remove_match(self, cookie: int) -> int:
        return self.command(c.CMD_MATCH_REMOVE, pack("<QQQQ", 0, 0, 0, cookie))

    def conn_info(self, *, id: int = 0, name: bytes | None = None, flags: int = 0) -> int:
        """flags: the requested attach flags."""
        items = name_item(name) if name is not None else b""
        return self.command(c.CMD_CONN_INFO, pack("<QQQQQQQ", 0, 0, 0, id, flags, 0, 0), items)

    def creator_info(self, mask: int) -> int:
        return self.command(c.CMD_BUS_CREATOR_INFO, pack("<QQQQQQQ", 0, 0, 0, 0, mask, 0, 0))

    def info(self) -> tuple[int, int, list[RawItem]]:
        """The result of the last CONN_INFO or BUS_CREATOR_INFO: id, flags, items.  Frees it (L-45)."""
        offset, size = unpack_from("<QQ", self.last, 40)
        data = self.pool[offset : offset + size]
        own_size, id, flags = unpack_from("<QQQ", data)
        assert own_size == size
        assert size % 8 == 0
        assert self.free(offset) == 0
        return id, flags, walk_items(data, 24, size)

    def list_names(self, flags: int) -> list[tuple[int, int, bytes | None, int]]:
        """L-98: (owner id, connection flags, name, name flags) of each record."""
        assert self.command(c.CMD_LIST, pack("<QQQQQ", 0, flags, 0, 0, 0)) == 0
        offset, size = unpack_from("<QQ", self.last, 24)
        data = self.pool[offset : offset + size]
        records = []
        at = 0
        while at < size:
            record, owner, conn_flags = unpack_from("<QQQ", data, at)
            assert record % 8 == 0
            name, name_flags = None, 0
            if record > 24:
                ((kind, payload),) = walk_items(data, at + 24, at + record)
                assert kind == c.ITEM_OWNED_NAME
                name_flags = unpack_from("<Q", payload)[0]
                name = payload[8:].rstrip(b"\0")
            records.append((owner, conn_flags, name, name_flags))
            at += record
        assert at == size
        assert self.free(offset) == 0
        return records

    def update(self, items: bytes = b"") -> int:
        return self.simple(c.CMD_UPDATE, 0, items)

    def make_endpoint(self, name: bytes, flags: int = 0, items: bytes = b"") -> int:
        return self.simple(c.CMD_ENDPOINT_MAKE, flags, make_item(c.ITEM_MAKE_NAME, name + b"\0") + items)

    def update_endpoint(self, items: bytes = b"") -> int:
        return self.simple(c.CMD_ENDPOINT_UPDATE, 0, items)

    def request(self, dst: int, cookie: int, *, timeout: int = FAR, sync: bool = False, items: bytes = b"") -> int:
        return self.send(
            dst=dst,
            flags=c.MSG_EXPECT_REPLY,
            cookie=cookie,
            cookie_reply=timeout,
            send_flags=c.SEND_SYNC_REPLY if sync else 0,
            items=items,
        )

    def reply(self, dst: int, to: int, items: bytes = b"") -> int:
        return self.send(dst=dst, cookie_reply=to, items=items)

    def signal(self, dst: int = c.DST_ID_BROADCAST, *, bits: int = 0, items: bytes = b"", cookie: int = 1) -> int:
        return self.send(dst=dst, flags=c.MSG_SIGNAL, cookie=cookie, items=items + bloom(bits))

    def drain(self) -> list[Received]:
        """Receive and free all queued messages, with their descriptors."""
        messages = []
        while (result := self.recv()) == 0:
            messages.append(self.last_message())
            installation = messages[-1].installation
            if installation is not None:
                installation.done()
            assert self.free(messages[-1].offset) == 0
        assert result == -11
        return messages

    def cookies(self) -> list[int]:
        return [message.cookie for message in self.drain()]


class NeutralClient(LastClient):
    """The same, for who does not care what a client speaks: it takes items as v3 numbers them."""

    def call(self, number: int, fixed: bytes, items: bytes = b"", *, size: int | None = None) -> Call:
        if number in (c.CMD_HELLO, c.CMD_UPDATE, c.CMD_ENDPOINT_UPDATE, c.CMD_MATCH_ADD, c.CMD_SEND):
            items = LAST.to_wire(items)
        return super().call(number, fixed, items, size=size)

    def send_raw(self, body: bytes, *, send_flags: int = 0, send_items: bytes = b"") -> int:
        return super().send_raw(body[:64] + LAST.to_wire(body[64:]), send_flags=send_flags, send_items=send_items)

    def vec(self, data: bytes) -> bytes:
        return Client.vec(self, data)


class LastWorld(World):
    """A domain with one bus, and helpers to add clients of the last ABI."""

    def __init__(self, *, bus_flags: int = c.MAKE_ACCESS_WORLD, bloom: int = 64, required: int = 0) -> None:
        super().__init__(bus_flags=bus_flags, bloom=bloom, required=required)

    def open_last(
        self, process: FakeProcess | None = None, *, endpoint: str = "bus", bus: str = "1000-test"
    ) -> LastClient:
        process = process or self.owner
        node = self.domain.buses[bus].endpoints[endpoint]
        handle: EndpointHandle = self.domain.open_endpoint(node, FakeCaller(process), FakeMemory())
        return LastClient(self, process, handle)

    def last(
        self,
        process: FakeProcess | None = None,
        *,
        endpoint: str = "bus",
        flags: int = c.HELLO_ACCEPT_FD,
        send: int = c.ATTACH_ANY,
        recv: int = 0,
        pool_size: int = POOL_SIZE,
        items: bytes = b"",
    ) -> LastClient:
        """A connection that speaks the last ABI."""
        client = self.open_last(process, endpoint=endpoint)
        result = client.hello(flags=flags, send=send, recv=recv, pool_size=pool_size, items=items)
        assert result == 0, result
        return client

    def control_last(self, process: FakeProcess | None = None) -> LastClient:
        process = process or self.owner
        return LastClient(self, process, self.domain.open_control(FakeCaller(process)))


def name_item(name: bytes) -> bytes:
    return make_item(c.ITEM_NAME, name + b"\0")


def bus_items(name: bytes = b"1000-last", *, bloom_size: int = 64, n_hash: int = 1) -> bytes:
    parameter = make_item(c.ITEM_BLOOM_PARAMETER, pack("<QQ", bloom_size, n_hash))
    return make_item(c.ITEM_MAKE_NAME, name + b"\0") + parameter


def bloom(bits: int = 0, generation: int = 0, size: int = 64) -> bytes:
    return make_item(c.ITEM_BLOOM_FILTER, pack("<Q", generation) + bits.to_bytes(size, "little"))


def dst_name(name: bytes) -> bytes:
    return make_item(c.ITEM_DST_NAME, name + b"\0")


def u64_item(kind: int, value: int) -> bytes:
    return make_item(kind, pack("<Q", value))


def pass_files(process: FakeProcess, *files: FakeFile) -> bytes:
    """An FDS item with descriptors of `process` for `files`."""
    return make_item(c.ITEM_FDS, pack(f"<{len(files)}i", *[_open(process, file) for file in files]))


def pass_memfd(process: FakeProcess, size: int, *, start: int = 0, file: FakeFile | None = None) -> bytes:
    number = _open(process, file or sealed_memfd(start + size))
    return make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", start, size, number, 0))


def _open(process: FakeProcess, file: FakeFile) -> int:
    number = max(process.files, default=2) + 1
    process.files[number] = file
    return number
