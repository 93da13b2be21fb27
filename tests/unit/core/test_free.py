"""FREE: which slices a client can free."""

from __future__ import annotations

from errno import ECONNRESET, EINVAL, ENXIO, EOPNOTSUPP
from struct import pack

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, Pair, World
from tests.support.core_scenes import at_rest, pass_files, reply, request
from tests.support.fake_host import FakeFile


def offset_of(client: Client, at: int) -> int:
    return client.out(at)


def test_free_1_every_published_slice_can_be_freed_once(world: World) -> None:
    sender = world.connect()
    client = world.connect(free=False)
    published = [client.out(72)]
    sender.send(dst=client.id, items=sender.vec(b"x"))
    published += [client.receive(flags=c.RECV_PEEK).offset, client.receive().offset]
    assert client.command(c.CMD_NAME_LIST, pack("<QQQQQQ", 0, 1, 0, 0, 0, 0)) == 0
    published.append(client.out(32))
    assert client.conn_info(id=sender.id) == 0
    published.append(client.out(40))
    assert client.command(c.CMD_BUS_CREATOR_INFO, pack("<QQQQQQQ", 0, 0, 0, 0, 0, 0, 0)) == 0
    published.append(client.out(40))
    assert request(client, sender.id, 1, sync=True) == PENDING
    assert reply(sender, client.id, 1) == 0
    published.append(int.from_bytes(world.domain.completed[0].returned(72)[48:56], "little"))
    assert len(set(published)) == 7
    for offset in published:
        assert client.free(offset) == 0
        assert client.free(offset) == -ENXIO
    assert client.connection.pool.slices == 0


def test_free_1_nothing_else_can_be_freed(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=sender.vec(bytes(64)))
    message = receiver.receive()
    sender.send(dst=receiver.id, items=sender.vec(bytes(64)))
    payload = int.from_bytes(message.item(c.ITEM_PAYLOAD_OFF)[8:], "little")
    for offset in (payload, message.offset + 8, message.offset - 8, 1 << 20, c.U64_MAX, message.offset + 1):
        assert receiver.free(offset) == -ENXIO
    assert receiver.connection.pool.slices == 3


def test_free_2_freeing_a_message_frees_its_payload_too_and_closes_nothing(pair: Pair) -> None:
    sender, receiver = pair
    file = FakeFile()
    sender.send(dst=receiver.id, items=sender.vec(bytes(64)) + pass_files(sender.process, file))
    message = receiver.receive()
    assert receiver.free(message.offset) == 0
    assert at_rest(receiver)
    assert file.open_count == 1


def test_free_3_items_and_flags_are_einval(pair: Pair) -> None:
    _, receiver = pair
    assert receiver.command(c.CMD_FREE, bytes(40), make_item(c.ITEM_ID, bytes(8))) == -EINVAL
    assert receiver.command(c.CMD_FREE, pack("<QQQQQ", 0, 0, 1, 0, 0)) == -EINVAL
    assert receiver.in_memory(24) == c.FLAG_KERNEL


def test_free_4_policy_holders_and_dead_connections_cannot_free(world: World) -> None:
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=make_item(c.ITEM_NAME, b"a.b\0"), free=False)
    assert holder.free(0) == -EOPNOTSUPP
    for flags, items in ((c.HELLO_MONITOR, b""), (c.HELLO_ACTIVATOR, make_item(c.ITEM_NAME, b"a.c\0"))):
        client = world.connect(flags=flags, items=items, free=False)
        assert client.free(0) == 0
    client = world.connect(free=False)
    assert client.byebye() == 0
    assert client.free(0) == -ECONNRESET


def test_free_5_slices_go_with_the_connection_and_do_not_block_byebye(pair: Pair) -> None:
    sender, receiver = pair
    sender.send(dst=receiver.id, items=sender.vec(bytes(64)))
    receiver.receive()
    user = receiver.connection.user
    assert receiver.byebye() == 0
    assert receiver.connection.pool.slices == 2
    before = user.account.used
    receiver.close()
    assert receiver.connection.pool.slices == 0
    assert user.account.used < before


def test_free_stores_return_flags_in_the_clients_memory(pair: Pair) -> None:
    """GEN-12: FREE is _IOW, so its results go through the caller's memory."""
    sender, receiver = pair
    sender.send(dst=receiver.id)
    message = receiver.receive()
    assert receiver.command(c.CMD_FREE, pack("<QQQQQ", 0, message.offset, 0, 9, 9)) == 0
    assert (receiver.in_memory(24), receiver.in_memory(32)) == (c.FLAG_KERNEL, 0)
