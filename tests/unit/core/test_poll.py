"""POLL: readiness of files, and that every change of it is announced."""

from __future__ import annotations

from select import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, World
from tests.support.core_scenes import expire, reply, request

DEAD = POLLERR | POLLHUP
IDLE = POLLOUT | POLLWRNORM
READY = IDLE | POLLIN | POLLRDNORM


def test_poll_1_fresh_files_and_endpoint_owners_are_dead(world: World) -> None:
    fresh = world.open()
    assert fresh.handle.poll() == DEAD
    assert fresh.hello(pool_size=1) != 0
    assert fresh.handle.poll() == DEAD
    assert fresh.make_endpoint(b"1000-custom") == 0
    assert fresh.handle.poll() == DEAD


@pytest.mark.parametrize("flags", [0, c.HELLO_MONITOR, c.HELLO_POLICY_HOLDER, c.HELLO_ACTIVATOR])
def test_poll_2_connected_files_are_writable(world: World, flags: int) -> None:
    name = make_item(c.ITEM_NAME, b"a.b\0") if flags & (c.HELLO_POLICY_HOLDER | c.HELLO_ACTIVATOR) else b""
    client = world.connect(flags=flags, items=name, free=False)
    assert client.handle.poll() == IDLE


def test_poll_2_poll_4_readable_exactly_while_something_is_queued(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    for _ in range(3):
        sender.send(dst=receiver.id)
    for _ in range(3):
        assert receiver.handle.poll() == READY
        assert receiver.recv(flags=c.RECV_PEEK) == 0
        assert receiver.handle.poll() == READY
        receiver.receive()
    assert receiver.handle.poll() == IDLE


def test_poll_3_dead_connections_have_err_and_hup_and_announce_it(world: World) -> None:
    clients = [world.connect() for _ in range(3)]
    world.domain.changed.clear()
    clients[0].byebye()
    assert clients[0].handle in world.domain.changed
    world.control.close()
    for client in clients:
        assert client.handle.poll() == DEAD
        assert client.handle in world.domain.changed


def test_poll_4_lost_messages_alone_make_nothing_readable(world: World) -> None:
    client = world.connect()
    client.connection.traffic.lost = 5
    assert client.handle.poll() == IDLE


def test_poll_5_rep_15_a_sync_reply_makes_nothing_readable(world: World) -> None:
    client, server = world.connect(), world.connect()
    assert request(client, server.id, 1, sync=True) == PENDING
    reply(server, client.id, 1)
    assert client.handle.poll() == IDLE


def test_poll_6_hello_announces_the_change(world: World) -> None:
    client = world.open()
    world.domain.changed.clear()
    assert client.hello() == 0
    assert client.handle in world.domain.changed
    assert client.handle.poll() == IDLE


def test_fs_23_the_control_file_is_always_ready(world: World) -> None:
    assert world.control.handle.poll() == READY


def readiness(clients: list[Client]) -> dict[object, int]:
    return {client.handle: client.handle.poll() for client in clients}


def test_poll_2_no_change_goes_without_announcement(world: World) -> None:
    """Invariant: a cache of `poll()` that is updated for `changed` handles only is always right."""
    client, server, other = world.connect(), world.connect(), world.connect()
    waker = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.b\0"))
    clients = [client, server, other, waker]
    name = make_item(c.ITEM_DST_NAME, b"a.b\0")
    steps = [
        lambda: client.send(dst=server.id),
        lambda: server.recv(flags=c.RECV_DROP),
        lambda: client.send(items=name),
        lambda: other.add_match(1),
        lambda: server.acquire(b"a.b"),
        lambda: other.recv(),
        lambda: server.release_name(b"a.b"),
        lambda: waker.recv(),
        lambda: request(client, server.id, 1, timeout=5),
        lambda: server.recv(),
        lambda: expire(world, 5),
        lambda: client.recv(),
        lambda: request(client, server.id, 2),
        lambda: server.recv(flags=c.RECV_DROP),
        lambda: client.recv(),
        lambda: request(client, server.id, 3),
        server.close,
        client.byebye,
        world.control.close,
    ]
    known = readiness(clients)
    for step in steps:
        world.domain.changed.clear()
        step()
        for handle in world.domain.changed:
            known[handle] = handle.poll()
        assert known == {**known, **readiness(clients)}
