"""Writes what the fuzzers begin with, from commands that clients of the core give: `python -m tests.fuzz.corpus`."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from struct import pack

from kdbusfs.abi import commands as k
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.commands import COMMANDS
from kdbusfs.base.call import Call
from tests.support import items
from tests.support.core_client import Client, World
from tests.support.core_scenes import pass_files, pass_memfd
from tests.support.fake_host import FakeFile, sealed_memfd

HERE = Path(__file__).parent / "corpus"
NAME = b"org.example.Service"
# As in tests/native/fuzz_ioctl.c.
IN_C = (k.SEND, k.RECV, k.FREE, k.HELLO, k.NAME_ACQUIRE, k.CONN_INFO, k.MATCH_ADD)
OTHERS_IN_C = (
    pack("<7Q", 56, 0, 0, 0, 0, 0, 0) + pack("<8Q", 64, 0, 0, 1, 2, 0, 7, 0),  # SEND of the last kdbus, and a message
    pack("<8Q", 64, 0, 0, 0, 0, 0, 0, 0),  # RECV
    pack("<4Q", 32, 0, 0, 64),  # FREE
    pack("<5Q", 40, 1, 0, 0, 0),  # LIST
    pack("<10Q", 0, 4096, 0, 1, 0, 0, 0, 0, 0, 0),  # SEND of bus1
    pack("<12Q", 0, 1 << 20, *bytes(10)),  # RECV
    pack("<3Q", 0, 4096, 1),  # NODES_DESTROY
)
"""The structs of further commands there, which come after those and BYEBYE."""


class Recorder(Client):
    """A client that keeps what it has asked for."""

    calls: list[Call]

    def run(self, call: Call) -> int:
        self.calls.append(call)
        return super().run(call)


def recorded() -> list[Call]:
    """Each command of the family, most with items, and messages of all kinds."""
    world = World()
    calls: list[Call] = []
    clients = []
    for _ in range(2):
        client = world.connect()
        client.__class__ = Recorder
        assert isinstance(client, Recorder)
        client.calls = calls
        clients.append(client)
    first, second = clients
    newcomer = world.open()
    newcomer.__class__ = Recorder
    assert isinstance(newcomer, Recorder)
    newcomer.calls = calls
    newcomer.hello(items=items.string(c.ITEM_CONN_DESCRIPTION, b"a-client"))
    first.acquire(NAME)
    second.add_match(1, items.string(c.ITEM_NAME, NAME) + items.id_change(c.ITEM_ID_ADD))
    first.send(dst=second.id, items=first.vec(b"payload"))
    first.send(dst=second.id, items=pass_files(first.process, FakeFile()))
    first.send(dst=second.id, items=pass_memfd(first.process, 8, file=sealed_memfd(8)))
    second.send(dst=0, items=items.string(c.ITEM_DST_NAME, NAME) + second.vec(b"to a name"))
    first.send(dst=c.DST_ID_BROADCAST, flags=c.MSG_SIGNAL, items=items.bloom_filter(64, b"\1"))
    first.receive()
    offset = second.receive().offset
    second.free(offset)
    first.conn_info(name=NAME)
    first.list_names(c.NAME_LIST_NAMES | c.NAME_LIST_UNIQUE)
    first.update(items.u64(c.ITEM_ATTACH_FLAGS_RECV, 1))
    first.release_name(NAME)
    second.remove_match(1)
    second.byebye()
    return calls


def write(directory: str, data: bytes) -> None:
    (HERE / directory / sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    for directory in ("decode", "ioctl"):
        (HERE / directory).mkdir(parents=True, exist_ok=True)
        for old in (HERE / directory).iterdir():
            old.unlink()
    for index, struct in enumerate(OTHERS_IN_C):
        write("ioctl", bytes((len(IN_C) + 1 + index, 1, 0, 0, 0, 0, 0, 0)) + struct)
    kinds = {command.number: command.kind for command in COMMANDS.values()}
    order = sorted(kinds.values())
    for call in recorded():
        if call.number not in kinds:
            continue
        kind = kinds[call.number]
        body = call.data + (call.message or b"")
        write("decode", pack("<BH", order.index(kind), len(call.data)) + body)
        fixed = next(command.size for command in COMMANDS.values() if command.kind == kind)
        if len(call.data) > fixed:
            write("decode", pack("<BH", 0x80, 0) + call.data[fixed:])
        if call.message:
            write("decode", pack("<BH", 0x80, 0) + call.message[64:])
        if kind in IN_C:
            write("ioctl", bytes((IN_C.index(kind), 1, 0, 0, 0, 0, 0, 0)) + body)


if __name__ == "__main__":
    main()
