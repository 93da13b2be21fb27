"""The statistics of connections that `.kdbusfs/connections` shows are exact."""

from __future__ import annotations

from errno import ENOBUFS, EOVERFLOW, EPERM
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, FakeProcess, World
from tests.support.core_scenes import drain, dst_name, observer, pass_memfd, reply, request, results, signal

NAME = b"com.example"


@pytest.fixture
def world() -> World:
    return World()


def figures(world: World, client: Client) -> dict[str, object]:
    (found,) = [each for each in world.domain.connection_details(1) if each["id"] == client.id]
    return found


def traffic(world: World, client: Client) -> tuple[Any, ...]:
    found = figures(world, client)
    return found["sent"], found["sent_bytes"], found["received"], found["received_bytes"]


def test_who_a_connection_is(world: World) -> None:
    process = FakeProcess(uid=1000, pid=4711)
    client = world.connect(process, items=make_item(c.ITEM_CONN_DESCRIPTION, b"some-text\0"))
    client.acquire(NAME)
    client.add_match(1)
    found = figures(world, client)
    assert (found["bus"], found["endpoint"], found["names"]) == ("1000-test", "bus", ["com.example"])
    assert (found["description"], found["family"]) == ("some-text", "v3")
    assert (found["uid"], found["pid"], found["flags"], found["matches"]) == (1000, 4711, c.HELLO_ACCEPT_FD, 1)
    assert found["pool_size"] == client.connection.pool.size and found["pool_used"] == 0
    (elsewhere,) = world.domain.connection_details(99)
    assert elsewhere["pid"] is None, "a pid means nothing in a namespace where the process is not seen"


def test_what_is_delivered_counts_at_both_ends(world: World) -> None:
    one, other = world.connect(), world.connect()
    assert one.send(dst=other.id, items=one.vec(b"x" * 24)) == 0
    assert one.send(dst=other.id, items=one.vec(b"y" * 8) + pass_memfd(one.process, 4096)) == 0
    assert traffic(world, one) == (2, 24 + 8 + 4096, 0, 0)
    assert traffic(world, other) == (0, 0, 2, 24 + 8 + 4096)
    found = figures(world, other)
    assert (found["queued"], found["queued_bytes"]) == (2, 32)
    assert found["pool_used"] == 32 and found["pool_slices"] == 2
    drain(other)
    assert figures(world, other)["queued_bytes"] == 0
    assert traffic(world, other) == (0, 0, 2, 24 + 8 + 4096)


def test_what_was_refused_does_not_count(world: World) -> None:
    one, other = world.connect(FakeProcess(uid=2000)), world.connect()
    assert one.send(dst=other.id) == -EPERM
    friend = world.connect()
    for _ in range(32):
        assert friend.send(dst=other.id) == 0
    assert friend.send(dst=other.id) == -ENOBUFS
    assert traffic(world, one)[0] == 0
    assert traffic(world, friend)[0] == 32
    assert traffic(world, other)[2] == 32


def test_a_broadcast_is_one_message_of_its_sender(world: World) -> None:
    source, *listeners = world.connect(), observer(world), observer(world)
    for each in listeners:
        drain(each)
    before = [traffic(world, each)[2] for each in listeners]
    assert signal(source, items=source.vec(b"12345678")) == 0
    assert traffic(world, source) == (1, 8, 0, 0)
    after = [traffic(world, each)[2] for each in listeners]
    assert [later - sooner for sooner, later in zip(before, after, strict=True)] == [1, 1]


def test_requests_and_both_kinds_of_answers(world: World) -> None:
    one, other = world.connect(), world.connect()
    assert request(one, other.id, 1) == 0
    assert figures(world, one)["requests"] == 1 and figures(world, other)["owed"] == 1
    drain(other)
    assert reply(other, one.id, 1, items=other.vec(b"1234567890123456")) == 0
    assert figures(world, one)["requests"] == 0 and figures(world, other)["owed"] == 0
    assert traffic(world, one) == (1, 0, 1, 16)
    assert request(one, other.id, 2, sync=True) is PENDING
    assert reply(other, one.id, 2, items=other.vec(b"12345678")) == 0
    assert results(world) == [0]
    assert traffic(world, one) == (2, 0, 2, 24)
    assert traffic(world, other) == (2, 24, 2, 0)


def test_messages_that_change_hands_were_received_by_both(world: World) -> None:
    waker = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, NAME + b"\0"))
    sender, owner = world.connect(), world.connect()
    assert sender.send(items=dst_name(NAME) + sender.vec(b"12345678")) == 0
    owner.acquire(NAME)
    assert traffic(world, waker) == (0, 0, 1, 8)
    assert traffic(world, owner) == (0, 0, 1, 8)


def test_lost_broadcasts_stay_counted_when_they_were_told(world: World) -> None:
    source, listener = world.connect(), world.connect()
    listener.add_match(1)
    for _ in range(40):
        assert signal(source) == 0
    lost = figures(world, listener)["lost"]
    assert lost == 40 - 32
    assert listener.recv() == -EOVERFLOW
    assert figures(world, listener)["lost"] == lost
    drain(listener)
    for _ in range(40):
        assert signal(source) == 0
    assert figures(world, listener)["lost"] == 2 * 8


def test_who_ends_meanwhile_is_left_out(world: World) -> None:
    clients = [world.connect() for _ in range(3)]
    walk = world.domain.connection_details(1)
    assert next(walk)["id"] == clients[0].id
    clients[1].close()
    world.connect()
    assert [each["id"] for each in walk] == [clients[2].id]
