"""BC: broadcasts reach the connections that have a match and may talk to the sender."""

from __future__ import annotations

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from kdbusfs.abi.values import Notice
from kdbusfs.core.match import USER_MESSAGES
from kdbusfs.core.message import Message
from tests.support.core_client import Client, FakeProcess, World
from tests.support.core_scenes import (
    cookies,
    drain,
    id_change,
    id_rule,
    mask,
    name_change,
    name_rule,
    observer,
    signal,
)


def test_bc_1_receivers_need_a_match_and_the_right_to_talk_to_the_sender(world: World) -> None:
    sender = world.connect(FakeProcess(uid=2000, pid=200))
    same_user = world.connect(FakeProcess(uid=2000, pid=201))
    privileged = world.connect()
    stranger = world.connect(FakeProcess(uid=3000, pid=300))
    no_match = world.connect()
    for client in (same_user, privileged, stranger):
        client.add_match(1, id_rule(c.MATCH_ID_ANY))
    assert signal(sender, cookie=5) == 0
    received = [cookies(client) for client in (same_user, privileged, stranger, no_match)]
    assert received == [[5], [5], [], []]


def test_bc_1_receivers_on_every_endpoint_of_the_bus_are_asked(world: World) -> None:
    owner = world.open()
    name = make_item(c.ITEM_NAME, b"a.b\0")
    talk = make_item(c.ITEM_POLICY_ACCESS, b"".join(n.to_bytes(8, "little") for n in (3, 1, 0)))
    assert owner.make_endpoint(b"1000-custom", 0, name + talk) == 0
    sender = world.connect()
    receiver = world.connect(endpoint="1000-custom")
    receiver.add_match(1, id_rule(sender.id))
    assert signal(sender, cookie=1) == 0
    sender.acquire(b"a.b")
    assert signal(sender, cookie=2) == 0
    assert cookies(receiver) == [2]


def test_bc_1_special_connections_get_no_broadcasts_and_monitors_get_all(world: World) -> None:
    sender = world.connect()
    name = make_item(c.ITEM_NAME, b"a.b\0")
    activator = world.connect(flags=c.HELLO_ACTIVATOR, items=name)
    monitor = world.connect(flags=c.HELLO_MONITOR)
    assert signal(sender, cookie=3) == 0
    assert cookies(activator) == []
    assert cookies(monitor) == [3]


def test_bc_1_a_broadcast_is_queued_once_for_several_matches(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    for cookie in range(5):
        receiver.add_match(cookie, id_rule(sender.id))
    assert signal(sender, cookie=1) == 0
    assert cookies(receiver) == [1]


def test_bc_2_a_receiver_that_cannot_take_it_loses_it_and_others_do_not(world: World) -> None:
    sender = world.connect()
    small = world.connect(pool_size=4096)
    big = world.connect()
    for client in (small, big):
        client.add_match(1, id_rule(sender.id))
    assert signal(sender, cookie=1, items=sender.vec(bytes(3000))) == 0
    assert signal(sender, cookie=2, items=sender.vec(bytes(5000))) == 0
    assert (small.connection.traffic.lost, big.connection.traffic.lost) == (2, 0)
    assert cookies(big) == [1, 2]
    assert small.connection.pool.busy == 0


def test_bc_2_quota_and_full_queues_count_as_lost(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    receiver.add_match(1, id_rule(sender.id))
    for cookie in range(40):
        assert signal(sender, cookie=cookie) == 0
    assert receiver.connection.traffic.lost == 8
    assert len(receiver.connection.queue) == 32


def test_bc_3_mon_7_monitors_have_it_before_any_receiver(world: World) -> None:
    sender = world.connect()
    receiver = world.connect()
    receiver.add_match(1, id_rule(sender.id))
    monitor = world.connect(flags=c.HELLO_MONITOR)
    world.domain.changed.clear()
    assert signal(sender) == 0
    assert world.domain.changed == [monitor.handle, receiver.handle]


def test_bc_4_only_the_sending_connection_is_skipped(world: World) -> None:
    sender, own = world.connect(), world.connect()
    for client in (sender, own):
        client.add_match(1, id_rule(c.MATCH_ID_ANY))
    assert signal(sender, cookie=1) == 0
    assert (cookies(sender), cookies(own)) == ([], [1])


def test_bc_1_connections_that_want_something_else_cost_nothing(world: World) -> None:
    """The index selects the matches whose condition the message meets, and those without a condition."""
    sender, watcher, narrow = world.connect(), observer(world), world.connect()
    narrow.add_match(1, mask(1))
    sender.acquire(b"a.b")
    for number in range(20):
        other = world.connect()
        other.acquire(b"c.d%s" % (b"x" * number))
        for rule in (id_rule(other.id), name_rule(b"c.d")):
            other.add_match(1, rule)
            other.add_match(2, mask(1) + rule)
            other.add_match(2, rule + mask(1))
        other.add_match(3, mask(2 << number))
        other.add_match(4, mask(2 << number, 6 << number) + id_rule(c.MATCH_ID_ANY))
        other.add_match(5, id_change(c.ITEM_ID_ADD, other.id))
        other.add_match(6, name_change(c.ITEM_NAME_ADD, name=b"c.d"))
        other.add_match(7, name_change(c.ITEM_NAME_ADD, old=0, new=other.id))
    drain(watcher)
    listeners = world.domain.buses["1000-test"].listeners

    def looked_at(message: Message, source: Client | None) -> list[int]:
        kind = message.notice.kind if message.notice is not None else USER_MESSAGES
        found = listeners[kind].candidates(message, source.connection if source else None)
        return [connection.id for group in found for connection, entries in group.members.items() for _ in entries]

    message = Message(src_id=sender.id)
    message.bloom = (0, 1)
    assert looked_at(message, sender) == [watcher.id, narrow.id]
    arrival = Message(notice=Notice(c.ITEM_ID_ADD, new_id=99))
    taken = Message(notice=Notice(c.ITEM_NAME_ADD, new_id=sender.id, name=b"a.b"))
    assert looked_at(arrival, None) == looked_at(taken, None) == [watcher.id]
    assert signal(sender, bits=1) == 0
    assert len(drain(narrow)) == 1
