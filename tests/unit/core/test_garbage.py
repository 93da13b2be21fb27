"""Closed objects leave no reference cycles: the garbage collector of the daemon scans young objects only."""

from __future__ import annotations

import gc

import pytest

from kdbusfs.abi import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import Client, FakeProcess, World
from tests.support.core_scenes import dst_name, request

ROUNDS = 20
NAME = make_item(c.ITEM_NAME, b"a.act\0")


def live_and_end(world: World, *, bus_first: bool) -> None:
    """A bus with a connection, an activator and an endpoint, each with one object of every kind."""
    process = FakeProcess(uid=1000)
    control = world.open_control(process)
    assert world.make_bus(control, b"1000-x") == 0
    client, waker, owner = (world.open(process, bus="1000-x") for _ in range(3))
    assert client.hello() == 0 and waker.hello(flags=c.HELLO_ACTIVATOR, items=NAME) == 0
    assert owner.make_endpoint(b"1000-e", items=make_item(c.ITEM_NAME, b"a.e\0")) == 0
    assert client.add_match(1) == 0 and client.acquire(b"a.b") == 0
    client.send(items=dst_name(b"a.act") + client.vec(b"hello"))
    request(client, 0, 3, sync=True, items=dst_name(b"a.act"))
    request(client, 0, 4, items=dst_name(b"a.act"))
    for call in list(world.domain.waiting):
        world.domain.interrupt(call)
    files: list[Client] = [client, waker, owner]
    for file in (control, *files) if bus_first else (*files, control):
        file.close()
    world.domain.changed.clear()
    world.domain.completed.clear()
    assert world.domain.next_deadline() == 0


@pytest.mark.parametrize("bus_first", [True, False])
def test_close_2_nothing_is_left_for_the_collector(world: World, bus_first: bool) -> None:
    live_and_end(world, bus_first=bus_first)
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            live_and_end(world, bus_first=bus_first)
        found = gc.collect()
    finally:
        gc.enable()
    assert found < ROUNDS
