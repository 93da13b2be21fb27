"""QUO: how many messages a queue takes, from whom."""

from __future__ import annotations

from errno import EMLINK, ENOBUFS
from typing import Any

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, FakeProcess, World
from tests.support.core_scenes import cookies, drain, id_change, reply, request, results, signal


def user(world: World, uid: int) -> Client:
    """A connection of another user that may talk to everybody."""
    return world.connect(FakeProcess(uid=uid, pid=uid, ipc_owner=True))


def fill(client: Client, receiver: Client, **more: Any) -> int:
    """Send until it fails with ENOBUFS.  Returns how many succeeded."""
    count = 0
    while (result := client.send(dst=receiver.id, **more)) == 0:
        count += 1
    assert result == -ENOBUFS
    return count


def test_quo_1_lim_11_the_257th_message_is_enobufs_whoever_sends(world: World) -> None:
    receiver = world.connect()
    counts = [fill(user(world, 2000 + n), receiver) for n in range(15)]
    assert counts == [32] + [16] * 14
    assert fill(user(world, 3000), receiver) == 0
    assert len(receiver.connection.queue) == 256


def test_quo_1_a_full_queue_loses_broadcasts_and_notifications(world: World) -> None:
    receiver = world.connect()
    for n in range(15):
        fill(user(world, 2000 + n), receiver)
    receiver.add_match(1)
    peer = world.connect()
    assert receiver.connection.traffic.lost == 1
    assert signal(peer) == 0
    assert receiver.connection.traffic.lost == 2
    monitor = world.connect(flags=c.HELLO_MONITOR)
    for _ in range(300):
        peer.add_match(1)
        peer.acquire(b"a.b")
        peer.release_name(b"a.b")
    assert len(monitor.connection.queue) == 256
    assert monitor.connection.traffic.lost == 600 - 256


def test_quo_2_lim_11_one_user_can_queue_32_into_an_idle_receiver(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    assert fill(sender, receiver) == 32
    assert fill(world.connect(), receiver) == 0  # the same user
    assert fill(user(world, 2000), receiver) == 16


def test_quo_3_accounted_is_the_real_uid_at_hello(world: World) -> None:
    process = FakeProcess(uid=2000, pid=200, ipc_owner=True)
    sender, receiver = world.connect(process), world.connect()
    assert fill(sender, receiver) == 32
    process.uid = 5000
    assert fill(sender, receiver) == 0
    assert fill(world.connect(process), receiver) == 16


def test_quo_3_all_of_a_custom_endpoint_are_one_user(world: World) -> None:
    name = make_item(c.ITEM_NAME, b"a.b\0")
    talk = make_item(c.ITEM_POLICY_ACCESS, b"".join(n.to_bytes(8, "little") for n in (3, 1, 0)))
    assert world.open().make_endpoint(b"1000-custom", c.MAKE_ACCESS_WORLD, name + talk) == 0
    receiver = world.connect()
    receiver.acquire(b"a.b")
    first = world.connect(endpoint="1000-custom")
    second = world.connect(endpoint="1000-custom")
    assert fill(first, receiver) == 32
    assert fill(second, receiver) == 0
    assert fill(world.connect(), receiver) == 16


def test_quo_4_receiving_an_accounted_message_gives_its_slot_back(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    fill(sender, receiver)
    for _ in range(16):  # these were never accounted
        receiver.receive()
        assert sender.send(dst=receiver.id) == -ENOBUFS
    receiver.receive()
    # 15 left: below 16 nothing is accounted, so the next is free, and the one after takes the slot
    assert fill(sender, receiver) == 2


def test_quo_4_dropping_gives_the_slot_back_and_an_empty_queue_all(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    fill(sender, receiver)
    for _ in range(32):
        assert receiver.recv(flags=c.RECV_DROP) == 0
    assert fill(sender, receiver) == 32


def test_quo_4_messages_moved_to_another_connection_are_accounted_no_more(world: World) -> None:
    sender = world.connect()
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.b\0"))
    name = make_item(c.ITEM_DST_NAME, b"a.b\0")
    while sender.send(items=name) == 0:
        pass
    assert len(activator.connection.queue) == 32
    taker = world.connect()
    assert taker.acquire(b"a.b") == 0
    assert len(taker.connection.queue) == 32
    assert fill(sender, taker) == 16
    assert taker.release_name(b"a.b") == 0
    assert (len(activator.connection.queue), len(taker.connection.queue)) == (32, 16)
    assert fill(sender, taker) == 0  # a message that went back holds no slot


def test_quo_5_notifications_and_sync_replies_are_nobodys(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    fill(sender, receiver)
    assert request(receiver, sender.id, 1, sync=True) == PENDING
    assert reply(sender, receiver.id, 1) == 0
    assert results(world) == [0]
    receiver.add_match(1, id_change(c.ITEM_ID_ADD))
    for _ in range(30):
        world.connect()
    assert len(receiver.connection.queue) == 62
    assert receiver.connection.traffic.lost == 0


def test_quo_6_a_message_refused_by_the_quota_leaves_nothing_in_the_pool(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    fill(sender, receiver)
    before = receiver.connection.pool.busy
    assert sender.send(dst=receiver.id, items=sender.vec(bytes(100))) == -ENOBUFS
    assert receiver.connection.pool.busy == before
    assert len(drain(receiver)) == 32
    assert receiver.connection.pool.busy == 0


def test_quo_6_a_request_refused_by_the_quota_takes_no_request_slot(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    fill(sender, receiver)
    for cookie in range(1, 200):
        assert request(sender, receiver.id, cookie) == -ENOBUFS
    assert sender.connection.requests.count == 0
    assert not receiver.connection.requests.owed


def test_rep_2_the_limit_of_requests_holds_before_the_quota(world: World) -> None:
    sender = world.connect()
    receivers = [world.connect() for _ in range(5)]
    for cookie in range(128):
        assert request(sender, receivers[cookie // 32].id, cookie + 1) == 0
    assert request(sender, receivers[0].id, 500) == -EMLINK
    assert [len(cookies(receiver)) for receiver in receivers] == [32] * 4 + [0]
