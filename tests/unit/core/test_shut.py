"""SHUT: the end of buses and endpoints."""

from __future__ import annotations

from errno import EAGAIN, EALREADY, ECONNRESET, ENXIO, EPIPE, ESHUTDOWN

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.constants import CMD_BYEBYE
from kdbusfs.base.errors import CommandError
from tests.support.core_client import PENDING, World
from tests.support.core_scenes import cookies, drain, events, observer, request, results
from tests.support.fake_host import FakeCaller, FakeMemory


def test_shut_1_all_are_gone_and_none_is_told_of_the_others(world: World) -> None:
    first, second, watcher, last = world.connect(), world.connect(), observer(world), world.connect()
    first.acquire(b"a.b")
    request(watcher, first.id, 1)
    drain(watcher)
    received = watcher.connection.traffic.received
    world.control.close()
    assert watcher.connection.traffic.received == received
    for client in (first, second, watcher, last):
        assert client.recv() == -ECONNRESET
        assert client.send(dst=1) == -ECONNRESET
        assert client.command(0x1234, bytes(8)) == -ECONNRESET


def test_shut_1_whoever_looks_in_between_finds_some_gone_and_the_others_as_they_were(world: World) -> None:
    clients = [world.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.acquire(b"a.n%d" % number)
    fresh = world.open()
    seen = []

    def look() -> None:
        world.host.turn.meanwhile = None
        if clients[0].recv() == -ECONNRESET and clients[2].recv() == -EAGAIN:
            seen.append(fresh.hello())
            seen.append(clients[2].send(dst=clients[0].id))
            seen.append(clients[2].send(dst=clients[1].id) in (0, -ENXIO))
        world.host.turn.meanwhile = look

    world.host.turn.meanwhile = look
    world.control.close()
    world.host.turn.meanwhile = None
    assert seen and set(zip(*[iter(seen)] * 3, strict=True)) == {(-ESHUTDOWN, -ENXIO, True)}
    assert world.domain.buses == {}
    for client in (*clients, fresh):
        client.close()
    assert len(world.domain.users) == 0


def test_shut_1_everything_comes_to_rest(world: World) -> None:
    clients = [world.connect() for _ in range(5)]
    for number, client in enumerate(clients):
        client.acquire(b"a.n%d" % number)
        client.acquire(b"a.n0", c.NAME_QUEUE)
        client.add_match(1)
        request(client, clients[number - 1].id, 1)
        request(client, clients[number - 2].id, 2, sync=True)
    world.control.close()
    assert len(results(world)) == 5 and not world.domain.waiting
    for client in clients:
        client.close()
    assert len(world.domain.users) == 0
    assert world.domain.buses == {}
    assert world.domain.stats()["buses"] == []
    assert world.domain.next_deadline() == 0


def test_shut_3_files_opened_before_the_end_fail_cleanly_after_it(world: World) -> None:
    fresh, owner = world.open(), world.open()
    assert owner.make_endpoint(b"1000-custom") == 0
    endpoint = world.domain.buses["1000-test"].endpoints["bus"]
    world.control.close()
    assert fresh.hello() == -ESHUTDOWN
    assert fresh.make_endpoint(b"1000-other") == -ESHUTDOWN
    assert owner.update_endpoint() == 0
    with pytest.raises(CommandError) as caught:
        world.domain.open_endpoint(endpoint, FakeCaller(world.owner), FakeMemory())
    assert caught.value.errno == ESHUTDOWN
    owner.close()
    fresh.close()


def test_shut_3_matches_and_names_of_a_dead_connection_are_gone(world: World) -> None:
    client = world.connect()
    client.add_match(1)
    world.control.close()
    assert client.remove_match(1) == -ECONNRESET
    assert client.command(CMD_BYEBYE, bytes(8)) == -EALREADY


def test_shut_4_the_pool_stays_readable(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    sender.send(dst=receiver.id, items=sender.vec(b"still here"))
    message = receiver.receive()
    world.control.close()
    assert receiver.payloads(message) == [b"still here"]
    assert not receiver.memory.closed
    receiver.close()
    assert receiver.memory.closed


def test_shut_5_a_custom_endpoint_takes_only_its_own_connections_along(world: World) -> None:
    owner = world.open()
    assert owner.make_endpoint(b"1000-custom", c.MAKE_ACCESS_WORLD) == 0
    inside, outside, watcher = world.connect(endpoint="1000-custom"), world.connect(), observer(world)
    request(outside, inside.id, 1)
    assert request(outside, inside.id, 2, sync=True) == PENDING
    owner.close()
    assert inside.recv() == -ECONNRESET
    assert results(world) == [-EPIPE]
    assert events(outside) == [(c.ITEM_REPLY_DEAD, 1)]
    assert events(watcher) == [(c.ITEM_ID_REMOVE, inside.id, 1)]
    assert outside.send(dst=watcher.id, cookie=3) == 0
    assert cookies(watcher) == [3]
    assert list(world.domain.buses["1000-test"].endpoints) == ["bus"]
    inside.close()
    assert world.open().make_endpoint(b"1000-custom") == 0


def test_fs_29_the_end_of_the_domain_is_the_end_of_every_bus(world: World) -> None:
    other = world.open_control(world.owner)
    assert world.make_bus(other, b"1000-other") == 0
    client = world.connect()
    assert request(client, client.id, 1, sync=True) == PENDING
    world.domain.shutdown()
    assert world.domain.buses == {}
    assert results(world) == [-ECONNRESET]
    assert client.recv() == -ECONNRESET
    assert world.make_bus(world.control, b"1000-new") == -ESHUTDOWN
    other.close()
    world.control.close()
