"""NOTE: notifications, their receivers and their order."""

from __future__ import annotations

from struct import pack, unpack

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import Client, FakeProcess, World
from tests.support.core_scenes import (
    cookies,
    drain,
    dst_name,
    event,
    events,
    expire,
    id_change,
    name_change,
    observer,
    request,
)

ADD, REMOVE, CHANGE = c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE
ID_ADD, ID_REMOVE, DEAD = c.ITEM_ID_ADD, c.ITEM_ID_REMOVE, c.ITEM_REPLY_DEAD


def special(world: World, flags: int, name: bytes | None = None) -> Client:
    items = make_item(c.ITEM_NAME, name + b"\0") if name else b""
    return world.connect(flags=flags, items=items, free=False)


def test_note_1_every_connection_but_monitors_is_announced(world: World) -> None:
    watcher = observer(world)
    clients = [
        world.connect(flags=0),
        special(world, c.HELLO_POLICY_HOLDER, b"a.b"),
        special(world, c.HELLO_ACTIVATOR, b"a.c"),
        special(world, c.HELLO_MONITOR),
    ]
    ids = [client.id for client in clients]
    for client in clients:
        client.close()
    assert events(watcher) == [
        (ID_ADD, ids[0], 0),
        (ID_ADD, ids[1], c.HELLO_POLICY_HOLDER),
        (ID_ADD, ids[2], c.HELLO_ACTIVATOR),
        (ADD, 0, 0, ids[2], c.NAME_ACTIVATOR, b"a.c"),
        (ID_REMOVE, ids[0], 0),
        (ID_REMOVE, ids[1], c.HELLO_POLICY_HOLDER),
        (REMOVE, ids[2], c.NAME_ACTIVATOR, 0, 0, b"a.c"),
        (ID_REMOVE, ids[2], c.HELLO_ACTIVATOR),
    ]


def test_note_1_a_hello_that_fails_is_not_announced(world: World) -> None:
    watcher = observer(world)
    client = world.open()
    assert client.hello(flags=c.HELLO_ACTIVATOR) != 0
    assert client.hello(pool_size=0) != 0
    assert events(watcher) == []


def test_note_2_name_notifications_go_to_those_that_match_only(world: World) -> None:
    watcher, other = world.connect(), world.connect()
    watcher.add_match(1, name_change(ADD))
    other.add_match(1, id_change(ID_ADD))
    other.acquire(b"a.b")
    assert events(watcher) == [(ADD, 0, 0, other.id, 0, b"a.b")]
    assert events(other) == []


def test_note_3_reply_notifications_need_no_match_and_no_policy(world: World) -> None:
    process = FakeProcess(uid=2000, pid=200)
    client, server = world.connect(process), world.connect(FakeProcess(uid=2000, pid=201))
    bystander = observer(world)
    request(client, server.id, 1, timeout=5)
    expire(world, 5)
    request(client, server.id, 2)
    server.close()
    assert events(client) == [(c.ITEM_REPLY_TIMEOUT, 1), (DEAD, 2)]
    assert events(bystander) == [(ID_REMOVE, server.id, 1)]


def test_note_3_a_full_queue_loses_a_reply_notification_silently(world: World) -> None:
    client, server = observer(world), world.connect()
    request(client, server.id, 1, timeout=5)
    while len(client.connection.queue) < 256:
        client.acquire(b"a.b")
        client.release_name(b"a.b")
    client.connection.traffic.lost = 0
    expire(world, 5)
    assert client.connection.traffic.lost == 0
    assert c.ITEM_REPLY_TIMEOUT not in [event[0] for event in events(client)]


def test_note_4_monitors_see_every_notification(world: World) -> None:
    monitor = special(world, c.HELLO_MONITOR)
    client, server = world.connect(), world.connect()
    client.acquire(b"a.b")
    request(client, server.id, 1, timeout=5)
    expire(world, 5)
    request(client, server.id, 2)
    server.close()
    seen = drain(monitor)
    assert [event(message) for message in seen if message.src_id == 0] == [
        (ID_ADD, client.id, 1),
        (ID_ADD, server.id, 1),
        (ADD, 0, 0, client.id, 0, b"a.b"),
        (c.ITEM_REPLY_TIMEOUT, 1),
        (DEAD, 2),
        (ID_REMOVE, server.id, 1),
    ]
    assert {message.dst_id for message in seen if message.cookie_reply == 2 and message.src_id == 0} == {client.id}


def test_note_5_custom_endpoints_get_names_they_may_see_and_no_ids(world: World) -> None:
    see = make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_USER, c.POLICY_SEE, 1000))
    policy = make_item(c.ITEM_NAME, b"a.seen\0") + see
    assert world.open().make_endpoint(b"1000-custom", 0, policy) == 0
    process = FakeProcess(uid=1000, pid=200)
    inside = world.connect(process, endpoint="1000-custom")
    inside.add_match(1)
    process.euid = 3000  # the credentials of HELLO count
    owner = world.connect()
    owner.acquire(b"a.hidden")
    owner.acquire(b"a.seen")
    owner.close()
    assert events(inside) == [(ADD, 0, 0, owner.id, 0, b"a.seen"), (REMOVE, owner.id, 0, 0, 0, b"a.seen")]


def test_note_6_the_order_of_a_disconnect(world: World) -> None:
    client, server = observer(world), world.connect()
    server.acquire(b"a.a")
    server.acquire(b"a.b")
    request(client, server.id, 1)
    request(client, 0, 2, items=dst_name(b"a.b"))
    drain(client)
    server.close()
    assert events(client) == [
        (REMOVE, server.id, 0, 0, 0, b"a.a"),
        (REMOVE, server.id, 0, 0, 0, b"a.b"),
        (DEAD, 1),
        (DEAD, 2),
        (ID_REMOVE, server.id, 1),
    ]


def test_note_6_two_observers_see_the_same_order(world: World) -> None:
    first, second = observer(world), observer(world)
    drain(first)
    client = world.connect()
    client.acquire(b"a.b")
    world.connect().acquire(b"a.b", c.NAME_QUEUE)
    client.close()
    assert events(first) == events(second)


def test_note_7_an_activator_is_announced_before_its_name(world: World) -> None:
    watcher = observer(world)
    waker = special(world, c.HELLO_ACTIVATOR, b"a.b")
    assert [event[0] for event in events(watcher)] == [ID_ADD, ADD]
    waker.close()


def test_note_8_every_notification_takes_a_sequence_number(world: World) -> None:
    watcher = world.connect(recv=c.ATTACH_TIMESTAMP)
    watcher.add_match(1)
    client = world.connect()
    client.acquire(b"a.b")
    client.send(dst=watcher.id)
    client.close()
    numbers = [unpack("<QQQ", message.item(c.ITEM_TIMESTAMP))[0] for message in drain(watcher)]
    assert numbers == list(range(numbers[0], numbers[0] + 5))


def test_note_8_notifications_nobody_wants_take_sequence_numbers_too(world: World) -> None:
    receiver = world.connect(recv=c.ATTACH_TIMESTAMP)
    sender = world.connect()
    sender.send(dst=receiver.id)
    sender.acquire(b"a.b")
    sender.release_name(b"a.b")
    sender.send(dst=receiver.id)
    first, second = (unpack("<QQQ", message.item(c.ITEM_TIMESTAMP))[0] for message in drain(receiver))
    assert second == first + 3


def test_note_9_the_causer_hears_of_its_own_names_but_not_of_its_own_id(world: World) -> None:
    client = observer(world)
    client.acquire(b"a.b")
    assert events(client) == [(ADD, 0, 0, client.id, 0, b"a.b")]


def test_note_11_notifications_that_find_no_place_are_counted(world: World) -> None:
    watcher = observer(world)
    for _ in range(200):
        world.connect().close()
    assert len(watcher.connection.queue) == 256
    assert watcher.connection.traffic.lost == 400 - 256
    sender = world.connect()
    watcher.connection.traffic.lost = 0
    drain(watcher)
    assert sender.send(dst=watcher.id, cookie=9) == 0
    assert cookies(watcher) == [9]


def test_note_12_notifications_have_no_process_items(world: World) -> None:
    watcher = world.connect(recv=c.ATTACH_ALL)
    watcher.add_match(1)
    monitor = world.connect(flags=c.HELLO_MONITOR, recv=c.ATTACH_ALL)
    world.connect()
    assert watcher.receive().kinds() == monitor.receive().kinds() == [ID_ADD, c.ITEM_TIMESTAMP]
