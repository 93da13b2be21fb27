"""Names, lists, matches and notifications of the last ABI (L-98, L-99, L-106 to L-124)."""

from __future__ import annotations

from errno import E2BIG, EADDRINUSE, EBADSLT, EDOM, EEXIST, EINVAL, EMFILE, EPERM, ESRCH
from struct import pack, unpack

from kdbusfs.abi.last import constants as c
from kdbusfs.abi.last.items import make_item
from tests.support.core_client import Received
from tests.support.fake_host import FakeFile, FakeProcess
from tests.support.last_client import (
    NOTHING,
    LastClient,
    LastWorld,
    dst_name,
    name_item,
    pass_files,
    pass_memfd,
    u64_item,
)

NAME = b"com.example"
PRIMARY, QUEUE, ALLOW, REPLACE = c.NAME_PRIMARY, c.NAME_QUEUE, c.NAME_ALLOW_REPLACEMENT, c.NAME_REPLACE_EXISTING
IN_QUEUE, ACQUIRED, ACTIVATOR = c.NAME_IN_QUEUE, c.NAME_ACQUIRED, c.NAME_ACTIVATOR
Pair = tuple[LastClient, LastClient]


def observer(world: LastWorld) -> LastClient:
    client = world.last()
    assert client.add_match(1) == 0
    return client


def event(message: Received) -> tuple[object, ...]:
    kind, payload = message.items[0]
    if kind in (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE):
        assert payload[32:].endswith(b"\0")
        return (kind, *unpack("<QQQQ", payload[:32]), payload[32:-1])
    return (kind, *unpack("<QQ", payload))


def entries(client: LastClient, flags: int) -> list[tuple[int, int]]:
    """Owner and name flags of all records with a name."""
    return sorted((owner, name_flags) for owner, _, name, name_flags in client.list_names(flags) if name)


def test_l_106_107_the_flags_of_an_entry(pair: Pair) -> None:
    first, second = pair
    assert first.acquired(NAME, REPLACE | ALLOW | QUEUE) == ALLOW | QUEUE | PRIMARY | ACQUIRED
    assert entries(second, c.LIST_NAMES) == [(first.id, ALLOW | QUEUE | PRIMARY)]
    assert second.acquired(NAME, QUEUE) == QUEUE | IN_QUEUE | ACQUIRED
    assert entries(second, c.LIST_QUEUED) == [(second.id, QUEUE | IN_QUEUE)]
    assert second.acquired(NAME, REPLACE) == PRIMARY | ACQUIRED
    assert entries(second, c.LIST_NAMES | c.LIST_QUEUED) == sorted(
        [(second.id, PRIMARY), (first.id, ALLOW | QUEUE | IN_QUEUE)]
    )


def test_l_106_the_flags_of_owned_names_and_notifications(world: LastWorld) -> None:
    watcher = observer(world)
    first, second = world.last(), world.last(recv=c.ATTACH_NAMES)
    assert first.acquire(NAME, REPLACE | ALLOW) == 0
    assert first.send(dst=second.id) == 0
    assert unpack("<Q", second.drain()[0].item(c.ITEM_OWNED_NAME)[:8])[0] == ALLOW | PRIMARY
    assert second.acquire(NAME, REPLACE | QUEUE) == 0
    assert second.release_name(NAME) == 0
    events = [event(message) for message in watcher.drain()]
    assert [each for each in events if each[0] not in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE)] == [
        (c.ITEM_NAME_ADD, 0, 0, first.id, ALLOW | PRIMARY, NAME),
        (c.ITEM_NAME_CHANGE, first.id, ALLOW | PRIMARY, second.id, QUEUE | PRIMARY, NAME),
        (c.ITEM_NAME_REMOVE, second.id, QUEUE | PRIMARY, 0, 0, NAME),
    ]


def test_l_106_v3_sees_what_was_asked_for(world: LastWorld) -> None:
    client, old = world.last(), world.connect()
    assert client.acquire(NAME, ALLOW) == 0
    assert old.list_names(c.LIST_NAMES) == [(client.id, c.HELLO_ACCEPT_FD, NAME, ALLOW)]
    assert old.acquire(b"com.old", ALLOW | REPLACE) == 0
    assert (old.id, ALLOW | PRIMARY) in entries(client, c.LIST_NAMES)
    assert old.out(8) == ALLOW | REPLACE


def test_l_108_the_order_of_what_is_wrong(world: LastWorld) -> None:
    client, holder = world.last(), world.last()
    stranger = world.last(FakeProcess(uid=2000))
    assert stranger.acquire(b"nothing") == -EINVAL
    assert stranger.acquire(NAME) == -EPERM
    for number in range(128):
        assert client.acquire(b"a.b%d" % number) == 0
        assert holder.acquire(b"a.c%d" % number) == 0
        assert client.acquire(b"a.c%d" % number, QUEUE) == 0
    assert client.acquire(NAME) == -E2BIG
    assert client.acquire(b"a.c200", QUEUE) == -E2BIG
    assert client.acquire(b"a.b1") == 0  # L-109: no new one
    assert client.release_name(b"a.c1") == 0
    assert client.acquire(NAME) == 0


def test_l_109_who_owns_it_may_change_how(pair: Pair) -> None:
    first, second = pair
    assert first.acquired(NAME) == PRIMARY | ACQUIRED
    assert second.acquire(NAME, REPLACE) == -EEXIST
    assert first.acquired(NAME, ALLOW) == ALLOW | PRIMARY
    assert entries(first, c.LIST_NAMES) == [(first.id, ALLOW | PRIMARY)]
    assert second.acquired(NAME, REPLACE) == PRIMARY | ACQUIRED


def test_l_110_who_waits_may_change_how(world: LastWorld) -> None:
    owner, first, second = world.last(), world.last(), world.last()
    assert owner.acquire(NAME) == 0
    assert first.acquire(NAME, QUEUE) == 0
    assert second.acquire(NAME, QUEUE) == 0
    assert first.acquired(NAME, QUEUE | ALLOW) == QUEUE | ALLOW | IN_QUEUE  # keeps its place
    assert (first.id, QUEUE | ALLOW | IN_QUEUE) in entries(owner, c.LIST_QUEUED)
    assert second.acquired(NAME, ALLOW) == ALLOW  # waits no more
    assert entries(owner, c.LIST_QUEUED) == [(first.id, QUEUE | ALLOW | IN_QUEUE)]
    assert second.acquire(NAME, QUEUE) == 0
    assert owner.acquire(NAME, ALLOW) == 0
    assert second.acquired(NAME, QUEUE | REPLACE) == QUEUE | PRIMARY | ACQUIRED
    assert second.release_name(NAME) == 0
    assert entries(owner, c.LIST_NAMES | c.LIST_QUEUED) == [(first.id, QUEUE | ALLOW | PRIMARY)]


def test_l_111_who_is_replaced_is_the_next_one(world: LastWorld) -> None:
    owner, waiter, taker = world.last(), world.last(), world.last()
    assert owner.acquire(NAME, ALLOW | QUEUE) == 0
    assert waiter.acquire(NAME, QUEUE) == 0
    assert taker.acquire(NAME, REPLACE) == 0
    assert taker.release_name(NAME) == 0
    assert entries(taker, c.LIST_NAMES) == [(owner.id, ALLOW | QUEUE | PRIMARY)]
    assert owner.acquire(NAME, ALLOW) == 0
    assert taker.acquire(NAME, REPLACE) == 0
    assert entries(taker, c.LIST_QUEUED) == [(waiter.id, QUEUE | IN_QUEUE)]  # no QUEUE: gone


def test_l_112_114_an_activator_and_its_service(world: LastWorld) -> None:
    activator = world.last(flags=c.HELLO_ACTIVATOR, items=name_item(NAME))
    caller, service = world.last(), world.last()
    assert entries(caller, c.LIST_ACTIVATORS) == [(activator.id, ACTIVATOR | PRIMARY)]
    assert caller.send(items=dst_name(NAME), cookie=7) == 0
    assert service.acquired(NAME) == PRIMARY | ACQUIRED  # whatever flags
    assert service.cookies() == [7]
    assert entries(caller, c.LIST_ACTIVATORS) == [(activator.id, ACTIVATOR | IN_QUEUE)]
    assert caller.send(items=dst_name(NAME), cookie=8) == 0
    assert caller.send(dst=service.id, cookie=9) == 0
    assert service.release_name(NAME) == 0
    assert service.cookies() == [9]
    assert activator.cookies() == [8]


def test_l_113_release(pair: Pair) -> None:
    first, second = pair
    assert first.release_name(NAME) == -ESRCH
    assert first.release_name(b"not a name") == -ESRCH
    assert first.acquire(NAME) == 0
    assert second.release_name(NAME) == -EADDRINUSE
    assert second.acquire(NAME, QUEUE) == 0
    assert second.release_name(NAME) == 0
    assert second.release_name(NAME) == -EADDRINUSE
    assert first.release_name(NAME) == 0


def test_l_98_99_what_list_shows(world: LastWorld) -> None:
    first, second = world.last(), world.last()
    monitor = world.last(flags=c.HELLO_MONITOR)
    activator = world.last(flags=c.HELLO_ACTIVATOR, items=name_item(b"com.sleeping"))
    assert first.acquire(NAME) == 0
    assert second.acquire(NAME, QUEUE) == 0
    unique = [(first.id, 1, None, 0), (second.id, 1, None, 0), (activator.id, 2, None, 0)]
    assert first.list_names(c.LIST_UNIQUE) == unique
    assert first.list_names(c.LIST_NAMES) == [(first.id, 1, NAME, PRIMARY)]
    assert first.list_names(c.LIST_ACTIVATORS) == [(activator.id, 2, b"com.sleeping", ACTIVATOR | PRIMARY)]
    assert first.list_names(c.LIST_QUEUED) == [(second.id, 1, NAME, QUEUE | IN_QUEUE)]
    everything = first.list_names(0xF)
    assert len(everything) == 3
    assert monitor.id not in [owner for owner, *_ in everything]
    assert first.list_names(c.LIST_UNIQUE | c.LIST_NAMES) == [(first.id, 1, NAME, PRIMARY), *unique[1:]]


def test_l_92_99_an_empty_list(world: LastWorld) -> None:
    client = world.last()
    for _ in range(2):
        assert client.command(c.CMD_LIST, pack("<QQQQQ", 0, c.LIST_QUEUED, 0, 7, 7)) == 0
        assert (client.out(24), client.out(32)) == (NOTHING, 0)
    assert client.free(NOTHING) == 0
    assert client.free(NOTHING) == 0


def test_l_99_a_custom_endpoint_hides_names(world: LastWorld) -> None:
    owner = world.open_last()
    assert owner.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD) == 0
    assert world.last().acquire(NAME) == 0
    assert world.last(endpoint="1000-e").list_names(c.LIST_NAMES) == []


# Matches and notifications


def test_l_115_match_by_destination(world: LastWorld) -> None:
    sender, receiver, other = world.last(), world.last(), world.last()
    assert receiver.add_match(1, u64_item(c.ITEM_DST_ID, receiver.id)) == 0
    assert other.add_match(1, u64_item(c.ITEM_DST_ID, c.DST_ID_BROADCAST)) == 0
    assert sender.signal(cookie=5) == 0  # a broadcast has dst_id ~0
    assert receiver.cookies() == []
    assert other.cookies() == [5]
    assert sender.signal(receiver.id, cookie=6) == 0
    assert sender.signal(other.id, cookie=7) == 0
    assert receiver.cookies() == [6]
    assert other.cookies() == [7]  # a rule of ~0 accepts every destination
    assert other.add_match(1, u64_item(c.ITEM_DST_ID, 99) + u64_item(c.ITEM_DST_ID, 98), c.MATCH_REPLACE) == 0
    assert sender.signal(other.id) == 0
    assert other.cookies() == []
    assert receiver.add_match(2, make_item(c.ITEM_DST_ID, bytes(4))) == -EINVAL


def test_l_17_a_match_that_asks_for_types_is_the_same_match(world: LastWorld) -> None:
    client, sender = world.last(), world.last()
    asks = make_item(c.ITEM_NEGOTIATE, pack("<2Q", c.ITEM_DST_ID, c.ITEM_FDS))
    assert client.add_match(1, asks + u64_item(c.ITEM_ID, sender.id)) == 0
    assert sender.signal(cookie=3) == 0
    assert client.cookies() == [3]
    assert client.remove_match(1) == 0


def test_l_116_remove_without_an_entry(world: LastWorld) -> None:
    client = world.last()
    assert client.remove_match(1) == -EBADSLT
    assert client.add_match(1) == 0
    negotiation = make_item(c.ITEM_NEGOTIATE, bytes(20000))
    assert client.command(c.CMD_MATCH_REMOVE, pack("<QQQQ", 0, 0, 0, 1), negotiation) == 0
    assert client.remove_match(1) == -EBADSLT


def test_l_117_limits_of_matches(world: LastWorld) -> None:
    client = world.last()
    assert client.add_match(1, name_item(b"x")) == -EINVAL
    assert client.add_match(1, make_item(c.ITEM_CONN_DESCRIPTION, b"x\0")) == -EINVAL
    assert client.add_match(1, make_item(c.ITEM_BLOOM_MASK, bytes(63))) == -EDOM
    for number in range(256):
        assert client.add_match(number) == 0
    assert client.add_match(256) == -EMFILE


def test_l_119_120_121_notifications(world: LastWorld) -> None:
    watcher = observer(world)
    client = world.last()
    assert client.acquire(b"com.example.x") == 0
    added, named = watcher.drain()
    assert event(added) == (c.ITEM_ID_ADD, client.id, c.HELLO_ACCEPT_FD)
    for message in (added, named):
        assert message.flags == c.MSG_SIGNAL
        assert message.header[4:6] == (c.SRC_ID_KERNEL, c.PAYLOAD_KERNEL)
        assert message.kinds()[1:] == [c.ITEM_TIMESTAMP]
    kind, payload = named.items[0]
    assert (kind, len(payload)) == (c.ITEM_NAME_ADD, 32 + len(b"com.example.x") + 1)  # exact
    caller, silent = world.last(), world.last()
    assert caller.request(silent.id, 9) == 0
    silent.close()
    (dead,) = caller.drain()
    assert (dead.flags, dead.cookie_reply) == (0, 9)
    assert dead.kinds() == [c.ITEM_REPLY_DEAD, c.ITEM_TIMESTAMP]


def test_l_122_ids_are_told_of_on_custom_endpoints_too(world: LastWorld) -> None:
    owner = world.open_last()
    assert owner.make_endpoint(b"1000-e", c.MAKE_ACCESS_WORLD) == 0
    client, old = world.last(endpoint="1000-e"), world.connect(endpoint="1000-e")
    assert client.add_match(1) == 0
    assert old.add_match(1) == 0
    new = world.last()
    assert new.acquire(NAME) == 0
    new.close()
    assert [event(message)[:2] for message in client.drain()] == [
        (c.ITEM_ID_ADD, new.id),
        (c.ITEM_ID_REMOVE, new.id),
    ]
    assert not old.connection.queue.count


def test_l_123_notifications_have_a_budget_of_their_own(world: LastWorld) -> None:
    client, sender = world.last(), world.last()
    assert client.add_match(1, make_item(c.ITEM_ID_ADD, pack("<QQ", c.MATCH_ID_ANY, 0))) == 0
    for _ in range(130):
        world.last().close()
    assert client.connection.traffic.lost == 0
    assert client.add_match(2, make_item(c.ITEM_ID_REMOVE, pack("<QQ", c.MATCH_ID_ANY, 0))) == 0
    for _ in range(65):
        world.last().close()
    assert client.connection.queue.count == 256
    assert client.connection.traffic.lost == 4
    assert sender.send(dst=client.id) == 0
    assert client.recv() == 0
    assert client.lost == 4


def test_l_124_a_monitor_gets_everything(world: LastWorld) -> None:
    monitor = world.last(flags=c.HELLO_MONITOR)
    sender, receiver = world.last(), world.last()
    monitor.drain()
    items = pass_files(sender.process, FakeFile()) + pass_memfd(sender.process, 8)
    assert sender.send(dst=receiver.id, items=items) == 0
    assert monitor.recv() == 0
    message = monitor.last_message()
    assert message.item(c.ITEM_FDS) == pack("<i", -1)
    assert message.installation is not None
    assert len(message.installation.entries) == 1  # the memfd
    assert monitor.lost == 0
    assert monitor.id not in [owner for owner, *_ in sender.list_names(0xF)]


def test_l_125_policy_is_shared_by_all(world: LastWorld) -> None:
    """Who may talk does not depend on what is spoken: same user, or a right to a name."""
    first, second = world.last(FakeProcess(uid=2000)), world.last(FakeProcess(uid=2001))
    assert first.send(dst=second.id) == -EPERM
    assert world.last(FakeProcess(uid=2000)).send(dst=first.id) == 0
    access = make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_WORLD, c.POLICY_TALK, 0))
    own = make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_USER, c.POLICY_OWN, 2001))
    world.last(flags=c.HELLO_POLICY_HOLDER, items=name_item(NAME) + access + own)
    assert second.acquire(NAME) == 0
    assert first.send(dst=second.id) == 0
    assert world.connect(FakeProcess(uid=2002)).send(dst=second.id) == 0


def test_l_127_128_the_end_of_a_connection(world: LastWorld) -> None:
    watcher = observer(world)
    caller, service = world.last(), world.last()
    assert service.acquire(NAME) == 0
    watcher.drain()
    assert caller.add_match(1) == 0
    assert caller.request(service.id, 5) == 0
    service.close()
    order = [c.ITEM_NAME_REMOVE, c.ITEM_REPLY_DEAD, c.ITEM_ID_REMOVE]
    assert [message.kinds()[0] for message in caller.drain()] == order
