"""CLOSE: what the end of a connection does, before it returns."""

from __future__ import annotations

from errno import EALREADY, EBUSY, ECONNRESET, ENXIO, EPIPE, ESRCH

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.base.ports import UNITS_BETWEEN_LOOKS
from tests.support.core_client import FakeProcess, World
from tests.support.core_scenes import (
    at_rest,
    cookies,
    drain,
    dst_name,
    events,
    listening,
    observer,
    pass_files,
    pass_memfd,
    reply,
    request,
    results,
    slots,
)
from tests.support.fake_host import FakeFile, sealed_memfd


def test_close_1_the_last_close_disconnects_and_lets_go_of_the_memory(world: World) -> None:
    client, other = world.connect(), world.connect()
    memory = client.memory
    client.close()
    assert memory.closed
    assert other.send(dst=client.id) == -ENXIO
    assert client.id not in world.domain.buses["1000-test"].connections


def test_close_2_the_whole_sequence_as_an_observer_sees_it(world: World) -> None:
    watcher = observer(world)
    leaver, waiter, async_peer, sync_peer = (world.connect() for _ in range(4))
    leaver.acquire(b"a.free")
    leaver.acquire(b"a.inherited")
    waiter.acquire(b"a.inherited", c.NAME_QUEUE)
    request(async_peer, leaver.id, 1)
    request(sync_peer, leaver.id, 2, sync=True)
    request(leaver, waiter.id, 3)
    request(leaver, waiter.id, 4, sync=True)
    drain(watcher)
    leaver.close()
    assert results(world) == [-ECONNRESET, -EPIPE]
    assert events(async_peer) == [(c.ITEM_REPLY_DEAD, 1)]
    assert events(sync_peer) == []
    assert events(watcher) == [
        (c.ITEM_NAME_REMOVE, leaver.id, 0, 0, 0, b"a.free"),
        (c.ITEM_NAME_CHANGE, leaver.id, 0, waiter.id, c.NAME_QUEUE, b"a.inherited"),
        (c.ITEM_ID_REMOVE, leaver.id, 1),
    ]
    assert reply(waiter, leaver.id, 3) == -ENXIO
    assert watcher.send(items=dst_name(b"a.free")) == -ESRCH
    drain(waiter)
    assert at_rest(leaver) and at_rest(waiter) and at_rest(async_peer) and at_rest(sync_peer)


def test_close_2_policy_entries_go_with_their_connection(world: World) -> None:
    policy = make_item(c.ITEM_NAME, b"a.b\0")
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=policy, free=False)
    holder.close()
    assert len(world.domain.buses["1000-test"].policy) == 0
    world.connect(flags=c.HELLO_POLICY_HOLDER, items=policy, free=False)


def test_close_3_the_notification_is_queued_when_close_returns(world: World) -> None:
    watcher, client = observer(world), world.connect()
    drain(watcher)
    client.close()
    assert len(watcher.connection.queue) == 1


def test_close_3_the_end_of_a_small_connection_does_not_look_at_the_clock(world: World) -> None:
    """On a slow machine it would yield, and the next command would not find the notification."""
    watcher, client = observer(world), world.connect()
    client.acquire(b"a.b")
    watcher.send(dst=client.id)
    drain(watcher)
    world.host.turn.watch()
    client.close()
    assert world.host.turn.units < UNITS_BETWEEN_LOOKS


@pytest.mark.parametrize("end", ["receive", "drop", "close", "byebye-refused", "bus"])
def test_close_5_files_in_flight_are_held_until_the_message_goes(world: World, end: str) -> None:
    sender, receiver = world.connect(), world.connect()
    file, memfd = FakeFile(), sealed_memfd(8)
    items = pass_files(sender.process, file) + pass_memfd(sender.process, 8, file=memfd)
    sender.send(dst=receiver.id, items=items)
    sender.close()
    assert (file.open_count, memfd.open_count) == (1, 1)
    if end == "receive":
        drain(receiver)
    elif end == "drop":
        receiver.recv(flags=c.RECV_DROP)
    elif end == "bus":
        world.control.close()
    else:
        if end == "byebye-refused":
            assert receiver.byebye() == -EBUSY
            assert (file.open_count, memfd.open_count) == (1, 1)
        receiver.close()
    assert (file.open_count, memfd.open_count) == (0, 0)


def test_close_5_files_for_several_receivers_are_closed_with_the_last(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    monitors = [world.connect(flags=c.HELLO_MONITOR | c.HELLO_ACCEPT_FD) for _ in range(2)]
    for monitor in monitors:
        drain(monitor)
    file = FakeFile()
    sender.send(dst=receiver.id, items=pass_files(sender.process, file))
    drain(receiver)
    monitors[0].close()
    assert file.open_count == 1
    monitors[1].close()
    assert file.open_count == 0


def test_close_6_only_the_last_close_counts_not_the_process(world: World) -> None:
    process = FakeProcess(uid=1000, pid=200)
    client, other = world.connect(process), world.connect()
    process.alive = False
    assert other.send(dst=client.id, cookie=4) == 0
    client.process = FakeProcess(uid=1000, pid=201)
    assert cookies(client) == [4]


def test_bye_3_close_after_byebye_does_nothing_more(world: World) -> None:
    watcher, client = observer(world), world.connect()
    drain(watcher)
    assert client.byebye() == 0
    assert client.byebye() == -EALREADY
    client.close()
    assert len(drain(watcher)) == 1


def test_close_leaves_nothing_of_a_busy_connection(world: World) -> None:
    """CLOSE-2: accounts, listeners, trackers and names are all back where they were."""
    process = FakeProcess(uid=2000, pid=200)
    bus = world.domain.buses["1000-test"]
    peer = world.connect()
    users = len(world.domain.users)
    client = world.connect(process)
    user = client.connection.user
    client.add_match(1)
    for cookie in range(1, 20):
        peer.send(dst=client.id, items=peer.vec(bytes(100)))
        request(peer, client.id, cookie)
    for _ in range(5):
        client.receive()
    client.receive(flags=c.RECV_PEEK)
    client.close()
    drain(peer)
    assert len(world.domain.users) == users
    assert user.idle and user.account.used == 0
    assert not listening(world)
    assert slots(peer) == 0 and at_rest(peer)
    assert list(bus.connections) == [peer.id]
