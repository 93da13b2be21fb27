"""POOL: what a pool gives out, to whom, and when it refuses."""

from __future__ import annotations

from errno import EFAULT, ENOBUFS, ENXIO, EXFULL
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.base.pool import SLICE_COST
from tests.support.core_client import Client, FakeProcess, World
from tests.support.core_scenes import dst_name, pass_memfd

PAGE = 4096


def send(sender: Client, receiver: Client, size: int) -> int:
    return sender.send(dst=receiver.id, items=sender.vec(bytes(size)))


def test_pool_1_the_memory_has_exactly_the_size_of_hello(world: World) -> None:
    client = world.connect(pool_size=3 * PAGE)
    memory = client.memory
    assert len(memory.data) == client.connection.pool.size == 3 * PAGE
    failed = world.open()
    assert failed.hello(pool_size=PAGE + 1) == -EFAULT
    assert not failed.memory.data


def test_pool_7_a_published_message_does_not_change_until_it_is_freed(world: World) -> None:
    sender, receiver = world.connect(), world.connect(pool_size=4 * PAGE)
    assert send(sender, receiver, 1000) == 0
    message = receiver.receive()
    before = bytes(receiver.pool[message.offset : message.offset + message.size])
    payload = receiver.payloads(message)
    while sender.send(dst=receiver.id, items=sender.vec(b"\xff" * 500)) == 0:
        receiver.recv()
    assert bytes(receiver.pool[message.offset : message.offset + message.size]) == before
    assert receiver.payloads(message) == payload


def test_pool_8_slices_are_aligned_and_disjoint_and_holes_are_filled_best_fit(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    messages = []
    for size in (100, 8, 1000, 8, 500, 8):
        assert send(sender, receiver, size) == 0
        messages.append(receiver.receive())
    # a message with its payload leaves a hole of both
    holes = {}
    for index in (0, 2, 4):
        holes[index] = messages[index].offset
        assert receiver.free(messages[index].offset) == 0
    assert send(sender, receiver, 480) == 0
    third = receiver.connection.queue.oldest()
    assert third is not None and third.payload is not None
    assert third.payload.offset == holes[4] - 504  # the hole of the 500 byte message fits best
    assert third.payload.offset % 8 == 0


@pytest.mark.parametrize(
    ("size", "errno"),
    [
        (PAGE // 2, 0),
        (PAGE // 2 + 1, EXFULL),
        (PAGE - 1, EXFULL),
        (PAGE, 0),  # exactly the free space
        (PAGE + 1, ENOBUFS),
    ],
)
def test_pool_9_more_than_half_of_the_free_space_is_exfull(world: World, size: int, errno: int) -> None:
    sender, receiver = world.connect(), world.connect(pool_size=PAGE)
    assert send(sender, receiver, size) == -errno
    assert receiver.connection.pool.busy == (0 if errno else size)


def test_pool_9_messages_without_stored_bytes_need_no_pool(world: World) -> None:
    sender, receiver = world.connect(), world.connect(pool_size=PAGE)
    assert send(sender, receiver, PAGE) == 0
    assert sender.send(dst=receiver.id) == 0
    assert sender.send(dst=receiver.id, items=pass_memfd(sender.process, 1 << 30)) == 0
    assert sender.send(dst=receiver.id, items=pass_memfd(sender.process, 1)) == -ENOBUFS
    assert send(sender, receiver, 1) == -ENOBUFS


def test_pool_9_half_is_rounded_down(world: World) -> None:
    sender, receiver = world.connect(), world.connect(pool_size=PAGE)
    assert send(sender, receiver, 2040) == 0
    left = PAGE - 2040
    assert send(sender, receiver, left // 2 + 1) == -EXFULL
    assert send(sender, receiver, left // 2) == 0


def test_pool_10_busy_counts_all_slices_but_not_the_headers_of_queued_messages(world: World) -> None:
    sender = world.connect()
    receiver = world.connect(pool_size=PAGE, free=False)
    pool = receiver.connection.pool
    assert pool.busy == 40
    receiver.conn_info(id=sender.id)
    assert pool.busy == 64
    assert sender.send(dst=receiver.id) == 0
    assert pool.busy == 64
    assert send(sender, receiver, 5) == 0
    assert pool.busy == 72
    receiver.receive()
    assert pool.busy == 72 + 64
    receiver.receive()
    assert pool.busy == 72 + 64 + 96


def test_pool_11_the_rule_is_for_each_message_in_the_receivers_pool(world: World) -> None:
    sender = world.connect(pool_size=PAGE)
    receiver = world.connect(pool_size=PAGE)
    for size, result in ((2048, 0), (1025, -EXFULL), (1024, 0), (512, 0), (257, -EXFULL), (256, 0)):
        assert send(sender, receiver, size) == result
    assert sender.connection.pool.busy == 0


def test_pool_12_messages_moved_to_a_taker_need_room_but_no_half_of_it(world: World) -> None:
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.b\0"))
    sender, taker = world.connect(), world.connect(pool_size=PAGE)
    assert sender.send(items=dst_name(b"a.b") + sender.vec(bytes(3000))) == 0
    assert sender.send(items=dst_name(b"a.b") + sender.vec(bytes(1000))) == 0
    assert taker.acquire(b"a.b") == 0
    assert taker.connection.pool.busy == 4000
    assert activator.connection.pool.busy == 0
    assert taker.connection.traffic.lost == 0


def test_pool_13_results_need_room_but_no_half_of_it(world: World) -> None:
    receiver = world.connect(pool_size=PAGE)
    sender = world.connect()
    assert send(sender, receiver, PAGE // 2) == 0
    for _ in range((PAGE // 2 - 96) // 24):
        assert receiver.conn_info(id=sender.id) == 0
    assert receiver.receive() is not None  # 96 bytes would be more than half of what is left
    while receiver.conn_info(id=sender.id) == 0:
        pass
    assert receiver.conn_info(id=sender.id) == -ENOBUFS
    assert receiver.command(c.CMD_NAME_LIST, pack("<QQQQQQ", 0, 1, 0, 0, 0, 0)) == -ENOBUFS
    assert receiver.command(c.CMD_BUS_CREATOR_INFO, pack("<QQQQQQQ", 0, 0, 0, 0, 0, 0, 0)) == -ENOBUFS
    assert receiver.free(PAGE) == -ENXIO


def test_the_daemons_memory_is_accounted_to_the_pools_user(world: World) -> None:
    """HELLO-13's user also pays for what its pools make the daemon hold; all of it comes back."""
    process = FakeProcess(uid=2000, pid=200)
    receiver = world.connect(process)
    user = receiver.connection.user
    start = user.account.used
    sender = world.connect()
    assert send(sender, receiver, 1 << 16) == 0
    assert user.account.used == start + (1 << 16) - 40 + SLICE_COST  # the slice of HELLO lay at the same place
    user.account.limit = user.account.used + 100
    assert send(sender, receiver, 8) == -ENOBUFS
    user.account.limit = 1 << 30
    receiver.close()
    assert user.account.used == 0 and user.idle
    assert user.uid not in world.domain.users._users
