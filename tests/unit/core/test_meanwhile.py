"""Races: commands of others during a broadcast or a list of names (`Turn.spend`): BC, LIST, POL-18."""

from __future__ import annotations

from collections.abc import Callable
from errno import ECONNRESET, ENOBUFS, ESHUTDOWN
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from tests.support import items as i
from tests.support.core_client import Client, World
from tests.support.core_scenes import drain, mask, signal


def once(world: World, action: Callable[[], object], after: int = 0) -> None:
    """Run a command of another client at one of the next pauses: the one after `after` others."""
    turn = world.host.turn
    places = [after]

    def meanwhile() -> None:
        places[0] -= 1
        if places[0] == -1:
            action()

    turn.meanwhile = meanwhile


def heard(receiver: Client) -> bool:
    return bool(drain(receiver))


@pytest.fixture
def receivers(world: World) -> list[Client]:
    clients = [world.connect() for _ in range(4)]
    for client in clients:
        assert client.add_match(1, mask(0)) == 0
    return clients


@pytest.mark.parametrize("after", range(10))
def test_bc_1_a_receiver_leaves_during_a_broadcast(world: World, receivers: list[Client], after: int) -> None:
    """BC-1: at any moment; each of the others gets its copy."""
    sender = world.connect()
    leaver = receivers[2]
    once(world, leaver.close, after)
    assert signal(sender) == 0
    world.host.turn.meanwhile = None
    assert [len(drain(receiver)) for receiver in receivers if receiver is not leaver] == [1, 1, 1]
    assert signal(sender) == 0
    assert [len(drain(receiver)) for receiver in receivers if receiver is not leaver] == [1, 1, 1]


@pytest.mark.parametrize("after", range(8))
def test_match_13_a_match_is_removed_during_a_broadcast(world: World, receivers: list[Client], after: int) -> None:
    """MATCH-13: it may count or not; nothing else changes."""
    sender = world.connect()
    once(world, lambda: receivers[1].remove_match(1), after)
    assert signal(sender) == 0
    world.host.turn.meanwhile = None
    drain(receivers[1])
    assert [len(drain(receivers[number])) for number in (0, 2, 3)] == [1, 1, 1]
    assert signal(sender) == 0
    assert [len(drain(receiver)) for receiver in receivers] == [1, 0, 1, 1]


def through_an_endpoint(world: World) -> tuple[Client, Client, list[Client]]:
    """The sender, which owns a.b, the endpoint, and three that may hear the sender through it."""
    sender, end = world.connect(), world.open()
    assert sender.acquire(b"a.b") == 0
    assert end.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD, i.name(b"a.b") + i.world(c.POLICY_TALK)) == 0
    clients = [world.connect(endpoint="1000-e") for _ in range(3)]
    for client in clients:
        assert client.add_match(1, mask(0)) == 0
    return sender, end, clients


@pytest.mark.parametrize("change", ["policy", "name"])
def test_pol_18_the_answer_of_one_copy_does_not_outlast_a_change(world: World, change: str) -> None:
    """POL-18: the first has its copy when the policy, or the name that it is for, goes; the others get none."""
    sender, end, clients = through_an_endpoint(world)

    def revoke() -> None:
        if sum(client.connection.queue.count for client in clients) == 1:
            world.host.turn.meanwhile = None
            if change == "policy":
                assert end.update_endpoint(i.name(b"a.b")) == 0
            elif b"a.b" in sender.connection.names:
                assert sender.release_name(b"a.b") == 0

    world.host.turn.meanwhile = revoke
    assert signal(sender) == 0
    world.host.turn.meanwhile = None
    assert sorted(map(heard, clients)) == [False, False, True]


def list_names(client: Client) -> int:
    return client.command(c.CMD_NAME_LIST, pack("<QQQQQQ", 0, c.NAME_LIST_NAMES | c.NAME_LIST_UNIQUE, 0, 0, 0, 0))


@pytest.mark.parametrize("after", range(6))
def test_list_3_the_asker_leaves_during_its_list(world: World, after: int) -> None:
    """LIST-3: ECONNRESET, or the list if it was there; nothing stays charged."""
    asker = world.connect()
    others = [world.connect() for _ in range(3)]
    for number, other in enumerate(others):
        assert other.acquire(b"a.b%s" % (b"x" * number)) == 0
    before = asker.connection.user.account.used
    busy = asker.connection.pool.busy
    once(world, asker.byebye, after)
    result = list_names(asker)
    world.host.turn.meanwhile = None
    assert result == -ECONNRESET
    assert asker.connection.pool.busy == busy
    asker.close()
    assert others[0].connection.user.account.used <= before


@pytest.mark.parametrize("after", range(6))
def test_list_5_others_come_and_go_during_a_list(world: World, after: int) -> None:
    """LIST-5, LIST-8: a connection that existed all the time is listed once."""
    asker = world.connect()
    others = [world.connect() for _ in range(4)]
    for number, other in enumerate(others):
        assert other.acquire(b"a.b%s" % (b"x" * number)) == 0

    def change() -> None:
        others[2].close()
        assert world.connect().acquire(b"x.y") == 0

    once(world, change, after)
    records = asker.list_names(c.NAME_LIST_NAMES | c.NAME_LIST_UNIQUE)
    world.host.turn.meanwhile = None
    listed = [owner for owner, *_ in records]
    assert len(set(listed)) == len(listed)
    assert {asker.id, others[0].id, others[1].id, others[3].id} <= set(listed)


def test_list_3_a_list_that_is_longer_than_the_pool(world: World) -> None:
    """LIST-3, POOL-13: ENOBUFS as soon as the list is too long, and nothing stays charged."""
    for number in range(8):
        owner = world.connect(pool_size=4096)
        for other in range(256):
            assert owner.acquire(b"a.%s" % bytes([97 + number] * 200 + [97 + other // 16, 97 + other % 16])) == 0
        owner.process.memory.clear()
    asker = world.connect(pool_size=1 << 16)
    before = asker.connection.user.account.used
    world.host.turn.pauses = 0
    assert list_names(asker) == -ENOBUFS
    assert world.host.turn.pauses < 8
    assert asker.connection.user.account.used == before
    assert list_names(world.connect(pool_size=1 << 21)) == 0


@pytest.mark.parametrize("command", ["MATCH_ADD", "CONN_UPDATE"])
def test_gen_3_the_file_is_closed_before_its_items_count(world: World, command: str) -> None:
    """GEN-3: other commands run between the decoding of 32 KiB of items and their effect."""
    listener = world.connect()
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.b"))
    client = holder if command == "CONN_UPDATE" else listener
    once(world, client.close)
    if command == "CONN_UPDATE":
        assert client.update(i.name(b"a.c")) == -ECONNRESET
    else:
        assert client.add_match(1, mask(0)) == -ECONNRESET
    world.host.turn.meanwhile = None
    assert len(client.connection.matches) == 0
    assert len(world.domain.buses["1000-test"].policy) == (1 if client is listener else 0)


@pytest.mark.parametrize("by", ["bus", "file"])
def test_epm_3_the_bus_ends_before_the_items_of_an_endpoint_count(world: World, by: str) -> None:
    """EPM-3, EPU-2: nothing of the endpoint is left."""
    end = world.open()
    policy = i.name(b"a.b") + i.world(c.POLICY_TALK)
    if by == "bus":
        once(world, world.control.close)
        assert end.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD, policy) == -ESHUTDOWN
    else:
        assert end.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD, policy) == 0
        owned = end.endpoint.owned
        assert owned is not None and owned.policy is not None
        once(world, end.close)
        assert end.update_endpoint(policy) == 0
        assert len(owned.policy) == 0
    world.host.turn.meanwhile = None
    assert "1000-e" not in getattr(world.domain.buses.get("1000-test"), "endpoints", {})
