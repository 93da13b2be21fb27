"""NAME: acquiring, queueing, replacing and releasing well-known names."""

from __future__ import annotations

from errno import E2BIG, EALREADY, ECONNRESET, EEXIST, EINVAL, EMSGSIZE, EPERM, ESRCH
from struct import pack

import pytest

from kdbusfs.abi.names import is_valid_name
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import Client, FakeProcess, Trio, World
from tests.support.core_scenes import (
    cookies,
    dst_name,
    events,
    name_change,
    observer,
    reply,
    request,
    results,
)

ADD, REMOVE, CHANGE = c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE
REPLACE, ALLOW, QUEUE, IN_QUEUE = (
    c.NAME_REPLACE_EXISTING,
    c.NAME_ALLOW_REPLACEMENT,
    c.NAME_QUEUE,
    c.NAME_IN_QUEUE,
)
N = b"com.example"


@pytest.fixture
def trio(world: World) -> tuple[Client, Client, Client]:
    """An observer of names, and two more connections."""
    watcher = world.connect()
    for kind in (ADD, REMOVE, CHANGE):
        watcher.add_match(1, name_change(kind))
    return watcher, world.connect(), world.connect()


def activator(world: World, name: bytes = N) -> Client:
    return world.connect(flags=c.HELLO_ACTIVATOR, items=make_item(c.ITEM_NAME, name + b"\0"))


@pytest.mark.parametrize(
    "name",
    [
        b"a.b", b"A.Z", b"a.b.c.d.e", b"_._", b"-.-", b"a-b.c_d", b"a1.b2", b"a.-1", b"a.b" + b"c" * 252,
        b".".join([b"x"] * 128),
    ],
)  # fmt: skip
def test_name_1_valid_names(name: bytes) -> None:
    assert is_valid_name(name)
    assert is_valid_name(name, wildcard=True)


@pytest.mark.parametrize(
    "name",
    [
        b"", b"a", b".", b"a.", b".a", b"a..b", b"1a.b", b"a.1b", b"a.b ", b"a/b.c", b"a.b\n", b"a.b\0", b"\xc4.b",
        b"a.b" + b"c" * 253, b"*", b"a*", b"*.a", b"a.*.b", b"a.**", b"a.b*", b".*", b"a..*",
    ],
)  # fmt: skip
def test_name_1_name_2_invalid_names(name: bytes) -> None:
    assert not is_valid_name(name)
    assert not is_valid_name(name, wildcard=True)


def test_name_2_a_wildcard_is_a_name_only_where_it_is_asked_for() -> None:
    for name in (b"a.*", b"a.b.c.*"):
        assert not is_valid_name(name)
        assert is_valid_name(name, wildcard=True)


def test_name_3_acquire_takes_exactly_one_valid_name(world: World) -> None:
    client = world.connect()

    def acquire(items: bytes) -> int:
        return client.command(c.CMD_NAME_ACQUIRE, bytes(32), items)

    name = make_item(c.ITEM_NAME, N + b"\0")
    assert acquire(b"") == -EINVAL
    assert acquire(name * 2) == -EINVAL
    assert acquire(make_item(c.ITEM_NAME, b"a.*\0")) == -EINVAL
    assert acquire(make_item(c.ITEM_NAME, b"a\0")) == -EINVAL
    assert acquire(make_item(c.ITEM_DST_NAME, N + b"\0")) == -EINVAL
    assert acquire(make_item(99, b"ignored") + name) == 0


def test_name_3_lim_6_names_of_255_characters_fit_and_of_256_do_not(world: World) -> None:
    client = world.connect()
    assert client.acquire(b"a." + b"b" * 253) == 0
    assert client.acquire(b"a." + b"b" * 254) == -EMSGSIZE
    assert client.acquire(b"a." + b"b" * 262) == -EMSGSIZE


def test_name_3_lim_12_the_257th_name_is_e2big_before_anything_else(world: World) -> None:
    client, other = world.connect(), world.connect()
    for number in range(256):
        assert client.acquire(b"a.n%d" % number) == 0
    assert client.acquire(b"a.n256") == -E2BIG
    assert client.acquire(b"a.n0") == -E2BIG
    assert client.acquire(b"bad") == -EINVAL
    stranger = FakeProcess(uid=2000, pid=200)
    client.process = stranger
    assert client.acquire(b"a.n256") == -E2BIG
    assert client.release_name(b"a.n0") == 0
    client.process = world.owner
    assert client.acquire(b"a.n256") == 0
    assert other.acquire(b"a.n0") == 0


def test_name_3_without_the_right_to_own_it_is_eperm_before_the_registry_is_asked(world: World) -> None:
    world.connect().acquire(N)
    stranger = world.connect(FakeProcess(uid=2000, pid=200))
    assert stranger.acquire(N) == -EPERM
    assert stranger.acquire(b"a.free") == -EPERM


def test_name_4_the_owner_gets_ealready_and_its_flags_stay(trio: Trio) -> None:
    watcher, owner, _ = trio
    owner.acquire(N, ALLOW)
    for flags in (0, QUEUE, REPLACE, REPLACE | ALLOW | QUEUE):
        assert owner.acquire(N, flags) == -EALREADY
    assert owner.list_names(c.NAME_LIST_NAMES) == [(owner.id, 1, N, ALLOW)]
    assert events(watcher) == [(ADD, 0, 0, owner.id, ALLOW, N)]


@pytest.mark.parametrize("flags", [0, QUEUE, ALLOW])
def test_name_5_a_name_of_an_activator_is_taken_whatever_the_flags(trio: Trio, flags: int) -> None:
    watcher, taker, _ = trio
    waker = activator(watcher.world)
    assert taker.acquire(N, flags) == 0
    assert taker.out(8) == flags
    assert events(watcher) == [
        (ADD, 0, 0, waker.id, c.NAME_ACTIVATOR, N),
        (CHANGE, waker.id, c.NAME_ACTIVATOR, taker.id, flags, N),
    ]


@pytest.mark.parametrize("queue", [0, QUEUE])
def test_name_6_replacement_needs_both_sides_and_the_loser_waits_if_it_said_queue(trio: Trio, queue: int) -> None:
    watcher, old, new = trio
    assert old.acquire(N, ALLOW | queue) == 0
    assert new.acquire(N, REPLACE) == 0
    assert new.out(8) == REPLACE
    seen = [(ADD, 0, 0, old.id, ALLOW | queue, N), (CHANGE, old.id, ALLOW | queue, new.id, REPLACE, N)]
    assert new.release_name(N) == 0
    if queue:
        seen.append((CHANGE, new.id, REPLACE, old.id, ALLOW | QUEUE, N))
    else:
        seen.append((REMOVE, new.id, REPLACE, 0, 0, N))
    assert events(watcher) == seen


def test_name_6_the_replaced_owner_waits_behind_the_others(world: World) -> None:
    old, waiter, new = world.connect(), world.connect(), world.connect()
    old.acquire(N, ALLOW | QUEUE)
    waiter.acquire(N, QUEUE)
    new.acquire(N, REPLACE)
    watcher = observer(world)
    new.release_name(N)
    waiter.release_name(N)
    assert [event[3] for event in events(watcher)] == [waiter.id, old.id]


def test_name_6_name_8_one_side_alone_is_not_enough(trio: Trio) -> None:
    _, old, new = trio
    old.acquire(N, 0)
    assert new.acquire(N, REPLACE) == -EEXIST
    old.release_name(N)
    old.acquire(N, ALLOW)
    assert new.acquire(N, 0) == -EEXIST
    assert new.acquire(N, ALLOW) == -EEXIST


def test_name_7_a_waiter_is_told_and_nobody_else(trio: Trio) -> None:
    watcher, owner, waiter = trio
    owner.acquire(N)
    assert waiter.acquire(N, QUEUE) == 0
    assert waiter.out(8) == QUEUE | IN_QUEUE
    assert len(events(watcher)) == 1


def test_name_7_name_15_waiters_inherit_in_their_order_with_their_flags(trio: Trio) -> None:
    watcher, owner, first = trio
    second = watcher.world.connect()
    owner.acquire(N)
    first.acquire(N, QUEUE | ALLOW)
    second.acquire(N, QUEUE)
    events(watcher)
    owner.release_name(N)
    first.release_name(N)
    second.release_name(N)
    assert events(watcher) == [
        (CHANGE, owner.id, 0, first.id, QUEUE | ALLOW, N),
        (CHANGE, first.id, QUEUE | ALLOW, second.id, QUEUE, N),
        (REMOVE, second.id, QUEUE, 0, 0, N),
    ]
    assert len(watcher.world.domain.buses["1000-test"].names) == 0


def test_name_9_name_10_a_free_name_is_owned_with_the_flags_of_the_request(trio: Trio) -> None:
    watcher, owner, _ = trio
    assert owner.acquire(N, REPLACE | ALLOW | QUEUE) == 0
    assert owner.out(8) == REPLACE | ALLOW | QUEUE
    assert events(watcher) == [(ADD, 0, 0, owner.id, REPLACE | ALLOW | QUEUE, N)]
    assert owner.list_names(c.NAME_LIST_NAMES)[0][3] == REPLACE | ALLOW | QUEUE
    assert owner.acquire(b"a.b", IN_QUEUE) == -EINVAL
    assert owner.acquire(b"a.b", c.NAME_ACTIVATOR) == -EINVAL


def test_name_11_waiting_twice_is_waiting_once(trio: Trio) -> None:
    watcher, owner, waiter = trio
    owner.acquire(N)
    waiter.acquire(N, QUEUE)
    assert waiter.acquire(N, QUEUE | ALLOW) == 0
    events(watcher)
    owner.release_name(N)
    waiter.release_name(N)
    assert [event[0] for event in events(watcher)] == [CHANGE, REMOVE]


def test_name_11_a_waiter_that_takes_the_name_over_waits_no_more(trio: Trio) -> None:
    watcher, first, second = trio
    first.acquire(N)
    watcher.acquire(N, QUEUE | ALLOW)
    second.acquire(N, QUEUE)
    first.release_name(N)
    events(watcher)
    assert second.acquire(N, REPLACE) == 0
    assert second.connection.waiting_for == {}
    assert second.release_name(N) == 0
    assert events(watcher) == [
        (CHANGE, watcher.id, QUEUE | ALLOW, second.id, REPLACE, N),
        (CHANGE, second.id, REPLACE, watcher.id, QUEUE | ALLOW, N),
    ]
    assert second.release_name(N) == -ESRCH


def test_name_12_waiting_is_not_owning_and_inheritance_may_exceed_the_limit(world: World) -> None:
    owner, heir = world.connect(), world.connect()
    owner.acquire(b"b.inherited")
    owner.acquire(b"b.other")
    for number in range(255):
        assert heir.acquire(b"a.n%d" % number) == 0
    assert heir.acquire(b"b.inherited", QUEUE) == 0
    assert heir.acquire(b"b.other", QUEUE) == 0
    assert heir.acquire(b"a.n255") == 0
    assert heir.acquire(b"a.n256", QUEUE) == -E2BIG
    assert owner.release_name(b"b.inherited") == owner.release_name(b"b.other") == 0
    assert len(heir.connection.names) == 258


def test_name_13_the_right_to_own_is_not_asked_for_again(world: World) -> None:
    process = FakeProcess(uid=2000, pid=200)
    own = pack("<QQQ", c.POLICY_ACCESS_USER, c.POLICY_OWN, 2000)
    policy = make_item(c.ITEM_NAME, N + b"\0") + make_item(c.ITEM_POLICY_ACCESS, own)
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=policy, free=False)
    owner, waiter = world.connect(), world.connect(process)
    owner.acquire(N)
    assert waiter.acquire(N, QUEUE) == 0
    holder.close()
    assert waiter.acquire(b"a.b", QUEUE) == -EPERM
    owner.release_name(N)
    assert list(waiter.connection.names) == [N]


def test_name_14_release_is_for_owners_and_waiters(world: World) -> None:
    owner, waiter, other = world.connect(), world.connect(), world.connect()
    name = make_item(c.ITEM_NAME, N + b"\0")
    assert owner.release_name(N) == -ESRCH
    for items in (b"", name * 2, make_item(c.ITEM_NAME, b"a.*\0"), make_item(c.ITEM_NAME, b"a\0")):
        assert owner.command(c.CMD_NAME_RELEASE, bytes(32), items) == -EINVAL
    owner.acquire(N)
    waiter.acquire(N, QUEUE)
    assert other.release_name(N) == -ESRCH
    assert waiter.release_name(N) == 0
    assert waiter.release_name(N) == -ESRCH
    assert owner.release_name(N) == 0
    assert owner.release_name(N) == -ESRCH
    assert waiter.connection.names == {}


def test_name_15_act_7_waiters_come_before_the_activator(trio: Trio) -> None:
    watcher, owner, waiter = trio
    waker = activator(watcher.world)
    owner.acquire(N)
    waiter.acquire(N, QUEUE)
    events(watcher)
    owner.release_name(N)
    waiter.release_name(N)
    assert events(watcher) == [
        (CHANGE, owner.id, 0, waiter.id, QUEUE, N),
        (CHANGE, waiter.id, QUEUE, waker.id, c.NAME_ACTIVATOR, N),
    ]


def test_name_16_queued_messages_stay_with_the_old_owner(world: World) -> None:
    sender, old, new, waiter = (world.connect() for _ in range(4))
    old.acquire(N, ALLOW)
    sender.send(items=dst_name(N), cookie=1)
    new.acquire(N, REPLACE)
    waiter.acquire(N, QUEUE)
    sender.send(items=dst_name(N), cookie=2)
    new.release_name(N)
    assert [cookies(client) for client in (old, new, waiter)] == [[1], [2], []]


@pytest.mark.parametrize("by_close", [False, True])
def test_name_17_messages_to_the_name_go_back_to_its_activator(world: World, by_close: bool) -> None:
    waker = activator(world)
    sender, owner = world.connect(), world.connect()
    owner.acquire(N)
    owner.acquire(b"a.other")
    sender.send(items=dst_name(N) + sender.vec(b"payload"), cookie=1)
    sender.send(dst=owner.id, cookie=2)
    sender.send(items=dst_name(b"a.other"), cookie=3)
    assert request(sender, 0, 4, items=dst_name(N)) == 0
    if by_close:
        owner.close()
    else:
        owner.release_name(N)
        assert cookies(owner) == [2, 3]
    first = waker.receive()
    assert (first.cookie, waker.payloads(first)) == (1, [b"payload"])
    assert cookies(waker) == [4]
    taker = world.connect()
    taker.acquire(N)
    assert reply(taker, sender.id, 4) == 0


def test_name_17_a_new_life_of_a_name_is_another_name(world: World) -> None:
    """Messages to an earlier owner of the same name do not move."""
    sender, owner = world.connect(), world.connect()
    owner.acquire(N)
    sender.send(items=dst_name(N), cookie=1)
    owner.release_name(N)
    waker = activator(world)
    owner.acquire(N)
    sender.send(items=dst_name(N), cookie=2)
    owner.release_name(N)
    assert (cookies(owner), cookies(waker)) == ([1], [2])


def test_name_18_a_disconnect_releases_everything_before_id_remove(world: World) -> None:
    owner, waiter = world.connect(), world.connect()
    other = world.connect()
    other.acquire(b"a.c")
    owner.acquire(b"a.a")
    owner.acquire(b"a.b")
    owner.acquire(b"a.c", QUEUE)
    waiter.acquire(b"a.b", QUEUE)
    watcher = observer(world)
    owner.close()
    assert events(watcher) == [
        (REMOVE, owner.id, 0, 0, 0, b"a.a"),
        (CHANGE, owner.id, 0, waiter.id, QUEUE, b"a.b"),
        (c.ITEM_ID_REMOVE, owner.id, 1),
    ]
    other.release_name(b"a.c")
    assert events(watcher) == [(REMOVE, other.id, 0, 0, 0, b"a.c")]


def test_name_19_note_9_the_caller_has_its_own_notification_when_acquire_returns(world: World) -> None:
    client = observer(world)
    client.acquire(N)
    client.release_name(N)
    assert [event[0] for event in events(client)] == [ADD, REMOVE]


def test_name_20_the_registry_is_shared_by_all_endpoints(world: World) -> None:
    own = make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", c.POLICY_ACCESS_WORLD, c.POLICY_OWN, 0))
    policy = make_item(c.ITEM_NAME, N + b"\0") + own
    assert world.open().make_endpoint(b"1000-custom", 0, policy) == 0
    holder = world.connect(flags=c.HELLO_POLICY_HOLDER, items=policy, free=False)
    inside, outside = world.connect(endpoint="1000-custom"), world.connect()
    assert outside.acquire(N) == 0
    assert inside.acquire(N) == -EEXIST
    assert inside.acquire(N, QUEUE) == 0
    outside.release_name(N)
    assert list(inside.connection.names) == [N]
    assert outside.send(items=dst_name(N)) == 0
    holder.close()


def test_sync_requests_to_a_name_survive_its_hand_back(world: World) -> None:
    """NAME-17: the tracker of a blocked SEND moves along."""
    waker = activator(world)
    sender, owner = world.connect(), world.connect()
    owner.acquire(N)
    request(sender, 0, 4, sync=True, items=dst_name(N))
    owner.close()
    assert results(world) == []
    taker = world.connect()
    taker.acquire(N)
    assert cookies(taker) == [4]
    assert reply(taker, sender.id, 4) == 0
    assert results(world) == [0]
    assert not waker.connection.requests.owed


def test_name_21_after_the_own_disconnect_nothing_is_acquired(world: World) -> None:
    client, other = world.connect(), world.connect()
    other.acquire(N)
    assert client.acquire(N, QUEUE) == 0
    assert client.byebye() == 0
    assert client.acquire(b"org.example.Late") == -ECONNRESET
    assert client.acquire(N, QUEUE) == -ECONNRESET
    other.release_name(N)
    assert other.list_names(c.NAME_LIST_NAMES | c.NAME_LIST_QUEUED) == []
