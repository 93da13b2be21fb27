"""What one turn of bus1 may do at the limits: others can be served every few milliseconds of cpu time, at the least.

`FakeTurn` measures the cpu time of this thread between two places where the core lets others be served.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from struct import pack, unpack_from

import pytest

from kdbusfs.bus1 import abi
from tests.support.bus1_client import DATA, DESTROY, PEEK, SEED, Client, Maxima, World, check

TURN_MAX_NS = 5_000_000
MANY = 3000
HUGE = Maxima(slices=1 << 20, handles=1 << 20)


@pytest.fixture
def world() -> World:
    return World(HUGE, memory_limit=1 << 40)


@pytest.fixture(autouse=True)
def without_garbage() -> Iterator[None]:
    """The collector would be measured as well, with all objects of the test run."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def longest(world: World, deed: Callable[[], object]) -> int:
    """Nanoseconds of cpu time that `deed` takes at most without letting others be served."""
    turn = world.turn
    turn.watch()
    deed()
    turn.stop()
    return turn.longest_ns


def with_handles(world: World, count: int) -> tuple[Client, list[Client], list[int]]:
    """A peer with a handle to a node of each of many others."""
    sender = world.open()
    others = world.clients(count)
    ids = [other.give(8, sender) for other in others]
    return sender, others, ids


def told(client: Client, kind: int) -> None:
    assert client.recv() == 0 and unpack_from("<Q", client.out, abi.RECV_MSG)[0] == kind
    assert client.recv() == -11


def test_a_multicast_to_thousands(world: World) -> None:
    """B1-ORD-1: all of them or none, whoever looks in between."""
    sender, others, ids = with_handles(world, MANY)
    payload = sender.process.place(b"x" * 64)
    vecs = sender.process.place(pack("<QQ", payload, 64))
    members = {"ptr_destinations": sender.ids(ids), "n_destinations": MANY, "ptr_vecs": vecs, "n_vecs": 1}
    seen: set[int] = set()
    world.turn.meanwhile = lambda: seen.add(others[0].peer.queue.is_readable() + others[-1].peer.queue.is_readable())
    assert longest(world, lambda: sender.send_raw(**members)) < TURN_MAX_NS
    world.turn.meanwhile = None
    assert seen == {0, 2}
    assert world.turn.pauses > MANY
    for other in others:
        told(other, DATA)


def test_the_end_of_a_node_with_thousands_of_holders(world: World) -> None:
    owner = world.open()
    holders = world.clients(MANY)
    for holder in holders:
        owner.give(8, holder)
    seen: set[int] = set()
    world.turn.meanwhile = lambda: seen.add(holders[0].peer.queue.is_readable() + holders[-1].peer.queue.is_readable())
    assert longest(world, lambda: owner.destroy(8)) < TURN_MAX_NS
    world.turn.meanwhile = None
    assert seen == {0, 2}
    for holder in holders:
        told(holder, DESTROY)


@pytest.mark.parametrize("deed", ["flush", "disconnect", "close"])
def test_the_end_of_a_peer_with_thousands_of_nodes_and_holders(world: World, deed: str) -> None:
    owner, holder = world.clients(2)
    for number in range(MANY):
        owner.give(8 * number, holder)
    holders = world.clients(100)
    for each in holders:
        owner.give(0, each)
    assert longest(world, getattr(owner, deed)) < TURN_MAX_NS
    for each in holders:
        told(each, DESTROY)
    assert longest(world, holder.close) < TURN_MAX_NS


def test_a_message_with_thousands_of_handles(world: World) -> None:
    sender, receiver = world.clients(2)
    handle = receiver.give(8, sender)
    handles = [16 + 4 * number for number in range(5 * MANY)]
    members = {"ptr_destinations": sender.ids([handle]), "n_destinations": 1}
    members |= {"ptr_handles": sender.ids(handles), "n_handles": len(handles)}
    # Nodes are entered at the commit, in one go: a twentieth of a microsecond each, compiled.
    assert longest(world, lambda: sender.send_raw(**members)) < 3 * TURN_MAX_NS
    assert longest(world, lambda: receiver.recv(PEEK)) < TURN_MAX_NS
    assert longest(world, receiver.recv) < TURN_MAX_NS
    assert len(receiver.peer.table) == 1 + len(handles)
    assert sender.send_raw(flags=abi.SEND_FLAG_SEED, ptr_handles=members["ptr_handles"], n_handles=len(handles)) == 0
    assert longest(world, lambda: sender.recv(SEED)) < TURN_MAX_NS
    assert longest(world, sender.flush) < TURN_MAX_NS
    check(world, [sender, receiver])


def test_destroying_thousands_of_nodes(world: World) -> None:
    owner, holder = world.clients(2)
    ids = [4 * number for number in range(2 * MANY)]
    for id in ids[::2]:
        owner.give(id, holder)
    at = owner.ids(ids)
    assert longest(world, lambda: owner.destroy_at(at, len(ids), 1)) < TURN_MAX_NS
    assert not owner.peer.table
    assert longest(world, lambda: owner.recv()) < TURN_MAX_NS  # all that it has is void
    assert longest(world, holder.recv) < TURN_MAX_NS


def test_a_long_queue_goes(world: World) -> None:
    first, second = world.clients(2)
    handle = first.give(8, second)
    at = second.ids([handle])
    for _ in range(5 * MANY):
        assert second.send_raw(ptr_destinations=at, n_destinations=1) == 0
    assert longest(world, first.flush) < TURN_MAX_NS
    assert first.peer.limits.slices == 0


def test_an_array_that_cannot_be_read_whole(world: World) -> None:
    """Its ids are read one by one then, as far as they can be."""
    first = world.open()
    ids = [4 * number for number in range(MANY)]
    at = first.ids(ids)
    assert longest(world, lambda: first.destroy_at(at, MANY + 1)) < TURN_MAX_NS
    assert world.turn.pauses > MANY
