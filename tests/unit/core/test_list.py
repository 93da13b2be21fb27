"""LIST: the records of NAME_LIST."""

from __future__ import annotations

from errno import EINVAL
from struct import pack

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import World

UNIQUE, NAMES, ACTIVATORS, QUEUED = (
    c.NAME_LIST_UNIQUE,
    c.NAME_LIST_NAMES,
    c.NAME_LIST_ACTIVATORS,
    c.NAME_LIST_QUEUED,
)


def test_list_1_items_are_einval_and_no_flags_give_an_empty_list(world: World) -> None:
    client = world.connect()
    fixed = pack("<QQQQQQ", 0, 0, 0, 0, 0, 0)
    for kind in (c.ITEM_NAME, 99):
        assert client.command(c.CMD_NAME_LIST, fixed, make_item(kind, b"a.b\0")) == -EINVAL
    assert client.command(c.CMD_NAME_LIST, fixed) == 0
    offset, size = client.out(32), client.out(40)
    assert bytes(client.pool[offset : offset + size]) == pack("<Q", 8)
    assert client.list_names(0) == []


def test_list_2_list_3_the_records_byte_by_byte(world: World) -> None:
    client = world.connect()
    client.acquire(b"abc.d", c.NAME_ALLOW_REPLACEMENT)
    other = world.connect(flags=0)
    client.pool[:256] = b"\xff" * 256
    assert client.command(c.CMD_NAME_LIST, pack("<QQQQQQ", 0, NAMES | UNIQUE, 0, 0, 0, 0)) == 0
    offset, size = client.out(32), client.out(40)
    record = pack("<QQQ", 56, c.HELLO_ACCEPT_FD, client.id)
    record += pack("<QQQ", 16 + 8 + 6, c.ITEM_OWNED_NAME, c.NAME_ALLOW_REPLACEMENT) + b"abc.d\0\0\0"
    expected = pack("<Q", 8 + 56 + 24) + record + pack("<QQQ", 24, 0, other.id)
    assert size == len(expected)
    assert bytes(client.pool[offset : offset + size]) == expected
    assert client.free(offset) == 0


def test_list_4_names_come_in_the_order_of_acquisition_then_those_waited_for(world: World) -> None:
    client, other = world.connect(), world.connect()
    other.acquire(b"x.y")
    for name in (b"c.c", b"a.a", b"b.b"):
        client.acquire(name)
    client.acquire(b"x.y", c.NAME_QUEUE)
    mine = [name for owner, _, name, _ in client.list_names(NAMES | QUEUED) if owner == client.id]
    assert mine == [b"c.c", b"a.a", b"b.b", b"x.y"]


def test_list_5_list_6_activators_are_listed_only_on_request(world: World) -> None:
    client = world.connect()
    sleeping = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.sleeping\0"))
    active = world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, b"a.active\0"))
    client.acquire(b"a.active", c.NAME_ALLOW_REPLACEMENT)
    act = c.HELLO_ACTIVATOR
    assert client.list_names(NAMES) == [(client.id, 1, b"a.active", 2)]
    assert client.list_names(UNIQUE) == [(client.id, 1, None, 0)]
    assert client.list_names(ACTIVATORS) == [
        (active.id, act, b"a.active", 2),
        (sleeping.id, act, b"a.sleeping", c.NAME_ACTIVATOR),
    ]
    assert client.list_names(ACTIVATORS | NAMES) == [
        (active.id, act, b"a.active", 2),
        (client.id, 1, b"a.active", 2),
        (sleeping.id, act, b"a.sleeping", c.NAME_ACTIVATOR),
    ]
    assert client.list_names(ACTIVATORS | UNIQUE) == [
        (active.id, act, b"a.active", 2),
        (sleeping.id, act, b"a.sleeping", c.NAME_ACTIVATOR),
        (active.id, act, None, 0),
    ]


def test_list_7_waiters_are_shown_with_the_owners_flags(world: World) -> None:
    owner, waiter = world.connect(), world.connect()
    owner.acquire(b"a.b", c.NAME_ALLOW_REPLACEMENT)
    waiter.acquire(b"a.b", c.NAME_QUEUE)
    assert owner.list_names(QUEUED) == [(waiter.id, 1, b"a.b", c.NAME_ALLOW_REPLACEMENT)]
    assert owner.list_names(QUEUED | UNIQUE) == [
        (owner.id, 1, None, 0),
        (waiter.id, 1, b"a.b", c.NAME_ALLOW_REPLACEMENT),
    ]


def test_list_8_unique_records_are_for_those_without_another_record(world: World) -> None:
    owner, plain = world.connect(), world.connect(flags=0)
    owner.acquire(b"a.b")
    monitor = world.connect(flags=c.HELLO_MONITOR)
    holder = world.connect(
        flags=c.HELLO_POLICY_HOLDER, items=make_item(c.ITEM_NAME, b"a.c\0"), free=False
    )
    rest = [
        (plain.id, 0, None, 0),
        (monitor.id, c.HELLO_MONITOR, None, 0),
        (holder.id, c.HELLO_POLICY_HOLDER, None, 0),
    ]
    assert owner.list_names(UNIQUE) == [(owner.id, 1, None, 0), *rest]
    assert owner.list_names(UNIQUE | NAMES) == [(owner.id, 1, b"a.b", 0), *rest]
    plain.close()
    assert [record[0] for record in owner.list_names(UNIQUE)] == [owner.id, monitor.id, holder.id]


def test_list_9_list_10_custom_endpoints_hide_names_and_the_bus_does_not(world: World) -> None:
    see = make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_WORLD, c.POLICY_SEE, 0))
    policy = make_item(c.ITEM_NAME, b"a.seen\0") + see
    assert world.open().make_endpoint(b"1000-custom", 0, policy) == 0
    both, hidden, outside = world.connect(), world.connect(), world.connect()
    both.acquire(b"a.seen")
    both.acquire(b"a.hidden")
    hidden.acquire(b"b.hidden")
    inside = world.connect(endpoint="1000-custom")
    assert inside.list_names(NAMES) == [(both.id, 1, b"a.seen", 0)]
    assert [record[0] for record in inside.list_names(NAMES | UNIQUE)] == [both.id, outside.id, inside.id]
    assert [record[0] for record in inside.list_names(UNIQUE)] == [both.id, hidden.id, outside.id, inside.id]
    assert len(outside.list_names(NAMES)) == 3
